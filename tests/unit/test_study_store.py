"""A study's folder: where one may begin, and released files that are the ones that were used first."""

from __future__ import annotations

import dataclasses
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qvec_deploy.errors import FetchError, IncompatibleError, IntegrityError, StorageError
from qvec_deploy.io import cache as shelf
from qvec_deploy.io.files import canonical_json, sha256_file
from qvec_deploy.research.study import study_store as store_module
from qvec_deploy.research.study.study_node import StudyNode
from qvec_deploy.research.study.study_store import StudyStore
from qvec_deploy.research.study.study_tasks import ReleasedTask

TASK = ReleasedTask(model="m", model_args={}, kind="fp", hub="", pattern="", released="there", classes=2)
NODE = StudyNode(TASK, {"model": "m", "task": "t", "seed": 1})


def _tree(folder: Path) -> dict[str, bytes | None]:
    paths = sorted(folder.rglob("*"))
    return {str(path): path.read_bytes() if path.is_file() else None for path in paths}


@pytest.mark.parametrize("left", [[], ["store"], ["store", "store/.version.json.k3_x.tmp"]], ids=len)
def test_a_start_that_was_killed_leaves_a_folder_to_start_in(left: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    for name in ["", *left]:
        (out / name).touch() if name.endswith(".tmp") else (out / name).mkdir()
    assert not StudyStore.begun(out)
    StudyStore.open(out)
    assert StudyStore.begun(out)


def test_two_starts_in_one_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second comes when the first has made its folders and written half of the version."""
    out, real = tmp_path / "out", store_module.write_bytes

    def halfway(path: Path, data: bytes) -> None:
        path.parent.mkdir(parents=True)
        (path.parent / f".{path.name}.abc.tmp").write_bytes(data[:3])
        monkeypatch.setattr(store_module, "write_bytes", real)
        StudyStore.open(out)
        (out / "logs").mkdir()  # it has begun
        real(path, data)

    monkeypatch.setattr(store_module, "write_bytes", halfway)
    StudyStore.open(out)
    assert StudyStore.begun(out)


def test_many_starts_in_one_empty_folder(tmp_path: Path) -> None:
    errors: list[Exception] = []

    def start(out: Path, barrier: threading.Barrier) -> None:
        barrier.wait()
        try:
            StudyStore.open(out)
        except Exception as error:  # noqa: BLE001 - told below
            errors.append(error)

    for number in range(20):
        barrier = threading.Barrier(4)
        threads = [threading.Thread(target=start, args=(tmp_path / str(number), barrier)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not errors


def _file(out: Path) -> None:
    out.write_text("mine")


def _other(out: Path) -> None:
    (out / "store").mkdir(parents=True)
    (out / "store" / "shoes").touch()


def _beside(out: Path) -> None:
    (out / "store").mkdir(parents=True)
    (out / "photos").mkdir()


@pytest.mark.parametrize("make", [_file, _other, _beside])
def test_what_is_no_studys_is_left_alone(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / "out")
    before = _tree(tmp_path)
    for call in (StudyStore.open, StudyStore.begun):
        with pytest.raises(StorageError, match="is not a study's folder"):
            call(tmp_path / "out")
    assert _tree(tmp_path) == before


def test_another_versions_is_left_alone(tmp_path: Path) -> None:
    StudyStore.open(tmp_path)
    (tmp_path / "store" / "version.json").write_bytes(canonical_json({"qvec-study-store": 2}))
    before = _tree(tmp_path)
    with pytest.raises(IncompatibleError, match="of version 2, and this is version 1"):
        StudyStore.open(tmp_path)
    assert _tree(tmp_path) == before


class Released:
    """Finds a file that lies elsewhere, as released fine-tunes do."""

    def __init__(self, path: Path) -> None:
        self.path, self.looked = path, 0

    def __call__(self, staging: Path) -> dict[str, Any]:
        self.looked += 1
        if not self.path.is_file():
            raise FetchError("gone", hint="")
        size = self.path.stat().st_size
        return {"seconds": 0.1, "path": str(self.path), "bytes": size, "sha256": sha256_file(self.path)}


def test_a_released_file_is_found_again_where_it_is_now(tmp_path: Path) -> None:
    store, make = StudyStore.open(tmp_path / "out"), Released(tmp_path / "a")
    make.path.write_bytes(b"weights")
    first = store.obtain(NODE, make)
    assert first["made"] and not store.obtain(NODE, make)["made"] and make.looked == 1
    make.path = make.path.rename(tmp_path / "b")
    assert not store.knows(NODE)
    assert store.obtain(NODE, make)["path"] == str(tmp_path / "b")
    assert store.weights(NODE.id, NODE.key) == tmp_path / "b"
    make.path.unlink()
    with pytest.raises(FetchError):
        store.obtain(NODE, make)


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_released_file_of_other_bytes_is_refused(elsewhere: bool, tmp_path: Path) -> None:
    """Results are there that were computed from the first."""
    store, make = StudyStore.open(tmp_path / "out"), Released(tmp_path / "a")
    make.path.write_bytes(b"weights")
    store.obtain(NODE, make)
    if elsewhere:
        make.path.unlink()
        make.path = tmp_path / "b"
    make.path.write_bytes(b"other weights")
    for _ in range(2):
        with pytest.raises(IntegrityError, match="changed since it was first used") as caught:
            store.obtain(NODE, make)
        assert str(make.path) in caught.value.message and "another directory" in caught.value.hint
    make.path.write_bytes(b"weights")
    assert store.obtain(NODE, make)["path"] == str(make.path)


def _make(staging: Path) -> dict[str, Any]:
    (staging / "fp.safetensors").write_bytes(b"x")
    return {"seconds": 2.0}


def test_what_another_run_made_meanwhile_is_not_made_here(tmp_path: Path) -> None:
    store, other, found = StudyStore.open(tmp_path), StudyStore.open(tmp_path), []
    waiting = threading.Thread(target=lambda: found.append(other.obtain(NODE, _make)))

    def make(staging: Path) -> dict[str, Any]:
        waiting.start()
        waiting.join(0.2)
        assert not found  # the second maker waits for the first
        return _make(staging)

    assert store.obtain(NODE, make)["made"]
    waiting.join()
    assert [(one["seconds"], one["made"]) for one in found] == [(2.0, False)]


def test_what_is_known_of_a_node_outlives_its_files(tmp_path: Path) -> None:
    store = StudyStore.open(tmp_path)
    assert store.record(NODE) is None
    record = store.obtain(NODE, _make)
    assert record["seconds"] == 2.0 and record["made"]
    (store.folder(NODE.id) / "fp.safetensors").unlink()
    assert not store._is_whole(NODE) and store.record(NODE)["seconds"] == 2.0  # type: ignore[index]
    shutil.rmtree(store.folder(NODE.id))
    assert store.record(NODE)["seconds"] == 2.0  # type: ignore[index]  # the cache knows it
    assert store.record(dataclasses.replace(NODE, versions={})) is None


def _damage(path: Path) -> None:
    """Other bytes, as many, and of the same age."""
    times = path.stat()
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_bytes_that_are_not_those_that_were_made_are_not_worked_with(tmp_path: Path) -> None:
    store = StudyStore.open(tmp_path)
    store.obtain(NODE, _make)
    weights = store.weights(NODE.id, NODE.key)
    _damage(weights)
    assert store.knows(NODE)  # a plan looks at sizes only
    with pytest.raises(IntegrityError, match=r"fp\.safetensors is damaged") as caught:
        store.weights(NODE.id, NODE.key)
    assert "run the study again" in caught.value.hint
    assert not store.find(NODE)  # nor has the shelf others: a hard link
    assert store.obtain(NODE, _make)["made"] and store.weights(NODE.id, NODE.key).read_bytes() == b"x"
    assert store.find(NODE)


def test_weights_that_cannot_be_read_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: Path) -> str:
        raise StorageError(f"{path}: Input/output error", hint="")

    store = StudyStore.open(tmp_path)
    store.obtain(NODE, _make)
    with monkeypatch.context() as patch:
        for module in (store_module, shelf):
            patch.setattr(module, "sha256_file", broken)
        assert not store.find(NODE)
    assert store.obtain(NODE, _make)["made"]


def test_a_released_file_of_other_bytes_is_not_worked_with(tmp_path: Path) -> None:
    store, make = StudyStore.open(tmp_path / "out"), Released(tmp_path / "a")
    make.path.write_bytes(b"weights")
    store.obtain(NODE, make)
    _damage(make.path)
    with pytest.raises(IntegrityError, match="changed since it was first used"):
        store.weights(NODE.id, NODE.key)
    assert not store.find(NODE)
    with pytest.raises(IntegrityError, match="changed since it was first used"):
        store.obtain(NODE, make)


def test_what_lies_on_the_shelf_is_there_under_every_name(tmp_path: Path) -> None:
    store, renamed = StudyStore.open(tmp_path), dataclasses.replace(NODE, about={**NODE.about, "model": "other"})
    assert not store.knows(renamed) and not store.find(renamed)
    store.obtain(NODE, _make)
    assert store.knows(renamed) and not store.folder(renamed.id).exists()  # nothing is written
    assert store.find(renamed) and store.weights(renamed.id, renamed.key).read_bytes() == b"x"
    (tmp_path / "store" / f"fp-{NODE.key[:32]}" / "entry.json").write_text("[]")
    again = dataclasses.replace(NODE, about={})
    assert not store.knows(again) and not store.find(again) and not store.folder(again.id).exists()
