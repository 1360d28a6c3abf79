"""Directories as `build` leaves them, of tiny timm ViTs: weights, graph and structure, without a build."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from pico import PICO_ARGS, PICO_CLASSES, PICO_MODEL
from shared import export_once

from qvec_deploy.bench.parity import parity_images, reference_logits
from qvec_deploy.models import create, describe
from qvec_deploy.packed import Entry, PackedFile, pack, write_packed
from qvec_deploy.quantize.reference import quantize
from qvec_deploy.runtimes.engine_files import MODEL_FILE, WEIGHTS_FILE
from qvec_deploy.runtimes.graph.stored import attach_weights
from qvec_deploy.runtimes.onnxruntime_cuda.ort_cuda_session import OnnxRuntimeCuda
from qvec_deploy.runtimes.torch_cuda.torch_session import TorchCuda
from qvec_deploy.runtimes.torch_cuda.torch_structure import write_structure
from qvec_deploy.tensors import Scheme, matrix_shape

WIDE_ARGS = {**PICO_ARGS, "embed_dim": 256, "depth": 1, "num_heads": 4}
"""A model all of whose packed Linears have a shape that tensor cores' layout takes."""

SCHEME = Scheme(3, "channel")
SKIP = ("head",)


def write_engine(
    directory: Path,
    scheme: Scheme | None = SCHEME,
    args: dict[str, Any] = PICO_ARGS,
    *,
    graph: bool = False,
    factors: bool = False,
    convolutions: bool = False,
) -> np.ndarray:
    """Fill a directory, and return PyTorch's logits (2, classes) on the parity images.

    Args:
        directory: An empty folder.
        scheme: Of the packed Linears; None keeps all of them float.
        args: Of the model.
        graph: Write model.onnx too, which takes a second.
        convolutions: Pack the patch embedding's filters too.
        factors: Give every second packed Linear an input scale, as AWQ does.
    """
    architecture = describe(PICO_MODEL, PICO_CLASSES, args)
    generator = np.random.default_rng(0)
    packed = architecture.quantized(SKIP, convolutions=convolutions)
    layout, values = {}, {}
    for name, tensor in create(PICO_MODEL, PICO_CLASSES, args).state_dict().items():
        value = tensor.numpy()
        if value.ndim >= 2:  # timm's tiny initial weights would hide mistakes
            value = generator.normal(0, value[0].size ** -0.5, value.shape).astype(np.float32)
        elif name.endswith("bias"):
            value = generator.normal(0, 0.1, value.shape).astype(np.float32)
        path = name.removesuffix(".weight")
        quantized = scheme is not None and path in packed and name.endswith(".weight")
        layout[name] = Entry(value.shape, scheme if quantized else None)
        matrix = value.reshape(matrix_shape(value.shape)) if quantized else value
        values[name] = pack(quantize(matrix, scheme)) if quantized and scheme is not None else value
        if quantized and factors and (path.endswith(("proj", "fc2"))):
            factor = generator.uniform(0.5, 2, value.shape[1]).astype(np.float32)
            layout[f"{path}.input_scale"], values[f"{path}.input_scale"] = Entry(factor.shape), factor
    write_packed(directory / WEIGHTS_FILE, layout, values.items())
    write_structure(directory, architecture, args)
    weights = PackedFile.open(directory / WEIGHTS_FILE)
    if graph:
        from qvec_deploy.runtimes.graph.export import export_skeleton  # takes onnxscript, which few of them need

        skeleton = export_once(export_skeleton, PICO_MODEL, PICO_CLASSES, args, SKIP, architecture.input_shape)
        model = attach_weights(skeleton, weights, WEIGHTS_FILE)
        (directory / MODEL_FILE).write_bytes(model.SerializeToString())
    images = parity_images(architecture.input_shape)
    return reference_logits(weights, PICO_MODEL, PICO_CLASSES, args, images)


def torch_on_cpu() -> TorchCuda:
    """The backend of `torch-cuda` with the operator's reference, for a row of RUNTIMES that a test puts in."""
    return TorchCuda("cpu")


def onnxruntime_cuda_on_cpu() -> OnnxRuntimeCuda:
    """The backend of `onnxruntime-cuda` on ONNX Runtime's CPU provider: the same float16 graphs."""
    return OnnxRuntimeCuda("CPUExecutionProvider")


def relative_error(actual: np.ndarray, expected: np.ndarray) -> float:
    """Relative L2 error."""
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))
