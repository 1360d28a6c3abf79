"""A recipe that says `select` becomes candidates: lambda, mixing weights and, for `best`, one per method.

What is chosen here is only proposed. The finalists, lambda 0 of every method among them, are built, and `confirm`
decides on images that had no part in the choice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from qvec_deploy.candidate import GENERATED, calibration_images, open_unlabelled, selection_images
from qvec_deploy.checkpoint import Checkpoint
from qvec_deploy.errors import RecipeError
from qvec_deploy.plan import Plan
from qvec_deploy.recipe import Recipe, Select
from qvec_deploy.select.mixing import descend, ridge_weights
from qvec_deploy.select.score import Float64, divergences, wrong
from qvec_deploy.select.search import search
from qvec_deploy.select.student import Student
from qvec_deploy.select.values import Confirmed, Curve, DonorScore, Selection
from qvec_deploy.tensors import Float32
from qvec_deploy.vectors.sources import Source

Advance = Callable[[int, int], None]
Score = Callable[[Float32], Float64]
Outputs = Callable[[Sequence[Float32]], Float32]
"""Batches of images to logits (images, classes)."""


@dataclass(frozen=True)
class Choice:
    """What was proposed.

    Attributes:
        recipe: The recipe with lambda and mixing weights filled in for its own method.
        finalists: Candidates between which `confirm` decides; where scores tie, the earlier one wins.
        selection: What was seen so far; nothing is confirmed yet.
    """

    recipe: Recipe
    finalists: tuple[Recipe, ...]
    selection: Selection


def choose(
    recipe: Recipe,
    plan: Plan,
    receiver: Checkpoint,
    sources: Mapping[str, Source],
    advance: Advance = lambda done, total: None,
) -> Choice:
    """Select lambda, mixing weights and, for `best`, the lambda of every method.

    Args:
        recipe: With a `select` block.
        plan: Its plan.
        receiver: Its receiver.
        sources: Its vectors by label.
        advance: Told how many methods are done, of how many.

    Raises:
        RecipeError: Too few images, or labels that are not the model's.
    """
    select = recipe.select
    if select is None:
        raise RecipeError(f"{recipe.name} selects nothing", hint="add `select` to the recipe")
    images = selection_images(recipe, plan.architecture)
    methods = _methods(recipe, select)

    def student(method: str) -> Student:
        settings = recipe.with_overrides(recipe.with_method(method), name=recipe.name)
        calibration = calibration_images(settings, plan.architecture)
        return Student(_on_grid(plan, settings), receiver, sources, images, calibration)

    own = student(methods[0])
    target = own.float_logits()
    score = _score(recipe, plan, select, target)
    # Weights come from rounding to nearest on the grid, whatever the method: its outputs move with the vector alone.
    grid = recipe.quantize.scheme()
    nearest = own if grid is None or not recipe.quantize.calibrated else student(grid.method)
    donors = _mix(nearest, target, score, select)
    weights = tuple(donor.weight for donor in donors) or None
    curves = []
    for index, method in enumerate(methods):
        trial = own if index == 0 else student(method)
        same_grid = trial.plan.recipe.quantize.scheme() == grid  # a vector helps on its own grid only
        score_at = partial(_mean_score, score, trial, weights)
        curves.append(search(score_at, select.lambdas if same_grid else (0.0,), method))
        advance(index + 1, len(methods))
    resolved = recipe.resolved(curves[0].best, weights)
    selection = Selection(
        by=select.by,
        images=recipe.images.dataset if recipe.images is not None else GENERATED,
        selecting=len(target),
        confirming=0,
        on="",
        donors=donors,
        mixing=select.donors,
        curves=tuple(curves),
        confirmed=(),
        shipped="",
    )
    return Choice(resolved, _finalists(resolved, curves), selection)


def confirm(
    choice: Choice, outputs: Mapping[str, Outputs], float_outputs: Outputs, plan: Plan, *, on: str
) -> Selection:
    """Score the finalists on the other half of the images and decide.

    Args:
        choice: As `choose` left it.
        outputs: What each finalist's built engine gives.
        float_outputs: What the float engine gives.
        plan: Of any of them.
        on: What ran them, for the record.
    """
    recipe = choice.recipe
    images = selection_images(recipe, plan.architecture, confirm=True)
    labels = _labels(recipe, plan, confirm=True) if choice.selection.by == "labelled" else None
    target = None if labels is not None else float_outputs(images)
    confirmed = []
    for finalist in choice.finalists:
        logits = outputs[finalist.name](images)
        scores = wrong(labels, logits) if labels is not None else divergences(target, logits)  # type: ignore[arg-type]
        error = float(scores.std(ddof=1) / np.sqrt(len(scores))) if len(scores) > 1 else 0.0
        confirmed.append(Confirmed(finalist.name, float(scores.mean()), error))
    shipped = min(confirmed, key=lambda entry: entry.score).name
    count = sum(len(batch) for batch in images)
    return replace(choice.selection, confirming=count, on=on, confirmed=tuple(confirmed), shipped=shipped)


def _mean_score(score: Score, student: Student, weights: Sequence[float] | None, lam: float) -> float:
    return float(score(student.logits(lam, weights)).mean())


def _on_grid(plan: Plan, recipe: Recipe) -> Plan:
    """The plan of the same model under another method, which may bring another grid."""
    scheme = recipe.quantize.scheme()
    tensors = tuple(replace(t, scheme=scheme if t.scheme is not None else None) for t in plan.tensors)
    return replace(plan, recipe=recipe, tensors=tensors)


def _methods(recipe: Recipe, select: Select) -> list[str]:
    own = recipe.quantize.method
    if select.by != "best":
        return [own]
    return list(dict.fromkeys([own, *(select.methods or ("gptaq",))]))


def _score(recipe: Recipe, plan: Plan, select: Select, target: Float32) -> Score:
    if select.by != "labelled":
        return lambda logits: divergences(target, logits)
    labels = _labels(recipe, plan, confirm=False)
    return lambda logits: wrong(labels, logits)


def _labels(recipe: Recipe, plan: Plan, *, confirm: bool) -> Any:
    dataset = open_unlabelled(recipe, plan.architecture)
    if dataset.classes != plan.architecture.classes:
        raise RecipeError(
            f"{dataset.name} has {dataset.classes} classes and the model's head {plan.architecture.classes}",
            hint="select: labelled needs the head's own labels; select: label_free needs none",
        )
    return dataset.take(np.arange(int(confirm), len(dataset), 2))[1]


def _mix(student: Student, target: Float32, score: Score, select: Select) -> tuple[DonorScore, ...]:
    """Every donor alone at lambda 1, and the weights that the recipe asks for; nothing to do for a single donor."""
    labels, shares = [label for label, _ in student.plan.sources], [share for _, share in student.plan.sources]
    if len(labels) < 2:
        return ()
    alone = [student.logits(1.0, unit) for unit in np.eye(len(labels)).tolist()]
    scores = [float(score(logits).mean()) for logits in alone]
    weights: Sequence[float] = shares
    if select.donors == "one":
        weights = [float(index == int(np.argmin(scores))) for index in range(len(labels))]
    elif select.donors != "given":
        weights = ridge_weights(target, student.logits(0.0), alone)
        if select.donors == "descent":
            weights = descend(student, target, weights)
    return tuple(map(DonorScore, labels, scores, weights))


def _finalists(resolved: Recipe, curves: Sequence[Curve]) -> tuple[Recipe, ...]:
    """Lambda 0 before the patch of every method: the patch has to be better."""
    finalists = []
    for index, curve in enumerate(curves):
        changes = resolved.with_method(curve.method)
        plain, patched = ("ptq", resolved.name) if index == 0 else (curve.method, f"{curve.method}_patched")
        name = plain if index or curve.best != 0 else resolved.name
        finalists.append(resolved.at_lambda_0(changes, name=name))
        if curve.best != 0:
            finalists.append(resolved.with_overrides({**changes, "lambda": curve.best}, name=patched))
    return tuple(finalists)
