"""The blocks of a recipe, field by field."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from qvec_deploy.errors import RecipeError
from qvec_deploy.quantize.methods import METHODS, ROUND_TO_NEAREST, by_moments, calibrated_methods
from qvec_deploy.recipe.names import LoweringName, MethodName, RuntimeName
from qvec_deploy.runtimes.graph.activations import Calibrator
from qvec_deploy.runtimes.registry import find_runtime
from qvec_deploy.tensors import GridRule, Scheme

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
FLOAT_BITS = (16, 32)
USUAL_GRID: GridRule = "mse"
"""Of methods that are no grid themselves."""
SELECTIONS = ("label_free", "labelled", "best")


class Block(BaseModel):
    """Frozen, strict, and closed: unknown fields are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Donor(Block):
    """A donor given as two checkpoints instead of a vector file."""

    fp: str = Field(min_length=1, description="The donor's float fine-tune.")
    qat: str = Field(min_length=1, description="The donor's quantization-aware fine-tune, latent float weights.")


class DonorScheme(Block):
    """The grid that donor checkpoints were trained for."""

    bits: int = Field(ge=2, le=8, description="Bits of the donors' QAT.")
    granularity: Literal["tensor", "channel", "group"] = Field(description="Granularity of the donors' QAT.")
    group_size: int = Field(default=0, ge=0, description="Weights per group, with granularity `group`.")
    clip: float = Field(default=1.0, gt=0, le=1, description="Clip ratio of the donors' QAT.")
    method: GridRule = Field(default="rtn", description="Clipping of the donors' QAT.")

    def scheme(self) -> Scheme:
        """The same as a Scheme."""
        return Scheme(self.bits, self.granularity, self.group_size, self.clip, self.method)


class Control(Block):
    """A control in place of the vector: same norms, no knowledge."""

    kind: Literal["random"] = Field(description="`random`: Gaussian, with the vector's norm in every tensor.")
    seed: int = Field(ge=0, description="Seed of the draw.")


class Vector(Block):
    """Where the quantization vector comes from: vector files, or donors' checkpoints."""

    files: tuple[str, ...] = Field(default=(), description="Vector files; several are mixed.")
    folder: str | None = Field(
        default=None, min_length=1, description="A folder: the same as naming all of its `.safetensors` files."
    )
    donors: tuple[Donor, ...] = Field(default=(), description="Donors as FP and QAT checkpoints; several are mixed.")
    sha256: tuple[Sha256, ...] = Field(
        default=(), description="SHA-256 that every file must have; of donors two each, `fp` before `qat`."
    )
    weights: tuple[float, ...] = Field(
        default=(), description="Mixing weights, one per file or donor; the mean if absent."
    )
    scheme: DonorScheme | None = Field(
        default=None, description="The grid of `donors`; needed with them, and only then."
    )
    control: Control | None = Field(default=None, description="Replace the vector by a control of equal norm.")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.weights and abs(sum(self.weights) - 1) > 1e-6:
            raise ValueError("weights must add up to 1: a sum of vectors that is not divided collapses the model")
        if bool(self.files) == bool(self.donors):
            raise ValueError("name one of `files`, `folder` and `donors`")
        if self.folder is not None:
            raise ValueError("`folder` stands for `files`: name one of the two")
        named = [*self.files, *(f"{donor.qat} - {donor.fp}" for donor in self.donors)]
        if len(set(named)) != len(named):
            raise ValueError("a vector is named twice; name it once and give it a weight")
        if self.weights and len(self.weights) != len(self.files or self.donors):
            raise ValueError(f"{len(self.weights)} weights for {len(self.files or self.donors)} vectors")
        hashed = len(self.files) or 2 * len(self.donors)
        if self.sha256 and len(self.sha256) != hashed:
            raise ValueError(f"{len(self.sha256)} values of `sha256` for {hashed} files")
        if bool(self.donors) != (self.scheme is not None):
            raise ValueError("`scheme` states the grid of `donors`: give both or neither")
        return self

    def mixing(self) -> tuple[float, ...]:
        """One weight per source; the plain mean by default."""
        count = len(self.files or self.donors)
        return self.weights or (1.0 / count,) * count


class Calibration(Block):
    """What is run through the receiver by methods that look at activations. No labels are used."""

    on: Literal["images", "generated", "moments", "dataset"] | None = Field(
        default=None,
        description="`images`: the recipe's `images`, the default where there are some. `generated`: structured "
        "images that the tool draws. `moments`: second moments that the vector brings, no image at all. `dataset`: "
        "other images, such as a donor's.",
    )
    dataset: str | None = Field(default=None, min_length=1, description="With `on: dataset`: as in `evaluate`.")
    root: str | None = Field(default=None, description="Folder of that dataset.")
    split: Literal["train", "val", "test"] = Field(default="train", description="Which part of that dataset.")
    count: int = Field(default=200, ge=1, description="Images, evenly spaced.")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.on == "dataset") != (self.dataset is not None):
            raise ValueError("`dataset` goes with `on: dataset`, and only there")
        return self


class Quantize(Block):
    """The grid of the deployed weights, and how they are put on it."""

    bits: int = Field(default=3, description="2 to 8; 16 or 32 is the float engine.")
    granularity: Literal["tensor", "channel", "group"] = Field(default="channel", description="What shares one scale.")
    group_size: int = Field(default=0, ge=0, description="Weights per group, with granularity `group`.")
    method: MethodName = Field(
        default=ROUND_TO_NEAREST.name,
        description="Without data: `rtn` (round to nearest, fixed clip), `mse` (clip of least squared error). With "
        "unlabelled images: `awq` and `gptq` through ModelOpt, `gptaq` (asymmetric GPTQ).",
    )
    grid: GridRule | None = Field(
        default=None, description="How `awq`, `gptq` and `gptaq` find their scales; `mse` if absent."
    )
    clip: float = Field(default=1.0, gt=0, le=1, description="Share of the largest magnitude on the grid, for `rtn`.")
    calibration: Calibration = Field(
        default=Calibration(), description="What `awq`, `gptq` and `gptaq` look at; no labels."
    )
    skip: tuple[str, ...] = Field(
        default=("head",),
        description="Child names whose Linears stay float, matched exactly; `head` stands for all heads.",
    )

    convolutions: bool = Field(
        default=False,
        description="Put convolutions on the grid too, the patch embedding included, depthwise ones not.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.bits not in FLOAT_BITS:
            try:
                self.scheme()
            except RecipeError as error:
                raise ValueError(f"{error.message}; {error.hint}") from error
        if not self.calibrated and self.grid is not None:
            takers = ", ".join(calibrated_methods())
            raise ValueError(f"`grid` is for {takers}; method `{self.method}` is a grid itself")
        if not self.calibrated and self.calibration != Calibration():
            raise ValueError(f"method `{self.method}` looks at no images; leave out `calibration`")
        if self.calibration.on == "moments" and METHODS[self.method].from_moments is None:
            raise ValueError(f"moments are not enough for method `{self.method}`, only for {', '.join(by_moments())}")
        return self

    @property
    def calibrated(self) -> bool:
        """Whether the method looks at activations."""
        return self.bits not in FLOAT_BITS and METHODS[self.method].calibrated

    def scheme(self) -> Scheme | None:
        """The grid, or None for the float engine."""
        if self.bits in FLOAT_BITS:
            return None
        grid = METHODS[self.method].grid or self.grid or USUAL_GRID
        return Scheme(self.bits, self.granularity, self.group_size, self.clip, grid)


class EngineBlock(Block):
    """How TensorRT builds engines."""

    dynamic: bool | None = Field(
        default=None,
        description="One engine for all batch sizes instead of one each; if absent, where engines are built without a "
        "GPU, and then for 1 to 8 images at least.",
    )
    compute_capabilities: tuple[float, ...] = Field(
        default=(),
        description="GPUs that engines are built for where that needs none, as in [8.6, 8.9, 12.0], which is usual.",
    )
    hardware: Literal["this", "same_compute_capability", "ampere_plus"] = Field(
        default="this", description="GPUs they run on: this model, all of its compute capability, all from 8.0 on."
    )
    version_compatible: bool = Field(default=False, description="Run on other releases of the same major version too.")
    cuda_graph: bool = Field(default=True, description="Run static engines as CUDA graphs.")
    optimization_level: int | None = Field(
        default=None, ge=0, le=5, description="TensorRT's builder optimization level; its own default if absent."
    )
    workspace_mib: int | None = Field(
        default=None, ge=1, description="MiB that tactics may use; whatever the GPU has if absent."
    )

    @property
    def of_other_gpus(self) -> bool:
        """Whether engines are to run on more than the GPU and the release that they are built with."""
        return self.hardware != "this" or self.version_compatible


class Target(Block):
    """Where the engine runs."""

    runtime: RuntimeName = Field(
        default="onnxruntime",
        description="`onnxruntime`: the CPU. `torch-cuda`, `onnxruntime-cuda` and `tensorrt`: NVIDIA GPUs. "
        "`tensorrt-rtx`: NVIDIA GPUs too, and engines are built on any x86-64 CPU.",
    )
    lowering: LoweringName = Field(
        default="int4", description="What the runtime multiplies with; `qvec-deploy doctor` prints the table."
    )
    threads: int | None = Field(default=None, ge=1, description="Threads of the engine; all available cores if absent.")
    preprocessing: Literal["outside", "in_graph"] = Field(
        default="outside",
        description="`in_graph`: the model takes uint8 images of its size and normalises them itself.",
    )
    batch_sizes: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        default=(1,), min_length=1, description="Batch sizes whose latency is measured."
    )
    calibrator: Calibrator = Field(
        default="max",
        description="How the range of activations is found where TensorRT quantizes them: `max`, the largest magnitude "
        "on the images; `percentile`, the one that 99.99 % of all stay below.",
    )
    engine: EngineBlock = Field(default=EngineBlock(), description="How TensorRT builds engines.")

    @property
    def on_cpu(self) -> bool:
        """Whether the engine runs on the CPU."""
        return find_runtime(self.runtime).device == "cpu"


class Evaluate(Block):
    """Labelled images on which the built engines are compared."""

    dataset: str = Field(
        min_length=1,
        description="`folder`, `torch/NAME`, `hfds/NAME` as in timm, or a bundled task such as `tiny/realdigits`.",
    )
    root: str | None = Field(default=None, description="Folder of the data; needed for `folder`.")
    split: Literal["train", "val", "test"] = Field(default="test", description="Which part of the dataset.")
    limit: int | None = Field(
        default=None, ge=1, description="Use at most so many images, evenly spaced over a folder."
    )
    class_order: Literal["natural", "plain"] | None = Field(
        default=None,
        description="How a folder's classes are numbered, needed where it matters: `natural` as by timm (9 before 10, "
        "case aside), `plain` as by torchvision's ImageFolder.",
    )
    batch_size: int = Field(default=32, ge=1, description="Images per call while accuracy is measured.")
    accept_float: bool = Field(
        default=False, description="Build although the float receiver's answers do not fit the labels."
    )


class Images(Block):
    """Unlabelled images of the receiver's task: half select and calibrate, half confirm."""

    dataset: str = Field(min_length=1, description="As in `evaluate`; labels are not looked at.")
    root: str | None = Field(default=None, description="Folder of the data; needed for `folder`.")
    split: Literal["train", "val", "test"] = Field(default="val", description="Which part of the dataset.")
    limit: int = Field(default=400, ge=8, description="Use at most so many images, evenly spaced over a folder.")


def named_images(block: Images | Calibration) -> str:
    """Data set and split in words; images of a folder by its name, without those it lies in."""
    where = block.dataset if block.root is None else f"{Path(block.root).name} ({block.dataset})"
    return f"{where}, split {block.split}"


class Select(Block):
    """How lambda, and on request the donors' weights and the method, are chosen."""

    by: Literal["label_free", "labelled", "best"] = Field(  # as in SELECTIONS
        default="label_free",
        description="`label_free`: least divergence from the receiver's own float outputs. `labelled`: most right "
        "answers on `images`. `best`: label-free over `methods` too, lambda 0 of each among them.",
    )
    lambdas: tuple[float, ...] = Field(
        default=(-0.5, -0.25, 0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5),
        min_length=2,
        description="The grid; it is refined around its best value. 0 is always tried.",
    )
    donors: Literal["given", "one", "ridge", "descent"] = Field(
        default="given",
        description="With several vectors. `given`: mixed by `vector.weights`. `one`: the best single one. `ridge`: "
        "weights from a small least-squares problem in logit space. `descent`: those, refined by gradient descent.",
    )
    methods: tuple[MethodName, ...] = Field(
        default=(), description="With `by: best`: the methods that compete; the recipe's own and `gptaq` if absent."
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.methods and self.by != "best":
            raise ValueError("`methods` is for `by: best`; otherwise the method is quantize.method")
        if len(set(self.methods)) != len(self.methods):
            raise ValueError("a method is named twice")
        return self
