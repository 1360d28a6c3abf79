"""Nested selection: what selecting images chose, judged on test images, beside what hindsight would have chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from qvec_deploy.research.study.grid_means import Crossed, Pick
from qvec_deploy.research.study.rows import Answers, Chooser, Trials
from qvec_deploy.research.study.study_summary import Selected

ChosenOn = Literal["nothing", "selecting images", "selecting labels", "hindsight"]

WORDS: dict[Chooser, tuple[str, ChosenOn]] = {
    "label_free": ("label-free", "selecting images"),
    "labelled": ("labelled", "selecting labels"),
    "hindsight": ("in hindsight", "hindsight"),
}


@dataclass(frozen=True)
class Way:
    """A way of choosing.

    Attributes:
        key: Stable name, `what/how`; what is `pair` (lambda, mean over donors), `donor` or `donor_lambda`.
        label: In words.
        chosen_on: What the choice looks at.
        pick: The trials that it ends with.
        free: Whether it chooses lambda.
    """

    key: str
    label: str
    chosen_on: ChosenOn
    pick: Pick
    free: bool = False


def selection_of(crossed: Crossed) -> tuple[Selected, ...]:
    """Every way of choosing that was possible, with its gain over plain on test images."""
    ways = [*_ways()]
    gains = {way.key: crossed.gain(way.pick) for way in ways}
    found = []
    for way in ways:
        gain = gains[way.key]
        if gain is None:
            continue
        best = gains[f"{way.key.split('/')[0]}/hindsight"]
        short = None if best is None or way.key.endswith("/hindsight") else best.value - gain.value
        lambdas = _Lambdas(crossed, way.pick) if way.free else None
        found.append(
            Selected(
                key=way.key,
                label=way.label,
                chosen_on=way.chosen_on,
                gain=gain,
                short_of_hindsight=short,
                median_lambda=lambdas.median if lambdas else None,
                at_zero=lambdas.at_zero if lambdas else None,
                at_edge=lambdas.at_edge if lambdas else None,
            )
        )
    return tuple(found)


class _Lambdas:
    """Of everything that a way picked."""

    def __init__(self, crossed: Crossed, pick: Pick) -> None:
        chosen: list[float] = []
        edges: list[bool] = []
        for answers in crossed.answers.values():
            grid = {0.0, *(lam for curve in answers.pairs.values() for lam in curve)}
            lambdas = [trial.lam for trial in pick(answers)]
            chosen += lambdas
            edges += [lam in (min(grid), max(grid)) for lam in lambdas]
        self.median = float(np.median(chosen))
        self.at_zero = float(np.mean([lam == 0 for lam in chosen]))
        self.at_edge = float(np.mean(edges))


def _ways() -> Sequence[Way]:
    choosers: tuple[Chooser, ...] = ("label_free", "labelled", "hindsight")

    def lambdas(chooser: Chooser) -> Pick:
        return lambda answers: tuple(answers.with_lambda(chooser).values())

    def donor(chooser: Chooser) -> Pick:
        return lambda answers: answers.donor(chooser)

    def both(chooser: Chooser) -> Pick:
        return lambda answers: answers.donor_and_lambda(chooser)

    def phrase(what: str, chooser: Chooser) -> str:
        words = WORDS[chooser][0]
        return f"{what} {words}" if chooser == "hindsight" else f"{words} {what}"

    return (
        Way("pair/lambda_1", "lambda 1, mean over donors", "nothing", _at_one),
        *(
            Way(f"pair/{c}", phrase("lambda", c) + ", mean over donors", WORDS[c][1], lambdas(c), True)
            for c in choosers
        ),
        Way(
            "donor/median", "median donor on test images, lambda 1", "hindsight", lambda answers: answers.median_donor()
        ),
        *(Way(f"donor/{c}", phrase("donor", c) + ", lambda 1", WORDS[c][1], donor(c)) for c in choosers),
        *(Way(f"donor_lambda/{c}", phrase("donor and lambda", c), WORDS[c][1], both(c), True) for c in choosers),
    )


def _at_one(answers: Answers) -> Trials:
    return tuple(answers.at_one.values())
