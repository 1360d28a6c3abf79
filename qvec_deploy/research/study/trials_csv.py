"""A study as CSV: a row per trial with its answers counted, and a row per pair with all that was found of it."""

from __future__ import annotations

import json
from collections.abc import Iterable

from qvec_deploy.report.csv_tables import Value, to_csv
from qvec_deploy.research.study.cell_values import Cell, Trial, unpack_right
from qvec_deploy.research.study.study_summary import Setting, Summary

COLUMNS = (
    "name",
    "model",
    "bits",
    "granularity",
    "group_size",
    "clip",
    "grid_method",
    "seed",
    "receiver",
    "kind",
    "method",
    "lambda",
    "donor",
    "control",
    "inputs",
    "divergence_nats",
    "selecting_images",
    "selecting_right",
    "test_images",
    "test_right",
    "top1",
)


def trials_csv(cells: Iterable[Cell]) -> str:
    """Every trial of every cell, numbers in full; what was not measured is an empty cell."""
    return to_csv(COLUMNS, (_line(cell, trial) for cell in cells for trial in cell.trials))


def _line(cell: Cell, trial: Trial) -> tuple[Value, ...]:
    request, right = cell.request, int(unpack_right(trial.right, cell.images).sum())
    grid = request.grid
    return (
        request.name or request.model,
        request.model,
        grid.bits,
        grid.granularity,
        grid.group_size,
        grid.clip,
        grid.method,
        request.seed,
        request.receiver.name,
        trial.kind,
        trial.method,
        trial.lam,
        trial.donor,
        trial.control,
        trial.inputs,
        trial.divergence,
        cell.selecting,
        trial.selecting_right,
        cell.images,
        right,
        right / cell.images,
    )


def pairs_csv(summary: Summary) -> str:
    """Every pair of every setting, seeds averaged: gains by way of choosing lambda, similarities, causes, Prop. 1."""
    lines = [line for setting in summary.settings for line in _pairs(setting)]
    columns = dict.fromkeys(column for line in lines for column in line)
    return to_csv(tuple(columns), ([line.get(column) for column in columns] for line in lines))


def _pairs(setting: Setting) -> list[dict[str, Value]]:
    """One record per pair, in the order of the tasks; columns of what was not computed are left out."""
    found: dict[tuple[str, str], dict[str, Value]] = {}
    for matrix in setting.matrices:
        for pair in matrix.pairs:
            known = found.setdefault((pair.donor, pair.receiver), _identity(setting, pair.donor, pair.receiver))
            over = "" if matrix.baseline == "plain" else f"_over_{matrix.baseline}"
            known |= {
                f"gain_{matrix.mode}{over}": pair.gain,
                f"gain_{matrix.mode}{over}_seed_error": pair.seed_error,
                f"gain_{matrix.mode}{over}_image_error": pair.image_error,
            }
            known.setdefault(f"lambdas_{matrix.mode}", json.dumps(pair.lambdas))
    for measure in setting.similarities:
        for point in measure.points:
            if (point.donor, point.receiver) in found:
                found[point.donor, point.receiver][measure.measure] = point.similarity
    for lost in setting.failures:
        if (lost.donor, lost.receiver) in found:
            found[lost.donor, lost.receiver] |= {"cause": lost.cause, "within_noise": lost.within_noise}
    for predicted in setting.prediction.points if setting.prediction else ():
        if (predicted.donor, predicted.receiver) in found:
            found[predicted.donor, predicted.receiver] |= {
                "predicted_share": predicted.predicted,
                "measured_share": predicted.measured,
            }
    order = {task: place for place, task in enumerate(setting.tasks)}
    return [found[key] for key in sorted(found, key=lambda key: (order.get(key[1], 0), order.get(key[0], 0), key))]


def _identity(setting: Setting, donor: str, receiver: str) -> dict[str, Value]:
    grid = setting.grid
    return {
        "name": setting.name,
        "model": setting.model,
        "bits": grid.bits,
        "granularity": grid.granularity,
        "group_size": grid.group_size,
        "clip": grid.clip,
        "grid_method": grid.method,
        "seeds": len(setting.seeds),
        "donor": donor,
        "receiver": receiver,
    }
