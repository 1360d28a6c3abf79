"""Every command in the README is run: what a newcomer types works."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from study_recipes import write_study

ROOT = Path(__file__).parents[2]
RECURSIVE = "./scripts/test"  # it runs this very test

pytestmark = pytest.mark.usefixtures("warm_jobs")


def _commands() -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    lines = [line.partition("#")[0].strip() for block in blocks for line in block.splitlines()]
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
def own_folder(tmp_path: Path, pico_recipe: Callable[..., Path]) -> Path:
    """A newcomer's folder: the recipes, and after the first command a recipe of their own, filled in."""
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    small = write_study(tmp_path / "small")  # the bundled study takes an hour
    shutil.copy(small, tmp_path / "recipes" / "study_tiny.yaml")
    Image.new("RGB", (80, 60)).save(tmp_path / "picture.png")
    return tmp_path


def test_every_other_command(
    own_folder: Path,
    pico_recipe: Callable[..., Path],
    run: Callable[..., tuple[int, str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    commands = [command for command in _commands() if command not in ("./scripts/demo", RECURSIVE)]
    assert commands[0] == "cp recipes/cpu_3bit.yaml recipes/my_model.yaml"
    assert _run(shlex.split(commands[0]), own_folder).returncode == 0
    own = pico_recipe(name="NAME", evaluate={"dataset": "tiny/realdigits", "limit": 50})
    monkeypatch.chdir(own_folder)
    shutil.copy(own, "recipes/my_model.yaml")  # the newcomer names their own model and images
    for command in commands[1:]:
        words = shlex.split(command.replace("FILE_OR_BUNDLE", "out/NAME").replace("OLD NEW", "out/NAME out/NAME"))
        if words[0] == "pip":  # what tests/e2e/test_predict.py looks into
            assert Path(words[-1]).is_file()
            continue
        if words[0] == "python":
            assert _run([sys.executable, "-I", *words[1:]], own_folder).returncode == 0, command
            continue
        assert words[0] == ".venv/bin/qvec-deploy", command
        code, _, log = run(*words[1:])
        assert code == 0, f"{command}\n{log}"
