"""run.py prepares pictures bit for bit as timm does, and refuses what it cannot use in one line."""

from __future__ import annotations

import ast
import itertools
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qvec_deploy.datasets import DataConfig, standalone_run
from qvec_deploy.datasets.standalone_run import ImagePreprocessor, RunError, classify, prepare
from qvec_deploy.datasets.timm_factory import image_transform

MODES = ("center", "squash", "border")
SIZES = ((1, 40), (40, 1), (31, 97), (200, 33), (7, 5), (32, 32), (33, 32), (64, 64), (37, 36), (1, 1))


def _picture(size: tuple[int, int], mode: str = "RGB", seed: int = 0) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(noise).convert(mode)


def _config(**changes: object) -> dict[str, object]:
    base = DataConfig(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    return {**{name: getattr(base, name) for name in base.__dataclass_fields__}, **changes}


def _assert_same(config: dict[str, object], image: Image.Image) -> None:
    wanted = image_transform(DataConfig.from_mapping(config))(image).numpy()
    preprocessor = ImagePreprocessor(config)
    found = preprocessor.normalised(preprocessor.pixels(image))
    assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
    assert found.tobytes() == wanted.tobytes()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("pct", [0.875, 0.9, 0.95, 1.0])
@pytest.mark.parametrize("size", [(3, 32, 32), (3, 24, 40), (3, 37, 21)], ids=str)
def test_every_crop_of_every_size_is_timms(mode: str, pct: float, size: tuple[int, int, int]) -> None:
    config = _config(crop_mode=mode, crop_pct=pct, input_size=size)
    refused = 0
    for picture in map(_picture, SIZES):
        try:
            _assert_same(config, picture)
        except ValueError:  # timm too makes a side of 0 pixels of a picture like a hair
            refused += 1
            with pytest.raises(ValueError):
                ImagePreprocessor(config).pixels(picture)
    assert refused == 0 or mode == "border"


@pytest.mark.parametrize("name", ["nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"])
def test_every_interpolation_is_timms(name: str) -> None:
    for mode, size in itertools.product(MODES, ((97, 31), (20, 50))):
        _assert_same(_config(interpolation=name, crop_mode=mode, crop_pct=0.9), _picture(size))


def test_every_byte_is_normalised_as_torch_does() -> None:
    ramp = np.arange(256, dtype=np.uint8).repeat(12).reshape(32, 32, 3)
    for mean, std in (((0.5,) * 3, (0.5,) * 3), ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))):
        _assert_same(_config(mean=mean, std=std), Image.fromarray(ramp))


def _saved(folder: Path, kind: str) -> Path:
    """A picture file of a kind that is not plain RGB."""
    path = folder / ("picture.png" if kind not in ("CMYK", "exif") else "picture.jpg")
    image = _picture((50, 37))
    if kind == "P with transparency":
        palette = image.convert("P")
        palette.save(path, transparency=bytes(range(256)))
    elif kind == "exif":
        exif = Image.Exif()
        exif[0x0112] = 6  # turned by 90 degrees, which timm does not look at
        image.save(path, exif=exif)
    else:
        image.convert(kind).save(path)
    return path


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # timm leaves files open
@pytest.mark.parametrize("kind", ["L", "LA", "1", "P", "P with transparency", "RGBA", "CMYK", "exif"])
def test_every_kind_of_picture_is_read_as_a_dataset_of_timms_is(tmp_path: Path, kind: str) -> None:
    from timm.data import create_dataset

    folder = tmp_path / "class"
    folder.mkdir()
    path, config = _saved(folder, kind), _config(crop_pct=0.9)
    transform = image_transform(DataConfig.from_mapping(config))
    wanted = create_dataset("", str(tmp_path), transform=transform)[0][0].numpy()
    assert prepare(str(path), ImagePreprocessor(config), as_pixels=False).tobytes() == wanted.tobytes()


@pytest.mark.parametrize("channels", [1, 3])
def test_16_bits_are_scaled_and_not_cut_off(tmp_path: Path, channels: int) -> None:
    values = (np.arange(50 * 37, dtype=np.uint32).reshape(37, 50) * 35).astype(np.uint16)
    preprocessor = ImagePreprocessor(_config(crop_pct=1.0, input_size=(channels, 37, 37), mean=(0.5,), std=(0.5,)))
    for ending in ("png", "tif"):
        Image.fromarray(values).save(tmp_path / f"deep.{ending}")
        Image.fromarray(np.rint(values / 257).astype(np.uint8)).save(tmp_path / f"flat.{ending}")
        deep, flat = (prepare(str(tmp_path / f"{n}.{ending}"), preprocessor, as_pixels=True) for n in ("deep", "flat"))
        np.testing.assert_array_equal(deep, flat)
        assert deep.shape == (37, 37, channels) and len(np.unique(deep)) > 100


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_pixels_of_no_known_range_are_refused(tmp_path: Path, kind: type) -> None:
    path = tmp_path / "odd.tif"
    Image.fromarray(np.full((8, 8), 3, kind)).save(path)
    with pytest.raises(RunError, match="range that is not known"):
        prepare(str(path), ImagePreprocessor(_config()), as_pixels=True)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # timm leaves files open
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["L", "RGB", "RGBA", "CMYK", "1"])
def test_a_gray_model_gets_gray_pictures_as_timm_gives_them(tmp_path: Path, kind: str, mode: str) -> None:
    from timm.data import create_dataset, create_transform

    folder = tmp_path / "class"
    folder.mkdir()
    path = folder / ("picture.jpg" if kind == "CMYK" else "picture.png")
    _picture((50, 37)).convert(kind).save(path)
    config = _config(input_size=(1, 32, 32), mean=(0.4,), std=(0.3,), crop_mode=mode, crop_pct=0.9)
    transform = create_transform(**config, is_training=False)
    wanted = create_dataset("", str(tmp_path), transform=transform, input_img_mode="L")[0][0].numpy()
    assert prepare(str(path), ImagePreprocessor(config), as_pixels=False).tobytes() == wanted.tobytes()


def test_the_file_stands_alone() -> None:
    text = Path(standalone_run.__file__).read_text(encoding="utf-8")
    tree = ast.parse(text, feature_version=(3, 9))
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imported |= {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    others = {str(name).partition(".")[0] for name in imported}
    assert others - {
        "argparse",
        "collections",
        "hashlib",
        "json",
        "math",
        "os",
        "pathlib",
        "sys",
        "typing",
        "unicodedata",
    } == {
        "__future__",
        "PIL",
        "numpy",
        "onnxruntime",
    }


def test_pictures_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    _picture((8, 8)).save(tmp_path / "good.png")
    (tmp_path / "text.png").write_text("no picture")
    paths = [str(tmp_path / name) for name in ("good.png", "text.png", "none.png")]
    with pytest.raises(RunError) as caught:
        classify(lambda _: pytest.fail("nothing is run"), paths, _config(), ())
    assert caught.value.exit_code == 6
    assert all(name in caught.value.message for name in paths[1:]) and "good.png" not in caught.value.message


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(RunError, match=r"pipe\.png cannot be read: ValueError: it is a pipe or a device"):
        classify(lambda _: pytest.fail("nothing is run"), [str(tmp_path / "pipe.png")], _config(), ())


def test_a_picture_of_one_long_row_is_refused(tmp_path: Path) -> None:
    Image.new("L", (60_000, 1)).save(tmp_path / "row.png")
    with pytest.raises(RunError, match=r"row\.png cannot be read: .* when it is resized"):
        classify(
            lambda _: pytest.fail("nothing is run"), [str(tmp_path / "row.png")], _config(input_size=(3, 64, 64)), ()
        )


def test_a_picture_that_ends_early_is_named(tmp_path: Path) -> None:
    _picture((64, 64)).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:2000])
    with pytest.raises(RunError, match=r"cut\.png") as caught:
        classify(lambda _: pytest.fail("nothing is run"), [str(tmp_path / "cut.png")], _config(), ())
    assert caught.value.exit_code == 6


def test_classes_are_sorted_named_and_add_up(tmp_path: Path) -> None:
    _picture((8, 8)).save(tmp_path / "a.png")
    logits = np.array([[1.0, 3.0, 2.0, 3.0]], np.float32)
    picture = [str(tmp_path / "a.png")]
    (named,) = classify(lambda _: logits, picture, _config(), ("w", "x", "y", "z"), top=9)
    assert [(entry.label, entry.name) for entry in named.classes] == [(1, "x"), (3, "z"), (2, "y"), (0, "w")]
    assert sum(entry.probability for entry in named.classes) == pytest.approx(1, abs=1e-12)
    (numbered,) = classify(lambda _: logits, picture, _config(), (), top=2)
    assert [entry.name for entry in numbered.classes] == ["1", "3"]


def test_answers_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    _picture((8, 8)).save(tmp_path / "a.png")
    with pytest.raises(RunError) as caught:
        classify(lambda _: np.array([[np.nan, 1.0]], np.float32), [str(tmp_path / "a.png")], _config(), ())
    assert caught.value.exit_code == 4


def test_other_channels_than_gray_and_rgb_are_refused() -> None:
    with pytest.raises(RunError) as caught:
        ImagePreprocessor(_config(input_size=(4, 8, 8), mean=(0.5,), std=(0.5,)))
    assert caught.value.exit_code == 4
