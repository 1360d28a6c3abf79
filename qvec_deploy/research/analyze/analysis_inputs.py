"""What `analyze` works on: a receiver, its own QAT, donors' vectors and images, opened and held against one another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from qvec_deploy.datasets import DataConfig, Dataset, DatasetSpec, open_dataset
from qvec_deploy.errors import IncompatibleError, RecipeError
from qvec_deploy.io.checkpoint import Checkpoint
from qvec_deploy.models import Architecture, ModelArgs, describe
from qvec_deploy.planner import check_tensors, count_classes
from qvec_deploy.tensors import Float32, Scheme
from qvec_deploy.vectors.extract import on_grid
from qvec_deploy.vectors.vector_file import QuantizationVector

Loss = Literal["teacher", "labels"]
Point = Literal["ptq", "fp", "qat"]


@dataclass(frozen=True)
class AnalysisRequest:
    """What is to be analyzed, and how.

    Attributes:
        receiver: The receiver's float checkpoint, a path or an `hf://` address.
        receiver_qat: Its own QAT checkpoint: latent float weights, trained for the grid of the vectors.
        loss: `teacher` is the divergence from the receiver's own float logits, `labels` the cross-entropy.
        at: Where curvature is taken: at the receiver quantized (`ptq`), at its float weights (`fp`), or at its own
            QAT quantized (`qat`).
    """

    receiver: str
    receiver_qat: str
    model: str
    data: DatasetSpec
    vectors: tuple[str, ...]
    model_args: ModelArgs = field(default_factory=dict)
    loss: Loss = "teacher"
    at: Point = "ptq"
    batch_size: int = 20
    offline: bool = False

    @property
    def one_curvature(self) -> bool:
        """At the float weights the teacher's Hessian equals the Gauss-Newton matrix: it is not computed twice."""
        return self.at == "fp" and self.loss == "teacher"


@dataclass(frozen=True, eq=False)
class AnalysisInputs:
    """Everything a request names, opened and found to fit.

    Attributes:
        scheme: The grid of every vector, and `skip` what their donors left float.
        own: The receiver's own vector: QAT - FP of the backbone.
        vectors: The donors' vectors by file name as given, headers read only.
    """

    architecture: Architecture
    scheme: Scheme
    skip: tuple[str, ...]
    weights: Mapping[str, Float32]
    own: Mapping[str, Float32]
    vectors: Mapping[str, QuantizationVector]
    dataset: Dataset
    labelled: bool

    @property
    def quantized(self) -> list[str]:
        """Names of the weights that go on the grid."""
        return [f"{name}.weight" for name in self.architecture.quantized(self.skip)]


def open_inputs(request: AnalysisRequest) -> AnalysisInputs:
    """Open everything, and refuse what does not belong together.

    Raises:
        RecipeError: An unknown model, no vector, or `labels` of another label set than the head's.
        IncompatibleError: Checkpoints or vectors of another architecture, vectors for different grids, a QAT equal to
            the float receiver, a vector that is zero, or fewer than two images.
    """
    receiver = Checkpoint.open(request.receiver, offline=request.offline)
    qat = Checkpoint.open(request.receiver_qat, offline=request.offline)
    architecture = describe(request.model, count_classes(request.model, receiver), request.model_args)
    check_tensors(receiver, architecture)
    check_tensors(qat, architecture)
    vectors = {source: QuantizationVector.open(source, offline=request.offline) for source in request.vectors}
    scheme, skip = _one_grid(vectors)
    backbone = architecture.backbone
    for label, vector in vectors.items():
        _check_vector(label, vector, backbone)
    dataset, labelled = _open_images(request, architecture)
    weights = {name: receiver.read(name) for name in architecture.shapes}
    own = {name: qat.read(name) - weights[name] for name in backbone}
    inputs = AnalysisInputs(architecture, scheme, skip, weights, own, vectors, dataset, labelled)
    _check_own(inputs, qat)
    return inputs


def _check_own(inputs: AnalysisInputs, qat: Checkpoint) -> None:
    hint = "name the latent float weights of the receiver's quantization-aware fine-tune"
    if not any(change.any() for change in inputs.own.values()):
        raise IncompatibleError(f"{qat.path} has the receiver's backbone: its own vector is zero", hint=hint)
    if all(on_grid(qat.read(name), inputs.scheme) for name in inputs.quantized):
        raise IncompatibleError(f"{qat.path} is on the grid already: its own vector is rounding error", hint=hint)


def _one_grid(vectors: Mapping[str, QuantizationVector]) -> tuple[Scheme, tuple[str, ...]]:
    if not vectors:
        raise RecipeError("there is no vector to analyze", hint="name one or more with --vector")
    (first, vector), *others = vectors.items()
    for label, other in others:
        if (other.header.scheme, set(other.header.skip)) != (vector.header.scheme, set(vector.header.skip)):
            raise IncompatibleError(
                f"{first} was trained for {_grid(vector)}, {label} for {_grid(other)}",
                hint="the receiver's own QAT has one grid: analyze vectors of that grid only",
            )
    return vector.header.scheme, vector.header.skip


def _grid(vector: QuantizationVector) -> str:
    return f"{vector.header.scheme} with {', '.join(vector.header.skip) or 'nothing'} left float"


def _check_vector(label: str, vector: QuantizationVector, backbone: Mapping[str, tuple[int, ...]]) -> None:
    found = {name: info.shape for name, info in vector.tensors.items()}
    odd = sorted(name for name in {*backbone, *found} if backbone.get(name) != found.get(name))
    if odd:
        raise IncompatibleError(
            f"{label} does not fit the receiver: {odd[0]} is {found.get(odd[0], 'missing')} in the vector, "
            f"{backbone.get(odd[0], 'missing')} in the receiver's backbone",
            hint="the donor must be a fine-tune of the same model as the receiver",
        )
    if not vector.header.norm > 0:
        raise IncompatibleError(f"{label} is zero everywhere", hint="the donor's QAT did not differ: make it again")


def _open_images(request: AnalysisRequest, architecture: Architecture) -> tuple[Dataset, bool]:
    dataset = open_dataset(request.data, DataConfig.from_mapping(architecture.data_config))
    labelled = dataset.classes == architecture.classes
    if request.loss == "labels" and not labelled:
        raise RecipeError(
            f"{dataset.name} has labels of {dataset.classes} classes and the receiver's head {architecture.classes}",
            hint="use --loss teacher, which needs no labels, or labelled images of the receiver's own task",
        )
    if len(dataset) < 2:
        raise IncompatibleError(f"{dataset.name} has one image", hint="curvature is a mean: give some hundred images")
    return dataset, labelled


def read_images(dataset: Dataset, batch_size: int) -> tuple[list[Float32], np.ndarray[tuple[int], np.dtype[np.int64]]]:
    """All images in batches (B, C, H, W), and all labels (N,)."""
    rows = np.arange(len(dataset))
    pairs = [dataset.take(rows[start : start + batch_size]) for start in range(0, len(rows), batch_size)]
    return [images for images, _ in pairs], np.concatenate([labels for _, labels in pairs])
