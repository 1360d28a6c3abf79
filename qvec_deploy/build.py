"""The pipeline, top to bottom: a recipe becomes engines, the engines a measured bundle. Read this first."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from qvec_deploy.bundle.bench import Bench, Contender, measure_contenders, open_images
from qvec_deploy.bundle.bundle import Bundle, available_threads
from qvec_deploy.bundle.engine import check_engine, engine_outputs
from qvec_deploy.bundle.finish import Artifact, Finished, finish, model_of, unverified
from qvec_deploy.bundle.progress import Advance, Progress
from qvec_deploy.candidate import Weight, calibration_images, make_weights
from qvec_deploy.checkpoint import Checkpoint
from qvec_deploy.errors import IncompatibleError, QvecError
from qvec_deploy.measure.latency import garbage_collector_off
from qvec_deploy.measure.warnings import Finding, MeasurementWarning
from qvec_deploy.models import head_name
from qvec_deploy.packed import PackedFile, pack, write_packed
from qvec_deploy.plan import Plan, make_plan
from qvec_deploy.recipe import FLOAT_BITS, Recipe
from qvec_deploy.report.gates import judge
from qvec_deploy.report.values import Report, Role
from qvec_deploy.select.values import Selection
from qvec_deploy.store import staging_directory, write_bytes
from qvec_deploy.targets import MODEL_FILE, WEIGHTS_FILE
from qvec_deploy.targets.torch_cuda import write_structure
from qvec_deploy.tensors import Float32, PackedTensor, QuantizedTensor
from qvec_deploy.vectors.sources import Source, open_sources

if TYPE_CHECKING:
    import onnx

    from qvec_deploy.select.choose import Choice


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

    def control(self, recipe: Recipe) -> str | None:
        """What stands in for the vector in a patch, as the recipe or the vector's file says; None for a real one."""
        if recipe.vector is None or recipe.lam == 0:
            return None
        if recipe.vector.control is not None:
            return f"{recipe.vector.control.kind}, seed {recipe.vector.control.seed}"
        found = dict.fromkeys(filter(None, (source.control() for source in self.sources(recipe).values())))
        return "; ".join(found) or None

    def plan(self, recipe: Recipe) -> Plan:
        """Everything that headers decide."""
        return make_plan(recipe, self.receiver(recipe), self.sources(recipe))

    def compare_coordinates(self, plan: Plan) -> list[str]:
        """Hold the receiver against the sketches of its vectors' donors.

        Returns:
            Vectors that bring no sketch, by label.

        Raises:
            IncompatibleError: The receiver is not in a donor's coordinates, or of another base.
        """
        from qvec_deploy.vectors.coordinates import require_same_coordinates
        from qvec_deploy.vectors.geometry import find_geometry

        recipe = plan.recipe
        receiver, geometry = self.receiver(recipe), find_geometry(recipe.receiver.model, recipe.receiver.model_args)
        unknown = []
        for label, source in self.sources(recipe).items() if plan.sources else ():
            sketch = source.sketch()
            if sketch is None:
                unknown.append(label)
                continue
            try:
                require_same_coordinates(receiver.read, sketch, geometry, source.header.scheme)
            except IncompatibleError as error:
                raise IncompatibleError(f"{label}: {error.message}", hint=error.hint) from error
        return unknown

    def plans(self, recipe: Recipe) -> list[Plan]:
        """The plans of all candidates, in the order of `Recipe.candidates`.

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
        write_structure(directory, plan.architecture, recipe.receiver.model_args)
    with workshop.progress.stage("check", recipe.name):
        missing, parity = check_engine(plan, directory, workshop.progress)
    control = workshop.control(recipe)
    return Artifact(plan, directory, missing, parity, weights.errors, weights.notes, control)


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
        workshop.plans(recipe)
        plan = workshop.plan(recipe)
        bench = _bench(recipe, plan)
        images = open_images(bench)  # a wrong folder is refused before anything is built
        with workshop.progress.stage("coordinates", recipe.name):
            unknown = workshop.compare_coordinates(plan)
        choice = _choose(recipe, plan, workshop)
        resolved, candidates = _candidates(recipe, choice)
        artifacts = {}
        for candidate in candidates:
            place = Path(scratch) / candidate.name
            place.mkdir()
            artifacts[candidate.name] = build(candidate, place, workshop)
        selection = _confirm(choice, artifacts, plan, workshop)
        shipped = artifacts[selection.shipped if selection is not None else recipe.name]
        report = None
        if not any(artifact.missing for artifact in artifacts.values()):  # one runtime may lack a single lowering
            contenders = [_contender(artifact, resolved, shipped) for artifact in artifacts.values()]
            bench = replace(bench, selected=shipped.plan.recipe.name)
            report = measure_contenders(contenders, bench, images, workshop.progress)
            report = _judged(report, resolved, shipped, selection, artifacts, unknown)
        finish(staging, _finished(resolved, shipped, artifacts, report, selection, workshop))
    return Bundle.open(directory)


def _choose(recipe: Recipe, plan: Plan, workshop: Workshop) -> Choice | None:
    if recipe.select is None:
        return None
    from qvec_deploy.select.choose import choose

    with workshop.progress.stage("select", recipe.name) as advance:
        return choose(recipe, plan, workshop.receiver(recipe), workshop.sources(recipe), advance)


def _candidates(recipe: Recipe, choice: Choice | None) -> tuple[Recipe, tuple[Recipe, ...]]:
    """The recipe with its selection made, and everything that is built."""
    if choice is None:
        return recipe, recipe.candidates()
    return choice.recipe, choice.recipe.candidates(choice.finalists)


def _confirm(
    choice: Choice | None, artifacts: Mapping[str, Artifact], plan: Plan, workshop: Workshop
) -> Selection | None:
    """Hold the finalists' built engines against the float one, on images that chose nothing."""
    if choice is None:
        return None
    from qvec_deploy.select.choose import confirm

    outputs = {name: partial(engine_outputs, artifact) for name, artifact in artifacts.items()}
    on = "PyTorch" if any(artifact.missing for artifact in artifacts.values()) else "engine"
    with workshop.progress.stage("confirm", choice.recipe.name):
        return confirm(choice, outputs, outputs["float"], plan, on=on)


def _judged(
    report: Report,
    recipe: Recipe,
    shipped: Artifact,
    selection: Selection | None,
    artifacts: Mapping[str, Artifact],
    unknown: Sequence[str],
) -> Report:
    """The report with the selection, its doubts and the recipe's gates."""
    findings = [Finding(MeasurementWarning.COORDINATES_UNKNOWN, recipe.name, f"{label}.") for label in unknown]
    findings += [
        Finding(MeasurementWarning.METHOD_LIMITED, name, note)
        for name, artifact in artifacts.items()
        for note in artifact.notes
    ]
    for curve in selection.curves if selection is not None else ():
        if curve.at_edge:
            detail = f"The best lambda of {curve.method}, {curve.best:g}, is an end of the grid."
            findings.append(Finding(MeasurementWarning.LAMBDA_AT_EDGE, recipe.name, detail))
    candidate = shipped.plan.recipe
    reason = unverified(recipe, candidate, selection)
    if reason is not None:
        findings.append(Finding(MeasurementWarning.UNVERIFIED, candidate.name, f"{reason.capitalize()}."))
    chosen = replace(report, selection=selection, warnings=(*report.warnings, *findings))
    return replace(chosen, gates=judge(recipe.gates, chosen))


def _finished(
    recipe: Recipe,
    shipped: Artifact,
    artifacts: Mapping[str, Artifact],
    report: Report | None,
    selection: Selection | None,
    workshop: Workshop,
) -> Finished:
    candidate = shipped.plan.recipe
    sources = {recipe.receiver.checkpoint: workshop.receiver(recipe).fingerprint()}
    for source in workshop.sources(recipe).values():
        sources |= source.fingerprints()
    unknown = unverified(recipe, candidate, selection)
    plain = next((a for a in artifacts.values() if _is_plain(a.plan.recipe, candidate)), None) if unknown else None
    return Finished(recipe, shipped, plain, sources, report, selection, workshop.progress.timings_s)


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


def _contender(artifact: Artifact, recipe: Recipe, shipped: Artifact) -> Contender:
    own = artifact.plan.recipe
    return Contender(
        name=own.name,
        role=_role(own, recipe, shipped.plan.recipe),
        recipe=own,
        directory=artifact.directory,
        lowering=own.target.lowering,
        threads=own.target.threads or available_threads(),
        sources=artifact.plan.sources,
        layer_errors=artifact.layer_errors,
        control=artifact.control,
    )


def _role(candidate: Recipe, recipe: Recipe, shipped: Recipe) -> Role:
    """`ptq` is the shipped method without a patch: what the patch is worth is its difference to that."""
    if candidate.quantize.bits in FLOAT_BITS:
        return "float"
    if candidate.name in {variant.name for variant in recipe.variants}:
        return "variant"
    if _is_plain(candidate, shipped):
        return "ptq"
    return "patched" if candidate.name in (shipped.name, recipe.name) else "variant"


def _is_plain(candidate: Recipe, shipped: Recipe) -> bool:
    return candidate.lam == 0 and (candidate.quantize, candidate.target) == (shipped.quantize, shipped.target)


def _bench(recipe: Recipe, plan: Plan) -> Bench:
    root = recipe.evaluate.root if recipe.evaluate is not None else None
    return Bench(
        title=recipe.name,
        recipe=recipe.name,
        model=model_of(plan),
        evaluate=recipe.evaluate,
        data_root=recipe.data_path(root) if root is not None else None,
        measure=recipe.measure,
        batch_sizes=recipe.target.batch_sizes,
        selected=recipe.name,
        baseline=recipe.name if recipe.quantize.bits in FLOAT_BITS else "float",
    )
