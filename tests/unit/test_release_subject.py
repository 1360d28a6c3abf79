"""A bundle's story: manifest, recipe and report must agree before anything is said about it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from release_example import subject

from qvec_deploy.bundle.bundle import Bundle
from qvec_deploy.bundle.release.release_subject import OWN_FILES, Subject, is_release, read_subject, without_own_files
from qvec_deploy.errors import GateError, IntegrityError, QvecError
from qvec_deploy.report.report_json import to_json

Change = Callable[[Subject], Subject]


def _bundle(folder: Path, about: Subject) -> Bundle:
    (folder / "report.json").write_bytes(to_json(about.report))
    return Bundle(folder, about.manifest, about.recipe)


def _manifest(**changes: Any) -> Change:
    return lambda about: replace(about, manifest=about.manifest.model_copy(update=changes))


def _report(**changes: Any) -> Change:
    return lambda about: replace(about, report=replace(about.report, **changes))


def _all_passed(about: Subject) -> Subject:
    """A missed gate that manifest and report both call passed."""
    about = subject(gates={"max_stored_bits": 3.0})
    assert not about.report.gates[0].passed
    claimed = tuple(replace(gate, passed=True) for gate in about.report.gates)
    gates = tuple(gate.model_copy(update={"passed": True}) for gate in about.manifest.gates)
    return replace(
        about, report=replace(about.report, gates=claimed), manifest=about.manifest.model_copy(update={"gates": gates})
    )


def test_a_story_without_contradictions(tmp_path: Path) -> None:
    about = subject()
    found = read_subject(_bundle(tmp_path, about))
    assert found.report == about.report
    assert found.manifest == about.manifest
    assert [role for role, _, _ in found.sources()] == ["receiver", "vector", "vector"]


def test_a_release_has_the_identity_of_its_bundle(tmp_path: Path) -> None:
    about = subject()
    more = {name: next(iter(about.manifest.files.values())) for name in OWN_FILES}
    released = about.manifest.model_copy(update={"files": {**about.manifest.files, **more}})
    assert is_release(released) and not is_release(about.manifest)
    assert without_own_files(released) == about.manifest
    assert read_subject(_bundle(tmp_path, replace(about, manifest=released))).identity == about.identity


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (_manifest(files={}), GateError, "was never measured"),
        (_manifest(lam=0.25), IntegrityError, "about another engine"),
        (_manifest(method="gptq"), IntegrityError, "about another engine"),
        (_manifest(gates=()), IntegrityError, "other gates"),
        (_manifest(unverified="x"), IntegrityError, "about verification"),
        (_manifest(sources={}), IntegrityError, "lacks the receiver's hash"),
        (_report(gates=()), IntegrityError, "other gates"),
        (_report(selected=None, selection=None), IntegrityError, "names no shipped candidate"),
        (_all_passed, IntegrityError, "judged anew"),
    ],
)
def test_contradictions(tmp_path: Path, change: Change, error: type[QvecError], match: str) -> None:
    with pytest.raises(error, match=match):
        read_subject(_bundle(tmp_path, change(subject())))


def test_a_gate_without_its_measurement(tmp_path: Path) -> None:
    about = subject()
    blind = tuple(replace(each, paired={}) for each in about.report.candidates)
    with pytest.raises(IntegrityError, match="cannot be judged from its report"):
        read_subject(_bundle(tmp_path, replace(about, report=replace(about.report, candidates=blind))))


def test_a_report_that_is_none(tmp_path: Path) -> None:
    bundle = _bundle(tmp_path, subject())
    document = json.loads((tmp_path / "report.json").read_bytes())
    (tmp_path / "report.json").write_text(json.dumps({**document, "images": "many"}))
    with pytest.raises(IntegrityError, match=r"report\.json is damaged: images"):
        read_subject(bundle)


def test_image_sets_by_what_they_were_looked_at_for() -> None:
    assert dict(subject().looked_at()) == {
        "torch/eurosat, split val": "selection, 200 images, and its confirmation, 200 others",
        "torch/eurosat, split test": "evaluation, 1,000 images",
    }
    calibrated = {"bits": 3, "method": "gptq", "calibration": {"on": "generated", "count": 64}}
    names = subject(quantize=calibrated).looked_at()
    assert names[1] == ("images that the tool generated", "calibration, at most 64 images")
    other = {"bits": 3, "method": "gptq", "calibration": {"on": "dataset", "dataset": "torch/cifar10", "count": 9}}
    assert subject(quantize=other).looked_at()[1] == ("torch/cifar10, split train", "calibration, at most 9 images")
