"""Convolutions on the grid: stored as matrices, multiplied as the floats they stand for, on every runtime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from pico import PICO_ARGS, PICO_CLASSES, PICO_MODEL
from shared import export_once
from small_engines import SCHEME, SKIP, onnxruntime_cuda_on_cpu, relative_error, torch_on_cpu, write_engine

from qvec_deploy.bench.parity import parity_images, reference_logits
from qvec_deploy.builder.context import BuildContext
from qvec_deploy.errors import IncompatibleError, RecipeError
from qvec_deploy.models import create, describe
from qvec_deploy.packed import Entry, PackedFile, pack, unpack, write_packed
from qvec_deploy.planner import Plan
from qvec_deploy.quantize.reference import quantize
from qvec_deploy.recipe import load_recipe
from qvec_deploy.runtimes.engine_files import MODEL_FILE, WEIGHTS_FILE
from qvec_deploy.runtimes.graph.export import export_skeleton
from qvec_deploy.runtimes.graph.stored import attach_weights, load_stored
from qvec_deploy.runtimes.onnxruntime.ort_profile import _layers_of_nodes
from qvec_deploy.runtimes.registry import find_runtime, runtime_bits_per_weight
from qvec_deploy.runtimes.tensorrt.tensorrt_graph import tensorrt_graph
from qvec_deploy.tensors import Scheme

FILTERS = "patch_embed.proj.weight"
SHAPE = (32, 3, 8, 8)
PLAIN = {"vector": None, "lambda": 0.0}
RAGGED = {**PICO_ARGS, "patch_size": 4, "depth": 1}
"""Rows of 48 weights, which are padded to 64 codes."""


def _plan(path: Path) -> Plan:
    return BuildContext().plan(load_recipe(path))


def _quantized(pico_recipe: Callable[..., Path], **grid: object) -> list[str]:
    settings = {"bits": 3, "granularity": "channel", "method": "mse", "convolutions": True, **grid}
    return [tensor.name for tensor in _plan(pico_recipe(quantize=settings, **PLAIN)).quantized]


def test_convolutions_are_planned_on_request(pico_recipe: Callable[..., Path]) -> None:
    with_them = _quantized(pico_recipe)
    assert FILTERS in with_them and len(with_them) == 9
    assert _quantized(pico_recipe, convolutions=False) == [name for name in with_them if name != FILTERS]
    assert _quantized(pico_recipe, skip=["head", "patch_embed"]) == [name for name in with_them if name != FILTERS]
    with pytest.raises(RecipeError, match="`patch_embed` matches no Linear of"):
        _quantized(pico_recipe, skip=["head", "patch_embed"], convolutions=False)
    with pytest.raises(RecipeError, match="rows of 192 weights are not a multiple of group_size 128"):
        _quantized(pico_recipe, skip=["head", "blocks"], granularity="group", group_size=128)


def test_depthwise_convolutions_are_left_float() -> None:
    architecture = describe("mobilevit_xxs", 10, {})
    assert "stages.0.0.conv1_1x1.conv" in architecture.convolutions
    assert "stages.0.0.conv2_kxk.conv" not in architecture.convolutions  # of one channel each


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"quantize": {"method": "gptaq", "convolutions": True}, **PLAIN}, "method `gptaq` looks at what reaches"),
        ({"quantize": {"convolutions": True}}, "vectors are trained with convolutions in float"),
    ],
)
def test_what_knows_linears_alone_is_refused(pico_recipe: Callable[..., Path], change: dict, says: str) -> None:
    with pytest.raises(IncompatibleError, match=says):
        _plan(pico_recipe(**change))


def test_a_model_without_linears_is_told_of_its_convolutions(tmp_path: Path, pico_recipe: Callable[..., Path]) -> None:
    from safetensors.torch import save_file

    save_file(create("visformer_tiny", 10, {}).state_dict(), tmp_path / "visformer.safetensors")
    receiver = {"checkpoint": str(tmp_path / "visformer.safetensors"), "model": "visformer_tiny"}
    with pytest.raises(IncompatibleError, match="has no Linear to quantize outside head") as caught:
        _plan(pico_recipe(receiver=receiver, **PLAIN))
    assert "quantize.convolutions: true" in caught.value.hint
    plan = _plan(pico_recipe(receiver=receiver, quantize={"convolutions": True}, **PLAIN))
    assert len(plan.quantized) > 40 and not any(".running_" in tensor.name for tensor in plan.quantized)


@pytest.mark.parametrize("scheme", [SCHEME, Scheme(4, "group", group_size=16), Scheme(8, "tensor")], ids=str)
def test_every_lowering_computes_with_the_filters_of_the_file(tmp_path: Path, scheme: Scheme) -> None:
    expected = write_engine(tmp_path, scheme, RAGGED, graph=True, convolutions=True)
    runtime = find_runtime("onnxruntime")
    weights = PackedFile.open(tmp_path / WEIGHTS_FILE)
    assert weights.version == "1.1.0" and weights.tensors[FILTERS].shape == (32, 3, 4, 4)
    onnx.checker.check_model(str(tmp_path / MODEL_FILE), full_check=True)
    for lowering in ("packed", "int4", "int8"):
        row = next(each for each in runtime.lowerings if each.name == lowering)
        if scheme.bits not in row.bits or scheme.granularity not in row.granularities:
            continue
        with runtime.load().open(tmp_path, lowering, 1) as session:
            error = relative_error(session.run(parity_images(session.input_shape)), expected)
        assert error < (0.1 if lowering == "int8" else 1e-5), lowering


def test_filters_are_those_of_the_quantizer(tmp_path: Path) -> None:
    """Not only the engine and PyTorch agree: both have the matrix of the reference, in the filters' own order."""
    architecture, generator = describe(PICO_MODEL, PICO_CLASSES, PICO_ARGS), np.random.default_rng(0)
    state = {name: generator.normal(size=shape).astype(np.float32) for name, shape in architecture.shapes.items()}
    matrix = quantize(state[FILTERS].reshape(32, -1), SCHEME)
    layout = {name: Entry(shape, SCHEME if name == FILTERS else None) for name, shape in architecture.shapes.items()}
    write_packed(tmp_path / WEIGHTS_FILE, layout, (state | {FILTERS: pack(matrix)}).items())
    weights = PackedFile.open(tmp_path / WEIGHTS_FILE)
    np.testing.assert_array_equal(unpack(weights.packed(FILTERS)).codes, matrix.codes)
    rounded = tmp_path / "rounded"
    rounded.mkdir()
    floats = state | {FILTERS: matrix.dequantize().reshape(SHAPE)}
    write_packed(
        rounded / WEIGHTS_FILE, {name: Entry(shape) for name, shape in architecture.shapes.items()}, floats.items()
    )
    images = parity_images(architecture.input_shape)
    answers = [
        reference_logits(PackedFile.open(folder / WEIGHTS_FILE), PICO_MODEL, PICO_CLASSES, PICO_ARGS, images)
        for folder in (tmp_path, rounded)
    ]
    np.testing.assert_array_equal(*answers)


def test_they_count_as_floats_at_run_time(tmp_path: Path) -> None:
    write_engine(tmp_path, convolutions=True)
    weights = PackedFile.open(tmp_path / WEIGHTS_FILE)
    filters = [weights.tensors[FILTERS]]
    assert runtime_bits_per_weight(filters, "onnxruntime", "int4") == 32
    assert runtime_bits_per_weight(filters, "tensorrt", "int4") == 16
    linears = [info for info in weights.tensors.values() if info is not filters[0]]
    assert runtime_bits_per_weight(linears, "onnxruntime", "int4") < 6
    skeleton = export_once(export_skeleton, PICO_MODEL, PICO_CLASSES, PICO_ARGS, SKIP, (3, 32, 32))
    layers = _layers_of_nodes(attach_weights(skeleton, weights, WEIGHTS_FILE).graph)
    assert "patch_embed.proj" in layers.values()  # a profile knows whose convolution it is


@pytest.mark.parametrize(("backend", "lowering"), [(torch_on_cpu, "packed"), (onnxruntime_cuda_on_cpu, "int4")])
def test_runtimes_of_gpus_are_given_filters_as_floats(tmp_path: Path, backend: Callable, lowering: str) -> None:
    expected = write_engine(tmp_path, graph=True, convolutions=True)
    with backend().open(tmp_path, lowering, 1) as session:
        assert relative_error(session.run(parity_images(session.input_shape)), expected) < 0.02


def test_tensorrt_is_given_filters_as_float16(tmp_path: Path) -> None:
    write_engine(tmp_path, graph=True, convolutions=True)
    weights = PackedFile.open(tmp_path / WEIGHTS_FILE)
    graph = tensorrt_graph(load_stored(tmp_path), weights, "packed").model.graph
    (given,) = (tensor for tensor in graph.initializer if tensor.name == f"{FILTERS}_matrix")
    filters = numpy_helper.to_array(given)
    assert filters.dtype == np.float16
    np.testing.assert_array_equal(filters, unpack(weights.packed(FILTERS)).dequantize().astype(np.float16))
    assert not any(node.op_type == "QvecDequantize" for node in graph.node)


def test_ranges_of_activations_are_those_of_linears(tmp_path: Path) -> None:
    from qvec_deploy.runtimes.graph.activations import calibrate_amax

    write_engine(tmp_path, convolutions=True)
    weights = PackedFile.open(tmp_path / WEIGHTS_FILE)
    images = [parity_images((3, 32, 32))]
    amax = calibrate_amax(create(PICO_MODEL, PICO_CLASSES, PICO_ARGS), weights, images)
    assert len(amax) == 8 and FILTERS.removesuffix(".weight") not in amax


def test_methods_are_selected_with_convolutions_on_the_grid(pico_recipe: Callable[..., Path]) -> None:
    from qvec_deploy.builder.select.trial_model import TrialModel

    recipe = load_recipe(pico_recipe(quantize={"method": "mse", "convolutions": True}, **PLAIN))
    context = BuildContext()
    plan = context.plan(recipe)
    trial = TrialModel(plan, context.receiver(recipe), {}, [parity_images((3, 32, 32))])
    assert trial.logits(0.0).shape == (2, PICO_CLASSES)
