"""The stored model to the ONNX graph that TensorRT reads: float16 throughout, every constant inside, codes unchanged.

TensorRT builds strongly typed networks from it: what a tensor's type says is what is computed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from qvec_deploy.errors import IncompatibleError, first_line
from qvec_deploy.packed import PackedFile, unpack
from qvec_deploy.runtimes.graph import DOMAIN, OPSET
from qvec_deploy.runtimes.graph.float16 import cast_at_the_ends, half, halve_node
from qvec_deploy.runtimes.graph.operator import DEQUANTIZE
from qvec_deploy.runtimes.registry import find_lowering
from qvec_deploy.runtimes.tensorrt import TENSORRT
from qvec_deploy.runtimes.tensorrt.builder_log import WantedProduct
from qvec_deploy.runtimes.tensorrt.tensorrt_linear import Convert, product_name

IR_VERSION = 10


@dataclass(frozen=True, eq=False)
class TensorrtGraph:
    """A graph and what must be found again in the engine.

    Attributes:
        model: The graph: `images` float32 in, `logits` float32 out.
        plugin_layers: Nodes that only our plugin can compute.
        packed_bytes: Constants of the quantized Linears: codes and scales.
        allowed_bytes: Most that an engine stores in which the quantized Linears stayed as they are here; None where
            they are float16 here.
        products: What the quantized Linears are to be multiplied in.
    """

    model: onnx.ModelProto
    plugin_layers: int
    packed_bytes: int
    weight_bytes: int
    allowed_bytes: int | None
    products: tuple[WantedProduct, ...] = ()


def tensorrt_graph(
    stored: onnx.ModelProto,
    weights: PackedFile,
    lowering: str,
    *,
    runtime: str = TENSORRT.name,
    batch_size: int | None = None,
    amax: Mapping[str, float] | None = None,
) -> TensorrtGraph:
    """Lower a bundle's model for TensorRT.

    Args:
        runtime: The row whose lowering it is.
        batch_size: Images of a run; None leaves it open.
        amax: Largest magnitude of the input of every quantized Linear, by the Linear's name.

    Raises:
        IncompatibleError: No such lowering, a scheme it cannot take, a value beyond float16, an operator that has no
            float16 form, or no `amax` of a Linear that needs one.
    """
    convert: Convert = find_lowering(runtime, lowering).load()
    opset = OPSET
    model = onnx.ModelProto()
    model.CopyFrom(stored)
    graph = model.graph
    packed: list[int] = []
    unpacked: list[int] = []
    products: list[WantedProduct] = []
    nodes: list[onnx.NodeProto] = []
    arrays: dict[str, TensorProto] = {}
    for node in graph.node:
        if node.domain != DOMAIN:
            nodes.append(halve_node(node))
            continue
        if node.op_type == DEQUANTIZE:  # filters, which TensorRT is given as float16
            filters = unpack(weights.packed(node.input[0])).dequantize()
            arrays[node.output[0]] = numpy_helper.from_array(half(node.input[0], filters), node.output[0])
            continue
        linear = node.input[1].removesuffix(".weight")
        made = convert(node, unpack(weights.packed(node.input[1])), (amax or {}).get(linear))
        if made.product is not None:
            products.append(WantedProduct(linear, product_name(node), *made.product))
        opset = max(opset, made.opset)
        packed.append(sum(_size(tensor) for tensor in made.tensors))
        rows, columns = weights.tensors[node.input[1]].matrix
        unpacked.append(2 * rows * columns)
        nodes += made.nodes
        arrays |= {tensor.name: tensor for tensor in (*made.tensors, *made.shared)}
    arrays |= _floats(graph, weights, {name for node in nodes for name in node.input} - set(arrays))
    for part, values in (("node", nodes), ("initializer", arrays.values()), ("value_info", [])):
        graph.ClearField(part)
        getattr(graph, part).extend(values)
    cast_at_the_ends(graph)
    if batch_size is not None:
        for value in (*graph.input, *graph.output):
            value.type.tensor_type.shape.dim[0].dim_value = batch_size
    _declare(model, opset)
    plugins = sum(node.domain == DOMAIN for node in nodes)
    if not plugins:  # onnx cannot check nodes that nothing defines
        _check(model)
    given = sum(map(_size, graph.initializer))
    allowed = allowed_bytes(given, packed, unpacked, padding=_padding(graph))
    return TensorrtGraph(model, plugins, sum(packed), given, allowed, tuple(products))


def allowed_bytes(given: int, packed: Sequence[int], unpacked: Sequence[int], *, padding: int = 0) -> int | None:
    """Most that an engine may store; with more, a Linear's weights were unpacked to float16.

    Half of what unpacking the smallest Linear adds is put down to alignment and constants of TensorRT's own, and
    `padding` to convolutions; but never more than half of what unpacking all Linears adds.

    Args:
        packed: Bytes of the constants of each quantized Linear.
        unpacked: Bytes of each of their weights in float16.
        padding: Bytes that TensorRT may add to other weights.

    Returns:
        Bytes; None where unpacking adds nothing.
    """
    added = [dense - small for small, dense in zip(packed, unpacked, strict=True)]
    if not added or min(added) <= 0:
        return None
    return given + min(sum(added) // 2, min(added) // 2 + padding)


def _floats(graph: onnx.GraphProto, weights: PackedFile, used: set[str]) -> dict[str, TensorProto]:
    """The graph's other constants, in float16 where they are floats, and inside the graph."""
    found = {}
    for tensor in graph.initializer:
        if tensor.name not in used:
            continue
        if tensor.name in weights.tensors:
            array: NDArray[Any] = weights.array(tensor.name)
        else:
            array = numpy_helper.to_array(tensor)
        narrow = half(tensor.name, array) if array.dtype in (np.float32, np.float16) else array
        found[tensor.name] = numpy_helper.from_array(narrow.reshape(tensor.dims), tensor.name)
    return found


def _padding(graph: onnx.GraphProto) -> int:
    """Bytes more of the convolutions' weights where a kernel wants their input channels, 3 of them, in eights."""
    filters = {node.input[1] for node in graph.node if node.op_type == "Conv"}
    found = 0
    for tensor in graph.initializer:
        if tensor.name in filters:
            channels = tensor.dims[1]
            found += _size(tensor) // channels * (-channels % 8)
    return found


def _size(tensor: TensorProto) -> int:
    return len(tensor.raw_data)


def _declare(model: onnx.ModelProto, opset: int) -> None:
    model.ir_version = max(model.ir_version, IR_VERSION)
    used = {node.domain: 1 for node in model.graph.node if node.domain}
    opsets = used | {entry.domain: entry.version for entry in model.opset_import} | {"": opset}
    model.ClearField("opset_import")
    model.opset_import.extend(helper.make_opsetid(domain, version) for domain, version in sorted(opsets.items()))
    model.ClearField("functions")


def _check(model: onnx.ModelProto) -> None:
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        reason = first_line(error)
        raise IncompatibleError(
            f"the model has no float16 form: {reason}", hint="ViT, DeiT-III and Swin models are known to work"
        ) from error
