"""Operations counted from shapes agree with torch's own counter, and bear the names that reports use."""

from __future__ import annotations

from typing import Any

import pytest
import timm.layers
import torch
from pico import PICO_ARGS, PICO_CLASSES, PICO_MODEL
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from qvec_deploy.bench.roofline import trace
from qvec_deploy.bench.roofline.roofline_values import REST, MatrixProduct, Operation, layer_kind
from qvec_deploy.bench.roofline.trace import trace_operations
from qvec_deploy.errors import IncompatibleError
from qvec_deploy.models import _template, create, describe

PICO_SWIN: dict[str, Any] = {"img_size": 32, "patch_size": 4, "embed_dim": 32, "depths": [2, 2], "num_heads": [2, 4]}
PICO_SWIN |= {"window_size": 4}
MODELS: list[tuple[str, dict[str, Any]]] = [
    (PICO_MODEL, PICO_ARGS),
    ("vit_base_patch16_224", {}),
    ("deit3_small_patch16_224", {}),
    ("swin_tiny_patch4_window7_224", PICO_SWIN),
    ("swin_tiny_patch4_window7_224", {}),
]


def _trace(name: str, args: dict[str, Any]) -> tuple[Operation, ...]:
    return trace_operations(name, PICO_CLASSES, args, describe(name, PICO_CLASSES, args).input_shape)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "args"), MODELS)
def test_torch_counts_the_same(name: str, args: dict[str, Any]) -> None:
    with torch.device("meta"):
        model = create(name, PICO_CLASSES, args)
    shape, batch = describe(name, PICO_CLASSES, args).input_shape, 3
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty((batch, *shape), device="meta"))
    assert batch * sum(operation.flops for operation in _trace(name, args)) == counter.get_total_flops()


@pytest.mark.parametrize(("name", "args"), MODELS)
def test_layers_are_those_of_the_architecture(name: str, args: dict[str, Any]) -> None:
    architecture, operations = describe(name, PICO_CLASSES, args), _trace(name, args)
    linears = [operation for operation in operations if operation.kind == "linear"]
    assert [operation.layer for operation in linears] == list(architecture.linears)
    for operation in linears:
        (product,) = operation.products
        assert (product.n, product.k) == architecture.shapes[f"{operation.layer}.weight"]
        assert operation.weights == product.n * product.k
        assert operation.values == operation.tokens * (product.n + product.k)
    attention = {operation.layer for operation in operations if operation.kind == "attention"}
    assert attention == {layer.removesuffix(".qkv") for layer in architecture.linears if layer.endswith(".qkv")}
    assert [operation.layer for operation in operations].index(REST) == len(operations) - 1
    assert operations[-1].flops == operations[-1].weights == 0 < operations[-1].values


def test_known_size() -> None:
    operations = trace_operations("vit_base_patch16_224", 1000, {}, (3, 224, 224))
    assert sum(operation.flops for operation in operations) / 2e9 == pytest.approx(17.6, abs=0.05)
    by_name = {operation.layer: operation for operation in operations}
    assert by_name["blocks.3.mlp.fc1"].products == (MatrixProduct(197, 768, 3072),)
    assert by_name["blocks.3.attn"].products == (MatrixProduct(197, 64, 197, 12), MatrixProduct(197, 197, 64, 12))
    assert by_name["blocks.3.attn"].values == 4 * 197 * 768  # queries, keys, values, result; no scores
    assert by_name["patch_embed.proj"].products == (MatrixProduct(196, 768, 768),)
    assert by_name["head"].tokens == 1


@pytest.mark.slow
@pytest.mark.parametrize(("name", "args"), MODELS)
def test_what_runtimes_fuse_is_left_out_of_the_bound(name: str, args: dict[str, Any]) -> None:
    with torch.device("meta"):
        model = create(name, PICO_CLASSES, args)
    seen: list[int] = []
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.register_forward_hook(lambda _, given, result: seen.append(given[0].numel() + result.numel()))
    shape = describe(name, PICO_CLASSES, args).input_shape
    with torch.no_grad():
        model(torch.empty((1, *shape), device="meta"))
    rest = next(operation for operation in _trace(name, args) if operation.layer == REST)
    assert 0 <= rest.values - sum(seen) <= max(seen), "norms, and perhaps a pooling"


def test_attention_in_parts_is_the_same_work_and_more_bytes() -> None:
    whole = _trace(PICO_MODEL, PICO_ARGS)
    before = timm.layers.use_fused_attn()
    timm.layers.set_fused_attn(False)
    _template.cache_clear()  # timm asks its switch when it builds a model, and one that was built is kept
    try:
        parts = _trace(PICO_MODEL, PICO_ARGS)
    finally:
        timm.layers.set_fused_attn(before)
        _template.cache_clear()
    assert [(one.layer, one.kind, one.flops) for one in parts] == [(one.layer, one.kind, one.flops) for one in whole]
    attention = [one.kind for one in whole].index("attention")
    scores = 2 * 17 * 17  # of two heads: written and read, and once more by the softmax
    assert parts[attention].values == whole[attention].values + 4 * scores


def test_a_model_that_looks_at_values_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Picky(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else -x

    monkeypatch.setattr(trace, "structure", lambda *_: Picky())
    with pytest.raises(IncompatibleError, match="cannot be counted"):
        trace_operations("picky", 2, {}, (3, 8, 8))


def test_kinds_leave_the_block_out() -> None:
    assert layer_kind("blocks.11.attn.qkv") == "attn.qkv"
    assert layer_kind("layers.1.blocks.0.mlp.fc2") == "mlp.fc2"
    assert layer_kind("layers.1.downsample.reduction") == "downsample.reduction"
    assert layer_kind("blocks.2.attn") == "attn"
    assert layer_kind("head") == "head"
    assert layer_kind("blocks.0.attn.cpb_mlp.2") == "attn.cpb_mlp.2"
