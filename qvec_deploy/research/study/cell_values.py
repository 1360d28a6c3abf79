"""What a study computes: cells, each one receiver on one grid with one seed, and all that was tried on it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from qvec_deploy.datasets.spec import Split
from qvec_deploy.quantize.methods import by_moments
from qvec_deploy.tensors import Scheme

CELL_VERSION = 2
"""Of what a cell holds and how it is computed: raise it to compute cells again."""

TrialKind = Literal["float", "own_qat", "plain", "pair", "mean", "mix", "control"]
"""`float`: the receiver itself. `own_qat`: its own quantization-aware fine-tune. `plain`: quantized without a patch.
`pair`: one donor's vector. `mean`: the mean of all donors'. `mix`: weights chosen without labels. `control`: noise or
another vector in a donor's place, with its norm in every tensor."""

Control = Literal["random", "shuffle", "task_vector", "gptq_displacement"]


@dataclass(frozen=True)
class TaskData:
    """Images of a task, as the dataset factory takes them."""

    name: str
    dataset: str
    root: str | None = None
    selecting_split: Split = "val"
    testing_split: Split = "test"


@dataclass(frozen=True)
class DonorFiles:
    """A donor's vector, the float fine-tune that it started from, and its images for class prototypes, if any."""

    task: str
    vector: str
    fp: str
    data: TaskData | None = None


@dataclass(frozen=True)
class CellRequest:
    """Everything that a cell is computed from, as plain values; what is not to be had is None.

    Attributes:
        grid: The grid that the donors were trained for.
        base: The shared pretrained weights; no task vectors without them.
        methods: Calibrated methods beside the grid's own rounding.
        selecting: Images that choose and calibrate.
        name: The study's name for the model; empty where it is timm's.
    """

    model: str
    model_args: dict[str, Any]
    skip: tuple[str, ...]
    grid: Scheme
    seed: int
    receiver: TaskData
    fp: str
    own_qat: str | None
    base: str | None
    donors: tuple[DonorFiles, ...]
    methods: tuple[str, ...]
    inputs: tuple[str, ...]
    lambdas: tuple[float, ...]
    controls: tuple[Control, ...]
    selecting: int
    testing: int
    name: str = ""

    @property
    def label(self) -> str:
        """What the study calls the model."""
        return self.name or self.model


@dataclass(frozen=True)
class Trial:
    """One candidate and its answers.

    Attributes:
        method: How its weights were put on the grid. By weights alone: `rtn` (absmax), `mse`, or `grid` for a donors'
            grid that is neither because it has a clip. `float` where they were not.
        donor: Whose vector, or whose place a control takes; None where it is not one donor's.
        inputs: What a calibrated method looked at, for a `gptq_displacement` that of the donor; None for the others.
        divergence: Mean KL divergence, nats, from the float receiver on the selecting images; None if not measured.
        selecting_right: Right answers on the selecting images; None if labels were not looked at.
        right: Test images, in order, that it gets right: bits packed by `pack_right`.
    """

    kind: TrialKind
    method: str
    lam: float
    donor: str | None = None
    control: Control | None = None
    inputs: str | None = None
    divergence: float | None = None
    selecting_right: int | None = None
    right: str = ""


@dataclass(frozen=True)
class Relation:
    """How a donor stands to the receiver; None where it was not computed.

    Attributes:
        prototype_cosine: Of the tasks' class prototypes in the shared base: the mean over the receiver's classes of the
            largest cosine with a donor's class.
        vector_cosine: Of the donor's vector and the receiver's own qat - fp.
        predicted_share: Best share of the receiver's headroom that Prop. 1 predicts (cos^2 in the curvature of the
            quantized receiver).
        apart: Why the two are not in common coordinates; None where they are, or the vector brings no sketch.
    """

    prototype_cosine: float | None = None
    task_vector_cosine: float | None = None
    vector_cosine: float | None = None
    predicted_share: float | None = None
    apart: str | None = None


@dataclass(frozen=True)
class Cell:
    """One receiver on one grid with one seed.

    Attributes:
        mix: Weights of the label-free mix, by donor's task; empty without one.
        seconds: What took how long: `prepare` (opening and decoding, once), `patch` and `quantize` of candidates by
            weights alone, `forward` of all, `calibrate` of the others and of GPTQ displacements, `mix`, `relations`,
            and `all`.
        selecting: Images that chose: those asked for, without copies of each other and of test images; None where it
            was not counted.
    """

    request: CellRequest
    images: int
    trials: tuple[Trial, ...]
    relations: dict[str, Relation] = field(default_factory=dict)
    mix: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    version: int = CELL_VERSION
    selecting: int | None = None


def pack_right(right: NDArray[np.bool_]) -> str:
    """Booleans (images,) as text: eight a byte, the first in the highest bit, hexadecimal."""
    return np.packbits(right).tobytes().hex()


def unpack_right(text: str, images: int) -> NDArray[np.bool_]:
    """What `pack_right` packed: booleans (images,)."""
    packed: NDArray[np.uint8] = np.frombuffer(bytes.fromhex(text), np.uint8)
    return np.unpackbits(packed, count=images).astype(np.bool_)


def planned_trials(request: CellRequest) -> Iterator[Trial]:
    """The trials of a cell without their answers; a later one may use answers of an earlier one."""
    own = grid_method(request.grid)
    donors = [donor.task for donor in request.donors]
    lambdas = sorted({1.0, *request.lambdas} - {0.0})
    yield Trial("float", "float", 0.0)
    if request.own_qat is not None:
        yield Trial("own_qat", own, 0.0)
    for method in grids_by_weights(request.grid):
        yield Trial("plain", method, 0.0)
    for donor, lam in itertools.product(donors, lambdas):
        yield Trial("pair", own, lam, donor)
    if donors:
        yield from (Trial("mean", own, lam) for lam in lambdas)
    if len(donors) > 1:
        yield Trial("mix", own, 1.0)
    for donor, control in itertools.product(donors, request.controls):
        if control != "task_vector" or request.base is not None:
            yield Trial("control", own, 1.0, donor, control)
    yield from _calibrated(request, lambdas)


def _calibrated(request: CellRequest, lambdas: list[float]) -> Iterator[Trial]:
    """Methods that look at inputs, without a vector and with the mean of donors."""
    for inputs, method in itertools.product(request.inputs, request.methods):
        if inputs == "moments" and (method not in by_moments() or not request.donors):
            continue
        # Where the receiver's images are at hand, by which a lambda could be chosen, the smaller ones are tried too:
        # less of a vector is left to do after a calibrated method.
        smaller = [lam for lam in lambdas if 0 < lam < 1] if inputs == "images" else []
        for lam in (0.0, *smaller, 1.0) if request.donors else (0.0,):
            yield Trial("mean" if lam else "plain", method, lam, inputs=inputs)


def grids_by_weights(grid: Scheme) -> dict[str, Scheme]:
    """Grids of the same bits and granularity, by the name of the method that rounds to them: the donors' own first."""
    absmax = replace(grid, method="rtn", clip=1.0)
    return {grid_method(grid): grid} | {each.method: each for each in (absmax, replace(absmax, method="mse"))}


def grid_method(grid: Scheme) -> str:
    """What rounding to nearest on a grid is called in a trial."""
    return grid.method if grid.clip == 1.0 else "grid"
