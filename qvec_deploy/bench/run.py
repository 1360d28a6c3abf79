"""Engines side by side: accuracy, latency and footprint of everything that was built, in one report."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from qvec_deploy.bench.accuracy import Accuracy, compare
from qvec_deploy.bench.environment import Environment, capture_environment, complete_environment
from qvec_deploy.bench.evaluation import answers_of, measure_answers
from qvec_deploy.bench.footprint import Footprint, probe
from qvec_deploy.bench.gpu_watch import watch_gpu
from qvec_deploy.bench.latency import LatencySamples, require_flushable
from qvec_deploy.bench.latency_runs import blocks_asked, measure_latencies, timed_sizes
from qvec_deploy.bench.layers import NO_LAYERS, measure_layers
from qvec_deploy.bench.parity import check_parity, read_reference
from qvec_deploy.bench.pinned_cores import held_to
from qvec_deploy.bench.predictions import Predictions, describe_images, predictions_of
from qvec_deploy.bench.results import Candidate, Donor, LayerError, Model, Patch, Report, Role
from qvec_deploy.bench.resume import Journal, describe_engine
from qvec_deploy.bench.warnings import (
    Finding,
    accuracy_findings,
    headroom_finding,
    latency_findings,
    machine_findings,
)
from qvec_deploy.datasets import DataConfig, DatasetSpec, OpenedDataset, open_dataset
from qvec_deploy.packed import PackedFile
from qvec_deploy.progress import Progress
from qvec_deploy.recipe import Evaluate, Measure, Recipe
from qvec_deploy.runtimes.bits import runtime_bits_per_weight
from qvec_deploy.runtimes.engine_files import MODEL_FILE, WEIGHTS_FILE
from qvec_deploy.runtimes.registry import Session, find_target
from qvec_deploy.tensors import INPUT_SCALE
from qvec_deploy.vectors.short_names import short_names

_PRELOAD = {
    "onnxruntime": ["onnxruntime"],
    "onnxruntime-cuda": ["onnxruntime"],
    "torch-cuda": ["torch", "timm", "torch._dynamo"],  # a custom operator's first call imports the last
    "tensorrt": ["tensorrt"],
}
"""What is in memory before an engine is loaded: the runtime itself is not the engine's."""


@dataclass(frozen=True)
class Contender:
    """An engine on disk that is to be measured.

    Attributes:
        name: Its name in the table.
        role: Its role in the report.
        recipe: What it was built from.
        directory: Holds model.onnx and the packed weights.
        lowering: What it is run with.
        threads: Threads of its session.
        sources: Vectors in its patch and their mixing weights.
        layer_errors: Relative quantization error by layer.
        control: What stands in for the vector in its patch, in words; None for a real one.
    """

    name: str
    role: Role
    recipe: Recipe
    directory: Path
    lowering: str
    threads: int
    sources: tuple[tuple[str, float], ...]
    layer_errors: Mapping[str, float]
    control: str | None = None


@dataclass(frozen=True)
class Bench:
    """What to measure.

    Attributes:
        title: Title of the report.
        recipe: Name of the recipe or comparison.
        model: What the engines take and give.
        evaluate: Labelled images; None leaves accuracy out.
        data_root: The images' folder, resolved.
        measure: How latency is measured.
        batch_sizes: Batch sizes whose latency is measured.
        selected: The contender that ships, if any.
        baseline: The contender that speed-ups refer to.
        alone: Held while load times and latencies are measured: nothing else of a sweep runs then.
        profile: Measure load times, memory and times by layer too.
    """

    title: str
    recipe: str
    model: Model
    evaluate: Evaluate | None
    data_root: Path | None
    measure: Measure
    batch_sizes: tuple[int, ...]
    selected: str | None
    baseline: str
    alone: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext
    profile: bool = True


@dataclass(frozen=True)
class Measured:
    """What measuring gives.

    Attributes:
        report: The measurements.
        predictions: Every engine's classes; None without labelled images.
    """

    report: Report
    predictions: Predictions | None


def open_images(bench: Bench) -> OpenedDataset | None:
    """The labelled images of a bench; None without any.

    Raises:
        RecipeError, StorageError, IncompatibleError: As `open_dataset`.
    """
    if bench.evaluate is None:
        return None
    evaluate = bench.evaluate
    spec = DatasetSpec(evaluate.dataset, evaluate.split, bench.data_root, evaluate.limit)
    config = DataConfig.from_mapping(bench.model.data_config)
    return open_dataset(spec, config, expected_classes=bench.model.classes)


def measure_contenders(
    contenders: Sequence[Contender], bench: Bench, images: OpenedDataset | None, progress: Progress
) -> Measured:
    """Measure all contenders: each alone in a fresh process for its footprint, then interleaved.

    Args:
        contenders: The engines, in the order of the table.
        bench: What to measure.
        images: As `open_images` opened them.
        progress: Shows the stages.

    Raises:
        QvecError: An engine cannot be opened or gives nonsense.
    """
    threads = max(contender.threads for contender in contenders)
    on_cpu = [c.threads for c in contenders if c.recipe.target.runtime == "onnxruntime"]
    with contextlib.ExitStack() as stack:
        stack.enter_context(held_to(bench.measure.cores, max(on_cpu, default=1)))
        with bench.alone():  # the machine's load is what others do, and not what the rest of a sweep does
            environment = capture_environment(threads, bench.measure.cores)
            footprints = _footprints(contenders, bench, progress) if bench.profile else {}
        watch = stack.enter_context(watch_gpu()) if len(on_cpu) < len(contenders) else None
        with progress.stage("load"):
            sessions = _load(contenders, bench, stack)
        batch_size = bench.evaluate.batch_size if bench.evaluate is not None else 1
        journal = None
        if images is not None:
            journal = Journal(partial(_described, contenders, bench, images, batch_size, environment))
        accuracies = measure_answers(sessions, images, batch_size, progress, journal)
        with bench.alone():
            latencies = measure_latencies(sessions, images, bench.batch_sizes, bench.measure, progress, watch)
            environment = complete_environment(environment, watch.state() if watch is not None else None)
            layers = measure_layers(contenders, bench, threads, progress) if bench.profile else NO_LAYERS
    full = next((accuracies.get(c.name) for c in contenders if c.role == "float"), None)
    candidates = tuple(
        layers.fill(_candidate(c, accuracies, [batch[c.name] for batch in latencies], footprints.get(c.name), full))
        for c in contenders
    )
    findings = (*machine_findings(environment), *_findings(accuracies, latencies, contenders, bench))
    report = replace(_report(bench, images, environment, candidates), warnings=findings, device=layers.device)
    config = DataConfig.from_mapping(bench.model.data_config)
    return Measured(report, predictions_of(accuracies, images, config) if images is not None else None)


def _load(contenders: Sequence[Contender], bench: Bench, stack: contextlib.ExitStack) -> dict[str, Session]:
    """Every engine, open for as long as the stack; no latency of one that computes something else."""
    sessions = {c.name: stack.enter_context(_open(c)) for c in contenders}
    if bench.measure.l2 == "cold":
        require_flushable(sessions)
    for contender in contenders:
        reference = read_reference(contender.directory)
        check_parity(sessions[contender.name], contender.recipe.target.runtime, contender.lowering, reference)
    return sessions


def _report(
    bench: Bench, images: OpenedDataset | None, environment: Environment, candidates: tuple[Candidate, ...]
) -> Report:
    return Report(
        title=bench.title,
        recipe=bench.recipe,
        dataset=bench.evaluate.dataset if bench.evaluate else "none",
        split=bench.evaluate.split if bench.evaluate else "none",
        images=len(images) if images is not None else 0,
        candidates=candidates,
        baseline=bench.baseline,
        selected=bench.selected,
        warmup=bench.measure.warmup,
        environment=environment,
        warnings=(),
        created_by=f"qvec-deploy {version('qvec-deploy')}",
        class_names=images.class_names if images is not None else (),
    )


def _described(
    contenders: Sequence[Contender], bench: Bench, images: OpenedDataset, batch_size: int, environment: Environment
) -> dict[str, Any]:
    """What the answers of a run depend on."""
    return {
        "engines": {
            c.name: describe_engine(c.directory, c.recipe.target.runtime, c.lowering, c.threads) for c in contenders
        },
        "images": describe_images(images, DataConfig.from_mapping(bench.model.data_config)),
        "modified": images.modified(),
        "batch_size": batch_size,
        "cpu": environment.cpu,
        "packages": environment.packages,
    }


def _open(contender: Contender) -> contextlib.AbstractContextManager[Session]:
    target = find_target(contender.recipe.target.runtime)
    return target.open(contender.directory, contender.lowering, contender.threads)


def _footprints(contenders: Sequence[Contender], bench: Bench, progress: Progress) -> dict[str, Footprint]:
    """Each alone in a fresh process."""
    footprints = {}
    with progress.stage("footprint") as advance:
        for index, contender in enumerate(contenders):
            footprints[contender.name] = _probe(contender, bench.model.input_shape)
            advance(index + 1, len(contenders))
    return footprints


def _probe(contender: Contender, input_shape: tuple[int, int, int]) -> Footprint:
    arguments = {
        "runtime": contender.recipe.target.runtime,
        "directory": str(contender.directory),
        "lowering": contender.lowering,
        "threads": contender.threads,
    }
    return probe(
        "qvec_deploy.runtimes.registry:open_engine",
        arguments,
        input_shape=input_shape,
        preload=_PRELOAD[contender.recipe.target.runtime],
    )


def _findings(
    accuracies: Mapping[str, Accuracy],
    latencies: Iterable[Mapping[str, LatencySamples]],
    contenders: Sequence[Contender],
    bench: Bench,
) -> list[Finding]:
    findings, sizes = [], timed_sizes(bench.batch_sizes, bench.measure)
    for size, batch in zip(sizes, latencies, strict=True):
        findings += latency_findings(batch, bench.baseline, *blocks_asked(size, sizes, bench.measure))
    plain = next((c.name for c in contenders if c.role == "ptq"), None)
    for contender in contenders:
        if contender.role == "patched" and plain is not None and plain in accuracies:
            paired = compare(accuracies[contender.name], accuracies[plain])
            findings += accuracy_findings(contender.name, plain, paired.gained, paired.lost, paired.count)
    full = next((c.name for c in contenders if c.role == "float"), None)
    if plain in accuracies and full in accuracies:
        findings += headroom_finding(str(plain), accuracies[str(plain)].top1, accuracies[str(full)].top1)
    return findings


def _candidate(
    contender: Contender,
    accuracies: Mapping[str, Accuracy],
    latency: Sequence[LatencySamples],
    footprint: Footprint | None,
    full: Accuracy | None,
) -> Candidate:
    weights = PackedFile.open(contender.directory / WEIGHTS_FILE)
    accuracy = accuracies.get(contender.name)
    recipe = contender.recipe
    patch = None
    if recipe.lam != 0:
        names = short_names([label for label, _ in contender.sources])
        donors = tuple(Donor(name, share) for name, (_, share) in zip(names, contender.sources, strict=True))
        patch = Patch(recipe.patch_scale, donors, contender.control)
    candidate = Candidate(
        name=contender.name,
        role=contender.role,
        scheme=recipe.quantize.scheme(),
        method=recipe.quantize.method,
        skip=recipe.quantize.skip,
        patch=patch,
        runtime=recipe.target.runtime,
        lowering=contender.lowering,
        stored_bytes=sum((contender.directory / name).stat().st_size for name in (MODEL_FILE, WEIGHTS_FILE)),
        stored_bits_per_weight=stored_bits_per_weight(weights),
        runtime_bits_per_weight=runtime_bits_per_weight(weights, recipe.target.runtime, contender.lowering),
        latency=tuple(latency),
        footprint=footprint,
        layer_errors=tuple(LayerError(layer, error) for layer, error in contender.layer_errors.items()),
    )
    if accuracy is None:
        return candidate
    others = {name: compare(accuracy, other) for name, other in accuracies.items() if name != contender.name}
    return replace(candidate, accuracy=answers_of(accuracy, full), paired=others)


def stored_bits_per_weight(weights: PackedFile) -> float:
    """Bits a quantized weight takes in the file, scales and AWQ's factors included; 32 where nothing is quantized."""
    bits = count = 0
    for name, info in weights.tensors.items():
        if info.scheme is not None and info.scale is not None:
            bits += 8 * (info.data.size + info.scale.size)
            count += info.shape[0] * info.shape[1]
        elif name.endswith(INPUT_SCALE):
            bits += 8 * info.data.size
    return bits / count if count else 32.0
