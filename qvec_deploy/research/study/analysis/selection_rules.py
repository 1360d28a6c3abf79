"""Nested selection: what selecting images chose, judged on test images, beside what hindsight would have chosen."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np

from qvec_deploy.research.study.analysis.row_key import Chooser, RowKey
from qvec_deploy.research.study.analysis.setting_cells import SettingCells, row_of
from qvec_deploy.research.study.analysis.study_summary import SelectionOutcome

ChosenOn = Literal["nothing", "selecting images", "selecting labels", "hindsight"]

CHOOSERS: tuple[tuple[Chooser, str, ChosenOn], ...] = (
    ("label_free", "label-free {}", "selecting images"),
    ("labelled", "labelled {}", "selecting labels"),
    ("hindsight", "{} in hindsight", "hindsight"),
)


def selection_rules() -> Iterator[tuple[RowKey, str, ChosenOn]]:
    """Every way of choosing lambda, the donor, or both."""
    yield RowKey("pair", "lambda_1"), "lambda 1, mean over donors", "nothing"
    for chooser, words, chosen_on in CHOOSERS:
        yield RowKey("pair", chooser), f"{words.format('lambda')}, mean over donors", chosen_on
    yield RowKey("donor", "median"), "median donor on test images, lambda 1", "hindsight"
    for chooser, words, chosen_on in CHOOSERS:
        yield RowKey("donor", chooser), f"{words.format('donor')}, lambda 1", chosen_on
    for chooser, words, chosen_on in CHOOSERS:
        yield RowKey("donor_lambda", chooser), words.format("donor and lambda"), chosen_on


def selection_of(cells: SettingCells) -> tuple[SelectionOutcome, ...]:
    """Every way of choosing that was possible, with its gain over plain on test images."""
    rules = list(selection_rules())
    gains = {key: cells.gain(row_of(key)) for key, _, _ in rules}
    found = []
    for key, label, chosen_on in rules:
        gain, best = gains[key], gains[RowKey(key.kind, "hindsight")]
        if gain is not None:
            short = None if best is None or key.chooser == "hindsight" else best.value - gain.value
            found.append(SelectionOutcome(key, label, chosen_on, gain, short, *_lambdas(cells, key)))
    return tuple(found)


def _lambdas(cells: SettingCells, key: RowKey) -> tuple[float | None, float | None, float | None]:
    """Of all lambdas that were chosen: the median, the share that are 0, and at an end of the grid."""
    if key.kind == "donor" or key.chooser == "lambda_1":
        return None, None, None
    chosen, edges = [], []
    for cell in cells.by_place.values():
        grid = {0.0, *(lam for curve in cell.pairs.values() for lam in curve)}
        lambdas = [trial.lam for trial in cell.of_row(key)]
        chosen += lambdas
        edges += [lam in (min(grid), max(grid)) for lam in lambdas]
    return float(np.median(chosen)), float(np.mean([lam == 0 for lam in chosen])), float(np.mean(edges))
