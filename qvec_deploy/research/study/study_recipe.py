"""Study recipes: which models, tasks, seeds and grids, and what is tried on every receiver. No torch."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PrivateAttr, field_validator, model_validator

from qvec_deploy.donors.donor_recipe import DonorGrid, DonorTrain
from qvec_deploy.errors import StorageError
from qvec_deploy.io.files import storage_errors
from qvec_deploy.io.hub import is_remote
from qvec_deploy.quantize.methods import by_moments
from qvec_deploy.recipe.blocks import Block
from qvec_deploy.recipe.names import CalibratedName
from qvec_deploy.recipe.reading import parse, read_values
from qvec_deploy.recipe.receiver_blocks import ModelArg
from qvec_deploy.research.study.presets import BACKBONES, PAPER_TASKS, TINY_TASKS
from qvec_deploy.tensors import Scheme

NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"
RELEASED = "hf://gladia/qat-transfer-timm@main"
"""Where the paper's fine-tunes are."""

RELEASED_SEED = 2038
_MIN_IMAGES = 8
_MOST_SEEDS = 1000
_SOME: dict[str, Any] = {"minItems": 1}  # `min_length` would tell of none where the only one is wrong, too

ModelPreset = Literal["vit_b", "vit_l", "vit_h", "deit3_b", "deit3_l", "swin_b", "swin_l"]


class BaseTraining(Block):
    """A base trained here from random weights, for models too small to have pretrained ones."""

    dataset: str = Field(default="tiny/mix", min_length=1, description="Labelled images, as `evaluate.dataset`.")
    root: str | None = Field(default=None, description="Folder of the data.")
    seed: int = Field(default=1, ge=0, description="Of the initial weights and the order of the images.")
    steps: int = Field(default=5000, ge=1, description="Optimizer steps.")
    batch_size: int = Field(default=64, ge=1, description="Images per step.")
    lr: float = Field(default=1e-3, gt=0, description="Peak learning rate, of the head too.")
    weight_decay: float = Field(default=0.05, ge=0, description="AdamW's weight decay.")
    roll: int = Field(default=2, ge=0, description="Images are shifted in a circle by up to so many pixels.")


class StudyBase(Block):
    """The pretrained weights that all fine-tunes of a model start from: one of the three."""

    checkpoint: str | None = Field(default=None, min_length=1, description="A file or `hf://` address.")
    pretrained: bool = Field(default=False, description="timm's own pretrained weights.")
    train: BaseTraining | None = Field(default=None, description="Trained here.")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.checkpoint is not None) + self.pretrained + (self.train is not None) != 1:
            raise ValueError("give one of `checkpoint`, `pretrained: true` and `train`")
        return self


class StudyModel(Block):
    """A model: a released backbone by `preset`, or any of timm's by name."""

    preset: ModelPreset | None = Field(default=None, description="A released backbone; stands for `timm`.")
    timm: str = Field(default="", description="timm model name.")
    name: str = Field(default="", description="In tables; the preset's or timm's name if absent.")
    model_args: dict[str, ModelArg] = Field(default_factory=dict, description="Arguments for timm.create_model.")
    skip: tuple[str, ...] = Field(default=("head",), description="Child names whose Linears stay float.")
    base: StudyBase | None = Field(
        default=None, description="Absent: pretrained; with released fine-tunes and none, no task vectors."
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.preset is not None and self.timm != BACKBONES[self.preset]:
            raise ValueError(f"`preset: {self.preset}` is {BACKBONES[self.preset]}; give `preset` or `timm`")
        if not self.timm:
            raise ValueError(f"give `timm`, a model's name, or `preset`: {', '.join(BACKBONES)}")
        if not re.match(NAME, self.name):
            raise ValueError(f"the name `{self.name}` has other characters than letters, digits, and ._-")
        return self


class StudyTask(Block):
    """A task: labelled images with a train, a val and a test split."""

    name: str = Field(pattern=NAME, description="In tables, and in the names of released files.")
    dataset: str = Field(min_length=1, description="As `evaluate.dataset` of a recipe.")
    root: str | None = Field(default=None, description="Folder of the data; needed for `folder`.")
    selecting_split: Literal["train", "val", "test"] = Field(default="val", description="Which part chooses.")
    testing_split: Literal["val", "test"] = Field(default="test", description="Which part judges.")
    classes: int | None = Field(default=None, ge=2, description="Refuse images of another number of classes.")
    epochs: int | None = Field(default=None, ge=1, description="Of its fine-tunes, in place of those of `train`.")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.selecting_split == self.testing_split:
            raise ValueError(f"`{self.testing_split}` both chooses and judges: accuracy would be of images that chose")
        return self


class Tasks(Block):
    """The tasks, each in turn receiver and donor. A plain list is short for `list`."""

    preset: Literal["tiny", "paper22"] | None = Field(
        default=None,
        description="`tiny`: the six bundled tasks. `paper22`: those of arXiv 2604.03420, with its epochs "
        "where `train` gives neither `epochs` nor `steps`.",
    )
    only: tuple[str, ...] = Field(default=(), description="Some of the preset's tasks, by name.")
    root: str | None = Field(
        default=None, description="With `paper22`: a folder with ROOT/TASK/{train,val,test}/CLASS/; the Hub if absent."
    )
    list: tuple[StudyTask, ...] = Field(default=(), description="Your own tasks.")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.preset is None) == (not self.list):
            raise ValueError("give `preset` or `list`")
        if self.root is not None and self.preset != "paper22":
            raise ValueError("`root` is where the images of `preset: paper22` are; a task of a list has its own")
        known = TINY_TASKS if self.preset == "tiny" else tuple(PAPER_TASKS)
        odd = [name for name in self.only if self.preset is None or name not in known]
        if odd:
            raise ValueError(f"`only`: the preset has no task `{odd[0]}`; it has {', '.join(known)}")
        names = [task.name for task in self.all()]
        twice = _twice(names)
        if twice is not None:
            raise ValueError(f"two tasks have the name `{twice}`: give each one of its own")
        if len(names) < 2:
            raise ValueError("at least two tasks are needed")
        return self

    def all(self) -> tuple[StudyTask, ...]:
        """Every task, presets spelled out."""
        if self.preset is None:
            return self.list
        if self.preset == "tiny":
            return tuple(StudyTask(name=name, dataset=f"tiny/{name}") for name in self.only or TINY_TASKS)
        return tuple(self._paper(name) for name in self.only or PAPER_TASKS)

    def _paper(self, name: str) -> StudyTask:
        task = PAPER_TASKS[name]
        if self.root is not None:
            root = str(Path(self.root) / name)
            return StudyTask(name=name, dataset="folder", root=root, classes=task.classes, epochs=task.epochs)
        if task.odd:
            raise ValueError(
                f"{name} cannot be taken from {task.dataset}: {task.odd}; give `root`, a folder of folders"
            )
        return StudyTask(
            name=name,
            dataset=task.dataset,
            selecting_split="train",
            testing_split="val" if task.test == "val" else "test",
            classes=task.classes,
            epochs=task.epochs,
        )


class Published(Block):
    """Fine-tunes in the layout of the paper's repository, in place of those trained here."""

    hub: str = Field(
        default=RELEASED, min_length=1, description="`hf://org/repo@revision`, or a folder with the same tree."
    )


class StudyRecipe(Block):
    """Donors times receivers: every task in turn, on every model and grid, with every seed."""

    version: Literal[1] = Field(description="Version of this file's format.")
    name: str = Field(pattern=NAME, description="Name of the study.")
    models: tuple[StudyModel, ...] = Field(json_schema_extra=_SOME, description="Models, one study each.")
    tasks: Tasks = Field(description="Tasks: a list, or a preset.")
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        default=(1,),
        json_schema_extra=_SOME,
        description="Seeds of the fine-tunes; a number N stands for 1 to N.",
    )
    grids: tuple[DonorGrid, ...] = Field(
        json_schema_extra=_SOME, description="Grids, each with QAT fine-tunes of its own."
    )
    methods: tuple[CalibratedName, ...] = Field(
        default=("gptq", "awq"), description="PTQ methods beside round to nearest and MSE clipping."
    )
    inputs: tuple[Literal["images", "generated", "moments"], ...] = Field(
        default=("images",), description="What those look at; `moments` is for gptq."
    )
    moments: int = Field(default=200, ge=1, description="With that input: a donor's images behind its moments.")
    lambdas: tuple[float, ...] = Field(
        default=(-0.5, -0.25, 0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5),
        json_schema_extra=_SOME,
        description="Lambdas of every pair; 0 and 1 are always tried.",
    )
    controls: tuple[Literal["random", "shuffle", "task_vector", "gptq_displacement"], ...] = Field(
        default=("random", "shuffle", "task_vector", "gptq_displacement"),
        description="In a donor's place, with its norm in every tensor.",
    )
    selecting: int = Field(default=200, ge=_MIN_IMAGES, description="Images of `val` that choose and calibrate.")
    testing: int = Field(default=500, ge=_MIN_IMAGES, description="Images of `test` that judge.")
    train: DonorTrain = Field(default=DonorTrain(), description="All fine-tunes; their seed is that of `seeds`.")
    checkpoints: Published | None = Field(default=None, description="Released fine-tunes; trained here if absent.")

    _folder: Path = PrivateAttr(default=Path())

    @field_validator("seeds", mode="before")
    @classmethod
    def _seeds(cls, values: Any) -> Any:
        if not isinstance(values, (list, tuple)) or not values:
            raise ValueError(f"give a number from 1 to {_MOST_SEEDS:,}, or a list")
        return tuple(values)

    @field_validator("models", "grids", "lambdas")
    @classmethod
    def _some(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        if not values:
            raise ValueError("at least one is needed")
        return values

    @field_validator("grids")
    @classmethod
    def _grids_once(cls, values: tuple[DonorGrid, ...]) -> tuple[DonorGrid, ...]:
        twice = _twice([grid_name(grid) for grid in values])
        if twice is not None:
            raise ValueError(f"the grid `{twice}` is named twice")
        return values

    @field_validator("methods", "inputs", "lambdas", "controls", "seeds")
    @classmethod
    def _once(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(set(values)) != len(values):
            raise ValueError("a value is named twice")
        return values

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [model.name for model in self.models]
        if len(set(names)) != len(names):
            raise ValueError("two models have one name: give them a `name`")
        if "seed" in self.train.model_fields_set:
            raise ValueError("train.seed: the study's `seeds` are those of its fine-tunes; leave it out")
        if "moments" in self.inputs and not set(by_moments()) & set(self.methods):
            takers = ", ".join(f"`{name}`" for name in by_moments())
            raise ValueError(f"input `moments` is for method {takers}; name it, or leave moments out")
        if self.checkpoints is not None:
            self._check_published()
        return self

    def _check_published(self) -> None:
        """What released files can be asked for."""
        if any(grid.scheme().searched or grid.clip != 1.0 or grid.granularity == "group" for grid in self.grids):
            raise ValueError("released fine-tunes have granularity `channel` or `tensor` and method `rtn`, clip 1")
        for model in self.models:
            if len(model.skip) != 1:
                raise ValueError("released fine-tunes have one `skip` name, such as [head]")
            if model.base is not None and model.base.train is not None:
                raise ValueError("a base trained here is not that of released fine-tunes")
            if model.base is None and "task_vector" in self.controls:
                raise ValueError(f"control `task_vector` needs the base of {model.name}: `base: {{pretrained: true}}`")

    @property
    def all_lambdas(self) -> tuple[float, ...]:
        """The grid of lambda with 0 and 1, ascending."""
        return tuple(sorted({*self.lambdas, 0.0, 1.0}))

    def base_of(self, model: StudyModel) -> StudyBase | None:
        """Where a model's fine-tunes start; None where it is not known."""
        return model.base or (None if self.checkpoints is not None else StudyBase(pretrained=True))

    def train_of(self, task: StudyTask) -> dict[str, Any]:
        """The fields of a task's fine-tunes, but for their seed. Its own epochs are what counts, but a preset's."""
        train = self.train.model_dump()
        said = self.train.epochs is not None or self.train.steps is not None
        if task.epochs is not None and not (said and self.tasks.preset is not None):
            train |= {"epochs": task.epochs, "steps": None}
        return train

    def locate(self, path: str) -> str:
        """A path of this recipe, resolved against its folder; Hub addresses stay as they are."""
        return path if is_remote(path) else str((self._folder / path).resolve())

    def as_dict(self) -> dict[str, Any]:
        """Every field with its default filled in, as plain values that `load_study` reads anywhere: paths resolved."""
        values: dict[str, Any] = json.loads(self.model_dump_json())
        del values["train"]["seed"]
        for block, key in self._paths(values):
            block[key] = self.locate(block[key]) if block[key] is not None else None
        return values

    def _paths(self, values: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
        yield values["tasks"], "root"
        yield from ((task, "root") for task in values["tasks"]["list"])
        for base in (model["base"] for model in values["models"] if model["base"]):
            yield base, "checkpoint"
            if base["train"]:
                yield base["train"], "root"
        if values["checkpoints"]:
            yield values["checkpoints"], "hub"


def _twice(names: Sequence[str]) -> str | None:
    """The first name that is there before."""
    return next((name for place, name in enumerate(names) if name in names[:place]), None)


def grid_name(grid: DonorGrid | Scheme) -> str:
    """A grid in a word, such as `3bit_channel_mse`."""
    scheme = grid if isinstance(grid, Scheme) else grid.scheme()
    grain = f"group{scheme.group_size}" if scheme.group_size else scheme.granularity
    clip = f"_clip{scheme.clip:g}" if scheme.clip != 1.0 else ""
    return f"{scheme.bits}bit_{grain}_{scheme.method}{clip}"


def load_study(path: Path, overrides: Sequence[str] = ()) -> StudyRecipe:
    """Read a study recipe.

    Args:
        overrides: `a.b=value` strings; values are YAML.

    Raises:
        RecipeError: Not YAML, unknown keys, wrong types, impossible values; with field, line and nearest name.
    """
    with storage_errors(path):
        if not path.exists():
            raise StorageError(f"study recipe: {path} does not exist", hint="check the path")
    values, places = read_values(path, overrides, what="study recipe")
    recipe = parse(StudyRecipe, _completed(values), str(path), places)
    recipe._folder = path.parent
    return recipe


def _completed(values: Any) -> Any:
    """What is written short spelled out: a list of tasks, a number of seeds, a model by its preset."""
    if not isinstance(values, dict):
        return values
    values = dict(values)
    if isinstance(values.get("tasks"), list):
        values["tasks"] = {"list": values["tasks"]}
    seeds = values.get("seeds")
    if type(seeds) is int and 0 < seeds <= _MOST_SEEDS:
        values["seeds"] = list(range(1, seeds + 1))
    if seeds is None and values.get("checkpoints") is not None:
        values["seeds"] = [RELEASED_SEED]
    if isinstance(values.get("models"), list):
        values["models"] = [_named(model) for model in values["models"]]
    return values


def _named(model: Any) -> Any:
    if not isinstance(model, dict):
        return model
    preset = model.get("preset")
    if isinstance(preset, str) and preset in BACKBONES:
        model = {"timm": BACKBONES[preset], "name": preset, **model}
    if isinstance(model.get("timm"), str):
        model = {"name": re.sub(r"[^A-Za-z0-9_.-]", "_", model["timm"]), **model}
    return model


def study_schema() -> dict[str, Any]:
    """The JSON schema of study recipes."""
    schema = StudyRecipe.model_json_schema()
    fields = schema["properties"]
    short = {
        "tasks": {"type": "array", "items": {"$ref": "#/$defs/StudyTask"}, "minItems": 2},
        "seeds": {"type": "integer", "minimum": 1},
    }
    for name, shorthand in short.items():
        about = {key: fields[name].pop(key) for key in ("description", "default", "title") if key in fields[name]}
        fields[name] = {"anyOf": [fields[name], shorthand], **about}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "qvec-deploy study"}
