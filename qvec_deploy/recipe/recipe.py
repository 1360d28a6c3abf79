"""YAML to Recipe, validated once: unknown keys, wrong types and impossible values are refused with their line."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, ValidationError, model_validator

from qvec_deploy.errors import RecipeError
from qvec_deploy.store import require_file, storage_errors
from qvec_deploy.tensors import Scheme
from qvec_deploy.yamltext import NOT_YAML, Place, parse_yaml

FLOAT_BITS = (16, 32)
_MAX_BYTES = 1 << 20
_SHARED = ("version", "name", "evaluate", "measure", "variants", "target.batch_sizes")


class _Block(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def _model_arg(value: Any) -> Any:
    """One refusal in place of one for every member of the union."""
    plain = isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value))
    if not plain and not (isinstance(value, list) and all(type(item) is int for item in value)):
        raise ValueError("give a number, true or false, text, or a list of whole numbers")
    return value


ModelArg = Annotated[int | float | bool | str | list[int], BeforeValidator(_model_arg)]


class Receiver(_Block):
    """The fine-tuned model that is deployed."""

    checkpoint: str = Field(
        min_length=1, description="`.safetensors`, `.pt` state dict, or `hf://org/repo@revision/path`."
    )
    model: str = Field(min_length=1, description="timm model name.")
    model_args: dict[str, ModelArg] = Field(
        default_factory=dict, description="Arguments for timm.create_model beyond the name, such as img_size."
    )


class Donor(_Block):
    """A donor given as two checkpoints instead of a vector file."""

    fp: str = Field(min_length=1, description="The donor's float fine-tune.")
    qat: str = Field(min_length=1, description="The donor's quantization-aware fine-tune, latent float weights.")


class DonorScheme(_Block):
    """The grid that donor checkpoints were trained for."""

    bits: int = Field(ge=2, le=8, description="Bits of the donors' QAT.")
    granularity: Literal["tensor", "channel", "group"] = Field(description="Granularity of the donors' QAT.")
    group_size: int = Field(default=0, ge=0, description="Weights per group, with granularity `group`.")
    clip: float = Field(default=1.0, gt=0, le=1, description="Clip ratio of the donors' QAT.")
    method: Literal["rtn", "mse"] = Field(default="rtn", description="Clipping of the donors' QAT.")

    def scheme(self) -> Scheme:
        """The same as a Scheme."""
        return Scheme(self.bits, self.granularity, self.group_size, self.clip, self.method)


class Control(_Block):
    """A control in place of the vector: same norms, no knowledge."""

    kind: Literal["random"] = Field(description="`random`: Gaussian, with the vector's norm in every tensor.")
    seed: int = Field(ge=0, description="Seed of the draw.")


class Vector(_Block):
    """Where the quantization vector comes from: vector files, or donors' checkpoints."""

    files: tuple[str, ...] = Field(default=(), description="Vector files; several are mixed.")
    donors: tuple[Donor, ...] = Field(default=(), description="Donors as FP and QAT checkpoints; several are mixed.")
    weights: tuple[float, ...] = Field(
        default=(), description="Mixing weights, one per file or donor; the mean if absent."
    )
    scheme: DonorScheme | None = Field(
        default=None, description="The grid of `donors`; needed with them, and only then."
    )
    control: Control | None = Field(default=None, description="Replace the vector by a control of equal norm.")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if bool(self.files) == bool(self.donors):
            raise ValueError("name either `files` or `donors`")
        named = [*self.files, *(f"{donor.qat} - {donor.fp}" for donor in self.donors)]
        if len(set(named)) != len(named):
            raise ValueError("a vector is named twice; name it once and give it a weight")
        if self.weights and len(self.weights) != len(self.files or self.donors):
            raise ValueError(f"{len(self.weights)} weights for {len(self.files or self.donors)} vectors")
        if bool(self.donors) != (self.scheme is not None):
            raise ValueError("`scheme` states the grid of `donors`: give both or neither")
        return self

    def mixing(self) -> tuple[float, ...]:
        """One weight per source; the plain mean by default."""
        count = len(self.files or self.donors)
        return self.weights or (1.0 / count,) * count


class Quantize(_Block):
    """The grid of the deployed weights."""

    bits: int = Field(default=3, description="2 to 8; 16 or 32 is the float engine.")
    granularity: Literal["tensor", "channel", "group"] = Field(default="channel", description="What shares one scale.")
    group_size: int = Field(default=0, ge=0, description="Weights per group, with granularity `group`.")
    method: Literal["rtn", "mse"] = Field(
        default="rtn", description="`rtn`: fixed clip; `mse`: clip of least squared error."
    )
    clip: float = Field(default=1.0, gt=0, le=1, description="Share of the largest magnitude on the grid, for `rtn`.")
    skip: tuple[str, ...] = Field(
        default=("head",), description="Child names whose Linears stay float, matched exactly."
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.bits not in FLOAT_BITS:
            try:
                self.scheme()
            except RecipeError as error:
                raise ValueError(f"{error.message}; {error.hint}") from error
        return self

    def scheme(self) -> Scheme | None:
        """The grid, or None for the float engine."""
        if self.bits in FLOAT_BITS:
            return None
        return Scheme(self.bits, self.granularity, self.group_size, self.clip, self.method)


class Target(_Block):
    """Where the engine runs."""

    runtime: Literal["onnxruntime", "tensorrt"] = Field(
        default="onnxruntime", description="`onnxruntime`: the CPU. `tensorrt`: NVIDIA GPUs."
    )
    lowering: Literal["float", "packed", "int4", "int8"] = Field(
        default="int4", description="What the runtime multiplies with; `qvec-deploy doctor` prints the table."
    )
    threads: int | None = Field(default=None, ge=1, description="Threads of the engine; all available cores if absent.")
    batch_sizes: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        default=(1,), min_length=1, description="Batch sizes whose latency is measured."
    )


class Evaluate(_Block):
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
    batch_size: int = Field(default=32, ge=1, description="Images per call while accuracy is measured.")


class Measure(_Block):
    """How latency is measured."""

    blocks: int = Field(default=60, ge=2, description="Random blocks; each runs every candidate once.")
    warmup: int = Field(default=5, ge=0, description="Unmeasured runs of every candidate.")
    seed: int = Field(default=0, ge=0, description="Seed of the order and of the bootstrap.")


class Variant(_Block):
    """Another candidate that is built and measured beside the recipe's own."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", description="Its name in tables.")
    set: dict[str, Any] = Field(description="Changed fields by dotted name, as with --set.")

    @model_validator(mode="after")
    def _comparable(self) -> Self:
        for key in self.set:
            if any(f"{key}.".startswith(f"{shared}.") for shared in _SHARED):
                raise ValueError(f"`{key}` belongs to the whole recipe and cannot be set in a variant")
        return self


class Recipe(_Block):
    """One deployment: receiver, vector, lambda and bit width tied to one target."""

    version: Literal[1] = Field(description="Version of this file's format.")
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", description="Name of the candidate and the bundle.")
    receiver: Receiver = Field(description="The model that is deployed.")
    vector: Vector | None = Field(default=None, description="The quantization vector; needed unless lambda is 0.")
    lam: float = Field(default=1.0, alias="lambda", description="Scale of the vector; 0 is plain PTQ.")
    quantize: Quantize = Field(default=Quantize(), description="The grid.")
    target: Target = Field(default=Target(), description="Where the engine runs.")
    evaluate: Evaluate | None = Field(
        default=None, description="Labelled images; without them accuracy is not measured."
    )
    measure: Measure = Field(default=Measure(), description="How latency is measured.")
    variants: tuple[Variant, ...] = Field(default=(), description="More candidates for the table.")

    _folder: Path = PrivateAttr(default=Path())

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.lam != 0 and self.vector is None:
            raise ValueError("a lambda other than 0 needs a `vector`; write `lambda: 0` for plain PTQ")
        if (self.quantize.bits in FLOAT_BITS) != (self.target.lowering == "float"):
            raise ValueError("lowering `float` goes with bits 16 or 32, and only with them")
        names = [variant.name for variant in self.variants]
        if len({self.name, "float", "ptq", *names}) != len({self.name, "float", "ptq"}) + len(names):
            raise ValueError("names of variants must differ from each other, from the recipe's, from `float` and `ptq`")
        return self

    def locate(self, path: str) -> str:
        """A path of this recipe, resolved against the recipe's folder; Hub addresses stay as they are."""
        return path if path.startswith("hf://") else str(self._folder / path)

    def as_dict(self) -> dict[str, Any]:
        """Every field with its default filled in, as plain values under their YAML names."""
        values: dict[str, Any] = json.loads(self.model_dump_json(by_alias=True))
        return values

    def with_overrides(self, overrides: Mapping[str, Any], *, name: str, where: str = "") -> Recipe:
        """The same recipe with fields changed by dotted name, without variants.

        Args:
            overrides: Dotted name to value.
            name: Name of the new recipe.
            where: What errors begin with.

        Raises:
            RecipeError: An unknown field or an impossible value.
        """
        values = self.as_dict() | {"variants": [], "name": name}
        for key, value in overrides.items():
            _assign(values, key, value)
        return _validate(values, self._folder, f"{where}variant {name}", {})

    def candidates(self) -> tuple[Recipe, ...]:
        """The recipe's baselines, its variants and itself, in the order of the table: a baseline is a recipe."""
        own = self.with_overrides({}, name=self.name)
        variants = [self.with_overrides(variant.set, name=variant.name) for variant in self.variants]
        if self.quantize.bits in FLOAT_BITS:
            return (*variants, own)
        if self.name in ("float", "ptq"):
            raise RecipeError(f"name: `{self.name}` is the name of a baseline", hint="choose another name")
        no_vector = {"lambda": 0.0, "vector": None}
        bits = 32 if self.target.runtime == "onnxruntime" else 16
        to_float = {**no_vector, "quantize.bits": bits, "target.lowering": "float"}
        baselines = [self.with_overrides(to_float, name="float")]
        if self.lam != 0:
            baselines.append(self.with_overrides(no_vector, name="ptq"))
        return (*baselines, *variants, own)


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe.

    Args:
        path: The YAML file.
        overrides: `a.b=value` strings; values are YAML.

    Raises:
        StorageError: The file is missing or unreadable.
        RecipeError: Not YAML, unknown keys, wrong types, impossible values; with field, line and nearest name.
    """
    require_file(path, what="recipe")
    with storage_errors(path), path.open("rb") as file:
        data = file.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise RecipeError(f"{path} is too large", hint="a recipe is a short YAML file; is this another file?")
    try:
        values, places = parse_yaml(data.decode("utf-8"), str(path))
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path} is not UTF-8 text", hint="a recipe is a YAML file") from error
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise RecipeError(f"--set {override} has no value", hint="write --set field.name=value")
        try:
            _assign(values, key, yaml.safe_load(text))
        except NOT_YAML as error:
            raise RecipeError(f"--set {override}: the value is not YAML", hint="quote it") from error
        field: Place = tuple(key.split("."))
        places = {place: at for place, at in places.items() if place[: len(field)] != field}
        places[field] = f"--set {override}"
    return _validate(values, path.parent, str(path), places)


def recipe_schema() -> dict[str, Any]:
    """The JSON schema of recipe files."""
    schema = Recipe.model_json_schema(by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "qvec-deploy recipe"}


def _assign(values: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key, creating blocks on the way; whether the names exist is for validation to say."""
    *parents, last = key.split(".")
    for parent in parents:
        inner = values.get(parent)
        if not isinstance(inner, dict):
            inner = values[parent] = {}
        values = inner
    values[last] = value


def _validate(values: dict[str, Any], folder: Path, where: str, places: Mapping[Place, str]) -> Recipe:
    try:
        recipe = Recipe.model_validate_json(json.dumps(values))
    except (ValidationError, TypeError, ValueError) as error:
        if not isinstance(error, ValidationError):
            raise RecipeError(f"{where}: a value is not plain YAML: {error}", hint="quote dates and times") from error
        raise _explain(error, where, places) from error
    recipe._folder = folder
    for index, variant in enumerate(recipe.variants):  # checked now, not after an hour of building
        at = places.get(("variants", index), where)
        recipe.with_overrides(variant.set, name=variant.name, where=f"{at}: ")
    return recipe


def _explain(error: ValidationError, where: str, places: Mapping[Place, str]) -> RecipeError:
    messages, hints = [], []
    for problem in error.errors(include_url=False):
        path = tuple(problem["loc"])
        known = max((length for length in range(len(path) + 1) if path[:length] in places), default=0)
        at = places[path[:known]] if known else where
        field = ".".join(str(part) for part in path) or "recipe"
        text = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            text = "no such field"
            near = difflib.get_close_matches(str(path[-1]), _fields(path[:-1]), n=1)
            hints += [f"did you mean `{near[0]}`?"] if near else []
        elif problem["type"] == "missing":
            text = "this field is needed"
        messages.append(f"{at}: {field}: {text}")
    return RecipeError("\n".join(messages), hint=" ".join(hints) or "recipes/README.md describes every field")


def _fields(path: Sequence[str | int]) -> list[str]:
    """YAML names of the fields of the block at `path`."""
    block: Any = Recipe
    for part in path:
        if isinstance(part, str):
            names = {info.alias or name: info.annotation for name, info in block.model_fields.items()}
            block = _block_of(names.get(part))
        if block is None:
            return []
    return [info.alias or name for name, info in block.model_fields.items()]


def _block_of(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_block_of, getattr(annotation, "__args__", ()))), None)
