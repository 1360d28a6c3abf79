"""The pico model: a real timm ViT so small that whole builds take seconds."""

from __future__ import annotations

PICO_MODEL = "vit_tiny_patch16_224"
PICO_ARGS = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "global_pool": "avg"}
PICO_CLASSES = 10
