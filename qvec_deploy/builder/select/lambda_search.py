"""Lambda: a grid with 0 in it, refined around its best value."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from qvec_deploy.bench.selection import SelectionCurve, SelectionPoint

REFINEMENTS = 2
"""Rounds that halve the distance to the neighbours of the best lambda; four more evaluations."""


def search(score: Callable[[float], float], grid: Sequence[float], method: str) -> SelectionCurve:
    """Score a grid of lambdas, then the middle between the best one and its neighbours, twice.

    Args:
        score: Lambda to score; less is better.
        grid: Lambdas to start with; 0, no patch at all, is added where it is missing.
    """
    scores = {lam: score(lam) for lam in sorted({0.0, *map(float, grid)})}
    low, high = min(scores), max(scores)
    for _ in range(REFINEMENTS):
        tried, best = sorted(scores), _best(scores)
        place = tried.index(best)
        for other in tried[max(place - 1, 0) : place] + tried[place + 1 : place + 2]:
            middle = round((best + other) / 2, 6)
            scores[middle] = score(middle)
    best = _best(scores)
    points = tuple(SelectionPoint(lam, scores[lam]) for lam in sorted(scores))
    return SelectionCurve(method, points, best, at_edge=best in (low, high) and best != 0)


def _best(scores: dict[float, float]) -> float:
    """Of equal scores the smallest change of the receiver wins."""
    return min(scores, key=lambda lam: (scores[lam], abs(lam), lam))
