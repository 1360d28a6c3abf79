"""What reaches the quantized Linears: the largest magnitude of every input, calibrated once and kept in the bundle."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from qvec_deploy.errors import IntegrityError
from qvec_deploy.io.files import canonical_json, require_file, write_bytes
from qvec_deploy.io.untrusted import read_json, understood
from qvec_deploy.packed import PackedFile, unpack
from qvec_deploy.runtimes.engine_files import ACTIVATIONS_FILE
from qvec_deploy.tensors import INPUT_SCALE, Float32

if TYPE_CHECKING:
    from torch import nn

Calibrator = Literal["max", "percentile"]
"""How ModelOpt finds the range of a Linear's input on images."""


def calibrate_amax(
    model: nn.Module, weights: PackedFile, images: Sequence[Float32], calibrator: Calibrator = "max"
) -> dict[str, float]:
    """The largest magnitude of each quantized Linear's input that is kept, by ModelOpt's calibration.

    Args:
        model: The timm model of `weights`, in evaluation mode; its quantized weights and ModelOpt's quantizers are put
            in here.
        images: Batches (B, C, H, W), normalised.

    Returns:
        Magnitude by Linear name, of what the engine's Linear reads: after the factors that AWQ put before it.

    Raises:
        IncompatibleError: Activations are not finite.
        IntegrityError: The packed file is damaged.
        ValueError: No image.
    """
    import torch

    from qvec_deploy.quantize.activation_ranges import calibrate_inputs

    if not images:
        raise ValueError("calibration needs at least one image")
    packed = {name: info.shape for name, info in weights.tensors.items() if info.scheme is not None}
    names = [name.removesuffix(".weight") for name, shape in packed.items() if len(shape) == 2]
    scales = {name: f"{name}{INPUT_SCALE}" for name in names if f"{name}{INPUT_SCALE}" in weights.tensors}
    factors = {name: weights.array(scale).astype(np.float32) for name, scale in scales.items()}
    with torch.no_grad():
        for name, shape in packed.items():
            module: Any = model.get_submodule(name.removesuffix(".weight"))
            values = torch.from_numpy(unpack(weights.packed(name)).dequantize().reshape(shape))
            module.weight = torch.nn.Parameter(values, requires_grad=False)
    return calibrate_inputs(model, names, factors, images, percentile=calibrator == "percentile")


def write_amax(directory: Path, amax: Mapping[str, float]) -> None:
    """Keep calibrated magnitudes beside the weights."""
    write_bytes(directory / ACTIVATIONS_FILE, canonical_json({"amax": dict(amax)}))


def read_amax(directory: Path) -> dict[str, float]:
    """What `write_amax` kept.

    Raises:
        IntegrityError: The file is damaged.
        StorageError: There is none.
    """
    path = require_file(directory / ACTIVATIONS_FILE, what="calibrated activations")
    values = read_json(path)
    with understood(path):
        values = {name: float(value) for name, value in values["amax"].items()}
    if not all(math.isfinite(value) and value >= 0 for value in values.values()):
        raise IntegrityError(f"{path} holds an impossible magnitude", hint="build the bundle again")
    return values
