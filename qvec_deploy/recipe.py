"""YAML to Recipe, validated once: unknown keys, wrong types and impossible values are refused with their line."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, model_validator

from qvec_deploy.errors import RecipeError
from qvec_deploy.store import require_file, storage_errors
from qvec_deploy.tensors import Scheme

FLOAT_BITS = (16, 32)
_MAX_BYTES = 1 << 20


class _Block(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, populate_by_name=True)


class Receiver(_Block):
    """The fine-tuned model that is deployed."""

    checkpoint: str = Field(
        min_length=1, description="`.safetensors`, `.pt` state dict, or `hf://org/repo@revision/path`."
    )
    model: str = Field(min_length=1, description="timm model name.")
    model_args: dict[str, int | float | bool | str | list[int]] = Field(
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

    def with_overrides(self, overrides: Mapping[str, Any], *, name: str) -> Recipe:
        """The same recipe with fields changed by dotted name, without variants.

        Raises:
            RecipeError: An unknown field or an impossible value.
        """
        values = self.as_dict() | {"variants": [], "name": name}
        for key, value in overrides.items():
            _assign(values, key, value)
        return _validate(values, self._folder, f"variant {name}", {})

    def candidates(self) -> tuple[Recipe, ...]:
        """The recipe's baselines, its variants and itself, in the order of the table: a baseline is a recipe."""
        own = self.with_overrides({}, name=self.name)
        if self.quantize.bits in FLOAT_BITS:
            return (own,)
        if self.name in ("float", "ptq"):
            raise RecipeError(f"name: `{self.name}` is the name of a baseline", hint="choose another name")
        no_vector = {"lambda": 0.0, "vector": None}
        bits = 32 if self.target.runtime == "onnxruntime" else 16
        to_float = {**no_vector, "quantize.bits": bits, "target.lowering": "float"}
        baselines = [self.with_overrides(to_float, name="float")]
        if self.lam != 0:
            baselines.append(self.with_overrides(no_vector, name="ptq"))
        variants = [self.with_overrides(variant.set, name=variant.name) for variant in self.variants]
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
    with storage_errors(path):
        data = path.read_bytes()
    if len(data) > _MAX_BYTES:
        raise RecipeError(f"{path} has {len(data)} bytes", hint="a recipe is a short YAML file; is this another file?")
    try:
        values, lines = _parse(data.decode("utf-8"), str(path))
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path} is not UTF-8 text", hint="a recipe is a YAML file") from error
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise RecipeError(f"--set {override} has no value", hint="write --set field.name=value")
        try:
            _assign(values, key, yaml.safe_load(text))
        except yaml.YAMLError as error:
            raise RecipeError(f"--set {override}: the value is not YAML", hint="quote it") from error
    return _validate(values, path.parent, str(path), lines)


def recipe_schema() -> dict[str, Any]:
    """The JSON schema of recipe files."""
    schema = Recipe.model_json_schema(by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "qvec-deploy recipe"}


def _parse(text: str, where: str) -> tuple[dict[str, Any], dict[tuple[str | int, ...], int]]:
    """YAML text to plain values and the line of every key; aliases and repeated keys are refused."""
    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)):
            raise RecipeError(f"{where} uses YAML aliases", hint="write the values out")
        node = yaml.compose(text, yaml.SafeLoader)
        lines: dict[tuple[str | int, ...], int] = {}
        if node is not None:
            _collect_lines(node, (), lines, where)
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise RecipeError(f"{where}{line}: not valid YAML: {problem}", hint="check indentation and quotes") from error
    if not isinstance(values, dict):
        raise RecipeError(f"{where} is not a recipe", hint="start from one in recipes/")
    return values, lines


def _collect_lines(
    node: yaml.Node, path: tuple[str | int, ...], lines: dict[tuple[str | int, ...], int], where: str
) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = (*path, str(key.value))
            if here in lines:
                raise RecipeError(
                    f"{where}:{key.start_mark.line + 1}: `{key.value}` appears twice", hint="keep one of the two"
                )
            lines[here] = key.start_mark.line + 1
            _collect_lines(value, here, lines, where)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            lines[(*path, index)] = value.start_mark.line + 1
            _collect_lines(value, (*path, index), lines, where)


def _assign(values: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key, creating blocks on the way; whether the names exist is for validation to say."""
    *parents, last = key.split(".")
    for parent in parents:
        inner = values.get(parent)
        if not isinstance(inner, dict):
            inner = values[parent] = {}
        values = inner
    values[last] = value


def _validate(values: dict[str, Any], folder: Path, where: str, lines: Mapping[tuple[str | int, ...], int]) -> Recipe:
    try:
        recipe = Recipe.model_validate_json(json.dumps(values))
    except (ValidationError, TypeError, ValueError) as error:
        if not isinstance(error, ValidationError):
            raise RecipeError(f"{where}: a value is not plain YAML: {error}", hint="quote dates and times") from error
        raise _explain(error, where, lines) from error
    recipe._folder = folder
    for variant in recipe.variants:  # a variant's fields are checked now, not after an hour of building
        recipe.with_overrides(variant.set, name=variant.name)
    return recipe


def _explain(error: ValidationError, where: str, lines: Mapping[tuple[str | int, ...], int]) -> RecipeError:
    messages, hints = [], []
    for problem in error.errors(include_url=False):
        path = tuple(problem["loc"])
        known = max((length for length in range(len(path) + 1) if path[:length] in lines), default=0)
        line = f":{lines[path[:known]]}" if known else ""
        field = ".".join(str(part) for part in path) or "recipe"
        text = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            text = "no such field"
            near = difflib.get_close_matches(str(path[-1]), _fields(path[:-1]), n=1)
            hints += [f"did you mean `{near[0]}`?"] if near else []
        elif problem["type"] == "missing":
            text = "this field is needed"
        messages.append(f"{where}{line}: {field}: {text}")
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
