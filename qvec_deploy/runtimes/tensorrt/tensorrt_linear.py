"""One packed Linear as each lowering for TensorRT writes it, in float16."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from qvec_deploy.errors import IncompatibleError
from qvec_deploy.runtimes.graph import DOMAIN, OPSET
from qvec_deploy.runtimes.graph.float16 import half
from qvec_deploy.runtimes.graph.stored import OPERATOR, operator_function
from qvec_deploy.runtimes.kernels.layouts import choose_layout
from qvec_deploy.runtimes.kernels.plugin_config import CONFIG, LINEAR, NAMESPACE, VERSION, PluginConfig
from qvec_deploy.runtimes.tensorrt import int4_block
from qvec_deploy.tensors import QuantizedTensor

_SMALLEST = np.float16(2.0**-24)  # TensorRT refuses scales of zero; a row of zeros may have one


@dataclass(frozen=True)
class Lowered:
    """What takes a node's place.

    Attributes:
        nodes: The nodes, reading the node's input and writing its output.
        function: Layout and bits of the function that says what the plugin computes; None without a plugin.
        opset: The least that has these nodes; 21 brought INT4 and blocks. What is shared means the same in both.
    """

    nodes: list[onnx.NodeProto]
    tensors: list[TensorProto]
    function: tuple[str, int] | None = None
    opset: int = OPSET


Convert = Callable[[onnx.NodeProto, QuantizedTensor, float | None], Lowered]
"""From a packed Linear's node, its codes and the largest magnitude of its input, where that is known."""


def to_packed(node: onnx.NodeProto, tensor: QuantizedTensor, amax: float | None) -> Lowered:
    """Our plugin, on words in the layout that its kernel reads."""
    (rows, columns), scheme = tensor.codes.shape, tensor.scheme
    layout = choose_layout(rows, columns, scheme.bits, scheme.group_size)
    weight, scale = _names(node)
    config = PluginConfig(layout.id, layout.version, scheme.bits, rows, columns, scheme.group_size)
    new = helper.make_node(
        LINEAR,
        [node.input[0], weight, scale, node.input[3]],
        list(node.output),
        name=node.name,
        domain=DOMAIN,
        plugin_namespace=NAMESPACE,
        plugin_version=VERSION,
        aot=1,
        **{CONFIG: str(config), "K": columns, "N": rows},
    )
    words = layout.pack(tensor.codes, scheme.bits)
    tensors = [numpy_helper.from_array(words, weight), numpy_helper.from_array(tensor.scale, scale)]
    return Lowered([new], tensors, (layout.id, scheme.bits))


def to_int4(node: onnx.NodeProto, tensor: QuantizedTensor, amax: float | None) -> Lowered:
    """DequantizeLinear on INT4 blocks: weights (K, N), K padded with zeros to whole blocks, and the input with it."""
    columns = tensor.codes.shape[1]
    block = int4_block(columns, tensor.scheme.group_size)
    blocks = -(-columns // block)
    weight, scale = _names(node)
    codes = np.pad(tensor.codes.T, ((0, blocks * block - columns), (0, 0)))
    scales = _positive(scale, tensor.scale.repeat(blocks // tensor.scale.shape[1], axis=1).T)
    nibbles = codes.view(np.uint8).reshape(-1, 2) & 0x0F  # whole blocks: an even number of codes
    packed = nibbles[:, 0] | nibbles[:, 1] << 4
    tensors = [
        TensorProto(name=weight, data_type=TensorProto.INT4, dims=codes.shape, raw_data=packed.tobytes()),
        numpy_helper.from_array(scales, scale),
    ]
    x, name, nodes = node.input[0], node.output[0], []
    if blocks * block != columns:
        pads, padded = f"{name}_pads", f"{name}_padded"
        tensors.append(numpy_helper.from_array(np.array([0, blocks * block - columns]), pads))
        axis = f"{name}_pad_axis"
        tensors.append(numpy_helper.from_array(np.array([-1]), axis))
        nodes.append(helper.make_node("Pad", [x, pads, "", axis], [padded], name=padded))
        x = padded
    dense = f"{name}_weight"
    nodes.append(helper.make_node("DequantizeLinear", [weight, scale], [dense], name=dense, axis=0, block_size=block))
    return Lowered([*nodes, *_multiply(node, x, dense)], tensors, opset=21)


def to_w8a8(node: onnx.NodeProto, tensor: QuantizedTensor, amax: float | None) -> Lowered:
    """Int8 codes (N, K) with a scale per row, and activations on one symmetric int8 grid."""
    name, (weight, scale) = node.output[0], _names(node)
    linear = node.input[1].removesuffix(".weight")
    if amax is None:
        raise IncompatibleError(
            f"nothing is known about the inputs of {linear}", hint="`w8a8` needs calibrated activations: build it again"
        )
    if tensor.scale.shape[1] != 1:
        raise IncompatibleError(
            f"lowering `w8a8` takes one scale a row, {linear} has groups of {tensor.scheme.group_size}",
            hint="use granularity channel or tensor, or the lowering `int4`",
        )
    step = f"{name}_x_scale"
    tensors = [
        numpy_helper.from_array(np.ascontiguousarray(tensor.codes), weight),
        numpy_helper.from_array(_positive(scale, tensor.scale[:, 0]), scale),
        numpy_helper.from_array(_positive(step, np.float32(amax / 127)), step),
        numpy_helper.from_array(np.int8(0), f"{name}_x_zero"),
    ]
    on_grid = [step, f"{name}_x_zero"]
    nodes = [
        helper.make_node("QuantizeLinear", [node.input[0], *on_grid], [f"{name}_x8"], name=f"{name}_x8"),
        helper.make_node("DequantizeLinear", [f"{name}_x8", *on_grid], [f"{name}_x"], name=f"{name}_x"),
        helper.make_node("DequantizeLinear", [weight, scale], [f"{name}_w"], name=f"{name}_w", axis=0),
        helper.make_node("Transpose", [f"{name}_w"], [f"{name}_weight"], name=f"{name}_transpose", perm=[1, 0]),
        *_multiply(node, f"{name}_x", f"{name}_weight"),
    ]
    return Lowered(nodes, tensors, opset=21)


def to_float(node: onnx.NodeProto, tensor: QuantizedTensor, amax: float | None) -> Lowered:
    """The weights that the codes stand for, (K, N) float16."""
    weight, _ = _names(node)
    dense = half(weight, np.ascontiguousarray(tensor.dequantize().T))
    return Lowered(_multiply(node, node.input[0], weight), [numpy_helper.from_array(dense, weight)])


def device_function(layout: str, bits: int) -> onnx.FunctionProto:
    """What the plugin computes on words in a device layout, in standard operators and float32 between its ends.

    The tail, from codes to products, is the stored operator's own.
    """
    meaning = operator_function(bits)
    (codes_at,) = [index for index, node in enumerate(meaning.node) if "codes" in node.output]
    if layout == "rows":  # the canonical stream, transposed
        head = [
            helper.make_node("Transpose", ["device_words"], ["qweight"], perm=[1, 0]),
            *meaning.node[: codes_at + 1],
        ]
    else:
        head = list(_unpack_p32(bits).node)
    wide = [helper.make_node("Cast", [f"{name}_half"], [name], to=TensorProto.FLOAT) for name in ("x", "bias")]
    narrow = helper.make_node("Cast", ["y"], ["y_half"], to=TensorProto.FLOAT16)
    return helper.make_function(
        DOMAIN,
        OPERATOR,
        ["x_half", "device_words", "scale", "bias_half"],
        ["y_half"],
        [*wide, *_constants_first(head), *meaning.node[codes_at + 1 :], narrow],
        list(meaning.opset_import),
        ["K", "N"],
        overload=f"{layout}_{bits}",
    )


def _constants_first(head: list[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """The tail reads constants of the stored operator's head: `last` and `flat`."""
    made = {name for node in head for name in node.output}
    wanted = {"last": [-1], "flat": [0, -1]}
    return [
        *(helper.make_node("Constant", [], [name], value_ints=v) for name, v in wanted.items() if name not in made),
        *head,
    ]


def _unpack_p32(bits: int) -> onnx.FunctionProto:
    """Words of layout p32 (see kernels/layouts.py) to `codes`, (N, K) float32."""
    per, spare = 16 // bits, 16 % bits
    slots = range(per * bits)
    word_of, shift_of = ", ".join(str(s // per) for s in slots), ", ".join(str(bits * (s % per)) for s in slots)
    u32, i32 = TensorProto.UINT32, TensorProto.INT32
    last_slot = f"""
        top_i = Constant <value_int = 15> ()
        top = Cast <to = {u32}> (top_i)
        top_bits = BitShift <direction = "RIGHT"> (halves, top)
        place_i = Constant <value_ints = [{", ".join(map(str, range(bits)))}]> ()
        place_column = Unsqueeze (place_i, minus_one)
        place = Cast <to = {u32}> (place_column)
        placed = BitShift <direction = "LEFT"> (top_bits, place)
        placed_i = Cast <to = {i32}> (placed)
        word_axis = Constant <value_ints = [3]> ()
        sixteenth_i = ReduceSum <keepdims = 1> (placed_i, word_axis)
        sixteenth = Cast <to = {u32}> (sixteenth_i)
        unsigned = Concat <axis = 3> (fields, sixteenth)
    """
    return onnx.parser.parse_function(f"""
    <opset_import: ["" : 20], domain: "{DOMAIN}">
    unpack <K, N> (device_words) => (codes)
    {{
        minus_one = Constant <value_ints = [-1]> ()
        stored = Cast <to = {u32}> (device_words)
        turned = Transpose <perm = [1, 0]> (stored)
        apart = Constant <value_ints = [0, -1, {bits}, 16]> ()
        blocks = Reshape (turned, apart)
        first = Constant <value_ints = [0]> ()
        low_mask_i = Constant <value_int = 65535> ()
        low_mask = Cast <to = {u32}> (low_mask_i)
        low_half = BitwiseAnd (blocks, low_mask)
        sixteen_i = Constant <value_int = 16> ()
        sixteen = Cast <to = {u32}> (sixteen_i)
        high_half = BitShift <direction = "RIGHT"> (blocks, sixteen)
        low = Unsqueeze (low_half, first)
        high = Unsqueeze (high_half, first)
        halves = Concat <axis = 0> (low, high)
        word_of = Constant <value_ints = [{word_of}]> ()
        by_slot = Gather <axis = 3> (halves, word_of)
        shift_i = Constant <value_ints = [{shift_of}]> ()
        shift_column = Unsqueeze (shift_i, minus_one)
        shift = Cast <to = {u32}> (shift_column)
        shifted = BitShift <direction = "RIGHT"> (by_slot, shift)
        mask_i = Constant <value_int = {(1 << bits) - 1}> ()
        mask = Cast <to = {u32}> (mask_i)
        fields = BitwiseAnd (shifted, mask)
        {last_slot if spare else "unsigned = Identity (fields)"}
        columns_i = Constant <value_int: int = @K> ()
        columns = Unsqueeze (columns_i, first)
        by_pair = Constant <value_ints = [2, -1, 32]> ()
        pair_shape = Concat <axis = 0> (by_pair, columns)
        paired = Reshape (unsigned, pair_shape)
        in_order = Transpose <perm = [1, 0, 2, 3]> (paired)
        row_shape = Concat <axis = 0> (minus_one, columns)
        rows = Reshape (in_order, row_shape)
        as_float = Cast <to = {TensorProto.FLOAT}> (rows)
        offset = Constant <value_float = {float(1 << (bits - 1))}> ()
        codes = Sub (as_float, offset)
    }}
    """)


def _multiply(node: onnx.NodeProto, x: str, weight: str) -> list[onnx.NodeProto]:
    name = node.output[0]
    return [
        helper.make_node("MatMul", [x, weight], [f"{name}_product"], name=f"{name}_matmul"),
        helper.make_node("Add", [f"{name}_product", node.input[3]], [name], name=node.name or f"{name}_add"),
    ]


def _positive(name: str, values: np.ndarray | np.float32) -> np.ndarray:
    return np.asarray(np.maximum(half(name, np.asarray(values)), _SMALLEST))


def _names(node: onnx.NodeProto) -> tuple[str, str]:
    return f"{node.input[1]}.codes", f"{node.input[1]}.scales"
