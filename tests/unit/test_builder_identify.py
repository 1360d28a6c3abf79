"""Which timm model a checkpoint is of."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from qvec_deploy.builder.identify import FINGERPRINTS, Identified, fingerprint, identify
from qvec_deploy.errors import IncompatibleError, RecipeError
from qvec_deploy.io.checkpoint import Checkpoint


def _shapes(name: str, **args: Any) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        state = timm.create_model(name, **args).state_dict()
    return {key: tuple(value.shape) for key, value in state.items()}


@pytest.fixture
def identified(tmp_path: Path) -> Callable[..., Identified]:
    """What is found for a model's checkpoint of zeros, whose values nobody looks at."""

    def identified(name: str, model: str | None = None, notes: dict[str, Any] | None = None, **args: Any) -> Identified:
        state = {key: torch.zeros(shape, dtype=torch.float16) for key, shape in _shapes(name, **args).items()}
        torch.save({"state_dict": state, **(notes or {})}, tmp_path / "a.pt")
        return identify(Checkpoint.open(tmp_path / "a.pt"), model, {})

    return identified


TINY = {"num_classes": 7, "embed_dim": 48, "depth": 1, "num_heads": 3}


def test_a_name_that_the_checkpoint_says(identified: Callable[..., Identified]) -> None:
    notes = {"arch": "vit_tiny_patch16_224", "args": {"model_kwargs": {"embed_dim": 48, "depth": 1, "num_heads": 3}}}
    found = identified("vit_tiny_patch16_224", notes=notes, **TINY)
    assert found.architecture.name == "vit_tiny_patch16_224" and found.architecture.classes == 7
    assert found.told_by == "a.pt" and found.others == ()
    assert found.args == {"embed_dim": 48, "depth": 1, "num_heads": 3}


@pytest.mark.parametrize(
    "args",
    [
        {},
        {"img_size": 64},
        {"in_chans": 1},
        {"global_pool": "avg"},
        {"img_size": 96, "in_chans": 1, "global_pool": "avg"},
    ],
    ids=str,
)
def test_arguments_are_found(identified: Callable[..., Identified], args: dict[str, Any]) -> None:
    found = identified("vit_tiny_patch16_224", "vit_tiny_patch16_224", num_classes=3, **args)
    assert found.args == args and found.architecture.classes == 3


@pytest.mark.parametrize(
    ("name", "others"),
    [
        ("vit_tiny_patch16_224", {"deit_tiny_patch16_224"}),
        ("deit3_small_patch16_224", set()),
        ("swin_tiny_patch4_window7_224", set()),
        ("vit_small_patch14_reg4_dinov2", set()),
    ],
)
def test_tensors_alone_name_a_model(identified: Callable[..., Identified], name: str, others: set[str]) -> None:
    found = identified(name, num_classes=5)
    assert found.architecture.name == name and others <= set(found.others)
    assert found.told_by == "the names and shapes of its tensors"


def test_what_nobody_knows_is_refused_with_what_to_do(identified: Callable[..., Identified]) -> None:
    with pytest.raises(RecipeError, match="no model of timm has these") as caught:
        identified("vit_tiny_patch16_224", **TINY)
    assert "--model" in caught.value.hint
    with pytest.raises(RecipeError) as caught:
        identified("vit_tiny_patch16_224", notes={"arch": "vit_small_patch16_224"}, **TINY)
    assert "it says `vit_small_patch16_224`" in caught.value.hint
    with pytest.raises(IncompatibleError, match="cls_token has shape") as refused:
        identified("vit_tiny_patch16_224", "vit_small_patch16_224", num_classes=3)
    assert "--model-arg" in refused.value.hint
    with pytest.raises(IncompatibleError, match="no classification head"):
        identified("vit_tiny_patch16_224", num_classes=0)


def test_a_name_that_is_given_takes_the_arguments_that_the_checkpoint_says(
    identified: Callable[..., Identified],
) -> None:
    notes = {"arch": "vit_tiny_patch16_224", "args": {"model_kwargs": {"embed_dim": 48, "depth": 1, "num_heads": 3}}}
    found = identified("vit_tiny_patch16_224", "vit_tiny_patch16_224.augreg_in21k", notes=notes, **TINY)
    assert found.args == {"embed_dim": 48, "depth": 1, "num_heads": 3}


def test_the_table_is_of_today(request: pytest.FixtureRequest) -> None:
    """A change of the fingerprint, or of timm's models, shows here: run scripts/fingerprint_models.py."""
    models = json.loads(files("qvec_deploy").joinpath(FINGERPRINTS).read_text("utf-8"))["models"]
    for name in (
        "vit_base_patch16_224",
        "vit_large_patch14_clip_224",
        "swin_base_patch4_window7_224",
        "deit3_base_patch16_224",
    ):
        assert name in models[fingerprint(_shapes(name))]
    names = [name for alike in models.values() for name in alike]
    assert len(names) == len(set(names)) and len(names) > 400
    assert len(set(names) - set(timm.list_models())) < 50, "timm has lost models"
