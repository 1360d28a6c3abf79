"""scripts/check_tensorrt: how it judges, against answers the test writes; and its machine, against a fake TensorRT."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tensorrt_graphs as graphs
import tensorrt_items as items
import tensorrt_machine as machine
from checked_items import STATES, NotRun, judge, verdict
from fake_tensorrt import Setup, install, run_on_cpu

pytestmark = pytest.mark.slow

SCRIPTS = Path(__file__).parents[2] / "scripts"
ITEMS = items.ITEMS["tensorrt"]
LOWERINGS = items.LOWERINGS["tensorrt"]

LAYER = {
    "error": 1e-3,
    "weights_bytes": 230_000,
    "given_bytes": 225_000,
    "allowed_bytes": 700_000,
    "packed_bytes": 221_184,
    "plan_bytes": 400_000,
}
BUILT = {**LAYER, "build_s": 12.0, "plugin_layers": 8}
RUN = {"error": 1e-3, "tolerance": 2e-2, "captured": True}


class Answers:
    """A machine that answers what it is told to; an exception is raised, a function is called."""

    def __init__(self, **answers: Any) -> None:
        good = {
            "layer": LAYER,
            "trtexec": {"returncode": 0, "output": ""},
            "fresh_process": {"error": 1e-3, "plugins_loaded": False},
            "precedence": {"plugin_layers": 1, "parsed": True, "errors": []},
            "flag": LAYER,
            "copies": {"overhead_bytes": 1000, "ptx_bytes": 100_000},
            "switches": {"lost_bytes": 0},
            "build": BUILT,
            "run": RUN,
            "latency": {name: [1.0, 3.0, 2.0] for name in LOWERINGS},
            "opening": {"without": 2.0, "with": 0.5},
        }
        self._answers = good | answers

    def __getattr__(self, name: str) -> Any:
        answer = self._answers[name]

        def call(*arguments: Any, **keywords: Any) -> Any:
            value = answer(*arguments, **keywords) if callable(answer) else answer
            if isinstance(value, BaseException):
                raise value
            return value

        return call


def _run(library: str = "tensorrt", **answers: Any) -> dict[str, Any]:
    backend = Answers(**answers)
    entries = []
    for item in items.ITEMS[library]:
        outcome = judge(lambda item=item: item.check(backend))
        entries.append({"name": item.name, **asdict(outcome)})
    record: dict[str, Any] = {"items": entries}
    json.dumps(record)
    record["counts"] = {state: [entry["state"] for entry in entries].count(state) for state in STATES}
    return record


def _only(record: dict[str, Any], state: str) -> dict[str, str]:
    return {entry["name"]: entry["detail"] for entry in record["items"] if entry["state"] == state}


def _code(record: dict[str, Any]) -> int:
    return verdict(record["counts"], whole=True)[0]


def test_a_machine_that_can_everything() -> None:
    record = _run()
    claims = 5 + 2 * len(items.MODELS) * len(LOWERINGS)
    assert record["counts"] == {"passed": claims, "noted": 14, "failed": 0, "timed out": 0, "not run": 0}
    assert verdict(record["counts"], whole=True)[0] == 0


def test_tensorrt_for_rtx_is_asked_about_its_own_lowerings() -> None:
    record = _run("tensorrt-rtx")
    assert _code(record) == 0
    assert {entry["name"] for entry in record["items"]} == {
        *(
            f"{m} {name} {what}"
            for m in items.MODELS
            for name in items.LOWERINGS["tensorrt-rtx"]
            for what in ("built", "run")
        ),
        "8 latency 1",
        "8 latency 8",
        "9 runtime cache",
    }
    assert "0.50 s with a cache" in _only(record, "noted")["9 runtime cache"]


def test_engines_that_are_built_and_cannot_run_here() -> None:
    """A machine without a GPU: the builds are shown, the runs are not, and that is no success."""
    nowhere = NotRun("no NVIDIA driver is installed")
    record = _run("tensorrt-rtx", run=nowhere, latency=nowhere, opening=nowhere, build={**BUILT, "allowed_bytes": None})
    assert set(_only(record, "passed")) == {name["name"] for name in record["items"] if name["name"].endswith("built")}
    assert record["counts"]["not run"] == len(record["items"]) - record["counts"]["passed"]
    assert _code(record) == 4


def test_names_are_unique_and_cover_the_eight_questions() -> None:
    names = [item.name for item in ITEMS]
    assert len(set(names)) == len(names)
    assert {name[0] for name in names if name[0].isdigit()} == set("12345678")
    models = {name for name in names if not name[0].isdigit()}
    assert models == {f"{m} {name} {what}" for m in items.MODELS for name in LOWERINGS for what in ("built", "run")}


def test_a_machine_that_can_nothing() -> None:
    lacking = NotRun("TensorRT cannot be imported")
    names = ("layer", "trtexec", "fresh_process", "precedence", "flag", "copies", "switches", "build", "run", "latency")
    record = _run(**dict.fromkeys(names, lacking))
    assert record["counts"]["not run"] == len(ITEMS)
    assert _code(record) == 4


def test_what_is_not_run_is_no_pass() -> None:
    record = _run(trtexec=NotRun("trtexec is not installed"))
    assert _only(record, "not run") == {"1 trtexec": "trtexec is not installed"}
    assert _code(record) == 4
    assert verdict(dict.fromkeys(STATES, 0), whole=True)[0] == 4, "nothing was asked"


def test_one_broken_item_does_not_hide_the_others() -> None:
    record = _run(trtexec=RuntimeError("boom\nmore"))
    assert _only(record, "failed") == {"1 trtexec": "RuntimeError: boom"}
    (broken,) = [entry for entry in record["items"] if entry["state"] == "failed"]
    assert "Traceback" in broken["log"]
    assert _code(record) == 3


@pytest.mark.parametrize(
    ("answers", "names"),
    [
        ({"layer": {**LAYER, "error": 0.1}}, {"1 aot"}),
        ({"layer": {**LAYER, "error": float("nan")}}, {"1 aot"}),
        ({"layer": {**LAYER, "weights_bytes": 225_000 - 221_184 + graphs.DENSE_BYTES}}, {"2 stored"}),
        ({"layer": {**LAYER, "weights_bytes": 5_000}}, {"2 stored"}),
        ({"trtexec": {"returncode": 1, "output": "x"}}, {"1 trtexec"}),
        ({"fresh_process": {"error": 1e-3, "plugins_loaded": True}}, {"1 fresh process"}),
        ({"fresh_process": {"error": 1.0, "plugins_loaded": False}}, {"1 fresh process"}),
        ({"precedence": {"plugin_layers": 0, "parsed": True, "errors": []}}, {"6 namespace"}),
        ({"precedence": {"plugin_layers": 1, "parsed": False, "errors": ["no importer\nmore"]}}, {"6 namespace"}),
    ],
)
def test_what_is_not_as_claimed_fails(answers: dict[str, Any], names: set[str]) -> None:
    record = _run(**answers)
    assert set(_only(record, "failed")) == names
    assert _code(record) == 3


@pytest.mark.parametrize(
    ("change", "failing"),
    [
        ({"run": {**RUN, "error": 0.5}}, "run"),
        ({"run": {**RUN, "captured": False}}, "run"),
        ({"build": {**BUILT, "weights_bytes": 9_000_000}}, "built"),
        ({"build": {**BUILT, "weights_bytes": 9_000_000, "allowed_bytes": None}}, None),
    ],
)
def test_every_lowering_is_judged(change: dict[str, Any], failing: str | None) -> None:
    names = {f"{model} {name} {failing}" for model in items.MODELS for name in LOWERINGS} if failing else set()
    assert set(_only(_run(**change), "failed")) == names


def test_unknown_stored_bytes_are_no_pass() -> None:
    unknown = {"weights_bytes": None}
    record = _run(layer=LAYER | unknown, build=BUILT | unknown)
    assert set(_only(record, "not run")) == {"2 stored"}
    assert "stored bytes unknown" in _only(record, "noted")["demo packed built"]


def test_answers_to_questions_are_noted_whatever_they_are() -> None:
    def layer(code: str) -> Any:
        return LAYER if code == "stripped" else RuntimeError("CUDA_ERROR_INVALID_VALUE")

    record = _run(
        layer=layer,
        flag=RuntimeError("refit is not supported"),
        copies={"overhead_bytes": 90_000, "ptx_bytes": 100_000},
        switches={"lost_bytes": 5 << 30},
    )
    assert record["counts"]["failed"] == record["counts"]["not run"] == 0
    noted = _only(record, "noted")
    assert noted["3 shared memory"] == "does not work: RuntimeError: CUDA_ERROR_INVALID_VALUE"
    assert noted["7 REFIT"] == "does not build: RuntimeError: refit is not supported"
    assert noted["7 copies"].startswith("PTX is repeated")
    assert "5,368,709,120 bytes" in noted["5 switches"]


def test_a_graph_that_is_not_parsed_says_nothing_about_precedence() -> None:
    broken = {"plugin_layers": 0, "parsed": False, "errors": ["In node 0: no importer registered\nmore"]}
    record = _run(precedence=broken)
    said = "cannot be parsed: In node 0: no importer registered"
    assert (_only(record, "failed"), _only(record, "noted")["6 no namespace"]) == ({"6 namespace": said}, said)
    silent = _run(precedence={**broken, "errors": []})
    assert "does not say why" in _only(silent, "failed")["6 namespace"]


def test_an_engine_that_builds_and_does_not_run_is_said_to_build() -> None:
    record = _run(flag={"plan_bytes": 1000, "does_not_run": "no weights"})
    assert _only(record, "noted")["7 STRIP_PLAN"] == "builds, 1,000 bytes, but does not run: no weights"


def test_a_variant_that_computes_something_else_does_not_work() -> None:
    record = _run(layer=lambda code: LAYER if code == "stripped" else {**LAYER, "error": 0.7})
    assert _only(record, "noted")["4 cubin"] == "runs, but errs by 7.0e-01"


def test_latency_names_what_is_missing() -> None:
    record = _run(latency={"packed": [1.0, 3.0, 2.0]})
    assert _only(record, "noted")["8 latency 1"] == "median packed 2.00 ms; not built: " + ", ".join(
        name for name in LOWERINGS if name != "packed"
    )
    assert "8 latency 8" in _only(_run(latency={}), "not run")


# The machine, against a fake TensorRT.


@pytest.fixture
def setup(monkeypatch: pytest.MonkeyPatch) -> Setup:
    return install(monkeypatch)


@pytest.fixture
def here(tmp_path: Path) -> Any:
    return machine.Machine(tmp_path / "work")


def test_one_layer(setup: Setup, here: Any) -> None:
    found = here.layer("stripped")
    assert 0 < found["error"] < 1e-3
    assert found["weights_bytes"] == found["given_bytes"]
    assert found["packed_bytes"] == 768 * 768 * 3 // 8 + 4 * 768
    assert found["captured"]
    assert found["given_bytes"] < found["allowed_bytes"] < found["given_bytes"] - found["packed_bytes"] + 2 * 768 * 768


def test_the_layer_is_what_numpy_says() -> None:
    graph = graphs.layer_graph(batch=5, portable=True)
    onnx.checker.check_model(graph.model, full_check=True)
    images = graphs.layer_images(5)
    logits, expected = run_on_cpu(graph.model, images), graphs.expected_logits(images)
    assert np.linalg.norm(logits - expected) / np.linalg.norm(expected) < 1e-3


@pytest.mark.parametrize("flag", items.FLAGS)
def test_flags_reach_the_builder(setup: Setup, here: Any, flag: str) -> None:
    assert here.flag(flag)["error"] < 1e-3
    (_, config), flags = setup.trt.seen[0], setup.trt.BuilderFlag
    if flag == "AMPERE_PLUS":
        assert config.hardware_compatibility_level.name == flag
    else:
        config.set_flag.assert_called_once_with(flags[flag])


def test_a_flag_whose_engine_does_not_run(setup: Setup, here: Any) -> None:
    setup.faults.refuses_run = True
    found = here.flag("STRIP_PLAN")
    assert found["plan_bytes"] > 0
    assert "could not run the engine" in found["does_not_run"]


def test_the_other_builds(setup: Setup, here: Any) -> None:
    assert here.precedence(True)["plugin_layers"] == 1
    assert here.switches(20) == {"lost_bytes": 0, "count": 20}


def test_a_model_and_its_latency(setup: Setup, here: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "RUNS", 2)
    monkeypatch.setattr(machine, "WARMUP", 0)
    for lowering in ("packed", "int4"):
        built, found = here.build("demo", lowering), here.run("demo", lowering)
        assert built["plugin_layers"] == (24 if lowering == "packed" else 0)
        assert items._built("demo", lowering)(Answers(build=built)).state == "passed"
        assert items._runs("tensorrt", "demo", lowering)(Answers(run=found)).state == "passed"
    assert judge(lambda: items._runs("tensorrt", "demo", "float")(here)).detail == "no engine was built for it"
    samples = here.latency("demo", LOWERINGS, 1)
    assert {name: len(taken) for name, taken in samples.items()} == {"packed": 2, "int4": 2}
    with pytest.raises(RuntimeError, match="TensorRT cannot be imported"):  # a process of its own, without our fake
        here.fresh_process()


def test_a_lowering_that_the_gpu_has_no_arithmetic_for(
    setup: Setup, here: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "Cuda", lambda: setup.cuda)  # 8.9
    with pytest.raises(NotRun, match=r"NVIDIA Test has no arithmetic for `nvfp4`, which begins with 10\.0"):
        here.build("demo", "nvfp4")
    assert here._require_arithmetic("fp8") is None


def test_without_tensorrt_nothing_is_run(here: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    for item in ITEMS:
        outcome = judge(lambda item=item: item.check(here))
        assert outcome.state == "not run", item.name
        assert "cannot be imported" in outcome.detail or item.name == "1 trtexec", item.name
    assert "TensorRT cannot be imported" in here.environment()["missing"]


def test_kernels_are_handed_over_in_other_ways() -> None:
    """All of what is handed over is code that ptxas knows; whether TensorRT takes it is what the script is for."""
    from qvec_deploy.runtimes.kernels import plugins
    from qvec_deploy.runtimes.kernels.ahead import assemble

    wanted = {"layout": "p32", "bits": 3, "rows": 768, "columns": 768}
    real = plugins.compile_ahead
    made = {}
    for code in ("stripped", "unstripped", "cubin", "shared"):
        with machine._handed_over(code, 90):
            made[code] = plugins.compile_ahead(**wanted)
    assert plugins.compile_ahead is real
    assert made["stripped"] == real(**wanted)
    assert made["unstripped"].ptx.count(b"hidden_") == 2
    assert assemble(made["unstripped"].ptx, 90).registers == assemble(made["stripped"].ptx, 90).registers
    assert made["cubin"].ptx.startswith(b"\x7fELF")
    assert made["shared"].shared_bytes > 48 * 1024 >= made["stripped"].shared_bytes


def _command(tmp_path: Path, *arguments: str) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    output = tmp_path / "record.json"
    command = [sys.executable, str(SCRIPTS / "check_tensorrt"), "--output", str(output), "--work", str(tmp_path / "w")]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
    return done, json.loads(output.read_text())


def test_the_command(tmp_path: Path) -> None:
    """With items left out it writes its record and does not claim success."""
    done, record = _command(tmp_path, "--library", "tensorrt", "--only", "nothing")
    assert done.returncode == 4, done.stderr
    assert record["items"] == [] and len(record["left_out"]) == len(ITEMS)
    assert record["environment"]["python"]


def test_the_command_builds_for_real(tmp_path: Path) -> None:
    """TensorRT for RTX builds without a GPU, each item in a process of its own; running is left to a GPU."""
    pytest.importorskip("tensorrt_rtx_bindings", reason="the extra `rtx` is not installed")
    done, record = _command(tmp_path, "--library", "tensorrt-rtx", "--only", "demo")
    states = {entry["name"]: entry["state"] for entry in record["items"]}
    lowerings = items.LOWERINGS["tensorrt-rtx"]
    assert {states[f"demo {name} built"] for name in lowerings} == {"passed"}, record["items"]
    if "no NVIDIA driver" in record["environment"].get("missing", ""):
        assert {states[f"demo {name} run"] for name in lowerings} == {"not run"}
        assert done.returncode == 4, done.stdout
