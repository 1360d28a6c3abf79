"""Engines side by side: accuracy, latency and footprint of everything that was built, in one report."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from typing import Any

from qvec_deploy import formatting
from qvec_deploy.bench.accuracy import Accuracy, Answered, compare
from qvec_deploy.bench.entries import BenchEntry, BenchOptions, shared_answers
from qvec_deploy.bench.environment import Environment, capture_environment, complete_environment
from qvec_deploy.bench.evaluation import answers_of, measure_answers
from qvec_deploy.bench.footprint import Footprint, probe
from qvec_deploy.bench.gpu_watch import watch_gpu
from qvec_deploy.bench.latency import LatencySamples, require_flushable
from qvec_deploy.bench.latency_runs import blocks_asked, measure_latencies, timed_sizes
from qvec_deploy.bench.layers import NO_LAYERS, measure_layers
from qvec_deploy.bench.parity import check_parity, read_reference
from qvec_deploy.bench.pinned_cores import pinned_to_cores
from qvec_deploy.bench.predictions import Predictions, describe_images, predictions_of
from qvec_deploy.bench.receiver_doubts import receiver_finding
from qvec_deploy.bench.results import Candidate, LayerError, Patch, PatchDonor, Report
from qvec_deploy.bench.resume import EvaluationJournal, describe_engine
from qvec_deploy.bench.warnings import (
    Finding,
    accuracy_findings,
    emulation_findings,
    headroom_finding,
    image_findings,
    latency_findings,
    machine_findings,
)
from qvec_deploy.datasets import DataConfig, DatasetSpec, OpenedDataset, open_dataset
from qvec_deploy.packed import PackedFile
from qvec_deploy.progress import Progress
from qvec_deploy.runtimes.engine_files import MODEL_FILE, WEIGHTS_FILE
from qvec_deploy.runtimes.registry import find_runtime, products_of, runtime_bits_per_weight
from qvec_deploy.runtimes.session import Emulator, Session
from qvec_deploy.tensors import INPUT_SCALE
from qvec_deploy.vectors.short_names import short_names


@dataclass(frozen=True)
class BenchResult:
    """What measuring gives.

    Attributes:
        predictions: Every engine's classes; None without labelled images.
    """

    report: Report
    predictions: Predictions | None


def open_images(options: BenchOptions, progress: Progress) -> OpenedDataset | None:
    """The labelled images of a bench; None without any."""
    if options.evaluate is None:
        return None
    evaluate, model = options.evaluate, options.model
    spec = DatasetSpec(
        evaluate.dataset,
        evaluate.split,
        options.data_root,
        evaluate.limit,
        evaluate.class_order,
        model.class_names,
    )
    config = DataConfig.from_mapping(model.data_config)
    with progress.stage("images", evaluate.dataset) as advance:
        return open_dataset(spec, config, expected_classes=model.classes, advance=advance)


def measure_engines(
    entries: Sequence[BenchEntry],
    options: BenchOptions,
    images: OpenedDataset | None,
    progress: Progress,
    known: Answered | None = None,
) -> BenchResult:
    """Measure all entries: each alone in a fresh process for its footprint, then interleaved.

    Args:
        known: Answers of some of them to all images, by name.
    """
    threads = max(entry.threads for entry in entries)
    emulated = [entry.name for entry in entries if entry.emulated]
    timed = not emulated  # what runs here would be compared with what does not
    on_cpu = [c.threads for c in entries if c.recipe.target.on_cpu]
    with contextlib.ExitStack() as stack:
        stack.enter_context(pinned_to_cores(options.measure.cores, max(on_cpu, default=1)))
        with options.alone():  # the machine's load is what others do, and not what the rest of a sweep does
            environment = capture_environment(threads, options.measure.cores)
            footprints = _footprints(entries, options, progress) if options.profile and timed else {}
        watch = stack.enter_context(watch_gpu()) if timed and len(on_cpu) < len(entries) else None
        with progress.stage("load"):
            sessions = _load(entries, options, stack)
        batch_size = options.evaluate.batch_size if options.evaluate is not None else 1
        journal, shared = None, {}
        if images is not None:
            shared = shared_answers(entries, options.selected, apart=options.selected is None)
            shared = {name: other for name, other in shared.items() if name not in (known or {})}
            journal = EvaluationJournal(partial(_described, entries, options, images, batch_size, environment))
        asked = {name: session for name, session in sessions.items() if name not in shared}
        answers = measure_answers(asked, images, batch_size, progress, journal, known)
        accuracies = {name: answers[shared.get(name, name)] for name in sessions} if answers else {}
        with options.alone():
            latencies = []
            if timed:
                latencies = measure_latencies(sessions, images, options.batch_sizes, options.measure, progress, watch)
            environment = complete_environment(environment, watch.state() if watch is not None else None)
            layers = measure_layers(entries, options, threads, progress) if options.profile and timed else NO_LAYERS
    full = next((accuracies.get(c.name) for c in entries if c.role == "float"), None)
    candidates = tuple(
        layers.fill(
            replace(
                _candidate(c, accuracies, [batch[c.name] for batch in latencies], footprints.get(c.name), full),
                answers_of=shared.get(c.name),
            )
        )
        for c in entries
    )
    findings = _doubts(accuracies, full, options, images)
    findings += [*image_findings(images), *machine_findings(environment)]
    findings += emulation_findings(emulated)
    findings += _findings(accuracies, latencies, entries, options)
    report = replace(_report(options, images, environment, candidates), warnings=tuple(findings), device=layers.device)
    if images is None:
        return BenchResult(report, None)
    predictions = predictions_of(accuracies, images, DataConfig.from_mapping(options.model.data_config))
    folder = options.data_root.resolve().name if options.data_root is not None else None
    return BenchResult(replace(report, images_folder=folder, images_sha256=predictions.images), predictions)


def _doubts(
    accuracies: Mapping[str, Accuracy], full: Accuracy | None, options: BenchOptions, images: OpenedDataset | None
) -> list[Finding]:
    """Whether the float receiver's answers fit the labels, or the best engine's where it is not among them."""
    if images is None:
        return []
    judged = full or max(accuracies.values(), key=lambda accuracy: accuracy.top1)
    name = next(name for name, accuracy in accuracies.items() if accuracy is judged)
    names = options.model.class_names or images.class_names
    finding = receiver_finding(name, judged, options.model.classes, names)
    return [finding] if finding is not None else []


def _load(entries: Sequence[BenchEntry], options: BenchOptions, stack: contextlib.ExitStack) -> dict[str, Session]:
    """Every engine, open for as long as the stack; no latency of one that computes something else."""
    sessions = {}
    for entry in entries:
        backend = find_runtime(entry.recipe.target.runtime).load()
        opened = backend.emulate if entry.emulated and isinstance(backend, Emulator) else backend.open
        sessions[entry.name] = stack.enter_context(opened(entry.directory, entry.lowering, entry.threads))
    if options.measure.l2 == "cold" and not any(entry.emulated for entry in entries):
        require_flushable(sessions)
    for entry in entries:
        reference = read_reference(entry.directory)
        check_parity(sessions[entry.name], entry.recipe.target.runtime, entry.lowering, reference)
    return sessions


def _report(
    options: BenchOptions, images: OpenedDataset | None, environment: Environment, candidates: tuple[Candidate, ...]
) -> Report:
    return Report(
        title=options.title,
        recipe=options.recipe,
        dataset=options.evaluate.dataset if options.evaluate else "none",
        split=options.evaluate.split if options.evaluate else "none",
        images=len(images) if images is not None else 0,
        candidates=candidates,
        baseline=options.baseline,
        selected=options.selected,
        warmup=options.measure.warmup,
        environment=environment,
        warnings=(),
        created_by=f"qvec-deploy {version('qvec-deploy')}",
        class_names=options.model.class_names or (images.class_names if images is not None else ()),
        preprocessing=formatting.preprocessing(options.model.data_config, options.model.preprocessing_from),
    )


def _described(
    entries: Sequence[BenchEntry],
    options: BenchOptions,
    images: OpenedDataset,
    batch_size: int,
    environment: Environment,
) -> dict[str, Any]:
    """What the answers of a run depend on."""
    return {
        "engines": {
            c.name: describe_engine(c.directory, c.recipe.target.runtime, c.lowering, c.threads) for c in entries
        },
        "images": describe_images(images, DataConfig.from_mapping(options.model.data_config)),
        "modified": images.modified(),
        "batch_size": batch_size,
        "cpu": environment.cpu,
        "packages": environment.packages,
    }


def _footprints(entries: Sequence[BenchEntry], options: BenchOptions, progress: Progress) -> dict[str, Footprint]:
    """Each alone in a fresh process."""
    footprints = {}
    with progress.stage("footprint") as advance:
        for index, entry in enumerate(entries):
            footprints[entry.name] = _probe(entry, options.model.input_shape)
            advance(index + 1, len(entries))
    return footprints


def _probe(entry: BenchEntry, input_shape: tuple[int, int, int]) -> Footprint:
    runtime = find_runtime(entry.recipe.target.runtime)
    arguments = {
        "backend": runtime.backend,
        "directory": str(entry.directory),
        "lowering": entry.lowering,
        "threads": entry.threads,
    }
    return probe(
        "qvec_deploy.runtimes.registry:open_engine",
        arguments,
        input_shape=input_shape,
        preload=runtime.preload,
    )


def _findings(
    accuracies: Mapping[str, Accuracy],
    latencies: Iterable[Mapping[str, LatencySamples]],
    entries: Sequence[BenchEntry],
    options: BenchOptions,
) -> list[Finding]:
    findings, sizes = [], timed_sizes(options.batch_sizes, options.measure)
    for size, batch in zip(sizes, latencies, strict=False):  # none where engines are emulated
        findings += latency_findings(batch, options.baseline, *blocks_asked(size, sizes, options.measure))
    plain = next((c.name for c in entries if c.role == "ptq"), None)
    for entry in entries:
        if entry.role == "patched" and plain is not None and plain in accuracies:
            paired = compare(accuracies[entry.name], accuracies[plain])
            findings += accuracy_findings(entry.name, plain, paired.gained, paired.lost, paired.count)
    full = next((c.name for c in entries if c.role == "float"), None)
    vectors = any(entry.recipe.vector is not None for entry in entries)
    if vectors and plain in accuracies and full in accuracies:
        findings += headroom_finding(str(plain), accuracies[str(plain)].top1, accuracies[str(full)].top1)
    return findings


def _candidate(
    entry: BenchEntry,
    accuracies: Mapping[str, Accuracy],
    latency: Sequence[LatencySamples],
    footprint: Footprint | None,
    full: Accuracy | None,
) -> Candidate:
    weights = PackedFile.open(entry.directory / WEIGHTS_FILE)
    accuracy = accuracies.get(entry.name)
    recipe = entry.recipe
    patch = None
    if recipe.lam != 0:
        names = short_names([label for label, _ in entry.sources])
        donors = tuple(PatchDonor(name, share) for name, (_, share) in zip(names, entry.sources, strict=True))
        patch = Patch(recipe.patch_scale, donors, entry.control)
    candidate = Candidate(
        name=entry.name,
        role=entry.role,
        scheme=recipe.quantize.scheme(),
        method=recipe.quantize.method,
        skip=recipe.quantize.skip,
        patch=patch,
        runtime=recipe.target.runtime,
        lowering=entry.lowering,
        emulated=entry.emulated,
        stored_bytes=sum((entry.directory / name).stat().st_size for name in (MODEL_FILE, WEIGHTS_FILE)),
        stored_bits_per_weight=stored_bits_per_weight(weights),
        runtime_bits_per_weight=runtime_bits_per_weight(
            weights.tensors.values(), recipe.target.runtime, entry.lowering
        ),
        latency=tuple(latency),
        footprint=footprint,
        products=products_of(recipe.target.runtime, entry.directory, entry.lowering),
        layer_errors=tuple(LayerError(layer, error) for layer, error in entry.layer_errors.items()),
    )
    if accuracy is None:
        return candidate
    others = {name: compare(accuracy, other) for name, other in accuracies.items() if name != entry.name}
    return replace(candidate, accuracy=answers_of(accuracy, full), paired=others)


def stored_bits_per_weight(weights: PackedFile) -> float:
    """Bits a quantized weight takes in the file, scales and AWQ's factors included; 32 where nothing is quantized."""
    bits = count = 0
    for name, info in weights.tensors.items():
        if info.scheme is not None and info.scale is not None:
            bits += 8 * (info.data.size + info.scale.size)
            count += math.prod(info.shape)
        elif name.endswith(INPUT_SCALE):
            bits += 8 * info.data.size
    return bits / count if count else 32.0
