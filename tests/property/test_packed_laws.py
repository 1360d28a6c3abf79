"""Laws of the codec: nothing is lost, at any width and shape, and a row depends on nothing but itself."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qvec_deploy.packed import codec, pack, pack_codes, unpack, unpack_codes, words_per_row
from qvec_deploy.tensors import MAX_BITS, MIN_BITS, Int8, QuantizedTensor, Scheme

WIDTHS = range(MIN_BITS, MAX_BITS + 1)
LAW = settings(derandomize=True, deadline=None, max_examples=80)


@st.composite
def coded(draw: st.DrawFn) -> tuple[Int8, int]:
    """A matrix of codes, ragged or not, and its width."""
    bits = draw(st.sampled_from(WIDTHS))
    shape = draw(st.tuples(st.integers(1, 9), st.integers(1, 140)))
    codes = st.integers(-(1 << bits - 1), (1 << bits - 1) - 1)
    return draw(hnp.arrays(np.int8, shape, elements=codes)), bits


@pytest.fixture(scope="module", params=[64, codec._CHUNK], ids=["small-chunks", "real-chunks"], autouse=True)
def chunk(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every law also with chunks of 64 codes, so that small matrices meet the seams between chunks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codec, "_CHUNK", request.param)
        yield


def random_codes(bits: int, shape: tuple[int, int]) -> Int8:
    generator = np.random.default_rng([bits, *shape])
    return generator.integers(-(1 << bits - 1), 1 << bits - 1, shape, dtype=np.int8)


@given(coded())
@LAW
def test_unpack_inverts_pack(case: tuple[Int8, int]) -> None:
    codes, bits = case
    payload = pack_codes(codes, bits)
    assert payload.dtype == np.int32
    assert payload.shape == (len(codes), words_per_row(codes.shape[1], bits))
    np.testing.assert_array_equal(unpack_codes(payload, bits, codes.shape[1]), codes)


@given(coded())
@LAW
def test_pack_inverts_unpack(case: tuple[Int8, int]) -> None:
    payload = pack_codes(*case)
    codes = unpack_codes(payload, case[1], case[0].shape[1])
    np.testing.assert_array_equal(pack_codes(codes, case[1]), payload)


@given(coded())
@LAW
def test_rows_pack_alone_as_together(case: tuple[Int8, int]) -> None:
    codes, bits = case
    alone = [pack_codes(codes[row : row + 1], bits) for row in range(len(codes))]
    np.testing.assert_array_equal(np.concatenate(alone), pack_codes(codes, bits))


@given(coded())
@LAW
def test_padding_is_code_zero(case: tuple[Int8, int]) -> None:
    codes, bits = case
    padded = np.zeros((len(codes), -(-codes.shape[1] // codec.BLOCK) * codec.BLOCK), np.int8)
    padded[:, : codes.shape[1]] = codes
    np.testing.assert_array_equal(pack_codes(padded, bits), pack_codes(codes, bits))


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("shape", [(1, 1), (5, 32), (7, 31), (3, 33), (9, 1024), (300, 197), (2, 70_001)])
def test_every_width_round_trips(bits: int, shape: tuple[int, int]) -> None:
    codes = random_codes(bits, shape)
    np.testing.assert_array_equal(unpack_codes(pack_codes(codes, bits), bits, shape[1]), codes)


@pytest.mark.parametrize("bits", WIDTHS)
def test_extreme_codes_round_trip(bits: int) -> None:
    low, high = -(1 << bits - 1), (1 << bits - 1) - 1
    codes = np.array([[low] * 40, [high] * 40, [low, high] * 20], np.int8)
    np.testing.assert_array_equal(unpack_codes(pack_codes(codes, bits), bits, 40), codes)


@pytest.mark.parametrize("bits", WIDTHS)
def test_memory_order_of_codes_does_not_matter(bits: int) -> None:
    codes = random_codes(bits, (96, 64))
    np.testing.assert_array_equal(pack_codes(codes.T, bits), pack_codes(np.ascontiguousarray(codes.T), bits))
    payload = pack_codes(codes, bits)
    np.testing.assert_array_equal(unpack_codes(np.asfortranarray(payload), bits, 64), codes)


@pytest.mark.parametrize("columns", [64, 70])
def test_the_input_is_left_alone(columns: int) -> None:
    codes = random_codes(3, (4, columns))
    codes.flags.writeable = False
    payload = pack_codes(codes, 3)
    payload.flags.writeable = False
    np.testing.assert_array_equal(unpack_codes(payload, 3, columns), codes)


@pytest.mark.parametrize("columns", [64, 70])
def test_a_tensor_keeps_its_scale_scheme_and_shape(columns: int) -> None:
    tensor = QuantizedTensor(random_codes(3, (4, columns)), np.ones((4, 1), np.float32), Scheme(3, "channel"))
    packed = pack(tensor)
    assert packed.shape == (4, columns)
    assert packed.scheme == tensor.scheme
    back = unpack(packed)
    np.testing.assert_array_equal(back.codes, tensor.codes)
    np.testing.assert_array_equal(back.dequantize(), tensor.dequantize())
