"""The files that an engine is made of, by name."""

from __future__ import annotations

MODEL_FILE = "model.onnx"
WEIGHTS_FILE = "weights.qvec.safetensors"
STRUCTURE_FILE = "structure.json"
ACTIVATIONS_FILE = "activations.json"
KERNELS_FILE = "kernels.json.gz"

METADATA_PREFIX = "qvec."
PREPROCESSING_KEY = f"{METADATA_PREFIX}preprocessing"
"""In the metadata of model.onnx: what images are resized, cropped and normalised by, as JSON."""
LOWERING_KEY = f"{METADATA_PREFIX}lowering"
"""There too: the lowering that the file is."""


def is_of_engine(name: str) -> bool:
    """Whether a bundle's file is a part of what runs: not one that describes or checks it, nor of another engine."""
    files = (MODEL_FILE, WEIGHTS_FILE, STRUCTURE_FILE, ACTIVATIONS_FILE, KERNELS_FILE)
    return name in files or name.startswith("engine.")
