"""The command line in this process, and one finished bundle for every test that needs one."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

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


@pytest.fixture(scope="session")
def _shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shelf")


@pytest.fixture
def finished(_shelf: Path, pico_recipe: Callable[..., Path], run: Run) -> Path:
    """The finished bundle of the pico recipe, built once a session; do not write to it."""
    path = _shelf / "pico"
    if not path.exists():
        code, _, log = run("build", "--recipe", pico_recipe(), "-o", path, "--quiet")
        assert code == 0, log
    return path


@pytest.fixture
def bundle(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished bundle, this test's own, in a folder of its own."""
    return Path(shutil.copytree(finished, tmp_path / "bundles" / "pico"))
