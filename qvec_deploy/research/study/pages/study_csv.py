"""A study as CSV: a row per trial with its answers counted, and a row per pair with all that was found of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable

from qvec_deploy.report.csv_text import Value, to_csv
from qvec_deploy.research.study.analysis.pair_values import LosingPair, PredictedPair, SimilarPair
from qvec_deploy.research.study.analysis.row_key import PLAIN
from qvec_deploy.research.study.analysis.study_summary import StudySetting, StudySummary
from qvec_deploy.research.study.cell_values import Cell, Trial, unpack_right
from qvec_deploy.tensors import Scheme

TRIAL_COLUMNS: dict[str, Callable[[Cell, Trial], Value]] = {
    "seed": lambda cell, trial: cell.request.seed,
    "receiver": lambda cell, trial: cell.request.receiver.name,
    "kind": lambda cell, trial: trial.kind,
    "method": lambda cell, trial: trial.method,
    "lambda": lambda cell, trial: trial.lam,
    "donor": lambda cell, trial: trial.donor,
    "control": lambda cell, trial: trial.control,
    "inputs": lambda cell, trial: trial.inputs,
    "divergence_nats": lambda cell, trial: trial.divergence,
    "selecting_images": lambda cell, trial: cell.selecting,
    "selecting_right": lambda cell, trial: trial.selecting_right,
    "test_images": lambda cell, trial: cell.images,
    "test_right": lambda cell, trial: _right(cell, trial),
    "top1": lambda cell, trial: _right(cell, trial) / cell.images,
}


def trials_csv(cells: Iterable[Cell]) -> str:
    """Every trial of every cell, numbers in full; what was not measured is an empty cell."""
    lines = [
        _setting(cell.request.label, cell.request.model, cell.request.grid)
        | {name: value(cell, trial) for name, value in TRIAL_COLUMNS.items()}
        for cell in cells
        for trial in cell.trials
    ]
    return _csv(lines)


def _right(cell: Cell, trial: Trial) -> int:
    return int(unpack_right(trial.right, cell.images).sum())


def _setting(name: str, model: str, grid: Scheme) -> dict[str, Value]:
    columns = ("bits", "granularity", "group_size", "clip")
    return {"name": name, "model": model, **{c: getattr(grid, c) for c in columns}, "grid_method": grid.method}


def _csv(lines: list[dict[str, Value]]) -> str:
    """A column for everything that a line has."""
    columns = dict.fromkeys(column for line in lines for column in line)
    return to_csv(tuple(columns), ([line.get(column) for column in columns] for line in lines))


def pairs_csv(summary: StudySummary) -> str:
    """Every pair of every setting, seeds averaged: gains by way of choosing lambda, similarities, causes, Prop. 1."""
    return _csv([line for setting in summary.settings for line in _pairs(setting)])


def _pairs(setting: StudySetting) -> list[dict[str, Value]]:
    """One record per pair, in the order of the tasks; columns of what was not computed are left out."""
    about = _setting(setting.name, setting.model, setting.grid) | {"seeds": len(setting.seeds)}
    found: dict[tuple[str, str], dict[str, Value]] = {}
    for matrix in setting.matrices:
        column = f"gain_{matrix.mode}" + ("" if matrix.baseline == PLAIN else f"_over_{matrix.baseline}")
        for pair in matrix.pairs:
            start = {**about, "donor": pair.donor, "receiver": pair.receiver}
            known = found.setdefault((pair.donor, pair.receiver), start)
            known |= {column: pair.gain, f"{column}_seed_error": pair.seed_error}
            known[f"{column}_image_error"] = pair.image_error
            known.setdefault(f"lambdas_{matrix.mode}", json.dumps(pair.lambdas))
    more: list[tuple[SimilarPair | LosingPair | PredictedPair, dict[str, Value]]] = []
    more += [(one, {each.measure: one.similarity}) for each in setting.similarities for one in each.points]
    more += [(one, {"cause": one.cause, "within_noise": one.within_noise}) for one in setting.failures]
    predicted = setting.prediction.points if setting.prediction else ()
    more += [(one, {"predicted_share": one.predicted, "measured_share": one.measured}) for one in predicted]
    for one, values in more:
        if (one.donor, one.receiver) in found:
            found[one.donor, one.receiver] |= values
    order = {task: place for place, task in enumerate(setting.tasks)}
    return [found[key] for key in sorted(found, key=lambda key: (order.get(key[1], 0), order.get(key[0], 0), key))]
