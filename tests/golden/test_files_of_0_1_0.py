"""What 0.1.0 wrote still opens: a recipe, a vector, a packed file and a bundle. These files are kept for ever."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from qvec_deploy.bench.parity import parity_images, read_reference
from qvec_deploy.builder.pipeline import plan
from qvec_deploy.bundle.bundle import Bundle
from qvec_deploy.bundle.compare import CompareOptions, compare_bundles
from qvec_deploy.bundle.compare_stored import bundle_predictions
from qvec_deploy.packed import PackedFile
from qvec_deploy.recipe import load_recipe
from qvec_deploy.report.report_json import from_json
from qvec_deploy.vectors.vector_file import QuantizationVector

FILES = Path(__file__).parent / "v0.1.0"


def test_the_recipe_and_its_plan() -> None:
    made = plan(load_recipe(FILES / "recipe.yaml"))
    assert made.recipe.lam == 1.0 and len(made.quantized) == 4 and made.sources == (("vector.safetensors", 1.0),)


def test_the_vector() -> None:
    vector = QuantizationVector.open(FILES / "vector.safetensors")
    assert (vector.header.task, vector.header.skip, vector.header.scheme.bits) == ("pico", ("head",), 3)
    assert vector.sketch() is not None and np.isfinite(vector.read("blocks.0.mlp.fc1.weight")).all()


def test_the_bundle_verifies() -> None:
    bundle = Bundle.open(FILES / "bundle")
    found = bundle.verify()
    assert found["files"] == "9 as built" and "top-1 agreement 100%" in found["parity"]
    with bundle.session(threads=1) as session:
        logits = session.run(parity_images(session.input_shape))
    np.testing.assert_allclose(logits, read_reference(bundle.directory), rtol=1e-3, atol=1e-4)


def test_its_weights_and_answers() -> None:
    weights = PackedFile.open(FILES / "bundle" / "weights.qvec.safetensors")
    schemes = [info.scheme for info in weights.tensors.values() if info.scheme is not None]
    assert len(schemes) == 4 and {scheme.bits for scheme in schemes} == {3}
    predictions = bundle_predictions(Bundle.open(FILES / "bundle"))
    assert predictions is not None and len(predictions.labels) == 40 and set(predictions.predicted) >= {"float", "pico"}


def test_its_report() -> None:
    report = from_json((FILES / "bundle" / "report.json").read_bytes())
    assert report.selected == "pico" and report["pico"].accuracy is not None and report["pico"].accuracy.count == 40


def test_it_can_be_compared() -> None:
    comparison = compare_bundles(FILES / "bundle", FILES / "bundle", CompareOptions(stored=True))
    assert comparison.outcome() == "OK" and comparison.accuracy.verdict == "SAME"
