"""Cells -> all that a study answers. Pure: the same cells give the same summary."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from qvec_deploy.bench.statistics import Estimate
from qvec_deploy.errors import RecipeError
from qvec_deploy.io.files import canonical_json
from qvec_deploy.research.study.analysis.comparisons import adjust, compare, is_plain
from qvec_deploy.research.study.analysis.costs import FineTune, costs_of
from qvec_deploy.research.study.analysis.pair_values import GainMatrix, Mode
from qvec_deploy.research.study.analysis.paper import beside_paper
from qvec_deploy.research.study.analysis.row_key import (
    FLOAT,
    MSE,
    OWN_QAT,
    PLAIN,
    Chooser,
    RowKey,
    baselines,
    clip_name,
    in_order,
)
from qvec_deploy.research.study.analysis.setting_cells import CellTrials, Pick, SettingCells, row_of
from qvec_deploy.research.study.analysis.study_statistics import RESAMPLES, image_error, ratio, seed_error, share
from qvec_deploy.research.study.analysis.study_summary import (
    Headroom,
    LambdaCurve,
    LambdaPoint,
    SelectionOutcome,
    StudyRow,
    StudySetting,
    StudySummary,
    WinCount,
)
from qvec_deploy.research.study.analysis.task_pairs import losing_pairs_of, prediction_of, similarities_of
from qvec_deploy.research.study.cell_values import Cell, Trial

Float64 = NDArray[np.float64]

MODES: tuple[tuple[Mode, str], ...] = (
    ("lambda_1", "lambda 1"),
    ("label_free", "label-free lambda"),
    ("labelled", "labelled lambda"),
)

ChosenOn = Literal["nothing", "selecting images", "selecting labels", "hindsight"]
CHOOSERS: tuple[tuple[Chooser, str, ChosenOn], ...] = (
    ("label_free", "label-free {}", "selecting images"),
    ("labelled", "labelled {}", "selecting labels"),
    ("hindsight", "{} in hindsight", "hindsight"),
)


def summarize(cells: Sequence[Cell], fine_tunes: Iterable[FineTune] = ()) -> StudySummary:
    """All that a study answers.

    Args:
        cells: In any order; cells that are missing are named, and the rest is used.
        fine_tunes: What training took; without them there are no costs.

    Raises:
        RecipeError: No cells.
        IntegrityError: Cells that do not go together, or without plain PTQ or the float receiver.
    """
    if not cells:
        raise RecipeError("there is no cell to summarize", hint="run the study first: qvec-deploy study run")
    groups: dict[bytes, list[Cell]] = {}
    for cell in cells:
        request = cell.request
        key = [request.label, request.model, request.model_args, sorted(request.skip), request.grid.as_dict()]
        groups.setdefault(canonical_json(key), []).append(cell)
    trained = tuple(fine_tunes)
    settings, families = adjust([setting_of(group, trained) for group in groups.values()])
    models = {entry.model for entry in trained if entry.kind != "base"}
    return StudySummary(settings, families, beside_paper(settings, models), RESAMPLES)


def setting_of(cells: Sequence[Cell], fine_tunes: Sequence[FineTune]) -> StudySetting:
    """What the cells of one model on one grid answer; p-values are not yet adjusted."""
    table, request = SettingCells(cells), cells[0].request
    tried = dict.fromkeys(key for cell in table.by_place.values() for key in cell.rows)
    copies = {key for key in (RowKey("rtn"), MSE) if is_plain(table, key)}  # one thing is one row
    keys = in_order(key for key in tried if key not in copies)
    rows = tuple(_row(table, key, keys) for key in keys)
    headroom = tuple(_headroom(table, receiver) for receiver in table.receivers)
    matrices = tuple(
        GainMatrix(mode, label, key, table.tasks, pairs)
        for key in baselines(keys)
        for mode, label in MODES
        if (pairs := table.pairs(mode, key))
    )
    at_one = table.pairs("lambda_1")
    return StudySetting(
        name=request.label,
        model=request.model,
        model_args=request.model_args,
        skip=request.skip,
        grid=request.grid,
        tasks=table.tasks,
        receivers=table.receivers,
        seeds=table.seeds,
        selecting=request.selecting,
        missing=table.missing,
        rows=rows,
        headroom=headroom,
        matrices=matrices,
        selection=selection_of(table),
        comparisons=compare(table, keys),
        similarities=similarities_of(table, at_one),
        failures=losing_pairs_of(table, at_one, headroom),
        prediction=prediction_of(table, matrices, headroom),
        curves=_curves(table),
        costs=costs_of(cells, fine_tunes, {row.key: row.share_of_gap for row in rows}),
    )


def _row(table: SettingCells, key: RowKey, keys: Sequence[RowKey]) -> StudyRow:
    pick = row_of(key)
    picked = [trials for cell in table.by_place.values() if (trials := pick(cell))]
    wins = (_wins(table, pick, name) for name in baselines(keys) if name != key)
    return StudyRow(
        key=key,
        label=f"plain PTQ: {clip_name(table.cells[0].request.grid)}" if key == PLAIN else key.label,
        needs=key.needs,
        cells=len(picked),
        candidates=sum(map(len, picked)),
        top1=table.mean(pick),
        gain=None if key == PLAIN else table.mean(pick, row_of(PLAIN)),
        share_of_gap=_share_of_gap(table, pick),
        wins=tuple(found for found in wins if found is not None),
    )


def _share_of_gap(table: SettingCells, pick: Pick) -> Estimate | None:
    """Sum of gains over sum of gaps, of the cells that have both: a small gap does not weigh as much as a large one."""
    plain = table.top1(row_of(PLAIN))
    gain, gap = table.top1(pick) - plain, table.top1(row_of(OWN_QAT)) - plain
    there = np.isfinite(gain) & np.isfinite(gap)
    return ratio(np.where(there, gain, 0.0), np.where(there, gap, 0.0))


def _wins(table: SettingCells, pick: Pick, baseline: RowKey) -> WinCount | None:
    won, count, ties = np.zeros(table.shape), np.zeros(table.shape), 0
    for place, cell in table.by_place.items():
        against = cell.of_row(baseline)
        if against:
            other = int(cell.right(against[0]).sum())
            scores = [int(cell.right(trial).sum()) - other for trial in pick(cell)]
            won[place], count[place] = sum(score > 0 for score in scores), len(scores)
            ties += scores.count(0)
    return WinCount(baseline, int(won.sum()), ties, int(count.sum()), share(won, count)) if count.any() else None


def _headroom(table: SettingCells, receiver: str) -> Headroom:
    row, mine = table.receivers.index(receiver), table.of_receiver(receiver)
    floats, own, plain = (table.top1(row_of(key))[row] for key in (FLOAT, OWN_QAT, PLAIN))
    trained = bool(np.isfinite(own).any())
    gap = (own if trained else floats) - plain
    there = np.isfinite(gap)  # a seed may lack its own QAT, or its cell
    ceiling = row_of(OWN_QAT if trained else FLOAT)
    points = [cell.points(ceiling(cell), (cell.plain,)) for cell in mine if ceiling(cell)]
    return Headroom(
        receiver=receiver,
        images=mine[0].cell.images,
        float_top1=float(np.nanmean(floats)),
        own_qat_top1=float(np.nanmean(own)) if trained else None,
        plain_top1=float(np.nanmean(plain)),
        gap=float(gap[there].mean()),
        gap_error=seed_error(gap[there][None]),
        gap_image_error=image_error([np.asarray(np.mean(points, axis=0), np.float64)], [1.0]),
        selecting=min((n for cell in mine if (n := cell.cell.selecting) is not None), default=None),
    )


def _curves(table: SettingCells) -> tuple[LambdaCurve, ...]:
    found = (
        LambdaCurve("pair", "one donor", _points(table, lambda cell: [*cell.pairs.values()])),
        LambdaCurve("mean", "mean of donors", _points(table, lambda cell: [cell.mean])),
    )
    return tuple(curve for curve in found if curve.points)


def _points(table: SettingCells, curves: Callable[[CellTrials], list[dict[float, Trial]]]) -> tuple[LambdaPoint, ...]:
    """Mean gain at every lambda that was tried, 0 among them."""

    def at(lam: float) -> Pick:
        return lambda cell: tuple(curve[lam] for curve in curves(cell) if lam in curve)

    points = []
    for lam in sorted({lam for cell in table.by_place.values() for curve in curves(cell) for lam in curve}):
        gain, wins = table.gain(at(lam)), _wins(table, at(lam), PLAIN)
        if gain is not None and wins is not None:
            points.append(LambdaPoint(lam, gain, wins.wins / wins.count))
    return tuple(points)


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
