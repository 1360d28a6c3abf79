"""`predict`, and the released run.py in a process that has numpy, Pillow and ONNX Runtime alone: the same answers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import yaml
from PIL import Image

from qvec_deploy.bundle.bundle import Bundle
from qvec_deploy.bundle.manifest import FORMAT_VERSION
from qvec_deploy.datasets import DataConfig, DatasetSpec
from qvec_deploy.datasets.standalone_run import REQUIREMENTS, as_text
from qvec_deploy.datasets.tiny import open_tiny

Run = Callable[..., tuple[int, str, str]]

HEADER = "onnxruntime_cxx_api.h"
PACKAGES = ("numpy", "numpy.libs", "PIL", "pillow.libs", "onnxruntime")
RUN = """
import runpy, sys
sys.path.insert(0, sys.argv.pop(1))
try:
    runpy.run_path(sys.argv.pop(1), run_name="__main__")
finally:
    assert not {"qvec_deploy", "torch", "timm", "pydantic"} & set(sys.modules)
"""


@pytest.fixture
def released(build_once: Callable[..., Path], run: Run, tmp_path: Path) -> Path:
    """A release of a bundle whose classes have names, this test's own."""
    bundle = build_once("gated", evaluate={"dataset": "tiny/realdigits", "limit": 40}, gates={"max_stored_bits": 8.0})
    assert run("release", bundle, "--to", tmp_path / "released", "--quiet")[0] == 0
    return tmp_path / "released"


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """Digits as PNG files, and one picture of another size."""
    images, _ = open_tiny(DatasetSpec("tiny/realdigits", limit=3), DataConfig()).pixels
    paths = [tmp_path / f"{index}.png" for index in range(4)]
    for path, pixels in zip(paths, [*images, np.tile(images[0], (2, 3, 1))], strict=True):
        Image.fromarray(pixels).save(path)
    return paths


@pytest.fixture
def device(tmp_path: Path) -> Callable[..., tuple[int, str, str]]:
    """Run a released run.py in a process that could not import this package, torch or timm."""
    site = tmp_path / "site"
    site.mkdir()
    libraries = Path(str(find_spec("numpy").origin)).parents[1]  # type: ignore[union-attr]
    for name in PACKAGES:
        if (libraries / name).exists():
            (site / name).symlink_to(libraries / name)

    def call(folder: Path, *arguments: object, without: str = "") -> tuple[int, str, str]:
        if without:
            (site / without).unlink()
        command = [sys.executable, "-I", "-S", "-c", RUN, site, folder / "run.py", *arguments]
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
        return done.returncode, done.stdout, done.stderr

    return call


def test_a_device_answers_as_predict_does(
    released: Path, pictures: list[Path], device: Callable[..., tuple[int, str, str]], run: Run
) -> None:
    code, out, err = device(released, *pictures, "--json", "--threads", 1)
    assert (code, err) == (0, "")
    found = Bundle.open(released).predict(pictures, threads=1)
    assert json.loads(out) == {"predictions": [each.as_dict() | {"classes": _classes(each)} for each in found]}
    assert [each.image for each in found] == [str(path) for path in pictures]
    assert {entry.name for entry in found[0].classes} < set("0123456789") and len(found[0].classes) == 5
    code, own, _ = run("predict", released, *pictures, "--threads", 1, "--json")
    assert (code, own) == (0, out)
    text = device(released, *pictures, "--threads", 1, "--top", 2)[1]
    assert text == run("predict", released, *pictures, "--threads", 1, "--top", 2)[1]
    assert len(text.splitlines()) == 3 * len(pictures)


def _classes(prediction: object) -> list[dict[str, object]]:
    return [entry._asdict() for entry in prediction.classes]  # type: ignore[attr-defined]


def test_batches_answer_alike(released: Path, pictures: list[Path]) -> None:
    one, many = (Bundle.open(released).predict(pictures, top=10, batch_size=size) for size in (1, 3))
    for first, second in zip(one, many, strict=True):
        chances = [{entry.name: entry.probability for entry in each.classes} for each in (first, second)]
        assert chances[0] == pytest.approx(chances[1], abs=1e-5)


@pytest.fixture
def pixels(build_once: Callable[..., Path], pico_recipe: Callable[..., Path]) -> Path:
    """A bundle whose model normalises images itself, and whose images are not cropped; do not write to it."""
    receiver = yaml.safe_load(pico_recipe().read_text())["receiver"]
    return build_once(
        "pixels",
        receiver={**receiver, "preprocessing": {"crop_pct": 1.0, "mean": [0.4, 0.5, 0.6]}},
        target={"threads": 1, "preprocessing": "in_graph"},
        evaluate={"dataset": "tiny/realdigits", "limit": 40},
    )


def test_a_picture_is_answered_as_in_the_evaluation(pixels: Path, pictures: list[Path]) -> None:
    """A picture of the input's size is not resized where nothing is cropped: the dataset's images are answered so."""
    bundle = Bundle.open(pixels)
    config = DataConfig.from_mapping(bundle.manifest.model.data_config)
    assert (config.crop_pct, config.mean) == (1.0, (0.4, 0.5, 0.6))
    images, _ = open_tiny(DatasetSpec("tiny/realdigits", limit=3), config).take(range(3))
    with bundle.session(threads=1) as session:
        logits = np.concatenate([session.run(images[index : index + 1]) for index in range(3)])
    found = bundle.predict(pictures[:3], threads=1)
    for each, row in zip(found, logits.astype(np.float64), strict=True):
        shares = np.exp(row - row.max()) / np.exp(row - row.max()).sum()
        assert [entry.probability for entry in each.classes] == np.sort(shares)[::-1][:5].tolist()


def test_a_model_that_normalises_itself(
    pixels: Path, pictures: list[Path], device: Callable[..., tuple[int, str, str]], run: Run, tmp_path: Path
) -> None:
    interface = Bundle.open(pixels).manifest.interface
    assert interface is not None and (interface.input.dtype, interface.input.shape) == ("uint8", ("batch", 32, 32, 3))
    session = onnxruntime.InferenceSession(pixels / "model.onnx", providers=["CPUExecutionProvider"])
    (entry,) = session.get_inputs()
    assert (entry.name, entry.type, entry.shape) == ("images", "tensor(uint8)", ["batch", 32, 32, 3])
    assert run("verify", pixels)[0] == 0
    assert run("bench", pixels, "--lowering", "int8", "--lowering", "packed", "--blocks", 2, "--quiet")[0] == 0
    assert run("export", pixels, "-o", tmp_path / "int8.onnx", "--lowering", "int8", "--expanded")[0] == 0
    assert run("release", pixels, "--to", tmp_path / "released", "--quiet")[0] == 0
    code, out, _ = device(tmp_path / "released", *pictures, "--json")
    found = Bundle.open(pixels).predict(pictures)
    assert code == 0 and json.loads(out)["predictions"] == [
        each.as_dict() | {"classes": _classes(each)} for each in found
    ]


@pytest.fixture
def outside(pixels: Path, build_once: Callable[..., Path]) -> Path:
    """The same with images that are normalised outside; do not write to it."""
    receiver = yaml.safe_load((pixels / "recipe.yaml").read_text())["receiver"]
    images = {"dataset": "tiny/realdigits", "limit": 40}
    return build_once("pixels_outside", receiver=receiver, target={"threads": 1}, evaluate=images)


def test_normalising_in_the_graph_changes_no_bit(pixels: Path, outside: Path, pictures: list[Path]) -> None:
    assert Bundle.open(pixels).predict(pictures) == Bundle.open(outside).predict(pictures)


def test_the_manifest_and_the_model_say_what_a_device_needs(released: Path) -> None:
    manifest = Bundle.open(released).manifest
    assert manifest.version == FORMAT_VERSION and manifest.model.class_names == tuple("0123456789")
    interface, model = manifest.interface, onnx.load(released / "model.onnx", load_external_data=False)
    assert interface is not None and (interface.model, interface.weights) == ("model.onnx", "weights.qvec.safetensors")
    session = onnxruntime.InferenceSession(released / "model.onnx", providers=["CPUExecutionProvider"])
    for spec, value in ((interface.input, session.get_inputs()[0]), (interface.output, session.get_outputs()[0])):
        assert (spec.name, list(spec.shape)) == (value.name, value.shape)
        assert value.type == {"float32": "tensor(float)"}[spec.dtype]
    told = {entry.key: entry.value for entry in model.metadata_props}
    assert told.pop("qvec.lowering") == manifest.engine.lowering
    assert {key: json.loads(value) for key, value in told.items()} == {
        "qvec.preprocessing": manifest.model.data_config,
        "qvec.class_names": list("0123456789"),
        "qvec.input": interface.input.model_dump(mode="json"),
        "qvec.output": interface.output.model_dump(mode="json"),
        "qvec.session": {
            "intra_op_num_threads": manifest.engine.threads,
            **interface.session_options,
            "config": interface.session_config,
        },
    }
    assert interface.session_config == {"session.force_spinning_stop": "1"}


def test_without_labelled_images_classes_are_numbers(finished: Path, pictures: list[Path], run: Run) -> None:
    assert Bundle.open(finished).manifest.model.class_names == ()
    code, out, _ = run("predict", finished, pictures[0], "--top", 1, "--json")
    (entry,) = json.loads(out)["predictions"][0]["classes"]
    assert code == 0 and entry["name"] == str(entry["label"])


def test_the_card_opens_with_the_commands(released: Path) -> None:
    body = (released / "MODEL_CARD.md").read_text().split("---\n", 2)[2]
    commands = body.split("```")[1].splitlines()[1:]
    assert len(commands) == 3 and commands[0].startswith("pip install -r requirements.txt")
    assert commands[1].startswith("python run.py picture.png")
    assert (released / "requirements.txt").read_text() == REQUIREMENTS


def test_predict_needs_no_torch(released: Path, pictures: list[Path]) -> None:
    code = "import sys\nfrom pathlib import Path\nimport qvec_deploy\n"
    code += "qvec_deploy.Bundle.open(Path(sys.argv[1])).predict([Path(sys.argv[2])])\n"
    code += "assert not {'torch', 'timm', 'onnx', 'modelopt'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code, released, pictures[0]], check=True)


def test_bad_input_is_one_line_and_a_code(
    released: Path, pictures: list[Path], device: Callable[..., tuple[int, str, str]], run: Run, tmp_path: Path
) -> None:
    (tmp_path / "text.png").write_text("no picture")
    bad = [pictures[0], tmp_path / "text.png", tmp_path / "none.png"]
    for code, out, err in (device(released, *bad), run("predict", released, *bad)):
        assert (code, out) == (6, "")
        assert [line.partition(":")[0] for line in err.splitlines()] == ["error", "hint"]
        assert "text.png" in err and "none.png" in err and str(pictures[0]) not in err
    code, out, _ = device(released, *bad, "--json")
    assert (code, json.loads(out)["exit_code"]) == (6, 6)
    assert device(released)[0] == 2 and device(released, pictures[0], "--top", "0")[0] == 2
    assert device(released, pictures[0], "--top", "x")[0] == 2


def _refusal(told: tuple[int, str, str], code: int) -> str:
    assert told[:2] == (code, "")
    error, hint = told[2].splitlines()
    assert error.startswith("error: ") and hint.startswith("hint: ")
    return told[2]


def test_a_damaged_release_is_refused(
    released: Path, pictures: list[Path], device: Callable[..., tuple[int, str, str]]
) -> None:
    manifest, weights = released / "manifest.json", released / "weights.qvec.safetensors"
    text = manifest.read_text()
    without = {**json.loads(text), "interface": {"model": "model.onnx"}}
    for damaged in ("{", "[" * 100_000, json.dumps(without), text.replace('"input_size"', '"size"')):
        manifest.write_text(damaged)
        assert "manifest.json" in _refusal(device(released, pictures[0]), 5)
    manifest.unlink()
    _refusal(device(released, pictures[0]), 6)
    manifest.write_text(text)
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    assert "weights.qvec.safetensors" in _refusal(device(released, pictures[0]), 5)
    weights.unlink()
    _refusal(device(released, pictures[0]), 6)


def test_missing_and_old_libraries_are_refused(
    released: Path, pictures: list[Path], device: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    told = _refusal(device(released, pictures[0], without="onnxruntime"), 4)
    assert "onnxruntime" in told and "requirements.txt" in told
    (tmp_path / "site" / "onnxruntime.py").write_text("__version__ = '1.17.3'")
    told = _refusal(device(released, pictures[0]), 4)
    assert "1.17.3" in told and "1.20" in told
    assert "requirements.txt" in _refusal(device(released, pictures[0], without="PIL"), 4)


def test_what_another_runtime_needs_is_not_released(build_once: Callable[..., Path], run: Run, tmp_path: Path) -> None:
    """A bundle of an older version has no interface: its release has no run.py."""
    own = Path(shutil.copytree(build_once("pico"), tmp_path / "own"))
    values = json.loads((own / "manifest.json").read_text())
    values.pop("interface")
    values.pop("digest")
    (own / "manifest.json").write_text(json.dumps({**values, "version": "1.1.0"}))
    assert run("release", own, "--to", tmp_path / "r", "--accept-unverified", "--quiet")[0] == 0
    assert not (tmp_path / "r" / "run.py").exists()
    assert "run.py" not in (tmp_path / "r" / "MODEL_CARD.md").read_text()


@pytest.fixture(scope="module")
def run_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The C++ program, compiled."""
    where = Path(os.environ.get("ONNXRUNTIME", "/usr"))
    headers = [path for path in (where / "include", where / "include" / "onnxruntime") if (path / HEADER).is_file()]
    if not headers:
        pytest.skip(f"no {HEADER}: set ONNXRUNTIME to an unpacked release of ONNX Runtime, with include/ and lib/")
    program = tmp_path_factory.mktemp("cpp") / "run_model"
    source = Path(__file__).parents[2] / "scripts" / "cpp" / "run_model.cc"
    library = where / "lib"
    flags = ["-std=c++17", "-Wall", "-Wextra", "-Werror", f"-L{library}", f"-Wl,-rpath,{library}"]
    command = ["g++", source, "-isystem", headers[0], *flags, "-lonnxruntime", "-o", program]
    subprocess.run(command, check=True)
    return program


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")
def test_the_cpp_program_is_correct_cpp() -> None:
    """Against declarations of our own, where ONNX Runtime's headers are not to be had."""
    root = Path(__file__).parents[2]
    command = ["g++", "-std=c++17", "-Wall", "-Wextra", "-Werror", "-fsyntax-only"]
    command += ["-I", root / "tests" / "onnxruntime_declarations", root / "scripts" / "cpp" / "run_model.cc"]
    subprocess.run(command, check=True)


def _cpp(program: Path, *arguments: object) -> tuple[int, str, str]:
    done = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("form", ["pixels", "outside"])
def test_the_cpp_program_answers_as_predict_does(
    run_model: Path, form: str, request: pytest.FixtureRequest, pictures: list[Path], tmp_path: Path
) -> None:
    bundle, picture = request.getfixturevalue(form), tmp_path / "picture.ppm"
    Image.open(pictures[0]).save(picture)
    text = as_text(Bundle.open(bundle).predict([picture], threads=1))
    assert _cpp(run_model, bundle, picture) == (0, text.partition("\n")[2] + "\n", "")


def test_the_cpp_program_reads_any_name(run_model: Path, outside: Path, pictures: list[Path], tmp_path: Path) -> None:
    own, picture = Path(shutil.copytree(outside, tmp_path / "own")), tmp_path / "picture.ppm"
    Image.open(pictures[0]).save(picture)
    names = ['"quoted"', "back\\slash", "é", "猫", "🐈", "tab\t", "a, b", "", "]", "\x7f"]
    model = onnx.load(own / "model.onnx", load_external_data=False)
    props = {entry.key: entry.value for entry in model.metadata_props} | {"qvec.class_names": json.dumps(names)}
    onnx.helper.set_model_props(model, props)
    (own / "model.onnx").write_bytes(model.SerializeToString())
    (found,) = Bundle.open(outside).predict([picture], threads=1)
    out = _cpp(run_model, own, picture)[1]
    assert [line.partition("%  ")[2] for line in out.splitlines()] == [names[entry.label] for entry in found.classes]


def test_the_cpp_program_refuses(run_model: Path, outside: Path, pictures: list[Path], tmp_path: Path) -> None:
    Image.open(pictures[3]).save(tmp_path / "large.ppm")
    Image.open(pictures[0]).save(tmp_path / "whole.ppm")
    (tmp_path / "cut.ppm").write_bytes((tmp_path / "whole.ppm").read_bytes()[:-1])
    for code, arguments in (
        (2, [outside]),
        (4, [outside, tmp_path / "large.ppm"]),
        (4, [tmp_path, tmp_path / "whole.ppm"]),
        (6, [outside, tmp_path / "cut.ppm"]),
        (6, [outside, pictures[0]]),
        (6, [outside, tmp_path / "none.ppm"]),
    ):
        told = _cpp(run_model, *arguments)
        assert told[:2] == (code, "") and len(told[2].splitlines()) == 1
