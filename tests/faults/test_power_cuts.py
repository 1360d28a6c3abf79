"""After a power cut there is the old thing or the new one, whole; or it is plain that there is none."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import publishing
import pytest
from disk import Disk, Operation, Tree, digest, power_cuts, read_record, read_tree, write_tree
from shared import make_once
from shim import shim, variables

from qvec_deploy.bundle.bundle import Bundle
from qvec_deploy.errors import QvecError, StorageError
from qvec_deploy.io.cache import Cache
from qvec_deploy.io.files import restore

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "tests" / "golden" / "v0.1.0" / "bundle"
SLOW = {"build", "release", "checkpoint"}
"""Kinds whose process has much to do or to import."""

KINDS = [pytest.param(kind, marks=[pytest.mark.slow] if kind in SLOW else []) for kind in publishing.KINDS]
LEAST = {
    "bundle": 500,
    "build": 500,
    "release": 500,
    "cache": 50,
    "checkpoint": 15,
    "study": 50,
    "report": 20,
    "export": 10,
}
"""States, at least, that a record must be good for: a test of none would pass."""


class Broken(Exception):
    """Neither the old thing nor the new one, nor plainly none."""


def _bundle(path: Path) -> str | None:
    restore(path)  # as the next build begins
    try:
        opened = Bundle.open(path)
    except StorageError:
        if path.exists():
            raise
        return None
    return digest(read_tree(opened.directory)).hex()


def _read_bundle(folder: Path) -> str | None:
    return _bundle(folder / "bundle")


def _read_build(folder: Path) -> str | None:
    return _bundle(folder / "build")


def _read_release(folder: Path) -> str | None:
    return _bundle(folder / "release")


def _read_cache(folder: Path) -> str | None:
    class Miss(Exception):
        pass

    found = []
    for key in ("first", "second"):
        with contextlib.suppress(Miss), Cache(folder / "cache").entry("thing", key) as entry:
            if entry.new:
                raise Miss
            found.append(str(entry.record) + digest(read_tree(entry.folder)).hex())
    return " ".join(found) or None


def _read_checkpoint(folder: Path) -> str | None:
    from qvec_deploy.donors.donor_folder import DonorFolder

    state = DonorFolder(folder / "donor").load("fp")
    return None if state is None else f"{state.step} {state.tensors['weight'].tolist()}"


def _read_study(folder: Path) -> str | None:
    """Documents are read where run.json says that they are whole."""
    run = folder / "study" / "run.json"
    if not run.is_file():
        return None
    name = json.loads(run.read_bytes())["name"]
    costs = json.loads((run.parent / "costs.json").read_bytes())
    if costs != {"fine_tunes": [{"of": name}]} or (run.parent / "study.yaml").read_text() != f"name: {name}\n":
        raise Broken(f"documents of two runs: {name} and {costs}")
    return str(name)


def _read_report(folder: Path) -> str | None:
    """Each file is whole; the three are not published as one."""
    from qvec_deploy.report.report_json import from_json

    path = folder / "report.json"
    return from_json(path.read_bytes(), path).title if path.is_file() else None


def _read_export(folder: Path) -> str | None:
    import onnx

    path = folder / "model.onnx"
    if not path.is_file():
        return None
    try:
        onnx.checker.check_model(onnx.load(path))
    except onnx.checker.ValidationError as error:
        raise Broken(str(error)) from error
    return digest({"model": path.read_bytes()}).hex()


READERS: dict[str, Callable[[Path], str | None]] = {
    "bundle": _read_bundle,
    "build": _read_build,
    "release": _read_release,
    "cache": _read_cache,
    "checkpoint": _read_checkpoint,
    "study": _read_study,
    "report": _read_report,
    "export": _read_export,
}


def _record(kind: str) -> tuple[list[Operation], Path]:
    """What a process did while it published things of a kind, and the folder that it did it to."""

    def make(folder: Path) -> None:
        (folder / "root").mkdir(parents=True)
        environment = {**os.environ, **variables(shim(), [folder / "root"], log=folder / "record")}
        program = [sys.executable, publishing.__file__, kind, str((folder / "root").resolve()), str(SOURCE)]
        done = subprocess.run(
            program, env={**environment, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr

    made = make_once(f"records/{kind}", make).resolve()
    return read_record(made / "record"), made / "root"


def _states(kind: str, operations: list[Operation], root: Path, place: Path) -> Iterator[str]:
    """Of every state what is wrong with it; nothing where what was published is there, or what was there before."""
    things: list[str | None] = [None]  # in the order in which they were published; found without a power cut
    disk, known = Disk(root), dict[bytes, str | None]()

    def look(tree: Tree) -> str | None:
        """What a reader finds; one that sees the same files again finds the same."""
        seen = digest({kind: tree[kind]} if kind in tree else tree)
        if seen not in known:
            known[seen] = _look(READERS[kind], tree, place)
        return known[seen]

    for operation in operations:
        disk.play(operation)
        if operation.what == "M":
            things.append(look(disk.seen()))
    assert None not in things[1:] and len({*things}) == len(things) == MARKS + 1
    for tree, passed in power_cuts(operations, root, _without_locks):
        allowed = things[passed : passed + 2]
        if kind in REMOVED_FIRST and passed < MARKS:
            allowed.append(None)
        try:
            found = look(tree)
        except (QvecError, Broken, OSError, ValueError) as error:
            yield f"{type(error).__name__}: {error}"
        else:
            yield "" if found in allowed else f"found {found}, not one of {allowed}"


MARKS = 2
REMOVED_FIRST = ("study",)
"""Kinds whose old state is plainly removed before the new one is made."""


def _without_locks(tree: Tree) -> Tree:
    """Their files are empty, and nobody reads them."""
    return {
        name: inner if isinstance(inner, bytes) else _without_locks(inner)
        for name, inner in tree.items()
        if name != "locks"
    }


def _look(read: Callable[[Path], str | None], tree: Tree, place: Path) -> str | None:
    write_tree(place, tree)
    try:
        return read(place)
    finally:
        shutil.rmtree(place)


def test_every_kind_is_tested() -> None:
    assert publishing.KINDS.keys() == READERS.keys()


@pytest.mark.parametrize("kind", KINDS)
def test_the_record_is_complete(kind: str) -> None:
    """Playing it gives what is there: nothing was written that was not seen."""
    operations, root = _record(kind)
    disk = Disk(root)
    for operation in operations:
        disk.play(operation)
    assert digest(disk.seen()) == digest(read_tree(root))
    assert len(disk.marks) == MARKS


@pytest.mark.parametrize("kind", KINDS)
def test_a_power_cut_leaves_the_old_thing_or_the_new_one(kind: str, tmp_path: Path) -> None:
    states = [*_states(kind, *_record(kind), tmp_path / "disk")]
    wrong = [problem for problem in states if problem]
    print(f"{kind}: {len(states)} states")
    assert len(states) >= LEAST[kind]
    assert not wrong, f"{len(wrong)} of {len(states)}: {wrong[:3]}"


@pytest.mark.parametrize("kind", KINDS)
def test_without_syncing_states_are_broken(kind: str, tmp_path: Path) -> None:
    """What is not on the disk when it gets its name is lost in some states; else the test above would show nothing."""
    operations, root = _record(kind)
    unsafe = [operation for operation in operations if operation.what != "S"]
    assert any(_states(kind, unsafe, root, tmp_path / "disk"))
