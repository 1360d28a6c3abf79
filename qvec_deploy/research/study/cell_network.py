"""A cell's files, held against the receiver, and its network: candidates' weights swapped in, and their answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from qvec_deploy.builder.select.score import divergences
from qvec_deploy.builder.select.trial_model import TrialModel
from qvec_deploy.datasets import DataConfig
from qvec_deploy.errors import IncompatibleError, errors_about
from qvec_deploy.io.checkpoint import Checkpoint
from qvec_deploy.io.state_dict import NetworkTensors
from qvec_deploy.io.stored_tensors import StoredTensors
from qvec_deploy.planner import Plan, check_tensors, make_plan
from qvec_deploy.progress import Progress
from qvec_deploy.recipe import Recipe
from qvec_deploy.recipe.recipe import validate
from qvec_deploy.research.study.cell_values import CellRequest, Trial, pack_right
from qvec_deploy.research.study.task_images import TaskImages, generated_images
from qvec_deploy.tensors import Float32, Scheme
from qvec_deploy.vectors.extract import l2_norm
from qvec_deploy.vectors.patch import add_scaled, mix
from qvec_deploy.vectors.vector_file import QuantizationVector
from qvec_deploy.vectors.vector_sources import Source


@dataclass(frozen=True, eq=False)
class CellFiles:
    """The files of a request, headers read only.

    Attributes:
        plan: The receiver with the mean of all donors at lambda 1, by weights alone on the grid.
    """

    request: CellRequest
    plan: Plan
    receiver: Checkpoint
    own_qat: Checkpoint | None
    base: Checkpoint | None
    vectors: Mapping[str, QuantizationVector]
    fps: Mapping[str, Checkpoint]

    @property
    def config(self) -> DataConfig:
        """The model's preprocessing."""
        return DataConfig.from_mapping(self.plan.architecture.data_config)

    @property
    def backbone(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor that vectors cover."""
        return self.plan.architecture.backbone

    @property
    def sources(self) -> dict[str, QuantizationVector]:
        """The vectors by their labels in the plan."""
        return _labelled(self.vectors)


def open_request(request: CellRequest) -> CellFiles:
    """Open a request's files.

    Raises:
        RecipeError: An unknown model, an impossible grid, or a file named twice.
        IncompatibleError: Checkpoints or vectors of another architecture or grid; the message names the donor.
    """
    receiver = Checkpoint.open(request.fp)
    vectors, fps = {}, {}
    for donor in request.donors:
        with errors_about(f"donor {donor.task}"):
            vectors[donor.task] = QuantizationVector.open(donor.vector)
            fps[donor.task] = Checkpoint.open(donor.fp)
    plan = make_plan(_recipe(request), receiver, _labelled(vectors))
    files = CellFiles(
        request=request,
        plan=plan,
        receiver=receiver,
        own_qat=None if request.own_qat is None else Checkpoint.open(request.own_qat),
        base=None if request.base is None else Checkpoint.open(request.base),
        vectors=vectors,
        fps=fps,
    )
    if files.own_qat is not None:
        check_tensors(files.own_qat, plan.architecture)
    if files.base is not None:
        require_backbone("the base", files.base, files.backbone)
    for task, fp in files.fps.items():
        require_backbone(f"donor {task}", fp, files.backbone)
    return files


def require_backbone(what: str, checkpoint: Checkpoint, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse a checkpoint whose backbone is not the model's."""
    for name, shape in shapes.items():
        found = checkpoint.tensors.get(name)
        if found is None or found.shape != shape:
            holds = f"lacks {name}" if found is None else f"has {name} of shape {found.shape}, the model has {shape}"
            raise IncompatibleError(
                f"{what}: {checkpoint.source} {holds}",
                hint="donors and receivers are fine-tunes of one base: check the files, the model and its model_args",
            )


def _labelled(vectors: Mapping[str, QuantizationVector]) -> dict[str, QuantizationVector]:
    return {f"donor {task}": vector for task, vector in vectors.items()}


def _recipe(request: CellRequest) -> Recipe:
    """The recipe whose builds are the cell's candidates; its runtime runs here, whatever the bits."""
    grid = request.grid
    values = {
        "version": 1,
        "name": "cell",
        "receiver": {"checkpoint": request.fp, "model": request.model, "model_args": request.model_args},
        "vector": {"files": [donor.vector for donor in request.donors]} if request.donors else None,
        "lambda": 1.0 if request.donors else 0.0,
        "quantize": {**asdict(grid), "skip": list(request.skip)},
        "target": {"lowering": "packed"},
    }
    return validate(values, folder=Path(), where=f"receiver {request.receiver.name}", places={})


State = Mapping[str, Float32]


class CellNetwork:
    """One network, built once, with one candidate's weights at a time.

    A candidate by weights alone takes the receiver's place in a `TrialModel` whose receiver is a dictionary: what it
    does to these weights at lambda 0 is what a build does to a candidate's.
    """

    def __init__(self, files: CellFiles, selecting: TaskImages, testing: TaskImages, progress: Progress) -> None:
        self.files, self.selecting, self.testing, self.progress = files, selecting, testing, progress
        self.plan, receiver = files.plan, files.receiver
        self.weights: State = {tensor.name: receiver.read(tensor.name) for tensor in self.plan.tensors}
        self._shown = dict(self.weights)
        shown = StoredTensors(receiver.tensors, self._shown.__getitem__, (receiver.path,))
        names = NetworkTensors({name: name for name in receiver.tensors}, None, ())
        place = Checkpoint(receiver.path, receiver.source, shown, names)
        self.model = TrialModel(self.plan, place, {}, selecting.batches)
        self.show(self.weights, None)
        with progress.stage("forward"):
            self.float_logits = self.model.run()

    def show(self, weights: State, scheme: Scheme | None) -> None:
        """Put weights into the network, on a grid or, with None, as they are; what they lack is the receiver's."""
        with self.progress.stage("quantize"):
            self._shown.update({**self.weights, **weights})
            tensors = tuple(replace(t, scheme=scheme if t.scheme is not None else None) for t in self.plan.tensors)
            self.model.plan = replace(self.plan, tensors=tensors)
            self.model.load(0.0)

    def patched(self, rho: State, lam: float) -> State:
        """The receiver's weights plus lambda * rho, for the tensors that rho covers."""
        with self.progress.stage("patch"):
            return {name: add_scaled(self.weights[name], value, lam) for name, value in rho.items()}

    def run(
        self, trial: Trial, other: TrialModel | None = None, *, choosing: bool = True
    ) -> tuple[Trial, Float32 | None]:
        """A trial with the answers of the candidate that is shown.

        Returns:
            The trial, and logits (images, classes) on the selecting images.
        """
        model = other or self.model
        with self.progress.stage("forward"):
            logits = model.run() if choosing else None
            judged = model.run(self.testing.batches)
        right = pack_right(judged.argmax(axis=1) == self.testing.labels)
        if logits is None:
            return replace(trial, right=right), None
        divergence = float(divergences(self.float_logits, logits).mean())
        selecting_right = int((logits.argmax(axis=1) == self.selecting.labels).sum())
        return replace(trial, right=right, divergence=divergence, selecting_right=selecting_right), logits

    def calibrated(self, method: str, inputs: str) -> TrialModel:
        """The receiver under a calibrated method on the same grid, with all donors' vectors as the patch."""
        looks_at = {"on": "moments"} if inputs == "moments" else {}
        changes = self.plan.recipe.with_method(method) | {"quantize.calibration": looks_at}
        plan = replace(self.plan, recipe=self.plan.recipe.with_overrides(changes, name=method))
        calibration = self.selecting.batches if inputs == "images" else []
        if inputs == "generated":
            calibration = generated_images(self.files.config, self.files.request.selecting)
        return TrialModel(plan, self.files.receiver, self.files.sources, self.selecting.batches, calibration)


def read_all(source: Source) -> State:
    """All tensors of a vector."""
    return {name: source.read(name) for name in source.tensors}


def weighted(sources: Sequence[Source], weights: Sequence[float]) -> State:
    """The weighted sum of vectors, tensor by tensor, so that memory holds one of them."""
    parts = list(zip(sources, weights, strict=True))
    return {name: mix([(source.read(name), weight) for source, weight in parts]) for name in sources[0].tensors}


def with_norms(moved: State, rho: State) -> State:
    """Other changes of the weights, scaled to the norm that rho has in every tensor; what did not move stays."""
    scaled: dict[str, Float32] = {}
    for name, value in rho.items():
        norm = l2_norm([moved[name]]) if name in moved else 0.0
        scaled[name] = moved[name] * np.float32(l2_norm([value]) / norm) if norm else np.zeros_like(value)
    return scaled
