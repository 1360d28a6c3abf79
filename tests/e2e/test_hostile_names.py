"""A receiver whose folder, file, images and classes have hostile names, from `plan` to the script of its release."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from hostile_text import elements, hidden
from pico import PICO_ARGS, PICO_MODEL
from PIL import Image
from safetensors.numpy import load_file, save_file

from qvec_deploy.io.yaml import parse_yaml

pytestmark = pytest.mark.slow

ESCAPES, BACKWARDS, BYTES = "\x1b[31mred\x1b[2J\r", "\u202egpj.exe\u202c", "\udcff\udc80"
CLASSES = (
    f"cat{ESCAPES}",
    f"dog{BACKWARDS}",
    "[red]markup",
    "<b>bold",
    "=1+1",
    "a|b `c` @me #12",
    "<!-- $x$",
    "line\nerror: no line of ours",
    "zero\u200bwidth",
    "harmless",
)


@pytest.fixture(scope="module")
def folder(pico_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with a recipe."""
    root = tmp_path_factory.mktemp("hostile")
    inner = root / f"in {ESCAPES} {BACKWARDS}"
    images = inner / "images" / "test"
    generator = np.random.default_rng(0)
    for name in CLASSES:
        (images / name).mkdir(parents=True)
        for number in range(2):
            pixels = generator.integers(0, 255, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(images / name / f"{number}{ESCAPES}.png")
    state = load_file(pico_folder / "receiver.safetensors")
    save_file(state, inner / f"receiver{BACKWARDS}.safetensors", {"class_names": json.dumps(CLASSES)})
    recipe = {
        "version": 1,
        "name": "pico",
        "receiver": {
            "checkpoint": str(inner / f"receiver{BACKWARDS}.safetensors"),
            "model": PICO_MODEL,
            "model_args": PICO_ARGS,
        },
        "quantize": {"bits": 3, "granularity": "channel"},
        "target": {"runtime": "onnxruntime", "lowering": "int4", "threads": 1},
        "evaluate": {"dataset": "folder", "root": str(inner / "images"), "split": "test", "accept_float": True},
        "measure": {"blocks": 2, "warmup": 0},
    }
    (root / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def run(folder: Path) -> Callable[..., str]:
    """Runs Python; gives what it prints, of which nothing may be obeyed or hidden."""

    def run(*arguments: str, code: int = 0) -> str:
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        command = [sys.executable, *arguments]
        done = subprocess.run(command, capture_output=True, check=False, cwd=folder, env=environment)
        assert done.returncode == code, done.stderr.decode()
        for stream in (done.stdout, done.stderr):
            assert hidden(stream.decode()) == set()
        return done.stdout.decode() + done.stderr.decode()

    return run


def test_nothing_that_is_printed_or_written_is_obeyed(folder: Path, run: Callable[..., str]) -> None:
    package, bundle, released = ("-m", "qvec_deploy"), f"out{ESCAPES}{BACKWARDS}", f"released{BACKWARDS}"
    inner = next(path for path in folder.iterdir() if path.name.startswith("in "))
    seen = run(*package, "plan", "--recipe", "recipe.yaml", "--tensors")
    assert r"in \x1b[31mred\x1b[2J\r \u202egpj.exe\u202c" in " ".join(seen.split())
    assert r"\x1b[31m" in run(*package, "build", "--recipe", "recipe.yaml", "-o", bundle)
    run(*package, "verify", bundle)
    assert r"[red]markup" in run(*package, "inspect", bundle)
    assert json.loads(run(*package, "inspect", bundle, "--json"))["model"]["class_names"] == list(CLASSES)
    assert r"receiver\u202egpj.exe" in run(*package, "inspect", next(map(str, inner.glob("receiver*"))))
    run(*package, "report", bundle, "-o", f"report{BACKWARDS}")
    run(*package, "compare", bundle, bundle, "--stored", "-o", "compared")
    run(*package, "release", bundle, "--to", released)
    run(*package, "export", bundle, "-o", f"model{ESCAPES}.onnx")
    picture = str(next((inner / "images" / "test" / "harmless").iterdir()))
    assert "[2J" in run(*package, "predict", bundle, picture, "--top", "10")
    assert r"\x1b[31mred\x1b[2J\r" in run(f"{released}/run.py", picture, "--top", "10")
    run(f"{released}/run.py", f"none{ESCAPES}{BYTES}.png", code=6)
    run(*package, "predict", bundle, f"none{ESCAPES}{BYTES}.png", code=6)
    run(*package, "inspect", f"none{ESCAPES}{BYTES}", code=6)
    _check_files([*(folder / f"report{BACKWARDS}").iterdir(), *(folder / "compared").iterdir()])
    _check_files([*(folder / bundle).iterdir(), *(folder / released).iterdir()])


def _check_files(paths: list[Path]) -> None:
    pages = 0
    for path in paths:
        if path.suffix in (".html", ".md", ".csv", ".json", ".yaml"):
            text = path.read_bytes().decode()
            assert hidden(text) - ({"\r"} if path.suffix == ".csv" else set()) == set(), path.name
            pages += path.suffix == ".html"
            assert path.suffix != ".html" or ("start", "b") not in set(elements(text)) or "<b>bold" not in text
    assert pages or paths[0].parent.name == "compared"


def test_the_recipe_that_init_writes_is_the_one_that_it_means(folder: Path, run: Callable[..., str]) -> None:
    inner = next(path for path in folder.iterdir() if path.name.startswith("in "))
    source = next(inner.glob("receiver*"))
    named = inner / "a\nquantize: {bits: 8}\n#.safetensors"
    named.write_bytes(source.read_bytes())
    run("-m", "qvec_deploy", "init", str(named), "--model", PICO_MODEL, *_arguments(), "-o", "first.yaml")
    text = (folder / "first.yaml").read_bytes().decode()
    assert hidden(text) == set()
    values, _ = parse_yaml(text, "first.yaml")
    assert values["quantize"]["bits"] == 3 and values["receiver"]["checkpoint"].endswith(named.name)


def _arguments() -> list[str]:
    return [text for name, value in PICO_ARGS.items() for text in ("--model-arg", f"{name}={value}")]
