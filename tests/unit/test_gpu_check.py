"""scripts/gpu_check: the record that is written while items run, limits, states, and a machine without a GPU."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import checked_items as checked
import gpu_items
import pytest
from checked_items import Item, Kept, NotRun, Outcome, Record, judge, run_items, verdict

from qvec_deploy.runtimes.cuda_driver import Gpu

SCRIPTS = Path(__file__).parents[2] / "scripts"
PROGRAM = """
import json, os, subprocess, sys, time
result = sys.argv[1]
def leave(state, detail="", **data):
    open(result + ".new", "w").write(json.dumps({"state": state, "detail": detail, "data": data, "log": ""}))
    os.replace(result + ".new", result)
"""
BODIES = {
    "good": "leave('passed', 'all is well', n=3)",
    "bad": "print('what it printed'); leave('failed', 'not as claimed')",
    "absent": "leave('not run', 'no such library')",
    "crash": "os.kill(os.getpid(), 6)",
    "silent": "pass",
    "slow": "leave('passed', '7 of 9', rows=[1]); print('at work', flush=True); "
    "child = subprocess.Popen(['sleep', '60']); print(child.pid, flush=True); time.sleep(60)",
}


def _item(name: str, limit_s: float = 30) -> Item:
    return Item(name, f"the {name} one", lambda _: Outcome("passed", ""), limit_s)


def _command(item: Item, result: Path, limit_s: float) -> list[str]:
    return [sys.executable, "-c", PROGRAM + BODIES[item.name], str(result)]


def _read(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text())
    return document


def _run(tmp_path: Path, *items: Item, **options: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The record at the end, and as it was when every item had ended."""
    seen: list[dict[str, Any]] = []
    record = Record(tmp_path / "record.json", {"machine": "test"})
    run_items(items, _command, record, show=lambda *_: seen.append(_read(record.path)), **options)
    return _read(record.path), seen


def test_the_record_is_written_after_every_item(tmp_path: Path) -> None:
    record, seen = _run(tmp_path, _item("good"), _item("bad"), _item("absent"))
    assert [len(each["items"]) for each in seen] == [1, 2, 3] and seen[-1] == record
    assert record["machine"] == "test"
    assert [(entry["name"], entry["state"], entry["detail"]) for entry in record["items"]] == [
        ("good", "passed", "all is well"),
        ("bad", "failed", "not as claimed"),
        ("absent", "not run", "no such library"),
    ]
    assert record["items"][0]["data"] == {"n": 3} and "what it printed" in record["items"][1]["log"]
    assert record["counts"] == {"passed": 1, "failed": 1, "timed out": 0, "noted": 0, "not run": 1}


@pytest.mark.parametrize(("name", "says"), [("crash", "signal SIGABRT"), ("silent", "exit code 0")])
def test_a_process_that_dies_has_failed_and_the_next_one_runs(tmp_path: Path, name: str, says: str) -> None:
    record, _ = _run(tmp_path, _item(name), _item("good"))
    assert [entry["state"] for entry in record["items"]] == ["failed", "passed"]
    assert says in record["items"][0]["detail"]


def _gone(pid: int) -> bool:
    for _ in range(50):
        state = Path(f"/proc/{pid}/stat")
        if not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.1)
    return False


def test_a_limit_ends_an_item_and_its_children_and_leaves_what_was_found(tmp_path: Path) -> None:
    start = time.monotonic()
    record, _ = _run(tmp_path, _item("slow", 2), _item("good"))
    assert time.monotonic() - start < 20
    slow, good = record["items"]
    assert (slow["state"], slow["data"], good["state"]) == ("timed out", {"rows": [1]}, "passed")
    assert slow["detail"] == "it took more than 2 s; until then: 7 of 9"
    assert _gone(int(slow["log"].split()[-1]))
    assert verdict(record["counts"], whole=False)[0] == 3


def test_all_of_them_have_a_limit_too(tmp_path: Path) -> None:
    record, _ = _run(tmp_path, _item("slow", 30), _item("good"), total_s=6)
    assert [entry["state"] for entry in record["items"]] == ["timed out", "not run"]
    assert record["items"][1]["detail"] == "no time was left for it"


def test_a_stop_leaves_what_was_found_and_no_process(tmp_path: Path) -> None:
    """While an item runs, the record has what it found so far; a polite kill ends the item as well."""
    program = tmp_path / "stopped.py"
    program.write_text(
        "import test_gpu_check as t, sys\nfrom pathlib import Path\nt.checked.stop_at_signals()\n"
        "t._run(Path(sys.argv[1]), t._item('good'), t._item('slow'))\n"
    )
    paths = os.pathsep.join([str(Path(__file__).parent), str(SCRIPTS), str(SCRIPTS.parent), *sys.path])
    process = subprocess.Popen([sys.executable, program, tmp_path], env={**os.environ, "PYTHONPATH": paths})
    path = tmp_path / "record.json"
    for _ in range(300):
        if path.exists() and len(_read(path)["items"]) == 2:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 128 + signal.SIGTERM
    good, slow = _read(path)["items"]
    assert (good["state"], slow["state"], slow["detail"]) == ("passed", "running", "7 of 9")


def _raise(error: BaseException) -> Callable[[], Outcome]:
    def check() -> Outcome:
        raise error

    return check


@pytest.mark.parametrize(
    ("error", "state", "says"),
    [
        (NotRun("no GPU"), "not run", "no GPU"),
        (ModuleNotFoundError("No module", name="pydantic"), "not run", "the module pydantic is not installed"),
        (ModuleNotFoundError("No module", name="qvec_deploy.gone"), "failed", "qvec_deploy.gone"),
        (ValueError("off by 3\nmore"), "failed", "ValueError: off by 3"),
        (SystemExit("native is off"), "failed", "SystemExit: native is off"),
    ],
)
def test_what_a_check_raises_is_an_outcome(error: BaseException, state: str, says: str) -> None:
    outcome = judge(_raise(error))
    assert outcome.state == state and says in outcome.detail


@pytest.mark.parametrize(
    ("counts", "whole", "code"),
    [
        ({"passed": 3}, True, 0),
        ({"passed": 1, "not run": 5}, False, 0),
        ({"passed": 1, "not run": 5}, True, 4),
        ({"not run": 7}, False, 4),
        ({"noted": 1}, False, 4),
        ({}, False, 4),
        ({"passed": 6, "failed": 1}, False, 3),
        ({"passed": 6, "timed out": 1}, False, 3),
    ],
)
def test_exit_codes(counts: dict[str, int], whole: bool, code: int) -> None:
    assert verdict({**dict.fromkeys(checked.STATES, 0), **counts}, whole=whole)[0] == code


def _check(*arguments: object, **more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, SCRIPTS / "gpu_check", *arguments]
    variables = {**os.environ, "CUDA_VISIBLE_DEVICES": "", **more}  # as on a machine without a GPU
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, env=variables)


@pytest.mark.slow
def test_without_a_gpu_it_runs_to_its_end_and_says_so(tmp_path: Path) -> None:
    done = _check("--record", tmp_path / "record.json")
    assert done.returncode == 4, done.stderr
    record = _read(tmp_path / "record.json")
    assert [entry["name"] for entry in record["items"]] == [item.name for item in gpu_items.ITEMS]
    assert {entry["state"] for entry in record["items"]} == {"not run"}
    assert all("GPU" in entry["detail"] for entry in record["items"])
    assert {"packages", "nvcc", "nvidia_smi", "python"} <= record["environment"].keys()
    assert f"{len(gpu_items.ITEMS)} not run: what was not run is not shown" in done.stdout


@pytest.mark.slow
def test_a_machine_that_cannot_be_looked_at_is_tried_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import os, sys\nif 'environment' in sys.orig_argv: os._exit(9)\n")
    done = _check("--record", tmp_path / "record.json", "--only", "tensorrt", PYTHONPATH=str(tmp_path))
    assert done.returncode == 3, done.stderr
    environment, engines = _read(tmp_path / "record.json")["items"]
    assert (environment["state"], engines["state"]) == ("failed", "not run")
    assert "exit code 9" in environment["detail"] and "NVIDIA driver" in engines["detail"]


@pytest.mark.slow
def test_wheels_that_cannot_be_installed_are_a_failure(tmp_path: Path) -> None:
    (tmp_path / "broken-1.0-py3-none-any.whl").write_bytes(b"no wheel")
    done = _check("--record", tmp_path / "record.json", "--wheels", tmp_path, "--only", "ViT-B")
    assert done.returncode == 3, done.stderr
    wheels, model = _read(tmp_path / "record.json")["items"]
    assert (wheels["state"], model["state"]) == ("failed", "not run")
    assert "broken-1.0" in wheels["log"]


@pytest.mark.slow
def test_wheels_are_there_for_the_items_and_gone_afterwards(tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    with zipfile.ZipFile(wheels / "tensorrt-9.9-py3-none-any.whl", "w") as wheel:
        info = "tensorrt-9.9.dist-info"
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tensorrt\nVersion: 9.9\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
    done = _check("--record", tmp_path / "record.json", "--wheels", wheels, "--only", "ViT-B")
    record = _read(tmp_path / "record.json")
    assert record["environment"]["packages"]["tensorrt"] == "9.9", done.stdout + done.stderr
    assert [entry["name"] for entry in record["items"]] == ["ViT-B"]
    with pytest.raises(metadata.PackageNotFoundError):
        metadata.version("tensorrt")


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments", [("--minutes", "0"), ("--only", "nothing"), ("--wheels", "/nowhere"), ("surplus",)]
)
def test_a_wrong_command_line(arguments: tuple[str, ...]) -> None:
    done = _check(*arguments)
    assert done.returncode == 2 and "error: " in done.stderr


def test_limits_leave_room_in_eight_minutes() -> None:
    """What is known to run everywhere fits; engines take what is left."""
    *first, _, _ = gpu_items.ITEMS
    assert sum(item.limit_s for item in first) <= 480


def test_gpu_tests_are_where_they_are_looked_for() -> None:
    marked = {
        str(path.relative_to(SCRIPTS.parent))
        for path in (SCRIPTS.parent / "tests").rglob("*.py")
        if "pytest.mark.gpu\n" in path.read_text() and path.name.startswith("test_")
    }
    assert marked - {"tests/unit/test_gpu_check.py"} == {
        item.title for item in gpu_items.ITEMS if item.title.startswith("tests/")
    }


SOME_TESTS = """
import pytest

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("n", range(5))
def test_number(n):
    assert n != WRONG


def test_absent():
    pytest.skip("no provider")
"""


@pytest.mark.slow
@pytest.mark.parametrize(("wrong", "state"), [("9", "passed"), ("3", "failed")])
def test_tests_are_shared_out_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str, state: str
) -> None:
    (tmp_path / "test_some.py").write_text(SOME_TESTS.replace("WRONG", wrong))
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = gpu: needs one\n")
    monkeypatch.setattr(gpu_items, "ROOT", tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(SCRIPTS))
    monkeypatch.setattr(gpu_items.os, "cpu_count", lambda: 4)
    outcome = gpu_items.run_tests(Kept(tmp_path / "kept.json"), "test_some.py", 6)
    failed = 0 if state == "passed" else 1
    assert outcome.state == state, outcome
    assert outcome.data["counts"] == {"passed": 5 - failed, "skipped": 1, **({"failed": 1} if failed else {})}
    assert len(outcome.data["wrong"]) == failed


def test_no_test_at_all_is_no_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = gpu: needs one\n")
    (tmp_path / "test_none.py").write_text("def test_of_the_cpu(): pass\n")
    monkeypatch.setattr(gpu_items, "ROOT", tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(SCRIPTS))
    assert gpu_items.run_tests(Kept(tmp_path / "kept.json"), "test_none.py", 1).detail == "no test was run"


@pytest.mark.slow
def test_modelopt_is_held_to_the_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The item's own code, on the CPU and a smaller model."""
    monkeypatch.setattr(gpu_items, "DEVICE", "cpu")
    monkeypatch.setattr(gpu_items, "PTQ_MODEL", "vit_tiny_patch16_224")
    outcome = gpu_items.modelopt_on_cuda(Kept(tmp_path / "kept.json"))
    assert outcome.state == "passed" and outcome.detail.startswith("3 bits"), outcome
    wrong = {name: {**one, "differing": 1} for name, one in outcome.data.items()}
    assert gpu_items._modelopt(wrong).state == "failed"


def test_engines_are_not_run_on_other_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    here = Gpu("NVIDIA H200", 90, "13.0")
    monkeypatch.setattr("qvec_deploy.runtimes.cuda_driver.Cuda", lambda: SimpleNamespace(gpu=here))
    with pytest.raises(NotRun, match=r"has no engines for compute capability 9\.0, the one of this GPU; it has 7\.5"):
        gpu_items._require_gpu_of("tensorrt-rtx")
    gpu_items._require_gpu_of("tensorrt")


def test_what_engines_showed_is_one_outcome() -> None:
    shown = {"a": Outcome("passed", "yes"), "b": Outcome("not run", "no")}
    assert gpu_items._together(shown).state == "passed"
    assert gpu_items._together({**shown, "c": Outcome("failed", "wrong by 3")}).detail.endswith("c: wrong by 3")
    assert gpu_items._together({"b": shown["b"]}).state == "not run"


def test_the_table_of_kernels_says_how_far_it_got() -> None:
    def row(m: int, ratio: float, l2: str = "cold") -> dict[str, Any]:
        return {"m": m, "l2": l2, "dequant": {"ratio": 0.1}, "native": {"ratio": ratio}}

    outcome = gpu_items._speed({"rows": [row(1, 3.0), row(1, 2.5), row(1, 9.0, "warm"), row(197, 1.2)]}, 10)
    assert outcome.state == "passed"
    assert outcome.detail.startswith("4 of 10 rows right") and "2.50x at M = 1, 1.20x at M = 197" in outcome.detail
    assert gpu_items._speed({"rows": []}, 10).state == "failed"


BARE = """
import sys


class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"pydantic", "psutil", "modelopt", "onnxscript", "pynvml", "cyclonedx"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, Absent())
"""


@pytest.mark.slow
def test_the_most_important_items_need_no_wheels(tmp_path: Path) -> None:
    """On a bare machine the kernels' tests are collected and their speed is imported; the rest says what it lacks."""
    (tmp_path / "sitecustomize.py").write_text(BARE)
    root = SCRIPTS.parent
    paths = os.pathsep.join(map(str, (tmp_path, root, root / "tests", SCRIPTS)))

    def run(*command: str) -> str:
        done = subprocess.run(
            [sys.executable, *command],
            env={**os.environ, "PYTHONPATH": paths},
            cwd=root,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "test_compiled_ptx_runs_without_triton" in run(
        "-m", "pytest", "-q", "--collect-only", "-p", "no:cacheprovider", "tests/gpu/test_kernels_gpu.py"
    )
    run("-c", "import bench_kernels, kernel_candidates; from qvec_deploy.runtimes.kernels import launch, op")
    for name, lacks in (("runtime tests", "pydantic"), ("ViT-B", "pydantic"), ("ModelOpt", "modelopt")):
        result = tmp_path / "outcome.json"
        run(str(SCRIPTS / "gpu_check"), "--item", name, str(result), "60")
        outcome = _read(result)
        assert (outcome["state"], outcome["detail"]) == ("not run", f"the module {lacks} is not installed"), outcome
