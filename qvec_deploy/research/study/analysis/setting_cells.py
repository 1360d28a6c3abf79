"""The cells of one model on one grid, read: which trials stand for which row, what was chosen, and means over cells."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache, cached_property
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from qvec_deploy.errors import IntegrityError
from qvec_deploy.research.study.analysis.pair_values import Mode, PairGain
from qvec_deploy.research.study.analysis.row_key import PLAIN, ROWS, Chooser, RowKey
from qvec_deploy.research.study.analysis.study_statistics import image_error, pooled
from qvec_deploy.research.study.analysis.study_summary import PooledMean
from qvec_deploy.research.study.cell_values import Cell, Trial, grid_method, unpack_right

Float64 = NDArray[np.float64]
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


Pick = Callable[[CellTrials], Trials]
"""The trials of a cell that are meant."""


def row_of(key: RowKey) -> Pick:
    """Picks the trials of a row of the table."""
    return lambda cell: cell.of_row(key)


class SettingCells:
    """Cells of one setting, by receiver and seed.

    Attributes:
        tasks: Every receiver and donor: receivers first, in the order of the cells.
        by_place: The cells by (receiver, seed) index.
    """

    def __init__(self, cells: Sequence[Cell]) -> None:
        self.cells = tuple(cells)
        self.receivers = tuple(dict.fromkeys(cell.request.receiver.name for cell in cells))
        donors = (donor.task for cell in cells for donor in cell.request.donors)
        self.tasks = tuple(dict.fromkeys([*self.receivers, *donors]))
        self.seeds = tuple(sorted({cell.request.seed for cell in cells}))
        self.shape = len(self.receivers), len(self.seeds)
        self.by_place: dict[tuple[int, int], CellTrials] = {}
        images: dict[int, int] = {}
        for cell in cells:
            name, seed = cell.request.receiver.name, cell.request.seed
            place = self.receivers.index(name), self.seeds.index(seed)
            if place in self.by_place:
                raise IntegrityError(f"two cells of {name}, seed {seed}", hint="give every cell once")
            if images.setdefault(place[0], cell.images) != cell.images:
                raise IntegrityError(
                    f"cells of {name} have {images[place[0]]} and {cell.images} test images",
                    hint="compute all seeds with the same `testing`",
                )
            self.by_place[place] = CellTrials(cell)

    @property
    def missing(self) -> tuple[str, ...]:
        """`receiver, seed N` without a cell."""
        return tuple(
            f"{name}, seed {seed}"
            for row, name in enumerate(self.receivers)
            for column, seed in enumerate(self.seeds)
            if (row, column) not in self.by_place
        )

    def of_receiver(self, receiver: str) -> list[CellTrials]:
        """Its cells, by seed as they were given."""
        row = self.receivers.index(receiver)
        return [cell for place, cell in self.by_place.items() if place[0] == row]

    def top1(self, pick: Pick) -> Float64:
        """(receivers, seeds) mean accuracy of what is picked, percent; NaN where there is no cell or nothing."""
        table = np.full(self.shape, np.nan)
        for place, cell in self.by_place.items():
            if trials := pick(cell):
                table[place] = cell.top1(trials)
        return table

    def mean(self, pick: Pick, minus: Pick = lambda cell: ()) -> PooledMean:
        """Mean accuracy of what is picked, or its gain over `minus`, over the cells in which something is."""
        picked = {place: trials for place, cell in self.by_place.items() if (trials := pick(cell))}
        points = {p: self.by_place[p].points(trials, minus(self.by_place[p])) for p, trials in picked.items()}
        return pooled(points, self.shape)

    def gain(self, pick: Pick) -> PooledMean | None:
        """Of what is picked, over plain; None where nothing is."""
        return self.mean(pick, row_of(PLAIN)) if any(map(pick, self.by_place.values())) else None

    def pairs(self, mode: Mode, over: RowKey = PLAIN) -> tuple[PairGain, ...]:
        """Gain of every pair over a row, seeds averaged; pairs that no lambda could be had for are left out."""
        found = []
        for row, receiver in enumerate(self.receivers):
            seeds = [self.by_place.get((row, column)) for column in range(len(self.seeds))]
            mine = [(cell, cell.of_pairs(mode)) for cell in seeds if cell is not None and cell.of_row(over)]
            for donor in self.tasks:
                tried = [(cell, trials[donor]) for cell, trials in mine if donor in trials]
                if tried:
                    found.append(_pair(donor, receiver, tried, over))
        return tuple(found)

    def table(self, pairs: Iterable[tuple[str, str, float]]) -> Float64:
        """(tasks, tasks), donors by receivers, of (donor, receiver, value); NaN elsewhere."""
        table = np.full((len(self.tasks), len(self.tasks)), np.nan)
        for donor, receiver, value in pairs:
            table[self.tasks.index(donor), self.tasks.index(receiver)] = value
        return table


def _pair(donor: str, receiver: str, tried: Sequence[tuple[CellTrials, Trial]], over: RowKey) -> PairGain:
    points = [cell.points((trial,), cell.of_row(over)) for cell, trial in tried]
    gains = np.array([part.mean() for part in points])
    return PairGain(
        donor=donor,
        receiver=receiver,
        gain=float(gains.mean()),
        seed_error=float(gains.std(ddof=1) / math.sqrt(len(gains))) if len(gains) > 1 else None,
        image_error=image_error([np.asarray(np.mean(points, axis=0), np.float64)], [1.0]),
        lambdas=tuple(trial.lam for _, trial in tried),
    )
