"""What a report is made of: inputs only, every number that can be derived is derived (see `summary`)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, field_validator

from qvec_deploy.bench.accuracy import PairedAnswers
from qvec_deploy.bench.environment import Environment
from qvec_deploy.bench.footprint import Footprint
from qvec_deploy.bench.latency import LatencySamples
from qvec_deploy.bench.roofline.roofline_values import Device, TimePrediction
from qvec_deploy.bench.selection import Selection
from qvec_deploy.bench.warnings import Finding
from qvec_deploy.io.model_config import PREPROCESSING_FIELDS, well_formed_preprocessing
from qvec_deploy.quantize.methods import METHODS, ROUND_TO_NEAREST
from qvec_deploy.runtimes.session import LinearProduct
from qvec_deploy.tensors import Scheme

SCHEMA_VERSION = 3

Role = Literal["float", "ptq", "patched", "variant"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Model(_Part):
    """What the engine takes and gives; classes that nobody has named have no `class_names`.

    `preprocessing_from` says of fields of `data_config` who said so; bundles of before have none of it.
    """

    name: str
    args: dict[str, Any]
    classes: int
    input_shape: tuple[int, int, int]
    data_config: dict[str, Any]
    class_names: tuple[str, ...] = ()
    preprocessing_from: dict[str, str] = {}

    @field_validator("data_config")
    @classmethod
    def _well_formed(cls, values: dict[str, Any]) -> dict[str, Any]:
        good = well_formed_preprocessing(values)
        for name in PREPROCESSING_FIELDS:
            one = not isinstance(values.get(name), list | tuple)  # a number may stand for several elsewhere
            if name in values and (name not in good or one == isinstance(good[name], tuple)):
                raise ValueError(f"{name} has a value that it cannot have")
        return values


class Parity(_Part):
    """Agreement of the engine with PyTorch on generated images (`bench.parity`)."""

    relative_error: float
    top1_agreement: float
    images: int


@dataclass(frozen=True)
class PatchDonor:
    """A quantization vector in the patch, and its weight in the mix."""

    name: str
    weight: float


@dataclass(frozen=True)
class Patch:
    """What was added to the receiver before it was quantized.

    Attributes:
        lam: Lambda, the factor of the whole patch.
        donors: Whose vectors, and how they were mixed; empty for a control without donors.
        control: What stands in for the vector, in words; None for the real thing.
    """

    lam: float
    donors: tuple[PatchDonor, ...]
    control: str | None = None


@dataclass(frozen=True)
class LayerError:
    """||dequantized - w|| / ||w|| of one layer's weights."""

    layer: str
    error: float


@dataclass(frozen=True)
class LayerTime:
    """What one layer of an engine takes in a run, in milliseconds, by the runtime's own profiler."""

    layer: str
    ms: float


@dataclass(frozen=True)
class ClassCount:
    """Right answers among the images of one class."""

    label: int
    correct: int
    count: int


@dataclass(frozen=True)
class ConfidenceBin:
    """Images whose largest softmax probability lies in one of equally wide bins: of these, how many are right."""

    count: int
    correct: int
    confidence: float


@dataclass(frozen=True)
class AnswerChange:
    """Images for which the float receiver says `was` and this engine says `now`.

    Attributes:
        gained: Those whose label is `now`.
        lost: Images whose label is `was`.
    """

    was: int
    now: int
    count: int
    gained: int
    lost: int


@dataclass(frozen=True)
class AnswerCounts:
    """What an engine answered to labelled images.

    Attributes:
        correct: Images whose largest logit is their label's.
        top5: Images whose label is among the five largest logits; None with five classes or fewer.
        classes: One entry per class that has images, by label.
        bins: Confidence bins, ascending; the calibration error follows from them.
        changes: Differences to the float receiver, most frequent first; empty for the receiver itself and where it
            was not measured.
        waited: Share of the time that the engine waited for images, 0 to 1.
    """

    correct: int
    count: int
    top5: int | None = None
    classes: tuple[ClassCount, ...] = ()
    bins: tuple[ConfidenceBin, ...] = ()
    changes: tuple[AnswerChange, ...] = ()
    waited: float | None = None


@dataclass(frozen=True)
class Candidate:
    """One built engine and what was measured on it.

    Attributes:
        role: `float`: the receiver itself. `ptq`: quantized without a patch. `patched`: what the recipe asks for.
            `variant`: anything else, controls included.
        scheme: The grid of the weights; None for float.
        method: How they were put on it, as in quantize.method.
        skip: Modules whose weights stayed float.
        patch: None where nothing was added.
        runtime: What ran it, such as `onnxruntime-cpu`.
        lowering: What the packed weights became for the runtime.
        emulated: Whether its accuracy was computed on the CPU in the engine's number formats, for the engine could not
            be run where it was built; nothing is known about its speed then.
        stored_bytes: Everything that a device needs to run it.
        stored_bits_per_weight: What a quantized weight takes in the file, scales included.
        runtime_bits_per_weight: Of the same weight in the memory of the runtime.
        accuracy: None where it was not measured.
        answers_of: The candidate whose answers stand for its own, for both compute the same up to float32's rounding;
            None for one that was asked itself.
        paired: By another candidate's name, this accuracy against that one's, image by image.
        latency: One entry per batch size, ascending; empty where it was not measured.
        footprint: Load time and memory in a process of its own; None where not measured.
        products: How its quantized Linears are multiplied, where its runtime's compiler tells.
        layer_errors: In network order, of the weights that were quantized (the patched ones in a patched
            candidate); empty for float. No mapping: canonical JSON would put block 10 before block 2.
        layer_times: In network order, at the first batch size; empty where the runtime has no profiler.
        predictions: What the roofline of the report's device predicts, one entry per batch size; empty without one.
    """

    name: str
    role: Role
    scheme: Scheme | None
    patch: Patch | None
    runtime: str
    lowering: str
    stored_bytes: int
    stored_bits_per_weight: float
    runtime_bits_per_weight: float
    emulated: bool = False
    method: str = ROUND_TO_NEAREST.name
    skip: tuple[str, ...] = ()
    accuracy: AnswerCounts | None = None
    answers_of: str | None = None
    paired: dict[str, PairedAnswers] = field(default_factory=dict)
    latency: tuple[LatencySamples, ...] = ()
    footprint: Footprint | None = None
    products: tuple[LinearProduct, ...] = ()
    layer_errors: tuple[LayerError, ...] = ()
    layer_times: tuple[LayerTime, ...] = ()
    predictions: tuple[TimePrediction, ...] = ()

    @property
    def levels(self) -> int | None:
        """Codes the quantizer can reach; None for float.

        A grid that covers the largest magnitude never reaches its lowest code, -2^(bits-1): the scale puts that
        magnitude on 2^(bits-1) - 1. A clipped or searched grid does, and so does error feedback, which moves weights
        beyond the magnitude that the scale was taken from.
        """
        if self.scheme is None:
            return None
        known = METHODS.get(self.method)  # a report may be of a later version
        absmax = not self.scheme.searched and self.scheme.clip == 1.0 and not (known and known.error_feedback)
        return (1 << self.scheme.bits) - absmax


@dataclass(frozen=True)
class GateResult:
    """One gate of the recipe.

    Attributes:
        wanted: What it asks for, in words.
    """

    name: str
    wanted: str
    found: str
    passed: bool


@dataclass(frozen=True)
class Report:
    """The measurements of a recipe and of its baselines.

    Attributes:
        images: Number of images; every accuracy is over all of them.
        baseline: The candidate whose latency is 1 in every speed-up.
        selected: The candidate that the bundle ships; None where none was chosen.
        warmup: Blocks run before the latency samples.
        selection: How the shipped candidate was chosen; None where the recipe names it.
        gates: What the recipe asks of it.
        class_names: Names in the order of labels; empty where the dataset has none.
        device: What the roofline was drawn for; None without one.
        preprocessing: How images were prepared and who said so, a sentence.
        images_folder: Name of the folder that the images are from; None where they are from none.
        images_sha256: What tells the images, with their labels and preprocessing, from all others; None without images,
            and where it is not known.

    Raises:
        ValueError: Candidates that do not fit together.
    """

    title: str
    recipe: str
    dataset: str
    split: str
    images: int
    candidates: tuple[Candidate, ...]
    baseline: str
    selected: str | None
    warmup: int
    environment: Environment
    warnings: tuple[Finding, ...]
    created_by: str
    selection: Selection | None = None
    gates: tuple[GateResult, ...] = ()
    class_names: tuple[str, ...] = ()
    device: Device | None = None
    preprocessing: str = ""
    images_folder: str | None = None
    images_sha256: str | None = None
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        names = [candidate.name for candidate in self.candidates]
        if len(set(names)) != len(names):
            raise ValueError(f"candidates share a name: {names}")
        for name in (self.baseline, self.selected):
            if name is not None and name not in names:
                raise ValueError(f"{name!r} is no candidate of {names}")
        blocks = {entry.batch_size: len(entry.samples_ms) for entry in self[self.baseline].latency}
        for candidate in self.candidates:
            if candidate.accuracy is not None and candidate.accuracy.count != self.images:
                raise ValueError(f"{candidate.name}: {candidate.accuracy.count} images in a report over {self.images}")
            taken = {entry.batch_size: len(entry.samples_ms) for entry in candidate.latency}
            if taken and taken != blocks:
                raise ValueError(f"{candidate.name}: samples by batch size {taken}, the baseline's {blocks}")

        self._check_selection(names)

    def _check_selection(self, names: list[str]) -> None:
        if self.selection is None:
            return
        finalists = [entry.name for entry in self.selection.confirmed]
        for name in finalists:
            if name not in names:
                raise ValueError(f"the finalist {name!r} is no candidate of {names}")
        if self.selection.shipped != self.selected or self.selected not in finalists:
            raise ValueError(f"{self.selected!r} is shipped and {self.selection.shipped!r} selected, of {finalists}")

    def __getitem__(self, name: str) -> Candidate:
        """The candidate called `name`."""
        for candidate in self.candidates:
            if candidate.name == name:
                return candidate
        raise KeyError(name)

    def first(self, role: Role) -> Candidate | None:
        """The first candidate in a role: `float` is the receiver, `ptq` is plain PTQ."""
        return next((candidate for candidate in self.candidates if candidate.role == role), None)
