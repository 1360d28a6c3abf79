"""Plans of models beyond the plain ViT: several heads, BatchNorm, weights used outside their layer."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from qvec_deploy import planner
from qvec_deploy.builder.context import BuildContext
from qvec_deploy.builder.weights import load_model, make_weights
from qvec_deploy.errors import IncompatibleError
from qvec_deploy.io.checkpoint import Checkpoint
from qvec_deploy.models import create, describe, named_heads, trace_forward
from qvec_deploy.planner import Plan
from qvec_deploy.recipe import load_recipe
from qvec_deploy.tensors import Scheme
from qvec_deploy.vectors.extract import extract_vector
from qvec_deploy.vectors.symmetric_places import Geometry, find_geometry

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2}
DISTILLED = ("deit_tiny_distilled_patch16_224", SMALL)
LEVIT = ("levit_128s", {"img_size": 64, "embed_dim": [32, 48], "num_heads": [2, 3], "depth": [1, 1]})
XCIT = ("xcit_nano_12_p16_224", {"img_size": 32, "embed_dim": 32, "depth": 1, "num_heads": 2})
BEIT = ("beit_base_patch16_224", SMALL)
Model = tuple[str, dict[str, Any]]


def _save(path: Path, model: Model, classes: int = 10, *, seed: int = 0) -> Path:
    import torch

    torch.manual_seed(seed)
    save_file({name: value.numpy() for name, value in create(model[0], classes, model[1]).state_dict().items()}, path)
    return path


@pytest.fixture
def recipe_of(tmp_path: Path, pico_recipe: Callable[..., Path]) -> Callable[..., Any]:
    """A recipe of a model with timm's initial weights, without a vector unless one is given."""

    def make(model: Model, **changes: Any) -> Any:
        receiver = {"checkpoint": str(_save(tmp_path / "receiver.safetensors", model)), "model": model[0]}
        settings: Mapping[str, Any] = {"vector": None, "lambda": 0.0, **changes}
        return load_recipe(pico_recipe(receiver={**receiver, "model_args": model[1]}, **settings))

    return make


def _plan(recipe: Any) -> Plan:
    return BuildContext().plan(recipe)


def test_head_stands_for_every_head(recipe_of: Callable[..., Any]) -> None:
    plan = _plan(recipe_of(DISTILLED))
    assert plan.architecture.heads == ("head", "head_dist") and plan.architecture.classes == 10
    assert {tensor.name for tensor in plan.quantized} == {
        f"blocks.0.{name}.weight" for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    }
    named = _plan(recipe_of(DISTILLED, quantize={"skip": ["blocks"]})).quantized
    assert [tensor.name for tensor in named] == ["head.weight", "head_dist.weight"]
    assert named_heads(("head", "norm"), ("classifier", "heads.0")) == ("head", "norm", "classifier", "heads")
    assert named_heads(("norm",), ("classifier",)) == ("norm",)


def test_two_heads_of_different_classes_are_refused(tmp_path: Path, recipe_of: Callable[..., Any]) -> None:
    recipe = recipe_of(DISTILLED)
    state = {**create(DISTILLED[0], 10, DISTILLED[1]).state_dict()}
    state["head_dist.weight"], state["head_dist.bias"] = state["head_dist.weight"][:5], state["head_dist.bias"][:5]
    save_file({name: value.numpy() for name, value in state.items()}, tmp_path / "receiver.safetensors")
    with pytest.raises(IncompatibleError, match=r"head_dist\.weight has shape \(5, 32\), the model has \(10, 32\)"):
        _plan(recipe)


def test_a_vector_never_touches_a_head_or_what_batchnorm_has_measured(
    tmp_path: Path, recipe_of: Callable[..., Any]
) -> None:
    """A running variance plus lambda * rho can be negative."""
    recipe = recipe_of(LEVIT)
    states = []
    for seed in (1, 2):
        donor = Checkpoint.open(_save(tmp_path / f"donor{seed}.safetensors", LEVIT, seed=seed))
        assert any(name.endswith("num_batches_tracked") for name in donor.aside)
        states.append({name: donor.read(name) for name in donor.tensors})
    fp, qat = states
    fp |= {name: qat[name] for name in fp if name.startswith(("head.linear", "head_dist.linear"))}
    path = tmp_path / "vector.safetensors"
    architecture = describe(LEVIT[0], 1, LEVIT[1])
    extract_vector(
        fp, qat, path, scheme=Scheme(3, "channel"), skip=("head",), task="t", seed=0, architecture=architecture
    )
    recipe = recipe_of(LEVIT, vector={"files": [str(path)]}, **{"lambda": 1.0})
    plan = _plan(recipe)
    patched = {tensor.name: tensor.patched for tensor in plan.tensors}
    measured = [name for name in patched if name.endswith(("running_mean", "running_var"))]
    assert len(measured) > 10 and not any(patched[name] for name in measured)
    assert not any(tensor.name.endswith("num_batches_tracked") for tensor in plan.tensors)
    assert {name for name in patched if not patched[name]} == {
        *measured,
        *(f"{head}.linear.{part}" for head in ("head", "head_dist") for part in ("weight", "bias")),
    }
    context = BuildContext()
    receiver = context.receiver(recipe)
    weights = dict(make_weights(plan, receiver, context.sources(recipe)).tensors)
    np.testing.assert_array_equal(weights[measured[0]], receiver.read(measured[0]))
    model = load_model(plan, ((name, receiver.read(name)) for name in receiver.tensors))
    assert not any(value.is_meta for value in model.state_dict().values())  # the counters have values, too


def test_what_gives_no_logits_is_refused(recipe_of: Callable[..., Any]) -> None:
    says = r"gives \(2, 17, 10\) for 2 images of 3 x 32 x 32, and no logits of 10 classes"
    with pytest.raises(IncompatibleError, match=says):
        _plan(recipe_of(("vit_tiny_patch16_224", {**SMALL, "global_pool": ""})))


def test_what_does_not_run_on_its_images_is_refused(
    recipe_of: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = trace_forward("vit_tiny_patch16_224", 10, json.dumps(SMALL), (3, 24, 24))
    assert found.outputs is None and "Input height (24) doesn't match model (32)" in str(found.error)
    monkeypatch.setattr(planner, "trace_forward", lambda *_: found)
    with pytest.raises(IncompatibleError, match=r"does not run on images of 3 x 32 x 32: Input height \(24\)"):
        _plan(recipe_of(("vit_tiny_patch16_224", SMALL)))


def test_a_layer_of_several_names_is_refused(recipe_of: Callable[..., Any]) -> None:
    with pytest.raises(IncompatibleError, match=r"one layer under several names \(serial_blocks1\.0\.cpe\.proj"):
        _plan(recipe_of(("coat_tiny", {"img_size": 64})))


def test_a_weight_that_others_use_is_refused_unless_it_stays_float(
    recipe_of: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As BEiT, EVA-02 and SwinV2 do by default; here their Linears are told to add the bias themselves."""
    from qvec_deploy import models

    def shared(name: str, classes: int, args: Any) -> Any:
        model = original(name, classes, args)
        model.blocks[0].attn.qkv_bias_separate = False
        return model

    recipe = recipe_of(BEIT)
    assert len(_plan(recipe).quantized) == 4
    original = models.structure
    monkeypatch.setattr(models, "structure", shared)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    trace_forward.cache_clear()
    try:
        with pytest.raises(IncompatibleError, match=r"with the weight of blocks\.0\.attn\.qkv outside of") as caught:
            _plan(recipe)
        assert "add `qkv` to quantize.skip" in caught.value.hint
        assert len(_plan(recipe_of(BEIT, quantize={"skip": ["head", "qkv"]})).quantized) == 3
    finally:
        trace_forward.cache_clear()


@pytest.mark.parametrize("model", [DISTILLED, LEVIT, BEIT, XCIT], ids=lambda model: model[0])
def test_unknown_geometry_is_empty(model: Model) -> None:
    """Of these blocks no symmetry is known: only their distance to the donor is judged."""
    geometry = find_geometry(*model)
    assert (geometry == Geometry()) == (model is not DISTILLED)
