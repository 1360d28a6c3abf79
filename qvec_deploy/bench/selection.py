"""What a selection leaves behind: every score it saw, and what it chose."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SelectionPoint:
    """One lambda that was tried.

    Attributes:
        score: On the images that select: mean divergence in nats, or share of wrong answers. Less is better.
    """

    lam: float
    score: float


@dataclass(frozen=True)
class SelectionCurve:
    """Scores over lambda for one method.

    Attributes:
        points: Ascending in lambda.
        best: The lambda of the least score; of equals the one nearest to 0.
        at_edge: Whether `best` is an end of the grid, so that a wider one might do better.
    """

    method: str
    points: tuple[SelectionPoint, ...]
    best: float
    at_edge: bool


@dataclass(frozen=True)
class DonorScore:
    """One donor alone, at lambda 1.

    Attributes:
        score: The same score as a SelectionPoint's.
        weight: Its share of the chosen mix.
    """

    name: str
    score: float
    weight: float


@dataclass(frozen=True)
class Confirmed:
    """A finalist on images that chose nothing.

    Attributes:
        score: The same score as a SelectionPoint's.
        error: Standard error of `score`.
        gain: How much better it is than its own method at lambda 0, image by image; None for lambda 0 itself.
        gain_error: Standard error of `gain`.
        changed: Images for which its answer is not the float receiver's; None where labels score.
    """

    name: str
    score: float
    error: float
    gain: float | None = None
    gain_error: float | None = None
    changed: int | None = None


@dataclass(frozen=True)
class Selection:
    """How a candidate was chosen.

    Attributes:
        by: `label_free`, `labelled` or `best`.
        images: The dataset that selected and confirmed.
        on: What ran the confirmation: `engine`, or `PyTorch` where the engine cannot be opened here.
        donors: Every donor alone; empty with a single one.
        mixing: How the weights came about: `given`, `one`, `ridge` or `descent`.
        confirmed: The finalists, lambda 0 among them.
        shipped: The finalist of the least confirmed score, among those at lambda 0 and the patches whose gain is more
            than one standard error. A patch of a method that changes no answer at lambda 0 has nothing to give back.
    """

    by: str
    images: str
    selecting: int
    confirming: int
    on: str
    donors: tuple[DonorScore, ...]
    mixing: str
    curves: tuple[SelectionCurve, ...]
    confirmed: tuple[Confirmed, ...]
    shipped: str
