"""What a cell is computed from, opened and held against the receiver: every refusal that headers can show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from qvec_deploy.datasets import DataConfig
from qvec_deploy.errors import IncompatibleError, errors_about
from qvec_deploy.io.checkpoint import Checkpoint
from qvec_deploy.planner import Plan, check_tensors, make_plan
from qvec_deploy.recipe import Recipe
from qvec_deploy.recipe.recipe import validate
from qvec_deploy.research.study.cell_values import CellRequest
from qvec_deploy.vectors.vector_file import QuantizationVector


@dataclass(frozen=True, eq=False)
class CellFiles:
    """The files of a request, headers read only.

    Attributes:
        plan: The receiver with the mean of all donors at lambda 1, by weights alone on the grid.
        vectors: The donors', by task.
        fps: The donors' float fine-tunes, by task.
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
        architecture = self.plan.architecture
        return {name: s for name, s in architecture.shapes.items() if not name.startswith(f"{architecture.head}.")}

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
    """Refuse a checkpoint whose backbone is not the model's.

    Args:
        what: The checkpoint's part, for the message.
    """
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
