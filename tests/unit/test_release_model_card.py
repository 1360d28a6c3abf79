"""MODEL_CARD.md: everything that is known, nothing that is not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import yaml
from release_example import subject

from qvec_deploy.bench.warnings import Finding, MeasurementWarning
from qvec_deploy.bundle.manifest import PatchVector
from qvec_deploy.bundle.release.bom import bill_of_materials
from qvec_deploy.bundle.release.model_card import model_card

GOLDEN = Path(__file__).parents[1] / "golden" / "release_card.md"


def _front_matter(card: str) -> dict[str, object]:
    start, front, _ = card.split("---\n", 2)
    assert start == ""
    found = yaml.safe_load(front)
    assert isinstance(found, dict)
    return found


def test_golden(check_golden: Callable[[Path, str], None]) -> None:
    check_golden(GOLDEN, model_card(subject()))


def test_front_matter_names_the_base_only_where_it_is_on_the_hub() -> None:
    remote = _front_matter(model_card(subject()))
    assert remote["base_model"] == "acme/eurosat-vit"
    assert remote["base_model_relation"] == "quantized"
    assert remote["library_name"] == "onnx"
    assert "license" not in remote
    local = {"checkpoint": "mine.safetensors", "model": "vit_tiny_patch16_224", "model_args": {"img_size": 64}}
    assert "base_model" not in _front_matter(model_card(subject(receiver=local)))


def test_doubts_have_reason_and_remedy_and_say_whom_they_are_about() -> None:
    about = subject()
    findings = (
        Finding(MeasurementWarning.BUSY_MACHINE, "machine", "The load average was 9 on 4 cores."),
        Finding(MeasurementWarning.NOISY_SAMPLES, "float", "The standard deviation is 20 % of the mean."),
        Finding(MeasurementWarning.DRIFT, "eurosat_3bit", "The second half differs."),
        Finding(MeasurementWarning.DRIFT, "ptq", "The second half differs."),
    )
    card = model_card(replace(about, report=replace(about.report, warnings=findings)))
    assert "- **Busy machine.** The load average was 9 on 4 cores. Stop other work" in card
    assert "- **Noisy samples.** Others: float. Use a quiet machine" in card
    assert "- **Drift.** The second half differs. Also: ptq. Warm up longer" in card


def test_a_float_bundle_is_not_called_quantized() -> None:
    about = subject(quantize={"bits": 32}, target={"lowering": "float"}, gates={})
    card = model_card(about)
    assert "- **Method:** not quantized" in card
    front = _front_matter(card)
    assert front["base_model"] == "acme/eurosat-vit" and "base_model_relation" not in front


def test_folders_of_the_machine_are_not_published() -> None:
    local = {"checkpoint": "/home/me/mine.pt", "model": "vit_tiny_patch16_224", "model_args": {"img_size": 64}}
    about = subject(receiver=local)
    vectors = ("/tmp/a/svhn.safetensors", "/tmp/q.pt - /tmp/f.pt")
    sources = {"/home/me/mine.pt": "0" * 64, vectors[0]: "1" * 64, "/tmp/q.pt": "2" * 64, "/tmp/f.pt": "3" * 64}
    weights = tuple(PatchVector(name=name, weight=0.5) for name in vectors)
    about = replace(about, manifest=about.manifest.model_copy(update={"sources": sources, "vectors": weights}))
    text = model_card(about) + bill_of_materials(about, about.manifest.files).decode()
    assert "/tmp" not in text and "/home" not in text
    assert "0.5 × svhn.safetensors, 0.5 × q.pt - f.pt" in text and "| receiver | mine.pt |" in text


def test_an_unverified_patch_is_said_before_anything_else() -> None:
    card = model_card(subject(unverified="the patch was tried on no image of the receiver's task"))
    first = card.split("---\n", 2)[2].split("\n\n")[1]
    assert first == "**Do not ship:** Unverified: the patch was tried on no image of the receiver's task."
    assert "The patch is unverified" in card.partition("## Use and limits")[2]
    assert "nverified" not in model_card(subject())


def test_what_was_not_measured_is_said() -> None:
    about = subject(gates={})
    bare = tuple(replace(each, accuracy=None, paired={}, latency=()) for each in about.report.candidates)
    report = replace(about.report, candidates=bare, images=0, selection=None, gates=())
    manifest = about.manifest.model_copy(update={"gates": (), "selection": None})
    card = model_card(replace(about, report=report, manifest=manifest))
    limits = card.partition("## Use and limits")[2]
    assert "- Accuracy was not measured." in limits
    assert "- Latency was not measured." in limits
    assert "no gate was judged" in limits
    assert "It was not selected" in card
    assert "metrics" not in _front_matter(card)


def test_names_cannot_become_markdown() -> None:
    hostile = {"checkpoint": "x](http://a) <b>|", "model": "vit_tiny_patch16_224", "model_args": {"img_size": 64}}
    card = model_card(subject(receiver=hostile)).split("---\n", 2)[2]
    assert "<b>" not in card
    assert "](http" not in card.replace("\\](http", "")


def test_every_hash_of_a_source_is_there() -> None:
    about = subject()
    card = model_card(about)
    for name, digest in about.manifest.sources.items():
        assert f"| {digest} |" in card
        assert name.replace("_", "\\_") in card or name in card
