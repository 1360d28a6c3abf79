"""What a build would do, on what is there: the plan, the images, the files that are missing, and doubts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from qvec_deploy.bench.run import open_images
from qvec_deploy.builder.context import BuildContext
from qvec_deploy.builder.images import open_own_images
from qvec_deploy.builder.measuring import bench_options
from qvec_deploy.datasets import OpenedDataset
from qvec_deploy.errors import QvecError, StorageError
from qvec_deploy.io.hub import is_remote
from qvec_deploy.planner import Plan, make_plan
from qvec_deploy.progress import Progress
from qvec_deploy.recipe import Evaluate, Images, Recipe
from qvec_deploy.runtimes.registry import find_lowering, find_runtime


@dataclass(frozen=True)
class DataPreview:
    """A data set that a build would read.

    Attributes:
        block: The recipe's block that names it: `evaluate` or `images`.
        opened: The images; None where they are not there, or belong to a service and are not opened for a preview.
    """

    block: str
    settings: Evaluate | Images
    opened: OpenedDataset | None


@dataclass(frozen=True)
class Preview:
    """What a build would do.

    Attributes:
        recipe: The recipe, nothing selected yet.
        plan: The plan of the recipe's own candidate. Where the receiver is missing, timm's model stands for it; where
            vectors are missing, it has no patch.
        candidates: Names of everything that would be built and measured.
        missing: What the recipe names and this machine lacks, a phrase each.
        files_missing: How many of them are files.
        doubts: What does not fit together, a sentence each.
    """

    recipe: Recipe
    plan: Plan
    candidates: tuple[str, ...]
    data: tuple[DataPreview, ...]
    missing: tuple[str, ...]
    files_missing: int
    doubts: tuple[str, ...]


def preview(recipe: Recipe, *, offline: bool = False) -> Preview:
    """Look at what a recipe names; no weights are read, and no picture is opened.

    Raises:
        QvecError: The recipe, or what is there, cannot be built.
    """
    files = list(_missing_files(recipe))
    lacking = {block for block, _ in files}
    plan, names = _plan_of_what_is_there(_without_missing_names(recipe, lacking), lacking, offline)
    missing = [f"{block}: {path}" for block, path in files]
    data, doubts = [], [*plan.images.doubts, *plan.class_names.doubts]
    for block, settings in (("evaluate", recipe.evaluate), ("images", recipe.images)):
        if settings is None:
            continue
        opened = None
        if block not in lacking and not (block == "evaluate" and "receiver.classes" in lacking):
            try:
                opened = _open(recipe, plan, settings)
            except QvecError as error:
                doubts.append(f"{block}: {error.message}; {error.hint}")
        if opened is not None:
            doubts += [f"{block}: {remark}" for remark in opened.remarks]
        data.append(DataPreview(block, settings, opened))
    return Preview(recipe, plan, names, tuple(data), (*missing, *_missing_here(recipe)), len(files), tuple(doubts))


def _missing_files(recipe: Recipe) -> Iterable[tuple[str, str]]:
    """The recipe's field and the path of every file or folder that is not there; addresses are not looked up."""
    named = [("receiver.checkpoint", recipe.receiver.checkpoint)]
    if isinstance(recipe.receiver.classes, str):
        named.append(("receiver.classes", recipe.receiver.classes))
    if recipe.vector is not None:
        named += [("vector", path) for path in recipe.vector.files]
        named += [("vector", path) for donor in recipe.vector.donors for path in (donor.fp, donor.qat)]
    roots = {"evaluate": recipe.evaluate, "images": recipe.images, "quantize.calibration": recipe.quantize.calibration}
    named += [(block, each.root) for block, each in roots.items() if each is not None and each.root is not None]
    for block, path in named:
        if not is_remote(path) and not recipe.data_path(path).exists():
            yield block, path


def _without_missing_names(recipe: Recipe, missing: set[str]) -> Recipe:
    if "receiver.classes" not in missing:
        return recipe
    return recipe.model_copy(update={"receiver": recipe.receiver.model_copy(update={"classes": None})})


def _plan_of_what_is_there(recipe: Recipe, missing: set[str], offline: bool) -> tuple[Plan, tuple[str, ...]]:
    context = BuildContext(offline)
    if not missing & {"receiver.checkpoint", "vector"}:
        plans = context.plans(recipe)
        own = plans[-1] if recipe.select is None else context.plan(recipe)
        return own, tuple(plan.recipe.name for plan in plans)
    names = tuple(candidate.name for candidate in recipe.candidates())
    receiver = None if "receiver.checkpoint" in missing else context.receiver(recipe)
    vectors = {} if receiver is None or "vector" in missing else context.sources(recipe)
    if vectors:
        return make_plan(recipe, receiver, vectors), names
    plain = make_plan(recipe.at_lambda_0(name=recipe.name), receiver)
    return replace(plain, recipe=recipe), names


def _open(recipe: Recipe, plan: Plan, settings: Evaluate | Images) -> OpenedDataset | None:
    if "/" in settings.dataset and not settings.dataset.startswith(("tiny/", "generated/")):
        return None  # of torchvision or of the Hub
    if isinstance(settings, Evaluate):
        return open_images(bench_options(recipe, plan), Progress())
    return open_own_images(recipe, plan)


def _missing_here(recipe: Recipe) -> Iterable[str]:
    """What the target's engine needs and this machine lacks."""
    row = find_runtime(recipe.target.runtime)
    lacking = row.cannot_build(find_lowering(row.name, recipe.target.lowering).name)
    if lacking is not None:
        yield f"target.runtime {row.name}: {lacking}"


def require_files(found: Preview) -> None:
    """Refuse what cannot be built for want of files.

    Raises:
        StorageError: Files that the recipe names are missing.
    """
    if found.files_missing:
        what = "a file or folder is" if found.files_missing == 1 else f"{found.files_missing} files or folders are"
        raise StorageError(
            f"{what} missing: {', '.join(found.missing[: found.files_missing])}",
            hint="put them there, or change the recipe; paths start from its folder",
        )
