"""What the plugin `QvecLinear` computes, as an ONNX function: for graphs that run without TensorRT."""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper

from qvec_deploy.runtimes.graph import DOMAIN
from qvec_deploy.runtimes.graph.stored import OPERATOR, operator_function


def device_function(layout: str, bits: int) -> onnx.FunctionProto:
    """What the plugin computes on words in a device layout, in standard operators and float32 between its ends.

    The tail, from codes to products, is the stored operator's own.
    """
    meaning = operator_function(bits)
    (codes_at,) = [index for index, node in enumerate(meaning.node) if "codes" in node.output]
    if layout == "rows":  # the canonical stream, transposed
        head = [
            helper.make_node("Transpose", ["device_words"], ["qweight"], perm=[1, 0]),
            *meaning.node[: codes_at + 1],
        ]
    else:
        head = list(_unpack_p32(bits).node)
    wide = [helper.make_node("Cast", [f"{name}_half"], [name], to=TensorProto.FLOAT) for name in ("x", "bias")]
    narrow = helper.make_node("Cast", ["y"], ["y_half"], to=TensorProto.FLOAT16)
    return helper.make_function(
        DOMAIN,
        OPERATOR,
        ["x_half", "device_words", "scale", "bias_half"],
        ["y_half"],
        [*wide, *_constants_first(head), *meaning.node[codes_at + 1 :], narrow],
        list(meaning.opset_import),
        ["K", "N"],
        overload=f"{layout}_{bits}",
    )


def _constants_first(head: list[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """The tail reads constants of the stored operator's head: `last` and `flat`."""
    made = {name for node in head for name in node.output}
    wanted = {"last": [-1], "flat": [0, -1]}
    return [
        *(helper.make_node("Constant", [], [name], value_ints=v) for name, v in wanted.items() if name not in made),
        *head,
    ]


def _unpack_p32(bits: int) -> onnx.FunctionProto:
    """Words of layout p32 (see kernels/layouts.py) to `codes`, (N, K) float32."""
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
    return onnx.parser.parse_function(f"""
    <opset_import: ["" : 20], domain: "{DOMAIN}">
    unpack <K, N> (device_words) => (codes)
    {{
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
    }}
    """)
