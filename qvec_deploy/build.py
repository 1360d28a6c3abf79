"""The pipeline, top to bottom: a recipe becomes engines, the engines a measured bundle. Read this first."""

from __future__ import annotations

import contextlib
import datetime
import gc
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import yaml

from qvec_deploy.bundle.bench import (
    Bench,
    Contender,
    measure_contenders,
    open_images,
    stored_bits_per_weight,
)
from qvec_deploy.bundle.bundle import RECIPE_FILE, Bundle, available_threads
from qvec_deploy.bundle.manifest import Engine, Layer, Manifest, Model, Parity, Vector, hash_files, write_manifest
from qvec_deploy.bundle.parity import (
    PARITY_FILE,
    check_parity,
    parity_images,
    reference_logits,
    write_reference,
)
from qvec_deploy.bundle.progress import Advance, Progress
from qvec_deploy.candidate import Weight, calibration_images, make_weights
from qvec_deploy.checkpoint import Checkpoint
from qvec_deploy.errors import IncompatibleError, QvecError
from qvec_deploy.lower.inmemory import runtime_bits_per_weight
from qvec_deploy.measure.environment import capture_environment
from qvec_deploy.measure.latency import garbage_collector_off
from qvec_deploy.models import head_name
from qvec_deploy.packed import PackedFile, pack, write_packed
from qvec_deploy.plan import Plan, make_plan
from qvec_deploy.recipe import FLOAT_BITS, Recipe
from qvec_deploy.report.values import Report, Role
from qvec_deploy.report.write import write_report
from qvec_deploy.store import sha256_file, staging_directory, write_bytes
from qvec_deploy.targets import MODEL_FILE, WEIGHTS_FILE, find_target
from qvec_deploy.tensors import Float32, PackedTensor, QuantizedTensor
from qvec_deploy.vectors.sources import Source, open_sources

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class Artifact:
    """What one candidate was built into.

    Attributes:
        plan: What was decided.
        directory: Holds the graph, the weights and the reference logits.
        missing: What stood in the way of opening the engine here; None if nothing.
        parity: Agreement with PyTorch; None where the engine could not be opened.
        layer_errors: Relative L2 quantization error by layer.
        notes: What the method could not do.
    """

    plan: Plan
    directory: Path
    missing: str | None
    parity: Parity | None
    layer_errors: Mapping[str, float]
    notes: tuple[str, ...]


@dataclass
class Workshop:
    """What the candidates of one run share: opened sources and exported structures.

    Attributes:
        offline: Use the Hub's local cache only.
        progress: Shows and times the stages.
    """

    offline: bool = False
    progress: Progress = field(default_factory=Progress)
    _receivers: dict[str, Checkpoint] = field(default_factory=dict)
    _skeletons: dict[str, onnx.ModelProto] = field(default_factory=dict)

    def receiver(self, recipe: Recipe) -> Checkpoint:
        """The opened receiver."""
        source = recipe.locate(recipe.receiver.checkpoint)
        if source not in self._receivers:
            self._receivers[source] = Checkpoint.open(source, offline=self.offline)
        return self._receivers[source]

    def sources(self, recipe: Recipe) -> dict[str, Source]:
        """The opened vectors by label."""
        return open_sources(recipe, head_name(recipe.receiver.model), offline=self.offline)

    def plan(self, recipe: Recipe) -> Plan:
        """Everything that headers decide."""
        return make_plan(recipe, self.receiver(recipe), self.sources(recipe))

    def plans(self, recipe: Recipe) -> list[Plan]:
        """The plans of all candidates, the recipe's own last.

        Raises:
            QvecError: As `plan`; the message names the candidate.
        """
        made = []
        for candidate in recipe.candidates():
            try:
                made.append(self.plan(candidate))
            except QvecError as error:
                if candidate.name == recipe.name:
                    raise
                raise type(error)(f"candidate {candidate.name}: {error.message}", hint=error.hint) from error
        return made

    def skeleton(self, plan: Plan) -> onnx.ModelProto:
        """The exported structure; the same for every candidate of one model and skip list."""
        model, skip = plan.recipe.receiver, plan.recipe.quantize.skip
        key = f"{model.model} {sorted(model.model_args.items())} {plan.architecture.classes} {skip}"
        if key not in self._skeletons:
            from qvec_deploy.lower.export import export_skeleton

            with self.progress.stage("export"), _collected():
                self._skeletons[key] = export_skeleton(
                    model.model, plan.architecture.classes, model.model_args, skip, plan.architecture.input_shape
                )
        return self._skeletons[key]


def build(recipe: Recipe, directory: Path, workshop: Workshop) -> Artifact:
    """Build one candidate into a directory: plan, patch, quantize, pack, lower, compile.

    Raises:
        QvecError: The recipe, a file or the machine is not up to it; nothing is measured then.
    """
    with garbage_collector_off():  # a build allocates millions of small objects and leaves hardly any garbage
        return _build(recipe, directory, workshop)


def _build(recipe: Recipe, directory: Path, workshop: Workshop) -> Artifact:
    with workshop.progress.stage("plan", recipe.name):
        plan = workshop.plan(recipe)
    with workshop.progress.stage("quantize", recipe.name) as advance:
        images = calibration_images(recipe, plan.architecture)
        weights = make_weights(plan, workshop.receiver(recipe), workshop.sources(recipe), images, advance)
        count = len(weights.layout)
        write_packed(directory / WEIGHTS_FILE, weights.layout, _packed(weights.tensors, count, advance))
    skeleton = workshop.skeleton(plan)
    with workshop.progress.stage("lower", recipe.name):
        _write_graph(skeleton, directory)
    with workshop.progress.stage("check", recipe.name):
        missing, parity = _check_engine(plan, directory)
    return Artifact(plan, directory, missing, parity, weights.errors, weights.notes)


def run(recipe: Recipe, directory: Path, *, force: bool = False, workshop: Workshop | None = None) -> Bundle:
    """Build a recipe with its baselines and variants, measure all of them, and leave a bundle.

    Args:
        recipe: What is wanted.
        directory: The bundle; it appears whole or not at all.
        force: Replace an existing bundle.
        workshop: Progress and offline switch.

    Raises:
        QvecError: Anything the user can act on; the directory is then as it was before.
    """
    workshop = workshop or Workshop()
    with (
        staging_directory(directory, force=force) as staging,
        TemporaryDirectory(prefix=".candidates.", dir=staging) as scratch,
    ):
        plans = workshop.plans(recipe)
        bench = _bench(recipe, plans[-1])
        images = open_images(bench)  # a wrong folder is refused before anything is built
        artifacts = {}
        for candidate in (plan.recipe for plan in plans):
            place = staging if candidate.name == recipe.name else Path(scratch) / candidate.name
            place.mkdir(exist_ok=True)
            artifacts[candidate.name] = build(candidate, place, workshop)
        own = artifacts[recipe.name]
        report = None
        if own.missing is None:
            contenders = [_contender(artifact, recipe) for artifact in artifacts.values()]
            report = measure_contenders(contenders, bench, images, workshop.progress)
        _finish(staging, recipe, own, report, workshop)
    return Bundle.open(directory)


@contextlib.contextmanager
def _collected() -> Iterator[None]:
    """Collect the garbage that the block makes, without walking the millions of objects that were there before."""
    gc.freeze()
    try:
        yield
    finally:
        gc.collect()
        gc.unfreeze()


def _packed(
    tensors: Iterator[tuple[str, Weight]], total: int, advance: Advance
) -> Iterator[tuple[str, PackedTensor | Float32]]:
    for count, (name, value) in enumerate(tensors):
        yield name, pack(value) if isinstance(value, QuantizedTensor) else value
        advance(count + 1, total)


def _write_graph(skeleton: onnx.ModelProto, directory: Path) -> None:
    from qvec_deploy.bundle.verify import check_graph
    from qvec_deploy.lower.graph import attach_weights

    model = attach_weights(skeleton, PackedFile.open(directory / WEIGHTS_FILE), WEIGHTS_FILE)
    write_bytes(directory / MODEL_FILE, model.SerializeToString(deterministic=True))
    check_graph(directory)


def _check_engine(plan: Plan, directory: Path) -> tuple[str | None, Parity | None]:
    """Reference logits from PyTorch into the directory, then the engine against them, where it can be opened."""
    recipe, model = plan.recipe, plan.architecture
    images, args = parity_images(model.input_shape), recipe.receiver.model_args
    logits = reference_logits(PackedFile.open(directory / WEIGHTS_FILE), model.name, model.classes, args, images)
    write_reference(directory, logits)
    target = find_target(recipe.target.runtime)
    missing = target.missing()
    if missing is not None:
        return missing, None
    threads = recipe.target.threads or available_threads()
    with target.open(directory, recipe.target.lowering, threads) as session:
        return None, check_parity(session, recipe.target.lowering, logits)


def _contender(artifact: Artifact, recipe: Recipe) -> Contender:
    own = artifact.plan.recipe
    return Contender(
        name=own.name,
        role=_role(own, recipe),
        recipe=own,
        directory=artifact.directory,
        lowering=own.target.lowering,
        threads=own.target.threads or available_threads(),
        sources=artifact.plan.sources,
        layer_errors=artifact.layer_errors,
    )


def _role(candidate: Recipe, recipe: Recipe) -> Role:
    if candidate.quantize.bits in FLOAT_BITS:
        return "float"
    if candidate.name not in ("ptq", recipe.name):
        return "variant"
    return "patched" if candidate.lam != 0 else "ptq"


def _bench(recipe: Recipe, plan: Plan) -> Bench:
    root = recipe.evaluate.root if recipe.evaluate is not None else None
    return Bench(
        title=recipe.name,
        recipe=recipe.name,
        model=_model(plan),
        evaluate=recipe.evaluate,
        data_root=recipe.data_path(root) if root is not None else None,
        measure=recipe.measure,
        batch_sizes=recipe.target.batch_sizes,
        selected=recipe.name,
        baseline=recipe.name if recipe.quantize.bits in FLOAT_BITS else "float",
    )


def _model(plan: Plan) -> Model:
    config = {
        key: list(value) if isinstance(value, tuple) else value for key, value in plan.architecture.data_config.items()
    }
    return Model(
        name=plan.architecture.name,
        args=dict(plan.recipe.receiver.model_args),
        classes=plan.architecture.classes,
        input_shape=plan.architecture.input_shape,
        data_config=config,
    )


def _finish(staging: Path, recipe: Recipe, own: Artifact, report: Report | None, workshop: Workshop) -> None:
    """Report, resolved recipe and, last, the manifest."""
    names = [MODEL_FILE, WEIGHTS_FILE, PARITY_FILE, RECIPE_FILE]
    text = yaml.safe_dump(recipe.as_dict(), sort_keys=False, allow_unicode=True)
    write_bytes(staging / RECIPE_FILE, text.encode())
    if report is not None:
        names += [path.name for path in write_report(report, staging)]
    weights = PackedFile.open(staging / WEIGHTS_FILE)
    candidate = own.plan.recipe
    control = candidate.vector.control if candidate.vector is not None else None
    sources = {recipe.receiver.checkpoint: workshop.receiver(recipe).fingerprint()}
    for source in workshop.sources(candidate).values():
        sources |= source.fingerprints()
    manifest = Manifest(
        name=recipe.name,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        recipe_sha256=sha256_file(staging / RECIPE_FILE),
        sources=sources,
        model=_model(own.plan),
        engine=Engine(
            runtime=candidate.target.runtime,
            lowering=candidate.target.lowering,
            threads=candidate.target.threads,
            missing=own.missing,
        ),
        lam=candidate.patch_scale,
        vectors=tuple(Vector(name=name, weight=weight) for name, weight in own.plan.sources),
        control=f"{control.kind}, seed {control.seed}" if control else None,
        stored_bytes=sum((staging / name).stat().st_size for name in (MODEL_FILE, WEIGHTS_FILE)),
        stored_bits_per_weight=stored_bits_per_weight(weights),
        runtime_bits_per_weight=runtime_bits_per_weight(weights, candidate.target.lowering),
        layers=tuple(Layer(name=name, error=error) for name, error in own.layer_errors.items()),
        parity=own.parity,
        versions=capture_environment(candidate.target.threads or available_threads()).packages,
        timings_s={name: round(seconds, 3) for name, seconds in workshop.progress.timings_s.items()},
        files=hash_files(staging, names),
    )
    write_manifest(staging, manifest)


def require_engine(bundle: Bundle) -> None:
    """Refuse a bundle without engine, after it was written.

    Raises:
        IncompatibleError: Its engine could not be built here.
    """
    missing = bundle.manifest.engine.missing
    if missing is not None:
        raise IncompatibleError(
            f"{bundle.directory} is complete but for its engine: {missing}",
            hint="its packed weights and ONNX model can be used; for a CPU engine set target.runtime=onnxruntime",
        )
