"""Files that are cut, flipped or forged: one clear error with a hint, never a traceback of numpy or json."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qvec_deploy.errors import IncompatibleError, IntegrityError, QvecError
from qvec_deploy.packed import Entry, PackedFile, entry_of, pack, write_packed
from qvec_deploy.packed.file_layout import MAX_HEADER, decode, encode
from qvec_deploy.tensors import QuantizedTensor, Scheme

Header = dict[str, Any]
W = "a.weight"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A small file: one ragged 3-bit matrix, one per-tensor matrix, floats of both kinds."""
    path = tmp_path_factory.mktemp("packed") / "good"
    ragged = QuantizedTensor(np.full((2, 5), -3, np.int8), np.full((2, 1), 0.5, np.float32), Scheme(3, "channel"))
    whole = QuantizedTensor(np.zeros((2, 32), np.int8), np.full((2, 1), 0.5, np.float32), Scheme(2, "tensor"))
    weights = {W: pack(ragged), "b": pack(whole), "f": np.ones(2, np.float32), "h": np.ones(3, np.float16)}
    write_packed(path, {name: entry_of(tensor) for name, tensor in weights.items()}, weights.items())
    return path.read_bytes()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "weights.qvec.safetensors"


def split(file: bytes) -> tuple[bytes, bytes]:
    end = 8 + int.from_bytes(file[:8], "little")
    return file[8:end], file[end:]


def join(text: bytes, data: bytes) -> bytes:
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data


def refused(path: Path, file: bytes, match: str = ".", error: type[QvecError] = IntegrityError) -> str:
    """Assert that the file is refused with its name and a hint; return the hint."""
    path.write_bytes(file)
    with pytest.raises(error, match=match) as caught:
        PackedFile.open(path).check()
    assert caught.value.message.startswith(str(path))
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 800
    return caught.value.hint


def test_a_file_cut_anywhere_is_refused(path: Path, good: bytes) -> None:
    for size in range(len(good)):
        refused(path, good[:size])


def test_trailing_bytes_are_refused(path: Path, good: bytes) -> None:
    refused(path, good + b"\0", "1 bytes follow the last tensor")
    refused(path, good + bytes(4096), "4096 bytes follow")


def test_a_flipped_bit_of_the_length_is_refused(path: Path, good: bytes) -> None:
    for bit in range(64):
        flipped = bytearray(good)
        flipped[bit // 8] ^= 1 << bit % 8
        refused(path, bytes(flipped))


def test_a_flipped_bit_of_the_header_is_refused_or_seen(good: bytes) -> None:
    """What survives says something else and says it correctly: a name, a version's minor number, a clip."""
    text, _ = split(good)
    layout = decode(text)
    survived = 0
    for bit in range(8 * len(text)):
        flipped = bytearray(text)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            read = decode(bytes(flipped))
        except (IntegrityError, IncompatibleError):
            continue
        survived += 1
        assert read != layout
        assert encode(*read)[8:] == flipped
    assert survived < 0.02 * 8 * len(text)


def test_a_flipped_bit_of_the_padding_is_refused(path: Path, good: bytes) -> None:
    path.write_bytes(good)
    start = PackedFile.open(path).tensors[W].data.offset
    for bit in range(3 * 5, 3 * 32):
        flipped = bytearray(good)
        flipped[start + bit // 8] ^= 1 << bit % 8
        refused(path, bytes(flipped), "'a.weight': rows of 5 codes of 3 bits are padded")


def test_hostile_lengths_allocate_nothing(path: Path, good: bytes) -> None:
    for length in (MAX_HEADER + 8, 1 << 40, (1 << 64) - 8):
        tracemalloc.start()
        try:
            refused(path, length.to_bytes(8, "little") + good[8:], "no header of at most")
            assert tracemalloc.get_traced_memory()[1] < 1 << 20
        finally:
            tracemalloc.stop()


def test_hostile_sizes_allocate_nothing(path: Path) -> None:
    """A header that is right in itself but promises a tebibyte."""
    text = encode({"a": Entry((1 << 39,))})
    tracemalloc.start()
    try:
        refused(path, text, "cut off")
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


NOT_HEADERS = {
    "nothing": b"",
    "spaces": b"        ",
    "no JSON": b"{'a': 1}",
    "a list": b"[]",
    "no metadata": b"{}",
    "not UTF-8": b'{"\xff": 1}',
    "not ASCII": '{"__metadata__":{"qvec":"ä"}}'.encode(),
    "deep": b"[" * 100_000,
    "deep object": b'{"a":' * 100_000,
    "NaN": b'{"a":NaN}',
    "a long number": b'{"a":' + b"9" * 10_000 + b"}",
    "a lone surrogate": b'{"\\ud800":{}}',
    "two values": b"{}{}",
}


@pytest.mark.parametrize("text", NOT_HEADERS.values(), ids=NOT_HEADERS)
def test_what_is_no_header_is_refused(path: Path, text: bytes) -> None:
    refused(path, join(text, b""))


def document(change: Callable[[Header], object]) -> Callable[[Header], object]:
    """A change of the JSON inside the metadata."""

    def outer(header: Header) -> None:
        inner = json.loads(header["__metadata__"]["qvec"])
        change(inner)
        header["__metadata__"]["qvec"] = json.dumps(inner, sort_keys=True, separators=(",", ":"))

    return outer


def tensor(name: str, **values: Any) -> Callable[[Header], object]:
    return lambda header: header[name].update(values)


def scheme(**values: Any) -> Callable[[Header], object]:
    return document(lambda inner: inner["tensors"][W]["scheme"].update(values))


def shape(value: Any) -> Callable[[Header], object]:
    return document(lambda inner: inner["tensors"][W].update(shape=value))


def swap(header: Header) -> None:
    """Two tensors of the same dtype the other way round, each with right offsets."""
    first, second = header.pop("a.weight.scale"), header.pop("b.scale")
    rest = {name: header.pop(name) for name in list(header)[1:]}
    header.update({"b.scale": first, "a.weight.scale": second} | rest)


FORGERIES: dict[str, tuple[Callable[[Header], object], str]] = {
    "two metadata entries": (lambda h: h["__metadata__"].update(more="x"), "not one text called 'qvec'"),
    "other metadata": (lambda h: h.update(__metadata__={"format": "pt"}), "not one text called 'qvec'"),
    "no metadata": (lambda h: h.pop("__metadata__"), "not one text called 'qvec'"),
    "metadata is no object": (lambda h: h.update(__metadata__=3), "not one text"),
    "metadata is no text": (lambda h: h["__metadata__"].update(qvec=1), "not one text"),
    "metadata is no JSON": (lambda h: h["__metadata__"].update(qvec="{"), "metadata is damaged: not JSON"),
    "metadata is a list": (lambda h: h["__metadata__"].update(qvec="[]"), "metadata is not a JSON object"),
    "a key twice in the metadata": (
        lambda h: h["__metadata__"].update(qvec='{"format":"qvec-packed","format":"qvec-packed"}'),
        "a key occurs twice",
    ),
    "metadata is not canonical": (
        lambda h: h["__metadata__"].update(qvec=h["__metadata__"]["qvec"].replace(":", ": ")),
        "not the one of its tensors",
    ),
    "another format": (document(lambda d: d.update(format="qvec-other")), "does not say format"),
    "no format": (document(lambda d: d.pop("format")), "does not say format"),
    "no version": (document(lambda d: d.pop("version")), "no version like"),
    "a version of two numbers": (document(lambda d: d.update(version="1.0")), "no version like"),
    "a version with zeros": (document(lambda d: d.update(version="1.00.0")), "no version like"),
    "a version that is a number": (document(lambda d: d.update(version=1.0)), "no version like"),
    "a version in other digits": (document(lambda d: d.update(version="1.0.٣")), "no version like"),
    "no tensors": (document(lambda d: d.pop("tensors")), "unknown keys or lacks some: 'tensors'"),
    "tensors are a list": (document(lambda d: d.update(tensors=[])), "list of quantized tensors is not"),
    "an unknown key": (document(lambda d: d.update(author="x")), "unknown keys or lacks some: 'author'"),
    "an unknown key of a tensor": (document(lambda d: d["tensors"][W].update(zero=1)), "lacks some: 'zero'"),
    "no scheme": (document(lambda d: d["tensors"][W].pop("scheme")), "lacks some: 'scheme'"),
    "no shape": (document(lambda d: d["tensors"][W].pop("shape")), "lacks some: 'shape'"),
    "a tensor that is none": (document(lambda d: d["tensors"].update({W: 5})), "is not a JSON object"),
    "an impossible name": (document(lambda d: d["tensors"].update({"": d["tensors"][W]})), "cannot name"),
    "a scheme that is none": (document(lambda d: d["tensors"][W].update(scheme=3)), "scheme of .* is not"),
    "an unknown field of a scheme": (scheme(zero_point=4), "scheme has fields"),
    "bits as text": (scheme(bits="3"), "scheme field bits"),
    "bits as a truth value": (scheme(bits=True), "scheme field bits"),
    "9 bits": (scheme(bits=9), "impossible scheme"),
    "4 bits": (scheme(bits=4), r"'a.weight' is I32 \(2, 3\), expected I32 \(2, 4\)"),
    "an unknown granularity": (scheme(granularity="block"), "unknown scheme"),
    "groups that do not divide": (scheme(granularity="group", group_size=2), "not a multiple of group_size"),
    "groups that do": (scheme(granularity="group", group_size=1), r"'a.weight.scale' is F32 \(2, 1\)"),
    "clip 0": (scheme(clip=0.0), "impossible scheme"),
    "clip as an integer": (scheme(clip=1), "scheme field clip"),
    "another row count": (shape([3, 5]), r"'a.weight' is I32 \(2, 3\), expected I32 \(3, 3\)"),
    "another column count": (shape([2, 33]), r"expected I32 \(2, 6\)"),
    "a vector": (shape([2]), "no quantized matrix"),
    "three dimensions": (shape([1, 2, 5]), "no quantized matrix"),
    "a shape of no list": (shape(10), "has no shape"),
    "a negative size": (shape([2, -5]), "what is not a size"),
    "a size of zero": (shape([2, 0]), "what is not a size"),
    "a size as a float": (shape([2, 5.0]), "what is not a size"),
    "a size as a truth value": (shape([True, 5]), "what is not a size"),
    "a huge size": (shape([2, 1 << 62]), "what is not a size"),
    "a size of 4000 digits": (shape([2, 10**4000]), "no number of 64 bits"),
    "a missing payload": (lambda h: h.pop(W), "'a.weight' is missing"),
    "a missing scale": (lambda h: h.pop("a.weight.scale"), "'a.weight.scale' is missing"),
    "a payload nobody lists": (document(lambda d: d["tensors"].pop("b")), "'b' is I32 and not quantized"),
    "a scale nobody lists": (
        lambda h: (document(lambda d: d["tensors"].pop(W))(h), h.pop(W)),
        "'a.weight.scale' is a scale without",
    ),
    "a quantized tensor that is not there": (
        document(lambda d: d["tensors"].update(c=d["tensors"]["b"])),
        "'c' is missing",
    ),
    "a float payload": (tensor(W, dtype="F32"), r"'a.weight' is F32 \(2, 3\), expected I32"),
    "an integer scale": (tensor("b.scale", dtype="I32"), "'b.scale' is I32"),
    "a half-precision scale": (tensor("b.scale", dtype="F16"), "'b.scale' is F16"),
    "a scale of another shape": (tensor("b.scale", shape=[1, 2]), r"'b.scale' is F32 \(1, 2\)"),
    "BF16": (tensor("h", dtype="BF16"), "'h' has another dtype than"),
    "F64": (tensor("f", dtype="F64"), "'f' has another dtype than"),
    "a dtype of no text": (tensor("f", dtype=["F32"]), "'f' has another dtype than"),
    "a tensor that is no object": (lambda h: h.update(f=1), "tensor 'f' is not a JSON object"),
    "an unknown key of a stored tensor": (tensor("f", stride=1), "lacks some: 'stride'"),
    "no offsets": (lambda h: h["f"].pop("data_offsets"), "lacks some: 'data_offsets'"),
    "offsets of no list": (tensor("f", data_offsets="0"), "not the one of its tensors"),
    "a hole": (tensor("h", data_offsets=[60, 66]), "holes, overlaps"),
    "an overlap": (tensor("f", data_offsets=[0, 8]), "holes, overlaps"),
    "negative offsets": (tensor("f", data_offsets=[-8, 0]), "holes, overlaps"),
    "float offsets": (lambda h: h["f"].update(data_offsets=[float(x) for x in h["f"]["data_offsets"]]), "holes"),
    "another order": (swap, "another order"),
    "a shape with more values": (tensor("f", shape=[3]), "not the one of its tensors"),
    "nine dimensions": (tensor("f", shape=[1] * 8 + [2]), "at most 8 dimensions"),
    "a name of 257 characters": (lambda h: h.update({"n" * 257: h.pop("h")}), "cannot name a tensor"),
    "a name with a line break": (lambda h: h.update({"h\n": h.pop("h")}), "cannot name a tensor"),
    "a name that is not ASCII": (lambda h: h.update({"ä": h.pop("h")}), "cannot name a tensor"),
}


@pytest.mark.parametrize(("forge", "match"), FORGERIES.values(), ids=FORGERIES)
def test_forged_headers_are_refused(path: Path, good: bytes, forge: Callable[[Header], object], match: str) -> None:
    text, data = split(good)
    header = json.loads(text)
    forge(header)
    assert refused(path, join(json.dumps(header, separators=(",", ":")).encode(), data), match)


def test_the_forger_alone_changes_nothing(path: Path, good: bytes) -> None:
    text, data = split(good)
    assert join(json.dumps(json.loads(text), separators=(",", ":")).encode(), data) == good


NOTATIONS: dict[str, Callable[[bytes], bytes]] = {
    "a name twice": lambda text: text.replace(b'"h":{', b'"f":{'),
    "spaces inside": lambda text: text.replace(b'"f":{', b'"f": {'),
    "keys in another order": lambda text: text.replace(
        b'"shape":[2],"data_offsets":[16,24]', b'"data_offsets":[16,24],"shape":[2]'
    ),
    "escapes": lambda text: text.replace(b'"f":{', b'"\\u0066":{'),
    "more spaces than needed": lambda text: text + b" " * 8,
    "tabs at the end": lambda text: text.rstrip() + b"\t" * 8,
}


@pytest.mark.parametrize("notation", NOTATIONS.values(), ids=NOTATIONS)
def test_the_same_in_another_notation_is_refused(path: Path, good: bytes, notation: Callable[[bytes], bytes]) -> None:
    text, data = split(good)
    assert notation(text) != text
    refused(path, join(notation(text), data))


def test_headers_of_another_length_than_eights_are_refused(path: Path, good: bytes) -> None:
    text, data = split(good)
    text = text.rstrip() + b" " * (8 - len(text.rstrip()) % 8 + 1)
    refused(path, len(text).to_bytes(8, "little") + text + data, "no header of at most")


@pytest.mark.parametrize("version", ["2.0.0", "10.3.1", "0.9.0"])
def test_other_majors_are_refused(path: Path, good: bytes, version: str) -> None:
    text, data = split(good)
    hint = refused(path, join(text.rstrip().replace(b"1.0.0", version.encode()), data), version, IncompatibleError)
    assert "upgrade qvec-deploy" in hint


@pytest.mark.parametrize("version", ["1.0.1", "1.1.0", "1.12.34"])
def test_later_minors_are_read(path: Path, good: bytes, version: str) -> None:
    text, data = split(good)
    path.write_bytes(join(text.rstrip().replace(b"1.0.0", version.encode()), data))
    file = PackedFile.open(path)
    file.check()
    assert file.version == version


def test_later_minors_with_unknown_keys_are_refused(path: Path, good: bytes) -> None:
    text, data = split(good)
    header = json.loads(text)
    document(lambda inner: inner.update(version="1.2.0", zero_points=True))(header)
    hint = refused(path, join(json.dumps(header, separators=(",", ":")).encode(), data), "'zero_points'")
    assert "1.2.0" in hint and "upgrade" in hint


@pytest.mark.parametrize(
    ("name", "part", "value", "match"),
    [
        (W, "scale", np.float32(0), "not positive"),
        (W, "scale", np.float32(-1), "not positive"),
        (W, "scale", np.float32(np.nan), "not positive"),
        (W, "scale", np.float32(np.inf), "not positive"),
        ("b", "scale", np.float32(2), "several scales"),
        ("f", "data", np.float32(np.nan), "NaN or infinity"),
        ("f", "data", np.float32(-np.inf), "NaN or infinity"),
        ("h", "data", np.float16(np.inf), "NaN or infinity"),
    ],
)
def test_values_the_writer_would_not_write_are_refused(
    path: Path, good: bytes, name: str, part: str, value: np.generic, match: str
) -> None:
    path.write_bytes(good)
    offset = getattr(PackedFile.open(path).tensors[name], part).offset
    file = good[:offset] + value.tobytes() + good[offset + value.nbytes :]
    refused(path, file, f"'{name}'.*{match}")


def test_the_good_file_is_good(path: Path, good: bytes) -> None:
    path.write_bytes(good)
    opened = PackedFile.open(path)
    opened.check()
    assert opened.tensors
