"""What a vector costs against the receiver's own QAT, and from how many receivers on it is cheaper."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from qvec_deploy.bench.statistics import Estimate
from qvec_deploy.research.study.analysis.row_key import MEAN, MIX, PAIR, RowKey
from qvec_deploy.research.study.analysis.study_summary import ReceiverCost
from qvec_deploy.research.study.cell_values import Cell
from qvec_deploy.tensors import Scheme

TINY = 1e-9  # seconds, and receivers: below what either is known to


@dataclass(frozen=True)
class FineTune:
    """What one training took; a `base`, the shared pretraining, is charged to nobody and has no task, grid or seed."""

    kind: Literal["base", "fp", "qat"]
    model: str
    task: str | None
    grid: Scheme | None
    seed: int | None
    seconds: float


def break_even(training_s: float, receiver_s: float, own_qat_s: float) -> int | None:
    """Receivers from which on donors are cheaper than a QAT for every receiver.

    With N receivers, vectors cost `training_s` + N `receiver_s` and QAT costs N `own_qat_s`: the smallest whole N at
    which the former is no more is ceil(training_s / (own_qat_s - receiver_s)), and at least 1.

    A receiver's float fine-tune is there either way. None where a receiver costs as much as its QAT.
    """
    saved = own_qat_s - receiver_s
    return max(1, math.ceil(training_s / saved - TINY)) if saved > TINY else None


def costs_of(
    cells: Sequence[Cell], fine_tunes: Iterable[FineTune], shares: dict[RowKey, Estimate | None]
) -> tuple[ReceiverCost, ...]:
    """Costs of the ways to have a quantized receiver, of one model on one grid.

    A patched candidate costs what a cell took on average for patching one and quantizing one. Where donors or lambdas
    are chosen, each candidate is run over the selecting images too, at the cell's mean seconds per image. The mix looks
    at every donor at lambda 1 and then takes its `mix` seconds. A donor costs its float and its quantization-aware
    fine-tune.

    Args:
        fine_tunes: Of the whole study; others than this setting's are left out.
        shares: Row key to what it recovers: rows that are not there are not paid for either.

    Returns:
        Empty where training times or cells' seconds are not known; without the mix where its seconds are not.
    """
    request = cells[0].request
    mine = [entry for entry in fine_tunes if entry.model == request.model]
    fp = _mean([entry.seconds for entry in mine if entry.kind == "fp"])
    qat = _mean([entry.seconds for entry in mine if entry.kind == "qat" and entry.grid == request.grid])
    make, look = _candidate_seconds(cells)
    if fp is None or qat is None or make is None or look is None:
        return ()
    count = max(len(cell.request.donors) for cell in cells)
    tried = make + look
    donors, lambdas = count * tried, len({*request.lambdas, 0.0, 1.0}) * tried
    mixing = _mean([cell.seconds["mix"] for cell in cells if "mix" in cell.seconds])
    ways = (
        (PAIR, "one donor, lambda 1", 1, make),
        (RowKey("pair", "label_free"), "one donor, label-free lambda", 1, lambdas),
        (RowKey("donor", "label_free"), f"label-free donor of {count}, lambda 1", count, donors),
        (
            RowKey("donor_lambda", "label_free"),
            f"label-free donor of {count} and lambda",
            count,
            donors + lambdas - tried,
        ),
        (MEAN, f"mean of {count} donors, lambda 1", count, make),
        (RowKey("mean", "label_free"), f"mean of {count} donors, label-free lambda", count, lambdas),
        (MIX, f"label-free mix of {count} donors", count, None if mixing is None else donors + mixing + make),
    )
    return tuple(
        ReceiverCost(
            key=key,
            label=label,
            donors=trained,
            training_s=trained * (fp + qat),
            receiver_s=seconds,
            own_qat_s=qat,
            break_even=break_even(trained * (fp + qat), seconds, qat),
            share_of_gap=shares[key],
        )
        for key, label, trained, seconds in ways
        if key in shares and seconds is not None
    )


def _candidate_seconds(cells: Sequence[Cell]) -> tuple[float | None, float | None]:
    """Patching and quantizing one candidate, and running it over the selecting images."""
    make, look = [], []
    for cell in cells:
        by_weights = [trial for trial in cell.trials if trial.inputs is None or trial.kind == "control"]
        patched = sum(trial.lam != 0 for trial in by_weights)
        if patched and {"patch", "quantize", "forward"} <= set(cell.seconds):
            make.append(cell.seconds["patch"] / patched + cell.seconds["quantize"] / len(by_weights))
            selecting = cell.request.selecting if cell.selecting is None else cell.selecting
            looked = sum(trial.divergence is not None for trial in cell.trials)  # the others ran the testing ones alone
            images = len(cell.trials) * cell.images + (looked + 1) * selecting  # and float once more on these
            look.append(cell.seconds["forward"] * selecting / images)
    return _mean(make), _mean(look)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
