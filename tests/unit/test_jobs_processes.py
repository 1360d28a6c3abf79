"""Jobs in processes: results and events come back, and a job that dies costs itself alone."""

from __future__ import annotations

import contextlib
import errno
import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pynvml
import pytest
import torch

from qvec_deploy.jobs import processes as jobs
from qvec_deploy.jobs.job import Job, JobFailure, JobOutcome, perform
from qvec_deploy.jobs.processes import LocalProcesses

FUNCTIONS = "job_functions"


def _job(function: str, label: str = "", gpus: int = 0, **arguments: Any) -> Job:
    return Job(label or function, f"{FUNCTIONS}:{function}", arguments, gpus=gpus)


def _run(*jobs: Job, workers: int = 2, **settings: Any) -> dict[str, JobOutcome]:
    with LocalProcesses(workers, **settings) as processes:
        for job in jobs:
            processes.submit(job)
        return {outcome.job.name: outcome for outcome in processes.outcomes()}


def test_jobs_may_have_variables_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", "/before")
    outcomes = _run(
        _job("environment", name="LD_LIBRARY_PATH"), environment={"LD_LIBRARY_PATH": "/now", "QVEC_NEW": "1"}
    )
    assert outcomes["environment"].result == "/now"
    assert os.environ["LD_LIBRARY_PATH"] == "/before" and "QVEC_NEW" not in os.environ


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def _gone(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    return True


def test_results_and_events_come_back() -> None:
    events: list[Any] = []
    outcomes = _run(
        *(_job("add", f"add{n}", left=n, right=1) for n in range(4)), on_event=lambda name, e: events.append((name, e))
    )
    assert {name: outcome.result for name, outcome in outcomes.items()} == {f"add{n}": n + 1 for n in range(4)}
    assert all(outcome.failure is None for outcome in outcomes.values())
    assert sorted(events) == [(f"add{n}", {"adding": n}) for n in range(4)]


def test_every_job_has_a_process_of_its_own_that_inherits_nothing_from_here() -> None:
    outcomes = _run(_job("whoami", "one"), _job("whoami", "two"), workers=1)
    pids = {outcome.result["pid"] for outcome in outcomes.values()}
    assert len(pids) == 2 and os.getpid() not in pids


def test_jobs_may_be_submitted_while_outcomes_are_read() -> None:
    seen = []
    with LocalProcesses(1) as processes:
        processes.submit(_job("add", "first", left=1, right=1))
        for outcome in processes.outcomes():
            seen.append(outcome.job.name)
            if outcome.job.name == "first":
                processes.submit(_job("add", "second", left=outcome.result, right=1))
    assert seen == ["first", "second"]


@pytest.mark.parametrize(
    ("job", "kind", "message", "hint", "code"),
    [
        (_job("refuse"), "FetchError", "nothing there", "look elsewhere", 7),
        (_job("stumble"), "KeyError", "a bug", "report it", 1),
        (_job("exhaust"), "IncompatibleError", "out of memory", "fewer jobs", 4),
        (_job("not_json"), "TypeError", "not JSON serializable", "report it", 1),
        (_job("absent"), "AttributeError", "absent", "report it", 1),
        (_job("die", by="SIGKILL"), "IncompatibleError", "killed (SIGKILL)", "out of memory", 4),
        (_job("die", by="SIGSEGV"), "Crash", "ended by SIGSEGV", "try it alone", 1),
        (_job("die", "realtime", by=35), "Crash", "ended by signal 35", "try it alone", 1),
        (_job("leave"), "Crash", "exited with 7", "try it alone", 1),
    ],
    ids=lambda value: value.name if isinstance(value, Job) else "",
)
def test_a_failed_job_costs_itself_alone(job: Job, kind: str, message: str, hint: str, code: int) -> None:
    outcomes = _run(job, _job("add", left=1, right=2), workers=1)
    failure = outcomes[job.name].failure
    assert failure is not None and outcomes[job.name].result is None
    assert (failure.kind, failure.exit_code) == (kind, code)
    assert message in failure.message and hint in failure.hint
    assert outcomes["add"].result == 3


def test_a_log_that_cannot_be_written_is_an_error_of_files(tmp_path: Path) -> None:
    (tmp_path / "add.log").mkdir()
    failure = _run(_job("add", left=1, right=2), logs=tmp_path)["add"].failure
    assert failure is not None
    assert (failure.exit_code, failure.message) == (6, f"{tmp_path}/add.log: Is a directory")


def test_errors_of_memory_and_disks_are_told_from_bugs() -> None:
    with pytest.raises(RuntimeError) as refused:
        torch.empty(1 << 55, dtype=torch.uint8)
    on_a_gpu = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
    unmapped = ImportError("libtorch_cpu.so: failed to map segment from shared object")
    for error in (refused.value, on_a_gpu, unmapped, RuntimeError("CUDA error: out of memory\nCompile with ...")):
        assert JobFailure.of(error) == JobFailure("IncompatibleError", "out of memory", "run fewer jobs at a time", 4)
    full = JobFailure.of(OSError(errno.ENOSPC, "No space left on device", "/a/.b.abcdefgh.tmp"))
    assert (full.kind, full.message, full.exit_code) == ("StorageError", "/a/b: No space left on device", 6)
    assert JobFailure.of(RuntimeError("mat1 and mat2 shapes cannot be multiplied")).exit_code == 1


def test_a_gpu_is_one_jobs_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-7")
    wanted = [_job("occupy", f"gpu{number}", gpus=1, seconds=0.3) for number in range(4)]
    outcomes = _run(*wanted, _job("occupy", "cpu", seconds=0.0), _job("occupy", "both", gpus=2, seconds=0.1), workers=4)
    results = {name: outcome.result for name, outcome in outcomes.items()}
    assert {results[job.name]["gpus"] for job in wanted} == {"4", "GPU-7"} and results["both"]["gpus"] == "4,GPU-7"
    for gpu in ("4", "GPU-7"):
        had = sorted(
            (one["start"], one["end"]) for name, one in results.items() if name != "cpu" and gpu in one["gpus"]
        )
        assert all(before[1] <= after[0] for before, after in itertools.pairwise(had))
    assert results["cpu"]["end"] < max(results[job.name]["start"] for job in wanted)  # who needs none waits for none


def test_a_job_for_a_gpu_where_there_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    outcomes = _run(_job("occupy", "gpu", gpus=1, seconds=0.0), _job("add", left=1, right=2), workers=1)
    failure = outcomes["gpu"].failure
    assert failure is not None and failure.exit_code == 4
    assert failure.message == "it needs 1 GPU and this machine has none" and "train.device" in failure.hint
    assert outcomes["add"].result == 3


@pytest.mark.parametrize(
    ("visible", "names"),
    [("0", ["0"]), ("2, 5", ["2", "5"]), ("1,-1,2", ["1"]), ("-1", []), ("", []), (None, ["0", "1", "2"])],
)
def test_gpus_are_those_that_are_left_visible(
    visible: str | None, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    for function, answer in (("nvmlInit", None), ("nvmlDeviceGetCount", 3), ("nvmlShutdown", None)):
        monkeypatch.setattr(pynvml, function, lambda answer=answer: answer)
    with LocalProcesses(1) as processes:
        assert processes._gpus == names and processes.gpus() == len(names)


def test_without_a_driver_there_are_no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(pynvml, "nvmlInit", absent)
    assert LocalProcesses(1).gpus() == 0


def test_a_crash_names_its_log(tmp_path: Path) -> None:
    failure = _run(_job("leave"), logs=tmp_path)["leave"].failure
    assert failure is not None and f"{tmp_path / 'leave.log'} may say more" in failure.hint


def test_a_job_that_does_not_end_after_its_result_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "_GRACE_S", 0.2)
    start = time.monotonic()
    outcomes = _run(_job("outlast"), _job("add", left=1, right=2), workers=1)
    assert time.monotonic() - start < 20
    assert outcomes["outlast"].result == "done" and outcomes["outlast"].failure is None
    assert outcomes["add"].result == 3


def test_what_was_never_started_is_not_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[int] = []
    monkeypatch.setattr(jobs.os, "killpg", lambda group, number: killed.append(group))
    jobs._kill_group(multiprocessing.get_context("spawn").Process())
    assert killed == []  # group 0 would be this process's own


def test_a_bug_keeps_its_traceback_and_the_log_what_was_printed(tmp_path: Path) -> None:
    failure = _run(_job("stumble"), logs=tmp_path)["stumble"].failure
    assert failure is not None and "job_functions.py" in failure.details
    log = (tmp_path / "stumble.log").read_text()
    assert "words before the fall" in log and "KeyError" in log


def test_a_job_performed_here_gives_the_same_values() -> None:
    told: list[Any] = []
    assert perform(f"{FUNCTIONS}:add", {"left": 2, "right": 3}, told.append) == {"result": 5}
    assert told == [{"adding": 2}]
    failure = JobFailure(**perform(f"{FUNCTIONS}:refuse", {}, told.append)["failure"])
    assert (failure.kind, failure.exit_code, failure.details) == ("FetchError", 7, "")


def test_closing_ends_the_jobs_and_what_they_started(tmp_path: Path) -> None:
    with LocalProcesses(1, on_event=lambda name, event: _stop()) as processes:
        processes.submit(_job("linger", folder=str(tmp_path)))
        processes.submit(_job("add", left=1, right=1))
        with pytest.raises(KeyboardInterrupt):
            list(processes.outcomes())
    assert (tmp_path / "cleaned").exists()  # asked first, killed after
    _until(lambda: all(_gone(int(pid)) for pid in (tmp_path / "pids").read_text().split()))


def _stop() -> None:
    raise KeyboardInterrupt


def test_jobs_end_with_a_killed_parent(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "from qvec_deploy.jobs.job import Job\n"
        "from qvec_deploy.jobs.processes import LocalProcesses\n"
        "if __name__ == '__main__':\n"
        "    with LocalProcesses(1) as processes:\n"
        f"        processes.submit(Job('one', '{FUNCTIONS}:linger', {{'folder': {str(tmp_path)!r}}}))\n"
        "        list(processes.outcomes())\n"
    )
    tests = Path(__file__).parents[1]
    parent = subprocess.Popen([sys.executable, script], env={**os.environ, "PYTHONPATH": str(tests)})
    try:
        _until(lambda: (tmp_path / "pids").exists() and bool((tmp_path / "pids").read_text()))
    finally:
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
    _until(lambda: all(_gone(int(pid)) for pid in (tmp_path / "pids").read_text().split()))
    assert not (tmp_path / "cleaned").exists()
