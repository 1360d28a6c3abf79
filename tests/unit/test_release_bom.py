"""sbom.cdx.json: valid CycloneDX 1.6, the same bytes every time, and true."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from release_example import subject

from qvec_deploy.bundle.release.bom import bill_of_materials
from qvec_deploy.bundle.release.release_subject import Subject

GOLDEN = Path(__file__).parents[1] / "golden" / "release_sbom.cdx.json"


def _document(about: Subject) -> dict[str, Any]:
    text = bill_of_materials(about, about.manifest.files).decode()
    error = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    assert error is None, error
    document = json.loads(text)
    assert isinstance(document, dict)
    return document


def test_golden(check_golden: Callable[[Path, str], None]) -> None:
    about = subject()
    check_golden(GOLDEN, bill_of_materials(about, about.manifest.files).decode())


def test_the_validator_would_notice() -> None:
    document = _document(subject())
    document["metadata"]["component"]["modelCard"]["invented"] = 1
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(document)) is not None


def test_number_and_time_are_those_of_the_manifest() -> None:
    about = subject()
    document = _document(about)
    assert uuid.UUID(document["serialNumber"].removeprefix("urn:uuid:")).version == 5
    assert document["metadata"]["timestamp"] == about.manifest.created
    other = subject(unverified="no image")
    assert _document(other)["serialNumber"] != document["serialNumber"]


def test_the_model_its_ancestor_and_its_sources_have_hashes() -> None:
    about = subject()
    document = _document(about)
    model = document["metadata"]["component"]
    assert model["type"] == "machine-learning-model"
    assert model["hashes"][0]["content"] == about.manifest.files["weights.qvec.safetensors"].sha256
    (ancestor,) = model["pedigree"]["ancestors"]
    assert ancestor["hashes"][0]["content"] == about.manifest.sources[about.recipe.receiver.checkpoint]
    kinds: dict[str, dict[str, str]] = {}
    for entry in document["components"]:
        value = entry["version"] if entry["type"] == "library" else entry["hashes"][0]["content"]
        kinds.setdefault(entry["type"], {})[entry["name"]] = value
    assert kinds["file"] == {name: entry.sha256 for name, entry in about.manifest.files.items()}
    assert kinds["library"] == about.manifest.versions
    vectors = set(about.manifest.sources) - {about.recipe.receiver.checkpoint}
    assert kinds["data"] == {name: about.manifest.sources[name] for name in vectors}


def test_only_what_the_engine_runs_on_is_needed() -> None:
    document = _document(subject())
    scopes = {entry["name"]: entry["scope"] for entry in document["components"] if entry["type"] == "library"}
    assert scopes == {"onnx": "excluded", "onnxruntime": "required", "qvec-deploy": "excluded", "torch": "excluded"}
    (needs,) = (entry["dependsOn"] for entry in document["dependencies"] if entry["ref"] == "model")
    assert [ref for ref in needs if ref.startswith("pypi:")] == ["pypi:onnxruntime"]


def test_sources_of_one_name_are_told_apart() -> None:
    about = subject()
    receiver = about.recipe.receiver.checkpoint
    sources = {receiver: "0" * 64, "/a/v.pt": "1" * 64, "/b/v.pt": "2" * 64, "/c/v.pt": "2" * 64}
    about = replace(about, manifest=about.manifest.model_copy(update={"sources": sources}))
    found = [entry for entry in _document(about)["components"] if entry["type"] == "data"]
    assert [entry["name"] for entry in found] == ["v.pt"] * 2 and len({entry["bom-ref"] for entry in found}) == 2


def test_a_float_bundle_is_not_called_quantized() -> None:
    about = subject(quantize={"bits": 32}, target={"lowering": "float"}, gates={})
    own = replace(about.shipped.candidate, scheme=None)
    others = [each for each in about.report.candidates if each.name != own.name]
    about = replace(about, report=replace(about.report, candidates=(*others, own)))
    model = _document(about)["metadata"]["component"]
    facts = {entry["name"]: entry["value"] for entry in model["properties"]}
    assert facts["qvec-deploy:method"] == "not quantized"
    assert model["pedigree"]["notes"] == "receiver + lambda x vectors, not quantized"
    about = replace(about, manifest=about.manifest.model_copy(update={"lam": 0.0}))
    assert _document(about)["metadata"]["component"]["pedigree"]["notes"] == "receiver, not quantized"


def test_metrics_have_their_intervals_and_images() -> None:
    about = subject()
    card = _document(about)["metadata"]["component"]["modelCard"]
    metrics = {metric["type"]: metric for metric in card["quantitativeAnalysis"]["performanceMetrics"]}
    top1 = metrics["top-1 accuracy"]
    assert (top1["value"], top1["slice"]) == ("0.93", "torch/eurosat, split test, 1,000 images")
    assert float(top1["confidenceInterval"]["lowerBound"]) < 0.93 < float(top1["confidenceInterval"]["upperBound"])
    speed = metrics["speed-up over float"]
    assert float(speed["confidenceInterval"]["lowerBound"]) <= float(speed["value"])
    assert metrics["stored bits per quantized weight"]["value"] == "3.125"
    assert list(about.limits()) == card["considerations"]["technicalLimitations"]
    purposes = {
        entry["name"]: entry["contents"]["properties"][0]["value"] for entry in card["modelParameters"]["datasets"]
    }
    assert purposes["torch/eurosat, split test"] == "evaluation, 1,000 images"
