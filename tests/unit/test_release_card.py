"""MODEL_CARD.md: everything that is known, nothing that is not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import yaml
from release_example import subject

from qvec_deploy.release.card import model_card

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
    assert remote["library_name"] == "timm"
    assert "license" not in remote
    local = {"checkpoint": "mine.safetensors", "model": "vit_tiny_patch16_224", "model_args": {"img_size": 64}}
    assert "base_model" not in _front_matter(model_card(subject(receiver=local)))


def test_an_unverified_patch_is_said_before_anything_else() -> None:
    card = model_card(subject(unverified="the patch was tried on no image of the receiver's task"))
    first = card.split("---\n", 2)[2].split("\n\n")[1]
    assert first == "**Unverified:** the patch was tried on no image of the receiver's task."
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
