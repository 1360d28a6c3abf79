"""Laws of the header: decoding inverts encoding, and every byte of the data belongs to exactly one tensor."""

from __future__ import annotations

import math
import string

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from qvec_deploy.errors import IntegrityError
from qvec_deploy.packed import VERSION, Entry, Layout
from qvec_deploy.packed.file_layout import decode, encode, place
from qvec_deploy.tensors import Scheme

LAW = settings(derandomize=True, deadline=None, max_examples=60)
SIZES = st.integers(1, 5000)
NAMES = st.text('abAB.0"\\ /', min_size=1, max_size=12) | st.text(string.printable[:95], min_size=1, max_size=12)


@st.composite
def matrices(draw: st.DrawFn) -> Entry:
    bits, rows, columns = draw(st.integers(2, 8)), draw(SIZES), draw(SIZES)
    group_size = draw(st.integers(1, 64))
    clip = draw(st.floats(0, 1, exclude_min=True))
    scheme = draw(
        st.sampled_from(
            [
                Scheme(bits, "channel", clip=clip),
                Scheme(bits, "tensor", method="mse"),
                Scheme(bits, "group", group_size=group_size),
            ]
        )
    )
    height = draw(st.integers(1, 9))
    shape = (rows, columns * group_size)
    return Entry(draw(st.sampled_from([shape, (*shape, height, 2)])), scheme)


SHAPES = st.lists(SIZES, max_size=8).map(tuple).filter(lambda shape: math.prod(shape) < 1 << 58)
FLOATS = st.builds(Entry, SHAPES, st.none(), st.sampled_from(["F32", "F16"]))
LAYOUTS = st.dictionaries(NAMES, matrices() | FLOATS, max_size=8)


@given(LAYOUTS)
@LAW
def test_decode_inverts_encode(layout: Layout) -> None:
    try:
        header = encode(layout)
    except IntegrityError as error:  # a drawn name took the place of another one's scale
        assume("two tensors are called" not in error.message)
        raise
    assert len(header) % 8 == 0
    assert int.from_bytes(header[:8], "little") == len(header) - 8
    convolutions = any(entry.scheme is not None and len(entry.shape) == 4 for entry in layout.values())
    assert decode(header[8:]) == (dict(sorted(layout.items())), VERSION if convolutions else "1.0.0")


@given(st.dictionaries(NAMES.map(lambda name: name + "!"), matrices() | FLOATS, max_size=8))
@LAW
def test_tensors_lie_end_to_end_and_aligned(layout: Layout) -> None:
    end = 0
    for stored in place(layout).values():
        assert stored.offset == end
        assert stored.offset % {"F32": 4, "I32": 4, "F16": 2}[stored.dtype] == 0
        end += stored.size
    assert end >= sum(1 for _ in layout)
