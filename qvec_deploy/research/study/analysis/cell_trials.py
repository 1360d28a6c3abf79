"""A cell, read: which trials stand for which row of the table, and what selecting images would have chosen."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, cached_property
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from qvec_deploy.errors import IntegrityError
from qvec_deploy.research.study.analysis.row_key import ROWS, Chooser, RowKey
from qvec_deploy.research.study.cell_values import Cell, Trial, grid_method, unpack_right

Trials = tuple[Trial, ...]
Key = TypeVar("Key")


class CellTrials:
    """One cell's trials, found by what they are.

    Attributes:
        pairs: Trials by donor and lambda; lambda 0 is plain.
        mean: Trials of the mean of donors by lambda; lambda 0 is plain.
        calibrated: Trials of calibrated methods by method, inputs and lambda, the mean of donors under them.
    """

    def __init__(self, cell: Cell) -> None:
        self.cell = cell
        request, plain = cell.request, self._by_weights(grid_method(cell.request.grid))
        if not plain or not self._of_kind("float"):
            raise IntegrityError(
                f"the cell of {request.receiver.name}, seed {request.seed}, {request.grid}, has no "
                + ("float receiver" if plain else "plain PTQ"),
                hint="compute the cell again",
            )
        (self.plain,) = plain
        self.pairs: dict[str, dict[float, Trial]] = {}
        self.mean: dict[float, Trial] = {}
        self.calibrated: dict[tuple[str, str], dict[float, Trial]] = {}
        for trial in cell.trials:
            if trial.kind == "pair" and trial.donor is not None:
                self.pairs.setdefault(trial.donor, {0.0: self.plain})[trial.lam] = trial
            elif trial.kind in ("plain", "mean") and trial.inputs is not None:
                self.calibrated.setdefault((trial.method, trial.inputs), {})[trial.lam] = trial
            elif trial.kind == "mean":
                self.mean[trial.lam] = trial
        if self.mean:
            self.mean[0.0] = self.plain
        self.right = cache(self._right)
        self.of_pairs = cache(self._of_pairs)
        self.of_row = cache(self._of_row)

    def _of_kind(self, kind: str) -> Trials:
        return tuple(trial for trial in self.cell.trials if trial.kind == kind)

    def _by_weights(self, method: str) -> Trials:
        """What a method by weights alone makes of the receiver; empty where it was not tried."""
        return tuple(t for t in self._of_kind("plain") if t.inputs is None and t.method == method)[:1]

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
        right = np.array([self.right(trial) for trial in trials], np.float64)
        shares: NDArray[np.float64] = 100 * right.mean(axis=0)
        return shares - self.points(minus) if minus else shares

    def choose(self, chooser: Chooser, candidates: Mapping[Key, Trial]) -> Key | None:
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

    def at(self, chooser: Chooser, curve: Mapping[float, Trial]) -> Trials:
        """The trial at lambda 1, or at the lambda that is chosen; empty where there is none."""
        lam = 1.0 if chooser == "lambda_1" else self.choose(chooser, curve)
        return () if lam is None or lam not in curve else (curve[lam],)

    def _of_pairs(self, chooser: Chooser) -> dict[str, Trial]:
        """Every donor at lambda 1, or at the lambda chosen for it; donors that none could be had for are left out."""
        found = {donor: self.at(chooser, curve) for donor, curve in self.pairs.items()}
        return {donor: trials[0] for donor, trials in found.items() if trials}

    def _of_donor(self, chooser: Chooser, *, free: bool = False) -> Trials:
        """The donor chosen at lambda 1, and if `free` at the lambda then chosen for it, as `select` does.

        In hindsight a free one is the best of all; the median donor is in the middle of the test gains, and of an even
        number there are two.
        """
        at_one = self.of_pairs("lambda_1")
        if chooser == "median":
            ordered = sorted(at_one.values(), key=self.gain)
            return tuple(ordered[(len(ordered) - 1) // 2 : len(ordered) // 2 + 1])
        shown = self.of_pairs(chooser) if free else at_one
        donor = self.choose(chooser, shown if free and chooser == "hindsight" else at_one)
        return (shown[donor],) if donor is not None and donor in shown else ()

    def _of_row(self, key: RowKey) -> Trials:
        """The trials that a row averages; empty where it was not tried."""
        kind, chooser = key.kind, key.chooser or "lambda_1"
        curve = self.calibrated.get((key.method or "", key.inputs or ""), {})
        found: dict[str, Callable[[], Trials]] = {
            "rtn": lambda: self._by_weights(kind),
            "mse": lambda: self._by_weights(kind),
            "plain": lambda: (self.plain,),
            "pair": lambda: tuple(self.of_pairs(chooser).values()),
            "donor": lambda: self._of_donor(chooser),
            "donor_lambda": lambda: self._of_donor(chooser, free=True),
            "mean": lambda: self.at(chooser, curve if key.method else self.mean),
            "control": lambda: tuple(t for t in self._of_kind(kind) if (t.control, t.lam) == (key.control, 1.0)),
            "calibrated": lambda: tuple(trial for trial in curve.values() if trial.kind == "plain"),
        }
        return found[kind]() if kind in found else self._of_kind(kind)

    @cached_property
    def rows(self) -> tuple[RowKey, ...]:
        """The rows of the table that were tried."""
        return tuple(key for key in (*ROWS, *self._calibrated()) if self.of_row(key))

    def _calibrated(self) -> Iterator[RowKey]:
        for place, curve in self.calibrated.items():
            yield RowKey("calibrated", None, *place)
            yield RowKey("mean", "lambda_1", *place)
            if len(set(curve) - {0.0}) > 1:
                yield RowKey("mean", "label_free", *place)
