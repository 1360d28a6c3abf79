"""The zip archives that torch.save writes, checked before torch reads a byte of them.

torch maps an archive into memory and believes its pickle about where every storage lies and how long it is: of a
compressed archive it takes compressed bytes for weights.
"""

from __future__ import annotations

import io
import pickletools
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from qvec_deploy.errors import IncompatibleError, IntegrityError
from qvec_deploy.io.other_files import SAVE

_AGAIN = "load it with torch.load and save it again with torch.save"
_DAMAGED = "copy or download it again"
_MAX_MEMBERS = 1 << 17
_MAX_NAME = 1000
_MAX_PICKLE = 64 * 2**20
_MAX_ENTRIES = 1 << 21
_MAX_DEPTH = 64
OLD_PICKLES = 5
"""Pickles at the beginning of a file that is no archive; the last lists the storages that follow."""
_OLD_HEADER = 8  # bytes before those of a storage
_STRINGS = {"BINUNICODE", "SHORT_BINSTRING"}  # the second in files that Python 2 wrote
_OF_A_LIST = _STRINGS | {"PROTO", "EMPTY_LIST", "BINPUT", "LONG_BINPUT", "MARK", "APPEND", "APPENDS", "STOP"}
_LOCAL_HEADER = 30  # bytes of a member's own header before its name


@dataclass
class StorageTracker:
    """Where torch puts every storage that it reads, and its bytes; given to torch.load as `map_location`."""

    found: dict[int, int] = field(default_factory=dict)
    sizes: list[int] = field(default_factory=list)

    def __call__(self, storage: Any, _location: str) -> Any:
        """Note a storage, and leave it on the CPU."""
        self.sizes.append(storage.nbytes())
        if storage.nbytes():
            self.found[storage.data_ptr()] = storage.nbytes()
        return storage


def check_archive(path: Path) -> dict[int, int]:
    """Read the directory of an archive, and refuse what torch would misread.

    Returns:
        Offset in the file to length of every storage that is not empty.

    Raises:
        IncompatibleError: It is no state dict, or in an order of bytes that is not ours.
        IntegrityError: It is damaged, compressed, or not laid out as torch.save does.
    """
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        members = archive.infolist()
        _refuse_other(path, [member.filename for member in members])
        if len(members) > _MAX_MEMBERS:
            raise IntegrityError(f"{path} has {len(members):,} members", hint=SAVE)
        by_name = {member.orig_filename.lower(): member for member in members}  # torch does not tell case apart
        if len(by_name) < len(members):
            raise IntegrityError(f"{path} has two members of one name", hint=_DAMAGED)
        starts = _stored_at(path, file, members)
        folder = members[0].orig_filename.lower().partition("/")[0]
        text = by_name.get(f"{folder}/data.pkl")
        if text is None:
            raise IntegrityError(f"{path} is not laid out as torch.save does", hint=_AGAIN)
        if text.file_size > _MAX_PICKLE:
            raise IntegrityError(f"{path}: its pickle has {text.file_size:,} bytes, more than 64 MB", hint=SAVE)
        pickled = archive.read(text)
        check_names(path, io.BytesIO(pickled), 1)
        if b"bytearray\n" in pickled:  # whose length is a number: memory without bound
            raise IntegrityError(f"{path}: its pickle makes byte arrays", hint=SAVE)
        order = by_name.get(f"{folder}/byteorder")
        if order is not None and archive.read(order) != b"little":
            raise IncompatibleError(f"{path} was not written on a little-endian machine", hint=SAVE)
    data = f"{folder}/data/"
    return {
        starts[each.header_offset]: each.file_size
        for name, each in by_name.items()
        if name.startswith(data) and each.file_size
    }


def check_names(path: Path, stream: IO[bytes], pickles: int) -> None:
    """Refuse a pickle that names something in more characters than any module has.

    torch's loader searches the message about such a name in time that grows with the square of its length.

    Args:
        stream: The file from where its pickles start.
        pickles: So many lie one behind the other.

    Raises:
        IntegrityError: It does.
    """
    longest = 0
    try:
        for _ in range(pickles):
            for opcode, argument, _ in pickletools.genops(stream):
                if opcode.name in ("GLOBAL", "INST"):
                    longest = max(longest, len(argument or ""))
    except Exception as error:
        if "newline" in str(error):  # a name that has no end
            raise IntegrityError(f"{path}: its pickle is cut off", hint=SAVE) from error
    if longest > _MAX_NAME:
        raise IntegrityError(f"{path}: its pickle names something in {longest:,} characters", hint=SAVE)


def check_storages(path: Path, members: Mapping[int, int], tracker: StorageTracker) -> None:
    """Hold the storages that torch mapped against the archive's members: one each, of the same length.

    All lie in one mapping of the file, so that their distances are those of the members.
    """
    shift = min(tracker.found, default=0) - min(members, default=0)
    if {start + shift: size for start, size in members.items()} != tracker.found:
        raise IntegrityError(f"{path}: its tensors are not those of the archive's members", hint=_DAMAGED)


def check_old_storages(path: Path, tracker: StorageTracker) -> None:
    """Hold the storages of a file without an archive against the list in it of those that follow, and their bytes.

    torch leaves a storage that is not listed as memory was before.
    """
    with path.open("rb") as file:
        for _ in range(OLD_PICKLES - 1):
            for _ in pickletools.genops(file):
                pass
        operations = [(opcode.name, argument) for opcode, argument, _ in pickletools.genops(file)]
        left = path.stat().st_size - file.tell()
    listed = {argument for name, argument in operations if name in _STRINGS}
    plain = {name for name, _ in operations} <= _OF_A_LIST
    sizes = tracker.sizes
    if not plain or len(listed) != len(sizes) or left != sum(sizes) + _OLD_HEADER * len(sizes):
        raise IntegrityError(f"{path}: its tensors are not those of the storages that it lists", hint=_DAMAGED)


def check_sums(path: Path) -> None:
    """Compare the checksum of every member with its bytes.

    Raises:
        IntegrityError: One differs.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            wrong = archive.testzip()
    except (zipfile.BadZipFile, ValueError, EOFError, NotImplementedError) as error:
        raise IntegrityError(f"{path} is damaged: {error}", hint=_DAMAGED) from error
    if wrong is not None:
        raise IntegrityError(
            f"{path}: the checksum of {wrong} does not fit its bytes",
            hint=f"{_DAMAGED}; where it was saved without checksums, {_AGAIN} and with them",
        )


def check_size(path: Path, saved: Any) -> None:
    """Refuse what is nested so deeply, or refers to itself so often, that walking through it would not end."""
    level, count = [saved], 0
    for _ in range(_MAX_DEPTH):
        level = [inner for value in level for inner in _inside(value)]
        count += len(level)
        if not level:
            return
        if count > _MAX_ENTRIES:
            raise IntegrityError(f"{path} holds more than {_MAX_ENTRIES:,} entries", hint=SAVE)
    raise IntegrityError(f"{path} is nested more than {_MAX_DEPTH} deep", hint=SAVE)


def check_tensor(path: Path, name: str, value: Any, tracker: StorageTracker) -> None:
    """Refuse a tensor whose values are not those of a storage of the file."""
    import torch

    if value.layout != torch.strided or value.is_nested:
        kind = "nested" if value.is_nested else str(value.layout).removeprefix("torch.")
        raise IncompatibleError(f"{path}: {name} is {kind}", hint="save dense weights: tensor.to_dense()")
    if value.is_quantized:
        raise IncompatibleError(f"{path}: {name} is quantized already", hint="save the float weights it was made of")
    if value.device.type != "cpu":
        raise IncompatibleError(f"{path}: {name} has no values (device {value.device})", hint=SAVE)
    if not value.numel():
        return
    storage = value.untyped_storage()
    if tracker.found.get(storage.data_ptr()) != storage.nbytes():
        raise IntegrityError(f"{path}: {name} has no values in the file", hint=SAVE)
    if value.numel() * value.element_size() > storage.nbytes():
        raise IntegrityError(
            f"{path}: {name} is expanded: {value.numel():,} values in a storage of {storage.nbytes():,} bytes",
            hint="save tensor.contiguous()",
        )


def _refuse_other(path: Path, names: list[str]) -> None:
    if any(name.endswith(".npy") for name in names):
        raise IncompatibleError(
            f"{path} is a NumPy archive", hint="load it into the timm model (load_pretrained) and save its state dict"
        )
    if any(name.endswith("/constants.pkl") for name in names):
        raise IncompatibleError(f"{path} is a TorchScript archive, which is a program", hint=SAVE)
    if not any(name.endswith("data.pkl") for name in names):
        raise IntegrityError(
            f"{path} is a zip archive of other files", hint="unpack it, and name the checkpoint inside"
        )


def _stored_at(path: Path, file: Any, members: list[zipfile.ZipInfo]) -> dict[int, int]:
    """Where every member's header begins, to where its bytes do; none lies in another."""
    starts: dict[int, int] = {}
    end = 0
    for member in sorted(members, key=lambda each: each.header_offset):
        if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
            raise IntegrityError(f"{path} is compressed again, which torch misreads", hint=_AGAIN)
        if member.flag_bits & 1:
            raise IntegrityError(f"{path} is encrypted", hint=_AGAIN)
        file.seek(member.header_offset)
        header = file.read(_LOCAL_HEADER)
        name_length, extra_length = (int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
        overlaps = member.header_offset < end or (not end and member.header_offset)
        if overlaps or header[:4] != b"PK\x03\x04" or file.read(name_length) != member.orig_filename.encode():
            raise IntegrityError(f"{path}: its directory does not fit its members", hint=_DAMAGED)
        start = starts[member.header_offset] = member.header_offset + _LOCAL_HEADER + name_length + extra_length
        end = start + member.file_size
    return starts


def _inside(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return list(value.values())
    if isinstance(value, (list, tuple, set)):
        return list(value)
    inner = getattr(value, "__dict__", None)
    return [inner] if inner and not hasattr(value, "untyped_storage") else []
