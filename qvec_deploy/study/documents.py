"""What a study leaves behind, written and read: cells as JSON, and the run's own record."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from qvec_deploy.errors import IncompatibleError, IntegrityError, StorageError
from qvec_deploy.store import require_file, storage_errors
from qvec_deploy.study.costs import FineTune
from qvec_deploy.study.store import CELLS, COSTS_FILE, RUN_FILE, STUDY_FILE
from qvec_deploy.study.values import CELL_VERSION, Cell
from qvec_deploy.tensors import Scheme

RUN_VERSION = 1


@dataclass(frozen=True)
class Study:
    """A study's folder, read.

    Attributes:
        recipe: The resolved recipe's text.
        run: run.json: versions, counts, seconds, failures.
        fine_tunes: Bases and fine-tunes that were trained here, with their seconds.
        cells: In the order of their files' names.
    """

    recipe: str
    run: dict[str, Any]
    fine_tunes: tuple[FineTune, ...]
    cells: tuple[Cell, ...]


def cell_json(cell: Cell) -> bytes:
    """A cell as JSON."""
    data: bytes = _adapter().dump_json(cell, indent=1)
    return data + b"\n"


def read_cell(path: Path) -> Cell:
    """A cell from its file.

    Raises:
        StorageError: The file cannot be read.
        IncompatibleError: It is of another version.
        IntegrityError: It is no cell.
    """
    from pydantic import ValidationError

    values = _parsed(path)
    found = values.get("version")
    if found != CELL_VERSION:
        raise IncompatibleError(
            f"{path} is a cell of version {found}, and this is version {CELL_VERSION}",
            hint="run the study again with this release: it computes its cells anew",
        )
    try:
        cell: Cell = _adapter().validate_python(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"]))
        raise IntegrityError(f"{path} is no cell: {field}: {first['msg']}", hint="run the study again") from error
    return cell


def read_study(out: Path) -> Study:
    """What a run left in a folder.

    Raises:
        StorageError: It is no study's folder, or a file cannot be read.
        IncompatibleError: Of another version.
        IntegrityError: A damaged file, or no cell.
    """
    path = out / RUN_FILE
    if not path.is_file():
        raise StorageError(
            f"{out} is not the folder of a finished study", hint="name the -o of `qvec-deploy study run`"
        )
    run = _parsed(path)
    if run.get("version") != RUN_VERSION:
        raise IncompatibleError(
            f"{path} is of version {run.get('version')}, and this is version {RUN_VERSION}",
            hint="run the study again with this release",
        )
    cells = tuple(read_cell(file) for file in sorted((out / CELLS).glob("*.json")))
    if not cells:
        raise IntegrityError(f"{out} holds no cells", hint=f"run the study again; {path} says what failed")
    recipe = require_file(out / STUDY_FILE, what="study").read_text(encoding="utf-8")
    costs = _parsed(out / COSTS_FILE).get("fine_tunes", [])
    try:
        fine_tunes = tuple(FineTune(**{**cost, "grid": _grid(cost["grid"])}) for cost in costs)
    except (TypeError, KeyError) as error:
        raise IntegrityError(f"{out / COSTS_FILE} is damaged: {error}", hint="run the study again") from error
    return Study(recipe, run, fine_tunes, cells)


def _grid(values: dict[str, Any] | None) -> Scheme | None:
    return None if values is None else Scheme.from_dict(values)


def _parsed(path: Path) -> dict[str, Any]:
    with storage_errors(path):
        data = path.read_bytes()
    try:
        values = json.loads(data)
    except ValueError as error:
        raise IntegrityError(f"{path} is damaged: {error}", hint="run the study again") from error
    if not isinstance(values, dict):
        raise IntegrityError(f"{path} is damaged", hint="run the study again")
    return values


@cache
def _adapter() -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(Cell)
