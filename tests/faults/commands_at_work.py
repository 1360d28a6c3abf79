"""Every command of the program with small inputs, so that a run takes about a second: what the fault matrix runs."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import yaml
from pico import PICO_ARGS, PICO_MODEL
from study_recipes import write_study

GOLDEN = Path(__file__).parents[1] / "golden" / "v0.1.0"
MODEL_ARGS = {**PICO_ARGS, "depth": 1}  # of the golden receiver
MODEL = ("--model", PICO_MODEL, *(f"--model-arg={name}={value}" for name, value in MODEL_ARGS.items()))


@dataclass(frozen=True)
class Case:
    """One command line; its folder has `in`, which is only read, and `out`.

    Attributes:
        words: After the program's name.
        replaces: Whether it replaces what a run before it has left.
        keeps: Whether it leaves how far it is where it is stopped, and goes on from there.
        measures: Whether it measures time.
        exit_code: Where nothing goes wrong.
        slow: Whether it takes much longer than a second.
    """

    words: tuple[str, ...]
    replaces: bool = False
    keeps: bool = False
    measures: bool = False
    exit_code: int = 0
    slow: bool = False


def _case(words: str, *more: str, **facts: bool | int) -> Case:
    return Case((*words.split(), *more), **facts)  # type: ignore[arg-type]


CASES: dict[str, Case] = {
    "init": _case("init in/receiver.safetensors -o out/first.yaml --force", *MODEL, replaces=True),
    "plan": _case("plan --recipe in/recipe.yaml"),
    "build": _case(
        "build --recipe in/recipe.yaml -o out/pico --force --set evaluate.accept_float=true",
        replaces=True,
        measures=True,
    ),
    "build (sweep)": _case(
        "build --recipe in/recipe.yaml -o out --jobs 2 --set evaluate.accept_float=true --set",
        "matrix={lambda: [0, 1]}",
        keeps=True,
        slow=True,
    ),
    "bench": _case("bench in/bundle -o out --blocks 3 --no-accuracy", replaces=True, measures=True),
    "verify": _case("verify in/bundle"),
    "report": _case("report in/bundle -o out", replaces=True),
    "compare": _case("compare in/bundle in/other --stored -o out", replaces=True),
    "release": _case("release in/bundle --to out/release --accept-unverified --force", replaces=True),
    "export": _case("export in/bundle -o out/model.onnx --expanded --force", replaces=True),
    "export (triton)": _case("export in/bundle --format triton -o out/triton"),
    "compile": _case("compile in/bundle", exit_code=4),
    "predict": _case("predict in/bundle in/picture.png"),
    "inspect": _case("inspect in/vector.safetensors"),
    "doctor": _case("doctor"),
    "schema": _case("schema"),
    "analyze": _case(
        "analyze --receiver in/receiver.safetensors --receiver-qat in/qat.safetensors --vector in/vector.safetensors "
        "--data tiny/realdigits --split val --images 8",
        *MODEL,
    ),
    "vector extract": _case(
        "vector extract --fp in/receiver.safetensors --qat in/qat.safetensors --bits 3 --granularity channel "
        "--skip head --task digits --seed 0 -o out/vector.safetensors --force",
        replaces=True,
    ),
    "vector inspect": _case("vector inspect in/vector.safetensors"),
    "vector mix": _case(
        "vector mix in/vector.safetensors in/vector.safetensors -o out/mix.safetensors --force", replaces=True
    ),
    "vector control": _case(
        "vector control in/vector.safetensors --kind random --seed 1 -o out/control.safetensors --force", replaces=True
    ),
    "vector check": _case("vector check in/receiver.safetensors in/vector.safetensors", *MODEL),
    "donor train": _case("donor train --recipe in/donor.yaml -o out/donor", keeps=True),
    "study plan": _case("study plan in/study.yaml"),
    "study run": _case("study run in/study.yaml -o out --jobs 2", keeps=True, slow=True),
    "study report": _case("study report in/study -o out", replaces=True),
}


def commands_without_case(group: click.Group) -> list[str]:
    """Commands that nothing here runs."""
    known = {name.partition(" (")[0] for name in CASES}
    return sorted(name for name in _leaves(group) if name not in known)


def _leaves(group: click.Group, before: str = "") -> Iterator[str]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from _leaves(command, f"{before}{name} ")
        else:
            yield before + name


def write_inputs(folder: Path) -> None:
    """Make what the commands read."""
    from PIL import Image
    from safetensors.numpy import load_file, save_file

    folder.mkdir()
    for name in ("recipe.yaml", "receiver.safetensors", "vector.safetensors"):
        shutil.copyfile(GOLDEN / name, folder / name)
    for name in ("bundle", "other"):
        shutil.copytree(GOLDEN / "bundle", folder / name)
    generator = np.random.default_rng(0)
    receiver = load_file(folder / "receiver.safetensors")
    qat = {name: value + generator.normal(0, 0.01, value.shape).astype("f4") for name, value in receiver.items()}
    save_file(qat, folder / "qat.safetensors")
    Image.fromarray(generator.integers(0, 255, (40, 40, 3), np.uint8)).save(folder / "picture.png")
    donor = {
        "version": 1,
        "name": "donor",
        "base": {"model": PICO_MODEL, "model_args": copy.deepcopy(MODEL_ARGS), "checkpoint": "receiver.safetensors"},
        "task": {"dataset": "tiny/realdigits", "limit": 32},
        "train": {"steps": 4, "batch_size": 8, "lr": 1e-3, "warmup_steps": 1, "augment": "none", "save_every": 2},
    }
    (folder / "donor.yaml").write_text(yaml.safe_dump(donor))
    write_study(folder)
