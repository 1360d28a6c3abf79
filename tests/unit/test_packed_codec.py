"""What the codec refuses."""

from __future__ import annotations

import re

import numpy as np
import pytest

from qvec_deploy.errors import IntegrityError
from qvec_deploy.packed import pack_codes, unpack, unpack_codes, words_per_row
from qvec_deploy.packed.codec import check_padding
from qvec_deploy.tensors import PackedTensor, Scheme


@pytest.mark.parametrize("bits", [-1, 0, 1, 9, 64])
def test_other_widths_are_refused(bits: int) -> None:
    with pytest.raises(ValueError, match=f"^{bits} bits"):
        pack_codes(np.zeros((1, 32), np.int8), bits)
    with pytest.raises(ValueError, match=f"^{bits} bits"):
        unpack_codes(np.zeros((1, max(bits, 0)), np.int32), bits, 32)


@pytest.mark.parametrize("bits", range(2, 8))
@pytest.mark.parametrize("position", [0, 31, 32, 39])
def test_codes_out_of_range_are_refused(bits: int, position: int) -> None:
    for code in (-(1 << bits - 1) - 1, 1 << bits - 1, -128, 127):
        codes = np.zeros((3, 40), np.int8)
        codes[1, position] = code
        with pytest.raises(ValueError, match=f"do not fit {bits} bits"):
            pack_codes(codes, bits)


@pytest.mark.parametrize(
    "codes",
    [np.zeros((2, 32), np.int16), np.zeros((2, 32), np.uint8), np.zeros(32, np.int8), np.zeros((1, 1, 1), np.int8)],
)
def test_what_is_no_matrix_of_int8_is_refused(codes: np.ndarray) -> None:
    with pytest.raises(ValueError, match="not an int8 matrix"):
        pack_codes(codes, 3)


@pytest.mark.parametrize(
    "payload",
    [np.zeros((2, 5), np.int32), np.zeros((2, 7), np.int32), np.zeros((2, 6), np.uint32), np.zeros(6, np.int32)],
    ids=["short", "long", "uint32", "vector"],
)
def test_other_payloads_are_refused(payload: np.ndarray) -> None:
    with pytest.raises(IntegrityError, match=r"rows of 40 codes of 3 bits") as caught:
        unpack_codes(payload, 3, 40)
    assert "6 words" in caught.value.hint


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("columns", [1, 31, 33, 63])
def test_any_bit_of_the_padding_that_differs_is_found(bits: int, columns: int) -> None:
    payload = pack_codes(np.zeros((2, columns), np.int8), bits)
    check_padding(payload, bits, columns)
    for position in range(columns * bits, words_per_row(columns, bits) * 32):
        damaged = payload.copy()
        damaged.view(np.uint32)[1, position // 32] ^= np.uint32(1 << position % 32)
        for look in (unpack_codes, check_padding):
            with pytest.raises(IntegrityError, match="padded with something else"):
                look(damaged, bits, columns)


def test_rows_of_the_payload_are_those_of_the_shape() -> None:
    tensor = PackedTensor(np.zeros((2, 3), np.int32), np.ones((3, 1), np.float32), Scheme(3, "channel"), (3, 32))
    with pytest.raises(IntegrityError, match=re.escape("2 rows for a weight of shape (3, 32)")):
        unpack(tensor)


@pytest.mark.parametrize(("rows", "columns"), [(0, 32), (3, 0), (0, 5)])
def test_empty_matrices_are_empty(rows: int, columns: int) -> None:
    payload = pack_codes(np.zeros((rows, columns), np.int8), 3)
    assert payload.shape == (rows, words_per_row(columns, 3))
    assert unpack_codes(payload, 3, columns).shape == (rows, columns)
