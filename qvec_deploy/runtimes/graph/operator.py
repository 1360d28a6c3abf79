"""What `QvecLinear` and `QvecDequantize` mean, as ONNX functions in the model file.

The graph of a model is the same for every lowering: a quantized Linear is one node, its payload a reference into the
packed file. What a lowering makes of it is the function that the file defines the operator by. ONNX Runtime puts the
function's nodes in the place of each node and computes at load what depends on constants alone: it unpacks the codes
once, and keeps them as the last node wants them.

Whatever else is quantized, a convolution's filters, is unpacked by `QvecDequantize` to the matrix of float32 that the
file stands for, in every lowering; its user is a node of ONNX's own, and goes on as if the weights had been floats.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
from onnx import TensorProto, helper

from qvec_deploy.errors import IncompatibleError
from qvec_deploy.packed import BLOCK, PackedFile, PackedInfo
from qvec_deploy.runtimes.graph import DOMAIN, OPSET
from qvec_deploy.tensors import Scheme

OPERATOR, DEQUANTIZE = "QvecLinear", "QvecDequantize"
UNIT = 8
"""Codes that fill whole bytes at every width: `bits` bytes."""
INPUT_SCALE_ATTRIBUTE, INPUT_ZERO_POINT_ATTRIBUTE = "input_scale", "input_zero_point"
"""Of a node: the grid of 8 bits that its calibrated input is put on."""

_FLOATS = helper.make_tensor_type_proto(TensorProto.FLOAT, None)

Ranges = Mapping[str, tuple[float, float]]
"""Smallest and largest value that reaches each quantized Linear, by its name."""


@dataclass(frozen=True)
class OperatorForm:
    """One meaning of the operator.

    Attributes:
        body: ONNX text that makes `y` of `x`, `qweight` (N, units, bits) uint8, `scale` (N, groups) and `bias` (N,).
            It is given every Linear of the model, and whether their inputs are calibrated. It may read a node's
            attributes as `@name`.
        attributes: Attributes that it reads beyond K, N and bits, for one Linear.
        domains: Opsets of its operators beside ONNX's own.
    """

    body: Callable[[Sequence[PackedInfo], bool], Sequence[str]]
    attributes: Callable[[PackedInfo], Mapping[str, Any]] = lambda _: {}
    domains: Mapping[str, int] | None = None


def define_operator(
    model: onnx.ModelProto, weights: PackedFile, form: OperatorForm, ranges: Ranges | None = None
) -> onnx.ModelProto:
    """The model with another meaning of its operator.

    Args:
        model: A stored model, of any form; it is not changed. Ranges that it knows stay.

    Raises:
        IncompatibleError: Linears of several widths.
    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    made.ClearField("functions")
    nodes, others = (_nodes(made, operator) for operator in (OPERATOR, DEQUANTIZE))
    _import_domains(made, (dict(form.domains or {}) if nodes else {}) | ({DOMAIN: 1} if nodes or others else {}))
    linears = [weights.tensors[node.input[1]] for node in nodes]
    matrices = [weights.tensors[node.input[0]] for node in others]
    payloads = {info.name: info for info in (*linears, *matrices)}
    for tensor in made.graph.initializer:
        if tensor.name in payloads:
            declare_payload(tensor, payloads[tensor.name])
    made.graph.ClearField("value_info")
    if nodes:
        for node, info in zip(nodes, linears, strict=True):
            _set_attributes(node, {**_sizes(info), **form.attributes(info), **_input_grid(node, ranges)})
        results = [onnx.ValueInfoProto(name=node.output[0], type=_FLOATS) for node in nodes]
        made.graph.value_info.extend(results)  # a runtime's own operators say nothing to onnx's type inference
        calibrated = all(INPUT_SCALE_ATTRIBUTE in _names(node) for node in nodes)
        signature = f"{OPERATOR} <{', '.join(_names(nodes[0]))}> (x, qweight, scale, bias) => (y)"
        made.functions.append(_function(signature, form.body(linears, calibrated), form.domains))
    if others:
        for node, info in zip(others, matrices, strict=True):
            _set_attributes(node, {**_sizes(info), **_standard_attributes(info)})
        signature = f"{DEQUANTIZE} <{', '.join(_names(others[0]))}> (qweight, scale) => (weight)"
        made.functions.append(_function(signature, _matrix_body(matrices)))
    return made


def _nodes(model: onnx.ModelProto, operator: str) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.domain == DOMAIN and node.op_type == operator]


def _import_domains(model: onnx.ModelProto, domains: Mapping[str, int]) -> None:
    opsets = {entry.domain: entry.version for entry in model.opset_import if not entry.domain} | dict(domains)
    model.ClearField("opset_import")
    model.opset_import.extend(helper.make_opsetid(domain, version) for domain, version in sorted(opsets.items()))


def declare_payload(tensor: TensorProto, info: PackedInfo) -> None:
    """Give codes the type and shape in which functions take them."""
    rows, columns = info.matrix
    tensor.data_type = TensorProto.UINT8
    tensor.dims[:] = [rows, padded(columns) // UNIT, scheme_of(info).bits]


def padded(columns: int) -> int:
    """Codes of a row in the payload, its padding included."""
    return -(-columns // BLOCK) * BLOCK


def _unpacked(weights: Sequence[PackedInfo]) -> list[str]:
    """Lines that make `floats` (in, out) and the `step` (out, groups) that they are to be multiplied by.

    A code's bits go to the top of a byte, its highest one flipped: as int8, that is the code times 2^(8 - bits).
    """
    bits = width(weights)
    flips = sum(1 << (bits * code + bits - 1) for code in range(UNIT)).to_bytes(bits, "little")
    return [
        f"flips = Constant <value = uint8[{bits}] {{{', '.join(map(str, flips))}}}> ()",
        "signed = BitwiseXor (qweight, flips)",
        *code_rows("signed", bits, whole=whole_rows(weights), at_top=True),
        f"raised = Cast <to = {TensorProto.INT8}> (unsigned)",
        f"floats = Cast <to = {TensorProto.FLOAT}> (raised)",
        f"unit = Constant <value_float = {2.0 ** (bits - 8)}> ()",
        "step = Mul (scale, unit)",
    ]


def _scaled_groups() -> list[str]:
    """Lines that make `by_columns` (in, out) of `floats` and the `step` of every group."""
    return [
        "grouped_shape = Constant <value_ints: ints = @grouped> ()",
        "grouped = Reshape (floats, grouped_shape)",
        "by_group = Transpose <perm = [1, 0]> (step)",
        "middle = Constant <value_ints = [1]> ()",
        "steps = Unsqueeze (by_group, middle)",
        "scaled_groups = Mul (grouped, steps)",
        "weight_shape = Constant <value_ints: ints = @weight_shape> ()",
        "by_columns = Reshape (scaled_groups, weight_shape)",
    ]


def _matrix_body(weights: Sequence[PackedInfo]) -> list[str]:
    """The matrix (out, in) of float32 that a payload stands for."""
    if _grouped(weights[0]):
        scaled = _scaled_groups()
    else:
        scaled = ["steps = Transpose <perm = [1, 0]> (step)", "by_columns = Mul (floats, steps)"]
    return [*_unpacked(weights), *scaled, "weight = Transpose <perm = [1, 0]> (by_columns)"]


def _standard_body(linears: Sequence[PackedInfo], _: bool) -> list[str]:
    """Float32 weights from standard operators.

    One scale a row is multiplied after the product, which leaves one float32 copy of the weights in memory.
    """
    if _grouped(linears[0]):
        product = ["product = MatMul (x, by_columns)", "y = Add (product, bias)"]
        return [*_unpacked(linears), *_scaled_groups(), *product]
    return [
        *_unpacked(linears),
        "flat = Constant <value_ints = [-1]> ()",
        "steps = Reshape (step, flat)",
        "product = MatMul (x, floats)",
        "scaled = Mul (product, steps)",
        "y = Add (scaled, bias)",
    ]


def _standard_attributes(info: PackedInfo) -> dict[str, Any]:
    if not _grouped(info):
        return {}
    (rows, columns), groups = info.matrix, scheme_of(info).groups(info.matrix[1])
    return {"grouped": [groups, columns // groups, rows], "weight_shape": [columns, rows]}


STANDARD = OperatorForm(_standard_body, _standard_attributes)
"""The portable meaning, in ONNX's own operators."""


def width(linears: Sequence[PackedInfo]) -> int:
    """The one width of all Linears.

    Raises:
        IncompatibleError: There are several: a function has one body.
    """
    widths = {scheme_of(info).bits for info in linears}
    if len(widths) != 1:
        raise IncompatibleError(f"Linears of {sorted(widths)} bits in one model", hint="use one width for all")
    return widths.pop()


def code_rows(source: str, bits: int, *, whole: bool, at_top: bool) -> list[str]:
    """Lines that make `unsigned` (K, N) uint8 of a payload (N, units, bits): each code's bits in a byte of their own.

    The payload is transposed while it is small. Then a byte of every unit is one plane (units, 1, N), each of the eight
    codes of a unit takes a shift and a mask of one plane or of two, and the eight planes are put together again.

    Args:
        source: Name of the payload.
        whole: Rows need no padding in any Linear.
        at_top: A code stays in the highest bits of its byte, not in the lowest.
    """
    rows = "unsigned" if whole else "whole_units"
    lines = [f"turned = Transpose <perm = [1, 2, 0]> ({source})", "zero_axis = Constant <value_ints = [0]> ()"]
    if bits == UNIT:
        lines.append(f"{rows} = Flatten <axis = 2> (turned)")
    else:
        shifts: set[int] = set()
        made = [_code_plane(code, bits, at_top, shifts) for code in range(UNIT)]
        mask = ((1 << bits) - 1) << (8 - bits if at_top else 0)
        lines += [f"shift{count} = Constant <value = uint8 {{{count}}}> ()" for count in sorted(shifts)]
        lines += [
            f"mask = Constant <value = uint8 {{{mask}}}> ()",
            f"{', '.join(f'byte{index}' for index in range(bits))} = Split <axis = 1, num_outputs = {bits}> (turned)",
            *(line for plane, _ in made for line in plane),
            f"units = Concat <axis = 1> ({', '.join(name for _, name in made)})",
            f"{rows} = Flatten <axis = 2> (units)",
        ]
    if whole:
        return lines
    return [
        *lines,
        "used_count = Constant <value_int: int = @K> ()",
        "used = Unsqueeze (used_count, zero_axis)",
        "unsigned = Slice (whole_units, zero_axis, used, zero_axis)",
    ]


def _code_plane(code: int, bits: int, at_top: bool, shifts: set[int]) -> tuple[list[str], str]:
    """Lines that take one code of every unit out of the byte planes, and the name of the result.

    Args:
        shifts: Receives the distances that the lines shift by.
    """
    first, start = divmod(bits * code, 8)
    up = (8 - bits if at_top else 0) - start  # how far its lowest bit moves up within a byte
    lines: list[str] = []
    plane = f"byte{first}"

    def add(text: str) -> str:
        lines.append(f"code{code}_{len(lines)} = {text}")
        return f"code{code}_{len(lines) - 1}"

    def shifted(source: str, distance: int) -> str:
        shifts.add(abs(distance))
        return add(f'BitShift <direction = "{"LEFT" if distance > 0 else "RIGHT"}"> ({source}, shift{abs(distance)})')

    if up:
        plane = shifted(plane, up)
    if start + bits > 8:
        plane = add(f"BitwiseOr ({plane}, {shifted(f'byte{first + 1}', 8 + up)})")
    if start > 0 if at_top else start + bits != 8:  # bits of its neighbours are still there
        plane = add(f"BitwiseAnd ({plane}, mask)")
    return lines, plane


def _function(signature: str, body: Sequence[str], domains: Mapping[str, int] | None = None) -> onnx.FunctionProto:
    opsets = ", ".join(f'"{domain}": {version}' for domain, version in {"": OPSET, **(domains or {})}.items())
    text = f"""
    <opset_import: [{opsets}], domain: "{DOMAIN}">
    {signature}
    {{
        {chr(10).join(body)}
    }}
    """
    return onnx.parser.parse_function(text)


def _sizes(info: PackedInfo) -> dict[str, Any]:
    rows, columns = info.matrix
    return {"K": columns, "N": rows, "bits": scheme_of(info).bits}


def _input_grid(node: onnx.NodeProto, ranges: Ranges | None) -> dict[str, Any]:
    """The attributes of a calibrated input: new ones, or those that the node has."""
    names = (INPUT_SCALE_ATTRIBUTE, INPUT_ZERO_POINT_ATTRIBUTE)
    if ranges is not None:
        return dict(zip(names, byte_grid(*ranges[node.input[1].removesuffix(".weight")]), strict=True))
    return {each.name: helper.get_attribute_value(each) for each in node.attribute if each.name in names}


def _set_attributes(node: onnx.NodeProto, values: Mapping[str, Any]) -> None:
    node.ClearField("attribute")
    node.attribute.extend(helper.make_attribute(name, value) for name, value in values.items())


def byte_grid(low: float, high: float) -> tuple[float, int]:
    """Scale and zero point of the 256 values that cover a range; 0 is one of them."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / 255 or 1.0
    return scale, round(-low / scale)


def _names(node: onnx.NodeProto) -> list[str]:
    return [attribute.name for attribute in node.attribute]


def whole_rows(linears: Sequence[PackedInfo]) -> bool:
    """Whether no row of any Linear is padded in the payload."""
    return all(info.matrix[1] % BLOCK == 0 for info in linears)


def scheme_of(info: PackedInfo) -> Scheme:
    """The grid of a quantized weight."""
    assert info.scheme is not None  # noqa: S101 - the operator's weights are quantized
    return info.scheme


def _grouped(info: PackedInfo) -> bool:
    return scheme_of(info).granularity == "group"
