"""A recipe that says `select` becomes candidates: lambda, mixing weights and, for `best`, one per method.

What is chosen here is only proposed. The finalists, lambda 0 of every method among them, are built, and `confirm`
decides on images that had no part in the choice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from qvec_deploy.bench.selection import Confirmed, DonorScore, Selection
from qvec_deploy.builder.context import BuildContext
from qvec_deploy.builder.images import open_own_images, selection_images
from qvec_deploy.builder.keys import selection_key
from qvec_deploy.builder.select.lambda_search import search
from qvec_deploy.builder.select.mixing_weights import descend, ridge_weights
from qvec_deploy.builder.select.score import Float64, divergences, wrong
from qvec_deploy.builder.select.trial_model import TrialModel
from qvec_deploy.datasets.generated import NAME as GENERATED
from qvec_deploy.datasets.splits import half_of
from qvec_deploy.errors import RecipeError
from qvec_deploy.io.untrusted import adapter
from qvec_deploy.planner import Plan
from qvec_deploy.progress import Advance
from qvec_deploy.recipe import Recipe, Select, named_images
from qvec_deploy.tensors import Float32

Score = Callable[[Float32], Float64]
SMALL = 0.05
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
    context: BuildContext,
    advance: Advance = lambda done, total: None,
) -> Choice:
    """Select lambda, mixing weights and, for `best`, the lambda of every method; what the cache has is not tried again.

    Args:
        advance: Told how many methods are done, of how many.

    Raises:
        RecipeError: Too few images, or labels that are not the model's.
    """
    select = recipe.select
    if select is None:
        raise RecipeError(f"{recipe.name} selects nothing", hint="add `select` to the recipe")
    images = selection_images(recipe, plan)
    grid = recipe.quantize.scheme()
    tried = [*recipe.methods(), *([grid.method] if grid is not None else [])]
    on_grids = {
        method: _on_grid(plan, recipe.with_overrides(recipe.with_method(method), name=recipe.name)) for method in tried
    }
    if context.cache is None:
        return _proposed(recipe, _select(recipe, select, on_grids, context, images, advance))
    labels = _labels(recipe, plan, confirm=False) if select.by == "labelled" else None
    looked_at = {method: context.calibration_images(on_grid) for method, on_grid in on_grids.items()}
    key = selection_key(plan, context.receiver(recipe), context.sources(recipe), images, looked_at, labels)
    with context.cache.entry("selection", key) as entry:
        if entry.new:
            entry.record = asdict(_select(recipe, select, on_grids, context, images, advance))
    return _proposed(recipe, adapter(Selection).validate_python(entry.record))


def _proposed(recipe: Recipe, selection: Selection) -> Choice:
    """What a selection makes of its recipe."""
    first, weights = selection.curves[0], tuple(donor.weight for donor in selection.donors) or None
    resolved = recipe.resolved(first.best, weights if selection.mixing != "given" else None)
    best = {curve.method: curve.best for curve in selection.curves}
    return Choice(resolved, resolved.finalists(best, best=selection.by == "best"), selection)


def _select(
    recipe: Recipe,
    select: Select,
    on_grids: Mapping[str, Plan],
    context: BuildContext,
    images: Sequence[Float32],
    advance: Advance,
) -> Selection:
    """Try donors and lambdas.

    Args:
        on_grids: The plan of every method that is tried.
    """
    methods = recipe.methods()
    plan = on_grids[methods[0]]
    receiver, sources = context.receiver(recipe), context.sources(recipe)

    def trial_model(method: str) -> TrialModel:
        on_grid = on_grids[method]
        return TrialModel(on_grid, receiver, sources, images, context.calibration_images(on_grid))

    own = trial_model(methods[0])
    target = own.float_logits()
    score = _score(recipe, plan, select, target)
    # Weights come from rounding to nearest on the grid, whatever the method: its outputs move with the vector alone.
    grid = recipe.quantize.scheme()
    nearest = own if grid is None or not recipe.quantize.calibrated else trial_model(grid.method)
    donors, solved = _mix(nearest, target, score, select)
    weights = tuple(donor.weight for donor in donors) or None
    curves = []
    for index, method in enumerate(methods):
        trial = own if index == 0 else trial_model(method)
        same_grid = trial.plan.recipe.quantize.scheme() == grid  # a vector helps on its own grid only
        score_at = partial(_mean_score, score, trial, weights)
        curves.append(search(score_at, (*select.lambdas, *solved) if sources and same_grid else (0.0,), method))
        advance(index + 1, len(methods))
    return Selection(
        by=select.by,
        images=named_images(recipe.images) if recipe.images is not None else GENERATED,
        selecting=len(target),
        confirming=0,
        on="",
        donors=donors,
        mixing=select.donors,
        curves=tuple(curves),
        confirmed=(),
        shipped="",
    )


def confirm(
    choice: Choice, outputs: Mapping[str, Outputs], float_outputs: Outputs, plan: Plan, *, on: str
) -> Selection:
    """Score the finalists on the other half of the images and decide.

    Args:
        choice: What `choose` returned.
        float_outputs: What the float engine gives.
    """
    recipe = choice.recipe
    images = selection_images(recipe, plan, confirm=True)
    labels = _labels(recipe, plan, confirm=True) if choice.selection.by == "labelled" else None
    target = None if labels is not None else float_outputs(images)
    confirmed: list[Confirmed] = []
    plain: dict[str, Float64] = {}
    lossless: set[str] = set()
    unfit: set[str] = set()
    for finalist in choice.finalists:
        logits = outputs[finalist.name](images)
        scores = wrong(labels, logits) if labels is not None else divergences(target, logits)  # type: ignore[arg-type]
        changed = int((logits.argmax(axis=1) != target.argmax(axis=1)).sum()) if target is not None else None
        entry, method = Confirmed(finalist.name, *_mean(scores), changed=changed), finalist.quantize.method
        if finalist.lam == 0:
            plain[method] = scores
            lossless |= {method} if changed == 0 else set()
        else:
            gain, error = _mean(plain[method] - scores)
            entry = replace(entry, gain=gain, gain_error=error)
            # The images are the same for both: a patch has to be better by more than chance moves the difference.
            unfit |= {finalist.name} if gain <= error or method in lossless else set()
        confirmed.append(entry)
    shipped = min((entry for entry in confirmed if entry.name not in unfit), key=lambda entry: entry.score).name
    count = sum(len(batch) for batch in images)
    return replace(choice.selection, confirming=count, on=on, confirmed=tuple(confirmed), shipped=shipped)


def _mean(values: Float64) -> tuple[float, float]:
    """Mean and its standard error."""
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))


def _mean_score(score: Score, trial: TrialModel, weights: Sequence[float] | None, lam: float) -> float:
    return float(score(trial.logits(lam, weights)).mean())


def _on_grid(plan: Plan, recipe: Recipe) -> Plan:
    """The plan of the same model under another method, which may bring another grid."""
    scheme = recipe.quantize.scheme()
    tensors = tuple(replace(t, scheme=scheme if t.scheme is not None else None) for t in plan.tensors)
    return replace(plan, recipe=recipe, tensors=tensors)


def _score(recipe: Recipe, plan: Plan, select: Select, target: Float32) -> Score:
    if select.by != "labelled":
        return lambda logits: divergences(target, logits)
    labels = _labels(recipe, plan, confirm=False)
    return lambda logits: wrong(labels, logits)


def _labels(recipe: Recipe, plan: Plan, *, confirm: bool) -> Any:
    return half_of(open_own_images(recipe, plan), confirm=confirm)[1]


def _mix(
    trial: TrialModel, target: Float32, score: Score, select: Select
) -> tuple[tuple[DonorScore, ...], tuple[float, ...]]:
    """Every donor alone at lambda 1, with its share of the mix; and the lambda that a solve found for the shares.

    Shares add up to 1. What the solve gave them in all is a lambda like any other, and is tried as one.
    """
    labels, shares = [label for label, _ in trial.plan.sources], [share for _, share in trial.plan.sources]
    if len(labels) < 2:
        return (), ()
    alone = [trial.logits(1.0, unit) for unit in np.eye(len(labels)).tolist()]
    scores = [float(score(logits).mean()) for logits in alone]
    solved: tuple[float, ...] = ()
    if select.donors == "one":
        shares = [float(index == int(np.argmin(scores))) for index in range(len(labels))]
    elif select.donors != "given":
        weights = ridge_weights(target, trial.logits(0.0), alone)
        if select.donors == "descent":
            weights = descend(trial, target, weights)
        total = sum(weights)
        if total > SMALL:  # else donors undo one another: the solve found nothing to add
            shares, solved = [weight / total for weight in weights], (total,)
    return tuple(map(DonorScore, labels, scores, shares)), solved
