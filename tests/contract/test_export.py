"""Exported structures compute what PyTorch computes, for every family of models that is deployed."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
from shared import export_once

from qvec_deploy.bench.parity import check_parity, parity_images, reference_logits
from qvec_deploy.models import create, describe
from qvec_deploy.packed import Entry, PackedFile, pack, write_packed
from qvec_deploy.quantize.reference import quantize
from qvec_deploy.runtimes.engine_files import MODEL_FILE, WEIGHTS_FILE
from qvec_deploy.runtimes.graph.export import export_skeleton
from qvec_deploy.runtimes.graph.stored import attach_weights
from qvec_deploy.runtimes.registry import find_runtime
from qvec_deploy.tensors import Scheme

pytestmark = pytest.mark.slow

MODELS = {
    "vit, pooled": (
        "vit_tiny_patch16_224",
        {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "global_pool": "avg"},
    ),
    "vit, class token, no qkv bias": (
        "vit_tiny_patch16_224",
        {"img_size": 32, "patch_size": 8, "embed_dim": 40, "depth": 1, "num_heads": 2, "qkv_bias": False},
    ),
    "deit3, layer scale": (
        "deit3_small_patch16_224",
        {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2},
    ),
    "deit, two heads": (
        "deit_tiny_distilled_patch16_224",
        {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2},
    ),
    "beit, bias beside its Linear": (
        "beit_base_patch16_224",
        {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2},
    ),
    "eva02, rotary positions": (
        "eva02_tiny_patch14_224",
        {"img_size": 28, "patch_size": 7, "embed_dim": 32, "depth": 1, "num_heads": 2},
    ),
    "swinv2": (
        "swinv2_tiny_window8_256",
        {"img_size": 32, "embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4},
    ),
    "sam, attention of three dimensions": (
        "samvit_base_patch16_224",
        {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2},
    ),
    "xcit, BatchNorm": ("xcit_nano_12_p16_224", {"img_size": 32, "embed_dim": 32, "depth": 1, "num_heads": 2}),
    "swin, masks and relative positions": (
        "swin_tiny_patch4_window7_224",
        {"img_size": 56, "embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4], "window_size": 7},
    ),
}


@cache
def _skeleton(family: str) -> onnx.ModelProto:
    """Exported once: it takes longer than all that is done with it."""
    name, args = MODELS[family]
    shape = describe(name, 10, args).input_shape  # type: ignore[arg-type]
    return export_once(export_skeleton, name, 10, args, ("head",), shape)  # type: ignore[arg-type]


@pytest.mark.parametrize("bits", [None, 3])
@pytest.mark.parametrize("family", MODELS)
def test_parity_with_pytorch(tmp_path: Path, family: str, bits: int | None) -> None:
    import torch

    name, args = MODELS[family]
    torch.manual_seed(0)
    model, architecture = create(name, 10, args), describe(name, 10, args)  # type: ignore[arg-type]
    generator = np.random.default_rng(0)
    state = {}
    for key in architecture.shapes:  # not BatchNorm's counters
        value = model.state_dict()[key]
        noise = generator.normal(0, 0.1, value.shape)  # no tensor may stay zero, or a lost one would not show
        state[key] = (value.numpy() + noise).astype(np.float32)
    scheme = Scheme(bits, "channel") if bits else None
    quantized = {f"{linear}.weight" for linear in architecture.quantized(("head",))}
    schemes = {key: scheme if key in quantized else None for key in architecture.shapes}
    layout = {key: Entry(shape, schemes[key]) for key, shape in architecture.shapes.items()}
    tensors = [(key, pack(quantize(value, schemes[key])) if schemes[key] else value) for key, value in state.items()]
    write_packed(tmp_path / WEIGHTS_FILE, layout, tensors)
    weights = PackedFile.open(tmp_path / WEIGHTS_FILE)
    stored = attach_weights(_skeleton(family), weights, WEIGHTS_FILE)
    (tmp_path / MODEL_FILE).write_bytes(stored.SerializeToString())
    assert b"site-packages" not in (tmp_path / MODEL_FILE).read_bytes()
    reference = reference_logits(weights, name, 10, args, parity_images(architecture.input_shape))  # type: ignore[arg-type]
    for lowering in ("float",) if bits is None else ("packed", "int4", "int8"):
        with find_runtime("onnxruntime").load().open(tmp_path, lowering, 1) as session:
            parity = check_parity(session, "onnxruntime", lowering, reference)
            assert parity.relative_error < (0.1 if lowering == "int8" else 1e-5), lowering
            one = session.run(parity_images(session.input_shape)[:1])  # the batch is dynamic
            assert one.shape == (1, 10)
