"""Every method of the quantize block, from the recipe to a built engine that agrees with PyTorch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from older import write_format_1_0
from safetensors.numpy import load_file, save_file

from qvec_deploy.builder.context import BuildContext
from qvec_deploy.builder.weights import load_model, make_weights
from qvec_deploy.bundle.bundle import Bundle
from qvec_deploy.packed import PackedFile
from qvec_deploy.quantize.calibrated import calibrate_from_moments
from qvec_deploy.recipe import load_recipe
from qvec_deploy.tensors import QuantizedTensor, Scheme
from qvec_deploy.vectors.patch import patch
from qvec_deploy.vectors.vector_file import QuantizationVector

Run = Callable[..., tuple[int, str, str]]
Write = Callable[..., Path]

IMAGES = {"dataset": "tiny/realdigits", "split": "val", "limit": 40}


@pytest.mark.parametrize("method", ["awq", "gptq", "gptaq"])
def test_a_calibrated_method_becomes_an_engine(run: Run, pico_recipe: Write, tmp_path: Path, method: str) -> None:
    recipe = pico_recipe(quantize__method=method, quantize__grid="rtn", images=IMAGES, **{"lambda": 0.5})
    code, _, log = run("build", "--recipe", recipe, "-o", tmp_path / "bundle", "--quiet")
    assert code == 0, log
    bundle = Bundle.open(tmp_path / "bundle")
    assert bundle.manifest.method == method
    assert bundle.manifest.parity is not None
    assert bundle.manifest.parity.relative_error < 1e-4
    report = json.loads((bundle.directory / "report.json").read_bytes())
    assert {entry["name"]: entry["method"] for entry in report["candidates"]}["pico"] == method
    assert bool(bundle.manifest.layers) == (method != "awq")


def test_awq_factors_that_no_norm_takes_are_multiplications(run: Run, pico_recipe: Write, tmp_path: Path) -> None:
    recipe = pico_recipe(quantize__method="awq", quantize__grid="rtn", images=IMAGES, **{"lambda": 0.0})
    code, _, log = run("build", "--recipe", recipe, "-o", tmp_path / "bundle", "--quiet")
    assert code == 0, log
    factors = [
        name
        for name in PackedFile.open(tmp_path / "bundle" / "weights.qvec.safetensors").tensors
        if "input_scale" in name
    ]
    assert {name.removesuffix(".input_scale").rpartition(".")[2] for name in factors} <= {"proj", "fc2"}
    graph = onnx.load(tmp_path / "bundle" / "model.onnx", load_external_data=False).graph
    multiplied = {node.input[1] for node in graph.node if node.op_type == "Mul"}
    assert set(factors) <= multiplied
    assert factors


@pytest.fixture
def with_moments(tmp_path: Path, pico_states: dict[str, dict[str, np.ndarray]]) -> Path:
    """The pico vector, with second moments of its donor on digits."""
    import torch
    from pico import PICO_ARGS, PICO_CLASSES, PICO_MODEL

    from qvec_deploy.datasets import DataConfig, DatasetSpec, open_dataset
    from qvec_deploy.models import create
    from qvec_deploy.quantize.calibrated import collect_moments
    from qvec_deploy.vectors.extract import extract_vector

    model = create(PICO_MODEL, PICO_CLASSES, PICO_ARGS)
    model.load_state_dict({name: torch.tensor(value) for name, value in pico_states["fp"].items()})
    images = open_dataset(DatasetSpec("tiny/realdigits", "train", limit=40), DataConfig()).take(range(40))[0]
    extract_vector(
        pico_states["fp"],
        pico_states["qat"],
        tmp_path / "moments.safetensors",
        scheme=Scheme(3, "channel"),
        skip=("head",),
        task="pico",
        seed=0,
        moments=collect_moments(model.eval(), [images], ("head",)),
    )
    return tmp_path / "moments.safetensors"


def test_gptq_on_a_donors_moments_needs_no_image(
    run: Run, pico_recipe: Write, tmp_path: Path, with_moments: Path
) -> None:
    settings = {"method": "gptq", "grid": "rtn", "calibration": {"on": "moments"}, "bits": 3, "granularity": "channel"}
    recipe = pico_recipe(quantize=settings, vector={"files": [str(with_moments)]})
    code, _, log = run("build", "--recipe", recipe, "-o", tmp_path / "bundle", "--quiet")
    assert code == 0, log
    assert Bundle.open(tmp_path / "bundle").manifest.method == "gptq"


def test_moments_round_one_tensor_at_a_time_as_they_round_a_whole_model(
    pico_recipe: Write, pico_folder: Path, with_moments: Path
) -> None:
    settings = {"method": "gptq", "grid": "rtn", "calibration": {"on": "moments"}, "bits": 3, "granularity": "channel"}
    recipe = load_recipe(pico_recipe(quantize=settings, vector={"files": [str(with_moments)]}, **{"lambda": 0.5}))
    context = BuildContext()
    plan, receiver, sources = context.plan(recipe), context.receiver(recipe), context.sources(recipe)
    made = make_weights(plan, receiver, sources)
    found = dict(made.tensors)
    model = load_model(plan, patch(receiver, sources, plan))
    moments = QuantizationVector.open(with_moments).moments()
    assert moments is not None and list(found) == list(plan.architecture.shapes)
    scheme, skip = recipe.quantize.scheme(), recipe.quantize.skip
    assert scheme is not None
    expected = calibrate_from_moments(model, moments, scheme, skip, "gptq").codes
    assert {name for name, value in found.items() if isinstance(value, QuantizedTensor)} == set(expected)
    assert made.errors.keys() == {name.removesuffix(".weight") for name in expected}
    for name, each in expected.items():
        np.testing.assert_array_equal(found[name].codes, each.codes)  # type: ignore[union-attr]
    (lone,) = sources.values()
    twice = dict(make_weights(plan, receiver, {**sources, "again": lone}).tensors)  # the mean of two that are one
    assert all(np.array_equal(twice[name].codes, each.codes) for name, each in expected.items())  # type: ignore[union-attr]


def test_moments_that_no_vector_brings_are_refused(run: Run, pico_recipe: Write, tmp_path: Path) -> None:
    settings = {"method": "gptq", "grid": "rtn", "calibration": {"on": "moments"}, "bits": 3, "granularity": "channel"}
    code, _, err = run("build", "--recipe", pico_recipe(quantize=settings), "-o", tmp_path / "bundle", "--quiet")
    assert code == 4
    assert "brings no second moments" in err
    assert not (tmp_path / "bundle").exists()


def test_a_receiver_in_other_coordinates_is_refused_by_name(
    run: Run, pico_recipe: Write, pico_folder: Path, tmp_path: Path
) -> None:
    state = load_file(pico_folder / "receiver.safetensors")
    order = np.random.default_rng(0).permutation(len(state["blocks.0.mlp.fc1.bias"]))
    for name in ("blocks.0.mlp.fc1.weight", "blocks.0.mlp.fc1.bias"):
        state[name] = state[name][order]
    state["blocks.0.mlp.fc2.weight"] = np.ascontiguousarray(state["blocks.0.mlp.fc2.weight"][:, order])
    save_file(state, tmp_path / "permuted.safetensors")
    recipe = pico_recipe(receiver__checkpoint=str(tmp_path / "permuted.safetensors"))
    code, _, err = run("build", "--recipe", recipe, "-o", tmp_path / "bundle", "--quiet")
    assert code == 4
    assert "permut" in err
    assert "vector check" in err
    assert not (tmp_path / "bundle").exists()


def test_a_vector_without_a_sketch_is_a_doubt(run: Run, pico_recipe: Write, pico_folder: Path, tmp_path: Path) -> None:
    write_format_1_0(pico_folder / "vector.safetensors", tmp_path / "old.safetensors")
    recipe = pico_recipe(vector={"files": [str(tmp_path / "old.safetensors")]})
    code, out, err = run("build", "--recipe", recipe, "-o", tmp_path / "bundle", "--quiet")
    assert code == 0, err
    assert "vector without a sketch" in out


def test_a_control_in_a_vector_file_is_called_one(
    run: Run, pico_recipe: Write, pico_folder: Path, tmp_path: Path
) -> None:
    control = tmp_path / "control.safetensors"
    code, _, err = run("vector", "control", pico_folder / "vector.safetensors", "--kind", "random", "-o", control)
    assert code == 0, err
    code, _, err = run("build", "--recipe", pico_recipe(vector={"files": [str(control)]}), "-o", tmp_path / "bundle")
    assert code == 0, err
    assert Bundle.open(tmp_path / "bundle").manifest.control == "random, seed 0"
    report = json.loads((tmp_path / "bundle" / "report.json").read_bytes())
    own = next(entry for entry in report["candidates"] if entry["name"] == "pico")
    assert own["patch"]["control"] == "random, seed 0"


def test_w8a8_brings_what_the_device_needs_to_compile_it(run: Run, pico_recipe: Write, tmp_path: Path) -> None:
    """Where TensorRT is missing the bundle still holds the activations' ranges, measured here."""
    recipe = pico_recipe(target={"runtime": "tensorrt", "lowering": "w8a8"}, vector=None, **{"lambda": 0.0})
    code, _, err = run("build", "--recipe", recipe, "-o", tmp_path / "bundle", "--quiet")
    assert code == 4, err
    bundle = Bundle.open(tmp_path / "bundle")
    assert "activations.json" in bundle.manifest.files
    assert bundle.manifest.engine.missing
    assert bundle.manifest.runtime_bits_per_weight == pytest.approx(8.0, abs=1.5)
