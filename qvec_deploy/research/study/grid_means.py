"""The cells of one model on one grid as a table of receivers by seeds, and its means with all their bars."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from qvec_deploy.errors import IntegrityError
from qvec_deploy.research.study.cell_values import Cell, Trial
from qvec_deploy.research.study.rows import Answers, Trials
from qvec_deploy.research.study.study_statistics import image_error, measured
from qvec_deploy.research.study.study_summary import Measured, PairGain

Float64 = NDArray[np.float64]
Pick = Callable[[Answers], Trials]
PickPair = Callable[[Answers, str], Trial | None]


def row_of(key: str) -> Pick:
    """Picks the trials of a row of the table."""
    return lambda answers: answers.rows.get(key, ())


class Crossed:
    """Cells of one setting, by receiver and seed.

    Attributes:
        tasks: Every receiver and donor: receivers first, in the order of the cells.
        receivers: Tasks that have cells.
        seeds: Ascending.
        answers: By (receiver, seed) index.

    Raises:
        IntegrityError: Two cells of one receiver and seed, or seeds with other test images.
    """

    def __init__(self, cells: Sequence[Cell]) -> None:
        self.cells = tuple(cells)
        self.receivers = tuple(dict.fromkeys(cell.request.receiver.name for cell in cells))
        donors = (donor.task for cell in cells for donor in cell.request.donors)
        self.tasks = tuple(dict.fromkeys([*self.receivers, *donors]))
        self.seeds = tuple(sorted({cell.request.seed for cell in cells}))
        self.answers: dict[tuple[int, int], Answers] = {}
        images: dict[int, int] = {}
        for cell in cells:
            name, seed = cell.request.receiver.name, cell.request.seed
            place = self.receivers.index(name), self.seeds.index(seed)
            if place in self.answers:
                raise IntegrityError(f"two cells of {name}, seed {seed}", hint="give every cell once")
            if images.setdefault(place[0], cell.images) != cell.images:
                raise IntegrityError(
                    f"cells of {name} have {images[place[0]]} and {cell.images} test images",
                    hint="compute all seeds with the same `testing`",
                )
            self.answers[place] = Answers(cell)

    @property
    def shape(self) -> tuple[int, int]:
        """Receivers and seeds."""
        return len(self.receivers), len(self.seeds)

    @property
    def missing(self) -> tuple[str, ...]:
        """`receiver, seed N` without a cell."""
        return tuple(
            f"{name}, seed {seed}"
            for row, name in enumerate(self.receivers)
            for column, seed in enumerate(self.seeds)
            if (row, column) not in self.answers
        )

    def values(self, of: Callable[[Answers], float | None]) -> Float64:
        """(receivers, seeds) of a number per cell; NaN where there is no cell or no number."""
        table = np.full(self.shape, np.nan)
        for place, answers in self.answers.items():
            value = of(answers)
            table[place] = np.nan if value is None else value
        return table

    def top1(self, pick: Pick) -> Float64:
        """(receivers, seeds) mean accuracy of what is picked, percent."""
        return self.values(lambda answers: answers.top1(trials) if (trials := pick(answers)) else None)

    def measured(self, pick: Pick, minus: Pick = lambda answers: ()) -> Measured:
        """Mean accuracy of what is picked, or its gain over `minus`, over the cells in which something is."""
        picked = {place: trials for place, answers in self.answers.items() if (trials := pick(answers))}
        points = {p: self.answers[p].points(trials, minus(self.answers[p])) for p, trials in picked.items()}
        return measured(points, self.shape)

    def gain(self, pick: Pick) -> Measured | None:
        """Of what is picked, over plain; None where nothing is."""
        there = any(pick(answers) for answers in self.answers.values())
        return self.measured(pick, row_of("plain")) if there else None

    def pairs(self, pick: PickPair, over: str = "plain") -> tuple[PairGain, ...]:
        """Gain of every pair over a row, seeds averaged; pairs for which nothing is picked are left out."""
        found = []
        for row, receiver in enumerate(self.receivers):
            seeds = [self.answers.get((row, column)) for column in range(len(self.seeds))]
            mine = [answers for answers in seeds if answers is not None and over in answers.rows]
            for donor in self.tasks:
                picked = [(answers, pick(answers, donor)) for answers in mine]
                tried = [(answers, trial) for answers, trial in picked if trial is not None]
                if tried:
                    found.append(_pair(donor, receiver, tried, over))
        return tuple(found)

    def table(self, pairs: Sequence[tuple[str, str, float]]) -> Float64:
        """(tasks, tasks), donors by receivers, of (donor, receiver, value); NaN elsewhere."""
        table = np.full((len(self.tasks), len(self.tasks)), np.nan)
        for donor, receiver, value in pairs:
            table[self.tasks.index(donor), self.tasks.index(receiver)] = value
        return table


def _pair(donor: str, receiver: str, tried: Sequence[tuple[Answers, Trial]], over: str) -> PairGain:
    points = [answers.points((trial,), answers.rows[over]) for answers, trial in tried]
    gains = np.array([part.mean() for part in points])
    return PairGain(
        donor=donor,
        receiver=receiver,
        gain=float(gains.mean()),
        seed_error=float(gains.std(ddof=1) / math.sqrt(len(gains))) if len(gains) > 1 else None,
        image_error=image_error([np.asarray(np.mean(points, axis=0), np.float64)], [1.0]),
        lambdas=tuple(trial.lam for _, trial in tried),
    )
