"""What an edited manifest says is found where another file of the bundle contradicts it, digest or not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from manifests import edit_manifest, rewrite_file
from shared import make_once

from qvec_deploy.builder import pipeline
from qvec_deploy.bundle.bundle import Bundle
from qvec_deploy.errors import IntegrityError
from qvec_deploy.recipe import load_recipe

GOLDEN = Path(__file__).parents[1] / "golden" / "v0.1.0" / "bundle"
DIGITS = {"dataset": "tiny/realdigits", "limit": 40}

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("shared_work")]


@pytest.fixture
def bundle(pico_recipe: Callable[..., Path], tmp_path: Path) -> Path:
    """A bundle that was built now, this test's own."""
    recipe = pico_recipe(evaluate=DIGITS, gates={"max_stored_bits": 8.0})
    made = make_once("bundles/claims", lambda path: pipeline.build(load_recipe(recipe), path))
    return Path(shutil.copytree(made, tmp_path / "bundle"))


def _refused(bundle: Path) -> str:
    with pytest.raises(IntegrityError) as caught:
        Bundle.open(bundle).verify()
    return caught.value.message


def _values(bundle: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((bundle / "manifest.json").read_text())
    return values


def test_nothing_is_said_that_is_not_so(bundle: Path) -> None:
    found = Bundle.open(bundle).verify()
    assert found["manifest"] == "as it was written"
    assert "agrees with its files" in found["claims"] and "with its report" in found["claims"]
    assert "agrees with its files" in Bundle.open(GOLDEN).verify()["claims"]


MODEL: dict[str, Any] = {
    "name": "vit_small_patch16_224",
    "args": {"img_size": 64},
    "classes": 11,
    "input_shape": [3, 64, 64],
    "data_config": {"mean": [0.1, 0.1, 0.1], "std": [0.5, 0.5, 0.5]},
    "class_names": [f"other{index}" for index in range(10)],
}
INTERFACE: dict[str, Any] = {
    "model": "other.onnx",
    "input": {"name": "images", "dtype": "uint8", "shape": ["batch", 3, 32, 32]},
    "output": {"name": "logits", "dtype": "float32", "shape": ["batch", 11]},
    "session_options": {"inter_op_num_threads": 4},
    "session_config": {},
}


@pytest.mark.parametrize("field", MODEL)
def test_the_model(bundle: Path, field: str) -> None:
    edit_manifest(bundle, model=_values(bundle)["model"] | {field: MODEL[field]})
    assert "its manifest has another" in _refused(bundle)


@pytest.mark.parametrize("field", INTERFACE)
def test_the_interface(bundle: Path, field: str) -> None:
    edit_manifest(bundle, interface=_values(bundle)["interface"] | {field: INTERFACE[field]})
    assert "its manifest has another" in _refused(bundle)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"stored_bytes": 1}, "another size than its files"),
        ({"stored_bits_per_weight": 1.0}, "another number of stored bits"),
        ({"runtime_bits_per_weight": 1.0}, "another number of run-time bits"),
        ({"method": "gptq"}, "another method"),
        ({"unverified": "because"}, "another verification"),
        ({"sources": {}}, "another receiver"),
        ({"vectors": []}, "another mixture"),
        ({"layers": []}, "about another engine"),
        ({"layers": [{"name": "blocks.7", "error": 0.1}]}, "another list of layers"),
        ({"control": "random"}, "about another engine"),
        ({"gates": []}, "other gates"),
        ({"versions": {"torch": "1.0"}}, "other versions of packages"),
        ({"lam": 0.5}, "does not say what recipe.yaml says"),
        ({"name": "better"}, "does not say what recipe.yaml says"),
    ],
)
def test_everything_else(bundle: Path, changes: dict[str, Any], match: str) -> None:
    edit_manifest(bundle, **changes)
    assert match in _refused(bundle)


def test_the_engine(bundle: Path) -> None:
    product = {"linear": "a", "layer": "b", "inputs": [], "constants": [], "fused": True}
    engine = _values(bundle)["engine"]
    edit_manifest(bundle, engine=engine | {"products": [product]})
    assert "another arithmetic" in _refused(bundle)
    edit_manifest(bundle, engine=engine | {"threads": 7})
    assert "does not say what recipe.yaml says" in _refused(bundle)


def test_a_layer_and_its_report(bundle: Path) -> None:
    layers = _values(bundle)["layers"]
    layers[0]["error"] /= 2
    edit_manifest(bundle, layers=layers)
    assert "about another engine" in _refused(bundle)


def test_what_the_model_file_says_of_itself(bundle: Path) -> None:
    model = onnx.load(bundle / "model.onnx", load_external_data=False)
    (entry,) = (each for each in model.metadata_props if each.key == "qvec.preprocessing")
    entry.value = entry.value.replace("0.5", "0.6")
    rewrite_file(bundle, "model.onnx", model.SerializeToString(deterministic=True))
    size = sum((bundle / name).stat().st_size for name in ("model.onnx", "weights.qvec.safetensors"))
    edit_manifest(bundle, stored_bytes=size)
    assert "another description of the model than model.onnx" in _refused(bundle)


def test_a_recipe_and_its_structure(bundle: Path) -> None:
    text = (bundle / "recipe.yaml").read_text()
    rewrite_file(bundle, "recipe.yaml", text.replace("img_size: 32", "img_size: 64").encode())
    edit_manifest(bundle, recipe_sha256=_values(bundle)["files"]["recipe.yaml"]["sha256"])
    assert "another arguments of the model than its recipe" in _refused(bundle)
    rewrite_file(bundle, "recipe.yaml", text.encode())
    edit_manifest(bundle, recipe_sha256=_values(bundle)["files"]["recipe.yaml"]["sha256"])
    structure = json.loads((bundle / "structure.json").read_text())
    rewrite_file(bundle, "structure.json", json.dumps(structure | {"classes": 11}).encode())
    assert "another architecture than structure.json" in _refused(bundle)


def test_what_is_changed_while_it_is_looked_at(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def change(*_: object) -> None:
        (bundle / "report.md").write_text("better")

    monkeypatch.setattr("qvec_deploy.bundle.bundle.check_parity", lambda *given: change() or _parity(*given))
    assert "report.md was changed after the build" in _refused(bundle)


def _parity(*given: Any) -> Any:
    from qvec_deploy.bench.parity import check_parity

    return check_parity(*given)


def test_linked_files_are_fine_where_their_bytes_are_right(bundle: Path, tmp_path: Path) -> None:
    names = "weights.qvec.safetensors", "model.onnx"
    for links in (("hardlink_to", "hardlink_to"), ("symlink_to", "hardlink_to"), ("symlink_to", "symlink_to")):
        for name, link in zip(names, links, strict=True):
            blob = (bundle / name).resolve().rename(tmp_path / f"blob of {name}")
            (bundle / name).unlink(missing_ok=True)
            getattr(bundle / name, link)(blob)
        opened = Bundle.open(bundle)
        assert "parity" in opened.verify()
        for lowering in opened.lowerings():
            with opened.session(lowering=lowering):
                pass
    (tmp_path / "blob of model.onnx").write_bytes(b"x")
    with pytest.raises(IntegrityError, match=r"model\.onnx was changed after the build"):
        Bundle.open(bundle)
