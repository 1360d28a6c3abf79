"""A study recipe as nodes: what must be made, from what, in which order, and what cannot be. Nothing is made here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from qvec_deploy.datasets import SPLITS, DataConfig, DatasetSpec, Split, open_dataset
from qvec_deploy.datasets.hub_datasets import is_on_hub, look, offline_hub
from qvec_deploy.donors.donor_recipe import DonorBase, DonorGrid, DonorRecipe, DonorTask, DonorTrain
from qvec_deploy.errors import IncompatibleError, RecipeError, errors_about
from qvec_deploy.io.files import require_file, sha256_bytes, sha256_file
from qvec_deploy.io.hub import is_remote
from qvec_deploy.models import Architecture, is_running_statistic, is_skipped, named_heads
from qvec_deploy.research.study.cell_values import CellRequest, DonorFiles, TaskData
from qvec_deploy.research.study.released import checkpoint_pattern, identify, pinned
from qvec_deploy.research.study.study_node import StudyNode, Task
from qvec_deploy.research.study.study_recipe import BaseTraining, StudyModel, StudyRecipe, StudyTask, grid_name
from qvec_deploy.research.study.study_tasks import (
    BaseTask,
    CellTask,
    FineTuneTask,
    ReleasedTask,
    VectorTask,
    WeightsRef,
)

Nodes = Mapping[str, dict[str, WeightsRef]]
"""What nodes made, by kind and task."""


def build_graph(recipe: StudyRecipe, *, offline: bool = False) -> list[list[StudyNode]]:
    """Every node of a study, each after those that it needs.

    Returns:
        Groups to be run one after another: a model each where checkpoints are fetched, else all in one.

    Raises:
        RecipeError, StorageError, IncompatibleError: A model or a task that cannot be; the message names it.
        FetchError: The Hub, or its cache, does not know what a recipe names.
    """
    identify_images = cache(image_identities)  # models of one preprocessing look at the same images
    with offline_hub(offline):
        groups = [list(_ModelNodes(recipe, model, offline, identify_images).nodes()) for model in recipe.models]
    if recipe.checkpoints is not None:
        return groups
    return [[node for group in groups for node in group]]


class _ModelNodes:
    """The nodes of one model."""

    def __init__(
        self, recipe: StudyRecipe, model: StudyModel, offline: bool, look: Callable[..., dict[str, Any]]
    ) -> None:
        from qvec_deploy.models import describe

        self._recipe, self._model, self._offline, self._look = recipe, model, offline, look
        self._tasks = recipe.tasks.all()
        architecture = describe(model.timm, 1, model.model_args)
        self._config = DataConfig.from_mapping(architecture.data_config)
        check_model(model, architecture, recipe.grids)
        self._what: dict[str, Any] = {"model": model.timm, "model_args": dict(model.model_args)}
        self._start, self._first = self._base()

    def nodes(self) -> Iterator[StudyNode]:
        """All of them, each after those that it needs."""
        yield from self._first
        for seed in self._recipe.seeds:
            made: dict[str, dict[str, WeightsRef]] = {"fp": {}, "qat": {}, "vector": {}}
            for task in self._tasks:
                yield _noted(made, task, self._weights(task, seed, None))
            for grid in self._recipe.grids:
                for task in self._tasks:
                    yield _noted(made, task, self._weights(task, seed, grid))
                for task in self._tasks:
                    yield _noted(made, task, self._vector(task, seed, grid, made))
                for task in self._tasks:
                    yield self._cell(task, seed, grid, made)

    def _node(
        self, made: Task, task: StudyTask | None = None, grid: DonorGrid | None = None, seed: int | None = None
    ) -> StudyNode:
        about: dict[str, str | int] = {"model": self._model.name}
        if task is not None and seed is not None:
            about |= {"task": task.name, **({"grid": grid_name(grid)} if grid else {}), "seed": seed}
        trained = isinstance(made, FineTuneTask) or (isinstance(made, BaseTask) and made.training is not None)
        return StudyNode(made, about, int(trained and self._recipe.train.device == "cuda"), self._offline)

    @cached_property
    def _images(self) -> dict[str, dict[str, Any]]:
        """What each task's images are: its classes, and by split what tells them from others."""
        return {task.name: self._seen(task) for task in self._tasks}

    def _seen(self, task: StudyTask) -> dict[str, Any]:
        trains = self._recipe.checkpoints is None
        read = {"train": trains or "moments" in self._recipe.inputs}
        read |= {task.selecting_split: True, task.testing_split: True}
        splits = tuple(split for split in SPLITS if read.get(split))
        augment = self._recipe.train.augment if trains else "none"
        seen = dict(self._look(f"task {task.name}", task.dataset, self._root(task), splits, self._config, augment))
        seen["classes"] = seen["classes"] or task.classes  # a card on the Hub may not say
        check_images(task, seen, trained=trains)
        return seen

    def _root(self, images: StudyTask | BaseTraining) -> str | None:
        return None if images.root is None else self._recipe.locate(images.root)

    def _base(self) -> tuple[WeightsRef | None, list[StudyNode]]:
        """Where all fine-tunes start, and the node that makes it, if any."""
        base = self._recipe.base_of(self._model)
        if base is None:
            return None, []
        if base.checkpoint is not None:
            path = pinned(self._recipe.locate(base.checkpoint), offline=self._offline)
            key = path if is_remote(path) else sha256_file(require_file(Path(path), what=f"base of {self._model.name}"))
            return WeightsRef(key, path=path), []
        task = BaseTask(**self._what, skip=self._model.skip)
        if base.train is not None:
            root = self._root(base.train)
            task = replace(
                task,
                training=base.train,
                root=root,
                images=self._look(f"base of {self._model.name}", base.train.dataset, root, ("train",), self._config),
                device=self._recipe.train.device,
                save_every=self._recipe.train.save_every,
            )
        node = self._node(task)
        return WeightsRef(node.key, node.id), [node]

    def _weights(self, task: StudyTask, seed: int, grid: DonorGrid | None) -> StudyNode:
        """A fine-tune, in float or on a grid: trained here, or released."""
        kind: Literal["fp", "qat"] = "fp" if grid is None else "qat"
        seen, base = self._images[task.name], self._start
        if base is None or self._recipe.checkpoints is not None:  # only released fine-tunes have no base
            scheme = None if grid is None else grid.scheme()
            pattern = checkpoint_pattern(self._model.timm, task.name, task.epochs, seed, scheme, self._model.skip)
            files = {"hub": self._hub, "pattern": pattern, "released": identify(self._hub, pattern)}
            released = ReleasedTask(**self._what, kind=kind, classes=seen["classes"], **files)
            return self._node(released, task, grid, seed)
        recipe = DonorRecipe(
            version=1,
            name=task.name,
            base=DonorBase(**self._what, checkpoint=base.path or "made by a node"),
            task=DonorTask(dataset=task.dataset, root=self._root(task), val=None),
            scheme=grid or DonorGrid(),
            skip=self._model.skip,
            train=DonorTrain(**{**self._recipe.train_of(task), "seed": seed}),
        )
        identity = seen["train"]
        if identity[1] is not None:  # else nobody knows yet how many there are
            with errors_about(f"task {task.name}"):
                recipe.hyper(identity[1])
        tuned = FineTuneTask(
            **self._what, kind=kind, recipe=recipe, base=base, images=identity, classes=seen["classes"]
        )
        return self._node(tuned, task, grid, seed)

    @cached_property
    def _hub(self) -> str:
        """Where released fine-tunes are."""
        published = self._recipe.checkpoints
        assert published is not None  # noqa: S101 - asked before
        return pinned(self._recipe.locate(published.hub), offline=self._offline)

    def _vector(self, task: StudyTask, seed: int, grid: DonorGrid, made: Nodes) -> StudyNode:
        moments = self._recipe.moments if "moments" in self._recipe.inputs else 0
        vector = VectorTask(
            **self._what,
            scheme=grid.scheme(),
            skip=self._model.skip,
            task=task.name if task.dataset == "folder" else task.dataset,
            classes=self._images[task.name]["classes"],
            seed=seed,
            moments=moments,
            fp=made["fp"][task.name],
            qat=made["qat"][task.name],
            base=self._start,
            images=self._images[task.name]["train"] if moments else None,
            dataset=task.dataset,
            root=self._root(task),
        )
        return self._node(vector, task, grid, seed)

    def _cell(self, task: StudyTask, seed: int, grid: DonorGrid, made: Nodes) -> StudyNode:
        recipe = self._recipe
        others = [other for other in self._tasks if other.name != task.name]
        request = CellRequest(
            **self._what,
            skip=self._model.skip,
            grid=grid.scheme(),
            seed=seed,
            receiver=self._data(task),
            fp="",
            own_qat="",
            base=None if self._start is None else "",
            donors=tuple(DonorFiles(other.name, "", "", self._data(other)) for other in others),
            methods=recipe.methods,
            inputs=recipe.inputs,
            lambdas=recipe.all_lambdas,
            controls=recipe.controls,
            selecting=recipe.selecting,
            testing=recipe.testing,
        )
        cell = CellTask(
            **self._what,
            request=request,
            fp=made["fp"][task.name],
            fps=tuple(made["fp"][other.name] for other in others),
            qat=made["qat"][task.name],
            vectors=tuple(made["vector"][other.name] for other in others),
            base=self._start,
            images=self._images,
        )
        return self._node(cell, task, grid, seed)

    def _data(self, task: StudyTask) -> TaskData:
        return TaskData(task.name, task.dataset, self._root(task), task.selecting_split, task.testing_split)


def _noted(made: Nodes, task: StudyTask, node: StudyNode) -> StudyNode:
    made[node.kind][task.name] = WeightsRef(node.key, node.id)
    return node


_FIRST = 16


def image_identities(
    what: str,
    dataset: str,
    root: str | None,
    splits: tuple[Split, ...],
    config: DataConfig,
    augment: Literal["none", "timm"] = "none",
) -> dict[str, Any]:
    """Open images and read the first of them; of a dataset on the Hub, read its card and download nothing.

    Args:
        splits: Those that the study uses; they must agree on the classes.

    Returns:
        `classes` (None where a card does not say), and by split what identifies its images: a list whose second value
        is their number, None where a card does not say.
    """
    found: dict[str, Any] = {}
    folder = None if root is None else Path(root)
    with errors_about(what):
        if is_on_hub(dataset):
            for split, seen in zip(splits, look(dataset, splits, folder), strict=True):
                found |= {"classes": seen.classes, split: [seen.revision, seen.images, split]}
            return found
        names: tuple[str, ...] = ()
        for split in splits:
            spec = DatasetSpec(dataset, split, folder)
            opened = open_dataset(spec, config, expected_classes=found.get("classes"))
            names = names or opened.class_names
            if opened.class_names != names:
                odd = sorted(set(names) ^ set(opened.class_names))
                raise RecipeError(
                    f"{splits[0]} and {split} have other classes: {', '.join(odd[:10])}",
                    hint="every split needs a folder of the same name for each class",
                )
            if split == "train" and augment == "timm":
                from qvec_deploy.donors.feed import augmented

                augmented(opened, spec, config, seed=0)
            first = opened.limited(_FIRST)
            images, labels = first.take(np.arange(len(first)))
            digest = sha256_bytes(images.tobytes() + labels.tobytes())
            found |= {"classes": opened.classes, split: [opened.identity, len(opened), digest]}
    return found


def check_model(model: StudyModel, architecture: Architecture, grids: Sequence[DonorGrid]) -> None:
    """Refuse a model that cannot be put on the grids."""
    for entry in model.skip:
        named = named_heads((entry,), architecture.heads)
        if not any(is_skipped(linear, named) for linear in architecture.linears):
            raise RecipeError(
                f"model {model.name}: skip `{entry}` matches none of its Linears", hint="the head's name is usual"
            )
    measured = next(filter(is_running_statistic, architecture.shapes), None)
    if measured is not None:
        raise IncompatibleError(
            f"model {model.name}: it has BatchNorm (`{measured}`)", hint="use a transformer with LayerNorm"
        )
    linears = architecture.quantized(model.skip)
    if not linears:
        raise IncompatibleError(
            f"model {model.name}: it has no Linear to quantize outside {', '.join(model.skip)}",
            hint="only Linear layers are quantized: use a transformer, or a shorter skip list",
        )
    for name in linears:
        with errors_about(f"model {model.name}: {name}"):
            for grid in grids:
                grid.scheme().groups(architecture.shapes[f"{name}.weight"][1])


def check_images(task: StudyTask, seen: Mapping[str, Any], *, trained: bool) -> None:
    """Refuse images that are not the task's, and accuracy of images that were trained on.

    Args:
        trained: Whether its `train` is trained on here.
    """
    classes = seen["classes"] or 0
    if classes < 2:
        raise RecipeError(
            f"task {task.name}: {task.dataset} does not say that it has two classes or more",
            hint="name labelled images, or give its `classes`",
        )
    if task.classes not in (None, classes):
        raise RecipeError(
            f"task {task.name}: {task.dataset} has {classes} classes, the study says {task.classes}",
            hint="check its dataset, or `classes`",
        )
    if trained and seen["train"] == seen[task.testing_split]:
        raise RecipeError(
            f"task {task.name}: its images of train and of {task.testing_split} are the same",
            hint="accuracy would be of images trained on: give the root a folder for each, "
            "such as ROOT/train/CLASS and ROOT/test/CLASS",
        )
