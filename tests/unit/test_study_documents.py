"""The documents of a study are of one run, whatever was killed, full, or at work beside it."""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from study_here import Here, in_this_process
from study_recipes import write_study

from qvec_deploy.donors import donor_folder as state
from qvec_deploy.errors import StorageError
from qvec_deploy.jobs.job import Job
from qvec_deploy.research.study import study_documents as documents
from qvec_deploy.research.study.study_documents import read_study, write_documents
from qvec_deploy.research.study.study_recipe import StudyRecipe, load_study
from qvec_deploy.research.study.study_run import run_study
from qvec_deploy.research.study.study_store import StudyStore

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> Iterator[Here]:
    with in_this_process(monkeypatch) as executor:
        yield executor


@pytest.fixture
def recipes(tmp_path: Path) -> tuple[StudyRecipe, StudyRecipe]:
    """A study, and the same with another number of images: its cells have the same names."""
    first = load_study(write_study(tmp_path))
    return first, load_study(write_study(tmp_path, testing=40))


def _testing(out: Path) -> set[int]:
    """How many images judged, by the recipe and by every cell."""
    study = read_study(out)
    return {load_study(out / "study.yaml").testing, *(cell.request.testing for cell in study.cells)}


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_changed_recipe_that_did_not_end_leaves_the_documents_before(
    tmp_path: Path, here: Here, recipes: tuple[StudyRecipe, StudyRecipe]
) -> None:
    out = tmp_path / "out"
    run_study(recipes[0], out)
    before = (out / "run.json").read_bytes()
    here.before = _interrupt
    with pytest.raises(KeyboardInterrupt):
        run_study(recipes[1], out)
    assert _testing(out) == {32} and (out / "run.json").read_bytes() == before
    here.before = lambda job: None
    run_study(recipes[1], out)
    assert _testing(out) == {40}


@pytest.mark.parametrize("last", ["study.yaml", "pico-3bit_tensor_mse-seed1-realdigits.json", "run.json"])
def test_documents_that_were_not_written_to_their_end_are_none(
    last: str, tmp_path: Path, recipes: tuple[StudyRecipe, StudyRecipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, real = tmp_path / "out", documents.write_bytes
    run_study(recipes[0], out)

    def killed(path: Path, data: bytes) -> None:
        if path.name == last:
            raise KeyboardInterrupt
        real(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(documents, "write_bytes", killed)
        with pytest.raises(KeyboardInterrupt):
            run_study(recipes[1], out)
    with pytest.raises(StorageError, match="not the folder of a finished study"):
        read_study(out)
    assert run_study(recipes[1], out)["counts"]["cell"] == {"total": 2, "kept": 2}
    assert _testing(out) == {40}


def test_two_runs_of_different_recipes_end_one_after_the_other(
    tmp_path: Path, recipes: tuple[StudyRecipe, StudyRecipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second ends while the first writes its cells: it waits, and nothing of the first is left."""
    out, real = tmp_path / "out", documents.write_bytes
    second = threading.Thread(target=run_study, args=(recipes[1], out))
    run_study(recipes[1], out)  # its cells are there

    def halfway(path: Path, data: bytes) -> None:
        if path.parent.name == "cells" and second.ident is None:
            second.start()
            second.join(2)
            assert second.is_alive()
            with pytest.raises(StorageError, match="not the folder of a finished study"):
                read_study(out)
        real(path, data)

    monkeypatch.setattr(documents, "write_bytes", halfway)
    run_study(recipes[0], out)
    second.join()
    assert _testing(out) == {40}


def test_a_run_that_ends_while_documents_are_read(
    tmp_path: Path, recipes: tuple[StudyRecipe, StudyRecipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, real = tmp_path / "out", documents.read_cell
    run_study(recipes[0], out)

    def late(path: Path) -> Any:
        cell = real(path)
        monkeypatch.setattr(documents, "read_cell", real)
        run_study(recipes[1], out)
        return cell

    monkeypatch.setattr(documents, "read_cell", late)
    with pytest.raises(StorageError, match="changed while it was read") as caught:
        read_study(out)
    assert caught.value.hint == "try it again"
    assert _testing(out) == {40}


def test_a_full_disk_is_told_in_the_document_that_fits(
    tmp_path: Path, recipes: tuple[StudyRecipe, StudyRecipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, real = tmp_path / "out", documents.write_bytes
    run_study(recipes[0], out)

    def full(path: Path, data: bytes) -> None:
        if path.name.endswith("realdigits.json"):
            raise StorageError(f"{path}: {os.strerror(errno.ENOSPC)}", hint="free some space")
        real(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(documents, "write_bytes", full)
        outcome = run_study(recipes[1], out)
    assert outcome["exit_code"] == 6 and outcome == json.loads((out / "run.json").read_bytes())
    (failure,) = outcome["failures"]
    assert (failure["node"], failure["because"], failure["exit_code"]) == ("documents", None, 6)
    assert "No space left" in failure["message"]
    assert _testing(out) == {40} and len(read_study(out).cells) == 1  # none of the recipe before
    assert run_study(recipes[1], out)["exit_code"] == 0 and len(read_study(out).cells) == 2


def test_a_cell_that_is_damaged_once_it_was_found_is_told_and_costs_no_other(
    tmp_path: Path, recipes: tuple[StudyRecipe, StudyRecipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    run_study(recipes[0], out)
    (path,) = out.glob("files/cell-pico-realdigits-*/cell.json")
    path.write_bytes(b"{" * path.stat().st_size)
    monkeypatch.setattr(StudyStore, "find", StudyStore.knows)  # it was whole then
    outcome = run_study(recipes[0], out)
    (failure,) = outcome["failures"]
    assert (failure["node"], outcome["exit_code"]) == ("documents", 5) and "cell.json is damaged" in failure["message"]
    assert len(read_study(out).cells) == 1


def test_a_disk_too_full_for_a_training_is_refused_before_it(
    tmp_path: Path, here: Here, recipes: tuple[StudyRecipe, StudyRecipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, free = tmp_path / "out", 10**12

    def training(job: Job) -> None:
        nonlocal free
        free = 10_000 if job.name.startswith("fp-pico-lower") else 10**12

    here.before = training
    monkeypatch.setattr(state.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**12, 0, free))
    outcome = run_study(recipes[0], out)
    assert outcome["exit_code"] == 6
    first = outcome["failures"][0]
    assert first["node"] == "fp pico lower 1" and "MB free" in first["message"]
    assert "nothing was trained yet" in first["hint"]
    here.before = lambda job: None
    free = 10**12
    assert run_study(recipes[0], out)["exit_code"] == 0


def test_what_a_killed_worker_could_not_forget_is_forgotten(
    tmp_path: Path, recipes: tuple[StudyRecipe, StudyRecipe]
) -> None:
    out = tmp_path / "out"
    run_study(recipes[0], out)
    (node,) = out.glob("files/qat-pico-lower-*")
    left = out / "work" / node.name / ".state" / "qat.safetensors"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"x" * 1000)
    begun = out / "work" / "qat-pico-other-1"  # of a recipe that may come back
    begun.mkdir()
    run_study(recipes[0], out)
    assert list((out / "work").iterdir()) == [begun]


def test_reading_asks_for_no_lock(tmp_path: Path) -> None:
    """A study may lie where nobody can write."""
    store = StudyStore.open(tmp_path / "out")
    run: dict[str, Any] = {"version": 1, "failures": [], "exit_code": 0}
    write_documents(store, recipe="", cells={}, costs=[], run=run)
    store.documents_lock.unlink()
    with pytest.raises(Exception, match="holds no cells"):
        read_study(store.out)
    assert not store.documents_lock.exists()
