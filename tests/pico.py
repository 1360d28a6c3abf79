"""The pico model: a real timm ViT so small that whole builds take seconds."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

PICO_MODEL = "vit_tiny_patch16_224"
PICO_ARGS = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "global_pool": "avg"}
PICO_CLASSES = 10


def pico_values(folder: Path) -> dict[str, Any]:
    """A recipe for the pico model as plain values; `folder` has its checkpoint and a vector."""
    return {
        "version": 1,
        "name": "pico",
        "receiver": {
            "checkpoint": str(folder / "receiver.safetensors"),
            "model": PICO_MODEL,
            "model_args": copy.deepcopy(PICO_ARGS),
        },
        "vector": {"files": [str(folder / "vector.safetensors")]},
        "lambda": 1.0,
        "quantize": {"bits": 3, "granularity": "channel"},
        "target": {"runtime": "onnxruntime", "lowering": "int4", "threads": 1},
        "measure": {"blocks": 2, "warmup": 0},
    }
