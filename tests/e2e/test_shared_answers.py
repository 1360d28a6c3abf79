"""Lowerings that compute the same are evaluated once, and the report says so; what they answer really is the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from qvec_deploy.bench import accuracy
from qvec_deploy.bundle.bundle import Bundle

Run = Callable[..., tuple[int, str, str]]


def test_one_evaluation_for_equal_arithmetic(
    run: Run, pico_recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[set[str]] = []
    measure = accuracy.measure_accuracies
    monkeypatch.setattr(
        "qvec_deploy.bench.evaluation.measure_accuracies",
        lambda sessions, *rest, **more: (asked.append(set(sessions)), measure(sessions, *rest, **more))[-1],
    )
    variants = [
        {"name": "packed", "set": {"target.lowering": "packed"}},
        {"name": "int8", "set": {"target.lowering": "int8"}},
        {"name": "same", "set": {"target.threads": 2}},
    ]
    evaluate = {"dataset": "tiny/realdigits", "limit": 60, "accept_float": True}
    recipe = pico_recipe(variants=variants, evaluate=evaluate)
    code, _, log = run("build", "--recipe", recipe, "-o", tmp_path / "pico", "--quiet")
    assert code == 0, log
    assert asked[-1] == {"float", "ptq", "int8", "pico"}
    report = json.loads((tmp_path / "pico" / "report.json").read_bytes())
    shared = {entry["name"]: entry["answers_of"] for entry in report["candidates"]}
    assert shared == {"float": None, "ptq": None, "packed": "pico", "int8": None, "same": "pico", "pico": None}
    correct = {entry["name"]: entry["accuracy"]["correct"] for entry in report["candidates"]}
    assert correct["packed"] == correct["same"] == correct["pico"]
    assert all(entry["latency"] and entry["footprint"] for entry in report["candidates"])
    text = (tmp_path / "pico" / "report.md").read_text(encoding="utf-8")
    assert "Answers of packed, same are those of pico: the same weights" in text

    bundle = Bundle.open(tmp_path / "pico")
    images = np.random.default_rng(0).standard_normal((64, 3, 32, 32)).astype(np.float32)
    logits = []
    for lowering in ("int4", "packed"):
        with bundle.session(lowering=lowering) as session:
            logits.append(session.run(images))
    assert np.abs(logits[0] - logits[1]).max() < 1e-5 * np.abs(logits[0]).max()

    command = ("bench", tmp_path / "pico", "--lowering", "int4", "--lowering", "packed", "--lowering", "int8")
    code, out, log = run(*command, "--blocks", 2, "--quiet", "--json")
    assert code == 0, log
    shared = {entry["name"]: entry["answers_of"] for entry in json.loads(out)["candidates"]}
    assert shared == {"pico int4": None, "pico packed": "pico int4", "pico int8": None}
