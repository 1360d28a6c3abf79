"""The task that makes a cell, from the files of the nodes that it needs."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from qvec_deploy.io.files import canonical_json, sha256_bytes, write_bytes
from qvec_deploy.research.study.cell_values import CELL_VERSION, CellRequest
from qvec_deploy.research.study.study_tasks import NodeKind, TaskContext, WeightsRef

if TYPE_CHECKING:
    from qvec_deploy.research.study.study_store import StudyStore


@dataclass(frozen=True, kw_only=True)
class CellTask:
    """Everything that is tried on one receiver.

    Attributes:
        request: What is tried; its files are found when it is made.
        vectors: Vectors of the request's donors, in their order.
        fps: Likewise.
        images: Images of all tasks: prototypes are computed for donors too.
    """

    type: Literal["cell"] = "cell"
    request: CellRequest
    fp: WeightsRef
    qat: WeightsRef
    base: WeightsRef | None
    vectors: tuple[WeightsRef, ...]
    fps: tuple[WeightsRef, ...]
    images: Any
    kind: NodeKind = "cell"

    @property
    def model(self) -> str:
        """The model's timm name."""
        return self.request.model

    @property
    def parents(self) -> tuple[str, ...]:
        """As FineTuneTask's."""
        needed = (self.fp, *self.fps, self.qat, *self.vectors, *([self.base] if self.base else []))
        return tuple(parent for each in needed for parent in each.parents)

    def decides(self) -> dict[str, Any]:
        """As BaseTask's."""
        request, receiver = self.request, self.request.receiver
        names = ("model", "model_args", "seed", "selecting", "testing")
        lists = ("skip", "methods", "inputs", "lambdas", "controls")
        splits = [donor.data.selecting_split if donor.data else "" for donor in request.donors]
        return {
            **{name: getattr(request, name) for name in names},
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
        """As BaseTask's; the paths of its request are kept relative to the study's folder."""
        from qvec_deploy.research.study import cell as cells
        from qvec_deploy.research.study.study_documents import cell_json

        request = self.located(at.store)
        log = cells.TrialLog.open(at.work / "trials", at.key)
        cell = cells.compute_cell(request, send=at.send, log=log)
        cell = dataclasses.replace(cell, request=_portable(request, at.store.out))
        write_bytes(at.folder / "cell.json", cell_json(cell))
        digest = sha256_bytes(canonical_json([dataclasses.asdict(trial) for trial in cell.trials]))
        return {"seconds": cell.seconds["all"], "sha256": digest}

    def located(self, store: StudyStore) -> CellRequest:
        """The request with the paths of its files."""
        files = zip(self.request.donors, self.vectors, self.fps, strict=True)
        return dataclasses.replace(
            self.request,
            fp=self.fp.locate(store),
            own_qat=self.qat.locate(store),
            base=self.base.locate(store) if self.base else None,
            donors=tuple(
                dataclasses.replace(donor, vector=vector.locate(store), fp=fp.locate(store))
                for donor, vector, fp in files
            ),
        )


def _portable(request: CellRequest, out: Path) -> CellRequest:
    """Paths of the study's own files relative to its folder, which may be moved."""
    paths = {name: getattr(request, name) for name in ("fp", "own_qat", "base")}
    return dataclasses.replace(
        request,
        **{name: path and path.removeprefix(f"{out}/") for name, path in paths.items()},
        donors=tuple(
            dataclasses.replace(donor, vector=donor.vector.removeprefix(f"{out}/"), fp=donor.fp.removeprefix(f"{out}/"))
            for donor in request.donors
        ),
    )
