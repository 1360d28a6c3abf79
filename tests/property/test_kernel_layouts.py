"""Laws of device layouts: lossless, exactly as wide as they say, and what their definition says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qvec_deploy.errors import IncompatibleError, IntegrityError
from qvec_deploy.packed import pack_codes
from qvec_deploy.runtimes.kernels.layouts import K_BLOCK, LAYOUTS, N_BLOCK, choose_layout, layout_named

LAW = settings(derandomize=True, deadline=None, max_examples=40)
P32, ROWS = LAYOUTS["p32"], LAYOUTS["rows"]

VITS = {  # width and hidden width of the MLP
    "Ti": (192, 768),
    "S": (384, 1536),
    "M": (512, 2048),
    "B": (768, 3072),
    "L": (1024, 4096),
    "SO400M": (1152, 4304),
    "H": (1280, 5120),
    "g": (1408, 6144),
    "G": (1664, 8192),
}
SHAPES = sorted({shape for w, h in VITS.values() for shape in [(3 * w, w), (w, w), (h, w), (w, h), (2 * w, w)]})


def codes_of(rows: int, columns: int, bits: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(-(1 << (bits - 1)), 1 << (bits - 1), (rows, columns), dtype=np.int8)


@given(st.integers(1, 3), st.integers(1, 3), st.sampled_from([2, 3, 4]), st.integers(0, 99), st.booleans())
@LAW
def test_p32_is_lossless_at_exactly_its_bits(n: int, k: int, bits: int, seed: int, turned: bool) -> None:
    codes = codes_of(N_BLOCK * n, K_BLOCK * k, bits, seed)
    given_codes = np.asfortranarray(codes) if turned else codes
    words = P32.pack(given_codes, bits)
    assert words.shape == P32.words_shape(*codes.shape, bits)
    assert words.nbytes * 8 == codes.size * bits
    assert (P32.unpack(words, bits, codes.shape) == codes).all()
    assert (P32.pack(P32.unpack(words, bits, codes.shape), bits) == words).all()


@given(st.integers(1, 70), st.integers(1, 300), st.integers(2, 8), st.integers(0, 99))
@LAW
def test_rows_is_lossless_and_the_canonical_stream_turned(rows: int, columns: int, bits: int, seed: int) -> None:
    codes = codes_of(rows, columns, bits, seed)
    words = ROWS.pack(codes, bits)
    assert words.shape == ROWS.words_shape(rows, columns, bits)
    assert words.flags.c_contiguous
    assert (pack_codes(codes, bits) == words.T).all()
    assert (ROWS.unpack(words, bits, codes.shape) == codes).all()


def test_any_words_are_a_weight_in_p32() -> None:
    words = np.random.default_rng(0).integers(-(1 << 31), 1 << 31, (96, 64), dtype=np.int64).astype(np.int32)
    assert (P32.pack(P32.unpack(words, 3, (128, 512)), 3) == words).all()


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_p32_is_what_its_definition_says(bits: int) -> None:
    codes = codes_of(128, 512, bits, 1)
    words = P32.pack(codes, bits).view(np.uint32)
    fields = 16 // bits
    generator = np.random.default_rng(2)
    for n, k in zip(generator.integers(0, 128, 400), generator.integers(0, 512, 400), strict=True):
        (nb, half, c), (kb, slot, r) = (n // 64, n % 64 // 32, n % 32), (k // 256, k % 256 // 16, k % 16)
        column = words[:, nb * 32 + c]
        if slot < fields * bits:
            field = int(column[(kb * bits + slot // fields) * 16 + r]) >> (16 * half + bits * (slot % fields))
        else:
            field = sum((int(column[(kb * 3 + t) * 16 + r]) >> (16 * half + 15) & 1) << t for t in range(3))
        assert field % (1 << bits) == codes[n, k] + (1 << (bits - 1))


def test_a_worked_example_of_p32() -> None:
    codes = np.full((64, 256), -4, np.int8)  # unsigned 0
    codes[0, 16 * 6] = 3  # unsigned 7: slot 6 is the second field of the second word
    codes[33, 16 * 15 + 2] = 1  # unsigned 5, slot 15: bit 31 of the first and the third word
    words = P32.pack(codes, 3).view(np.uint32)
    found = {(int(row), int(column)): hex(words[row, column]) for row, column in np.argwhere(words)}
    assert found == {(16, 0): "0x38", (2, 1): "0x80000000", (34, 1): "0x80000000"}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_vit_weight_has_a_layout_with_little_padding(shape: tuple[int, int]) -> None:
    layout = choose_layout(*shape, 3)
    assert layout.id == ("p32" if shape[1] % 256 == 0 and shape[0] % 64 == 0 else "rows")
    words = layout.words_shape(*shape, 3)
    assert words[0] * words[1] * 32 <= 1.05 * 3 * shape[0] * shape[1]


@pytest.mark.parametrize(
    ("shape", "bits", "group", "expected"),
    [
        ((64, 256), 3, 0, "p32"),
        ((64, 256), 3, 16, "p32"),
        ((64, 512), 4, 256, "p32"),
        ((64, 1024), 2, 512, "p32"),
        ((64, 768), 3, 96, "rows"),  # neither divides a block nor is a multiple of one
        ((64, 768), 3, 384, "rows"),
        ((64, 256), 5, 0, "rows"),
        ((65, 256), 3, 0, "rows"),
        ((192, 192), 3, 48, "rows"),
        ((1, 1), 8, 0, "rows"),
    ],
)
def test_the_fastest_layout_that_takes_a_weight_is_chosen(
    shape: tuple[int, int], bits: int, group: int, expected: str
) -> None:
    assert choose_layout(*shape, bits, group).id == expected


@pytest.mark.parametrize("group", [8, 24, 100])
def test_groups_that_kernels_cannot_take_are_refused(group: int) -> None:
    with pytest.raises(IncompatibleError, match=f"in groups of {group}"):
        choose_layout(64, 2400 if group == 100 else 480, 3, group)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=lambda layout: layout.id)
def test_codes_out_of_range_are_refused(layout: object) -> None:
    codes = np.zeros((64, 256), np.int8)
    codes[3, 7] = 4
    with pytest.raises(ValueError, match="do not fit 3 bits"):
        layout.pack(codes, 3)  # type: ignore[attr-defined]


def test_a_shape_that_p32_does_not_take_is_refused() -> None:
    with pytest.raises(ValueError, match="does not take int8 codes of shape"):
        P32.pack(np.zeros((64, 384), np.int8), 3)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=lambda layout: layout.id)
@pytest.mark.parametrize(("shape", "dtype"), [((47, 32), np.int32), ((48, 32), np.int64)])
def test_words_of_another_shape_or_type_are_refused(layout: object, shape: tuple[int, int], dtype: type) -> None:
    with pytest.raises(IntegrityError, match="words are"):
        layout.unpack(np.zeros(shape, dtype), 3, (64, 256))  # type: ignore[attr-defined]


def test_padding_that_is_not_code_0_is_refused() -> None:
    words = ROWS.pack(np.zeros((4, 40), np.int8), 3)
    words[-1, 2] ^= 1 << 30
    with pytest.raises(IntegrityError, match="padded with something else"):
        ROWS.unpack(words, 3, (4, 40))


def test_another_version_of_a_layout_is_refused() -> None:
    assert layout_named("p32", 1) is P32
    with pytest.raises(IncompatibleError, match="'p32' version 2; this version: p32 version 1"):
        layout_named("p32", 2)
