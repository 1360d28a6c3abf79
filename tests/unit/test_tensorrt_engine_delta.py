"""Engines as differences to their graphs: every layout, what is no match, and deltas that somebody has touched."""

from __future__ import annotations

import lzma
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from qvec_deploy.errors import IncompatibleError, IntegrityError
from qvec_deploy.io.files import canonical_json
from qvec_deploy.runtimes.tensorrt.byte_search import find_all
from qvec_deploy.runtimes.tensorrt.engine_delta import MAGIC, decode, encode, read_header

GENERATOR = np.random.default_rng(0)
HALF = GENERATOR.normal(size=(96, 64)).astype(np.float16)
FILTERS = GENERATOR.normal(size=(32, 3, 4, 4)).astype(np.float16)
CODES = GENERATOR.integers(0, 256, (48, 24)).astype(np.uint8)  # 48 x 48 of 4 bits
FLOAT8 = GENERATOR.bytes(640)
NOISE = GENERATOR.bytes(2000)


def _model(**more: TensorProto) -> onnx.ModelProto:
    tensors = {
        "half": numpy_helper.from_array(HALF, "half"),
        "filters": numpy_helper.from_array(FILTERS, "filters"),
        "int4": TensorProto(name="int4", data_type=TensorProto.INT4, dims=(48, 48), raw_data=CODES.tobytes()),
        "float8": TensorProto(name="float8", data_type=TensorProto.FLOAT8E4M3FN, dims=(40, 16), raw_data=FLOAT8),
        "zeros": numpy_helper.from_array(np.zeros(900, np.float32), "zeros"),
        "few": numpy_helper.from_array(np.arange(3), "few"),
        **more,
    }
    return helper.make_model(helper.make_graph([], "g", [], [], list(tensors.values())))


MODEL = _model()


def _nibbles_transposed() -> bytes:
    values = np.stack([CODES & 15, CODES >> 4], axis=-1).reshape(48, 48).T.reshape(-1)
    return (values[::2] | values[1::2] << 4).astype(np.uint8).tobytes()


def _filled(multiple: int) -> bytes:
    inner = np.zeros((32, 4, 4, multiple), np.float16)
    inner[..., :3] = FILTERS.transpose(0, 2, 3, 1)
    return inner.tobytes()


PIECES: dict[str, tuple[str, bytes]] = {
    "as it is": ("half", HALF.tobytes()),
    "transposed": ("half", HALF.T.tobytes()),
    "filters": ("filters", FILTERS.tobytes()),
    "channels last": ("filters", FILTERS.transpose(0, 2, 3, 1).tobytes()),
    "channels first": ("filters", FILTERS.transpose(1, 2, 3, 0).tobytes()),
    "channels filled to 4": ("filters", _filled(4)),
    "channels filled to 8": ("filters", _filled(8)),
    "nibbles": ("int4", CODES.tobytes()),
    "nibbles transposed": ("int4", _nibbles_transposed()),
    "float8": ("float8", FLOAT8),
}


def _delta(engine: bytes, model: onnx.ModelProto = MODEL) -> bytes:
    delta = encode(model, engine)
    assert delta is not None
    return delta


@pytest.mark.parametrize("piece", PIECES)
@pytest.mark.parametrize("before", [0, 1, 64, 517])
def test_a_constant_is_found_wherever_it_lies(piece: str, before: int) -> None:
    name, data = PIECES[piece]
    engine = NOISE[:before] + data + NOISE[before:]
    delta = _delta(engine)
    (span,) = read_header(delta)[0].spans
    assert (span.name, span.offset) == (name, before)
    assert decode(MODEL, delta) == engine
    assert len(delta) < len(NOISE) + 500


def test_constants_beside_each_other_and_more_than_once() -> None:
    engine = b"".join(data for _, data in PIECES.values()) + HALF.tobytes() + NOISE + HALF.T.tobytes() + bytes(5000)
    delta = _delta(engine)
    assert len(read_header(delta)[0].spans) == len(PIECES) + 2
    assert decode(MODEL, delta) == engine and len(delta) < len(NOISE) + 1500


def test_constants_of_the_same_bytes_and_one_inside_another() -> None:
    twin, part = numpy_helper.from_array(HALF, "twin"), numpy_helper.from_array(HALF[:30], "part")
    model = _model(twin=twin, part=part)
    engine = NOISE + HALF.tobytes() + NOISE + HALF.tobytes()
    delta = _delta(engine, model)
    assert [span.name for span in read_header(delta)[0].spans] == ["half", "half"]
    assert decode(model, delta) == engine


@pytest.mark.parametrize(
    "engine",
    [b"", b"x", NOISE, bytes(10_000), HALF.tobytes()[:-1], HALF.tobytes()[1:], HALF.tobytes()[:400] * 20],
    ids=["empty", "short", "noise", "zeros", "no end", "no start", "a part again and again"],
)
def test_nothing_to_refer_to(engine: bytes) -> None:
    assert encode(MODEL, engine) is None


def test_a_delta_is_smaller_or_there_is_none() -> None:
    """The smallest constant takes fewer bytes than what is said about it."""
    small = numpy_helper.from_array(GENERATOR.normal(size=64).astype(np.float32), "small")
    assert encode(_model(small=small), small.raw_data) is None


def test_the_same_every_time() -> None:
    engine = NOISE + b"".join(data for _, data in PIECES.values())
    assert _delta(engine) == _delta(engine, _model())


def test_a_large_engine_takes_seconds_not_minutes() -> None:
    """Every place of every layout, in 20 MB: a naive search takes as long as it takes to give up."""
    big = numpy_helper.from_array(GENERATOR.normal(size=(1500, 3000)).astype(np.float16), "big")
    model = _model(big=big)
    engine = NOISE * 1500 + b"x" + numpy_helper.to_array(big).T.tobytes() + NOISE * 4000
    assert decode(model, _delta(engine, model)) == engine


ENGINE = NOISE[:300] + HALF.T.tobytes() + NOISE[300:] + _filled(4) + bytes(3000)
DELTA = _delta(ENGINE)
HEADER, START = read_header(DELTA)


def _with(rest: bytes | None = None, **changes: Any) -> bytes:
    """The delta with another header, or rest."""
    header = canonical_json({**HEADER.model_dump(mode="json"), **changes})
    return MAGIC + len(header).to_bytes(4, "little") + header + (DELTA[START:] if rest is None else rest)


SPANS = [span.model_dump(mode="json") for span in HEADER.spans]


def _spans(first: dict[str, Any], second: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    """The spans, changed."""
    return [{**SPANS[0], **first}, {**SPANS[1], **(second or {})}]


def test_a_delta_that_was_made_by_hand_is_as_good() -> None:
    assert _with() == DELTA and decode(MODEL, _with()) == ENGINE


REST = lzma.decompress(DELTA[START:])
HOSTILE: dict[str, bytes] = {
    "empty": b"",
    "no delta": b"PK\x03\x04" * 100,
    "magic alone": MAGIC,
    "header of 4 GB": MAGIC + b"\xff" * 4 + b"{}",
    "header is no JSON": MAGIC + (3).to_bytes(4, "little") + b"{{{",
    "header is a list": MAGIC + (2).to_bytes(4, "little") + b"[]",
    "deep header": MAGIC + (100_000).to_bytes(4, "little") + b"[" * 100_000,
    "more fields": _with(more=1),
    "no number": _with(engine_bytes="9"),
    "an engine of 1 EB": _with(engine_bytes=1 << 60),
    "an engine beyond 64 bits": _with(engine_bytes=1 << 80),
    "an engine of less than nothing": _with(engine_bytes=-1),
    "an engine too short": _with(engine_bytes=HEADER.engine_bytes - 1),
    "an engine too long": _with(engine_bytes=HEADER.engine_bytes + 1),
    "another hash": _with(engine_sha256="0" * 64),
    "a span before the start": _with(spans=_spans({"offset": -1})),
    "a span beyond the end": _with(spans=_spans({}, {"offset": 1 << 62})),
    "a span elsewhere": _with(spans=_spans({"offset": 299})),
    "spans that overlap": _with(spans=_spans({}, {"offset": 301})),
    "spans backwards": _with(spans=SPANS[::-1]),
    "spans without end": _with(
        engine_bytes=HEADER.engine_bytes + 20_000 * HALF.nbytes,
        spans=SPANS + [{**SPANS[0], "offset": HEADER.engine_bytes + at * HALF.nbytes} for at in range(20_000)],
    ),
    "axes that are not there": _with(spans=_spans({"axes": [0, 5]})),
    "an axis twice": _with(spans=_spans({"axes": [0, 0]})),
    "too few axes": _with(spans=_spans({"axes": [0]})),
    "negative axes": _with(spans=_spans({"axes": [-1, 0]})),
    "axes as they were": _with(spans=_spans({"axes": [0, 1], "last": 64})),
    "filled up beyond measure": _with(spans=_spans({}, {"last": 1 << 40})),
    "filled up with less than nothing": _with(spans=_spans({}, {"last": -8})),
    "cut": DELTA[:-20],
    "cut in the header": DELTA[: START - 5],
    "no rest": DELTA[:START],
    "more behind it": DELTA + b"x",
    "another stream behind it": DELTA + lzma.compress(b"x"),
    "a rest too long": _with(rest=lzma.compress(REST + b"x")),
    "a bomb": _with(rest=lzma.compress(bytes(100_000_000), preset=0)),
    "a rest too short": _with(rest=lzma.compress(REST[:-1])),
    "another rest": _with(rest=lzma.compress(bytes(len(REST)))),
    "a rest that wants much memory": _with(
        rest=lzma.compress(REST, filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 29}])
    ),
    "an old format": _with(rest=lzma.compress(REST, format=lzma.FORMAT_ALONE)),
}


@pytest.mark.parametrize("delta", HOSTILE.values(), ids=HOSTILE)
def test_an_altered_delta_is_refused(delta: bytes) -> None:
    with pytest.raises(IntegrityError, match="the engine's delta is damaged"):
        decode(MODEL, delta)


def test_every_flipped_byte_is_seen() -> None:
    for at in range(0, len(DELTA), 7):
        altered = bytearray(DELTA)
        altered[at] ^= 0x10
        with pytest.raises((IntegrityError, IncompatibleError)):
            decode(MODEL, bytes(altered))


def _other_values(tensor: TensorProto) -> None:
    tensor.raw_data = bytes([tensor.raw_data[0] ^ 1]) + tensor.raw_data[1:]


def _other_shape(tensor: TensorProto) -> None:
    tensor.dims[:] = [tensor.dims[1], tensor.dims[0]]


def _other_type(tensor: TensorProto) -> None:
    tensor.data_type = TensorProto.BFLOAT16


def _other_name(tensor: TensorProto) -> None:
    tensor.name = "other"


@pytest.mark.parametrize("change", [_other_values, _other_shape, _other_type, _other_name])
def test_another_graph_is_named_before_anything_is_rebuilt(
    change: Callable[[TensorProto], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = _model()
    change(model.graph.initializer[0])
    monkeypatch.setattr(lzma, "LZMADecompressor", None)
    with pytest.raises(IncompatibleError, match="a graph that is made otherwise here") as caught:
        decode(model, DELTA)
    assert "qvec-deploy compile BUNDLE" in caught.value.hint


def test_constants_that_it_does_not_refer_to_may_change() -> None:
    model = _model()
    _other_values(model.graph.initializer[2])
    assert decode(model, DELTA) == ENGINE


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_engine_comes_back(data: st.DataObject) -> None:
    """Constants of any shape in any order of axes, between any bytes."""
    seed = data.draw(st.integers(0, 2**16))
    generator = np.random.default_rng(seed)
    tensors, pieces = {}, [generator.bytes(data.draw(st.integers(0, 100)))]
    for index in range(data.draw(st.integers(1, 4))):
        shape = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
        kind = data.draw(st.sampled_from([np.int8, np.float16, np.float32, np.int64]))
        values = generator.integers(-4, 4, [32, *shape][:4]).astype(kind)
        tensors[f"t{index}"] = numpy_helper.from_array(values, f"t{index}")
        axes = data.draw(st.permutations(range(values.ndim)))
        pieces += [
            np.ascontiguousarray(values.transpose(axes)).tobytes(),
            generator.bytes(data.draw(st.integers(0, 9))),
        ]
    model, engine = _model(**tensors), b"".join(pieces)
    delta = encode(model, engine)
    if delta is not None:
        assert len(delta) < len(engine) and decode(model, delta) == engine


@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 300), st.integers(0, 2**16))
def test_every_string_is_found(noise: bytes, at: int, seed: int) -> None:
    string = np.random.default_rng(seed).bytes(80)
    data = noise[:at] + string + noise + string + string[:-1]
    places = [start for start in range(len(data)) if data.startswith(string, start)]
    assert sorted(find_all(data, {"s": lambda: string, "longer": lambda: data + b"x"})) == [(p, "s") for p in places]
