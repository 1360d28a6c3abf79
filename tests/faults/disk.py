"""What a disk may hold after a power cut, from a record of what a process did to it.

POSIX promises little. Bytes are there once their file was synced; until then any part of them may be missing, torn or
zeros. A name is there once its folder was synced; until then any of the changes to names may have happened and any
others not, in whatever order they were made, but each wholly or not at all.
"""

from __future__ import annotations

import hashlib
import random
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

_HEAD = struct.Struct("<cQQIIQ")
Fate = Literal["kept", "lost", "torn", "zeros", "late"]
FATES: tuple[Fate, ...] = ("kept", "lost", "torn", "zeros", "late")
Tree = Mapping[str, "Tree | bytes"]


@dataclass(frozen=True)
class Operation:
    """One line of the record.

    Attributes:
        what: C(reate), W(rite), T(runcate), R(ename), X (exchange), L(ink), D(irectory), U(nlink), S(ync) or M(ark).
    """

    what: str
    inode: int
    offset: int
    path: str
    other: str
    data: bytes


def read_record(path: Path) -> list[Operation]:
    """A record that the shim has written."""
    content, at, operations = path.read_bytes(), 0, []
    while at < len(content):
        what, inode, offset, one, two, size = _HEAD.unpack_from(content, at)
        at += _HEAD.size
        texts = content[at : at + one + two]
        data = content[at + one + two : at + one + two + size]
        at += one + two + size
        operations.append(Operation(what.decode(), inode, offset, texts[:one].decode(), texts[one:].decode(), data))
    return operations


@dataclass
class _File:
    """A file: bytes that are safe, and changes that are not yet."""

    safe: bytes = b""
    changes: list[tuple[int, bytes | None]] = field(default_factory=list)

    def content(self, fate: Fate) -> bytes:
        changes = self.changes
        if fate == "lost":
            return self.safe
        if fate == "torn":
            changes = [*changes[:-1], _half(changes[-1])] if changes else []
        if fate == "late":  # the first one has not arrived, the others have
            changes = changes[1:] if len(changes) > 1 else changes
        content = bytearray(self.safe)
        for offset, data in changes:
            if data is None:
                content[offset:] = bytes(max(0, offset - len(content)))
                continue
            content.extend(bytes(max(0, offset + len(data) - len(content))))
            content[offset : offset + len(data)] = bytes(len(data)) if fate == "zeros" else data
        return bytes(content)


def _half(change: tuple[int, bytes | None]) -> tuple[int, bytes | None]:
    offset, data = change
    return offset, None if data is None else data[: len(data) // 2]


@dataclass
class _Folder:
    """Names that are safe."""

    names: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class _Renaming:
    """A change to names: some go, others come.

    It is safe once every folder that it changes was synced. What comes from another folder is safe before, with
    its own: it may then have two names.
    """

    gone: tuple[tuple[int, str], ...]
    come: tuple[tuple[int, str, int], ...]

    @property
    def folders(self) -> set[int]:
        return {folder for folder, _ in self.gone} | {folder for folder, _, _ in self.come}


class Disk:
    """A disk on which a record is played; between any two operations the power may be cut.

    Args:
        root: Folder that the record is of, empty when it began.
    """

    def __init__(self, root: Path) -> None:
        self._root = str(root)
        self._things: dict[int, _File | _Folder] = {0: _Folder()}
        self._live: dict[int, dict[str, int]] = {0: {}}  # what processes see
        self._inodes: dict[int, int] = {}
        self._pending: list[tuple[_Renaming, set[int]]] = []
        self.marks: list[int] = []

    def play(self, operation: Operation) -> None:
        """Do the next operation of the record."""
        what = operation.what
        if what == "M":
            self.marks.append(operation.inode)
        elif what in "CD":
            number = len(self._things)
            self._things[number] = _File() if what == "C" else _Folder()
            self._live |= {number: {}} if what == "D" else {}
            self._inodes[operation.inode] = number
            self._change((), ((*self._place(operation.path), number),))
        elif what == "X":
            one, two = self._place(operation.path), self._place(operation.other)
            first, second = self._live[one[0]][one[1]], self._live[two[0]][two[1]]
            self._change((), ((*one, second), (*two, first)))
        elif what in "RL":
            source, target = self._place(operation.path), self._place(operation.other)
            number = self._live[source[0]][source[1]]
            self._change((source,) if what == "R" else (), ((*target, number),))
        elif what == "U":
            self._change((self._place(operation.path),), ())
        elif what == "S":
            self._sync(self._number(operation.inode))
        else:
            file = self._things[self._number(operation.inode)]
            assert isinstance(file, _File)
            file.changes.append((operation.offset, operation.data if what == "W" else None))

    def seen(self) -> Tree:
        """What processes see: everything as it was done."""
        return self._tree(self._live, dict.fromkeys(self._files(), "kept"))

    def after_power_cuts(self, generator: random.Random, more: int) -> Iterator[Tree]:
        """States that a power cut now may leave.

        Args:
            more: How many are drawn beside those in which one thing is lost, or one alone is kept.
        """
        count = len(self._pending)
        everything, nothing = [True] * count, [False] * count
        choices = [everything, nothing]
        for index in range(count):
            choices += [[at != index for at in range(count)], [at == index for at in range(count)]]
        choices += [[generator.random() < 0.5 for _ in range(count)] for _ in range(more)]
        changed = [number for number, file in self._files().items() if file.changes]
        for choice in choices:
            for fate in FATES if changed else FATES[:1]:
                yield self._left(choice, dict.fromkeys(self._files(), fate))
        for _ in range(more if changed else 0):
            fates = {number: generator.choice(FATES) for number in self._files()}
            yield self._left(generator.choice(choices), fates)

    def _left(self, choice: list[bool], fates: Mapping[int, Fate]) -> Tree:
        names = {number: dict(thing.names) for number, thing in self._things.items() if isinstance(thing, _Folder)}
        for (renaming, _), done in zip(self._pending, choice, strict=True):
            if done:
                _rename(names, renaming)
        return self._tree(names, fates)

    def _files(self) -> dict[int, _File]:
        return {number: thing for number, thing in self._things.items() if isinstance(thing, _File)}

    def _number(self, inode: int) -> int:
        return self._inodes.get(inode, 0)  # the root's own is not known

    def _place(self, path: str) -> tuple[int, str]:
        assert path.startswith(f"{self._root}/"), path
        *folders, name = path.removeprefix(f"{self._root}/").split("/")
        number = 0
        for folder in folders:
            number = self._live[number][folder]
        return number, name

    def _change(self, gone: tuple[tuple[int, str], ...], come: tuple[tuple[int, str, int], ...]) -> None:
        renaming = _Renaming(gone, come)
        _rename(self._live, renaming)
        self._pending.append((renaming, renaming.folders))

    def _sync(self, number: int) -> None:
        thing = self._things[number]
        if isinstance(thing, _File):
            thing.safe, thing.changes = thing.content("kept"), []
            return
        left: list[tuple[_Renaming, set[int]]] = []
        names = {each: thing.names for each, thing in self._things.items() if isinstance(thing, _Folder)}
        for renaming, folders in self._pending:
            waiting = folders - {number}
            if not waiting:
                _rename(names, renaming)
            elif len(renaming.come) == 1 and renaming.come[0][0] == number:
                _rename(names, _Renaming((), renaming.come))
                left.append((_Renaming(renaming.gone, ()), waiting))
            else:
                left.append((renaming, waiting))
        self._pending = left

    def _tree(self, names: Mapping[int, Mapping[str, int]], fates: Mapping[int, Fate], number: int = 0) -> Tree:
        tree: dict[str, Tree | bytes] = {}
        for name, child in names[number].items():
            thing = self._things[child]
            tree[name] = thing.content(fates[child]) if isinstance(thing, _File) else self._tree(names, fates, child)
        return tree


def _rename(names: Mapping[int, dict[str, int]], renaming: _Renaming) -> None:
    for folder, name in renaming.gone:
        names[folder].pop(name, None)
    for folder, name, number in renaming.come:
        names[folder][name] = number


def digest(tree: Tree) -> bytes:
    """A hash of names and bytes."""
    hashed = hashlib.sha256()
    for name, content in sorted(tree.items()):
        inner = hashlib.sha256(content).digest() if isinstance(content, bytes) else b"/" + digest(content)
        hashed.update(name.encode() + b"\0" + inner)
    return hashed.digest()


def read_tree(folder: Path) -> Tree:
    """A folder that is there."""
    return {path.name: read_tree(path) if path.is_dir() else path.read_bytes() for path in folder.iterdir()}


def write_tree(folder: Path, tree: Tree) -> None:
    """Make a folder of it."""
    folder.mkdir()
    for name, content in tree.items():
        if isinstance(content, bytes):
            (folder / name).write_bytes(content)
        else:
            write_tree(folder / name, content)


def power_cuts(
    operations: list[Operation], root: Path, relevant: Callable[[Tree], Tree], *, more: int = 4, seed: int = 0
) -> Iterator[tuple[Tree, int]]:
    """States after a power cut at any moment of a record, each once, and how many marks were passed before it.

    Args:
        relevant: The part of a state that readers look at; states that differ elsewhere are one.
    """
    disk, generator, known = Disk(root), random.Random(seed), set()
    for operation in operations:
        disk.play(operation)
        for tree in disk.after_power_cuts(generator, more):
            part = relevant(tree)
            key = (digest(part), len(disk.marks))
            if key not in known:
                known.add(key)
                yield part, len(disk.marks)
