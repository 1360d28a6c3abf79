"""How to add a lowering: this one gives ONNX Runtime the exact codes of any width in 8-bit containers, in blocks.

A lowering of `onnxruntime` is a meaning of the operator `QvecLinear`, and a row that says what it takes. The row goes
among the runtime's lowerings; nothing else is touched.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qvec_deploy.packed import PackedInfo
from qvec_deploy.runtimes.graph.operator import OperatorForm, code_rows, scheme_of, whole_rows, width
from qvec_deploy.runtimes.onnxruntime import block_of
from qvec_deploy.runtimes.runtime import EVERY_WIDTH, Lowering
from qvec_deploy.tensors import Scheme


def _attributes(info: PackedInfo) -> dict[str, Any]:
    (rows, columns), scheme = info.shape, scheme_of(info)
    block = block_of(columns, scheme.group_size)
    blocks = -(-columns // block)
    return {
        "block": block,
        "padding": [0, 0, 0, blocks * block - columns],
        "blocks": [rows, blocks, block],
        "repeats": [1, 1, blocks // scheme.groups(columns)],
    }


def _body(linears: Sequence[PackedInfo], _: bool) -> list[str]:
    """MatMulNBits at 8 bits: codes in blocks, the zero point given; a block beyond the row is filled with it."""
    bits = width(linears)
    middle = 1 << (bits - 1)
    return [
        *code_rows("qweight", bits, whole=whole_rows(linears), at_top=False),
        "by_row = Transpose <perm = [1, 0]> (unsigned)",
        f"middle = Constant <value = uint8 {{{middle}}}> ()",
        "padding = Constant <value_ints: ints = @padding> ()",
        "padded = Pad (by_row, padding, middle)",
        "shape = Constant <value_ints: ints = @blocks> ()",
        "blocks = Reshape (padded, shape)",
        "last = Constant <value_ints = [-1]> ()",
        "repeats = Constant <value_ints: ints = @repeats> ()",
        "column = Unsqueeze (scale, last)",
        "repeated = Expand (column, repeats)",
        "row_shape = Constant <value_ints = [0, -1]> ()",
        "scales = Reshape (repeated, row_shape)",
        "scale_shape = Shape (scales)",
        "zeros = Expand (middle, scale_shape)",
        "y = com.microsoft.MatMulNBits <K: int = @K, N: int = @N, bits = 8, block_size: int = @block, "
        "accuracy_level = 0> (x, blocks, scales, zeros, , bias)",
    ]


BLOCKS = OperatorForm(_body, _attributes, {"com.microsoft": 1})


def _bits(rows: int, columns: int, scheme: Scheme) -> float:
    block = block_of(columns, scheme.group_size)
    return 8.0 * rows * -(-columns // block) * (block + 5)


INT8_BLOCKS = Lowering(
    "int8_blocks",
    "the exact codes in 8-bit containers, float32 activations",
    EVERY_WIDTH,
    1e-3,
    "fp32",
    _bits,
    group_multiple=16,
    power_of_two_groups=True,
    implementation="example_lowering:BLOCKS",
)
"""The row."""
