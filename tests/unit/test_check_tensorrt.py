"""scripts/check_tensorrt: how it judges, against answers the test writes; and its machine, against a fake TensorRT."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from fake_tensorrt import Setup, install, run_on_cpu

from qvec_deploy.errors import IncompatibleError

pytestmark = pytest.mark.slow

SCRIPTS = Path(__file__).parents[2] / "scripts"


def _module(name: str) -> Any:
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # the scripts import one another by these names
        spec.loader.exec_module(module)
    return sys.modules[name]


items = _module("tensorrt_items")
graphs = _module("tensorrt_graphs")
machine = _module("tensorrt_machine")

LAYER = {
    "error": 1e-3,
    "weights_bytes": 230_000,
    "given_bytes": 225_000,
    "allowed_bytes": 700_000,
    "packed_bytes": 221_184,
    "plan_bytes": 400_000,
}
MODEL = {**LAYER, "tolerance": 2e-2, "captured": True, "plugin_layers": 8}


class Answers:
    """A machine that answers what it is told to; an exception is raised, a function is called."""

    def __init__(self, **answers: Any) -> None:
        good = {
            "environment": {"gpu": "test"},
            "layer": LAYER,
            "trtexec": {"returncode": 0, "output": ""},
            "fresh_process": {"error": 1e-3, "plugins_loaded": False},
            "precedence": {"plugin_layers": 1, "parsed": True, "errors": []},
            "flag": LAYER,
            "copies": {"overhead_bytes": 1000, "ptx_bytes": 100_000},
            "switches": {"lost_bytes": 0},
            "model": MODEL,
            "latency": {name: [1.0, 3.0, 2.0] for name in items.LOWERINGS},
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


def _run(**answers: Any) -> dict[str, Any]:
    record: dict[str, Any] = items.run_items(Answers(**answers))
    json.dumps(record)
    assert [entry["name"] for entry in record["items"]] == [item.name for item in items.ITEMS]
    assert sum(record["counts"].values()) == len(items.ITEMS)
    return record


def _statuses(record: dict[str, Any], *names: str) -> list[str]:
    found = {entry["name"]: entry["status"] for entry in record["items"]}
    return [found[name] for name in names]


def _only(record: dict[str, Any], status: str) -> dict[str, str]:
    return {entry["name"]: entry["detail"] for entry in record["items"] if entry["status"] == status}


def test_a_machine_that_can_everything() -> None:
    record = _run()
    assert record["counts"] == {"pass": 13, "noted": 14, "fail": 0, "skip": 0}
    assert items.verdict(record) == (0, "13 pass, 14 noted, 0 fail, 0 skip: as claimed")


def test_names_are_unique_and_cover_the_eight_questions() -> None:
    names = [item.name for item in items.ITEMS]
    assert len(set(names)) == len(names)
    assert {name[0] for name in names if name[0].isdigit()} == set("12345678")
    models = {name for name in names if not name[0].isdigit()}
    assert models == {f"{model} {lowering}" for model in ("demo", "vit_b") for lowering in items.LOWERINGS}


def test_a_machine_that_can_nothing() -> None:
    lacking = items.Skip("TensorRT cannot be imported")
    names = ("layer", "trtexec", "fresh_process", "precedence", "flag", "copies", "switches", "model")
    record = _run(**dict.fromkeys((*names, "latency"), lacking), environment=RuntimeError("no nvidia-smi"))
    assert record["counts"] == {"pass": 0, "noted": 0, "fail": 0, "skip": len(items.ITEMS)}
    assert items.verdict(record)[0] == 4
    assert record["environment"] == {"unknown": "RuntimeError: no nvidia-smi"}


def test_a_skip_is_no_pass() -> None:
    record = _run(trtexec=items.Skip("trtexec is not installed"))
    assert _only(record, "skip") == {"1 trtexec": "trtexec is not installed"}
    assert items.verdict(record)[0] == 4
    assert items.verdict({"counts": {"pass": 0, "noted": 0, "fail": 0, "skip": 0}})[0] == 4, "nothing was asked"


def test_one_broken_item_does_not_hide_the_others() -> None:
    record = _run(trtexec=RuntimeError("boom\nmore"))
    assert _only(record, "fail") == {"1 trtexec": "RuntimeError: boom"}
    (broken,) = [entry for entry in record["items"] if entry["status"] == "fail"]
    assert "Traceback" in broken["traceback"]
    assert items.verdict(record)[0] == 3


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
    assert set(_only(record, "fail")) == names
    assert items.verdict(record)[0] == 3


@pytest.mark.parametrize(
    ("change", "failing"),
    [
        ({"error": 0.5}, items.LOWERINGS),
        ({"captured": False}, items.LOWERINGS),
        ({"weights_bytes": 9_000_000}, items.LOWERINGS),
        ({"weights_bytes": 9_000_000, "allowed_bytes": None}, ()),
    ],
)
def test_every_lowering_is_judged(change: dict[str, Any], failing: Sequence[str]) -> None:
    record = _run(model={**MODEL, **change})
    assert set(_only(record, "fail")) == {f"{model} {name}" for model in items.MODELS for name in failing}


def test_unknown_stored_bytes_are_no_pass() -> None:
    unknown = {"weights_bytes": None}
    record = _run(layer=LAYER | unknown, model=MODEL | unknown)
    skipped = _only(record, "skip")
    expected = {"2 stored"}
    assert set(skipped) == expected | {f"{m} {each}" for m in items.MODELS for each in items.LOWERINGS}
    assert "stored bytes unknown" in skipped["demo packed"]


def test_answers_to_questions_are_noted_whatever_they_are() -> None:
    def layer(code: str) -> Any:
        return LAYER if code == "stripped" else RuntimeError("CUDA_ERROR_INVALID_VALUE")

    record = _run(
        layer=layer,
        flag=RuntimeError("refit is not supported"),
        copies={"overhead_bytes": 90_000, "ptx_bytes": 100_000},
        switches={"lost_bytes": 5 << 30},
    )
    assert record["counts"]["fail"] == record["counts"]["skip"] == 0
    noted = _only(record, "noted")
    assert noted["3 shared memory"] == "does not work: RuntimeError: CUDA_ERROR_INVALID_VALUE"
    assert noted["7 REFIT"] == "does not build: RuntimeError: refit is not supported"
    assert noted["7 copies"].startswith("PTX is repeated")
    assert "5,368,709,120 bytes" in noted["5 switches"]


def test_a_graph_that_is_not_parsed_says_nothing_about_precedence() -> None:
    broken = {"plugin_layers": 0, "parsed": False, "errors": ["In node 0: no importer registered\nmore"]}
    record = _run(precedence=broken)
    said = "cannot be parsed: In node 0: no importer registered"
    assert (_only(record, "fail"), _only(record, "noted")["6 no namespace"]) == ({"6 namespace": said}, said)
    silent = _run(precedence={**broken, "errors": []})
    assert "does not say why" in _only(silent, "fail")["6 namespace"]


def test_an_engine_that_builds_and_does_not_run_is_said_to_build() -> None:
    record = _run(flag={"plan_bytes": 1000, "does_not_run": "no weights"})
    assert _only(record, "noted")["7 STRIP_PLAN"] == "builds, 1,000 bytes, but does not run: no weights"


def test_a_variant_that_computes_something_else_does_not_work() -> None:
    record = _run(layer=lambda code: LAYER if code == "stripped" else {**LAYER, "error": 0.7})
    assert _only(record, "noted")["4 cubin"] == "runs, but errs by 7.0e-01"


def test_latency_names_what_is_missing() -> None:
    record = _run(latency={"packed": [1.0, 3.0, 2.0]})
    assert _only(record, "noted")["8 latency 1"] == "median packed 2.00 ms; not built: int4, w8a8, float"
    assert "8 latency 8" in _only(_run(latency={}), "skip")


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


def test_a_graph_that_tensorrt_cannot_read(setup: Setup, here: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from onnx import helper

    real = machine.layer_graph

    def odd(**options: Any) -> Any:
        graph = real(**options)
        graph.model.graph.node.append(helper.make_node("Unsupported", ["logits"], ["odd"]))
        return graph

    monkeypatch.setattr(machine, "layer_graph", odd)
    found = here.precedence(True)
    assert not found["parsed"] and "no importer" in found["errors"][0]


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
        assert config.flags == {flags[flag]}


def test_a_flag_whose_engine_does_not_run(setup: Setup, here: Any) -> None:
    setup.faults.refuses_run = True
    found = here.flag("STRIP_PLAN")
    assert found["plan_bytes"] > 0
    assert "could not run the engine" in found["does_not_run"]
    setup.faults.refuses_build = "no implementation"
    with pytest.raises(IncompatibleError, match="cannot build"):
        here.flag("STRIP_PLAN")


def test_the_other_builds(setup: Setup, here: Any) -> None:
    assert here.precedence(True)["plugin_layers"] == 1
    assert here.precedence(False)["plugin_layers"] == 0
    assert here.switches(20) == {"lost_bytes": 0, "count": 20}


def test_a_model_and_its_latency(setup: Setup, here: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "RUNS", 2)
    monkeypatch.setattr(machine, "WARMUP", 0)
    for lowering in ("packed", "int4"):
        found = here.model("demo", lowering)
        assert items._model("demo", lowering)(Answers(model=found)).status == "pass"
        assert found["plugin_layers"] == (24 if lowering == "packed" else 0)
    samples = here.latency("demo", items.LOWERINGS, 1)
    assert {name: len(taken) for name, taken in samples.items()} == {"packed": 2, "int4": 2}
    with pytest.raises(RuntimeError, match="TensorRT cannot be imported"):  # a process of its own, without our fake
        here.fresh_process()


def test_without_tensorrt_everything_is_skipped(here: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    record = items.run_items(here)
    assert record["counts"] == {"pass": 0, "noted": 0, "fail": 0, "skip": len(items.ITEMS)}
    assert "TensorRT cannot be imported" in record["environment"]["missing"]


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


def test_the_command(tmp_path: Path) -> None:
    """On a machine without TensorRT, or with items left out, it writes its record and does not claim success."""
    output = tmp_path / "record.json"
    command = [sys.executable, str(SCRIPTS / "check_tensorrt"), "--output", str(output), "--work", str(tmp_path / "w")]
    done = subprocess.run([*command, "--only", "nothing"], capture_output=True, text=True, check=False)
    assert done.returncode == 4, done.stderr
    record = json.loads(output.read_text())
    assert record["items"] == [] and len(record["left_out"]) == len(items.ITEMS)
    assert record["environment"]["python"]
