# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
"""The Triton kernels: y = x @ dequant(words).T + bias, and dequant(words) alone, one template per layout.

This is their one home: CI interprets it on the CPU, PyTorch runs it on a GPU, and TensorRT engines carry its PTX.

Every kernel takes its inputs, then sizes, then its output: the order in which TensorRT passes them. x (m, k), y (m, n)
and the dequantized weight (n, k) are contiguous and of one type, float16 or bfloat16; scale is (n, groups) float32;
`GROUP` columns share a scale, 0 being a whole row. Sums are float32, and scales are applied to them rather than to the
weights, so the codes enter the tensor cores exactly. `SPLIT` programs share a sum where x has so few rows that the GPU
would be idle; then `linear` writes parts, and `combine` adds them.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import triton
import triton.language as tl

_EMULATED: tl.constexpr = tl.constexpr(bool(triton.knobs.runtime.interpret))
"""Triton's interpreter keeps bfloat16 as bare bits: it loads, converts and stores them, but cannot calculate."""


@triton.constexpr_function
def _mantissa(dtype):
    return 10 if dtype == tl.float16 else 7


@triton.constexpr_function
def _magic(dtype):
    """A power of two whose last mantissa bit is worth 1, in both halves of a word: 1024, or 128 in bfloat16."""
    return 0x64006400 if dtype == tl.float16 else 0x43004300


@triton.constexpr_function
def _pair_asm(mask, magic, factor, offset, kind):
    """Codes of two words, four in all, as numbers: mask and exponent in one LOP3, then regrouped by halves.

    `factor` and `offset` are floats of `kind` (f16 or bf16) and given as bits, in both halves of a word.
    """
    return f"""{{
        .reg .b32 a, b, factor, offset;
        lop3.b32 a, $2, {mask:#x}, {magic:#x}, 0xEA;
        lop3.b32 b, $3, {mask:#x}, {magic:#x}, 0xEA;
        mov.b32 factor, {factor:#x};
        mov.b32 offset, {offset:#x};
        prmt.b32 $0, a, b, 0x5410;
        prmt.b32 $1, a, b, 0x7632;
        fma.rn.{kind}x2 $0, $0, factor, offset;
        fma.rn.{kind}x2 $1, $1, factor, offset;
    }}"""


@triton.constexpr_function
def _both(dtype):
    return dtype, dtype


@triton.constexpr_function
def _twice(value, dtype):
    """The bits of a float16 or bfloat16 number, in both halves of a word; the number needs 8 significant bits or 11."""
    import struct

    if dtype == tl.float16:
        bits = int.from_bytes(struct.pack("<e", value), "little")
    else:
        bits = int.from_bytes(struct.pack("<f", value), "little") >> 16
    return bits << 16 | bits


@triton.jit
def _multiply_add(number, FACTOR: tl.constexpr, OFFSET: tl.constexpr):
    if _EMULATED and number.dtype == tl.bfloat16:
        result = (number.to(tl.float32) * FACTOR + OFFSET).to(tl.bfloat16)
    else:
        result = number * FACTOR + OFFSET
    return result


@triton.jit
def _dot(a, b, acc):
    return (
        tl.dot(a.to(tl.float32), b.to(tl.float32), acc) if _EMULATED and a.dtype == tl.bfloat16 else tl.dot(a, b, acc)
    )


@triton.jit
def _pair(word, FIELD: tl.constexpr, BITS: tl.constexpr, dtype: tl.constexpr, ASM: tl.constexpr):
    """Codes of the two rows whose field `FIELD` a word has, as exact numbers.

    The field, left where it is in the mantissa of a power of two, is a number; one multiply-add makes it the code.
    """
    PER_SHIFT: tl.constexpr = _mantissa(dtype) // BITS
    PLACE: tl.constexpr = FIELD % PER_SHIFT * BITS
    MASK: tl.constexpr = (((1 << BITS) - 1) << PLACE) * 0x10001
    MAGIC: tl.constexpr = _magic(dtype)
    FACTOR: tl.constexpr = 1.0 / (1 << PLACE)
    OFFSET: tl.constexpr = -((1 << _mantissa(dtype)) * FACTOR + (1 << (BITS - 1)))
    moved = word >> (FIELD // PER_SHIFT * PER_SHIFT * BITS)
    if ASM:
        low, high = tl.inline_asm_elementwise(
            _pair_asm(
                MASK, MAGIC, _twice(FACTOR, dtype), _twice(OFFSET, dtype), "f16" if dtype == tl.float16 else "bf16"
            ),
            "=r,=r,r,r",
            [moved],
            dtype=_both(dtype),
            is_pure=True,
            pack=2,
        )
    else:
        both = (moved & MASK) | MAGIC
        low = _multiply_add(both.to(tl.int16).to(dtype, bitcast=True), FACTOR, OFFSET)
        high = _multiply_add((both >> 16).to(tl.int16).to(dtype, bitcast=True), FACTOR, OFFSET)
    return low, high


@triton.jit
def _number(code, BITS: tl.constexpr, dtype: tl.constexpr):
    """Unsigned codes, an int32 each, as the exact numbers they stand for."""
    if BITS <= 4:  # int to float conversions are slow; wider codes do without the trick, bfloat16 having no room
        MAGIC: tl.constexpr = _magic(dtype) & 0xFFFF
        OFFSET: tl.constexpr = -((1 << _mantissa(dtype)) + (1 << (BITS - 1)) + 0.0)
        number = _multiply_add((code | MAGIC).to(tl.int16).to(dtype, bitcast=True), 1.0, OFFSET)
    else:
        number = (code - (1 << (BITS - 1))).to(tl.float32).to(dtype)
    return number


@triton.jit
def _finish(acc, scale, bias, y, rows, columns, m, n, GROUP: tl.constexpr, SPLIT: tl.constexpr):
    """Scale, bias, store; or store the part of a sum that has several, for `combine`."""
    inside = columns < n
    if SPLIT == 1:
        acc = _epilogue(acc, scale, bias, columns, inside, GROUP)
    else:
        rows += tl.program_id(2) * m
        m *= tl.program_id(2) + 1
    at = y + rows.to(tl.int64)[:, None] * n + columns[None, :]
    tl.store(at, acc.to(y.dtype.element_ty), mask=(rows < m)[:, None] & inside[None, :])


@triton.jit
def _epilogue(acc, scale, bias, columns, inside, GROUP: tl.constexpr):
    if GROUP == 0:
        acc *= tl.load(scale + columns, mask=inside, other=0.0)[None, :]
    if bias is not None:
        acc += tl.load(bias + columns, mask=inside, other=0.0).to(tl.float32)[None, :]
    return acc


@triton.jit(do_not_specialize=["m"])
def combine(parts, scale, bias, m, n, y, GROUP: tl.constexpr, SPLIT: tl.constexpr, BLOCK: tl.constexpr):
    """Add the parts (SPLIT, m, n) float32 that a `linear` kernel left. Grid: (m, ceil(n / BLOCK))."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < n
    acc = tl.zeros((1, BLOCK), tl.float32)
    for part in tl.static_range(SPLIT):
        acc += tl.load(parts + (row + part * m) * n + columns, mask=inside, other=0.0)[None, :]
    acc = _epilogue(acc, scale, bias, columns, inside, GROUP)
    tl.store(y + row * n + columns[None, :], acc.to(y.dtype.element_ty), mask=inside[None, :])


@triton.jit(do_not_specialize=["m"])
def linear_p32(
    x, words, scale, bias, m, n, k, y,
    BITS: tl.constexpr, GROUP: tl.constexpr, ASM: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """Grid: (ceil(m / BLOCK_M), ceil(n / BLOCK_N), SPLIT)."""
    FIELDS: tl.constexpr = 16 // BITS
    SPAN: tl.constexpr = GROUP if GROUP < 256 else 256  # columns of a block that share a scale
    dtype: tl.constexpr = x.dtype.element_ty
    half = n // 2
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    pairs = tl.program_id(1) * (BLOCK_N // 2) + tl.arange(0, BLOCK_N // 2)
    lane = tl.arange(0, 16)
    # What lies beyond the matrices is read from within and not stored: loads then need no masks.
    near = tl.max_contiguous(tl.multiple_of(pairs % half, 16), 16)
    columns = near + near // 32 * 32
    x_at = x + (rows % m).to(tl.int64)[:, None] * k + lane[None, :]
    word_at = words + lane[:, None] * half + near[None, :]
    groups = k // GROUP if GROUP > 0 else 1
    low = tl.zeros((BLOCK_M, BLOCK_N // 2), tl.float32)
    high = tl.zeros((BLOCK_M, BLOCK_N // 2), tl.float32)
    part_low, part_high = low, high
    share = tl.cdiv(k // 256, SPLIT)
    for block in range(tl.program_id(2) * share, min(k // 256, (tl.program_id(2) + 1) * share)):
        rest = tl.zeros((16, BLOCK_N // 2), tl.int32)
        for slot in tl.static_range(16):
            if slot < FIELDS * BITS:
                if slot % FIELDS == 0:
                    word = tl.load(word_at + (block * BITS + slot // FIELDS) * 16 * half)
                    if FIELDS * BITS < 16:
                        rest |= (word >> (FIELDS * BITS) & 0x10001) << (slot // FIELDS)
                b_low, b_high = _pair(word, slot % FIELDS, BITS, dtype, ASM)
            else:
                b_low, b_high = _pair(rest, 0, BITS, dtype, ASM)
            a = tl.load(x_at + block * 256 + slot * 16)
            if GROUP == 0:
                low = _dot(a, b_low, low)
                high = _dot(a, b_high, high)
            else:
                part_low = _dot(a, b_low, part_low)
                part_high = _dot(a, b_high, part_high)
                if (slot + 1) * 16 % SPAN == 0:
                    scale_at = scale + columns * groups + (block * 256 + slot * 16) // GROUP
                    low += part_low * tl.load(scale_at)[None, :]
                    high += part_high * tl.load(scale_at + 32 * groups)[None, :]
                    part_low = tl.zeros_like(low)
                    part_high = tl.zeros_like(high)
    columns = tl.where(pairs < half, pairs + pairs // 32 * 32, n)
    _finish(low, scale, bias, y, rows, columns, m, n, GROUP, SPLIT)
    _finish(high, scale, bias, y, rows, columns + 32, m, n, GROUP, SPLIT)


@triton.jit
def _row_codes(words, start, lane, columns, n, k, BITS: tl.constexpr):
    """Unsigned codes of layout `rows`, as int32, of columns `start` + `lane` and rows `columns` of the weight.

    With `start` a multiple of 32 and known as such, where the codes lie does not change from block to block.
    """
    bit = (start % 32 + lane) * BITS
    at = words + (start // 32 * BITS).to(tl.int64) * n + (bit // 32)[:, None] * n + columns[None, :]
    inside = (start + lane < k)[:, None] & (columns < n)[None, :]
    shift = (bit % 32)[:, None]
    code = tl.load(at, mask=inside, other=0).to(tl.uint32, bitcast=True) >> shift.to(tl.uint32)
    if 32 % BITS != 0:  # some codes lie across two words
        across = shift > 32 - BITS
        rest = tl.load(at + n, mask=inside & across, other=0)
        code |= (rest << ((32 - shift) & 31)).to(tl.uint32, bitcast=True)
    return (code & ((1 << BITS) - 1)).to(tl.int32)


@triton.jit(do_not_specialize=["m"])
def linear_rows(
    x, words, scale, bias, m, n, k, y,
    BITS: tl.constexpr, GROUP: tl.constexpr, ASM: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """Grid: (ceil(m / BLOCK_M), ceil(n / BLOCK_N), SPLIT); `ASM` is for the other layout."""
    BLOCK_K: tl.constexpr = 32 if GROUP % 32 == 0 else 16  # within one group
    dtype: tl.constexpr = x.dtype.element_ty
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    groups = k // GROUP if GROUP > 0 else 1
    x_row = x + (rows % m).to(tl.int64)[:, None] * k
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    lane = tl.arange(0, BLOCK_K)
    share = tl.cdiv(tl.cdiv(k, BLOCK_K), SPLIT)
    for block in range(tl.program_id(2) * share, min(tl.cdiv(k, BLOCK_K), (tl.program_id(2) + 1) * share)):
        start = block * BLOCK_K
        a = tl.load(x_row + (start + lane)[None, :], mask=(start + lane < k)[None, :], other=0.0)
        b = _number(_row_codes(words, start, lane, columns, n, k, BITS), BITS, dtype)
        if GROUP == 0:
            acc = _dot(a, b, acc)
        else:
            factor = tl.load(scale + columns * groups + start // GROUP, mask=columns < n, other=0.0)
            acc += _dot(a, b, tl.zeros_like(acc)) * factor[None, :]
    _finish(acc, scale, bias, y, rows, columns, m, n, GROUP, SPLIT)


@triton.jit
def dequantize_p32(words, scale, n, k, y, BITS: tl.constexpr, GROUP: tl.constexpr):
    """Grid: (n / 64, k / 256)."""
    FIELDS: tl.constexpr = 16 // BITS
    half = n // 2
    lane = tl.arange(0, 16)
    row = tl.program_id(0) * 64 + tl.arange(0, 32)
    block = tl.program_id(1)
    word_at = words + lane[:, None] * half + (tl.program_id(0) * 32 + tl.arange(0, 32))[None, :]
    groups = k // GROUP if GROUP > 0 else 1
    rest = tl.zeros((16, 32), tl.int32)
    for slot in tl.static_range(16):
        if slot < FIELDS * BITS:
            if slot % FIELDS == 0:
                word = tl.load(word_at + (block * BITS + slot // FIELDS) * 16 * half)
                if FIELDS * BITS < 16:
                    rest |= (word >> (FIELDS * BITS) & 0x10001) << (slot // FIELDS)
            code = word >> (slot % FIELDS * BITS)
        else:
            code = rest
        column = block * 256 + slot * 16
        group = column // GROUP if GROUP > 0 else 0
        for side in tl.static_range(2):
            value = ((code >> (16 * side)) & ((1 << BITS) - 1)) - (1 << (BITS - 1))
            n_at = row + 32 * side
            factor = tl.load(scale + n_at * groups + group)
            at = y + n_at.to(tl.int64)[None, :] * k + (column + lane)[:, None]
            tl.store(at, (value.to(tl.float32) * factor[None, :]).to(y.dtype.element_ty))


@triton.jit
def dequantize_rows(words, scale, n, k, y, BITS: tl.constexpr, GROUP: tl.constexpr):
    """Grid: (ceil(n / 64), ceil(k / 64))."""
    row = tl.program_id(0) * 64 + tl.arange(0, 64)
    start = tl.program_id(1) * 64
    ks = start + tl.arange(0, 64)
    groups = k // GROUP if GROUP > 0 else 1
    value = _row_codes(words, start, tl.arange(0, 64), row, n, k, BITS) - (1 << (BITS - 1))
    inside = (ks < k)[:, None] & (row < n)[None, :]
    group = ks // GROUP if GROUP > 0 else ks * 0
    factor = tl.load(scale + row[None, :] * groups + group[:, None], mask=inside, other=0.0)
    at = y + row.to(tl.int64)[None, :] * k + ks[:, None]
    tl.store(at, (value.to(tl.float32) * factor).to(y.dtype.element_ty), mask=inside)


LINEAR: Mapping[str, Any] = MappingProxyType({"p32": linear_p32, "rows": linear_rows})
DEQUANTIZE: Mapping[str, Any] = MappingProxyType({"p32": dequantize_p32, "rows": dequantize_rows})
"""The kernels by the id of their layout."""

DEQUANTIZE_BLOCK: Mapping[str, tuple[int, int]] = MappingProxyType({"p32": (64, 256), "rows": (64, 64)})
"""Rows and columns of the weight that one program of a dequantize kernel writes, by layout."""
