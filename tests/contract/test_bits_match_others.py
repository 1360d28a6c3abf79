"""Our bytes are the bytes that others write: numpy, GPTQ, ONNX, ONNX Runtime. A round trip cannot show that."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx.parser
import onnxruntime
import pytest
from onnx import numpy_helper

from qvec_deploy.packed import pack_codes
from qvec_deploy.tensors import Float32, Int8, Int32

ROWS = 6


def random_codes(bits: int, columns: int) -> Int8:
    """Every code occurs, the lowest and the highest too."""
    low, high = -(1 << bits - 1), (1 << bits - 1) - 1
    codes = np.random.default_rng(bits).integers(low, high + 1, (ROWS, columns), dtype=np.int8)
    codes[0, :2] = low, high
    return codes


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("columns", [32, 64, 96, 45])
def test_numpy_packbits(bits: int, columns: int) -> None:
    codes = np.zeros((ROWS, -(-columns // 32) * 32), np.int8)
    codes[:, :columns] = random_codes(bits, columns)
    fields = (codes.astype(np.int16) + (1 << bits - 1)).astype(np.uint8)
    stream = np.unpackbits(fields[:, :, None], axis=2, count=bits, bitorder="little")
    expected = np.packbits(stream.reshape(ROWS, -1), axis=1, bitorder="little")
    np.testing.assert_array_equal(pack_codes(codes[:, :columns], bits).view(np.uint8), expected)


def gptq_pack_3bit(fields: Int32) -> Int32:
    """GPTQ's `Quant3Linear.pack`, word by word: 10 codes, 1 split, 10, 1 split, 10 codes in three uint32.

    Args:
        fields: (codes, rows) uint32, as GPTQ has them: along the input first.

    Returns:
        (words, rows) int32, as its `qweight`.
    """
    words = np.zeros((len(fields) * 3 // 32, fields.shape[1]), np.uint32)
    for block in range(len(fields) // 32):
        u, w = fields[32 * block :][:32].astype(np.uint32), words[3 * block :][:3]
        for i in range(10):
            w[0] |= u[i] << np.uint32(3 * i)
            w[1] |= u[11 + i] << np.uint32(3 * i + 1)
            w[2] |= u[22 + i] << np.uint32(3 * i + 2)
        w[0] |= u[10] << np.uint32(30)  # two bits of it; the third opens the next word
        w[1] |= u[10] >> np.uint32(2) & np.uint32(1)
        w[1] |= u[21] << np.uint32(31)  # one bit of it; the other two open the next word
        w[2] |= u[21] >> np.uint32(1) & np.uint32(3)
    return words.view(np.int32)


def test_gptq_three_bits() -> None:
    codes = random_codes(3, 160)
    np.testing.assert_array_equal(pack_codes(codes, 3).T, gptq_pack_3bit(codes.T.astype(np.int32) + 4))


@pytest.mark.parametrize(
    ("bits", "unsigned", "signed"),
    [(2, ml_dtypes.uint2, ml_dtypes.int2), (4, ml_dtypes.uint4, ml_dtypes.int4), (8, np.uint8, np.int8)],
)
def test_onnx_integers(bits: int, unsigned: type, signed: type) -> None:
    codes = random_codes(bits, 64)
    ours = pack_codes(codes, bits).tobytes()
    fields = (codes.astype(np.int16) + (1 << bits - 1)).astype(unsigned)
    assert ours == numpy_helper.from_array(fields).raw_data
    # ONNX's signed integers are two's complement, so only the top bit of every field differs.
    top = np.packbits(([0] * (bits - 1) + [1]) * (8 // bits), bitorder="little")[0]
    twos = np.frombuffer(numpy_helper.from_array(codes.astype(signed)).raw_data, np.uint8)
    assert ours == (twos ^ top).tobytes()


def matmul_nbits(payload: Int32, bits: int, columns: int) -> Float32:
    """The weights that ONNX Runtime's MatMulNBits takes our words for, at scale 1: an identity times them."""
    block = 32
    model = onnx.parser.parse_model(f"""
        <ir_version: 10, opset_import: ["": 21, "com.microsoft": 1]>
        graph (float[{columns}, {columns}] x, uint8[{ROWS}, {columns // block}, {block * bits // 8}] q,
               float[{ROWS * columns // block}] s) => (float[{columns}, {ROWS}] y) {{
            y = com.microsoft.MatMulNBits <K = {columns}, N = {ROWS}, bits = {bits}, block_size = {block}> (x, q, s)
        }}""")
    # The kernel takes constants only.
    blocks = payload.view(np.uint8).reshape(ROWS, columns // block, block * bits // 8)
    scales = np.ones(ROWS * columns // block, np.float32)
    model.graph.initializer.extend([numpy_helper.from_array(blocks, "q"), numpy_helper.from_array(scales, "s")])
    del model.graph.input[1:]
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (product,) = session.run(None, {"x": np.eye(columns, dtype=np.float32)})
    return np.asarray(product, np.float32).T


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_onnxruntime_matmul_nbits(bits: int) -> None:
    codes = random_codes(bits, 64)
    np.testing.assert_array_equal(matmul_nbits(pack_codes(codes, bits), bits, 64), codes)
