"""The user's cache: what is kept is found, and nothing depends on it."""

from __future__ import annotations

import errno
import multiprocessing
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from qvec_deploy.errors import RecipeError, StorageError
from qvec_deploy.io import partial_results, user_cache
from qvec_deploy.io.user_cache import remembered, remembered_value


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[Path]]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return lambda: sorted((tmp_path / "qvec-deploy" / "models").glob("*"))


class Maker:
    """Makes other bytes each time."""

    def __init__(self) -> None:
        self.made = 0

    def __call__(self) -> bytes:
        self.made += 1
        return f"made {self.made}".encode()


def ask(make: Callable[[], bytes], inputs: Any = 1, kind: str = "thing") -> bytes:
    return remembered(kind, inputs, make, packages=("numpy",))


def test_it_is_made_once(kept: Callable[[], list[Path]]) -> None:
    make = Maker()
    assert [ask(make), ask(make)] == [b"made 1"] * 2
    assert ask(make, 2) == b"made 2" and ask(make, 1, "other") == b"made 3"
    assert len(kept()) == 3


def test_versions_and_this_package_decide(kept: Callable[[], list[Path]], monkeypatch: pytest.MonkeyPatch) -> None:
    make = Maker()
    ask(make)
    monkeypatch.setattr(user_cache, "versions", lambda names: dict.fromkeys(names, "another"))
    assert ask(make) == b"made 2"
    monkeypatch.setattr(user_cache, "own_text", lambda: "another")
    assert ask(make) == b"made 3"


@pytest.mark.parametrize(
    "change", [lambda data: data[:-1], lambda data: b"", lambda data: data[:40] + b"?" + data[41:]]
)
def test_damage_is_made_anew(kept: Callable[[], list[Path]], change: Callable[[bytes], bytes]) -> None:
    make = Maker()
    for turn in (1, 2):
        assert ask(make) == f"made {turn}".encode()
        (path,) = kept()
        path.write_bytes(change(path.read_bytes()))


def test_the_file_of_another_key_is_not_taken(kept: Callable[[], list[Path]]) -> None:
    make = Maker()
    ask(make)
    (first,) = kept()
    ask(make, 2)
    second = next(path for path in kept() if path != first)
    second.write_bytes(first.read_bytes())
    assert ask(make, 2) == b"made 3"


def test_without_a_home_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    make = Maker()
    monkeypatch.setattr(user_cache, "cache_folder", homeless)
    assert [ask(make), ask(make)] == [b"made 1", b"made 2"]


def test_a_file_where_the_folder_should_be(tmp_path: Path, kept: Callable[[], list[Path]]) -> None:
    (tmp_path / "qvec-deploy").write_text("mine")
    make = Maker()
    assert [ask(make), ask(make)] == [b"made 1", b"made 2"]
    assert (tmp_path / "qvec-deploy").read_text() == "mine"


def test_a_full_disk(kept: Callable[[], list[Path]], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: bytes) -> None:
        raise StorageError(f"{path}: no space left", hint="") from OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(partial_results, "write_bytes", full)
    make = Maker()
    assert [ask(make), ask(make)] == [b"made 1", b"made 2"]
    assert kept() == []


def test_what_cannot_be_made_is_told_and_not_kept(kept: Callable[[], list[Path]]) -> None:
    def refuse() -> bytes:
        raise RecipeError("no such model", hint="")

    for _ in range(2):
        with pytest.raises(RecipeError, match="no such model"):
            ask(refuse)
    assert kept() == []

    def fail() -> bytes:
        raise StorageError("the checkpoint cannot be read", hint="")

    with pytest.raises(StorageError, match="checkpoint"):
        ask(fail)


def test_the_least_used_go(kept: Callable[[], list[Path]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(user_cache, "_KEPT", 3)
    make = Maker()
    for index in range(3):
        ask(make, index)
    for age, path in enumerate(kept()):
        os.utime(path, (1000 + age, 1000 + age))
    ask(make, 0)  # is used now
    ask(make, 3)
    assert len(kept()) <= 3
    assert ask(make, 0) == b"made 1"


def _slow() -> bytes:
    time.sleep(0.5)
    return os.urandom(8)


def _ask_slowly(queue: Any) -> None:
    queue.put(ask(_slow))


def test_others_wait_for_who_makes_it(kept: Callable[[], list[Path]]) -> None:
    fork = multiprocessing.get_context("fork")
    queue = fork.Queue()
    processes = [fork.Process(target=_ask_slowly, args=(queue,)) for _ in range(3)]
    for process in processes:
        process.start()
    answers = {queue.get(timeout=60) for _ in processes}
    for process in processes:
        process.join()
    assert len(answers) == 1
    assert len(kept()) == 1  # no lock is left


@dataclass(frozen=True)
class Value:
    sizes: dict[str, tuple[int, ...]]
    names: tuple[str, ...] = ()


def test_values_come_back_as_they_were(kept: Callable[[], list[Path]]) -> None:
    value = Value({"z": (1, 2), "a": ()}, ("one",))
    made = [remembered_value(Value, 1, lambda: value, packages=()) for _ in range(2)]
    assert made == [value, value]
    assert list(made[1].sizes) == ["z", "a"]
    assert len(kept()) == 1
