"""The fault matrix: every command under every fault; `scripts/fault_matrix` runs it.

Commands run in forks of this process, which has everything imported and was started with the shim that fails calls.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import errno
import hashlib
import json
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from commands_at_work import CASES, Case, commands_without_case, write_inputs
from fault_kinds import FAULTS, Fault

LIMIT_S = 240.0
KINDS = ("space", "sync", "rename", "read")
LITTER = re.compile(r"\.(tmp|old)$|^\.tmp|^tmp|^pymp-|\.parts$")
PLACES = ("in", "out", "tmp", "home")


@dataclass(frozen=True)
class Ended:
    """How a run ended.

    Attributes:
        counts: Operations by kind in the watched folder.
        interfered: Whether a signal or the like came before its end.
    """

    code: int
    log: str
    seconds: float
    counts: dict[str, int]
    interfered: bool


@dataclass(frozen=True)
class Verdict:
    """What became of a command under a fault, over all operations or moments that it was tried at."""

    command: str
    fault: str
    tried: int
    codes: tuple[int, ...]
    problems: tuple[str, ...]


class Matrix:
    """Runs commands in folders under one.

    Args:
        each: How many operations, at most, are made to fail of those that a command does, evenly spread; one of slow
            commands.
        moments: How many moments of a run signals come at; one of slow commands.
    """

    def __init__(self, folder: Path, other: Path, each: int, moments: int) -> None:
        self._folder, self._other, self._each, self._moments = folder, other, each, moments
        self._inputs = folder / "inputs"
        self._numbers = iter(range(10**9))
        write_inputs(self._inputs)
        self._usual: dict[str, Ended] = {}
        self._before: dict[str, Path] = {}
        self._names: dict[str, set[str]] = {}
        self._counts: dict[tuple[str, str], dict[str, int]] = {}

    def prepare(self, name: str) -> str:
        """Run a command as it should be run; what it leaves is there when it is run again, if it replaces that.

        Returns:
            What is wrong with it; nothing if all is well.
        """
        case = CASES[name]
        if name == "study report":
            self.prepare("study run")
            shutil.copytree(self._before["study run"], self._inputs / "study", dirs_exist_ok=True)
        run = self._make(name, empty=True)
        ended = self._run(case, run, Fault("usual"))
        problem = self._wrong(case, run, ended, before={})
        self._names[name] = {*_tree(run / "out")}
        self._before[name] = run / "out"
        self._usual[name] = ended
        if case.replaces and not problem:
            again = self._make(name)
            ended = self._usual[name] = self._run(case, again, Fault("usual"))
            problem = self._wrong(case, again, ended, before=_tree(self._before[name]))
            shutil.rmtree(again)
        return problem

    def tried(self, name: str, fault: Fault) -> Verdict:
        """A command under a fault."""
        case = CASES[name]
        codes, problems, tried = [], [], 0
        for label, number, moment in self._trials(name, fault):
            run = self._make(name)
            before = _tree(run / "out")
            ended = self._run(case, run, fault, number, moment)
            tried += 1
            codes.append(ended.code)
            problem = self._judged(name, fault, run, ended, before)
            if problem:
                problems.append(f"{label}: {problem}")
            shutil.rmtree(run, ignore_errors=True)
        return Verdict(name, fault.name, tried, tuple(sorted({*codes})), tuple(problems))

    def _trials(self, name: str, fault: Fault) -> Iterator[tuple[str, int, float]]:
        """Which operation fails, or when something comes."""
        if fault.fail is not None:
            count = self._count(name, fault.under)[fault.fail[0]]
            always = fault.fail[1] == errno.EROFS
            for number in [1] if always and count else _spread(count, 1 if CASES[name].slow else self._each):
                yield f"{fault.fail[0]} {number} of {count}", number, 0.0
        elif fault.signal or fault.cores or fault.clock_back:
            moments = 1 if fault.resumed_after or CASES[name].slow else self._moments
            for index in range(moments):
                share = (index + 0.5) / moments
                yield f"at {share:.0%}", 0, share * self._usual[name].seconds
        else:
            yield "always", 0, 0.0

    def _count(self, name: str, under: str) -> dict[str, int]:
        """How many operations of each kind a command does in a folder."""
        if (name, under) not in self._counts:
            run = self._make(name)
            self._counts[name, under] = self._run(CASES[name], run, Fault("count", under=under)).counts
            shutil.rmtree(run)
        return self._counts[name, under]

    def _judged(self, name: str, fault: Fault, run: Path, ended: Ended, before: dict[str, bytes]) -> str:
        case = CASES[name]
        if ended.code == case.exit_code or (case.measures and ended.code == 3):
            problem = self._wrong(case, run, ended, before, self._names[name], fault)
        elif ended.code not in fault.codes:
            problem = f"exit code {ended.code}: {_last(ended.log)}"
        else:
            problem = self._unharmed(case, fault, run, ended, before)
        if not problem and fault.signal == signal.SIGKILL and ended.code < 0:
            again = self._run(case, run, Fault("usual"))
            problem = self._wrong(case, run, again, before, self._names[name])
            problem = f"run again: {problem}" if problem else ""
        return problem

    def _unharmed(self, case: Case, fault: Fault, run: Path, ended: Ended, before: dict[str, bytes]) -> str:
        """What is wrong after a command that was refused or stopped."""
        after = _tree(run / "out")
        lost = [path for path, content in before.items() if after.get(path) != content]
        killed = ended.code < 0
        added = [] if case.keeps or killed else sorted(after.keys() - before.keys())
        if fault.fail is not None and fault.fail[0] in ("sync", "rename") and not _is_whole_or_old(before, after):
            return f"half written: {lost or added}"
        if (lost or added) and not (fault.fail and _is_whole_or_old(before, after)):
            return f"lost {lost[:3]}, added {added[:3]}"
        if not killed and (litter := _litter(run)):
            return f"left {litter[:3]}"
        return "" if killed else _badly_said(fault, run, ended)

    def _wrong(
        self,
        case: Case,
        run: Path,
        ended: Ended,
        before: dict[str, bytes],
        names: set[str] | None = None,
        fault: Fault | None = None,
    ) -> str:
        """What is wrong after a command that went well."""
        if ended.code != case.exit_code and not (case.measures and ended.code == 3):
            return f"exit code {ended.code}: {_last(ended.log)}"
        if "Traceback" in ended.log:
            return f"a traceback, and exit code {ended.code}"
        after = _tree(run / "out")
        missing = (names or set()) - after.keys()
        if missing:
            return f"exit code {ended.code}, but {sorted(missing)[:3]} is not there"
        if litter := _litter(run):
            return f"left {litter[:3]}"
        if fault is not None and fault.umask is not None:
            private = [path for path in (run / "out").rglob("*") if path.is_file() and not path.stat().st_mode & 0o044]
            if private and not case.keeps:
                return f"nobody else can read {private[0].relative_to(run)}"
        return ""

    def _make(self, name: str, *, empty: bool = False) -> Path:
        run = self._folder / f"run{next(self._numbers)}"
        run.mkdir()
        shutil.copytree(self._inputs, run / "in")
        for place in PLACES[1:]:
            (run / place).mkdir()
        if CASES[name].replaces and not empty:
            shutil.copytree(self._before[name], run / "out", dirs_exist_ok=True)
        return run

    def _run(self, case: Case, run: Path, fault: Fault, number: int = 0, moment: float = 0.0) -> Ended:
        other = self._other / run.name
        other.mkdir(exist_ok=True)
        (run / "count").unlink(missing_ok=True)
        started = time.monotonic()
        child = os.fork()
        if child == 0:
            try:
                _be(case, run, other, fault, number, moment)
            except BaseException:  # noqa: BLE001 - a fork must not become a second harness
                (run / "log").write_text(traceback.format_exc())
            os._exit(99)
        code, interfered = _follow(child, fault, moment, started)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)  # what it may have left; there should be nothing
        raw = (run / "count").read_bytes() if (run / "count").is_file() else bytes(32)
        counts = {kind: int.from_bytes(raw[at * 8 : at * 8 + 8], "little") for at, kind in enumerate(KINDS)}
        (run / "count").unlink(missing_ok=True)
        log = (run / "log").read_text(errors="replace")
        if (left := [path.name for path in other.iterdir() if LITTER.search(path.name)]) and code >= 0:
            log += f"\nerror: left in another TMPDIR: {left}"
            code = 98
        shutil.rmtree(other)
        return Ended(code, log, time.monotonic() - started, counts, interfered)


def _be(case: Case, run: Path, other: Path, fault: Fault, number: int, moment: float) -> None:
    """Become the command, in a fork."""
    os.setsid()
    null, log = os.open(os.devnull, os.O_RDONLY), os.open(run / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for target, source in ((0, null), (1, log), (2, log)):
        os.dup2(source, target)
    os.closerange(3, 4096)
    os.chdir(run)
    for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME"):
        os.environ.pop(name, None)
    os.environ |= {"HOME": str(run / "home"), "TMPDIR": str(run / "tmp"), "FAULTS_COUNT": str(run / "count")}
    os.environ["FAULTS_UNDER"] = str(run / fault.under)
    for name, value in fault.variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = str(other) if value == "OTHER" else value
    if fault.fail is not None:
        os.environ["FAULTS_FAIL"] = f"{fault.fail[0]},{number},{fault.fail[1]}"
    if fault.clock_back:
        os.environ["FAULTS_CLOCK"] = f"{moment * 1000:.0f},3600"
    for limit, most in fault.limits.items():
        resource.setrlimit(limit, (most, most))
    os.umask(0o022 if fault.umask is None else fault.umask)
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.default_int_handler if each == signal.SIGINT else signal.SIG_DFL)
    tempfile.tempdir = None
    sys.argv = ["qvec-deploy", *case.words]
    sys.stdin, sys.stdout, sys.stderr = (open(at, mode, closefd=False) for at, mode in enumerate("rww"))  # noqa: SIM115
    ctypes.CDLL(None).faults_reload()
    from qvec_deploy.cli import program

    program()


def _follow(child: int, fault: Fault, moment: float, started: float) -> tuple[int, bool]:
    """Wait for a process, do to it what is to be done, and say how it ended."""
    interfered = False
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status), interfered
        now = time.monotonic() - started
        if not interfered and now >= moment and (fault.signal or fault.cores):
            interfered = True
            if fault.signal:
                os.kill(child, fault.signal)
            if fault.resumed_after:
                time.sleep(fault.resumed_after)
                os.kill(child, signal.SIGCONT)
            if fault.cores:
                for task in Path(f"/proc/{child}/task").iterdir():
                    with contextlib.suppress(OSError):
                        os.sched_setaffinity(int(task.name), {min(os.sched_getaffinity(0))})
        if now > LIMIT_S:
            os.killpg(child, signal.SIGKILL)
        time.sleep(0.002)


def _badly_said(fault: Fault, run: Path, ended: Ended) -> str:
    """What is wrong with the message."""
    if "Traceback" in ended.log:
        return "a traceback"
    if ended.code == 130:
        return "" if "interrupted" in ended.log else f"it does not say that it was interrupted: {_last(ended.log)}"
    lines = ended.log.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    by_build = [line for line in lines if ": failed, exit code " in line]  # a sweep has a line for each
    if len(errors) > 1 or not errors + by_build:
        return f"{len(errors)} lines of error: {_last(ended.log)}"
    words = (f"{run / fault.under}", f" {fault.under}/", f" {fault.under}:", f"../{fault.under}/")
    silent = [line for line in errors or by_build if not any(word in line for word in words)]
    return f"it names nothing in {fault.under}: {silent[0]}" if fault.fail is not None and silent else ""


def _is_whole_or_old(before: dict[str, bytes], after: dict[str, bytes]) -> bool:
    """Whether every file is as it was, or a new one that is whole; of bundles, whether all are of one."""
    if any(LITTER.search(part) for path in after for part in path.split("/")):
        return False
    if before.keys() - after.keys():
        return False
    manifests = [path for path in after if path.endswith("manifest.json")]
    for manifest in manifests:
        folder = manifest.removesuffix("manifest.json")
        for name, entry in json.loads(_CONTENT[after[manifest]])["files"].items():
            if after.get(folder + name) != bytes.fromhex(entry["sha256"]):
                return False
    return True


_CONTENT: dict[bytes, bytes] = {}


def _tree(folder: Path) -> dict[str, bytes]:
    """SHA-256 of every file, by its path."""
    tree = {}
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            content = path.read_bytes()
            tree[str(path.relative_to(folder))] = hashlib.sha256(content).digest()
            if path.name == "manifest.json":
                _CONTENT[hashlib.sha256(content).digest()] = content
    return tree


def _litter(run: Path) -> list[str]:
    found = [path for place in PLACES for path in (run / place).rglob("*") if LITTER.search(path.name)]
    return sorted(str(path.relative_to(run)) for path in found)


def _spread(count: int, most: int) -> list[int]:
    if count <= most:
        return list(range(1, count + 1))
    if most == 1:
        return [count // 2]
    return sorted({1 + round(index * (count - 1) / max(1, most - 1)) for index in range(most)})


def _last(log: str) -> str:
    lines = [line for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error:")]
    return (errors or lines or ["nothing was said"])[-1][:300]


def main() -> int:
    """Run the matrix, or a part of it; results as lines of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--commands", nargs="*", help="these instead of all")
    parser.add_argument("--faults", nargs="*", help="these instead of all")
    parser.add_argument("--each", type=int, default=8, help="operations that are made to fail, of all that there are")
    parser.add_argument("--moments", type=int, default=2, help="moments at which signals come")
    options = parser.parse_args()
    from qvec_deploy.cli.commands import commands

    missing = commands_without_case(commands)
    if missing:
        print(json.dumps({"missing": missing}))
        return 1
    _import_everything(options.commands or [*CASES])
    with tempfile.TemporaryDirectory(prefix="fault_matrix.") as folder, _elsewhere() as other:
        matrix = Matrix(Path(folder).resolve(), other, options.each, options.moments)
        for name in options.commands or CASES:
            problem = matrix.prepare(name)
            _tell(Verdict(name, "none", 1, (CASES[name].exit_code,), (problem,) if problem else ()))
            for fault in FAULTS if not problem else ():
                if fault.concerns(CASES[name]) and (options.faults is None or fault.name in options.faults):
                    _tell(matrix.tried(name, fault))
    return 0


def _tell(verdict: Verdict) -> None:
    print(json.dumps(vars(verdict)), flush=True)


@contextlib.contextmanager
def _elsewhere() -> Iterator[Path]:
    """A folder on another file system."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="fault_matrix.", dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder)


def _import_everything(names: list[str]) -> None:
    """What takes seconds to import, and starts no threads."""
    import onnx
    import onnxruntime
    import timm
    import torch

    torch.set_num_threads(1)
    _ = (onnx, onnxruntime, timm)
    if any(name.startswith(("build", "analyze", "donor", "study")) for name in names):
        import modelopt.torch.quantization
        import shared_builds

        _ = (modelopt, shared_builds)


if __name__ == "__main__":
    sys.exit(main())
