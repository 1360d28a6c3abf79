"""Skeleton plus packed file to the stored ONNX model: weights by reference, the operator's meaning as a function.

The model holds no weights. Its initializers point into the bundle's one weight file (ONNX external data), so they
are stored once, at exactly their packed size, and any ONNX Runtime opens the pair.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, helper

from qvec_deploy.errors import IncompatibleError, IntegrityError
from qvec_deploy.io.files import require_file
from qvec_deploy.packed import PackedFile, Span
from qvec_deploy.packed.file_layout import scale_name
from qvec_deploy.runtimes.engine_files import MODEL_FILE
from qvec_deploy.runtimes.graph import DOMAIN, OPSET
from qvec_deploy.tensors import INPUT_SCALE

OPERATOR = "QvecLinear"
_TYPES = {"F32": TensorProto.FLOAT, "F16": TensorProto.FLOAT16, "I32": TensorProto.INT32}


def load_stored(directory: Path) -> onnx.ModelProto:
    """A bundle's stored model, its weights left where they are.

    Raises:
        IntegrityError: The file is no ONNX model.
        StorageError: There is none.
    """
    path = require_file(directory / MODEL_FILE, what="model")
    try:
        return onnx.load(path, load_external_data=False)
    except DecodeError as error:
        raise IntegrityError(f"{path} is not an ONNX model", hint="build the bundle again") from error


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
    widths = set()
    for node in graph.node:
        if node.domain != DOMAIN:
            nodes.append(node)
            continue
        info = weights.tensors.get(node.input[1])
        nodes += _scaled_input(node, weights)
        if info is not None and info.scheme is None:
            initializers.pop(node.input[2])
            nodes += float_linear(node)
            continue
        if info is None or info.scheme is None or info.scale is None:
            raise IncompatibleError(f"{weights.path} lacks {node.input[1]}", hint="build the bundle again")
        initializers.pop(node.input[2])
        node.input[2] = scale_name(info.name)
        widths.add(info.scheme.bits)
        node.attribute.append(helper.make_attribute("bits", info.scheme.bits))
        scale = (info.shape[0], info.scheme.groups(info.shape[1]))
        initializers[node.input[2]] = _reference(node.input[2], scale, "F32", info.scale, location)
        nodes.append(node)
    used = {name for node in nodes for name in node.input}
    for name, info in weights.tensors.items():
        if name not in used:
            raise IncompatibleError(f"the exported graph does not use {name}", hint="this model cannot be deployed")
        shape = info.shape
        if info.scheme is not None:
            shape = (info.shape[0], info.data.size // 4 // info.shape[0])
        initializers[name] = _reference(name, shape, info.dtype, info.data, location)
    graph.ClearField("node")
    graph.node.extend(nodes)
    graph.ClearField("initializer")
    graph.initializer.extend(initializers.values())
    _declare(model, widths)
    return model


def _scaled_input(node: onnx.NodeProto, weights: PackedFile) -> list[onnx.NodeProto]:
    """A Mul ahead of the operator where the file has a factor for its input (AWQ); the operator reads its result."""
    factor = f"{node.input[1].removesuffix('.weight')}{INPUT_SCALE}"
    if factor not in weights.tensors:
        return []
    x, node.input[0] = node.input[0], f"{node.output[0]}_scaled_input"
    return [helper.make_node("Mul", [x, factor], [node.input[0]], name=f"{node.output[0]}_input_scale")]


def float_linear(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """The operator on float weights (N, K): y = x @ W.T + b, from standard nodes."""
    x, weight, _, bias = node.input
    name = node.output[0]
    return [
        helper.make_node("Transpose", [weight], [f"{name}_w"], perm=[1, 0], name=f"{name}_transpose"),
        helper.make_node("MatMul", [x, f"{name}_w"], [f"{name}_y"], name=f"{name}_matmul"),
        helper.make_node("Add", [f"{name}_y", bias], [name], name=f"{name}_add"),
    ]


def operator_function(bits: int) -> onnx.FunctionProto:
    """What `QvecLinear` means, in standard operators: unpack, scale, multiply, add.

    Eight codes are `bits` bytes of the row's little-endian stream, so they are read as one unsigned integer and
    shifted apart. Follows packed/FORMAT.md; works for rows padded beyond K and for any number of groups.
    """
    number = TensorProto.UINT64 if bits > 4 else TensorProto.UINT32  # holds 8 * bits bits
    lines = [f"b{i} = Gather <axis = 2> (bytes, i{i})" for i in range(bits)]
    lines += [f's{i} = BitShift <direction = "LEFT"> (b{i}, h{i})' for i in range(1, bits)]
    lines += [f"o{i} = BitwiseOr ({'b0' if i == 1 else f'o{i - 1}'}, s{i})" for i in range(1, bits)]
    index = "\n".join(f"i{i} = Constant <value_int = {i}> ()" for i in range(bits))
    shifts = "\n".join(
        f"n{i} = Constant <value_int = {8 * i}> ()\nh{i} = Cast <to = {number}> (n{i})" for i in range(1, bits)
    )
    text = f"""
    <opset_import: ["" : {OPSET}], domain: "{DOMAIN}">
    {OPERATOR} <K, N, bits> (x, qweight, scale, bias) => (y)
    {{
        words = Cast <to = {TensorProto.UINT32}> (qweight)
        byte_shift_i = Constant <value_ints = [0, 8, 16, 24]> ()
        byte_shift = Cast <to = {TensorProto.UINT32}> (byte_shift_i)
        last = Constant <value_ints = [-1]> ()
        words3 = Unsqueeze (words, last)
        shifted = BitShift <direction = "RIGHT"> (words3, byte_shift)
        byte_mask_i = Constant <value_int = 255> ()
        byte_mask = Cast <to = {TensorProto.UINT32}> (byte_mask_i)
        masked = BitwiseAnd (shifted, byte_mask)
        by_eight = Constant <value_ints = [0, -1, {bits}]> ()
        flat = Constant <value_ints = [0, -1]> ()
        stream = Reshape (masked, flat)
        eights = Reshape (stream, by_eight)
        bytes = Cast <to = {number}> (eights)
        {index}
        {shifts}
        {chr(10).join(lines)}
        packed = Unsqueeze (o{bits - 1}, last)
        code_shift_i = Constant <value_ints = [{", ".join(str(bits * i) for i in range(8))}]> ()
        code_shift = Cast <to = {number}> (code_shift_i)
        apart = BitShift <direction = "RIGHT"> (packed, code_shift)
        code_mask_i = Constant <value_int = {(1 << bits) - 1}> ()
        code_mask = Cast <to = {number}> (code_mask_i)
        unsigned = BitwiseAnd (apart, code_mask)
        padded = Reshape (unsigned, flat)
        columns_i = Constant <value_int: int = @K> ()
        zero_axis = Constant <value_ints = [0]> ()
        columns = Unsqueeze (columns_i, zero_axis)
        one_axis = Constant <value_ints = [1]> ()
        cut = Slice (padded, zero_axis, columns, one_axis)
        as_float = Cast <to = {TensorProto.FLOAT}> (cut)
        offset = Constant <value_float = {float(1 << (bits - 1))}> ()
        codes = Sub (as_float, offset)
        scale_shape = Shape (scale)
        grouped_shape = Concat <axis = 0> (scale_shape, last)
        grouped = Reshape (codes, grouped_shape)
        scale3 = Unsqueeze (scale, last)
        scaled = Mul (grouped, scale3)
        weight = Reshape (scaled, flat)
        transposed = Transpose <perm = [1, 0]> (weight)
        product = MatMul (x, transposed)
        y = Add (product, bias)
    }}
    """
    return onnx.parser.parse_function(text)


def _reference(name: str, shape: Iterable[int], dtype: str, span: Span, location: str) -> TensorProto:
    """An initializer whose bytes are a span of the weight file."""
    tensor = TensorProto(name=name, data_type=_TYPES[dtype], dims=shape, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", span.offset), ("length", span.size)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def _declare(model: onnx.ModelProto, widths: set[int]) -> None:
    """Opsets, functions and producer; one width per model, since a function has one body."""
    model.ClearField("functions")
    opsets = {entry.domain: entry.version for entry in model.opset_import if entry.domain != DOMAIN}
    if widths:
        (bits,) = widths
        opsets[DOMAIN] = 1
        model.functions.append(operator_function(bits))
    model.ClearField("opset_import")
    model.opset_import.extend(helper.make_opsetid(domain, version) for domain, version in sorted(opsets.items()))
    model.producer_name, model.producer_version = "qvec-deploy", ""


def _forget_origins(model: onnx.ModelProto) -> None:
    """Drop what the exporter notes about source files and classes: it names paths of the building machine."""
    graph = model.graph
    model.ClearField("metadata_props")
    for part in (graph, *graph.node, *graph.initializer, *graph.input, *graph.output):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    graph.ClearField("value_info")
    graph.name = "qvec-deploy"
