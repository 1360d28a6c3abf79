"""Does the engine compute what PyTorch computes with the same quantized weights?

At build time the packed weights, dequantized, go into the timm model; its logits on a few generated images are kept in
the bundle. Every engine opened from the bundle, on any machine, can then be held to them without PyTorch.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qvec_deploy.bench.results import Parity
from qvec_deploy.errors import IncompatibleError
from qvec_deploy.io.files import canonical_json, write_bytes
from qvec_deploy.io.untrusted import read_arrays, understood
from qvec_deploy.jobs.apart import call
from qvec_deploy.packed import PackedFile, unpack
from qvec_deploy.runtimes.registry import find_lowering, find_runtime
from qvec_deploy.runtimes.session import ArithmeticProbe
from qvec_deploy.tensors import INPUT_SCALE, Float32

if TYPE_CHECKING:
    from qvec_deploy.models import ModelArgs
    from qvec_deploy.runtimes.session import Session

PARITY_FILE = "parity.safetensors"
IMAGES, SEED = 2, 0
EXACT = 1e-5
"""Largest relative error of products that are to be exact; floats are rounded."""


def parity_images(input_shape: tuple[int, int, int]) -> Float32:
    """The generated images: (IMAGES, C, H, W) float32, Gaussian, the same on every machine."""
    generator = np.random.Generator(np.random.PCG64(SEED))
    return generator.standard_normal((IMAGES, *input_shape), dtype=np.float32)


def reference_logits(weights: PackedFile, name: str, classes: int, args: ModelArgs, images: Float32) -> Float32:
    """PyTorch's logits (batch, classes) with the dequantized weights of a packed file."""
    path = weights.path.absolute()  # the other process may have been started in another folder
    logits: Float32 = call("qvec_deploy.bench.parity:pytorch_logits", path, name, classes, dict(args), images)
    return logits


def pytorch_logits(path: Path, name: str, classes: int, args: ModelArgs, images: Float32) -> Float32:
    """`reference_logits` in this process."""
    import torch

    from qvec_deploy.models import structure

    weights = PackedFile.open(path)
    model = structure(name, classes, args)
    floats = {key: weights.array(key) for key, info in weights.tensors.items() if info.scheme is None}
    model.load_state_dict(
        {key: torch.from_numpy(array.astype(np.float32)) for key, array in floats.items()}, strict=False, assign=True
    )
    for key, factor in floats.items():
        if key.endswith(INPUT_SCALE):
            scaled = model.get_submodule(key.removesuffix(INPUT_SCALE))
            scaled.register_forward_pre_hook(partial(_scale_input, factor=torch.tensor(factor)))
    for key, info in weights.tensors.items():
        if info.scheme is not None:  # dequantized when the layer runs: one layer's weights in memory, not all
            module = model.get_submodule(key.removesuffix(".weight"))
            _forget(module)
            module.register_forward_pre_hook(partial(_dequantize, weights=weights, key=key))
            module.register_forward_hook(_forget)
    with torch.inference_mode():
        logits: Float32 = model(torch.from_numpy(images)).numpy()
    return logits


def _scale_input(_: Any, inputs: tuple[Any, ...], *, factor: Any) -> tuple[Any, ...]:
    return (inputs[0] * factor, *inputs[1:])


def _dequantize(module: Any, _: object, *, weights: PackedFile, key: str) -> None:
    import torch

    values = torch.from_numpy(unpack(weights.packed(key)).dequantize())
    module.weight = torch.nn.Parameter(values.reshape(module.weight.shape), requires_grad=False)


def _forget(module: Any, *_: object) -> None:
    """Leave a weight of the same shape that takes no memory: whoever uses it outside the module gets NaN."""
    import torch

    nothing = torch.full((), torch.nan).expand(module.weight.shape)
    module.weight = torch.nn.Parameter(nothing, requires_grad=False)


def write_reference(directory: Path, logits: Float32) -> None:
    """Keep reference logits in the bundle."""
    from safetensors.numpy import save

    metadata = {"qvec": canonical_json({"images": IMAGES, "seed": SEED}).decode()}
    write_bytes(directory / PARITY_FILE, save({"logits": logits}, metadata))


def read_reference(directory: Path) -> Float32:
    """The logits that `write_reference` kept."""
    path = directory / PARITY_FILE
    arrays, _ = read_arrays(path, "reference logits")
    with understood(path):
        logits = arrays["logits"]
        if logits.dtype != np.float32 or logits.ndim != 2 or len(logits) != IMAGES:
            raise ValueError(f"its logits are {logits.dtype} {logits.shape}")
    return logits


def check_parity(session: Session, runtime: str, lowering: str, reference: Float32) -> Parity:
    """Run the generated images through an engine and hold it to the reference."""
    logits = session.run(parity_images(session.input_shape))
    if logits.shape != reference.shape:
        raise IncompatibleError(
            f"the engine gives logits {logits.shape}, PyTorch {reference.shape}", hint="build the bundle again"
        )
    backend = find_runtime(runtime).load()
    off = backend.arithmetic_error(lowering) if isinstance(backend, ArithmeticProbe) else 0.0
    if not off <= EXACT:
        raise IncompatibleError(
            f"lowering `{lowering}` does not compute here what it means: products of its largest numbers are off by "
            f"{off:.2g}",
            hint="use another lowering, or another version of the runtime on this CPU, and report it",
        )
    error = float(np.linalg.norm(logits - reference) / max(float(np.linalg.norm(reference)), 1e-12))
    limit = find_lowering(runtime, lowering).tolerance
    if not error <= limit:
        raise IncompatibleError(
            f"the `{lowering}` engine's logits differ from PyTorch's by {error:.2g} (relative L2), more than {limit:g}",
            hint="this engine must not be used; try another lowering, and report it",
        )
    agreement = float((logits.argmax(1) == reference.argmax(1)).mean())
    return Parity(relative_error=error, top1_agreement=agreement, images=len(logits))
