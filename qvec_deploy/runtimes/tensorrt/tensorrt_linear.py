"""One packed Linear as each lowering for TensorRT writes it, in float16."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from qvec_deploy.errors import IncompatibleError
from qvec_deploy.runtimes.graph import DOMAIN, OPSET
from qvec_deploy.runtimes.graph.float16 import half
from qvec_deploy.runtimes.kernels.kernel_file import plugin_config
from qvec_deploy.runtimes.kernels.plugin_config import CONFIG, LINEAR, NAMESPACE, VERSION
from qvec_deploy.runtimes.tensorrt import INT4_BLOCKS, RTX_INT4_BLOCKS, int4_block
from qvec_deploy.tensors import QuantizedTensor

_SMALLEST = np.float16(2.0**-24)  # TensorRT refuses scales of zero; a row of zeros may have one


@dataclass(frozen=True)
class Lowered:
    """What takes a node's place.

    Attributes:
        nodes: The nodes, reading the node's input and writing its output.
        opset: The least that has these nodes; 21 brought INT4 and blocks. What is shared means the same in both.
        product: Types of inputs and weights that the builder is to multiply in; None where it is not asked.
    """

    nodes: list[onnx.NodeProto]
    tensors: list[TensorProto]
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
        name=node.name,
        domain=DOMAIN,
        plugin_namespace=NAMESPACE,
        plugin_version=VERSION,
        aot=1,
        **{CONFIG: str(config), "K": columns, "N": rows},
    )
    words = config.device_layout.pack(tensor.codes, scheme.bits)
    tensors = [numpy_helper.from_array(words, weight), numpy_helper.from_array(tensor.scale, scale)]
    return Lowered([new], tensors)


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
    return Lowered([*nodes, *_multiply(node, x, dense)], tensors, opset=21, product=("Half", "Int4"))


to_rtx_int4: Convert = partial(to_int4, blocks_of=RTX_INT4_BLOCKS)
"""The same on the blocks of TensorRT for RTX."""


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
    return Lowered(nodes, tensors, opset=21, product=("Int8", "Int8"))


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
