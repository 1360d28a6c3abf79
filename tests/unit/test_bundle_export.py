"""A bundle's model as a file of its own: what is written is what the bundle computes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx.reference import ReferenceEvaluator
from shared import make_once

from qvec_deploy.bench.parity import parity_images
from qvec_deploy.builder.pipeline import build
from qvec_deploy.bundle.bundle import Bundle
from qvec_deploy.bundle.export_bundle import export_model
from qvec_deploy.errors import IncompatibleError, StorageError
from qvec_deploy.recipe import load_recipe

pytestmark = pytest.mark.slow


@pytest.fixture
def bundle(pico_recipe: Callable[..., Path]) -> Bundle:
    recipe = pico_recipe(vector=None, **{"lambda": 0.0})
    return Bundle.open(make_once("exported", lambda folder: build(load_recipe(recipe), folder)))


@pytest.mark.parametrize("expanded", [False, True])
@pytest.mark.parametrize(("lowering", "tolerance"), [("packed", 1e-5), ("int4", 1e-5), ("int8", 0.1)])
def test_the_file_alone_computes_what_the_bundle_does(
    bundle: Bundle, tmp_path: Path, lowering: str, tolerance: float, expanded: bool
) -> None:
    done = export_model(bundle.directory, tmp_path / "model.onnx", lowering, expanded=expanded)
    assert (done.lowering, done.expanded) == (lowering, expanded)
    assert done.calibrated == ("64 generated images" if lowering == "int8" else None)
    images = parity_images(bundle.manifest.model.input_shape)
    with bundle.session() as session:
        expected = session.run(images)
    stock = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    actual = stock.run(None, {"images": images})[0]
    assert np.linalg.norm(actual - expected) <= tolerance * np.linalg.norm(expected)


def test_a_full_folder_for_temporary_files(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime writes half a model there and says nothing."""
    real = onnxruntime.InferenceSession

    def session(path: str, options: onnxruntime.SessionOptions, **given: object) -> object:
        made = real(path, options, **given)
        written = Path(options.optimized_model_filepath)
        written.write_bytes(written.read_bytes()[:999])
        return made

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    with pytest.raises(StorageError, match="could not write the whole model") as caught:
        export_model(bundle.directory, tmp_path / "model.onnx", "int4", expanded=True)
    assert "TMPDIR" in caught.value.hint and not (tmp_path / "model.onnx").exists()


@pytest.mark.parametrize("expanded", [False, True])
def test_the_standard_form_is_what_onnx_says_it_is(bundle: Bundle, tmp_path: Path, expanded: bool) -> None:
    export_model(bundle.directory, tmp_path / "model.onnx", "packed", expanded=expanded)
    model = onnx.load(tmp_path / "model.onnx")
    assert {node.domain for node in model.graph.node} <= ({""} if expanded else {"", "qvec"})
    assert not expanded or not model.functions
    images = parity_images(bundle.manifest.model.input_shape)
    with bundle.session() as session:
        np.testing.assert_allclose(
            ReferenceEvaluator(model).run(None, {"images": images})[0], session.run(images), rtol=1e-3, atol=1e-4
        )


def test_what_is_there_stays(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"mine")
    with pytest.raises(StorageError, match="exists"):
        export_model(bundle.directory, tmp_path / "model.onnx")
    with pytest.raises(IncompatibleError, match="no lowering `w8a8`"):
        export_model(bundle.directory, tmp_path / "other.onnx", "w8a8")
    assert {path.name for path in tmp_path.iterdir()} == {"model.onnx", "pico.yaml"}
    assert (tmp_path / "model.onnx").read_bytes() == b"mine"


def test_an_image_is_answered_alike_in_any_company(pico_recipe: Callable[..., Path], tmp_path: Path) -> None:
    recipe = pico_recipe(target={"lowering": "int8", "threads": 1}, vector=None, **{"lambda": 0.0})
    bundle = build(load_recipe(recipe), tmp_path / "int8").bundle
    shape = bundle.manifest.model.input_shape
    images = np.random.default_rng(0).standard_normal((32, *shape), dtype=np.float32)
    images[5] *= 20  # one grid for a whole batch would be made for this image
    with bundle.session() as session:
        together = session.run(images)
        for size in (1, 8):
            apart = np.concatenate([session.run(images[start : start + size]) for start in range(0, 32, size)])
            np.testing.assert_allclose(apart, together, rtol=1e-4, atol=1e-5)
