"""`donor train` from the command line: killed and gone on with, the donor is the same byte for byte."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import yaml
from pico import PICO_ARGS, PICO_MODEL

Run = Callable[..., tuple[int, str, str]]

ROOT = Path(__file__).parents[2]
WEIGHTS = ("fp.safetensors", "qat.safetensors", "vector.safetensors")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def recipe(tmp_path: Path, pico_folder: Path) -> Path:
    """A pico donor on 128 real digits: 24 steps of each run, a state every second step."""
    values = {
        "version": 1,
        "name": "pico_donor",
        "base": {
            "model": PICO_MODEL,
            "model_args": {**PICO_ARGS, "drop_rate": 0.1},
            "checkpoint": str(pico_folder / "receiver.safetensors"),
        },
        "task": {"dataset": "tiny/realdigits", "limit": 128},
        "scheme": {"clip_every": 7},
        "train": {
            "steps": 24, "batch_size": 16, "lr": 1e-3, "warmup_steps": 5, "augment": "none", "save_every": 2,
        },
    }  # fmt: skip
    path = tmp_path / "donor.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    return path


def kill_while_training(recipe: Path, output: Path, run: str) -> None:
    """Start the command as a process of its own, and kill it once a run has saved a state."""
    process = subprocess.Popen(
        [sys.executable, "-m", "qvec_deploy", "donor", "train", "--recipe", recipe, "-o", output, "--quiet"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        for _ in range(60_000):
            if (output / ".state" / f"{run}.safetensors").is_file() or process.poll() is not None:
                break
            time.sleep(0.001)
    finally:
        process.kill()
        said, _ = process.communicate()
    assert process.returncode == -signal.SIGKILL, said


def log_of(directory: Path) -> list[dict[str, object]]:
    """The log without what the clock says."""
    lines = [json.loads(line) for line in (directory / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def test_a_killed_donor_goes_on_to_the_same_bytes(recipe: Path, tmp_path: Path, run: Run):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    kill_while_training(recipe, killed, "qat")
    left = {path.name for path in killed.iterdir()}
    assert {"fp.safetensors", ".state", "log.jsonl"} <= left
    assert not {"qat.safetensors", "vector.safetensors", "record.json"} & left
    before = (killed / "fp.safetensors").stat().st_mtime_ns

    for directory in (killed, whole):
        code, out, err = run("donor", "train", "--recipe", recipe, "-o", directory, "--quiet")
        assert (code, err) == (0, "")
        assert "quantization-aware fine-tune on that grid" in out
    assert (killed / "fp.safetensors").stat().st_mtime_ns == before  # it was not trained again
    for name in WEIGHTS:
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name
    assert log_of(killed) == log_of(whole)
    assert len(log_of(whole)) == 2 * 3
    for directory in (killed, whole):
        assert sorted(path.name for path in directory.iterdir()) == sorted([*WEIGHTS, "log.jsonl", "record.json"])


def test_the_record_as_json_and_the_progress_without_a_terminal(recipe: Path, tmp_path: Path, run: Run):
    options = ("--set", "train.steps=6", "--set", "task.val=null")
    code, out, err = run("donor", "train", "--recipe", recipe, "-o", tmp_path / "a", "--json", *options)
    assert (code, err) == (0, "")
    record = json.loads(out)
    assert record == json.loads((tmp_path / "a" / "record.json").read_text(encoding="utf-8"))
    assert record["environment"]["threads"] == 1
    assert record["recipe"]["train"]["steps"] == 6
    code, out, err = run("donor", "train", "--recipe", recipe, "-o", tmp_path / "b", *options)
    assert code == 0
    assert "accuracy was not measured: task.val is null" in out
    assert [line.split("s  ")[1].split(",")[0] for line in err.splitlines()] == [
        "float fine-tune",
        "quantization-aware fine-tune",
    ]


def test_an_interrupted_donor_says_how_to_go_on(recipe: Path, tmp_path: Path, run: Run, monkeypatch):
    from qvec_deploy.donors import train

    def interrupt(step: int, hyper: object) -> float:
        if step == 5:
            raise KeyboardInterrupt
        return 1.0

    with monkeypatch.context() as patch:
        patch.setattr(train, "rate", interrupt)
        code, _, err = run("donor", "train", "--recipe", recipe, "-o", tmp_path / "out", "--quiet")
    assert code == 130
    assert "the same command goes on from the last saved state" in err
    assert (tmp_path / "out" / ".state" / "fp.safetensors").is_file()
    code, _, err = run("donor", "train", "--recipe", recipe, "-o", tmp_path / "out", "--set", "train.lr=0.1")
    assert code == 2
    assert "was begun with train.lr 0.001, and this is 0.1" in err
    code, _, err = run("donor", "train", "--recipe", recipe, "-o", tmp_path / "out", "--set", "train.stops=1")
    assert code == 2
    assert "did you mean `steps`?" in err
