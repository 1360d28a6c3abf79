"""From a checkpoint to a bundle with nothing but `init` and `build`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.numpy import load_file

from tests.pico import PICO_ARGS, PICO_MODEL


@pytest.fixture
def checkpoint(pico_folder: Path, tmp_path: Path) -> Path:
    state = {name: torch.from_numpy(value) for name, value in load_file(pico_folder / "receiver.safetensors").items()}
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "flowers.pth")
    return tmp_path / "flowers.pth"


@pytest.mark.slow
def test_a_first_recipe_is_built_as_it_is(checkpoint: Path, run: Callable[..., Any], tmp_path: Path) -> None:
    args = [f"--model-arg={name}={json.dumps(value)}" for name, value in PICO_ARGS.items()]
    code, out, err = run("init", checkpoint, "--model", PICO_MODEL, *args, "-o", tmp_path / "first.yaml")
    assert code == 0, err
    assert "written to" in out and "receiver    flowers.pth" in out
    code, _, err = run("build", "--recipe", tmp_path / "first.yaml", "-o", tmp_path / "out", "--quiet", "--offline")
    assert code == 0, err
    assert (tmp_path / "out" / "report.html").is_file()


def test_refusals_leave_no_recipe(checkpoint: Path, run: Callable[..., Any], tmp_path: Path) -> None:
    code, _, err = run("init", checkpoint, "-o", tmp_path / "first.yaml")
    assert code == 2 and "--model" in err and not (tmp_path / "first.yaml").exists()
    (tmp_path / "first.yaml").write_text("mine")
    args = [f"--model-arg={name}={json.dumps(value)}" for name, value in PICO_ARGS.items()]
    code, _, err = run("init", checkpoint, "--model", PICO_MODEL, *args, "-o", tmp_path / "first.yaml")
    assert code == 6 and "--force" in err and (tmp_path / "first.yaml").read_text() == "mine"
    code, _, err = run("init", tmp_path / "nothing.pt")
    assert code == 6
