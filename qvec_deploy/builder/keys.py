"""Everything that decides what a part of a build is, as JSON values: the keys of the cache."""

from __future__ import annotations

import functools
import hashlib
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from qvec_deploy.bench.environment import available_threads, capture_environment
from qvec_deploy.errors import IncompatibleError
from qvec_deploy.io.checkpoint import Checkpoint
from qvec_deploy.io.made_by import own_text, versions
from qvec_deploy.models import DECIDING_PACKAGES
from qvec_deploy.planner import Plan
from qvec_deploy.runtimes.registry import RUNTIME_PACKAGES, find_runtime
from qvec_deploy.tensors import Float32
from qvec_deploy.vectors.vector_sources import Source

_PACKAGES = (
    "torch",
    "timm",
    "onnx",
    "onnxscript",
    "nvidia-modelopt",
    "numpy",
    "scipy",
    "safetensors",
    "pillow",
    *sorted(RUNTIME_PACKAGES - {"torch"}),
)


STRUCTURE_PACKAGES = (*DECIDING_PACKAGES, "onnx", "onnxscript", "onnx-ir")
"""Packages whose versions decide the exported structure."""


def structure_inputs(plan: Plan) -> dict[str, Any]:
    """What decides the exported structure: the same for every candidate of one model and skip list."""
    receiver, architecture = plan.recipe.receiver, plan.architecture
    return {
        "model": receiver.model,
        "args": dict(receiver.model_args),
        "classes": architecture.classes,
        "input_shape": list(architecture.input_shape),
        "skip": plan.recipe.quantize.skip,
    }


def _structure_key(plan: Plan) -> dict[str, Any]:
    return {**structure_inputs(plan), "code": made_by()}


def coordinates_key(plan: Plan, receiver: Checkpoint, sources: Mapping[str, Source]) -> dict[str, Any]:
    """What decides whether a receiver is in the coordinates of its vectors' donors."""
    hashes = {label: list(source.fingerprints().values()) for label, source in sources.items()}
    return {**_structure_key(plan), "receiver": receiver.fingerprint(), "vectors": hashes}


def weights_key(
    plan: Plan, receiver: Checkpoint, sources: Mapping[str, Source], images: Sequence[Float32]
) -> dict[str, Any]:
    """What decides a candidate's weights and graph."""
    recipe = plan.recipe
    patch = [[share, list(sources[label].fingerprints().values())] for label, share in plan.sources]
    moments = recipe.quantize.calibrated and recipe.quantize.calibration.on == "moments"
    control = recipe.vector.control if recipe.vector is not None and patch else None
    return {
        **_structure_key(plan),
        "receiver": receiver.fingerprint(),
        "weights": receiver.weights,
        "lambda": recipe.lam if patch else 0.0,
        "patch": patch,
        "control": control.model_dump(mode="json") if control is not None else None,
        "moments": [list(source.fingerprints().values()) for source in sources.values()] if moments else [],
        "quantize": recipe.quantize.model_dump(mode="json", exclude={"calibration"}),
        "images": _digest(images),
    }


def selection_key(
    plan: Plan,
    receiver: Checkpoint,
    sources: Mapping[str, Source],
    images: Sequence[Float32],
    looked_at: Mapping[str, Sequence[Float32]],
    labels: Sequence[int] | None,
) -> dict[str, Any]:
    """What decides a selection.

    Args:
        looked_at: Images that methods are calibrated on, by method.
        labels: Those of the images, where they count.
    """
    recipe = plan.recipe
    return {
        **coordinates_key(plan, receiver, sources),
        "weights": receiver.weights,
        "recipe": recipe.model_dump(mode="json", include={"vector", "select", "quantize", "images"}),
        "preprocessing": plan.architecture.data_config,
        "images": _digest(images),
        "looked_at": {method: _digest(each) for method, each in looked_at.items()},
        "labels": [int(label) for label in labels] if labels is not None else None,
    }


def engine_key(plan: Plan, weights: Mapping[str, Any], images: Sequence[Float32]) -> dict[str, Any]:
    """What decides an engine: its weights, the target, and what stands in its way on this machine."""
    target = plan.recipe.target
    runtime = find_runtime(target.runtime)
    on_gpu = runtime.device == "cuda"
    unused: set[str] = set() if runtime.compiles else {"batch_sizes"}
    return {
        **weights,
        "target": target.model_dump(mode="json", exclude=unused),
        "threads": target.threads or available_threads(),
        "missing": [runtime.cannot_build(target.lowering), runtime.missing(target.lowering)],
        "activations": _digest(images),
        "cpu": capture_environment(1).cpu,
        "machine": platform.node() if on_gpu else None,
        "gpu": _gpu() if on_gpu else None,
    }


def _digest(images: Sequence[Float32]) -> str:
    """SHA-256 of decoded images: folders change without their names changing."""
    digest = hashlib.sha256()
    for batch in images:
        digest.update(str(batch.shape).encode())
        digest.update(batch.tobytes())
    return digest.hexdigest()


def _gpu() -> dict[str, Any] | None:
    """The first visible GPU and its driver; None without one."""
    from qvec_deploy.runtimes.cuda_driver import Cuda

    try:
        return asdict(Cuda().gpu)
    except IncompatibleError:
        return None


@functools.cache
def made_by() -> dict[str, str]:
    """What makes things: the packages' versions, and this package's own text."""
    return {**versions(_PACKAGES), "qvec-deploy": own_text()}
