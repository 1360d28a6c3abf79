"""One recipe, the candidates it stands for, and how plain values become one."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, PrivateAttr, model_validator

from qvec_deploy.errors import RecipeError
from qvec_deploy.io.files import storage_errors
from qvec_deploy.quantize.methods import METHODS, by_moments, competing
from qvec_deploy.recipe.blocks import (
    FLOAT_BITS,
    SELECTIONS,
    USUAL_GRID,
    Block,
    Calibration,
    Evaluate,
    Images,
    Quantize,
    Select,
    Target,
    Vector,
)
from qvec_deploy.recipe.matrix import Matrix
from qvec_deploy.recipe.measuring_blocks import Gates, Measure, Variant
from qvec_deploy.recipe.reading import Places, assign, parse
from qvec_deploy.recipe.receiver_blocks import Receiver
from qvec_deploy.runtimes.registry import RUNTIMES, find_runtime
from qvec_deploy.tensors import GridRule


def _or_a_word(schema: dict[str, Any]) -> None:
    schema["anyOf"].append({"enum": list(SELECTIONS)})


class Recipe(Block):
    """One deployment: receiver, vector, lambda and bit width tied to one target."""

    version: Literal[1] = Field(description="Version of this file's format.")
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", description="Name of the candidate and the bundle.")
    receiver: Receiver = Field(description="The model that is deployed.")
    vector: Vector | None = Field(
        default=None, description="The quantization vector; without one the recipe is plain PTQ."
    )
    lam: float | None = Field(
        default=None,
        alias="lambda",
        description="Scale of the vector; 0 is plain PTQ. Absent: 0 without a `vector`; with one it is selected "
        "without labels, on `images` or on generated ones.",
    )
    select: Select | None = Field(
        default=None,
        description="Choose lambda instead of giving it; a word is short for `by`.",
        json_schema_extra=_or_a_word,
    )
    quantize: Quantize = Field(default=Quantize(), description="The grid.")
    target: Target = Field(default=Target(), description="Where the engine runs.")
    images: Images | None = Field(
        default=None, description="Unlabelled images of the receiver's task, for selection and calibration."
    )
    evaluate: Evaluate | None = Field(
        default=None, description="Labelled images; without them accuracy is not measured."
    )
    gates: Gates = Field(default=Gates(), description="What must be reached.")
    measure: Measure = Field(default=Measure(), description="How latency is measured.")
    variants: tuple[Variant, ...] = Field(default=(), description="More candidates for the table.")
    matrix: Matrix = Field(
        default_factory=dict,
        exclude=True,  # `load_recipes` has made recipes of it: the field is there for the schema
        description="Fields by dotted name to lists of values: every combination is a build of its own.",
    )

    _folder: Path = PrivateAttr(default=Path())

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.lam != 0 and self.vector is None and (self.select is None or self.select.by != "best"):
            what = "a lambda other than 0" if self.select is None else "a selected lambda"
            raise ValueError(f"{what} needs a `vector`; leave out `lambda` and `select` for plain PTQ")
        if (self.quantize.bits in FLOAT_BITS) != (self.target.lowering == "float"):
            raise ValueError("lowering `float` goes with bits 16 or 32, and only with them")
        names = [variant.name for variant in self.variants]
        taken = {self.name, "float", "ptq", *self._finalist_names()}
        if len(taken | set(names)) != len(taken) + len(names):
            raise ValueError(f"names of variants must differ from each other and from {', '.join(sorted(taken))}")
        if self.quantize.calibrated and self.quantize.calibration.on == "images" and self.images is None:
            raise ValueError("quantize.calibration.on: images needs the block `images`")
        if self.measure.l2 == "cold" and self.target.on_cpu:
            runtime = self.target.runtime
            raise ValueError(f"measure.l2: cold empties a GPU's cache; target.runtime: {runtime} runs on the CPU")
        if self.target.preprocessing == "in_graph" and not find_runtime(self.target.runtime).stands_alone:
            takers = ", ".join(row.name for row in RUNTIMES.values() if row.stands_alone)
            raise ValueError(f"target.preprocessing: in_graph is for {takers}, not for {self.target.runtime}")
        if self.target.calibrator != "max" and not find_runtime(self.target.runtime).compiles:
            takers = ", ".join(row.name for row in RUNTIMES.values() if row.compiles)
            raise ValueError(f"target.calibrator: percentile is for {takers}, not for {self.target.runtime}")
        self._check_select()
        self._check_judges()
        self._check_gates()
        return self

    def _check_select(self) -> None:
        if self.select is None:
            return
        if self.lam is not None:
            raise ValueError("give `lambda` or `select`, not both")
        if self.quantize.bits in FLOAT_BITS:
            raise ValueError("`select` chooses a patch for a quantized engine; the float engine has none")
        if self.vector is not None and self.vector.weights and self.select.donors != "given":
            raise ValueError(f"select.donors: {self.select.donors} finds the weights itself; leave out vector.weights")
        if self.select.by == "labelled" and self.images is None:
            raise ValueError("select: labelled needs the block `images`, with labels")
        more = [name for name in self.methods() if METHODS[name].calibrated and name not in by_moments()]
        if self.quantize.calibration.on == "moments" and more:
            raise ValueError(f"moments are not enough for {', '.join(more)}: leave them out of select.methods")

    def _check_judges(self) -> None:
        """Images that choose or calibrate must not be those that judge."""
        if self.evaluate is None:
            return
        judge, looked_at = self.evaluate, self.quantize.calibration
        users: list[tuple[str, Images | Calibration | None]] = [("images", self.images)]
        users += [("quantize.calibration", looked_at)] if looked_at.dataset is not None else []
        for name, block in users:
            if block is not None and _same_images(block, judge):
                raise ValueError(f"`{name}` are the images of `evaluate`: what chooses must not be what judges")

    def _check_gates(self) -> None:
        labelled = self.gates.beats or self.gates.max_top1_drop is not None
        if labelled and self.evaluate is None:
            raise ValueError("gates.beats and gates.max_top1_drop count right answers: add the block `evaluate`")
        known = {"lambda0", "float", "ptq", *METHODS, *(variant.name for variant in self.variants)}
        for name in self.gates.beats:
            if name not in known:
                raise ValueError(f"gates.beats: `{name}` is none of {', '.join(sorted(known))}")

    @property
    def folder(self) -> Path:
        """Which relative paths start from."""
        return self._folder

    def locate(self, path: str) -> str:
        """A path of this recipe, resolved against the recipe's folder; Hub addresses stay as they are."""
        return path if path.startswith("hf://") else str(self._folder / path)

    def data_path(self, root: str) -> Path:
        """A folder of images, resolved against the recipe's folder."""
        return self._folder / root

    def as_dict(self) -> dict[str, Any]:
        """Every field with its default filled in, as plain values under their YAML names."""
        values: dict[str, Any] = json.loads(self.model_dump_json(by_alias=True))
        return values

    def with_overrides(self, overrides: Mapping[str, Any], *, name: str, where: str = "") -> Recipe:
        """The same recipe with fields changed by dotted name, without variants and gates."""
        values = self.as_dict() | {"variants": [], "gates": {}, "name": name}
        named = {"vector.files", "vector.folder", "vector.donors"} & set(overrides)
        if named and values["vector"] is not None:
            values["vector"] |= {"weights": [], "sha256": []}  # they were those of other vectors
        if "receiver.checkpoint" in overrides:
            values["receiver"]["sha256"] = None  # it was that of another file
        brings = any(key.split(".")[0] == "vector" and value is not None for key, value in overrides.items())
        if brings and self.vector is None and "lambda" not in overrides:
            raise RecipeError(f"{where}variant {name}: its `vector` needs a `lambda`", hint="1 is the paper's")
        if overrides.get("vector", values["vector"]) is None and (self.select is None or self.select.by != "best"):
            values["lambda"] = 0.0
        if overrides.get("lambda", values["lambda"]) is not None:
            values["select"] = None
        method = overrides.get("quantize.method")
        if isinstance(method, str) and method in METHODS and not METHODS[method].calibrated:
            values["quantize"] |= {"grid": None, "calibration": {}}  # they were those of another method
        for key, value in overrides.items():
            assign(values, key, value)
        return validate(values, self._folder, f"{where}variant {name}", {})

    @property
    def patch_scale(self) -> float:
        """Lambda as a number."""
        if self.lam is None:
            raise RecipeError(f"{self.name}: lambda is not selected yet", hint="give `lambda`, or build the recipe")
        return self.lam

    def resolved(self, lam: float, weights: Sequence[float] | None = None) -> Recipe:
        """The recipe with its selection made: lambda, and mixing weights where they were selected too."""
        values = self.as_dict() | {"lambda": lam, "select": None}
        if weights is not None:
            assign(values, "vector.weights", list(weights))
        return validate(values, self._folder, f"recipe {self.name}", {})

    def shipping(self, candidate: Recipe) -> Recipe:
        """This recipe with the method and lambda of the candidate that is shipped: it builds that bundle again."""
        quantize = candidate.quantize.model_dump(mode="json")
        values = self.as_dict() | {"lambda": candidate.patch_scale, "select": None, "quantize": quantize}
        return validate(values, self._folder, f"recipe {self.name}", {})

    def at_lambda_0(self, changes: Mapping[str, Any] | None = None, *, name: str) -> Recipe:
        """A candidate without the patch, with other fields changed too; of a vector only its moments are used."""
        gone = {} if self.quantize.calibration.on == "moments" else {"vector": None}
        return self.with_overrides({"lambda": 0.0, **gone, **(changes or {})}, name=name)

    def with_method(self, method: str) -> dict[str, Any]:
        """The overrides that put another method on the grid of this recipe."""
        scheme, row = self.quantize.scheme(), METHODS[method]
        grid: GridRule = scheme.method if scheme is not None else USUAL_GRID
        clip = self.quantize.clip if scheme is not None and row.grid in (None, grid) and not scheme.searched else 1.0
        keeps = row.calibrated and (method in by_moments() or self.quantize.calibration.on != "moments")
        return {
            "quantize.method": method,
            "quantize.clip": clip,
            "quantize.grid": grid if row.calibrated else None,
            "quantize.calibration": self.quantize.calibration.model_dump() if keeps else {},
        }

    def methods(self) -> list[str]:
        """The methods that compete, the recipe's own first."""
        own: list[str] = [self.quantize.method]
        if self.select is None or self.select.by != "best":
            return own
        return list(dict.fromkeys([*own, *(self.select.methods or competing())]))

    def _finalist_names(self) -> list[str]:
        if self.select is None or self.select.by != "best":
            return []
        return [name for method in self.methods() for name in (method, f"{method}_patched")]

    def finalists(self, lambdas: Mapping[str, float | None], *, best: bool) -> tuple[Recipe, ...]:
        """What a selection decides between: every method at lambda 0 and, after it, with the patch.

        Args:
            lambdas: Method to the lambda selected for it; None where it is still to be. 0 adds no candidate.
            best: Whether methods compete, and candidates bear their names.
        """
        found = []
        for method, lam in lambdas.items():
            changes = self.with_method(method)
            plain, patched = (method, f"{method}_patched") if best else ("ptq" if lam != 0 else self.name, self.name)
            found.append(self.at_lambda_0(changes, name=plain))
            same_grid = found[-1].quantize.scheme() == self.quantize.scheme()
            if lam != 0 and same_grid:  # a vector helps on its own grid only
                found.append(self.with_overrides({**changes, "lambda": lam}, name=patched))
        return tuple(found)

    def float_candidate(self) -> Recipe:
        """The receiver as it is, as a candidate."""
        if self.quantize.bits in FLOAT_BITS:
            return self.with_overrides({}, name=self.name)
        runtime = find_runtime(self.target.runtime)
        as_float = {"bits": runtime.float_bits, "skip": list(self.quantize.skip)}
        return self.at_lambda_0({"quantize": as_float, "target.lowering": runtime.baseline.name}, name="float")

    def accepting_float(self) -> Recipe:
        """This recipe, for a float receiver whose answers do not fit the labels; without labels it changes nothing."""
        values = self.as_dict()
        if self.evaluate is None:
            return self
        assign(values, "evaluate.accept_float", True)
        return validate(values, self._folder, f"recipe {self.name}", {})

    def baselines(self, taken: Sequence[str]) -> tuple[Recipe, ...]:
        """The float engine, and the methods that a gate wants beaten; `taken` names need no baseline."""
        rivals = [name for name in dict.fromkeys(self.gates.beats) if name in METHODS and name not in taken]
        others = [self.at_lambda_0(self.with_method(name), name=name) for name in rivals]
        return (self.float_candidate(), *others)

    def candidates(self, finalists: Sequence[Recipe] = ()) -> tuple[Recipe, ...]:
        """The recipe's baselines, its variants and itself, in the order of the table: a baseline is a recipe.

        Args:
            finalists: What a selection decides between, in place of lambda 0 and the recipe itself.
        """
        variants = [self.with_overrides(variant.set, name=variant.name) for variant in self.variants]
        if self.quantize.bits in FLOAT_BITS:
            return (*variants, self.with_overrides({}, name=self.name))
        if self.name in ("float", "ptq"):
            raise RecipeError(f"name: `{self.name}` is the name of a baseline", hint="choose another name")
        if not finalists:
            wanted = dict.fromkeys(self.methods(), 0.0 if self.vector is None else self.lam)
            finalists = self.finalists(wanted, best=self.select is not None and self.select.by == "best")
        *plain, own = finalists
        taken = [recipe.name for recipe in (*variants, *finalists)]
        float_engine, *rivals = self.baselines(taken)
        return (float_engine, *plain, *rivals, *variants, own)


def _same_images(block: Images | Calibration, judge: Evaluate) -> bool:
    roots = [None if root is None else os.path.normpath(root) for root in (block.root, judge.root)]
    return (block.dataset, block.split) == (judge.dataset, judge.split) and roots[0] == roots[1]


def validate(values: dict[str, Any], folder: Path, where: str, places: Places) -> Recipe:
    """A recipe from plain values.

    Args:
        folder: Relative paths start from it.
    """
    recipe = parse(Recipe, _completed(values, folder, where), where, places)
    recipe._folder = folder
    for index, variant in enumerate(recipe.variants):  # checked now, not after an hour of building
        at = places.get(("variants", index), where)
        recipe.with_overrides(variant.set, name=variant.name, where=f"{at}: ")
    return recipe


def _completed(values: Any, folder: Path, where: str) -> Any:
    """`select: best` and a folder of vectors spelled out, and one of `lambda` and `select` where neither is given.

    With a vector lambda is selected, so that it is 0 where plain quantization loses nothing.
    """
    if not isinstance(values, dict):
        return values
    values = {**values, "vector": _listed(values.get("vector"), folder, where)}
    select = values.get("select")
    if isinstance(select, str):
        return {**values, "select": {"by": select}}
    if values.get("lambda") is None and select is None:
        grid = values.get("quantize")
        is_float = isinstance(grid, dict) and grid.get("bits") in FLOAT_BITS
        return {**values, **({"lambda": 0.0} if values["vector"] is None or is_float else {"select": {}})}
    return values


def _listed(vector: Any, folder: Path, where: str) -> Any:
    """A `vector` block with the files of its folder, so that what was built can be told from the recipe alone."""
    if not isinstance(vector, dict) or not isinstance(vector.get("folder"), str) or vector.get("files"):
        return vector
    place = folder / vector["folder"]
    with storage_errors(place):
        names = sorted(path.name for path in place.iterdir() if path.suffix == ".safetensors")
    if not names:
        raise RecipeError(f"{where}: vector.folder: {place} holds no vector", hint="vectors are .safetensors files")
    return {**vector, "folder": None, "files": [f"{vector['folder']}/{name}" for name in names]}
