"""Items of a check: each in a process of its own with a time limit, and a record that is written while they run.

Standard library only: a machine that lacks everything else still gets its record.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

State = Literal["passed", "failed", "timed out", "noted", "not run", "running"]
STATES: tuple[State, ...] = ("passed", "failed", "timed out", "noted", "not run")
LEAST_S = 5.0
"""With less time left an item is not started."""
GRACE_S = 5.0
_LOG_CHARACTERS = 4000


class NotRun(Exception):
    """This machine cannot answer; the message says why."""


@dataclass(frozen=True)
class Outcome:
    """What came of an item.

    Attributes:
        state: `passed` and `failed` where something is claimed; `noted` where a question was answered, whatever the
            answer; `timed out` where the limit ended it; `not run` where this machine could not answer.
        detail: In a sentence.
        data: What was measured.
        log: The end of what it printed, where it did not pass.
    """

    state: State
    detail: str
    data: dict[str, Any] = field(default_factory=dict)
    log: str = ""


@dataclass(frozen=True)
class Item:
    """One thing to check.

    Attributes:
        name: Its name in the record.
        title: What it is, in a phrase.
        check: The check; what it is given is the script's business.
        limit_s: Seconds it may take.
    """

    name: str
    title: str
    check: Callable[[Any], Outcome]
    limit_s: float = 300


class Kept:
    """What an item has found so far, in a file that its parent reads: a limit that ends the item does not take it."""

    def __init__(self, path: Path, end: float = float("inf")) -> None:
        self._path, self._end = path, end

    def left_s(self) -> float:
        """Seconds until the limit."""
        return self._end - time.monotonic()

    def keep(self, outcome: Outcome) -> None:
        """Leave an outcome; the last one counts."""
        write_json(self._path, asdict(outcome))


class Record:
    """The record, on disk at every moment."""

    def __init__(self, path: Path, head: Mapping[str, Any]) -> None:
        self.path = path
        self._head, self._items = dict(head), dict[str, dict[str, Any]]()
        self._write()

    def note(self, **values: Any) -> None:
        """Add to what stands before the items."""
        self._head |= values
        self._write()

    def put(self, item: Item, outcome: Outcome, seconds: float) -> None:
        """Add an item, or take its later outcome."""
        entry = {"name": item.name, "title": item.title, **asdict(outcome), "seconds": round(seconds, 3)}
        self._items[item.name] = entry
        self._write()

    @property
    def counts(self) -> dict[str, int]:
        """Items by state."""
        states = [entry["state"] for entry in self._items.values()]
        return {state: states.count(state) for state in STATES}

    def _write(self) -> None:
        write_json(self.path, {**self._head, "counts": self.counts, "items": list(self._items.values())})


def write_json(path: Path, document: Any) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{os.getpid()}")
    new.write_text(json.dumps(document, indent=1, default=str) + "\n", encoding="utf-8")
    new.replace(path)


def judge(check: Callable[[], Outcome]) -> Outcome:
    """Run a check here; what it raises is an outcome too."""
    try:
        return check()
    except NotRun as reason:
        return Outcome("not run", str(reason))
    except ModuleNotFoundError as error:
        ours = str(error.name).startswith("qvec_deploy")
        said = f"the module {error.name} is not installed"
        return Outcome("failed" if ours else "not run", said, log=traceback.format_exc())
    except (Exception, SystemExit) as error:  # noqa: BLE001 - one broken item must not hide the others
        return Outcome("failed", first_line(error), log=traceback.format_exc())


def run_items(
    items: Sequence[Item],
    command: Callable[[Item, Path, float], Sequence[str]],
    record: Record,
    *,
    total_s: float = float("inf"),
    environment: Mapping[str, str] | None = None,
    show: Callable[[Item, Outcome, float], None] | None = None,
) -> None:
    """Run every item in a process of its own; the end of one is not the end of the others.

    Args:
        command: The process of an item, from the file for its outcome and its limit in seconds.
        total_s: Seconds for all of them; those that are not reached are not run.
        environment: Of the processes.
        show: Told of every outcome, with the seconds it took.
    """
    end = time.monotonic() + total_s
    for item in items:
        start = time.monotonic()
        limit = min(item.limit_s, end - start)
        if limit < LEAST_S and limit < item.limit_s:
            outcome = Outcome("not run", "no time was left for it")
        else:
            outcome = run_apart(item, command, limit, environment, record)
        seconds = time.monotonic() - start
        record.put(item, outcome, seconds)
        if show is not None:
            show(item, outcome, seconds)


def run_apart(
    item: Item,
    command: Callable[[Item, Path, float], Sequence[str]],
    limit_s: float,
    environment: Mapping[str, str] | None = None,
    record: Record | None = None,
) -> Outcome:
    """Run one item in a process of its own, and end the process and its children at the limit."""
    start, seen = time.monotonic(), None
    with tempfile.TemporaryDirectory(prefix="qvec-item.") as folder:
        result, log = Path(folder) / "outcome.json", Path(folder) / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                command(item, result, limit_s), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                env=environment, start_new_session=True,
            )  # fmt: skip
        with _ended(process):
            while process.poll() is None and time.monotonic() - start < limit_s:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(min(1.0, max(0.0, limit_s - (time.monotonic() - start))))
                found = _read(result)
                if record is not None and found not in (None, seen):
                    record.put(item, Outcome(**{**found, "state": "running"}), time.monotonic() - start)
                    seen = found
            code = process.poll()
        found, said = _read(result) or {}, log.read_text(encoding="utf-8", errors="replace")[-_LOG_CHARACTERS:]
    if code is None:
        so_far = f"; until then: {found['detail']}" if found.get("detail") else ""
        return Outcome("timed out", f"it took more than {limit_s:.0f} s{so_far}", found.get("data", {}), said)
    if code or found.get("state", "running") == "running":
        ended = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return Outcome("failed", f"its process ended with {ended} and no outcome", found.get("data", {}), said)
    outcome = Outcome(**found)
    if outcome.state in ("passed", "noted", "not run"):
        return outcome
    return Outcome(outcome.state, outcome.detail, outcome.data, (said + outcome.log)[-_LOG_CHARACTERS:])


@contextlib.contextmanager
def _ended(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """End the process and all that it started, however the block is left."""
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            if number == signal.SIGTERM:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(GRACE_S)
        process.wait()


def _read(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def stop_at_signals() -> None:
    """Let a polite kill of this process end its items too."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))


def verdict(counts: Mapping[str, int], *, whole: bool) -> tuple[int, str]:
    """Exit code and last line: 3 if something failed or took too long, 4 if too little was run, else 0.

    Args:
        whole: Whether all of it has to be run; else one item that passed is enough.
    """
    text = ", ".join(f"{counts[state]} {state}" for state in STATES)
    if counts["failed"] or counts["timed out"]:
        return 3, f"{text}: not as claimed"
    if not counts["passed"] or (whole and counts["not run"]):
        return 4, f"{text}: what was not run is not shown"
    return 0, f"{text}: as claimed" + (", as far as it was run" if counts["not run"] else "")


def line(item: Item, outcome: Outcome, seconds: float) -> str:
    """An outcome on a line of the terminal."""
    return f"{outcome.state:9} {item.name:22} {seconds:6.1f} s  {item.title}: {outcome.detail}"


def first_line(error: BaseException) -> str:
    """Kind and first line of an error."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}".rstrip(": ")
