"""Every command in the README is run: what a newcomer types works."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from safetensors.numpy import load_file
from study_recipes import write_study
from timm.data import create_transform, resolve_model_data_config

from qvec_deploy.datasets import DataConfig, DatasetSpec
from qvec_deploy.datasets.tiny import open_tiny
from tests.pico import PICO_ARGS, PICO_MODEL

ROOT = Path(__file__).parents[2]
RECURSIVE = "./scripts/test"  # it runs this very test

pytestmark = pytest.mark.usefixtures("warm_jobs")


DOCUMENTS = (
    "README.md",
    "qvec_deploy/bench/README.md",
    "qvec_deploy/bundle/README.md",
    "qvec_deploy/runtimes/README.md",
    "qvec_deploy/runtimes/tensorrt/README.md",
    "recipes/STUDY.md",
)
"""In the order in which a newcomer reads them: what a later one needs, an earlier one has made."""


def _commands() -> list[str]:
    text = "\n".join((ROOT / name).read_text(encoding="utf-8") for name in DOCUMENTS)
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    lines = [line.partition(" #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


def _run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, env={**os.environ, "PATH": path}, check=False
    )


def test_the_readme_names_the_two_commands() -> None:
    assert _commands()[:2] == ["./scripts/demo", RECURSIVE]


def test_the_demo(tmp_path: Path) -> None:
    done = _run([str(ROOT / "scripts" / "demo")], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "demo_3bit" in done.stdout and "random_3" in done.stdout and "report.html" in done.stdout
    assert "Next, with your own" in done.stdout
    assert (ROOT / "out" / "demo_3bit" / "manifest.json").is_file()
    shown = re.search(r"demo_picture\.png, shows (\S+)", done.stdout)
    named = re.search(r"^out/demo_picture\.png\n +\d+\.\d+ %  (\S+)$", done.stdout, re.MULTILINE)
    assert shown and named and named[1] == shown[1]


def test_the_test_command_is_the_check() -> None:
    text = (ROOT / "scripts" / "test").read_text(encoding="utf-8")
    assert "scripts/setup" in text and "scripts/check" in text
    assert "scripts/test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    for name in ("setup", "demo", "test", "check"):
        assert os.access(ROOT / "scripts" / name, os.X_OK)
        assert _run(["bash", "-n", str(ROOT / "scripts" / name)], ROOT).returncode == 0


@pytest.mark.parametrize("path", sorted((ROOT / "scripts").iterdir()), ids=lambda path: path.name)
def test_what_begins_as_a_program_can_be_run(path: Path) -> None:
    if path.is_file():
        assert os.access(path, os.X_OK) == path.read_bytes().startswith(b"#!")


@pytest.fixture
def own_folder(tmp_path: Path, pico_folder: Path) -> Path:
    """A newcomer's folder: the recipes, a checkpoint of their own, and images, labelled by the model itself."""
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    small = write_study(tmp_path / "small")  # the bundled study takes an hour
    shutil.copy(small, tmp_path / "recipes" / "study_tiny.yaml")
    Image.new("RGB", (80, 60)).save(tmp_path / "picture.png")
    state = {name: torch.from_numpy(value) for name, value in load_file(pico_folder / "receiver.safetensors").items()}
    arguments = {"model": PICO_MODEL, "model_kwargs": PICO_ARGS}
    names = [f"class_{label}" for label in range(10)]
    saved = {"arch": PICO_MODEL, "args": arguments, "class_names": names, "state_dict": state}
    torch.save(saved, tmp_path / "model_best.pth.tar")
    model = timm.create_model(PICO_MODEL, num_classes=10, **PICO_ARGS).eval()
    model.load_state_dict(state)
    side = model.patch_embed.img_size[0]
    transform = create_transform(**{**resolve_model_data_config(model), "input_size": (3, side, side)})
    pixels, _ = open_tiny(DatasetSpec("tiny/realdigits", limit=200), DataConfig()).pixels
    for row, image in enumerate(map(Image.fromarray, pixels)):
        label = int(model(transform(image)[None]).argmax())
        folder = tmp_path / "images" / ("test" if row % 2 else "val") / names[label]
        folder.mkdir(parents=True, exist_ok=True)
        image.save(folder / f"{row}.png")
    return tmp_path


def test_every_other_command(
    own_folder: Path, run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = [command for command in _commands() if command not in ("./scripts/demo", RECURSIVE)]
    assert [command.split()[1] for command in commands[:3]] == ["init", "plan", "build"]
    monkeypatch.chdir(own_folder)
    for command in commands:
        words = shlex.split(command.replace("OLD NEW", "out/my_model out/my_model"))
        if words[0] == "pip":  # what tests/e2e/test_predict.py looks into
            assert Path(words[-1]).is_file()
            continue
        if words[0] == "python":
            assert _run([sys.executable, "-I", *words[1:]], own_folder).returncode == 0, command
            continue
        if words[0] == "openssl":
            assert _run(words, own_folder).returncode == 0, command
            continue
        assert words[0] == ".venv/bin/qvec-deploy", command
        if "demo_rtx" in command and importlib.util.find_spec("tensorrt_rtx_bindings") is None:
            assert run("build", "--recipe", "recipes/demo_rtx.yaml")[0] == 4  # the extra `rtx` is not installed
            continue
        code, _, log = run(*words[1:])
        assert code == 0, f"{command}\n{log}"


def test_a_newcomer_reads_a_short_readme() -> None:
    assert (ROOT / "README.md").read_text(encoding="utf-8").count("\n") <= 150


@pytest.mark.parametrize("name", [*DOCUMENTS, "recipes/README.md", "qvec_deploy/README.md"])
def test_links_lead_somewhere(name: str) -> None:
    path = ROOT / name
    text = path.read_text(encoding="utf-8")
    anchors = {
        re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^#+ (.*)$", text, re.M)
    }
    for target in re.findall(r"\]\(([^)]+)\)", text):
        place, _, anchor = target.partition("#")
        if "://" not in target:
            assert (path.parent / place).exists() and (place or anchor in anchors), target
