"""What the plugin `QvecLinear` computes, as an ONNX function: for graphs that run without TensorRT."""

from __future__ import annotations

import onnx
from onnx import TensorProto

from qvec_deploy.runtimes.graph import DOMAIN, OPSET
from qvec_deploy.runtimes.graph.operator import OPERATOR, code_rows


def device_function(layout: str, bits: int) -> onnx.FunctionProto:
    """What the plugin computes on words in a device layout, in standard operators and float32 between its ends."""
    function = onnx.parser.parse_function(f"""
    <opset_import: ["" : {OPSET}], domain: "{DOMAIN}">
    {OPERATOR} <K, N> (x_half, device_words, scale, bias_half) => (y_half)
    {{
        x = Cast <to = {TensorProto.FLOAT}> (x_half)
        bias = Cast <to = {TensorProto.FLOAT}> (bias_half)
        {_unpack_rows(bits) if layout == "rows" else _unpack_p32(bits)}
        last = Constant <value_ints = [-1]> ()
        scale_shape = Shape (scale)
        grouped_shape = Concat <axis = 0> (scale_shape, last)
        grouped = Reshape (codes, grouped_shape)
        steps = Unsqueeze (scale, last)
        scaled = Mul (grouped, steps)
        row_wise = Constant <value_ints = [0, -1]> ()
        weight = Reshape (scaled, row_wise)
        transposed = Transpose <perm = [1, 0]> (weight)
        product = MatMul (x, transposed)
        y = Add (product, bias)
        y_half = Cast <to = {TensorProto.FLOAT16}> (y)
    }}
    """)
    function.overload = f"{layout}_{bits}"
    return function


def _unpack_rows(bits: int) -> str:
    """Lines that make `codes`, (N, K) float32, of the canonical stream's words, transposed."""
    made = "\n".join(code_rows("payload", bits, whole=False, at_top=False))
    return f"""
        words_i = Transpose <perm = [1, 0]> (device_words)
        words = Cast <to = {TensorProto.UINT32}> (words_i)
        byte_axis = Constant <value_ints = [-1]> ()
        word_column = Unsqueeze (words, byte_axis)
        byte_shift = Constant <value = uint32[4] {{0, 8, 16, 24}}> ()
        shifted = BitShift <direction = "RIGHT"> (word_column, byte_shift)
        byte_mask = Constant <value = uint32 {{255}}> ()
        masked = BitwiseAnd (shifted, byte_mask)
        stream = Cast <to = {TensorProto.UINT8}> (masked)
        unit_shape = Constant <value_ints = [0, -1, {bits}]> ()
        payload = Reshape (stream, unit_shape)
        {made}
        by_column = Cast <to = {TensorProto.FLOAT}> (unsigned)
        offset = Constant <value_float = {float(1 << (bits - 1))}> ()
        signed = Sub (by_column, offset)
        codes = Transpose <perm = [1, 0]> (signed)
    """


def _unpack_p32(bits: int) -> str:
    """Lines that make `codes`, (N, K) float32, of words in layout p32 (see kernels/layouts.py)."""
    per, spare = 16 // bits, 16 % bits
    slots = range(per * bits)
    word_of, shift_of = ", ".join(str(s // per) for s in slots), ", ".join(str(bits * (s % per)) for s in slots)
    u32, i32 = TensorProto.UINT32, TensorProto.INT32
    last_slot = f"""
        top_i = Constant <value_int = 15> ()
        top = Cast <to = {u32}> (top_i)
        top_bits = BitShift <direction = "RIGHT"> (halves, top)
        place_i = Constant <value_ints = [{", ".join(map(str, range(bits)))}]> ()
        place_column = Unsqueeze (place_i, minus_one)
        place = Cast <to = {u32}> (place_column)
        placed = BitShift <direction = "LEFT"> (top_bits, place)
        placed_i = Cast <to = {i32}> (placed)
        word_axis = Constant <value_ints = [3]> ()
        sixteenth_i = ReduceSum <keepdims = 1> (placed_i, word_axis)
        sixteenth = Cast <to = {u32}> (sixteenth_i)
        unsigned = Concat <axis = 3> (fields, sixteenth)
    """
    return f"""
        minus_one = Constant <value_ints = [-1]> ()
        stored = Cast <to = {u32}> (device_words)
        turned = Transpose <perm = [1, 0]> (stored)
        apart = Constant <value_ints = [0, -1, {bits}, 16]> ()
        blocks = Reshape (turned, apart)
        first = Constant <value_ints = [0]> ()
        low_mask_i = Constant <value_int = 65535> ()
        low_mask = Cast <to = {u32}> (low_mask_i)
        low_half = BitwiseAnd (blocks, low_mask)
        sixteen_i = Constant <value_int = 16> ()
        sixteen = Cast <to = {u32}> (sixteen_i)
        high_half = BitShift <direction = "RIGHT"> (blocks, sixteen)
        low = Unsqueeze (low_half, first)
        high = Unsqueeze (high_half, first)
        halves = Concat <axis = 0> (low, high)
        word_of = Constant <value_ints = [{word_of}]> ()
        by_slot = Gather <axis = 3> (halves, word_of)
        shift_i = Constant <value_ints = [{shift_of}]> ()
        shift_column = Unsqueeze (shift_i, minus_one)
        shift = Cast <to = {u32}> (shift_column)
        shifted = BitShift <direction = "RIGHT"> (by_slot, shift)
        mask_i = Constant <value_int = {(1 << bits) - 1}> ()
        mask = Cast <to = {u32}> (mask_i)
        fields = BitwiseAnd (shifted, mask)
        {last_slot if spare else "unsigned = Identity (fields)"}
        columns_i = Constant <value_int: int = @K> ()
        columns = Unsqueeze (columns_i, first)
        by_pair = Constant <value_ints = [2, -1, 32]> ()
        pair_shape = Concat <axis = 0> (by_pair, columns)
        paired = Reshape (unsigned, pair_shape)
        in_order = Transpose <perm = [1, 0, 2, 3]> (paired)
        row_shape = Concat <axis = 0> (minus_one, columns)
        rows = Reshape (in_order, row_shape)
        as_float = Cast <to = {TensorProto.FLOAT}> (rows)
        offset = Constant <value_float = {float(1 << (bits - 1))}> ()
        codes = Sub (as_float, offset)
    """
