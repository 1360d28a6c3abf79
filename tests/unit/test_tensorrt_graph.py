"""The graph that TensorRT reads: checked by onnx, computed by ONNX Runtime, held to PyTorch and to numpy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from fake_tensorrt import run_on_cpu, runnable, write_sources
from onnx import TensorProto, helper, numpy_helper

from qvec_deploy.bench.parity import parity_images
from qvec_deploy.errors import IncompatibleError, IntegrityError, StorageError
from qvec_deploy.packed import PackedFile, pack_codes
from qvec_deploy.runtimes.graph import DOMAIN
from qvec_deploy.runtimes.graph.activations import calibrate_amax, read_amax, write_amax
from qvec_deploy.runtimes.graph.float16 import half, halve_node
from qvec_deploy.runtimes.kernels.layouts import choose_layout
from qvec_deploy.runtimes.kernels.plugin_config import LINEAR, NAMESPACE, VERSION, PluginConfig
from qvec_deploy.runtimes.registry import runtime_bits_per_weight
from qvec_deploy.runtimes.tensorrt import RTX_INT4_BLOCKS, TENSORRT, int4_block
from qvec_deploy.runtimes.tensorrt.tensorrt_graph import (
    _padding,
    allowed_bytes,
    tensorrt_graph,
)
from qvec_deploy.runtimes.tensorrt.tensorrt_linear import to_rtx_int4
from qvec_deploy.tensors import QuantizedTensor, Scheme

State = dict[str, np.ndarray]
IMAGES = parity_images((3, 32, 32))
SCHEMES = {"channel": Scheme(3, "channel", method="mse"), "tensor": Scheme(2, "tensor"), "wide": Scheme(4, "channel")}


@pytest.fixture(scope="module", params=list(SCHEMES))
def stored(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, pico_states: dict[str, State]
) -> tuple[Path, np.ndarray]:
    folder = tmp_path_factory.mktemp(request.param)
    return folder, write_sources(folder, pico_states["receiver"], SCHEMES[request.param])


def _read(folder: Path) -> tuple[onnx.ModelProto, PackedFile]:
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    return model, PackedFile.open(folder / "weights.qvec.safetensors")


@pytest.mark.parametrize(("lowering", "tolerance"), [("float", 4e-3), ("packed", 4e-3), ("int4", 4e-3), ("w8a8", 0.05)])
@pytest.mark.parametrize("batch_size", [None, 2])
def test_it_computes_what_pytorch_computes(
    stored: tuple[Path, np.ndarray], lowering: str, tolerance: float, batch_size: int | None
) -> None:
    folder, reference = stored
    model, weights = _read(folder)
    graph = tensorrt_graph(model, weights, lowering, batch_size=batch_size, amax=read_amax(folder))
    model = runnable(graph.model)
    onnx.checker.check_model(model, full_check=True)
    logits = run_on_cpu(model, IMAGES)
    assert logits.dtype == np.float32
    error = np.linalg.norm(logits - reference) / np.linalg.norm(reference)
    assert error < tolerance
    assert error > 0, "float16 leaves its mark: was it computed in float32?"


def test_everything_between_the_ends_is_float16(stored: tuple[Path, np.ndarray]) -> None:
    folder, _ = stored
    for lowering in ("float", "int4", "w8a8"):
        graph = tensorrt_graph(*_read(folder), lowering, amax=read_amax(folder))
        inferred = onnx.shape_inference.infer_shapes(graph.model, strict_mode=True).graph
        kinds = {value.type.tensor_type.elem_type for value in inferred.value_info}
        assert kinds <= {TensorProto.FLOAT16, TensorProto.INT64, TensorProto.INT8, TensorProto.BOOL}
        assert TensorProto.FLOAT not in {tensor.data_type for tensor in graph.model.graph.initializer}


def test_packed_nodes_say_what_the_plugin_needs(stored: tuple[Path, np.ndarray]) -> None:
    folder, _ = stored
    model, weights = _read(folder)
    graph = tensorrt_graph(model, weights, "packed", batch_size=1)
    values = {tensor.name: tensor for tensor in graph.model.graph.initializer}
    ours = [node for node in graph.model.graph.node if node.domain == DOMAIN]
    assert len(ours) == graph.plugin_layers == 8
    assert not graph.model.functions and not any(node.overload for node in ours)
    for before, node in zip([n for n in model.graph.node if n.domain == DOMAIN], ours, strict=True):
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        assert node.op_type == LINEAR
        assert attributes["plugin_namespace"].decode() == NAMESPACE
        assert (attributes["plugin_version"].decode(), attributes["aot"]) == (VERSION, 1)
        info = weights.tensors[before.input[1]]
        config = PluginConfig.parse(attributes["cfg"].decode() + "\0")
        assert (config.rows, config.columns) == info.shape
        words, scale, bias = (values[name] for name in node.input[1:])
        assert (words.data_type, tuple(words.dims)) == (TensorProto.INT32, config.words_shape)
        assert (scale.data_type, tuple(scale.dims)) == (TensorProto.FLOAT, config.scale_shape)
        assert (bias.data_type, tuple(bias.dims)) == (TensorProto.FLOAT16, (config.rows,))
        codes = config.device_layout.unpack(numpy_helper.to_array(words), config.bits, info.shape)
        np.testing.assert_array_equal(pack_codes(codes, config.bits), weights.packed(info.name).payload)


@pytest.mark.slow
def test_both_layouts_in_one_graph(tmp_path: Path) -> None:
    """A width of 64 puts fc2 (K = 256) in p32 and everything else in rows."""
    import torch
    from pico import PICO_ARGS, PICO_CLASSES, PICO_MODEL

    from qvec_deploy.models import create

    torch.manual_seed(0)
    model = create(PICO_MODEL, PICO_CLASSES, PICO_ARGS | {"embed_dim": 64})
    generator = np.random.default_rng(0)
    state = {
        name: (generator.normal(0, 0.2, value.shape) if value.ndim > 1 else value.numpy()).astype(np.float32)
        for name, value in model.state_dict().items()
    }
    for bits in (2, 3, 4):
        reference = write_sources(tmp_path, state, Scheme(bits, "channel"), width=64)
        graph = tensorrt_graph(*_read(tmp_path), "packed")
        model = runnable(graph.model)
        assert {f.overload for f in model.functions} == {f"p32_{bits}", f"rows_{bits}"}
        logits = run_on_cpu(model, IMAGES)
        assert np.linalg.norm(logits - reference) / np.linalg.norm(reference) < 4e-3


def test_bytes_are_counted(stored: tuple[Path, np.ndarray]) -> None:
    folder, _ = stored
    model, weights = _read(folder)
    count = sum(info.shape[0] * info.shape[1] for info in weights.tensors.values() if info.scheme is not None)
    bits = max(info.scheme.bits for info in weights.tensors.values() if info.scheme is not None)
    for lowering in (row.name for row in TENSORRT.lowerings if bits in row.bits or row is TENSORRT.baseline):
        graph = tensorrt_graph(model, weights, lowering, amax=read_amax(folder))
        raw = sum(len(tensor.raw_data) for tensor in graph.model.graph.initializer)
        assert graph.weight_bytes == raw > graph.packed_bytes
        few = 8 * 8 * 32 / count  # scales of activations, pads: a few values a Linear
        expected = runtime_bits_per_weight(weights.tensors.values(), "tensorrt", lowering)
        assert expected <= 8 * graph.packed_bytes / count <= expected + few


def _vit_b(packed_bits: float) -> tuple[list[int], list[int], int]:
    """Bytes of a ViT-B/16's Linears, packed and in float16, and all that it hands over."""
    shapes = [(2304, 768), (768, 768), (3072, 768), (768, 3072)] * 12
    packed = [int(rows * columns * packed_bits / 8) + 4 * rows for rows, columns in shapes]
    return packed, [2 * rows * columns for rows, columns in shapes], sum(packed) + 3_400_000


@pytest.mark.parametrize("bits", [3, 4.125, 8])
def test_one_linear_that_is_unpacked_is_too_much(bits: float) -> None:
    """Without a convolution any one; with the 3 channels of a ViT-B/16's first layer, all but a lone projection."""
    packed, dense, given = _vit_b(bits)
    added = [large - small for small, large in zip(packed, dense, strict=True)]
    allowed = allowed_bytes(given, packed, dense)
    assert allowed is not None and given < allowed < given + min(added)
    padding = 2 * 768 * 256 * (8 - 3)
    padded = allowed_bytes(given, packed, dense, padding=padding)
    assert padded is not None and given + padding < padded < given + padding + min(added)
    assert padded < given + 6 * min(added), "some of the twelve projections of one kind"


def test_unpacking_everything_is_too_much_for_the_smallest_models() -> None:
    assert allowed_bytes(1000, [384], [2048], padding=10**9) == 1000 + (2048 - 384) // 2
    assert allowed_bytes(1000, [], []) is None
    assert allowed_bytes(1000, [2048], [2048]) is None, "float16 is what it is"


def test_padded_convolutions_are_allowed_for(stored: tuple[Path, np.ndarray]) -> None:
    graph = tensorrt_graph(*_read(stored[0]), "packed")
    (conv,) = [node for node in graph.model.graph.node if node.op_type == "Conv"]
    (tensor,) = [each for each in graph.model.graph.initializer if each.name == conv.input[1]]
    assert _padding(graph.model.graph) == len(tensor.raw_data) // 3 * 5


def test_packed_takes_its_bits_and_no_more() -> None:
    layout = choose_layout(768, 768, 3)
    rows, columns = layout.words_shape(768, 768, 3)
    assert 32 * rows * columns == 3 * 768 * 768


@pytest.mark.parametrize(
    ("columns", "group", "block", "rtx"),
    [
        (768, 0, 128, 256),
        (4304, 0, 128, 16),
        (192, 0, 64, 64),
        (96, 0, 128, 32),
        (128, 0, 64, 64),
        (384, 0, 128, 128),
        (40, 0, 64, 16),
        (1024, 256, 128, 256),
        (192, 64, 64, 64),
        (128, 128, 64, 64),
        (64, 64, 64, 32),
    ],
)
def test_int4_blocks(columns: int, group: int, block: int, rtx: int) -> None:
    """Two blocks a row at least, and none padded, where there is such a block."""
    assert int4_block(columns, group) == block
    assert int4_block(columns, group, RTX_INT4_BLOCKS) == rtx


@pytest.mark.parametrize(("rows", "columns", "group"), [(8, 96, 0), (8, 40, 0), (4, 256, 64)])
def test_int4_on_small_blocks_is_the_same_matrix(rows: int, columns: int, group: int) -> None:
    generator = np.random.default_rng(0)
    scheme = Scheme(3, "group", group) if group else Scheme(3, "channel")
    codes = generator.integers(-4, 4, (rows, columns)).astype(np.int8)
    scale = generator.uniform(0.01, 0.1, (rows, scheme.groups(columns))).astype(np.float16)
    tensor = QuantizedTensor(codes, scale, scheme)
    node = helper.make_node("QvecLinear", ["x", "w.weight", "s", "b"], ["y"])
    lowered = to_rtx_int4(node, tensor, None)
    values, scales = (numpy_helper.to_array(each) for each in lowered.tensors[:2])
    block = len(values) // len(scales)
    assert block == int4_block(columns, group, RTX_INT4_BLOCKS)
    dense = values.astype(np.float32) * scales.astype(np.float32).repeat(block, axis=0)
    np.testing.assert_array_equal(dense[:columns].T, tensor.dequantize())
    assert not dense[columns:].any()
    pads = any(made.op_type == "Pad" for made in lowered.nodes)
    assert pads == bool(columns % block)


def test_int4_codes_are_nibbles_in_order(stored: tuple[Path, np.ndarray]) -> None:
    folder, _ = stored
    model, weights = _read(folder)
    graph = tensorrt_graph(model, weights, "int4")
    name = "blocks.0.attn.qkv.weight"
    (tensor,) = [t for t in graph.model.graph.initializer if t.name == f"{name}.codes"]
    values = numpy_helper.to_array(tensor).astype(np.int8)  # onnx's own reading of INT4
    np.testing.assert_array_equal(
        pack_codes(np.ascontiguousarray(values[:32].T), weights.tensors[name].scheme.bits), weights.packed(name).payload
    )
    assert not values[32:].any(), "padding is code 0"


def test_refusals(stored: tuple[Path, np.ndarray]) -> None:
    folder, _ = stored
    model, weights = _read(folder)
    with pytest.raises(IncompatibleError, match="no lowering `int8`"):
        tensorrt_graph(model, weights, "int8")
    with pytest.raises(IncompatibleError, match=r"nothing is known about the inputs of blocks\.0\.attn\.qkv"):
        tensorrt_graph(model, weights, "w8a8")
    with pytest.raises(IncompatibleError, match="blocks of 64, 128 weights, not groups of 32"):
        int4_block(768, 32)
    with pytest.raises(IncompatibleError, match="bias holds values up to 1e\\+06, beyond float16"):
        half("bias", np.array([1e6], np.float32))
    odd = onnx.ModelProto()
    odd.CopyFrom(model)
    odd.graph.node.append(helper.make_node("Cast", ["logits"], ["unused"], to=TensorProto.FLOAT))
    odd.graph.node.append(helper.make_node("Range", ["unused", "unused", "unused"], ["odd"]))
    with pytest.raises(IncompatibleError, match="no float16 form"):
        tensorrt_graph(odd, weights, "float")


def test_groups_and_eight_bits(tmp_path: Path, pico_states: dict[str, State]) -> None:
    write_sources(tmp_path, pico_states["receiver"], Scheme(3, "group", 16))
    model, weights = _read(tmp_path)
    with pytest.raises(IncompatibleError, match=r"blocks\.0\.attn\.qkv\.weight has groups of 16, and this"):
        tensorrt_graph(model, weights, "w8a8", amax=read_amax(tmp_path))
    graph = tensorrt_graph(model, weights, "packed")
    reference = run_on_cpu(tensorrt_graph(model, weights, "float").model, IMAGES)
    np.testing.assert_allclose(run_on_cpu(runnable(graph.model), IMAGES), reference, rtol=0.02, atol=0.02)


@pytest.mark.parametrize(
    "node",
    [
        helper.make_node("Constant", [], ["c"], value_float=0.5),
        helper.make_node("Constant", [], ["c"], value_floats=[0.5, 1.5]),
        helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.ones(2, np.float32))),
        helper.make_node("ConstantOfShape", ["s"], ["c"]),
        helper.make_node("ConstantOfShape", ["s"], ["c"], value=numpy_helper.from_array(np.ones(1, np.float32))),
    ],
)
def test_float_constants_become_float16(node: onnx.NodeProto) -> None:
    (attribute,) = halve_node(node).attribute
    assert (attribute.name, attribute.t.data_type) == ("value", TensorProto.FLOAT16)


def test_other_constants_stay() -> None:
    for node in (
        helper.make_node("Constant", [], ["c"], value_ints=[1, 2]),
        helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.ones(2, np.int64))),
        helper.make_node("Cast", ["x"], ["c"], to=TensorProto.INT64),
    ):
        assert halve_node(node) == node


def test_activations_are_kept(tmp_path: Path) -> None:
    write_amax(tmp_path, {"a": 1.5})
    assert read_amax(tmp_path) == {"a": 1.5}


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"amax": 3}', '{"amax": {"a": "x"}}', '{"amax": {"a": -1}}', '{"amax": {"a": NaN}}']
)
def test_damaged_activations_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "activations.json").write_text(text)
    with pytest.raises(IntegrityError, match=r"activations\.json"):
        read_amax(tmp_path)


def test_missing_activations_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="does not exist"):
        read_amax(tmp_path)


def test_activations_are_modelopts_ranges_after_awqs_factors(tmp_path: Path) -> None:
    """ModelOpt's numbers are those that a plain look at every Linear's input gives, to the bit."""
    import torch
    from pico import PICO_ARGS, PICO_CLASSES, PICO_MODEL
    from small_engines import write_engine

    from qvec_deploy.models import create
    from qvec_deploy.packed import unpack

    magnitudes: dict[str, list[np.ndarray]] = {}
    write_engine(tmp_path, factors=True)
    weights = PackedFile.open(tmp_path / "weights.qvec.safetensors")

    def model() -> torch.nn.Module:
        made = create(PICO_MODEL, PICO_CLASSES, PICO_ARGS)
        floats = {name: info for name, info in weights.tensors.items() if info.scheme is None and "input" not in name}
        state = {name: torch.from_numpy(weights.array(name).copy()) for name in floats}
        made.load_state_dict(state, strict=False)
        return made.eval()

    looked_at, seen = model(), {}
    for name, info in weights.tensors.items():
        if info.scheme is None:
            continue
        path = name.removesuffix(".weight")
        linear = looked_at.get_submodule(path)
        with torch.no_grad():
            linear.weight.copy_(torch.from_numpy(unpack(weights.packed(name)).dequantize()))
        factor = weights.array(f"{path}.input_scale").copy() if f"{path}.input_scale" in weights.tensors else 1.0

        def look(module: Any, inputs: Any, path: str = path, factor: Any = factor) -> Any:
            x = inputs[0] * torch.as_tensor(factor)
            seen[path] = max(seen.get(path, 0.0), float(x.detach().abs().amax()))
            magnitudes.setdefault(path, []).append(x.detach().abs().numpy().ravel())
            return (x,)

        linear.register_forward_pre_hook(look)
    for image in IMAGES:
        looked_at(torch.from_numpy(image[None]))
    assert sum(f"{path}.input_scale" in weights.tensors for path in seen) == 4
    assert calibrate_amax(model(), weights, [image[None] for image in IMAGES]) == seen
    kept = calibrate_amax(model(), weights, [image[None] for image in IMAGES], "percentile")
    assert kept.keys() == seen.keys()
    for path, largest in seen.items():  # the histogram has 2,048 bins
        values = np.sort(np.concatenate(magnitudes[path]))
        assert kept[path] == pytest.approx(np.quantile(values, 0.9999, method="higher"), abs=largest / 1000)


@pytest.mark.parametrize(
    ("images", "error", "said"),
    [
        ([], ValueError, "at least one image"),
        ([np.full((1, 3, 32, 32), np.nan, np.float32)], IncompatibleError, "not finite"),
        ([np.full((1, 3, 32, 32), np.inf, np.float32)], IncompatibleError, "not finite"),
    ],
    ids=["none", "nan", "infinite"],
)
def test_calibration_needs_images(tmp_path: Path, images: list[np.ndarray], error: type[Exception], said: str) -> None:
    from pico import PICO_ARGS, PICO_CLASSES, PICO_MODEL
    from small_engines import write_engine

    from qvec_deploy.models import create

    write_engine(tmp_path)
    weights = PackedFile.open(tmp_path / "weights.qvec.safetensors")
    with pytest.raises(error, match=said):
        calibrate_amax(create(PICO_MODEL, PICO_CLASSES, PICO_ARGS), weights, images)


def test_activations_are_what_reaches_the_linears(stored: tuple[Path, np.ndarray]) -> None:
    folder, _ = stored
    amax = read_amax(folder)
    assert len(amax) == 8
    model, weights = _read(folder)
    graph = tensorrt_graph(model, weights, "float").model
    for name in ("blocks.0.attn.qkv", "blocks.1.mlp.fc2"):
        (node,) = [n for n in graph.graph.node if n.op_type == "MatMul" and n.input[1] == f"{name}.weight.codes"]
        probe = onnx.ModelProto()
        probe.CopyFrom(graph)
        probe.graph.output.append(helper.make_tensor_value_info(node.input[0], TensorProto.FLOAT16, None))
        import onnxruntime

        session = onnxruntime.InferenceSession(probe.SerializeToString(), providers=["CPUExecutionProvider"])
        seen = session.run([node.input[0]], {"images": IMAGES})[0]
        assert amax[name] == pytest.approx(float(np.abs(seen).max()), rel=0.02)
