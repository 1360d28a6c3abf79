"""The tasks of a study's nodes: what decides the result of each, what it needs, and how it is made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from qvec_deploy.donors.donor_recipe import DonorRecipe
from qvec_deploy.io.files import canonical_json, sha256_bytes, sha256_file, write_bytes
from qvec_deploy.io.safetensors_file import write_safetensors
from qvec_deploy.research.study.cell_values import CELL_VERSION, CellRequest
from qvec_deploy.research.study.study_recipe import BaseTraining
from qvec_deploy.research.study.study_store import StudyStore, TaskContext
from qvec_deploy.tensors import Scheme

NodeKind = Literal["base", "fp", "qat", "vector", "cell"]

_FREE = ("workers", "save_every")  # fields of `train` that do not change the weights
_BATCH = 50  # images at a time, where second moments are collected


@dataclass(frozen=True)
class WeightsRef:
    """Weights that a task needs: a node's own, or a file that is there already.

    Attributes:
        key: What decides them.
        node: The node's id; None for a file.
        path: The file, or a Hub address; None for a node's.
    """

    key: str
    node: str | None = None
    path: str | None = None

    def locate(self, store: StudyStore) -> str:
        """The path of the weights; a node's are held against what they were when it was made."""
        return self.path or str(store.weights(self.node or "", self.key))


@dataclass(frozen=True, kw_only=True)
class _TaskOfModel:
    """A task of one of timm's models."""

    model: str
    model_args: dict[str, Any]

    @property
    def parents(self) -> tuple[str, ...]:
        """Ids of the nodes that it needs."""
        values = vars(self).values()
        refs = [ref for value in values for ref in (value if isinstance(value, tuple) else (value,))]
        return tuple(ref.node for ref in refs if isinstance(ref, WeightsRef) and ref.node is not None)

    def _decided_by_model(self) -> dict[str, Any]:
        return {"model": self.model, "model_args": self.model_args}


@dataclass(frozen=True, kw_only=True)
class BaseTask(_TaskOfModel):
    """The pretrained weights that all fine-tunes start from: timm's, or with `training` trained here.

    Attributes:
        images: What tells them from others (`study_graph.image_identities`).
    """

    type: Literal["base"] = "base"
    skip: tuple[str, ...]
    training: BaseTraining | None = None
    root: str | None = None
    images: Any = None
    device: str = "cpu"
    save_every: int = 1

    kind: NodeKind = "base"

    def decides(self) -> dict[str, Any]:
        """All that decides its result, as JSON values; so in the other tasks."""
        if self.training is None:
            return {**self._decided_by_model(), "training": None}
        trained = {"training": self.training.model_dump(), "images": self.images, "device": self.device}
        return {**self._decided_by_model(), "skip": list(self.skip), **trained}

    def make(self, at: TaskContext) -> dict[str, Any]:
        """Write its files, and return what is known of them as JSON values; so in the other tasks."""
        if self.training is None:
            write_safetensors(at.folder / "base.safetensors", self._pretrained(at.offline))
            return {}
        from qvec_deploy.research.study.trainings import train_base

        wanted = self.training.model_copy(update={"root": self.root})
        state, seconds = train_base(self.model, self.model_args, self.skip, wanted, self.device, self.save_every, at)
        write_safetensors(at.folder / "base.safetensors", state)
        return {"seconds": round(seconds, 3)}

    def _pretrained(self, offline: bool) -> Mapping[str, Any]:
        from qvec_deploy.donors.donor_inputs import open_base

        base = {"model": self.model, "model_args": self.model_args, "pretrained": True}
        values = {"version": 1, "name": "base", "base": base, "task": {"dataset": "none"}}
        recipe = DonorRecipe.model_validate_json(canonical_json(values))
        return open_base(recipe, offline=offline).state


@dataclass(frozen=True, kw_only=True)
class FineTuneTask(_TaskOfModel):
    """A fine-tune that is trained here, in float or on the recipe's grid."""

    type: Literal["fine_tune"] = "fine_tune"
    kind: Literal["fp", "qat"]
    recipe: DonorRecipe
    base: WeightsRef
    images: Any
    classes: int

    def decides(self) -> dict[str, Any]:
        """As BaseTask's."""
        recipe = self.recipe
        train = {name: value for name, value in recipe.train.model_dump().items() if name not in _FREE}
        decides = {**self._decided_by_model(), "run": self.kind, "base": self.base.key, "skip": list(recipe.skip)}
        decides |= {"train": train, "images": self.images, "classes": self.classes}
        return decides if self.kind == "fp" else {**decides, "grid": recipe.scheme.model_dump()}

    def make(self, at: TaskContext) -> dict[str, Any]:
        """As BaseTask's."""
        from qvec_deploy.research.study.trainings import fine_tune

        base = self.recipe.base.model_copy(update={"checkpoint": self.base.locate(at.store)})
        recipe = self.recipe.model_copy(update={"base": base})
        state, seconds = fine_tune(recipe, self.kind, at)
        write_safetensors(at.folder / f"{self.kind}.safetensors", state)
        return {"seconds": round(seconds, 3)}


@dataclass(frozen=True, kw_only=True)
class ReleasedTask(_TaskOfModel):
    """A fine-tune that others released.

    Attributes:
        released: What tells its file from others (`released.identify`).
    """

    type: Literal["released"] = "released"
    kind: Literal["fp", "qat"]
    hub: str
    pattern: str
    released: Any
    classes: int

    def decides(self) -> dict[str, Any]:
        """As BaseTask's."""
        return {**self._decided_by_model(), "released": self.released, "classes": self.classes}

    def make(self, at: TaskContext) -> dict[str, Any]:
        """As BaseTask's; the file stays where it lies."""
        from qvec_deploy.research.study.released import find, require_model

        path = find(self.hub, self.pattern, offline=at.offline).absolute()
        require_model(path, self.model, self.model_args, self.classes)
        return {"path": str(path), "bytes": path.stat().st_size, "sha256": sha256_file(path)}


@dataclass(frozen=True, kw_only=True)
class VectorTask(_TaskOfModel):
    """A donor's vector, with second moments where the study calibrates by them.

    Attributes:
        task: The task as the vector's header names it.
        moments: Training images behind the moments; 0 for none.
        images: What tells the training images from others; None where they are not looked at.
    """

    type: Literal["vector"] = "vector"
    scheme: Scheme
    skip: tuple[str, ...]
    task: str
    classes: int
    seed: int
    moments: int
    fp: WeightsRef
    qat: WeightsRef
    base: WeightsRef | None
    images: Any
    dataset: str
    root: str | None
    kind: NodeKind = "vector"

    def decides(self) -> dict[str, Any]:
        """As BaseTask's."""
        return {
            **self._decided_by_model(),
            **{name: getattr(self, name) for name in ("task", "classes", "seed", "moments", "images")},
            "scheme": self.scheme.as_dict(),
            "skip": list(self.skip),
            "fp": self.fp.key,
            "qat": self.qat.key,
            "base": self.base.key if self.base else None,
        }

    def make(self, at: TaskContext) -> dict[str, Any]:
        """As BaseTask's."""
        from qvec_deploy.io.checkpoint import Checkpoint
        from qvec_deploy.models import describe
        from qvec_deploy.vectors.extract import extract_vector

        fp, qat = (_read_weights(Checkpoint.open(run.locate(at.store))) for run in (self.fp, self.qat))
        base = None
        if self.base is not None:
            source = Checkpoint.open(self.base.locate(at.store), offline=at.offline)
            base = _read_weights(source), source.fingerprint()
        header = extract_vector(
            fp,
            qat,
            at.folder / "vector.safetensors",
            scheme=self.scheme,
            skip=self.skip,
            task=self.task,
            seed=self.seed,
            architecture=describe(self.model, self.classes, self.model_args),
            base=base,
            moments=self._moments(fp) if self.moments else None,
        )
        return {"norm": header.norm, "weight_norm": header.weight_norm}

    def _moments(self, fp: Mapping[str, Any]) -> Any:
        """Second moments of the float donor's Linear inputs on some of its training images."""
        import torch

        from qvec_deploy.datasets import DataConfig, DatasetSpec, batches, open_dataset
        from qvec_deploy.models import create, describe
        from qvec_deploy.quantize.calibrated import collect_moments

        config = DataConfig.from_mapping(describe(self.model, 1, self.model_args).data_config)
        root = None if self.root is None else Path(self.root)
        data = open_dataset(DatasetSpec(self.dataset, "train", root, self.moments), config)
        network = create(self.model, self.classes, self.model_args)
        network.load_state_dict({name: torch.from_numpy(value) for name, value in fp.items()})
        return collect_moments(network, [images for images, _ in batches(data, _BATCH)], self.skip)


@dataclass(frozen=True, kw_only=True)
class CellTask(_TaskOfModel):
    """Everything that is tried on one receiver.

    Attributes:
        images: Images of all tasks: prototypes are computed for donors too.
    """

    type: Literal["cell"] = "cell"
    request: CellRequest
    fp: WeightsRef
    fps: tuple[WeightsRef, ...]
    qat: WeightsRef
    vectors: tuple[WeightsRef, ...]
    base: WeightsRef | None
    images: Any
    kind: NodeKind = "cell"

    def decides(self) -> dict[str, Any]:
        """As BaseTask's."""
        request, receiver = self.request, self.request.receiver
        lists = ("skip", "methods", "inputs", "lambdas", "controls")
        splits = [donor.data.selecting_split if donor.data else "" for donor in request.donors]
        return {
            **self._decided_by_model(),
            **{name: getattr(request, name) for name in ("seed", "selecting", "testing")},
            **{name: list(getattr(request, name)) for name in lists},
            "grid": request.grid.as_dict(),
            "receiver": [receiver.name, receiver.dataset, receiver.selecting_split, receiver.testing_split],
            "version": CELL_VERSION,
            "images": self.images,
            "fp": self.fp.key,
            "qat": self.qat.key,
            "base": self.base.key if self.base else None,
            "donors": [
                [donor.task, split, vector.key, fp.key]
                for donor, split, vector, fp in zip(request.donors, splits, self.vectors, self.fps, strict=True)
            ],
        }

    def make(self, at: TaskContext) -> dict[str, Any]:
        """As BaseTask's; the paths of its request are kept relative to the study's folder, which may be moved."""
        from qvec_deploy.research.study import cell as cells
        from qvec_deploy.research.study.study_documents import cell_json

        log = cells.TrialLog.open(at.work / "trials", at.key)
        cell = cells.compute_cell(self._request(lambda ref: ref.locate(at.store)), send=at.send, log=log)
        below = f"{at.store.out}/"
        cell = replace(cell, request=self._request(lambda ref: ref.locate(at.store).removeprefix(below)))
        write_bytes(at.folder / "cell.json", cell_json(cell))
        digest = sha256_bytes(canonical_json([asdict(trial) for trial in cell.trials]))
        return {"seconds": cell.seconds["all"], "sha256": digest}

    def _request(self, path: Callable[[WeightsRef], str]) -> CellRequest:
        """The request with the paths of its files."""
        files = zip(self.request.donors, self.vectors, self.fps, strict=True)
        return replace(
            self.request,
            fp=path(self.fp),
            own_qat=path(self.qat),
            base=path(self.base) if self.base else None,
            donors=tuple(replace(donor, vector=path(vector), fp=path(fp)) for donor, vector, fp in files),
        )


def _read_weights(source: Any) -> dict[str, Any]:
    return {name: source.read(name) for name in source.tensors}
