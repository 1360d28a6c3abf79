"""Nothing that the product starts calls out: every process is watched while it builds, verifies, measures, releases."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest
import yaml
from pico import pico_values
from PIL import Image

pytestmark = pytest.mark.slow

HOOK = """
import os, sys

def watch(event, arguments):
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        family, address = arguments[0].family, arguments[1]
        if family.name == "AF_UNIX" or not address or str(address[0]) in ("127.0.0.1", "::1", "localhost"):
            return
        tell(event, address)
    elif event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"):
        if arguments[0] not in (None, "", "localhost", "127.0.0.1", "::1"):
            tell(event, arguments[0])

def tell(event, what):
    with open(os.environ["NETWORK_LOG"], "a") as file:
        print(event, what, sys.orig_argv, file=file)

with open(os.environ["NETWORK_LOG"] + ".watched", "a") as file:
    print(os.getpid(), file=file)
sys.addaudithook(watch)
"""
"""What every Python process loads as it starts; Python tells it of its own sockets, and not of native libraries'."""
OUTSIDE = re.compile(r"sa_family=AF_INET6?\b(?!.*(?:\"127\.\d+\.\d+\.\d+\"|\"::1\"|\"::ffff:127\.))")
"""A system call of strace that names an address of another machine."""
PACKAGE = ["-m", "qvec_deploy"]


class Watched:
    """Runs programs with a new home, in a place where attempts to reach the network are written down."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.home = folder, folder / "home"
        self.home.mkdir(parents=True)
        (folder / "hook").mkdir()
        (folder / "hook" / "sitecustomize.py").write_text(HOOK, encoding="utf-8")
        self._log = folder / "python.log"
        self.strace = shutil.which("strace")
        if (
            self.strace is not None
            and subprocess.run([self.strace, "-qq", "-e", "trace=none", "true"], check=False).returncode != 0
        ):
            self.strace = None

    def run(self, arguments: Sequence[str], **variables: str) -> str:
        """What a program in Python prints."""
        aside = ("CI", "ORT_DISABLE_TELEMETRY", "DO_NOT_TRACK", "XDG_CACHE_HOME", "HF_HUB_OFFLINE")
        kept = {name: value for name, value in os.environ.items() if name not in aside}
        paths = [str(self.folder / "hook"), *(str(Path(__file__).parents[number]) for number in (1, 2))]
        found = {"HOME": str(self.home), "NETWORK_LOG": str(self._log), "PYTHONPATH": os.pathsep.join(paths)}
        trace = ["-f", "--seccomp-bpf", "-qq", "-A", "-s", "200", "-e", "trace=connect,sendto,sendmsg,sendmmsg"]
        tracer = [self.strace, *trace, "-o", str(self.folder / "strace.log")] if self.strace is not None else []
        command = [*tracer, sys.executable, *arguments]
        done = subprocess.run(
            command, env=kept | found | variables, capture_output=True, text=True, check=False, cwd=self.folder
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def seen_by_python(self) -> str:
        """Attempts of Python's own sockets, a line each."""
        return self._log.read_text(encoding="utf-8") if self._log.exists() else ""

    def processes(self) -> int:
        """Python processes that were watched."""
        return len(set(Path(f"{self._log}.watched").read_text(encoding="utf-8").split()))

    def seen_by_strace(self) -> list[str]:
        """System calls of all processes that name another machine."""
        lines = (self.folder / "strace.log").read_text(encoding="utf-8", errors="replace").splitlines()
        return [line for line in lines if OUTSIDE.search(line)]


@pytest.fixture(scope="module")
def watched(pico_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Watched:
    """A build, two at a time, and what is done with bundles: in processes of their own."""
    watched = Watched(tmp_path_factory.mktemp("network") / "watched")
    recipe = pico_values(pico_folder)
    (watched.folder / "pico.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    many = recipe | {"matrix": {"lambda": [0.5, 1.0]}}
    (watched.folder / "many.yaml").write_text(yaml.safe_dump(many), encoding="utf-8")
    picture = str(watched.folder / "picture.png")
    Image.new("RGB", (32, 32), (10, 90, 160)).save(picture)
    watched.run([*PACKAGE, "build", "--recipe", "pico.yaml", "-o", "pico"])
    watched.run([*PACKAGE, "build", "--recipe", "many.yaml", "-o", "many", "--jobs", "2"])
    watched.run([*PACKAGE, "verify", "pico"])
    watched.run([*PACKAGE, "bench", "pico", "--no-accuracy", "--blocks", "2"])
    watched.run([*PACKAGE, "release", "pico", "--to", "release", "--accept-unverified"])
    watched.run(["release/run.py", picture])
    watched.run([*PACKAGE, "doctor"])
    return watched


def test_no_python_process_looks_for_another_machine(watched: Watched) -> None:
    assert watched.processes() > 10
    assert watched.seen_by_python() == ""


def test_no_native_library_looks_for_another_machine(watched: Watched) -> None:
    if watched.strace is None:
        pytest.skip("strace is not installed, or may not trace here: only Python's own sockets were watched")
    assert watched.seen_by_strace() == []


def test_nobody_leaves_an_identity_in_the_home(watched: Watched) -> None:
    assert [str(path) for path in watched.home.rglob("*icrosoft*")] == []


def test_the_run_script_of_a_release_switches_it_off_by_itself(watched: Watched) -> None:
    code = "import os, runpy, sys; sys.argv = sys.argv[1:]\ntry: runpy.run_path(sys.argv[0], run_name='__main__')\n"
    code += "except SystemExit: print(os.environ['ORT_DISABLE_TELEMETRY'])"
    assert watched.run(["-c", code, "release/run.py", "picture.png"]).splitlines()[-1] == "1"


def test_the_watch_sees_an_attempt(tmp_path: Path) -> None:
    watched = Watched(tmp_path / "watched")
    attempts = "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.connect(('192.0.2.1', 9))"
    watched.run(
        ["-c", f"import socket; {attempts}\ntry: socket.getaddrinfo('events.example.invalid', 443)\nexcept OSError: 1"]
    )
    seen = watched.seen_by_python()
    assert "socket.connect ('192.0.2.1', 9)" in seen and "socket.getaddrinfo events.example.invalid" in seen
    if watched.strace is not None:
        assert any("192.0.2.1" in line for line in watched.seen_by_strace())


def test_the_watch_sees_an_attempt_of_a_library(tmp_path: Path) -> None:
    watched = Watched(tmp_path / "watched")
    if watched.strace is None:
        pytest.skip("strace is not installed, or may not trace here")
    code = "import ctypes, struct; c = ctypes.CDLL(None); s = c.socket(2, 2, 0)\n"
    code += "c.connect(s, struct.pack('=HH', 2, 9 << 8) + bytes([192, 0, 2, 1]) + bytes(8), 16)"
    watched.run(["-c", code])
    assert watched.seen_by_python() == "" and len(watched.seen_by_strace()) == 1


def test_ray_asks_nobody(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    watched = Watched(tmp_path / "watched")
    code = "from qvec_deploy.jobs.ray import RayTasks; from qvec_deploy.jobs.job import Job; tasks = RayTasks(1)\n"
    code += "tasks.submit(Job('sum', 'job_functions:add', {'left': 1, 'right': 2})); print(*tasks.outcomes())\n"
    assert "3" in watched.run(["-c", code + "tasks.close()"])
    own = {address.address for found in psutil.net_if_addrs().values() for address in found}
    allowed = own | {f"::ffff:{address}" for address in own} | {"8.8.8.8"}  # by UDP, which sends nothing
    seen = watched.seen_by_python().splitlines() + (watched.seen_by_strace() if watched.strace is not None else [])
    assert [line for line in seen if not allowed & set(re.findall(r"[0-9a-f:.]{4,}", line))] == []


@pytest.mark.parametrize(("value", "kept"), [(None, "1"), ("0", "0")])
def test_the_user_may_switch_it_on(value: str | None, kept: str, tmp_path: Path) -> None:
    watched = Watched(tmp_path / "watched")
    code = "import qvec_deploy, os, onnxruntime; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    assert watched.run(["-c", code], **({} if value is None else {"ORT_DISABLE_TELEMETRY": value})).strip() == kept
    asked = {path.name for path in watched.home.rglob("deviceid")}
    assert asked == set() if value is None else asked <= {"deviceid"}  # older releases have none in any case
