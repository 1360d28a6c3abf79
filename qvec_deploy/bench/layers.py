"""Layer by layer: what a runtime's profiler measures, and what the roofline of the device predicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from qvec_deploy.bench.entries import BenchEntry, BenchOptions
from qvec_deploy.bench.parity import parity_images
from qvec_deploy.bench.results import Candidate, LayerTime
from qvec_deploy.bench.roofline.devices import find_gpu_here, measure_device
from qvec_deploy.bench.roofline.operations import count_operations
from qvec_deploy.bench.roofline.predict import mode_of, predict
from qvec_deploy.bench.roofline.roofline_values import Device, Operation, TimePrediction
from qvec_deploy.errors import IncompatibleError
from qvec_deploy.packed import PackedFile
from qvec_deploy.progress import Progress
from qvec_deploy.runtimes.engine_files import WEIGHTS_FILE
from qvec_deploy.runtimes.registry import find_runtime, runtime_bits_per_weight
from qvec_deploy.runtimes.session import Profiler

PROFILED_RUNS = 10


@dataclass(frozen=True)
class _Roofline:
    device: Device
    operations: tuple[Operation, ...]
    runtimes: tuple[str, ...]  # that run on the device

    def predictions(self, entry: BenchEntry, batch_sizes: Sequence[int]) -> tuple[TimePrediction, ...]:
        runtime = entry.recipe.target.runtime
        if runtime not in self.runtimes:
            return ()
        weights = PackedFile.open(entry.directory / WEIGHTS_FILE)
        bits = runtime_bits_per_weight(weights.tensors.values(), runtime, entry.lowering)
        mode = mode_of(runtime, entry.lowering, bits)
        quantized = {name.removesuffix(".weight") for name, info in weights.tensors.items() if info.scheme is not None}
        return tuple(predict(self.operations, quantized, mode, self.device, size) for size in batch_sizes)


@dataclass(frozen=True)
class Layers:
    """What is known of every entry, layer by layer.

    Attributes:
        times: Times by entry; none for a runtime without a profiler.
        predictions: By entry; empty for one that does not run on the device.
        device: That predictions are for, the baseline's; None where it is not known, or where the model's operations
            cannot be counted.
    """

    times: Mapping[str, tuple[LayerTime, ...]]
    predictions: Mapping[str, tuple[TimePrediction, ...]]
    device: Device | None

    def fill(self, candidate: Candidate) -> Candidate:
        """The candidate with its times and predictions."""
        name = candidate.name
        return replace(candidate, layer_times=self.times.get(name, ()), predictions=self.predictions.get(name, ()))


NO_LAYERS = Layers({}, {}, None)


def measure_layers(entries: Sequence[BenchEntry], options: BenchOptions, threads: int, progress: Progress) -> Layers:
    """Profile every engine in a session of its own, measure the CPU where one runs the baseline, and predict.

    Args:
        entries: The engines. Nothing else may be measured meanwhile.
    """
    sizes = sorted(set(options.batch_sizes))
    times, predictions = {}, {}
    with progress.stage("layers") as advance:
        roofline = _draw(entries, options, threads)
        for index, entry in enumerate(entries):
            times[entry.name] = _layer_times(entry, options, sizes[0])
            predictions[entry.name] = roofline.predictions(entry, sizes) if roofline is not None else ()
            advance(index + 1, len(entries))
    return Layers(times, predictions, roofline.device if roofline is not None else None)


def _draw(entries: Sequence[BenchEntry], options: BenchOptions, threads: int) -> _Roofline | None:
    runtimes = {entry.name: entry.recipe.target.runtime for entry in entries}
    on_cpu = find_runtime(runtimes[options.baseline]).device == "cpu"
    model = options.model
    try:
        operations = count_operations(model.name, model.classes, model.args, model.input_shape)
    except (IncompatibleError, ModuleNotFoundError):  # devices need neither torch nor timm
        return None  # the measurements are worth having without it
    listed = None if on_cpu else find_gpu_here()
    device = measure_device(threads) if on_cpu else listed.device if listed is not None else None
    there = tuple(runtime for runtime in runtimes.values() if (find_runtime(runtime).device == "cpu") == on_cpu)
    return _Roofline(device, operations, there) if device is not None else None


def _layer_times(entry: BenchEntry, options: BenchOptions, batch_size: int) -> tuple[LayerTime, ...]:
    """By the runtime's profiler; none where it has none, or where its names cannot be told apart."""
    backend = find_runtime(entry.recipe.target.runtime).load()
    if not isinstance(backend, Profiler):
        return ()
    shape = options.model.input_shape
    images = np.resize(parity_images(shape), (batch_size, *shape))
    try:
        times = backend.profile(entry.directory, entry.lowering, entry.threads, images, PROFILED_RUNS)
    except IncompatibleError:  # the engine has run; its profile alone is not worth losing a build for
        return ()
    return tuple(LayerTime(layer, ms) for layer, ms in times.items())
