"""What a study leaves behind, written and read: cells as JSON, and the run's own record."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qvec_deploy.errors import IncompatibleError, IntegrityError, QvecError, StorageError, worst
from qvec_deploy.io.files import file_lock, remove_first, require_file, storage_errors, write_bytes
from qvec_deploy.io.untrusted import adapter, read_json, understood
from qvec_deploy.jobs.job import JobFailure
from qvec_deploy.research.study.cell_values import CELL_VERSION, Cell
from qvec_deploy.research.study.study_store import StudyStore
from qvec_deploy.tensors import Scheme

if TYPE_CHECKING:
    from qvec_deploy.research.study.analysis.costs import FineTune

RUN_VERSION = 1
"""Of run.json."""
STUDY_FILE, RUN_FILE, COSTS_FILE, CELLS = "study.yaml", "run.json", "costs.json", "cells"


@dataclass(frozen=True)
class Study:
    """A study's folder, read: the resolved recipe's text, run.json, what was trained here, and cells by file name."""

    recipe: str
    run: dict[str, Any]
    fine_tunes: tuple[FineTune, ...]
    cells: tuple[Cell, ...]


def write_documents(
    store: StudyStore,
    *,
    recipe: str,
    cells: Mapping[str, tuple[Path, str]],
    costs: Sequence[Mapping[str, Any]],
    run: dict[str, Any],
) -> None:
    """Write what a run leaves, all of one run whatever runs beside it: run.json comes last, and is gone meanwhile.

    Where the disk refuses the others, or a cell is damaged, run.json tells that as a failure, and nothing older stays
    beside it.

    Args:
        recipe: The text of study.yaml.
        cells: By its name among the documents, every cell's file and what the study calls its model.
        run: A failure to write the others is added.
    """
    folder, path = store.out / CELLS, store.out / RUN_FILE
    with file_lock(store.documents_lock):
        remove_first(path)
        with storage_errors(path):
            folder.mkdir(exist_ok=True)
            for old in (store.out / STUDY_FILE, store.out / COSTS_FILE, *folder.glob("*.json")):
                old.unlink(missing_ok=True)
        try:
            write_bytes(store.out / STUDY_FILE, recipe.encode())
            write_bytes(store.out / COSTS_FILE, json.dumps({"fine_tunes": costs}, indent=1).encode() + b"\n")
            for name, (source, model) in cells.items():
                cell = read_cell(source)  # its name for the model decides nothing, and may be another in the next run
                write_bytes(folder / name, cell_json(replace(cell, request=replace(cell.request, name=model))))
        except (StorageError, IncompatibleError, IntegrityError) as error:
            run["failures"].append({"node": "documents", "because": None, **asdict(JobFailure.of(error))})
            run["exit_code"] = worst([run["exit_code"], error.exit_code])
        write_bytes(path, json.dumps(run, indent=1, allow_nan=False).encode() + b"\n")


def cell_json(cell: Cell) -> bytes:
    """A cell as JSON."""
    data: bytes = adapter(Cell).dump_json(cell, indent=1)
    return data + b"\n"


def read_cell(path: Path) -> Cell:
    """A cell from its file."""
    values = read_json(path, "run the study again")
    found = values.get("version")
    if found != CELL_VERSION:
        raise IncompatibleError(
            f"{path} is a cell of version {found}, and this is version {CELL_VERSION}",
            hint="run the study again with this release: it computes its cells anew",
        )
    with understood(path, "run the study again"):
        cell: Cell = adapter(Cell).validate_python(values)
    return cell


def read_study(out: Path) -> Study:
    """What a run left in a folder.

    Raises:
        StorageError: It is no study's folder, no run of it has ended, or a file cannot be read.
        IncompatibleError: Of another version.
        IntegrityError: A damaged file, or no cell.
    """
    path = out / RUN_FILE
    before = _written(path)
    if before is None:
        raise StorageError(
            f"{out} is not the folder of a finished study",
            hint="name the -o of `qvec-deploy study run`; the same run goes on with one that was stopped",
        )
    try:
        return _read(out, path)
    finally:  # what is wrong with documents of two runs is that
        if _written(path) != before:
            raise StorageError(f"{path} changed while it was read: a run has ended", hint="try it again")


def documents_of(out: Path) -> str | None:
    """The name of the study whose documents a folder holds; None where there are none that can be read."""
    try:
        name = read_json(out / RUN_FILE)["name"]
    except (OSError, ValueError, KeyError, TypeError, QvecError):
        return None
    return name if isinstance(name, str) else None


def _written(path: Path) -> tuple[int, int] | None:
    """What tells a file from one that was written in its place; None without one."""
    if not path.is_file():
        return None
    with storage_errors(path):
        found = path.stat()
    return found.st_ino, found.st_mtime_ns


def _read(out: Path, path: Path) -> Study:
    from qvec_deploy.research.study.analysis.costs import FineTune

    run = read_json(path, "run the study again")
    if run.get("version") != RUN_VERSION:
        raise IncompatibleError(
            f"{path} is of version {run.get('version')}, and this is version {RUN_VERSION}",
            hint="run the study again with this release",
        )
    cells = tuple(read_cell(file) for file in sorted((out / CELLS).glob("*.json")))
    if not cells:
        raise IntegrityError(f"{out} holds no cells", hint=f"run the study again; {path} says what failed")
    recipe = require_file(out / STUDY_FILE, what="study").read_text(encoding="utf-8")
    costs = read_json(out / COSTS_FILE, "run the study again").get("fine_tunes", [])
    with understood(out / COSTS_FILE, "run the study again"):
        fine_tunes = tuple(FineTune(**{**cost, "grid": _grid(cost["grid"])}) for cost in costs)
    return Study(recipe, run, fine_tunes, cells)


def _grid(values: dict[str, Any] | None) -> Scheme | None:
    return None if values is None else Scheme.from_dict(values)
