"""Skeleton plus packed file to the stored ONNX model: weights by reference, the operator's meaning as a function.

The model holds no weights. Its initializers point into the bundle's one weight file (ONNX external data), so they
are stored once, at exactly their packed size, and any ONNX Runtime opens the pair.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from qvec_deploy.errors import IncompatibleError, IntegrityError
from qvec_deploy.io.files import require_file
from qvec_deploy.io.untrusted import understood
from qvec_deploy.packed import PackedFile, PackedInfo, Span
from qvec_deploy.packed.file_layout import scale_name
from qvec_deploy.runtimes.engine_files import MODEL_FILE
from qvec_deploy.runtimes.graph import DOMAIN, INPUT, OUTPUT
from qvec_deploy.runtimes.graph.model_file import read_model
from qvec_deploy.runtimes.graph.operator import DEQUANTIZE, STANDARD, declare_payload, define_operator
from qvec_deploy.tensors import INPUT_SCALE

_TYPES = {"F32": TensorProto.FLOAT, "F16": TensorProto.FLOAT16, "I32": TensorProto.INT32}


def load_stored(directory: Path) -> onnx.ModelProto:
    """A bundle's stored model, its weights left where they are.

    Raises:
        IntegrityError: The file is no ONNX model, or none that takes images and gives logits.
        StorageError: There is none.
    """
    path = require_file(directory / MODEL_FILE, what="model")
    with understood(path):
        model = read_model(path)
    ends = [value.name for value in (*model.graph.input, *model.graph.output)]
    if ends != [INPUT, OUTPUT] or not model.graph.node:  # an empty file is a model without anything, too
        raise IntegrityError(f"{path} is not a model of images and logits", hint="build the bundle again")
    return model


def attach_weights(skeleton: onnx.ModelProto, weights: PackedFile, location: str) -> onnx.ModelProto:
    """The stored model: `skeleton` with its weights referenced in the packed file.

    Args:
        skeleton: What `export_skeleton` returned; it is not changed.
        weights: The packed file of the same model. Linears that it holds as floats become MatMul and Add.
        location: The packed file's name, relative to where the model will be saved.

    Raises:
        IncompatibleError: The skeleton lacks a tensor of the file, or the other way round.
    """
    model = onnx.ModelProto()
    model.CopyFrom(skeleton)
    _forget_origins(model)
    graph = model.graph
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    nodes = []
    for node in graph.node:
        if node.domain != DOMAIN:
            nodes.append(node)
            continue
        info = weights.tensors.get(node.input[1])
        nodes += _scaled_input(node, weights)
        if info is not None and info.scheme is None:
            initializers.pop(node.input[2], None)  # a Linear may be called several times
            nodes += float_linear(node)
            continue
        if info is None or info.scheme is None or info.scale is None:
            raise IncompatibleError(f"{weights.path} lacks {node.input[1]}", hint="build the bundle again")
        initializers.pop(node.input[2], None)
        node.input[2] = scale_name(info.name)
        initializers[node.input[2]] = _scale(info, location)
        nodes.append(node)
    used = {name for node in nodes for name in node.input}
    unpacking: list[onnx.NodeProto] = []
    for name, info in weights.tensors.items():
        if name not in used:
            raise IncompatibleError(f"the exported graph does not use {name}", hint="this model cannot be deployed")
        initializers[name] = _reference(name, info.shape, info.dtype, info.data, location)
        if info.scheme is not None and len(info.shape) > 2:
            initializers[scale_name(name)] = _scale(info, location)
            unpacking += _unpack(info, nodes)
    nodes = [*unpacking, *nodes]
    graph.ClearField("node")
    graph.node.extend(nodes)
    graph.ClearField("initializer")
    graph.initializer.extend(initializers.values())
    model.producer_name, model.producer_version = "qvec-deploy", ""
    return define_operator(model, weights, STANDARD)


def weight_references(weights: PackedFile, location: str) -> dict[str, TensorProto]:
    """Every tensor of the packed file as models refer to it, by name; codes as the operator takes them."""
    found = {}
    for name, info in weights.tensors.items():
        found[name] = _reference(name, info.shape, info.dtype, info.data, location)
        if info.scheme is not None:
            declare_payload(found[name], info)
            found[scale_name(name)] = _scale(info, location)
    return found


def _scaled_input(node: onnx.NodeProto, weights: PackedFile) -> list[onnx.NodeProto]:
    """A Mul ahead of the operator where the file has a factor for its input (AWQ); the operator reads its result."""
    factor = f"{node.input[1].removesuffix('.weight')}{INPUT_SCALE}"
    if factor not in weights.tensors:
        return []
    x, node.input[0] = node.input[0], f"{node.output[0]}_scaled_input"
    return [helper.make_node("Mul", [x, factor], [node.input[0]], name=f"{node.output[0]}_input_scale")]


def _scale(info: PackedInfo, location: str) -> TensorProto:
    assert info.scheme is not None  # noqa: S101 - both are there or neither
    assert info.scale is not None  # noqa: S101
    rows, columns = info.matrix
    return _reference(scale_name(info.name), (rows, info.scheme.groups(columns)), "F32", info.scale, location)


def _unpack(info: PackedInfo, nodes: Sequence[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """What makes a convolution's filters of its codes; `nodes` are changed to read the result."""
    matrix, filters = f"{info.name}_matrix", f"{info.name}_filters"
    for node in nodes:
        node.input[:] = [filters if name == info.name else name for name in node.input]
    shape = helper.make_node("Constant", [], [f"{filters}_shape"], name=f"{filters}_shape", value_ints=info.shape)
    inputs = [info.name, scale_name(info.name)]
    return [
        helper.make_node(DEQUANTIZE, inputs, [matrix], name=matrix, domain=DOMAIN),
        shape,
        helper.make_node("Reshape", [matrix, f"{filters}_shape"], [filters], name=filters),
    ]


def float_linear(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """The operator on float weights (N, K): y = x @ W.T + b, from standard nodes."""
    x, weight, _, bias = node.input
    name = node.output[0]
    return [
        helper.make_node("Transpose", [weight], [f"{name}_w"], perm=[1, 0], name=f"{name}_transpose"),
        helper.make_node("MatMul", [x, f"{name}_w"], [f"{name}_y"], name=f"{name}_matmul"),
        helper.make_node("Add", [f"{name}_y", bias], [name], name=f"{name}_add"),
    ]


def _reference(name: str, shape: Iterable[int], dtype: str, span: Span, location: str) -> TensorProto:
    """An initializer whose bytes are a span of the weight file."""
    tensor = TensorProto(name=name, data_type=_TYPES[dtype], dims=shape, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", span.offset), ("length", span.size)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def _forget_origins(model: onnx.ModelProto) -> None:
    """Drop what the exporter notes about source files and classes: it names paths of the building machine."""
    graph = model.graph
    model.ClearField("metadata_props")
    for part in (graph, *graph.node, *graph.initializer, *graph.input, *graph.output):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    graph.ClearField("value_info")
    graph.name = "qvec-deploy"
