"""A built candidate as an engine: compiled where its runtime needs that, and held to PyTorch's logits."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qvec_deploy.bench.environment import available_threads
from qvec_deploy.bench.parity import check_parity, parity_images, reference_logits, write_reference
from qvec_deploy.bench.results import Parity
from qvec_deploy.builder.context import BuildContext
from qvec_deploy.builder.weights import load_model
from qvec_deploy.bundle.compile_bundle import compile_engines
from qvec_deploy.bundle.export_bundle import CALIBRATION_IMAGES
from qvec_deploy.bundle.interface import model_metadata
from qvec_deploy.bundle.write import Artifact
from qvec_deploy.datasets import DataConfig
from qvec_deploy.datasets.pixels import pixels_of
from qvec_deploy.datasets.standalone_run import ImagePreprocessor
from qvec_deploy.errors import IncompatibleError
from qvec_deploy.packed import PackedFile
from qvec_deploy.planner import Plan
from qvec_deploy.runtimes.engine_files import WEIGHTS_FILE
from qvec_deploy.runtimes.registry import find_lowering, find_runtime
from qvec_deploy.runtimes.session import Backend, Emulator, ModelWriter
from qvec_deploy.tensors import INPUT_SCALE, Float32


@dataclass(frozen=True)
class EngineFacts:
    """What is known of an engine that was made.

    Attributes:
        missing: What stands in the way of making the engine here; None if nothing.
        parity: Agreement with PyTorch; None where the engine cannot be opened.
        not_run: Why an engine that was made cannot be opened here; None if it can.
    """

    missing: str | None
    parity: Parity | None
    not_run: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """As JSON values."""
        parity = self.parity.model_dump() if self.parity is not None else None
        return {"missing": self.missing, "parity": parity, "not_run": self.not_run}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> EngineFacts:
        """What `as_dict` gave."""
        parity = values["parity"]
        return cls(values["missing"], Parity(**parity) if parity is not None else None, values["not_run"])


def make_engine(plan: Plan, context: BuildContext, directory: Path, timings: Path) -> EngineFacts:
    """Reference logits from PyTorch into the directory, then the engine against them, where it can be opened.

    Args:
        timings: Folder of what compilers have measured; later builds read it.

    Raises:
        IncompatibleError: The engine computes something else.
    """
    recipe, runtime, lowering = plan.recipe, plan.recipe.target.runtime, plan.recipe.target.lowering
    with context.progress.stage("check", recipe.name):
        logits = _reference(plan, directory)
        write_reference(directory, logits)
        row = find_runtime(runtime)
        backend, threads = row.load(), recipe.target.threads or available_threads()
        calibrates = find_lowering(runtime, lowering).calibrates_activations
        if calibrates and not isinstance(backend, ModelWriter):
            _write_activations(plan, context, directory)
        if find_lowering(runtime, lowering).carries_kernels:
            _write_kernels(directory)
        missing = row.cannot_build(lowering)
        if missing is not None:
            _check_emulation(backend, directory, runtime, lowering, threads, logits)
            return EngineFacts(missing, None)
        if isinstance(backend, ModelWriter):
            images = context.activation_images(plan) if calibrates else []
            shown = np.concatenate(images)[:CALIBRATION_IMAGES] if images else np.zeros(0, np.float32)
            batches = [shown[start : start + 16] for start in range(0, len(shown), 16)]
            metadata = model_metadata(plan, context.class_names)
            backend.write_model(directory, lowering, batches, threads, metadata, _pixels(plan))
        if row.compiles:
            compile_engines(recipe.target, directory, timings, context.progress)
        not_run = row.missing(lowering)
        if not_run is not None:  # it is built for GPUs that are elsewhere
            _check_emulation(backend, directory, runtime, lowering, threads, logits)
            return EngineFacts(None, None, not_run)
        with backend.open(directory, lowering, threads) as session:
            return EngineFacts(None, check_parity(session, runtime, lowering, logits))


def answers_here(artifact: Artifact) -> bool:
    """Whether its engine can be opened here, or what it computes be emulated."""
    backend = find_runtime(artifact.plan.recipe.target.runtime).load()
    return artifact.runs or isinstance(backend, Emulator)


def _check_emulation(
    backend: Backend, directory: Path, runtime: str, lowering: str, threads: int, logits: Float32
) -> None:
    """Hold the graph of an engine that cannot be opened here to PyTorch, where it can be emulated."""
    if isinstance(backend, Emulator):
        with backend.emulate(directory, lowering, threads) as session:
            check_parity(session, runtime, lowering, logits)


def engine_outputs(artifact: Artifact, batches: Sequence[Float32]) -> Float32:
    """Logits (images, classes) of a built engine, or of PyTorch with its weights where it cannot be opened here."""
    recipe, model = artifact.plan.recipe, artifact.plan.architecture
    if not artifact.runs:
        weights, args = PackedFile.open(artifact.directory / WEIGHTS_FILE), recipe.receiver.model_args
        return np.concatenate([reference_logits(weights, model.name, model.classes, args, batch) for batch in batches])
    threads = recipe.target.threads or available_threads()
    backend = find_runtime(recipe.target.runtime).load()
    with backend.open(artifact.directory, recipe.target.lowering, threads) as session:
        return np.concatenate([session.run(batch) for batch in batches])


def _reference(plan: Plan, directory: Path) -> Float32:
    """The weight file is mapped only while PyTorch reads it: its pages would count while the engine loads."""
    model, args = plan.architecture, plan.recipe.receiver.model_args
    weights = PackedFile.open(directory / WEIGHTS_FILE)
    images, config = parity_images(model.input_shape), _pixels(plan)
    if config is not None:  # as the engine is given them
        preprocessor = ImagePreprocessor(model.data_config)
        images = np.stack([preprocessor.normalised(each) for each in pixels_of(images, config.mean, config.std)])
    return reference_logits(weights, model.name, model.classes, args, images)


def _pixels(plan: Plan) -> DataConfig | None:
    """The preprocessing whose normalisation is a part of the model; None where none is."""
    in_graph = plan.recipe.target.preprocessing == "in_graph"
    return DataConfig.from_mapping(plan.architecture.data_config) if in_graph else None


def _write_kernels(directory: Path) -> None:
    """The GPU's kernels, which a device compiles itself where they are missing."""
    from qvec_deploy.runtimes.kernels.kernel_file import write_kernels

    try:
        write_kernels(directory)
    except IncompatibleError as error:
        warnings.warn(f"`compile` will need triton on the device, for here {error.message}", stacklevel=2)


def _write_activations(plan: Plan, context: BuildContext, directory: Path) -> None:
    """What activations' grids are put on; needed on the device that compiles the engine."""
    from qvec_deploy.runtimes.graph.activations import calibrate_amax, write_amax

    weights = PackedFile.open(directory / WEIGHTS_FILE)
    floats = [name for name, info in weights.tensors.items() if info.scheme is None and not name.endswith(INPUT_SCALE)]
    model = load_model(plan, ((name, weights.array(name).astype(np.float32)) for name in floats), strict=False)
    write_amax(
        directory, calibrate_amax(model, weights, context.activation_images(plan), plan.recipe.target.calibrator)
    )
