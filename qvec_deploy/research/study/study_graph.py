"""A study recipe as nodes: what must be made, from what, in which order. Nothing is made here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from qvec_deploy.datasets import SPLITS, DataConfig
from qvec_deploy.datasets.hub_datasets import offline_hub
from qvec_deploy.donors.donor_recipe import DonorGrid
from qvec_deploy.io.checkpoint import is_remote
from qvec_deploy.io.files import require_file, sha256_file
from qvec_deploy.research.study.cell_values import CELL_VERSION
from qvec_deploy.research.study.image_identity import look_at
from qvec_deploy.research.study.nodes import Node
from qvec_deploy.research.study.published import checkpoint_pattern, identify, pinned
from qvec_deploy.research.study.study_checks import check_images, check_model, check_training
from qvec_deploy.research.study.study_recipe import StudyModel, StudyRecipe, StudyTask, grid_name

_FREE = ("workers", "save_every")  # fields of `train` that do not change the weights


@dataclass(frozen=True)
class Weights:
    """Weights that a node needs: a node's own, or a file that is there already.

    Attributes:
        key: What decides them.
        node: The node's id; None for a file.
        path: The file, or a Hub address; None for a node's.
    """

    key: str
    node: str | None = None
    path: str | None = None

    @classmethod
    def of(cls, node: Node) -> Weights:
        """A node's."""
        return cls(node.key, node.id)

    @property
    def where(self) -> dict[str, str | None]:
        """As a node's settings have them."""
        return {"node": self.node, "path": self.path}

    @property
    def parents(self) -> tuple[str, ...]:
        """The node, if it is one."""
        return () if self.node is None else (self.node,)


def build_graph(recipe: StudyRecipe, *, offline: bool = False) -> list[list[Node]]:
    """Every node of a study, parents before children.

    Args:
        recipe: What is wanted.
        offline: Use the Hub's local cache only.

    Returns:
        Groups to be run one after another: a model each where checkpoints are fetched, else all in one.

    Raises:
        RecipeError, StorageError, IncompatibleError: A model or a task that cannot be; the message names it.
        FetchError: The Hub, or its cache, does not know what a recipe names.
    """
    look = cache(look_at)  # models of one preprocessing look at the same images
    with offline_hub(offline):
        groups = [list(_Model(recipe, model, offline, look).nodes()) for model in recipe.models]
    if recipe.checkpoints is not None:
        return groups
    return [[node for group in groups for node in group]]


class _Model:
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
        self._what = {"model": model.timm, "model_args": dict(model.model_args)}
        self._gpus = int(recipe.train.device == "cuda")

    def nodes(self) -> Iterator[Node]:
        """All of them, parents first."""
        base, made = self._base()
        yield from made
        for seed in self._recipe.seeds:
            fps = {task.name: self._weights(task, seed, None, base) for task in self._tasks}
            yield from fps.values()
            for grid in self._recipe.grids:
                qats = {task.name: self._weights(task, seed, grid, base) for task in self._tasks}
                yield from qats.values()
                vectors = {
                    task.name: self._vector(task, seed, grid, fps[task.name], qats[task.name], base)
                    for task in self._tasks
                }
                yield from vectors.values()
                for task in self._tasks:
                    yield self._cell(task, seed, grid, fps, qats[task.name], vectors, base)

    @cached_property
    def _images(self) -> dict[str, dict[str, Any]]:
        """What each task's images are."""
        return {task.name: self._seen(task) for task in self._tasks}

    def _seen(self, task: StudyTask) -> dict[str, Any]:
        """What a task's images are: its classes, and by split what tells them from others."""
        trains = self._recipe.checkpoints is None
        read = {"train": trains or "moments" in self._recipe.inputs}
        read |= {task.selecting_split: True, task.testing_split: True}
        splits = tuple(split for split in SPLITS if read.get(split))
        augment = self._recipe.train.augment if trains else "none"
        seen = dict(self._look(f"task {task.name}", task.dataset, self._root(task), splits, self._config, augment))
        seen["classes"] = seen["classes"] or task.classes  # a card on the Hub may not say
        check_images(task, seen, trained=trains)
        return seen

    def _root(self, task: StudyTask) -> str | None:
        if task.root is None:
            return None
        return self._recipe.locate(task.root)

    def _base(self) -> tuple[Weights | None, list[Node]]:
        """Where all fine-tunes start, and the node that makes it, if any."""
        base = self._recipe.base_of(self._model)
        if base is None:
            return None, []
        if base.checkpoint is not None:
            path = pinned(self._recipe.locate(base.checkpoint), offline=self._offline)
            key = path if is_remote(path) else sha256_file(require_file(Path(path), what=f"base of {self._model.name}"))
            return Weights(key, path=path), []
        settings: dict[str, Any] = {**self._what, "skip": list(self._model.skip), "offline": self._offline}
        decides: dict[str, Any] = {**self._what, "training": None}
        gpus = 0
        if base.train is not None:
            root = None if base.train.root is None else self._recipe.locate(base.train.root)
            training = base.train.model_dump()
            images = self._look(f"base of {self._model.name}", base.train.dataset, root, ("train",), self._config)
            decides = {**self._what, "skip": list(self._model.skip), "training": training, "images": images}
            decides["device"] = self._recipe.train.device
            settings["training"] = {**training, "root": root}
            settings |= {"save_every": self._recipe.train.save_every, "device": self._recipe.train.device}
            gpus = self._gpus
        node = Node("base", {"model": self._model.name}, decides, settings, gpus=gpus)
        return Weights.of(node), [node]

    def _weights(self, task: StudyTask, seed: int, grid: DonorGrid | None, base: Weights | None) -> Node:
        """A fine-tune, in float or on a grid: trained here, or released."""
        about: dict[str, str | int] = {"model": self._model.name, "task": task.name}
        if grid is not None:
            about["grid"] = grid_name(grid)
        about["seed"] = seed
        kind: Any = "fp" if grid is None else "qat"
        if self._recipe.checkpoints is not None:
            return self._released(task, seed, grid, kind, about)
        assert base is not None  # noqa: S101 - only released fine-tunes have none
        values: dict[str, Any] = self._donor(task, seed, grid, base)
        check_training(task.name, values, self._images[task.name]["train"][1])
        train = {name: value for name, value in values["train"].items() if name not in _FREE}
        decides = {**self._what, "run": kind, "base": base.key, "skip": list(self._model.skip), "train": train}
        decides |= {"images": self._images[task.name]["train"], "classes": self._images[task.name]["classes"]}
        if grid is not None:
            decides["grid"] = grid.model_dump()
        settings = {"recipe": values, "base": base.where, "offline": self._offline}
        return Node(kind, about, decides, settings, base.parents, gpus=self._gpus)

    def _donor(self, task: StudyTask, seed: int, grid: DonorGrid | None, base: Weights) -> dict[str, Any]:
        """The fields of a donor recipe; where its base is is for the job to fill in."""
        return {
            "version": 1,
            "name": task.name,
            "base": {**self._what, "checkpoint": base.path},
            "task": {"dataset": task.dataset, "root": self._root(task), "val": None},
            "scheme": (grid or DonorGrid()).model_dump(),
            "skip": list(self._model.skip),
            "train": {**self._recipe.train_of(task), "seed": seed},
        }

    def _released(
        self, task: StudyTask, seed: int, grid: DonorGrid | None, kind: Any, about: Mapping[str, str | int]
    ) -> Node:
        scheme = None if grid is None else grid.scheme()
        pattern = checkpoint_pattern(self._model.timm, task.name, task.epochs, seed, scheme, self._model.skip)
        classes = self._images[task.name]["classes"]
        settings = {**self._what, "hub": self._hub, "pattern": pattern, "classes": classes, "offline": self._offline}
        decides = {**self._what, "released": identify(self._hub, pattern), "classes": classes}
        return Node(kind, about, decides, settings)

    @cached_property
    def _hub(self) -> str:
        """Where released fine-tunes are."""
        published = self._recipe.checkpoints
        assert published is not None  # noqa: S101 - asked before
        return pinned(self._recipe.locate(published.hub), offline=self._offline)

    def _vector(self, task: StudyTask, seed: int, grid: DonorGrid, fp: Node, qat: Node, base: Weights | None) -> Node:
        moments = self._recipe.moments if "moments" in self._recipe.inputs else 0
        values = {
            **self._what,
            "scheme": grid.scheme().as_dict(),
            "skip": list(self._model.skip),
            "task": task.name if task.dataset == "folder" else task.dataset,
            "classes": self._images[task.name]["classes"],
            "seed": seed,
            "moments": moments,
        }
        images = self._images[task.name]["train"] if moments else None
        decides = {**values, "fp": fp.key, "qat": qat.key, "base": base.key if base else None, "images": images}
        settings = {**values, "fp": fp.id, "qat": qat.id, "base": base.where if base else None}
        settings |= {"dataset": task.dataset, "root": self._root(task), "offline": self._offline}
        about: dict[str, str | int] = {"model": self._model.name, "task": task.name}
        about |= {"grid": grid_name(grid), "seed": seed}
        return Node("vector", about, decides, settings, (fp.id, qat.id, *(base.parents if base else ())))

    def _cell(
        self,
        task: StudyTask,
        seed: int,
        grid: DonorGrid,
        fps: Mapping[str, Node],
        qat: Node,
        vectors: Mapping[str, Node],
        base: Weights | None,
    ) -> Node:
        recipe = self._recipe
        others = [other for other in self._tasks if other.name != task.name]
        values = {
            **self._what,
            "skip": list(self._model.skip),
            "grid": grid.scheme().as_dict(),
            "seed": seed,
            "methods": list(recipe.methods),
            "inputs": list(recipe.inputs),
            "lambdas": list(recipe.all_lambdas),
            "controls": list(recipe.controls),
            "selecting": recipe.selecting,
            "testing": recipe.testing,
        }
        decides = {
            **values,
            "receiver": [task.name, task.dataset, task.selecting_split, task.testing_split],
            "version": CELL_VERSION,
            "images": self._images,  # of all tasks: prototypes are of the donors' too
            "fp": fps[task.name].key,
            "qat": qat.key,
            "base": base.key if base else None,
            "donors": [
                [other.name, other.selecting_split, vectors[other.name].key, fps[other.name].key] for other in others
            ],
        }
        settings = {
            **values,
            "receiver": self._data(task),
            "fp": fps[task.name].id,
            "qat": qat.id,
            "base": base.where if base else None,
            "offline": self._offline,
            "donors": [
                {"data": self._data(other), "vector": vectors[other.name].id, "fp": fps[other.name].id}
                for other in others
            ],
        }
        needed = [fp.id for fp in fps.values()] + [qat.id] + [vectors[other.name].id for other in others]
        about: dict[str, str | int] = {"model": self._model.name, "task": task.name}
        about |= {"grid": grid_name(grid), "seed": seed}
        return Node("cell", about, decides, settings, (*needed, *(base.parents if base else ())))

    def _data(self, task: StudyTask) -> dict[str, Any]:
        splits = {"selecting_split": task.selecting_split, "testing_split": task.testing_split}
        return {"name": task.name, "dataset": task.dataset, "root": self._root(task), **splits}
