"""What is proposed, what is confirmed, and that the images of the two share nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qvec_deploy.builder.context import BuildContext
from qvec_deploy.builder.images import selection_images
from qvec_deploy.builder.select.choose import Choice, choose, confirm
from qvec_deploy.builder.select.mixing_weights import descend
from qvec_deploy.builder.select.score import divergences
from qvec_deploy.builder.select.trial_model import TrialModel, at
from qvec_deploy.datasets.splits import half_of
from qvec_deploy.errors import RecipeError
from qvec_deploy.planner import Plan
from qvec_deploy.recipe import Recipe, load_recipe
from qvec_deploy.tensors import Float32

IMAGES = {"dataset": "tiny/realdigits", "split": "val", "limit": 40}
Write = Callable[..., Path]


@pytest.fixture
def proposed(pico_recipe: Write) -> Callable[..., tuple[Choice, Plan]]:
    def propose(**overrides: Any) -> tuple[Choice, Plan]:
        settings = {"lambda": None, "images": IMAGES, "select": {"lambdas": [-0.5, 0.5, 1.0]}} | overrides
        recipe = load_recipe(pico_recipe(**settings))
        context = BuildContext()
        plan = context.plan(recipe)
        return choose(recipe, plan, context), plan

    return propose


def test_copies_of_an_image_are_on_one_side_only() -> None:
    class Copies:
        name, split, classes = "copies", "val", 0

        def __len__(self) -> int:
            return 40

        def take(self, rows: Any) -> Any:
            return np.asarray(rows, np.float32)[:, None] // 2, np.zeros(len(rows), np.int64)

    select, other = (half_of(Copies(), confirm=half)[0][:, 0] for half in (False, True))
    assert len(select) == len(other) == 10
    assert not set(select) & set(other)


def test_selecting_and_confirming_images_differ(pico_recipe: Write) -> None:
    recipe = load_recipe(pico_recipe(images=IMAGES))
    plan = BuildContext().plan(recipe)
    select, other = (np.concatenate(selection_images(recipe, plan, confirm=half)) for half in (False, True))
    assert len(select) == len(other) == 20
    assert not {image.tobytes() for image in select} & {image.tobytes() for image in other}


def test_the_proposal_is_the_recipe_with_numbers_in_it(proposed: Callable[..., tuple[Choice, Plan]]) -> None:
    choice, _ = proposed()
    (curve,) = choice.selection.curves
    assert choice.recipe.lam == curve.best
    assert choice.recipe.select is None
    assert min(point.score for point in curve.points) == next(p.score for p in curve.points if p.lam == curve.best)
    assert {finalist.lam for finalist in choice.finalists} == {0.0, curve.best}
    assert choice.selection.selecting == 20


@pytest.mark.slow
def test_the_students_weights_are_those_the_engine_gets(pico_recipe: Write) -> None:
    from qvec_deploy.builder.weights import make_weights
    from qvec_deploy.tensors import QuantizedTensor

    recipe = load_recipe(pico_recipe())
    context = BuildContext()
    plan, receiver, sources = context.plan(recipe), context.receiver(recipe), context.sources(recipe)
    trial = TrialModel(plan, receiver, sources, selection_images(recipe, plan))
    trial.load(0.5)
    wanted = make_weights(at(plan, 0.5), receiver, sources)
    held = {name: value.numpy() for name, value in trial.model.state_dict().items()}
    for name, value in wanted.tensors:
        expected = value.dequantize() if isinstance(value, QuantizedTensor) else value
        assert np.array_equal(held[name], expected), name


def test_swapping_back_to_lambda_0_leaves_nothing_behind(pico_recipe: Write) -> None:
    recipe = load_recipe(pico_recipe(images=IMAGES))
    context = BuildContext()
    plan = context.plan(recipe)
    images = selection_images(recipe, plan)
    trial = TrialModel(plan, context.receiver(recipe), context.sources(recipe), images)
    before, floats = trial.logits(0.0), trial.float_logits()
    trial.logits(1.0)
    assert np.array_equal(trial.logits(0.0), before)
    assert np.array_equal(trial.float_logits(), floats)


def _outputs(choice: Choice, target: Float32, order: Sequence[str]) -> dict[str, Any]:
    """Engines that are the further from the target the later they stand in `order`."""
    slope = np.linspace(0, 1, target.shape[1], dtype=np.float32)
    logits = {finalist.name: target + order.index(finalist.name) * slope for finalist in choice.finalists}
    return {name: lambda batches, name=name: logits[name] for name in logits}


@pytest.mark.parametrize("winner", ["ptq", "pico"])
def test_the_confirmed_candidate_is_shipped(proposed: Callable[..., tuple[Choice, Plan]], winner: str) -> None:
    choice, plan = proposed()
    target = np.random.default_rng(0).standard_normal((20, 10)).astype(np.float32)
    order = [winner, "pico" if winner == "ptq" else "ptq"]
    done = confirm(choice, _outputs(choice, target, order), lambda batches: target, plan, on="engine")
    assert done.shipped == winner
    assert (done.confirming, done.on) == (20, "engine")
    scores = {entry.name: entry.score for entry in done.confirmed}
    assert scores[order[0]] < scores[order[1]]


def test_equal_scores_ship_lambda_0(proposed: Callable[..., tuple[Choice, Plan]]) -> None:
    choice, plan = proposed()
    target = np.random.default_rng(0).standard_normal((20, 10)).astype(np.float32)
    done = confirm(choice, {f.name: lambda batches: target for f in choice.finalists}, lambda b: target, plan, on="x")
    assert next(finalist for finalist in choice.finalists if finalist.name == done.shipped).lam == 0


def test_where_plain_quantization_changes_no_answer_lambda_0_is_shipped(
    proposed: Callable[..., tuple[Choice, Plan]],
) -> None:
    """However much nearer to the float receiver's probabilities the patch is."""
    choice, plan = proposed()
    target = np.random.default_rng(0).standard_normal((20, 10)).astype(np.float32)
    outputs = {"ptq": lambda batches: target * 0.5, "pico": lambda batches: target * 0.99}
    done = confirm(choice, outputs, lambda batches: target, plan, on="engine")
    plain, patched = done.confirmed
    assert (plain.changed, patched.changed) == (0, 0)
    assert patched.gain is not None and patched.gain > 10 * (patched.gain_error or 0.0) > 0
    assert done.shipped == "ptq"


def test_a_patch_within_chance_of_lambda_0_is_not_shipped(proposed: Callable[..., tuple[Choice, Plan]]) -> None:
    """It is better on average, by less than one standard error of the difference."""
    choice, plan = proposed()
    target = np.random.default_rng(0).standard_normal((20, 10)).astype(np.float32)
    noise = np.random.default_rng(1).standard_normal((20, 10)).astype(np.float32)
    shift = np.zeros((20, 1), np.float32)
    shift[0], shift[1] = 1.0, -0.5
    outputs = {"ptq": lambda batches: target + noise, "pico": lambda batches: target + noise * (1 - 0.5 * shift)}
    done = confirm(choice, outputs, lambda batches: target, plan, on="engine")
    patched = next(entry for entry in done.confirmed if entry.name == "pico")
    assert patched.gain is not None
    assert 0 < patched.gain < (patched.gain_error or 0.0)
    assert done.shipped == "ptq"


def test_the_shares_of_a_mix_add_up_to_1(pico_recipe: Write, tmp_path: Path, pico_folder: Path) -> None:
    second = tmp_path / "second.safetensors"
    second.write_bytes((pico_folder / "vector.safetensors").read_bytes())
    files = [str(pico_folder / "vector.safetensors"), str(second)]
    recipe = load_recipe(
        pico_recipe(
            vector={"files": files}, images=IMAGES, select={"donors": "ridge", "lambdas": [0, 1]}, **{"lambda": None}
        )
    )
    context = BuildContext()
    choice = choose(recipe, context.plan(recipe), context)
    assert choice.recipe.vector is not None
    assert sum(choice.recipe.vector.mixing()) == pytest.approx(1.0)
    assert sum(donor.weight for donor in choice.selection.donors) == pytest.approx(1.0)


def test_best_tries_every_method_with_and_without_the_patch(proposed: Callable[..., tuple[Choice, Plan]]) -> None:
    choice, _ = proposed(select={"by": "best", "methods": ["rtn", "mse"], "lambdas": [0.0, 1.0]})
    assert [curve.method for curve in choice.selection.curves] == ["rtn", "mse"]
    assert {finalist.quantize.method for finalist in choice.finalists} == {"rtn", "mse"}
    on_another_grid = next(curve for curve in choice.selection.curves if curve.method == "mse")
    assert [point.lam for point in on_another_grid.points] == [0.0]  # the vector was trained for absmax


def test_labels_must_be_the_heads(proposed: Callable[..., tuple[Choice, Plan]]) -> None:
    with pytest.raises(RecipeError, match="has 21 classes and the model's head 10"):
        proposed(select={"by": "labelled"}, images={"dataset": "tiny/symbols", "limit": 40})


def test_labelled_scores_are_shares_of_wrong_answers(proposed: Callable[..., tuple[Choice, Plan]]) -> None:
    choice, _ = proposed(select={"by": "labelled", "lambdas": [0.0, 1.0]})
    assert all(round(point.score * 20, 9).is_integer() for point in choice.selection.curves[0].points)


def test_no_images_means_generated_ones(proposed: Callable[..., tuple[Choice, Plan]]) -> None:
    choice, _ = proposed(images=None, select={"lambdas": [0.0, 1.0]})
    assert choice.selection.images == "generated/structured"


def test_a_recipe_without_select_has_nothing_to_choose(pico_recipe: Write) -> None:
    recipe: Recipe = load_recipe(pico_recipe())
    context = BuildContext()
    with pytest.raises(RecipeError, match="selects nothing"):
        choose(recipe, context.plan(recipe), context)


def test_descent_never_ends_worse_than_it_started(pico_recipe: Write, tmp_path: Path, pico_folder: Path) -> None:
    second = tmp_path / "second.safetensors"
    second.write_bytes((pico_folder / "vector.safetensors").read_bytes())
    files = [str(pico_folder / "vector.safetensors"), str(second)]
    recipe = load_recipe(pico_recipe(vector={"files": files}, images=IMAGES))
    context = BuildContext()
    plan = context.plan(recipe)
    images = selection_images(recipe, plan)
    trial = TrialModel(plan, context.receiver(recipe), context.sources(recipe), images)
    target = trial.float_logits()
    start = (2.0, 1.0)
    found = descend(trial, target, start)
    before, after = (divergences(target, trial.logits(1.0, weights)).mean() for weights in (start, found))
    assert found != start
    assert after < before


def test_without_a_vector_only_lambda_0_is_tried(proposed: Callable[..., tuple[Choice, Plan]]) -> None:
    choice, _ = proposed(vector=None, select={"by": "best", "methods": ["rtn", "mse"]})
    assert [[point.lam for point in curve.points] for curve in choice.selection.curves] == [[0.0], [0.0]]


def test_only_the_grid_that_was_asked_for_is_tried(proposed: Callable[..., tuple[Choice, Plan]]) -> None:
    choice, _ = proposed(select={"lambdas": [-0.25, 0.25]})
    assert all(-0.25 <= point.lam <= 0.25 for point in choice.selection.curves[0].points)
