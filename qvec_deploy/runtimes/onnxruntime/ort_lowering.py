"""ONNX Runtime's own operators as meanings of `QvecLinear`: the codes of the packed file, held at 4 or 8 bits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from onnx import TensorProto

from qvec_deploy.packed import PackedInfo
from qvec_deploy.runtimes.graph.operator import UNIT, OperatorForm, code_rows, padded, scheme_of, whole_rows, width
from qvec_deploy.runtimes.onnxruntime import block_of

CONTRIB = {"com.microsoft": 1}

_NARROW = 6
"""Up to so many bits, unsigned codes are int8 values whose products with bytes do not saturate on a CPU without VNNI:
the sum of two of them fits in 16 bits."""


def _int4_attributes(info: PackedInfo) -> dict[str, Any]:
    block = _block(info)
    columns = info.matrix[1]
    repeats = -(-columns // block) // scheme_of(info).groups(columns)
    return {"block_size": block, "block_shape": [0, -1, block // 2], "repeats": [1, 1, repeats]}


def _int4_body(linears: Sequence[PackedInfo], _: bool) -> list[str]:
    """MatMulNBits: unsigned 4-bit codes u = q + 8 in blocks, two to a byte, low nibble first; float32 arithmetic."""
    ragged = any(-(-info.matrix[1] // _block(info)) * _block(info) != padded(info.matrix[1]) for info in linears)
    nibbles, lines = _nibbles(width(linears))
    if ragged:
        lines += [
            "row_shape = Constant <value_ints = [0, -1]> ()",
            f"row = Reshape ({nibbles}, row_shape)",
            "from = Constant <value_ints = [0]> ()",
            "axis = Constant <value_ints = [1]> ()",
            "columns = Constant <value_int: int = @K> ()",
            "half = Constant <value_int = 2> ()",
            "used_bytes = Div (columns, half)",
            "used = Unsqueeze (used_bytes, from)",
            "used_nibbles = Slice (row, from, used, axis)",
        ]
        nibbles = "used_nibbles"
    return [
        *lines,
        "block_shape = Constant <value_ints: ints = @block_shape> ()",
        f"blocks = Reshape ({nibbles}, block_shape)",
        "last = Constant <value_ints = [-1]> ()",
        "repeats = Constant <value_ints: ints = @repeats> ()",
        "scale_shape = Constant <value_ints = [0, -1]> ()",
        "columns_of_scales = Unsqueeze (scale, last)",
        "repeated = Expand (columns_of_scales, repeats)",
        "scales = Reshape (repeated, scale_shape)",
        # accuracy_level 0: float32 activations, so the product is exact up to the order of summation
        "y = com.microsoft.MatMulNBits <K: int = @K, N: int = @N, bits = 4, block_size: int = @block_size, "
        "accuracy_level = 0> (x, blocks, scales, , , bias)",
    ]


def _nibbles(bits: int) -> tuple[str, list[str]]:
    """The codes q + 8 in 4 bits each: their name, and the lines that make them of the payload, by tables of bytes."""
    if bits == 4:
        return "qweight", []
    whole = 8 % bits == 0  # no code lies in two bytes
    if whole:
        return "nibbles", [
            _table("table", 0, bits, codes=8 // bits),
            f"index = Cast <to = {TensorProto.INT32}> (qweight)",
            "nibbles = Gather <axis = 0> (table, index)",
        ]
    lines = [f"{', '.join(f'byte{i}' for i in range(bits))} = Split <axis = 2, num_outputs = {bits}> (qweight)"]
    for index in range(bits):
        lines += [
            _table(f"table{index}", index, bits, codes=UNIT),
            f"index{index} = Cast <to = {TensorProto.INT32}> (byte{index})",
            f"part{index} = Gather <axis = 0> (table{index}, index{index})",
        ]
    merged = ["part0", *(f"merged{index}" for index in range(1, bits - 1)), "nibbles"]
    return "nibbles", lines + [f"{merged[i]} = BitwiseOr ({merged[i - 1]}, part{i})" for i in range(1, bits)]


def _table(name: str, index: int, bits: int, codes: int) -> str:
    """What byte `index` of a unit adds to the nibbles of its codes, for each of its values.

    A nibble is u + 8 - 2^(bits-1): the lower bits of u as they are, and the highest one as either of two constants.
    """
    high = 1 << (bits - 1)
    values: list[int] = []
    for value in range(256):
        nibbles = 0
        for code in range(codes):
            field = (value << 8 * index) >> bits * code & ((1 << bits) - 1)
            nibble = field & (high - 1)
            if (bits * code + bits - 1) // 8 == index:  # the highest bit is in this byte
                nibble |= 8 if field & high else 8 - high
            nibbles |= nibble << 4 * code
        values += nibbles.to_bytes(codes // 2, "little")
    return f"{name} = Constant <value = uint8[256, {codes // 2}] {{{', '.join(map(str, values))}}}> ()"


def _block(info: PackedInfo) -> int:
    return block_of(info.matrix[1], scheme_of(info).group_size)


def _int8_body(linears: Sequence[PackedInfo], calibrated: bool) -> list[str]:
    """Bytes times bytes. Codes stay unsigned and their zero point is given: the sums are those of signed codes.

    Inputs are put on calibrated grids; where there are none, on one found at every run for all images of a batch.
    """
    bits = width(linears)
    lines = code_rows("qweight", bits, whole=whole_rows(linears), at_top=False)
    kind, weight = "uint8", "unsigned"
    if bits <= _NARROW:
        lines.append(f"weight = Cast <to = {TensorProto.INT8}> (unsigned)")
        kind, weight = "int8", "weight"
    lines += [
        f"zero_point = Constant <value = {kind} {{{1 << (bits - 1)}}}> ()",
        "flat = Constant <value_ints = [-1]> ()",
        "steps = Reshape (scale, flat)",
    ]
    if not calibrated:
        return [*lines, f"y = com.microsoft.DynamicQuantizeMatMul (x, {weight}, steps, zero_point, bias)"]
    return [
        *lines,
        "input_step = Constant <value_float: float = @input_scale> ()",
        "input_zero = Constant <value_int: int = @input_zero_point> ()",
        f"input_zero_point = Cast <to = {TensorProto.UINT8}> (input_zero)",
        "bytes = QuantizeLinear (x, input_step, input_zero_point)",
        "y = com.microsoft.MatMulIntegerToFloat "
        f"(bytes, {weight}, input_step, steps, input_zero_point, zero_point, bias)",
    ]


INT4 = OperatorForm(_int4_body, _int4_attributes, CONTRIB)
INT8 = OperatorForm(_int8_body, domains=CONTRIB)
