"""Changes of files that keep enough of their form to reach the code behind the first check of it."""

from __future__ import annotations

import gzip
import io
import json
import random
import re
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

from qvec_deploy.runtimes.tensorrt.engine_delta import MAGIC

VALUES = (
    *(b"1e999", b"1" + b"0" * 400, b"NaN", b"-Infinity", b"-1", b"0", b"1", b"2", b"4611686018427387904", b"1e308"),
    *(b"1.5", b"1e-400", b"18446744073709551616", b"null", b"true", b"false", b"[]", b"{}", b'""', b'"\\ud800"'),
    *(b'"x"', b'"\\u0000"', b'"../../x"', b'"/etc/passwd"', b'"\xff"', b'"\\u202e\\u001b[31m"', b"[[[]]]", b"[0]"),
    *(b'{"a": 1, "a": 2}', b'"F64"', b'"F16"', b'"I64"', b'"linear"', b'"1.0.0"', b"[" * 100 + b"]" * 100),
    *(b"[" * 100_000, b'{"a":' * 2000, b'"' + b"x" * 5000 + b'"', b"[" + b"0," * 2000 + b"0]"),
)
"""Texts in the place of a value of JSON or YAML."""
TEXTS = (b"!!python/object:os.system", b"&a [*a, *a]", b"<<: *a", b"? ", b"- - - - ", b"\x00", b"\xff\xfe", b"\r", b"%")
NUMBERS = (0, 1, -1, 2, 7, 8, 127, 255, 1 << 15, (1 << 31) - 1, 1 << 31, 1 << 32, 1 << 40, (1 << 63) - 1, -(1 << 63))
_WORDS = (
    *("", "x", "../x", "/etc/passwd", "If", "Loop", "Scan", "Constant", "qvec", "weights.qvec.safetensors", "-1", "0"),
    *("99999999999", "model.onnx", "x" * 5000, "\u202e", "location", "offset", "length", "checksum", "basepath"),
)
_TOKEN = re.compile(rb'-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?|\\?"[^"\\]*\\?"|true|false|null|[A-Za-z_]\w*')
_HOLE = "the hole"
_MOST = 1 << 20


def changed(data: bytes, rng: random.Random) -> bytes:
    """A file with one to three changes, of its form or just of its bytes."""
    change = changed_bytes if rng.random() < 0.3 else _changed_form
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        data = change(data, rng)[:_MOST]
    return data


def changed_bytes(data: bytes, rng: random.Random) -> bytes:
    """A file changed in one place, blind to what is there."""
    at, length = rng.randrange(len(data) + 1), rng.choice((1, 1, 2, 4, 8, 64, 4096))
    return rng.choice(
        (
            lambda: data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :] if at < len(data) else data,
            lambda: data[:at],
            lambda: data[:at] + data[at + length :],
            lambda: data[:at] + rng.randbytes(length) + data[at:],
            lambda: data[:at] + bytes(length) + data[at + length :],
            lambda: data[:at] + data[at : at + length] + data[at:],
            lambda: data[:at] + rng.choice(NUMBERS).to_bytes(8, "little", signed=True) + data[at + 8 :],
            lambda: data[:at] + rng.choice(NUMBERS).to_bytes(8, "little", signed=True)[:4] + data[at + 4 :],
        )
    )()


def _changed_form(data: bytes, rng: random.Random) -> bytes:
    for known, change in _FORMS:
        if known(data):
            return change(data, rng)
    return (changed_bytes if b"\x00" in data[:200] else _changed_text)(data, rng)


def _changed_text(data: bytes, rng: random.Random) -> bytes:
    """A token, or a line, of YAML or of anything else that is text."""
    if rng.random() < 0.3:
        lines = data.split(b"\n")
        at = rng.randrange(len(lines))
        lines[at : at + 1] = rng.choice(([], [lines[at]] * 2, [b"  " + lines[at]], [lines[at].lstrip()]))
        return b"\n".join(lines)
    found = list(_TOKEN.finditer(data[: 1 << 16]))
    if not found:
        return changed_bytes(data, rng)
    token = rng.choice(found)
    value = rng.choice((*VALUES, *TEXTS, rng.choice(found)[0]))
    return data[: token.start()] + value + data[token.end() :]


def _changed_json(data: bytes, rng: random.Random) -> bytes:
    """One value, key or place in a document."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return _changed_text(data, rng)
    place = _place(document, rng)
    if place is None:
        return rng.choice(VALUES)
    holder, key = place
    kind = rng.choice(("value", "value", "value", "drop", "copy", "rename", "repeat", "wrap"))
    value, hole = holder[key], rng.choice(VALUES)
    if kind == "drop":
        del holder[key]
    elif kind == "copy":
        other, name = _place(document, rng) or place
        holder[key] = json.loads(json.dumps(other[name]))
    elif kind == "rename" and isinstance(holder, dict):
        del holder[key]
        holder[rng.choice(("x", "", "\ud800", "../x", f"{key}2", "__class__", "self"))] = value
    elif kind == "repeat":
        holder[key] = [value] * rng.choice((0, 2, 9, 70))
    elif kind == "wrap":
        holder[key] = {"a": value}
    else:
        holder[key] = _HOLE
    return json.dumps(document).encode("ascii").replace(json.dumps(_HOLE).encode(), hole)


def _place(value: Any, rng: random.Random) -> tuple[Any, Any] | None:
    """Somewhere in a document, as what holds it and the key; None where there is nothing."""
    place = None
    while isinstance(value, dict | list) and value and (place is None or rng.random() < 0.8):
        key = rng.choice(list(value)) if isinstance(value, dict) else rng.randrange(len(value))
        place, value = (value, key), value[key]
    return place


def _is_safetensors(data: bytes) -> bool:
    return data[8:9] == b"{" and int.from_bytes(data[:8], "little") <= len(data)


def _changed_safetensors(data: bytes, rng: random.Random) -> bytes:
    end = 8 + int.from_bytes(data[:8], "little")
    if rng.random() < 0.2:
        return data[:end] + changed_bytes(data[end:], rng)
    header = _changed_json(data[8:end], rng)
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + data[end:]


def _changed_delta(data: bytes, rng: random.Random) -> bytes:
    start = len(MAGIC) + 4
    end = start + int.from_bytes(data[len(MAGIC) : start], "little")
    header = _changed_json(data[start:end], rng)
    return MAGIC + len(header).to_bytes(4, "little") + header + data[end:]


def _changed_gzip(data: bytes, rng: random.Random) -> bytes:
    try:
        inside = zlib.decompressobj(31).decompress(data, _MOST)
    except zlib.error:
        return changed_bytes(data, rng)
    return gzip.compress(_changed_form(inside, rng), mtime=0)


def _changed_zip(data: bytes, rng: random.Random) -> bytes:
    """A torch archive with a member changed, its sums right again."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    except Exception:  # noqa: BLE001 - of an archive that was changed before
        return changed_bytes(data, rng)
    if not members:
        return data
    at = rng.randrange(len(members))
    name, content = members[at]
    kind = rng.choice(("pickle", "pickle", "pickle", "content", "rename", "drop", "copy", "compress", "move", "prefix"))
    if kind == "pickle":
        at = next((index for index, (each, _) in enumerate(members) if each.endswith(".pkl")), at)
        members[at] = (members[at][0], _changed_pickle(members[at][1], rng))
    elif kind == "content":
        members[at] = (name, changed_bytes(content, rng))
    elif kind == "rename":
        members[at] = (rng.choice((name + "x", "../" + name, "archive/data/0", "data.pkl", name.upper())), content)
    elif kind == "drop":
        del members[at]
    elif kind == "copy":
        members.append((name, rng.choice(members)[1]))
    elif kind == "move":
        rng.shuffle(members)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for each, inside in members:
            info = zipfile.ZipInfo(each)
            info.compress_type = zipfile.ZIP_DEFLATED if kind == "compress" and each == name else zipfile.ZIP_STORED
            archive.writestr(info, inside)
    return (rng.randbytes(rng.choice((1, 64, 4096))) if kind == "prefix" else b"") + buffer.getvalue()


def _changed_pickle(data: bytes, rng: random.Random) -> bytes:
    """A number, a name or an opcode."""
    import pickletools

    try:
        found = list(pickletools.genops(data))
    except Exception:  # noqa: BLE001 - of a pickle that was changed before
        return changed_bytes(data, rng)
    index = rng.randrange(len(found))
    start = found[index][2] or 0
    end = (found[index + 1][2] or 0) if index + 1 < len(found) else len(data)
    numbers = (
        b"K\x00",
        b"K\x01",
        b"K\xff",
        b"M\xff\xff",
        b"J\xff\xff\xff\x7f",
        b"J\xff\xff\xff\xff",
        b"\x8a\x08" + b"\x7f" * 8,
    )
    others = (
        b"",
        b"N",
        b"\x88",
        b"]",
        b"}",
        b")",
        b"G\x7f\xf0\x00\x00\x00\x00\x00\x00",
        b"cos\nsystem\n",
        b"0",
        b"2",
        b"R",
        b"b",
    )
    number = isinstance(found[index][1], int) and found[index][0].name.startswith(("BININT", "LONG"))
    if number:
        new = rng.choice(numbers)
    elif isinstance(found[index][1], str) and rng.random() < 0.5:
        new = rng.choice(
            [data[each[2] : found[at + 1][2]] for at, each in enumerate(found[:-1]) if isinstance(each[1], str)]
        )
    else:
        new = rng.choice((*others, *numbers, data[start:end] * 2))
    return data[:start] + new + data[end:]


def _changed_model(data: bytes, rng: random.Random) -> bytes:
    """An ONNX file with one field of one message changed."""
    import onnx

    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except Exception:  # noqa: BLE001 - of a file that was changed before
        return changed_bytes(data, rng)
    messages: list[Any] = [model]
    for message in messages:
        for field, value in message.ListFields():
            if field.message_type is not None:
                messages += value if _is_repeated(field) else [value]
    message = rng.choice(messages)
    fields = [field for field, _ in message.ListFields()] or list(message.DESCRIPTOR.fields)
    if rng.random() < 0.15:
        fields = list(message.DESCRIPTOR.fields)
    try:
        _change_field(message, rng.choice(fields), rng)
        return bytes(model.SerializeToString())
    except (ValueError, TypeError, AttributeError):  # not every value fits every field
        return data


def _is_repeated(field: Any) -> bool:
    return bool(field.is_repeated if hasattr(field, "is_repeated") else field.label == field.LABEL_REPEATED)


def _change_field(message: Any, field: Any, rng: random.Random) -> None:
    values = getattr(message, field.name)
    if not _is_repeated(field):
        if field.message_type is not None:
            message.ClearField(field.name) if rng.random() < 0.7 else values.SetInParent()
        else:
            setattr(message, field.name, _scalar(field, rng))
        return
    kind = rng.choice(("set", "set", "drop", "copy", "swap", "many"))
    at = rng.randrange(len(values)) if values else 0
    if field.message_type is not None:
        if not values:
            values.add()
        elif kind == "drop":
            del values[at]
        else:
            for _ in range(rng.choice((1, 1, 1, 500)) if kind == "many" else 1):
                values.add().CopyFrom(values[at])
    elif kind == "drop" and values:
        del values[at]
    elif kind in ("copy", "swap") and values:
        values[at] = values[rng.randrange(len(values))]
    elif values and kind == "set":
        values[at] = _scalar(field, rng)
    else:
        values.append(_scalar(field, rng))


def _scalar(field: Any, rng: random.Random) -> Any:
    if field.cpp_type == field.CPPTYPE_STRING:
        text = rng.choice(_WORDS)
        return text.encode() if field.type == field.TYPE_BYTES else text
    if field.cpp_type in (field.CPPTYPE_FLOAT, field.CPPTYPE_DOUBLE):
        return rng.choice((0.0, 1.0, -1.0, float("nan"), float("inf"), 1e38))
    return rng.choice((*NUMBERS, *range(24)))


_FORMS: tuple[tuple[Callable[[bytes], bool], Callable[[bytes, random.Random], bytes]], ...] = (
    (lambda data: data[:1] in b"{[" and data[:1] != b"", _changed_json),
    (_is_safetensors, _changed_safetensors),
    (lambda data: data.startswith(MAGIC), _changed_delta),
    (lambda data: data.startswith(b"\x1f\x8b"), _changed_gzip),
    (lambda data: data.startswith(b"PK"), _changed_zip),
    (lambda data: data.startswith(b"\x08") and b"qvec" in data, _changed_model),
    (lambda data: data.startswith(b"\x80\x02"), _changed_pickle),
)
"""How the form of a file is known, and how it is changed."""
