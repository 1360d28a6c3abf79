"""One packed Linear as each lowering for TensorRT writes it, in float16."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from qvec_deploy.errors import IncompatibleError
from qvec_deploy.runtimes.graph import DOMAIN, OPSET
from qvec_deploy.runtimes.graph.float16 import half
from qvec_deploy.runtimes.kernels.kernel_file import plugin_config
from qvec_deploy.runtimes.kernels.plugin_config import CONFIG, LINEAR, NAMESPACE, VERSION
from qvec_deploy.runtimes.tensorrt import INT4_BLOCKS, NVFP4_BLOCK, RTX_INT4_BLOCKS, int4_block
from qvec_deploy.tensors import Float32, QuantizedTensor

E4M3_MAX, E2M1_MAX = 448.0, 6.0
"""Largest numbers of the formats (OCP Microscaling Formats 1.0)."""
TRT_DOMAIN, DYNAMIC_QUANTIZE = "trt", "TRT_FP4DynamicQuantize"
"""TensorRT's operator for ONNX: E2M1 codes and E4M3 scales of blocks, from floats and one scale of all blocks."""

_SMALLEST = np.float16(2.0**-24)  # TensorRT refuses scales of zero; a row of zeros may have one


@dataclass(frozen=True)
class Lowered:
    """What takes a node's place.

    Attributes:
        nodes: The nodes, reading the node's input and writing its output.
        shared: Constants that Linears of one shape have in common, by the same names.
        opset: The least that has these nodes; 21 brought INT4 and blocks. What is shared means the same in both.
        product: Types of inputs and weights that the builder is to multiply in; None where it is not asked.
    """

    nodes: list[onnx.NodeProto]
    tensors: list[TensorProto]
    shared: tuple[TensorProto, ...] = ()
    opset: int = OPSET
    product: tuple[str, str] | None = None


Convert = Callable[[onnx.NodeProto, QuantizedTensor, float | None], Lowered]
"""From a packed Linear's node, its codes and the largest magnitude of its input, where that is known."""


def to_packed(node: onnx.NodeProto, tensor: QuantizedTensor, amax: float | None) -> Lowered:
    """Our plugin, on words in the layout that its kernel reads."""
    (rows, columns), scheme = tensor.codes.shape, tensor.scheme
    config = plugin_config(rows, columns, scheme.bits, scheme.group_size)
    weight, scale = _names(node)
    new = helper.make_node(
        LINEAR,
        [node.input[0], weight, scale, node.input[3]],
        list(node.output),
        name=product_name(node),
        domain=DOMAIN,
        plugin_namespace=NAMESPACE,
        plugin_version=VERSION,
        aot=1,
        **{CONFIG: str(config), "K": columns, "N": rows},
    )
    words = config.device_layout.pack(tensor.codes, scheme.bits)
    tensors = [numpy_helper.from_array(words, weight), numpy_helper.from_array(tensor.scale, scale)]
    return Lowered([new], tensors, product=("Half", "Int32"))


def to_int4(
    node: onnx.NodeProto, tensor: QuantizedTensor, amax: float | None, *, blocks_of: tuple[int, ...] = INT4_BLOCKS
) -> Lowered:
    """DequantizeLinear on INT4 blocks: weights (K, N), K padded with zeros to whole blocks, and the input with it."""
    columns = tensor.codes.shape[1]
    block = int4_block(columns, tensor.scheme.group_size, blocks_of)
    blocks = -(-columns // block)
    weight, scale = _names(node)
    codes = np.pad(tensor.codes.T, ((0, blocks * block - columns), (0, 0)))
    scales = _positive(scale, tensor.scale.repeat(blocks // tensor.scale.shape[1], axis=1).T)
    tensors = [to_narrow(weight, codes, TensorProto.INT4), numpy_helper.from_array(scales, scale)]
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
    return Lowered([*nodes, *_multiply(node, x, dense)], tensors, opset=21, product=("Half", "Int4"))


def to_rtx_int4(node: onnx.NodeProto, tensor: QuantizedTensor, amax: float | None) -> Lowered:
    """The same on the blocks of TensorRT for RTX, and on inputs as one matrix.

    For one image, TensorRT for RTX 1.7.1 otherwise expands the weights of Linears that a residual is added to.
    """
    made = to_int4(node, tensor, amax, blocks_of=RTX_INT4_BLOCKS)
    product = next(each for each in made.nodes if each.name == product_name(node))
    x, y, name = product.input[0], product.output[0], product.name
    columns, rows = made.tensors[0].dims  # of the weight, which may be padded
    matrix, leading, shape, sums = f"{name}_x", f"{name}_leading", f"{name}_shape", f"{name}_y"
    given = [(f"{name}_rows", [rows]), (f"{name}_matrix", [-1, columns])]
    product.input[0], product.output[0] = matrix, sums
    at = made.nodes.index(product)
    before = [
        helper.make_node("Shape", [x], [leading], name=leading, end=-1),
        helper.make_node("Concat", [leading, given[0][0]], [shape], name=shape, axis=0),
        helper.make_node("Reshape", [x, given[1][0]], [matrix], name=matrix),
    ]
    after = helper.make_node("Reshape", [sums, shape], [y], name=f"{name}_as_before")
    nodes = [*made.nodes[:at], *before, product, after, *made.nodes[at + 1 :]]
    tensors = [*made.tensors, *(numpy_helper.from_array(np.array(value), label) for label, value in given)]
    return replace(made, nodes=nodes, tensors=tensors)


def to_w8a8(node: onnx.NodeProto, tensor: QuantizedTensor, amax: float | None) -> Lowered:
    """Int8 codes (N, K) with a scale per row, and activations on one symmetric int8 grid."""
    return _on_eight_bits(node, tensor, _require_amax(node, amax) / 127, TensorProto.INT8, "Int8")


def to_fp8(node: onnx.NodeProto, tensor: QuantizedTensor, amax: float | None) -> Lowered:
    """Codes as E4M3 (N, K) with a scale per row, and activations as E4M3 with one scale."""
    return _on_eight_bits(node, tensor, _require_amax(node, amax) / E4M3_MAX, TensorProto.FLOAT8E4M3FN, "FP8")


def to_nvfp4(node: onnx.NodeProto, tensor: QuantizedTensor, amax: float | None) -> Lowered:
    """Codes as E2M1 (K, N) in blocks whose scales are 1, the rows' scales after the product; activations as NVFP4.

    NVFP4 is E2M1 with a scale of its own, in E4M3, for every block of 16 and one float for all of them. TensorRT finds
    the blocks' scales when it runs; the float is calibrated.
    """
    (rows, columns), name, (weight, scale) = tensor.codes.shape, node.output[0], _names(node)
    step = f"{name}_x_scale"
    given = _positive(step, np.float32(_require_amax(node, amax) / (E2M1_MAX * E4M3_MAX)))
    blocks, codes = (columns // NVFP4_BLOCK, rows), np.ascontiguousarray(tensor.codes.T)
    one, shared = "one", f"ones_{blocks[0]}_{rows}"
    tensors = [
        to_narrow(weight, codes, TensorProto.FLOAT4E2M1),
        numpy_helper.from_array(_positive(scale, _row_scales(node, tensor)), scale),
        numpy_helper.from_array(given, step),
    ]
    along = {"axis": -1, "block_size": NVFP4_BLOCK}
    down = {"axis": 0, "block_size": NVFP4_BLOCK}
    codes_of_x, scales_of_x, scales, ones = f"{name}_x4", f"{name}_x4_blocks", f"{name}_x_blocks", f"{name}_ones"
    nodes = [
        helper.make_node(
            DYNAMIC_QUANTIZE,
            [node.input[0], step],
            [codes_of_x, scales_of_x],
            name=codes_of_x,
            domain=TRT_DOMAIN,
            scale_type=TensorProto.FLOAT8E4M3FN,
            **along,
        ),
        helper.make_node("DequantizeLinear", [scales_of_x, step], [scales], name=scales),
        helper.make_node("DequantizeLinear", [codes_of_x, scales], [f"{name}_x"], name=f"{name}_x", **along),
        helper.make_node("DequantizeLinear", [shared, one], [ones], name=ones),
        helper.make_node("DequantizeLinear", [weight, ones], [f"{name}_codes"], name=f"{name}_codes", **down),
        helper.make_node("MatMul", [f"{name}_x", f"{name}_codes"], [f"{name}_sums"], name=product_name(node)),
        helper.make_node("Mul", [f"{name}_sums", scale], [f"{name}_product"], name=f"{name}_rows"),
        helper.make_node("Add", [f"{name}_product", node.input[3]], [name], name=node.name or f"{name}_add"),
    ]
    ones_of = to_narrow(shared, np.ones(blocks, np.int8), TensorProto.FLOAT8E4M3FN)
    common = (ones_of, numpy_helper.from_array(np.float16(1), one))
    return Lowered(nodes, tensors, common, opset=23, product=("FP4E2M1", "FP4E2M1"))


def to_narrow(name: str, codes: NDArray[np.int8], kind: int) -> TensorProto:
    """Integers as a type that holds them exactly; two to a byte where it has 4 bits.

    Args:
        kind: A type of TensorProto.

    Raises:
        IncompatibleError: It does not hold one of them.
    """
    narrow = codes.astype(helper.tensor_dtype_to_np_dtype(kind))
    if (narrow.astype(np.float32) != codes).any():
        raise IncompatibleError(
            f"{TensorProto.DataType.Name(kind)} does not hold every code of {name}", hint="use fewer bits"
        )
    data = narrow.tobytes()
    if narrow.dtype.name in ("int4", "float4_e2m1fn"):
        nibbles = np.frombuffer(data, np.uint8).reshape(-1, 2) & 0x0F
        data = (nibbles[:, 0] | nibbles[:, 1] << 4).tobytes()
    return TensorProto(name=name, data_type=kind, dims=codes.shape, raw_data=data)


def _on_eight_bits(node: onnx.NodeProto, tensor: QuantizedTensor, step: float, kind: int, product: str) -> Lowered:
    """Codes and inputs in a type of 8 bits."""
    name, (weight, scale) = node.output[0], _names(node)
    on_grid = [f"{name}_x_scale", f"{name}_x_zero"]
    tensors = [
        to_narrow(weight, np.ascontiguousarray(tensor.codes), kind),
        numpy_helper.from_array(_positive(scale, _row_scales(node, tensor)), scale),
        numpy_helper.from_array(_positive(on_grid[0], np.float32(step)), on_grid[0]),
        TensorProto(name=on_grid[1], data_type=kind, raw_data=bytes(1)),
    ]
    nodes = [
        helper.make_node("QuantizeLinear", [node.input[0], *on_grid], [f"{name}_x8"], name=f"{name}_x8"),
        helper.make_node("DequantizeLinear", [f"{name}_x8", *on_grid], [f"{name}_x"], name=f"{name}_x"),
        helper.make_node("DequantizeLinear", [weight, scale], [f"{name}_w"], name=f"{name}_w", axis=0),
        helper.make_node("Transpose", [f"{name}_w"], [f"{name}_weight"], name=f"{name}_transpose", perm=[1, 0]),
        *_multiply(node, f"{name}_x", f"{name}_weight"),
    ]
    return Lowered(nodes, tensors, opset=21, product=(product, product))


def _require_amax(node: onnx.NodeProto, amax: float | None) -> float:
    if amax is None:
        linear = node.input[1].removesuffix(".weight")
        raise IncompatibleError(
            f"nothing is known about the inputs of {linear}",
            hint="this lowering needs calibrated activations: build the bundle again",
        )
    return amax


def _row_scales(node: onnx.NodeProto, tensor: QuantizedTensor) -> Float32:
    if tensor.scale.shape[1] != 1:
        raise IncompatibleError(
            f"{node.input[1]} has groups of {tensor.scheme.group_size}, and this lowering takes one scale a row",
            hint="use granularity channel or tensor, or the lowering `int4`",
        )
    return tensor.scale[:, 0]


def to_float(node: onnx.NodeProto, tensor: QuantizedTensor, amax: float | None) -> Lowered:
    """The weights that the codes stand for, (K, N) float16."""
    weight, _ = _names(node)
    dense = half(weight, np.ascontiguousarray(tensor.dequantize().T))
    return Lowered(_multiply(node, node.input[0], weight), [numpy_helper.from_array(dense, weight)])


def product_name(node: onnx.NodeProto) -> str:
    """Name of the node that multiplies, of a Linear that is lowered to standard operators."""
    return f"{node.output[0]}_matmul"


def _multiply(node: onnx.NodeProto, x: str, weight: str) -> list[onnx.NodeProto]:
    name = node.output[0]
    return [
        helper.make_node("MatMul", [x, weight], [f"{name}_product"], name=product_name(node)),
        helper.make_node("Add", [f"{name}_product", node.input[3]], [name], name=node.name or f"{name}_add"),
    ]


def _positive(name: str, values: np.ndarray | np.float32) -> np.ndarray:
    return np.asarray(np.maximum(half(name, np.asarray(values)), _SMALLEST))


def _names(node: onnx.NodeProto) -> tuple[str, str]:
    return f"{node.input[1]}.codes", f"{node.input[1]}.scales"
