"""Name what is in pictures: `python run.py picture.png`, in the folder of a model that qvec-deploy released.

It needs numpy, Pillow and ONNX Runtime (`pip install -r requirements.txt`) and Python 3.9 or newer, nothing else.
Everything about the model is read from manifest.json: how pictures are prepared, the names of the classes, the files,
and the options that the engine was measured with. qvec-deploy itself prepares pictures with this very file.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import sys
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TextIO

ONNXRUNTIME_NEEDED = (1, 20)
REQUIREMENTS = "onnxruntime>=1.20\nnumpy>=1.23\npillow>=9.3\n"
"""The oldest versions that were tried."""
MAX_MANIFEST = 1 << 24
MAX_PIXELS = 1 << 26
"""Of a picture that is resized: one of a few long rows would take all memory."""

try:
    import numpy as np
    from PIL import Image
except ImportError as missing:
    if __name__ != "__main__":
        raise
    sys.stderr.write(f"error: {missing}\nhint: pip install -r requirements.txt\n")
    sys.exit(4)


class RunError(Exception):
    """Something the user can act on.

    Args:
        exit_code: 4 for things that do not go together, 5 for damaged files, 6 where reading failed.
    """

    def __init__(self, exit_code: int, message: str, hint: str) -> None:
        super().__init__(message)
        self.exit_code, self.message, self.hint = exit_code, message, hint


class ClassProbability(NamedTuple):
    """A class of the model; its name is its number where nobody has named the classes."""

    label: int
    name: str
    probability: float


class ImagePrediction(NamedTuple):
    """The most probable classes of a picture, the best first."""

    image: str
    classes: tuple[ClassProbability, ...]

    def as_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {"image": self.image, "classes": [entry._asdict() for entry in self.classes]}


class ImagePreprocessor:
    """From a picture to what the model wants, bit for bit as timm's evaluation transform.

    Args:
        config: timm's words: `input_size` (C, H, W), `mean`, `std`, `crop_pct`, `crop_mode`, `interpolation`.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        channels, self._height, self._width = config["input_size"]
        if channels not in (1, 3):
            raise RunError(4, f"the model takes images of {channels} channels", "pictures are gray or RGB")
        self.colours = "L" if channels == 1 else "RGB"
        self._mode = config["crop_mode"]
        self._resample = Image.Resampling[config["interpolation"].upper()]
        self._scale = tuple(math.floor(side / config["crop_pct"]) for side in (self._height, self._width))
        self._mean, self._std = (np.asarray(config[name], np.float32)[:, None, None] for name in ("mean", "std"))
        border = tuple(round(255 * value) for value in config["mean"])
        fill = border if self._mode == "border" else (0,) * channels
        self._fill = fill[0] if channels == 1 else fill

    def pixels(self, image: Image.Image) -> np.ndarray[Any, Any]:
        """(H, W, C) uint8 of any picture: gray or RGB, resized and cropped.

        Raises:
            ValueError: Its pixels are no numbers of a known range, or it would be resized to more than `MAX_PIXELS`.
        """
        image = in_bytes(image).convert(self.colours)
        width, height = self._resized_size(image)
        if max(width * height, self._width * self._height) > MAX_PIXELS:
            raise ValueError(f"it would have {width:,} x {height:,} pixels when it is resized")
        image = self._cropped(image.resize((width, height), self._resample))
        return np.array(image, np.uint8).reshape(self._height, self._width, -1)

    def normalised(self, pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """(C, H, W) float32 of what `pixels` gives."""
        scaled = np.ascontiguousarray(pixels.transpose(2, 0, 1)).astype(np.float32) / np.float32(255)
        found: np.ndarray[Any, Any] = (scaled - self._mean) / self._std
        return found

    def _resized_size(self, image: Image.Image) -> tuple[int, int]:
        """(width, height) before the crop; the arithmetic is torchvision's and timm's, their rounding included."""
        high, wide = self._scale
        if self._mode == "squash":
            return wide, high
        if self._mode != "border" and high == wide:  # the shorter side becomes `high`
            short, long = sorted(image.size)
            longer = int(high * long / short)
            return (high, longer) if image.width <= image.height else (longer, high)
        ratios = image.height / high, image.width / wide
        ratio = max(ratios) if self._mode == "border" else min(ratios)
        return round(image.width / ratio), round(image.height / ratio)

    def _cropped(self, image: Image.Image) -> Image.Image:
        """The middle; what is too small is put on a background first."""
        more = max(self._width - image.width, 0), max(self._height - image.height, 0)
        if any(more):
            larger = Image.new(self.colours, (image.width + more[0], image.height + more[1]), self._fill)
            larger.paste(image, (more[0] // 2, more[1] // 2))
            image = larger
        left, top = round((image.width - self._width) / 2), round((image.height - self._height) / 2)
        return image.crop((left, top, left + self._width, top + self._height))


def in_bytes(image: Image.Image) -> Image.Image:
    """The picture with 8 bits a channel. Pillow would cut off values above 255 instead of scaling them.

    Raises:
        ValueError: Its pixels are of 32 bits or floats, whose range no file states.
    """
    sixteen = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG")
    if image.mode in ("I", "F") and not sixteen:
        raise ValueError(
            f"its pixels are {'floats' if image.mode == 'F' else 'of 32 bits'}, of a range that is not known"
        )
    if not sixteen:
        return image
    return Image.fromarray(np.rint(np.asarray(image, np.float64) * (255 / 65535)).astype(np.uint8))


def require_pictures(paths: Iterable[str]) -> None:
    """Refuse everything that is no picture at once, before anything is run.

    Raises:
        RunError: Some cannot be opened; all of them are named.
    """
    refused = []
    for path in paths:
        try:
            if Path(path).exists() and not (Path(path).is_file() or Path(path).is_dir()):
                raise ValueError("it is a pipe or a device")
            with Image.open(path):
                pass
        except Exception as error:  # noqa: BLE001 - decoders raise anything on hostile files
            refused.append(_reason(path, error))
    if refused:
        raise RunError(6, f"{'; '.join(refused)}", "name pictures that Pillow can open, such as PNG or JPEG")


def prepare(path: str, preprocessor: ImagePreprocessor, *, as_pixels: bool) -> np.ndarray[Any, Any]:
    """What the model takes of one picture: (C, H, W) float32, or (H, W, C) uint8.

    Raises:
        RunError: It cannot be decoded, or is too narrow to be resized.
    """
    try:
        with Image.open(path) as opened:
            pixels = preprocessor.pixels(opened)
    except Exception as error:  # decoders raise anything on hostile files
        raise RunError(6, _reason(path, error), "repair or leave out the file") from error
    return pixels if as_pixels else preprocessor.normalised(pixels)


def _reason(path: str, error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{path} cannot be read: {error.strerror}"
    return f"{path} cannot be read: {type(error).__name__}: {error}".partition("\n")[0]


def classify(
    run: Callable[[Any], Any],
    paths: Sequence[str],
    config: Mapping[str, Any],
    names: Sequence[str],
    *,
    as_pixels: bool = False,
    top: int = 5,
    batch: int = 1,
) -> list[ImagePrediction]:
    """The most probable classes of every picture.

    Args:
        run: The engine: logits (B, classes) of a batch of what `prepare` gives.
        config: The preprocessing, in the words of `ImagePreprocessor`.
        names: The classes by label; may be empty.
        top: Classes of each picture, at most.
        batch: Pictures in a run.

    Raises:
        RunError: A picture cannot be read, or the engine's answers are no numbers.
    """
    preprocessor = ImagePreprocessor(config)
    require_pictures(paths)
    found = []
    for start in range(0, len(paths), batch):
        some = paths[start : start + batch]
        logits = run(np.stack([prepare(path, preprocessor, as_pixels=as_pixels) for path in some]))
        for index, path in enumerate(some):
            found.append(ImagePrediction(path, _best(logits[index].astype(np.float64), names, top)))
    return found


def _best(logits: np.ndarray[Any, Any], names: Sequence[str], top: int) -> tuple[ClassProbability, ...]:
    if not np.isfinite(logits).all():
        raise RunError(4, "the engine's answers are not finite", "do not use it; `qvec-deploy verify` checks it")
    shares = np.exp(logits - logits.max())
    shares /= shares.sum()
    labels = np.argsort(-logits, kind="stable")[:top].tolist()
    return tuple(ClassProbability(i, names[i] if names else str(i), float(shares[i])) for i in labels)


def shown(text: str) -> str:
    """A name in one line; what a terminal would obey or hide is seen."""
    return "".join(ascii(c)[1:-1] if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") else c for c in text)


def as_text(predictions: Iterable[ImagePrediction]) -> str:
    """Predictions as a person reads them."""
    lines = []
    for prediction in predictions:
        lines.append(shown(prediction.image))
        lines += [f"  {100 * entry.probability:6.2f} %  {shown(entry.name)}" for entry in prediction.classes]
    return "\n".join(lines)


def open_session(folder: Path, manifest: Mapping[str, Any], threads: int | None = None) -> Any:
    """ONNX Runtime's session of the model in a folder, opened as it was measured.

    Args:
        threads: Instead of the manifest's; all available cores where neither says.

    Raises:
        RunError: A file is missing or damaged, or ONNX Runtime is missing, too old, or refuses the model.
    """
    interface = manifest["interface"]
    for name in (interface["model"], interface["weights"]):
        _check_file(folder / name, manifest["files"][name]["sha256"])
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read when the library is loaded
    try:
        import onnxruntime
    except ImportError as error:
        raise RunError(4, str(error), "pip install -r requirements.txt") from error
    version = onnxruntime.__version__
    if tuple(int(part) for part in version.split(".")[:2]) < ONNXRUNTIME_NEEDED:
        needed = ".".join(map(str, ONNXRUNTIME_NEEDED))
        raise RunError(4, f"ONNX Runtime {version} is too old for this model", f"install {needed} or later")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or manifest["engine"]["threads"] or _cores()
    options.log_severity_level = 4  # what it would print, with names of the graph as they are, is raised too
    for name, value in interface["session_options"].items():
        setattr(options, name, value)
    for name, value in interface["session_config"].items():
        options.add_session_config_entry(name, value)
    try:
        return onnxruntime.InferenceSession(
            str(folder / interface["model"]), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # its own classes share no base
        reason = str(error).strip().partition("\n")[0]
        raise RunError(4, f"ONNX Runtime {version} refuses the model: {reason}", "try a newer one") from error


def _check_file(path: Path, sha256: str) -> None:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            for piece in iter(lambda: file.read(1 << 20), b""):
                digest.update(piece)
    except OSError as error:
        raise RunError(6, f"{path}: {error.strerror}", "copy the whole folder of the release") from error
    if digest.hexdigest() != sha256:
        raise RunError(5, f"{path} was changed after the release", "copy it again")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def read_facts(folder: Path) -> dict[str, Any]:
    """manifest.json, as far as it is needed here.

    Raises:
        RunError: It is missing or damaged.
    """
    path = folder / "manifest.json"
    try:
        with path.open("rb") as file:
            data = file.read(MAX_MANIFEST + 1)
        if len(data) > MAX_MANIFEST:
            raise ValueError(f"it has more than {MAX_MANIFEST:,} bytes")
        manifest: dict[str, Any] = json.loads(data)
        digest = manifest.pop("digest", None)  # manifests of before have none
        content = json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()
        if digest not in (None, hashlib.sha256(content).hexdigest()):
            raise ValueError("it is not what its own digest says")
        _ = [manifest[name] for name in ("interface", "model", "engine", "files")]
    except OSError as error:
        raise RunError(6, f"{path}: {error.strerror}", "keep run.py in the folder of the release") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RunError(5, f"{path} is damaged: {error}", "copy the release again") from error
    return manifest


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the exit code."""
    asked = _parser().parse_args(arguments)
    try:
        predictions = _run(asked)
    except RunError as error:
        _say(f"error: {shown(error.message)}\nhint: {shown(error.hint)}", sys.stderr)
        if asked.json:
            document = {"error": error.message, "hint": error.hint, "exit_code": error.exit_code}
            _say(json.dumps(document, indent=2), sys.stdout)
        return error.exit_code
    if asked.json:
        document = {"predictions": [prediction.as_dict() for prediction in predictions]}
        _say(json.dumps(document, indent=2), sys.stdout)
    else:
        _say(as_text(predictions), sys.stdout)
    return 0


def _say(text: str, stream: TextIO) -> None:
    stream.write(text.encode(stream.encoding, "backslashreplace").decode(stream.encoding) + "\n")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        super().error(shown(message))


def _run(asked: argparse.Namespace) -> list[ImagePrediction]:
    folder = Path(__file__).resolve().parent
    manifest = read_facts(folder)
    require_pictures(asked.image)
    try:
        return _answer(folder, manifest, asked)
    except RunError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".partition("\n")[0][:200]
        raise RunError(5, f"{folder / 'manifest.json'} does not fit the model: {reason}", "copy it again") from error


def _answer(folder: Path, manifest: Mapping[str, Any], asked: argparse.Namespace) -> list[ImagePrediction]:
    session = open_session(folder, manifest, asked.threads)
    entry, output = manifest["interface"]["input"], manifest["interface"]["output"]["name"]
    return classify(
        lambda images: session.run([output], {entry["name"]: images})[0],
        asked.image,
        manifest["model"]["data_config"],
        manifest["model"]["class_names"],
        as_pixels=entry["dtype"] == "uint8",
        top=asked.top,
        batch=asked.batch,
    )


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        description="Name what is in pictures.",
        epilog="Exit codes: 0 done, 2 usage, 4 a library is missing or too old, 5 a file is damaged, 6 reading failed.",
    )
    parser.add_argument("image", nargs="+", help="a picture, such as a PNG or JPEG file")
    parser.add_argument("--top", type=_count, default=5, help="classes of each picture [default: 5]")
    parser.add_argument("--threads", type=_count, help="threads [default: the manifest's, or all cores]")
    parser.add_argument("--batch", type=_count, default=1, help="pictures in a run [default: 1]")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no whole number of at least 1")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
