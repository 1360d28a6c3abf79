"""scripts/check_families.py: a sample of it, and that its record is of all of timm's families."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import check_families
import pytest
from check_families import RUNTIME, main, try_family
from timm_families import CONVOLUTIONAL, FAMILIES, Family

from qvec_deploy.runtimes.registry import find_lowering

SAMPLE = {
    "two heads and rotary positions beside a bias": Family(
        "eva02_tiny_patch14_224", {"img_size": 28, "patch_size": 7, "embed_dim": 32, "depth": 1, "num_heads": 2}
    ),
    "BatchNorm": Family("levit_128s", {"img_size": 64, "embed_dim": [32, 48], "num_heads": [2, 3], "depth": [1, 1]}),
    "no Linear": Family("visformer_tiny", {"img_size": 64, "depth": 2, "embed_dim": 64, "init_channels": 8}),
    "no head": Family("vit_tiny_patch16_224", {"img_size": 32, "depth": 1, "global_pool": ""}),
}

REFUSED = "gives (2, 5, 10) for 2 images of 3 x 32 x 32"


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLE)
def test_a_sample_is_built_or_refused_with_a_sentence(tmp_path: Path, name: str) -> None:
    row = try_family(SAMPLE[name], tmp_path)
    if name == "no head":
        assert set(row) == {"refused"} and REFUSED in row["refused"]
        return
    assert row["float"] < 1e-5
    if name == "no Linear":
        assert "has no Linear to quantize outside head" in row.pop("linears")["refused"]
    for part in set(row) & {"linears", "convolutions"}:
        assert row[part]["tensors"] > 0 and row[part]["packed"] < 1e-5 and row[part]["int4"] < 1e-5
        assert row[part]["int8"] < find_lowering("onnxruntime", "int8").tolerance
    assert row["convolutions"]["share"] > row.get("linears", {"share": 0})["share"]


def test_every_module_of_timm_is_a_family_or_no_transformer() -> None:
    """A family that a new timm brings is noticed here: give it a line in scripts/timm_families.py."""
    import timm

    modules = {timm.models.model_entrypoint(family.model).__module__.rpartition(".")[2] for family in FAMILIES.values()}
    assert set(timm.list_modules()) - modules - CONVOLUTIONAL == set()
    assert not modules & CONVOLUTIONAL


def test_the_record_is_of_all_families_and_nothing_failed() -> None:
    record: Mapping[str, Any] = json.loads(check_families.RECORD.read_text())
    assert list(record["families"]) == list(FAMILIES)
    for name, row in record["families"].items():
        assert (row["model"], row["args"]) == (FAMILIES[name].model, FAMILIES[name].args)
        assert "failed" not in row, (name, row)
        if "refused" in row:
            continue
        for lowering in RUNTIME.lowerings:
            found = [row["float"]] if lowering is RUNTIME.baseline else _errors(row, lowering.name)
            for error in found:  # a build refuses an engine that is further off, and only activations' grids are coarse
                refused = isinstance(error, str) and lowering.calibrates_activations and "logits differ" in error
                assert refused or error <= lowering.tolerance, (name, lowering.name)


def test_what_is_written_about_the_record_is_what_it_shows() -> None:
    page = (check_families.ROOT / "qvec_deploy" / "runtimes" / "README.md").read_text()
    record = json.loads(check_families.RECORD.read_text())
    assert check_families.summary(record["families"]) in " ".join(page.split())


def _errors(row: Mapping[str, Any], lowering: str) -> list[Any]:
    parts = [row[part] for part in ("linears", "convolutions") if part in row]
    return [part[lowering] for part in parts if "refused" not in part]


@pytest.mark.parametrize(("answer", "code"), [({"refused": "no"}, 0), ({"failed": "yes"}, 3)])
def test_one_family_is_tried_and_the_others_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: dict[str, Any], code: int
) -> None:
    monkeypatch.setattr(check_families, "try_family", lambda *_: answer)
    output = tmp_path / "record.json"
    output.write_text(json.dumps({"families": {"deit": {"refused": "before"}, "gone": {}}}))
    assert main(["--only", "vit", "--output", str(output)]) == code
    families = json.loads(output.read_text())["families"]
    assert list(families) == ["vit", "deit"] and families["deit"] == {"refused": "before"}
    assert answer.items() <= families["vit"].items() and families["vit"]["model"] == FAMILIES["vit"].model


def test_a_family_that_takes_too_long_or_dies_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import os
    import time

    monkeypatch.setattr(check_families, "try_family", lambda *_: time.sleep(60))
    assert "more than 0.2 s" in check_families.try_apart("vit", 0.2)["failed"]
    monkeypatch.setattr(check_families, "try_family", lambda *_: os._exit(9))
    assert check_families.try_apart("vit", 60)["failed"] == "its process died"
