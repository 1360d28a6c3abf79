"""What a study computes: cells, each one receiver on one grid with one seed, and all that was tried on it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from qvec_deploy.datasets.spec import Split
from qvec_deploy.tensors import Scheme

CELL_VERSION = 2
"""Of what a cell holds and how it is computed: raise it to compute cells again."""

Kind = Literal["float", "own_qat", "plain", "pair", "mean", "mix", "control"]
"""`float`: the receiver itself. `own_qat`: its own quantization-aware fine-tune. `plain`: quantized without a patch.
`pair`: one donor's vector. `mean`: the mean of all donors'. `mix`: weights chosen without labels. `control`: noise or
another vector in a donor's place."""

Control = Literal["random", "shuffle", "task_vector", "gptq_displacement"]


@dataclass(frozen=True)
class TaskData:
    """Images of a task, as the dataset factory takes them.

    Attributes:
        name: The task's.
        dataset: As in `DatasetSpec`.
        root: Folder of the images; None where there is none.
        selecting_split: Which part chooses and calibrates.
        testing_split: Which part judges.
    """

    name: str
    dataset: str
    root: str | None = None
    selecting_split: Split = "val"
    testing_split: Split = "test"


@dataclass(frozen=True)
class DonorFiles:
    """A donor's files: its vector, and the float fine-tune that it started from.

    Attributes:
        task: Its name.
        vector: The vector.
        fp: The float fine-tune.
        data: Its task's images, for class prototypes; None where they are not to be had.
    """

    task: str
    vector: str
    fp: str
    data: TaskData | None = None


@dataclass(frozen=True)
class CellRequest:
    """Everything that a cell is computed from, as plain values.

    Attributes:
        model: timm model name.
        model_args: For timm.create_model.
        skip: Modules that stay float.
        grid: That the donors were trained for; `method` rtn or mse.
        seed: Of the fine-tunes.
        receiver: The receiver's task.
        fp: Its float fine-tune.
        own_qat: Its own quantization-aware fine-tune; None where there is none.
        base: The shared pretrained weights; None where they are not to be had (no task vectors then).
        donors: Of the other tasks.
        methods: Other PTQ methods beside the grid's own: `awq`, `gptq`, `gptaq`.
        inputs: What calibrated methods look at: `images`, `generated`, `moments`.
        lambdas: The grid of lambda.
        controls: In a donor's place, at lambda 1, with its norm in every tensor.
        selecting: Images that choose and calibrate (labels are looked at for `labelled` only).
        testing: Images that judge.
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


@dataclass(frozen=True)
class Trial:
    """One candidate and its answers.

    Attributes:
        kind: What it is.
        method: How its weights were put on the grid. By weights alone: `rtn` (absmax), `mse`, or `grid` for a donors'
            grid that is neither because it has a clip. `float` where they were not.
        lam: Lambda; 0 without a patch.
        donor: Whose vector, or whose place a control takes; None where it is not one donor's.
        control: Which; None for a real vector.
        inputs: What a calibrated method looked at, for a `gptq_displacement` that of the donor; None for the others.
        divergence: Mean KL divergence, nats, from the float receiver on the selecting images; None if not measured.
        selecting_right: Right answers on the selecting images; None if labels were not looked at.
        right: Test images, in order, that it gets right: bits packed by `pack_right`.
    """

    kind: Kind
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
    """How a donor stands to the receiver.

    Attributes:
        prototype_cosine: Of the tasks' class prototypes in the shared base: the mean over the receiver's classes of the
            largest cosine with a donor's class; None where it was not computed.
        task_vector_cosine: Of fp - base of the two, backbone only; None without the base.
        vector_cosine: Of the donor's vector and the receiver's own qat - fp; None without the latter.
        predicted_share: Best share of the receiver's headroom that Prop. 1 predicts (cos^2 in the curvature of the
            quantized receiver); None without the receiver's own QAT.
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
        request: What it was computed from.
        images: Test images.
        trials: Everything that was tried.
        relations: By donor's task.
        mix: Weights of the label-free mix, by donor's task; empty without one.
        seconds: What took how long: `prepare` (opening and decoding, once), `patch` and `quantize` of candidates by
            weights alone, `forward` of all, `calibrate` of the others and of GPTQ displacements, `mix`, `relations`,
            and `all`.
        version: Of this structure.
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
