"""The command line in this process, and one finished bundle for every test that needs one."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing import forkserver
from pathlib import Path

import command_server
import pytest
from shared import make_once

from qvec_deploy.cli import terminal_progress
from qvec_deploy.cli.commands import main

Run = Callable[..., tuple[int, str, str]]

ROOT = Path(__file__).parents[2]
PRELOAD = [
    "torch",
    "timm",
    "onnx",
    "qvec_deploy.sweep",
    "qvec_deploy.research.study.cell",
    "modelopt.torch.quantization",
    "shared_builds",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All of these are slow together."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.slow)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command line in this process: exit code, standard output, standard error."""

    monkeypatch.setattr(terminal_progress, "_SOON_S", 3600)  # how slow this machine is belongs to no output

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["qvec-deploy", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        out, err = capsys.readouterr()
        return int(stop.value.code or 0), out, err

    return call


@pytest.fixture(autouse=True)
def _shared_work(shared_work: None) -> None:
    """All of these build."""


@pytest.fixture(scope="session")
def warm_jobs() -> None:
    """Jobs of sweeps and studies are forked from a server: here it has ModelOpt, which each imports else, and shares.

    Not where there is a GPU: ModelOpt touches CUDA, and jobs that are forked after that cannot use it.
    """
    import torch

    if not torch.cuda.is_available():
        multiprocessing.set_forkserver_preload(PRELOAD)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PYTHONPATH", str(ROOT / "tests"), prepend=os.pathsep)
            forkserver.ensure_running()


@pytest.fixture(scope="session")
def command(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An executable that runs commands in processes of their own, forked from one that has everything imported."""
    address = Path(tempfile.mkdtemp(prefix="qvec")) / "server"  # the paths of sockets are short
    script = Path(command_server.__file__)
    with subprocess.Popen([sys.executable, script, address], env={**os.environ, "PYTHONPATH": str(ROOT)}) as server:
        deadline = time.monotonic() + 400
        while not address.exists():
            assert server.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        yield command_server.write_client(address.with_name("qvec-deploy"), str(address))
        server.kill()
    shutil.rmtree(address.parent)


@pytest.fixture
def build_once(pico_recipe: Callable[..., Path], run: Run) -> Callable[..., Path]:
    """Build a changed pico recipe once a run, in a folder that is this recipe's; do not write to the bundle."""

    def build(folder: str, **changes: object) -> Path:
        def make(path: Path) -> None:
            code, _, log = run("build", "--recipe", pico_recipe(**changes), "-o", path, "--quiet")
            assert code == 0, log

        return make_once(f"bundles/{folder}", make)

    return build


@pytest.fixture
def finished(build_once: Callable[..., Path]) -> Path:
    """The finished bundle of the pico recipe; do not write to it."""
    return build_once("pico")


@pytest.fixture
def bundle(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished bundle, this test's own, in a folder of its own."""
    return Path(shutil.copytree(finished, tmp_path / "bundles" / "pico"))
