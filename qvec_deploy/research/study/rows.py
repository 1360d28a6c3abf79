"""A cell, read: which trials stand for which row of the table, and what selecting images would have chosen."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from qvec_deploy.errors import IntegrityError
from qvec_deploy.research.study.cell_values import Cell, Trial, unpack_right
from qvec_deploy.research.study.study_summary import Needs
from qvec_deploy.tensors import Scheme

Chooser = Literal["label_free", "labelled", "hindsight"]
Trials = tuple[Trial, ...]
Key = TypeVar("Key")

INPUTS = ("images", "generated", "moments")
CONTROLS = ("random", "shuffle", "task_vector", "gptq_displacement")


@dataclass(frozen=True)
class Words:
    """What is known of a row by its key.

    Attributes:
        label: In words.
        needs: Of the receiver.
        vector: Whether a quantization vector is in it.
    """

    label: str
    needs: Needs
    vector: bool = False


ROWS = {
    "float": Words("float receiver", "nothing"),
    "own_qat": Words("the receiver's own QAT", "training"),
    "rtn": Words("round to nearest, absmax", "nothing"),
    "mse": Words("MSE clipping", "nothing"),
    "plain": Words("plain PTQ on the grid", "nothing"),
    "pair/lambda_1": Words("one donor, lambda 1", "donors", vector=True),
    "pair/label_free": Words("one donor, label-free lambda", "images", vector=True),
    "pair/labelled": Words("one donor, labelled lambda", "labels", vector=True),
    "donor/label_free": Words("label-free donor, lambda 1", "images", vector=True),
    "donor/labelled": Words("labelled donor, lambda 1", "labels", vector=True),
    "donor_lambda/label_free": Words("label-free donor and lambda", "images", vector=True),
    "donor_lambda/labelled": Words("labelled donor and lambda", "labels", vector=True),
    "mean/lambda_1": Words("mean of donors, lambda 1", "donors", vector=True),
    "mean/label_free": Words("mean of donors, label-free lambda", "images", vector=True),
    "mix": Words("label-free mix of donors", "images", vector=True),
    "control/random": Words("random vector, norms of a donor's", "donors"),
    "control/shuffle": Words("a donor's vector, rows shuffled", "donors"),
    "control/task_vector": Words("a donor's task vector, norms of its vector", "donors"),
    "control/gptq_displacement": Words("a donor's GPTQ displacement, norms of its vector", "donors"),
}
"""Rows that every study may have, in the order of the table; methods that look at inputs follow `plain`, and
the mean of donors under them follows the mix."""

INPUT_LABELS = {"images": "unlabelled images", "generated": "generated images", "moments": "donors' second moments"}
METHOD_LABELS = {"awq": "AWQ", "gptq": "GPTQ", "gptaq": "asymmetric GPTQ"}
BY_WEIGHTS = ("rtn", "mse")
"""Methods that look at nothing; on a grid of the same rule they are plain PTQ by another name."""


class Answers:
    """One cell's trials, found by what they are.

    Raises:
        IntegrityError: No plain PTQ on the grid, or no float receiver: everything is held against them.
    """

    def __init__(self, cell: Cell) -> None:
        self.cell = cell
        self.plain = self._plain()
        self.pairs: dict[str, dict[float, Trial]] = {}
        self.mean: dict[float, Trial] = {}
        for trial in cell.trials:
            if trial.kind == "pair" and trial.donor is not None:
                self.pairs.setdefault(trial.donor, {0.0: self.plain})[trial.lam] = trial
            elif trial.kind == "mean" and trial.inputs is None:
                self.mean[trial.lam] = trial
        if self.mean:
            self.mean[0.0] = self.plain
        self.right = cache(self._right)
        self.with_lambda = cache(self._with_lambda)

    def _plain(self) -> Trial:
        """Plain PTQ on the grid."""
        request = self.cell.request
        kinds = {trial.kind for trial in self.cell.trials}
        plain = self._without_patch("grid" if request.grid.clip < 1 else request.grid.method)
        if not plain or "float" not in kinds:
            raise IntegrityError(
                f"the cell of {request.receiver.name}, seed {request.seed}, {request.grid}, has no "
                + ("plain PTQ" if not plain else "float receiver"),
                hint="compute the cell again",
            )
        return plain[0]

    def _without_patch(self, method: str) -> Trials:
        """What a method by weights alone makes of the receiver; empty where it was not tried."""
        found = (t for t in self.cell.trials if t.kind == "plain" and t.inputs is None and t.method == method)
        return tuple(found)[:1]

    def _right(self, trial: Trial) -> NDArray[np.bool_]:
        """(images,) which test images it gets right."""
        return unpack_right(trial.right, self.cell.images)

    def top1(self, trials: Sequence[Trial]) -> float:
        """Mean accuracy, percent."""
        return 100 * float(np.mean([self.right(trial).mean() for trial in trials]))

    def gain(self, trial: Trial) -> float:
        """Over plain, points."""
        return self.top1((trial,)) - self.top1((self.plain,))

    def points(self, trials: Sequence[Trial], minus: Sequence[Trial] = ()) -> NDArray[np.float64]:
        """(images,) 100 for right, 0 for wrong, averaged over trials; less the same of `minus`."""
        return self._shares(trials) - self._shares(minus) if minus else self._shares(trials)

    def _shares(self, trials: Sequence[Trial]) -> NDArray[np.float64]:
        right = np.array([self.right(trial) for trial in trials], np.float64)
        shares: NDArray[np.float64] = 100 * right.mean(axis=0)
        return shares

    def choose(self, chooser: Chooser, candidates: dict[Key, Trial]) -> Key | None:
        """The candidate that a chooser likes best; of equals the one nearest to lambda 0, then the first.

        Returns:
            None where candidates were not looked at that way, or there are none.
        """
        scores: dict[Chooser, Callable[[Trial], float | None]] = {
            "label_free": lambda trial: trial.divergence,
            "labelled": lambda trial: None if trial.selecting_right is None else -trial.selecting_right,
            "hindsight": lambda trial: -float(self.right(trial).sum()),
        }
        seen = [(scores[chooser](trial), abs(trial.lam), key) for key, trial in candidates.items()]
        if not seen or any(score is None for score, _, _ in seen):
            return None
        return min(seen, key=lambda entry: entry[:2])[2]

    @cached_property
    def at_one(self) -> dict[str, Trial]:
        """Every donor at lambda 1."""
        return {donor: curve[1.0] for donor, curve in self.pairs.items() if 1.0 in curve}

    def _with_lambda(self, chooser: Chooser) -> dict[str, Trial]:
        """Every donor at the lambda chosen for it; donors that none could be chosen for are left out."""
        chosen = {donor: self.choose(chooser, curve) for donor, curve in self.pairs.items()}
        return {donor: self.pairs[donor][lam] for donor, lam in chosen.items() if lam is not None}

    def donor(self, chooser: Chooser) -> Trials:
        """The donor chosen at lambda 1; empty where none could be."""
        donor = self.choose(chooser, self.at_one)
        return () if donor is None else (self.at_one[donor],)

    def donor_and_lambda(self, chooser: Chooser) -> Trials:
        """The donor chosen at lambda 1, then its lambda, as `select` does; in hindsight the best of all."""
        if chooser == "hindsight":
            best = self.with_lambda(chooser)
            found = self.choose(chooser, best)
            return () if found is None else (best[found],)
        donor, chosen = self.choose(chooser, self.at_one), self.with_lambda(chooser)
        return (chosen[donor],) if donor in chosen else ()

    def median_donor(self) -> Trials:
        """The donor in the middle of the test gains at lambda 1, or the two in the middle."""
        ordered = sorted(self.at_one.values(), key=self.gain)
        return tuple(ordered[(len(ordered) - 1) // 2 : len(ordered) // 2 + 1])

    @cached_property
    def rows(self) -> dict[str, Trials]:
        """Row key to the trials that it averages; only rows with trials."""
        return {key: trials for key, trials in self._rows() if trials}

    def _rows(self) -> Iterable[tuple[str, Trials]]:
        of_kind = {kind: tuple(t for t in self.cell.trials if t.kind == kind) for kind in ("float", "own_qat", "mix")}
        yield "float", of_kind["float"]
        yield "own_qat", of_kind["own_qat"]
        for method in BY_WEIGHTS:
            yield method, self._without_patch(method)
        yield "plain", (self.plain,)
        for trial in self.cell.trials:
            if trial.kind == "plain" and trial.inputs is not None:
                yield f"{trial.method}/{trial.inputs}", (trial,)
        yield "pair/lambda_1", tuple(self.at_one.values())
        for chooser in ("label_free", "labelled"):
            yield f"pair/{chooser}", tuple(self.with_lambda(chooser).values())
            yield f"donor/{chooser}", self.donor(chooser)
            yield f"donor_lambda/{chooser}", self.donor_and_lambda(chooser)
        yield "mean/lambda_1", tuple(self.mean[lam] for lam in (1.0,) if lam in self.mean)
        best = self.choose("label_free", self.mean)
        yield "mean/label_free", () if best is None else (self.mean[best],)
        yield "mix", of_kind["mix"]
        yield from self._on_top()
        for control in CONTROLS:
            yield f"control/{control}", tuple(t for t in self.cell.trials if t.control == control and t.lam == 1.0)

    def _on_top(self) -> Iterable[tuple[str, Trials]]:
        """The mean vector under calibrated methods: at lambda 1, and where others were tried the chosen lambda."""
        under: dict[str, dict[float, Trial]] = {}
        for trial in self.cell.trials:
            if trial.kind in ("plain", "mean") and trial.inputs is not None:
                under.setdefault(f"{trial.method}/{trial.inputs}", {})[trial.lam] = trial
        for key, curve in under.items():
            yield f"mean+{key}/lambda_1", tuple(curve[lam] for lam in (1.0,) if lam in curve)
            if len(set(curve) - {0.0}) > 1:
                chosen = self.choose("label_free", curve)
                yield f"mean+{key}/label_free", () if chosen is None else (curve[chosen],)


def order_of(keys: Iterable[str]) -> list[str]:
    """Keys in the order of the table."""
    known = list(ROWS)

    def place(key: str) -> tuple[float, int, int]:
        if key in ROWS:
            return known.index(key), 0, 0
        method, inputs, way = _calibrated(key)
        return known.index("mix" if way else "plain") + 0.5, _index(METHOD_LABELS, method), _index(INPUTS, inputs)

    return sorted(keys, key=place)


def words_of(key: str) -> Words:
    """What is known of a row by its key."""
    if key in ROWS:
        return ROWS[key]
    method, inputs, way = _calibrated(key)
    words = f"{METHOD_LABELS.get(method, method)}, {INPUT_LABELS.get(inputs, inputs)}"
    needs: Needs = "donors" if way or inputs == "moments" else "nothing"
    if inputs == "images" or way == "label_free":
        needs = "images"
    if not way:
        return Words(words, needs)
    chosen = "lambda 1" if way == "lambda_1" else "label-free lambda"
    return Words(f"mean of donors, {chosen}, under {words}", needs, vector=True)


def clip_name(grid: Scheme) -> str:
    """How a grid's scale is found, and so what plain PTQ on it is: MSE clipping, absmax or clip 0.65."""
    if grid.method == "mse":
        return "MSE clipping"
    return "absmax" if grid.clip == 1 else f"clip {grid.clip:g}"


def _calibrated(key: str) -> tuple[str, str, str]:
    """Method, its inputs, and how the mean of donors under it was scaled: nothing without a mean."""
    method, inputs, *way = key.removeprefix("mean+").split("/")
    return method, inputs, way[0] if way else ""


def methods_of(rows: Iterable[str]) -> tuple[str, ...]:
    """The rows of methods without a vector that do more than plain PTQ, in the order of the table."""
    return tuple(key for key in order_of(rows) if key == "mse" or (key not in ROWS and "+" not in key))


def baseline(rows: Iterable[str], method: str) -> str | None:
    """The row that stands for a method: with unlabelled images where that was tried, else with what was."""
    there = set(rows)
    return next((key for key in (method, *(f"{method}/{inputs}" for inputs in INPUTS)) if key in there), None)


def _index(order: Iterable[str], name: str) -> int:
    """Place of a name; the end for unknown ones."""
    names = list(order)
    return names.index(name) if name in names else len(names)
