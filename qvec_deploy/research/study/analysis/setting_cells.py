"""The cells of one model on one grid as a table of receivers by seeds, and its means with all their bars."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from qvec_deploy.errors import IntegrityError
from qvec_deploy.research.study.analysis.cell_trials import CellTrials, Trials
from qvec_deploy.research.study.analysis.pair_values import Mode, PairGain
from qvec_deploy.research.study.analysis.row_key import PLAIN, RowKey
from qvec_deploy.research.study.analysis.study_statistics import image_error, pooled
from qvec_deploy.research.study.analysis.study_summary import PooledMean
from qvec_deploy.research.study.cell_values import Cell, Trial

Float64 = NDArray[np.float64]
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
