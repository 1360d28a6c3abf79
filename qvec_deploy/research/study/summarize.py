"""Cells -> all that a study answers. Pure: the same cells give the same summary."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from qvec_deploy.bench.statistics import Estimate
from qvec_deploy.errors import RecipeError
from qvec_deploy.io.files import canonical_json
from qvec_deploy.research.study.cell_values import Cell, Trial
from qvec_deploy.research.study.comparisons import adjust, compare, is_plain
from qvec_deploy.research.study.costs import FineTune, costs_of
from qvec_deploy.research.study.grid_means import Crossed, Pick, PickPair, row_of
from qvec_deploy.research.study.losing_pairs import failures_of
from qvec_deploy.research.study.nested_selection import selection_of
from qvec_deploy.research.study.paper import beside_paper
from qvec_deploy.research.study.rows import (
    BY_WEIGHTS,
    METHOD_LABELS,
    Answers,
    baseline,
    clip_name,
    order_of,
    words_of,
)
from qvec_deploy.research.study.similarity import prediction_of, similarities_of
from qvec_deploy.research.study.study_statistics import RESAMPLES, image_error, ratio, seed_error, share
from qvec_deploy.research.study.study_summary import Curve, CurvePoint, Headroom, Matrix, Row, Setting, Summary, Wins

Float64 = NDArray[np.float64]


def summarize(cells: Sequence[Cell], fine_tunes: Iterable[FineTune] = ()) -> Summary:
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
        key = [
            request.name or request.model,
            request.model,
            request.model_args,
            sorted(request.skip),
            request.grid.as_dict(),
        ]
        groups.setdefault(canonical_json(key), []).append(cell)
    trained = tuple(fine_tunes)
    settings, families = adjust([setting_of(group, trained) for group in groups.values()])
    models = {entry.model for entry in trained if entry.kind != "base"}
    return Summary(settings, families, beside_paper(settings, models), RESAMPLES)


def setting_of(cells: Sequence[Cell], fine_tunes: Sequence[FineTune]) -> Setting:
    """What the cells of one model on one grid answer; p-values are not yet adjusted."""
    crossed = Crossed(cells)
    request = cells[0].request
    tried = dict.fromkeys(key for answers in crossed.answers.values() for key in answers.rows)
    copies = {key for key in BY_WEIGHTS if is_plain(crossed, key)}  # one thing is one row
    keys = order_of(key for key in tried if key not in copies)
    rows = tuple(_row(crossed, key, keys) for key in keys)
    headroom, matrices = _headroom(crossed), _matrices(crossed, keys)
    at_one = crossed.pairs(lambda answers, donor: answers.at_one.get(donor))
    return Setting(
        name=request.name or request.model,
        model=request.model,
        model_args=request.model_args,
        skip=request.skip,
        grid=request.grid,
        tasks=crossed.tasks,
        receivers=crossed.receivers,
        seeds=crossed.seeds,
        selecting=request.selecting,
        missing=crossed.missing,
        rows=rows,
        headroom=headroom,
        matrices=matrices,
        selection=selection_of(crossed),
        comparisons=compare(crossed, keys),
        similarities=similarities_of(crossed, at_one),
        failures=failures_of(crossed, at_one, headroom),
        prediction=prediction_of(crossed, matrices, headroom),
        curves=_curves(crossed),
        costs=costs_of(cells, fine_tunes, {row.key: row.share_of_gap for row in rows}),
    )


def _row(crossed: Crossed, key: str, keys: Sequence[str]) -> Row:
    pick = row_of(key)
    picked = [pick(answers) for answers in crossed.answers.values() if pick(answers)]
    return Row(
        key=key,
        label=f"plain PTQ: {clip_name(crossed.cells[0].request.grid)}" if key == "plain" else words_of(key).label,
        needs=words_of(key).needs,
        cells=len(picked),
        candidates=sum(map(len, picked)),
        top1=crossed.measured(pick),
        gain=None if key == "plain" else crossed.measured(pick, row_of("plain")),
        share_of_gap=_share_of_gap(crossed, pick),
        wins=tuple(
            wins for name in _baselines(keys) if name != key and (wins := _wins(crossed, pick, name)) is not None
        ),
    )


def _baselines(keys: Sequence[str]) -> list[str]:
    """Rows that others are held against, of those that were tried."""
    return [key for method in ("plain", "mse", *METHOD_LABELS) if (key := baseline(keys, method)) is not None]


def _share_of_gap(crossed: Crossed, pick: Pick) -> Estimate | None:
    """Sum of gains over sum of gaps, of the cells that have both: a small gap does not weigh as much as a large one."""
    plain = crossed.top1(row_of("plain"))
    gain, gap = crossed.top1(pick) - plain, crossed.top1(row_of("own_qat")) - plain
    there = np.isfinite(gain) & np.isfinite(gap)
    return ratio(np.where(there, gain, 0.0), np.where(there, gap, 0.0))


def _wins(crossed: Crossed, pick: Pick, name: str) -> Wins | None:
    won, count, ties = np.zeros(crossed.shape), np.zeros(crossed.shape), 0
    for place, answers in crossed.answers.items():
        against = answers.rows.get(name)
        if against:
            other = answers.right(against[0]).sum()
            scores = [int(answers.right(trial).sum()) - int(other) for trial in pick(answers)]
            won[place], count[place] = sum(score > 0 for score in scores), len(scores)
            ties += sum(score == 0 for score in scores)
    return Wins(name, int(won.sum()), ties, int(count.sum()), share(won, count)) if count.any() else None


def _headroom(crossed: Crossed) -> tuple[Headroom, ...]:
    top1 = {key: crossed.top1(row_of(key)) for key in ("float", "own_qat", "plain")}
    found = []
    for row, receiver in enumerate(crossed.receivers):
        own = top1["own_qat"][row]
        trained = bool(np.isfinite(own).any())
        gap = (own if trained else top1["float"][row]) - top1["plain"][row]
        there = np.isfinite(gap)  # a seed may lack its own QAT, or its cell
        mine = [answers for place, answers in crossed.answers.items() if place[0] == row]
        ceiling = row_of("own_qat" if trained else "float")
        points = [answers.points(ceiling(answers), (answers.plain,)) for answers in mine if ceiling(answers)]
        found.append(
            Headroom(
                receiver=receiver,
                images=mine[0].cell.images,
                float_top1=float(np.nanmean(top1["float"][row])),
                own_qat_top1=float(np.nanmean(own)) if trained else None,
                plain_top1=float(np.nanmean(top1["plain"][row])),
                gap=float(gap[there].mean()),
                gap_error=seed_error(gap[there][None]),
                gap_image_error=image_error([np.asarray(np.mean(points, axis=0), np.float64)], [1.0]),
                selecting=min((n for answers in mine if (n := answers.cell.selecting) is not None), default=None),
            )
        )
    return tuple(found)


def _matrices(crossed: Crossed, keys: Sequence[str]) -> tuple[Matrix, ...]:
    ways: tuple[tuple[Literal["lambda_1", "label_free", "labelled"], str, PickPair], ...] = (
        ("lambda_1", "lambda 1", lambda answers, donor: answers.at_one.get(donor)),
        ("label_free", "label-free lambda", lambda answers, donor: answers.with_lambda("label_free").get(donor)),
        ("labelled", "labelled lambda", lambda answers, donor: answers.with_lambda("labelled").get(donor)),
    )
    found = [
        Matrix(mode, label, key, crossed.tasks, crossed.pairs(pick, key))
        for key in _baselines(keys)
        for mode, label, pick in ways
    ]
    return tuple(matrix for matrix in found if matrix.pairs)


def _curves(crossed: Crossed) -> tuple[Curve, ...]:
    kinds: tuple[tuple[Literal["pair", "mean"], str], ...] = (("pair", "one donor"), ("mean", "mean of donors"))
    found = [Curve(kind, label, _curve(crossed, kind)) for kind, label in kinds]
    return tuple(curve for curve in found if curve.points)


def _curve(crossed: Crossed, kind: Literal["pair", "mean"]) -> tuple[CurvePoint, ...]:
    """Mean gain at every lambda that was tried, 0 among them."""

    def curves(answers: Answers) -> list[dict[float, Trial]]:
        return list(answers.pairs.values()) if kind == "pair" else [answers.mean]

    def at(lam: float) -> Pick:
        return lambda answers: tuple(curve[lam] for curve in curves(answers) if lam in curve)

    points = []
    for lam in sorted({lam for answers in crossed.answers.values() for curve in curves(answers) for lam in curve}):
        gain, wins = crossed.gain(at(lam)), _wins(crossed, at(lam), "plain")
        if gain is not None and wins is not None:
            points.append(CurvePoint(lam, gain, wins.wins / wins.count))
    return tuple(points)
