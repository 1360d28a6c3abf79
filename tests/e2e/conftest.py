"""The command line in this process, and one finished bundle for every test that needs one."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from shared import make_once

from qvec_deploy.cli.commands import main

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command line in this process: exit code, standard output, standard error."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["qvec-deploy", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        out, err = capsys.readouterr()
        return int(stop.value.code or 0), out, err

    return call


@pytest.fixture
def build_once(
    tmp_path_factory: pytest.TempPathFactory, pico_recipe: Callable[..., Path], run: Run
) -> Callable[..., Path]:
    """Build a changed pico recipe once a run, under a name that is this recipe's; do not write to the bundle."""

    def build(name: str, **changes: object) -> Path:
        def make(path: Path) -> None:
            code, _, log = run("build", "--recipe", pico_recipe(**changes), "-o", path, "--quiet")
            assert code == 0, log

        return make_once(tmp_path_factory, f"bundles/{name}", make)

    return build


@pytest.fixture
def finished(build_once: Callable[..., Path]) -> Path:
    """The finished bundle of the pico recipe; do not write to it."""
    return build_once("pico")


@pytest.fixture
def bundle(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished bundle, this test's own, in a folder of its own."""
    return Path(shutil.copytree(finished, tmp_path / "bundles" / "pico"))
