"""scripts/check_processors.py: how it judges what environments answer, and what it writes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import check_processors
import numpy as np
import processor_environments
import pytest
from check_processors import largest_difference, try_all

EXPECTED = np.array([[1.0, 2.0, 3.0], [3.0, 1.0, 2.0]], np.float32)
PROGRAM = """import json
print(json.dumps({"predictions": [{"image": "a", "classes": [{"name": "x", "probability": 0.5}]}]}))
"""


class Elsewhere:
    """An environment of ours."""

    error, probability = 0.0, 0.5

    def make(self, work: Path, requirements: str) -> None:
        assert requirements == "numpy\n"

    def models(self) -> Sequence[tuple[str, str, bool]]:
        return [("int4", "release", True), ("int4", "packed", False)]

    def processors(self) -> Sequence[str]:
        return ["test"]

    def probe(self, processor: str, arguments: Sequence[str]) -> dict[str, Any]:
        model, _, answers, *sides = arguments
        if "packed" in model:
            raise processor_environments.Failed("it knows no functions")
        assert sides == ["2", "3"]
        (EXPECTED * (1 + self.error)).astype(np.float32).tofile(answers)
        return {"version": "1", "load_s": 1.23456}

    def program(self, processor: str, arguments: Sequence[str]) -> str | None:
        return json.dumps(_told(self.probability))


def _told(probability: float) -> dict[str, Any]:
    return {"predictions": [{"image": "a", "classes": [{"name": "x", "probability": probability}]}]}


@pytest.fixture
def models(tmp_path: Path) -> Any:
    (tmp_path / "run.py").write_text(PROGRAM)
    (tmp_path / "requirements.txt").write_text("numpy\n")
    return SimpleNamespace(
        answers={"int4": EXPECTED},
        shape=(2, 3),
        images=tmp_path / "images.bin",
        pictures=[],
        releases={"int4": SimpleNamespace(directory=tmp_path)},
        file=lambda lowering, form: tmp_path / ("model.onnx" if form == "release" else f"{lowering}.{form}.onnx"),
    )


def _rows(models: Any, tmp_path: Path, **answers: float) -> list[dict[str, Any]]:
    environment = Elsewhere()
    for name, value in answers.items():
        setattr(environment, name, value)
    return list(try_all(environment, models, tmp_path))


def test_what_agrees_passes_and_what_cannot_be_opened_is_told(models: Any, tmp_path: Path) -> None:
    good, refused = _rows(models, tmp_path)
    assert good["passed"] and good["relative_error"] == good["probabilities_apart"] == 0
    assert (good["bound"], good["top1_agreement"], good["load_s"], good["version"]) == (1e-3, 1.0, 1.23, "1")
    assert not refused["passed"] and not refused["claimed"] and refused["error"] == "it knows no functions"


@pytest.mark.parametrize("answers", [{"error": 2e-3}, {"probability": 0.6}, {"error": float("nan")}], ids=str)
def test_what_is_too_far_off_fails(models: Any, tmp_path: Path, answers: dict[str, float]) -> None:
    assert not _rows(models, tmp_path, **answers)[0]["passed"]


def test_other_classes_are_as_far_apart_as_can_be() -> None:
    other = _told(0.5)
    other["predictions"][0]["classes"][0]["name"] = "y"
    assert largest_difference(_told(0.5), other) == 1.0
    assert largest_difference(_told(0.5), _told(0.25)) == 0.25


@pytest.mark.parametrize(("error", "code"), [(0.0, 0), (1.0, 3)])
def test_a_record_keeps_what_was_not_tried(
    models: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: float, code: int
) -> None:
    monkeypatch.setattr(check_processors, "Models", lambda _: models)
    monkeypatch.setattr(check_processors, "ENVIRONMENTS", {"test": type("There", (Elsewhere,), {"error": error})})
    output = tmp_path / "record.json"
    output.write_text('{"other": {"date": "2026-01-01"}}')
    monkeypatch.setattr("sys.argv", ["check_processors.py", "test", "--output", str(output)])
    assert check_processors.main() == code
    record = json.loads(output.read_text())
    assert record["other"] == {"date": "2026-01-01"}
    assert [row["passed"] for row in record["test"]["models"]] == [code == 0, False]


def test_a_command_that_fails_says_how() -> None:
    with pytest.raises(processor_environments.Failed, match=r"exits with 3: .*no such thing"):
        processor_environments.run(["bash", "-c", "echo no such thing >&2; exit 3"])


def test_the_record_that_is_kept_is_of_every_environment_and_nothing_failed() -> None:
    record = json.loads(check_processors.RECORD.read_text())
    assert set(record) == set(processor_environments.ENVIRONMENTS)
    for name, part in record.items():
        tried = {(row["lowering"], row["form"]) for row in part["models"]}
        assert tried == {model[:2] for model in processor_environments.ENVIRONMENTS[name]().models()}
        assert all(row["passed"] for row in part["models"] if row["claimed"])
