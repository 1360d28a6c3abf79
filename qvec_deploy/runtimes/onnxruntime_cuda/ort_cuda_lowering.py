"""The stored model with its packed Linears as ONNX Runtime's CUDA kernels take them; made at load, codes unchanged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from qvec_deploy.packed import PackedFile, unpack
from qvec_deploy.runtimes.graph import DOMAIN
from qvec_deploy.runtimes.graph.operator import DEQUANTIZE
from qvec_deploy.runtimes.onnxruntime import block_of
from qvec_deploy.tensors import QuantizedTensor

CONTRIB = "com.microsoft"

Arrays = dict[str, NDArray[Any]]
Convert = Callable[[onnx.NodeProto, QuantizedTensor], tuple[onnx.NodeProto, Arrays]]
"""From a packed Linear's node and codes to the node that takes its place, and that node's constants by name."""


def lower_in_memory(stored: onnx.ModelProto, weights: PackedFile, convert: Convert) -> tuple[onnx.ModelProto, Arrays]:
    """Replace every packed Linear by the runtime's own operator on the same codes; filters become floats.

    The arrays stay outside the model, for the runtime to take over: inside, they would exist twice and count against
    protobuf's limit of 2 GB. References to float tensors stay references.

    Returns:
        The model, and the arrays that its new external initializers stand for, by name.

    Raises:
        IncompatibleError: A scheme that the lowering cannot take.
        IntegrityError: The packed file is damaged.
    """
    model = onnx.ModelProto()
    model.CopyFrom(stored)
    arrays: Arrays = {}
    nodes, replaced = [], set()
    for node in model.graph.node:
        if node.domain != DOMAIN:
            nodes.append(node)
            continue
        if node.op_type == DEQUANTIZE:
            replaced |= set(node.input)
            arrays[node.output[0]] = unpack(weights.packed(node.input[0])).dequantize()
            continue
        replaced |= {node.input[1], node.input[2]}
        new, values = convert(node, unpack(weights.packed(node.input[1])))
        arrays |= values
        nodes.append(new)
    kept = [tensor for tensor in model.graph.initializer if tensor.name not in replaced]
    model.graph.ClearField("node")
    model.graph.node.extend(nodes)
    model.graph.ClearField("initializer")
    model.graph.initializer.extend([*kept, *(external_initializer(name, array) for name, array in arrays.items())])
    model.ClearField("functions")
    opsets = {entry.domain: entry.version for entry in model.opset_import if entry.domain != DOMAIN} | {CONTRIB: 1}
    model.ClearField("opset_import")
    model.opset_import.extend(helper.make_opsetid(domain, version) for domain, version in opsets.items())
    return model, arrays


def to_int4(node: onnx.NodeProto, tensor: QuantizedTensor) -> tuple[onnx.NodeProto, Arrays]:
    """MatMulNBits: unsigned 4-bit codes u = q + 8 in blocks, two to a byte, low nibble first; float32 arithmetic."""
    rows, columns = tensor.codes.shape
    block = block_of(columns, tensor.scheme.group_size)
    blocks = -(-columns // block)
    codes = (tensor.codes + 8).astype(np.uint8)
    if blocks * block != columns:
        codes = np.pad(codes, ((0, 0), (0, blocks * block - columns)), constant_values=8)
    payload = (codes[:, 0::2] | (codes[:, 1::2] << 4)).reshape(rows, blocks, block // 2)
    scale = tensor.scale.repeat(blocks // tensor.scale.shape[1], axis=1)
    weight, scales = _operands(node)
    new = helper.make_node(
        "MatMulNBits",
        [node.input[0], weight, scales, "", "", node.input[3]],
        list(node.output),
        name=node.name,
        domain=CONTRIB,
        K=columns,
        N=rows,
        bits=4,
        block_size=block,
        accuracy_level=0,  # float32 activations: the product is exact up to the order of summation
    )
    return new, {weight: payload, scales: scale}


def external_initializer(name: str, array: NDArray[Any]) -> TensorProto:
    """An initializer that the runtime is handed; ONNX wants a place for it all the same."""
    kind = helper.np_dtype_to_tensor_dtype(array.dtype)
    tensor = TensorProto(name=name, data_type=kind, dims=array.shape, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", "in-memory"), ("offset", 0), ("length", array.nbytes)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def _operands(node: onnx.NodeProto) -> tuple[str, str]:
    return f"{node.input[1]}.codes", f"{node.input[1]}.scales"
