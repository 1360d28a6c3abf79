"""Whether an engine's answers fit the labels at all: before any difference between engines is believed.

A model that is read wrong (its preprocessing, the order of its classes, its head) still gives answers. They are then no
better than guessing, or those of other classes, or far more often wrong than their confidences claim. A good model on a
hard task does none of the three.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qvec_deploy.bench import statistics
from qvec_deploy.bench.accuracy import Accuracy
from qvec_deploy.bench.warnings import Finding, MeasurementWarning
from qvec_deploy.tensors import Int32

LEVEL = 0.01
"""Of the test whether answers fit better once classes change places; it is made on images that did not propose it."""
LEAST_GAIN = 0.01
"""Share of the images that such a change must put right: pairs of classes that every model confuses gain less."""
OWN_SHARE = 0.25
"""Right answers in a class, of those that name the other class, up to which a class counts as one that is swapped."""
NAMED_PAIRS = 5

NO_SKILL, LITTLE_SKILL, SOME_SKILL = 0.1, 0.2, 0.45
"""Skill is the way from guessing to no error. A model guesses if it has none; if it has little and that can be chance;
and in both cases only if so many images rule out that it has nearly half of what there is to have."""
CLAIMED_SHARE, CLAIMED_GAP = 0.65, 0.2
"""Right answers, of as many as the confidences claim, below which something is wrong; and the least gap of the two.
Networks that were trained too long on too little are right 60 % of the time where they claim 90."""


@dataclass(frozen=True)
class _Answer:
    """The most frequent answer to the images of a class.

    Attributes:
        times: Images of the class that were answered so.
        own: Images of the class that were answered right.
    """

    answer: int
    times: int
    own: int
    images: int


def receiver_finding(name: str, answers: Accuracy, classes: int, class_names: Sequence[str] = ()) -> Finding | None:
    """The one doubt that explains an engine's answers best; None where they fit the labels.

    Args:
        classes: Outputs of the head.
    """
    if classes < 2:
        return None
    for doubt, found in (
        (MeasurementWarning.OTHER_CLASSES, _other_classes(answers, classes, class_names)),
        (MeasurementWarning.NO_BETTER_THAN_GUESSING, _guessing(answers, classes)),
        (MeasurementWarning.FEWER_RIGHT_THAN_CLAIMED, _overconfident(answers)),
    ):
        if found is not None:
            return Finding(doubt, name, found)
    return None


def swapped_classes(labels: Int32, answers: Int32) -> dict[int, int]:
    """Classes whose images are mostly answered as another class, one for one: label to answer.

    A class that its own images are answered with belongs to nobody else, and of two classes that are answered alike
    only the one with the larger share counts: a model that answers one class to everything swaps none.
    """
    found = _most_frequent(labels, answers)
    taken = {label for label, each in found.items() if each.answer == label}
    ranked = sorted(found.items(), key=lambda entry: (-entry[1].times / entry[1].images, entry[0]))
    swapped: dict[int, int] = {}
    for label, each in ranked:
        if each.answer not in taken and each.own <= OWN_SHARE * each.times:
            swapped[label] = each.answer
            taken.add(each.answer)
    return swapped


def _other_classes(answers: Accuracy, classes: int, class_names: Sequence[str]) -> str | None:
    """Whether answers are those of other classes; each half of the images judges what the other half proposes."""
    labels, predicted = answers.labels, answers.predictions
    half = _rank_in_class(labels) % 2 == 1
    gained = lost = 0
    for proposes in (half, ~half):
        swapped = swapped_classes(labels[proposes], predicted[proposes])
        judged, said = labels[~proposes], predicted[~proposes]
        moved = np.array([swapped.get(label, label) for label in judged.tolist()], np.int32)
        gained += int(((said == moved) & (said != judged)).sum())
        lost += int(((said != moved) & (said == judged)).sum())
    swapped = swapped_classes(labels, predicted)
    clear = statistics.mcnemar(gained, lost) < LEVEL and gained - lost >= LEAST_GAIN * answers.count
    if len(swapped) < 2 or not clear:
        return None
    right = sum(int((predicted[labels == label] == answer).sum()) for label, answer in swapped.items())
    right += int((predicted == labels)[~np.isin(labels, list(swapped))].sum())
    return (
        f"In {len(swapped)} of {len(np.unique(labels))} classes most images are answered as another class, one for "
        f"one: {_pairs(swapped, _most_frequent(labels, predicted), class_names)}{_shift(swapped, classes)}. "
        f"Read so, top-1 is {100 * right / answers.count:.1f} % instead of {100 * answers.top1:.1f} %."
    )


def _pairs(swapped: Mapping[int, int], found: Mapping[int, _Answer], class_names: Sequence[str]) -> str:
    """The clearest swaps."""
    names = dict(enumerate(class_names))
    clearest = sorted(swapped, key=lambda label: (-found[label].times, label))[:NAMED_PAIRS]
    texts = [
        f"`{names.get(swapped[label], swapped[label])}` where the label says `{names.get(label, label)}` "
        f"({found[label].times} of {found[label].images})"
        for label in clearest
    ]
    more = [f"and {len(swapped) - NAMED_PAIRS} more"] * (len(swapped) > NAMED_PAIRS)
    return ", ".join([*texts, *more])


def _shift(swapped: Mapping[int, int], classes: int) -> str:
    """What all swaps have in common where they are a shift of the classes' numbers, the last before the first."""
    steps = {(answer - label) % classes for label, answer in swapped.items()}
    if len(steps) > 1 or len(swapped) < 3:
        return ""
    step = steps.pop()
    count, way = (step, "on") if step <= classes // 2 else (classes - step, "back")
    return f": always the class {count} place{'s' * (count > 1)} {way}"


def _guessing(answers: Accuracy, classes: int) -> str | None:
    """Whether answers have nothing to do with the labels, as far as so many images can tell."""
    count = answers.count
    shares = [np.bincount(each, minlength=classes) / count for each in (answers.labels, answers.predictions)]
    by_chance = float(shares[0] @ shares[1]) if np.count_nonzero(shares[0]) > 1 else 0.0
    guess, found = max(1 / classes, by_chance), statistics.wilson(answers.correct, count)
    skill, least, most = ((value - guess) / (1 - guess) for value in (found.value, found.low, found.high))
    none = skill < NO_SKILL and found.value < 2 * guess
    if not (none or (least <= 0 and skill < LITTLE_SKILL)) or most >= SOME_SKILL:
        return None
    worse = ", more than these answers: some other order of the classes would be better" if found.high < guess else ""
    return (
        f"{answers.correct:,} of {count:,} answers are right: {100 * found.value:.1f} %, 95 % interval "
        f"{100 * found.low:.1f} to {100 * found.high:.1f} %. Guessing gets {100 * guess:.1f} %{worse}."
    )


def _overconfident(answers: Accuracy) -> str | None:
    """Whether far fewer answers are right than their confidences claim."""
    claimed, found = float(answers.confidences.mean()), statistics.wilson(answers.correct, answers.count)
    if found.high >= CLAIMED_SHARE * claimed or claimed - found.value < CLAIMED_GAP:
        return None
    return (
        f"{100 * found.value:.1f} % of {answers.count:,} answers are right (95 % interval {100 * found.low:.1f} to "
        f"{100 * found.high:.1f} %), and their mean confidence is {100 * claimed:.1f} %."
    )


def _most_frequent(labels: Int32, answers: Int32) -> dict[int, _Answer]:
    """By label; of equally frequent answers the right one, then the first."""
    pairs, counts = np.unique(np.stack([labels, answers], axis=1), axis=0, return_counts=True)
    found: dict[int, _Answer] = {}
    for (label, answer), times in zip(pairs.tolist(), counts.tolist(), strict=True):
        before = found.get(label, _Answer(answer, 0, 0, 0))
        own = before.own + times * (answer == label)
        better = times > before.times or (times == before.times and answer == label)
        best, most = (answer, times) if better else (before.answer, before.times)
        found[label] = _Answer(best, most, own, before.images + times)
    return found


def _rank_in_class(labels: Int32) -> Int32:
    """How many earlier images have the same label, by image."""
    order = np.argsort(labels, kind="stable")
    ordered = labels[order]
    starts = np.searchsorted(ordered, ordered)
    ranks = np.empty(len(labels), np.int32)
    ranks[order] = np.arange(len(labels)) - starts
    return ranks
