"""Nested selection: what selecting images chose, judged on test images, beside what hindsight would have chosen."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from qvec_deploy.research.study.analysis.cell_trials import CellTrials, Trials
from qvec_deploy.research.study.analysis.row_key import Chooser, RowKey
from qvec_deploy.research.study.analysis.setting_cells import Pick, SettingCells
from qvec_deploy.research.study.analysis.study_summary import SelectionOutcome

ChosenOn = Literal["nothing", "selecting images", "selecting labels", "hindsight"]

CHOOSERS: tuple[tuple[Chooser, str, ChosenOn], ...] = (
    ("label_free", "label-free {}", "selecting images"),
    ("labelled", "labelled {}", "selecting labels"),
    ("hindsight", "{} in hindsight", "hindsight"),
)


@dataclass(frozen=True)
class SelectionRule:
    """A way of choosing, and the trials that it ends with; a `free` one chooses lambda."""

    key: RowKey
    label: str
    chosen_on: ChosenOn
    pick: Pick
    free: bool = False


def selection_rules() -> tuple[SelectionRule, ...]:
    """Every way of choosing lambda, the donor, or both."""
    lambdas, donors, both = [], [], []
    for chooser, words, chosen_on in CHOOSERS:
        label = f"{words.format('lambda')}, mean over donors"
        lambdas.append(SelectionRule(RowKey("pair", chooser), label, chosen_on, partial(_pairs, chooser), True))
        label = f"{words.format('donor')}, lambda 1"
        donors.append(SelectionRule(RowKey("donor", chooser), label, chosen_on, partial(_donor, chooser)))
        pick = partial(_donor, chooser, free=True)
        key = RowKey("donor_lambda", chooser)
        both.append(SelectionRule(key, words.format("donor and lambda"), chosen_on, pick, True))
    at_one = SelectionRule(
        RowKey("pair", "lambda_1"), "lambda 1, mean over donors", "nothing", partial(_pairs, "lambda_1")
    )
    label, pick = "median donor on test images, lambda 1", partial(_donor, "median")
    return (at_one, *lambdas, SelectionRule(RowKey("donor", "median"), label, "hindsight", pick), *donors, *both)


def _pairs(chooser: Chooser, cell: CellTrials) -> Trials:
    return tuple(cell.of_pairs(chooser).values())


def _donor(chooser: Chooser, cell: CellTrials, *, free: bool = False) -> Trials:
    return cell.of_donor(chooser, free=free)


def selection_of(cells: SettingCells) -> tuple[SelectionOutcome, ...]:
    """Every way of choosing that was possible, with its gain over plain on test images."""
    rules = selection_rules()
    gains = {rule.key: cells.gain(rule.pick) for rule in rules}
    found = []
    for rule in rules:
        gain, best = gains[rule.key], gains[RowKey(rule.key.kind, "hindsight")]
        if gain is None:
            continue
        short = None if best is None or rule.key.chooser == "hindsight" else best.value - gain.value
        lambdas = _lambdas(cells, rule.pick) if rule.free else (None, None, None)
        found.append(SelectionOutcome(rule.key, rule.label, rule.chosen_on, gain, short, *lambdas))
    return tuple(found)


def _lambdas(cells: SettingCells, pick: Pick) -> tuple[float, float, float]:
    """Of all lambdas that were picked: the median, the share that are 0, and at an end of the grid."""
    chosen: list[float] = []
    edges: list[bool] = []
    for cell in cells.by_place.values():
        grid = {0.0, *(lam for curve in cell.pairs.values() for lam in curve)}
        lambdas = [trial.lam for trial in pick(cell)]
        chosen += lambdas
        edges += [lam in (min(grid), max(grid)) for lam in lambdas]
    return float(np.median(chosen)), float(np.mean([lam == 0 for lam in chosen])), float(np.mean(edges))
