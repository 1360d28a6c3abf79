"""The pipeline, top to bottom: a recipe becomes engines, the engines a measured bundle. Read this first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from qvec_deploy.bench.gates import judge
from qvec_deploy.bench.latency import garbage_collector_off
from qvec_deploy.bench.pinned_cores import check_cores
from qvec_deploy.bench.results import Parity, Report, Role
from qvec_deploy.bench.run import Bench, Contender, measure_contenders, open_images
from qvec_deploy.bench.selection import Selection
from qvec_deploy.bench.warnings import Finding, MeasurementWarning
from qvec_deploy.build.context import Workshop
from qvec_deploy.build.engine import check_engine, engine_outputs
from qvec_deploy.build.weights import Weight, make_weights
from qvec_deploy.bundle.bundle import Bundle, available_threads
from qvec_deploy.bundle.write import Artifact, Finished, finish, model_of, unverified
from qvec_deploy.io.files import staging_directory, unlink_files, write_bytes
from qvec_deploy.packed import PackedFile, pack, write_packed
from qvec_deploy.plan import Plan
from qvec_deploy.progress import Advance
from qvec_deploy.recipe import FLOAT_BITS, Recipe
from qvec_deploy.runtimes.engine_files import MODEL_FILE, WEIGHTS_FILE
from qvec_deploy.runtimes.torch_cuda.torch_session import write_structure
from qvec_deploy.tensors import Float32, PackedTensor, QuantizedTensor

if TYPE_CHECKING:
    import onnx

    from qvec_deploy.bench.predictions import Predictions
    from qvec_deploy.build.select.choose import Choice


def build(recipe: Recipe, directory: Path, workshop: Workshop, *, caches: Path | None = None) -> Artifact:
    """Build one candidate into a directory: plan, patch, quantize, pack, lower, compile.

    Args:
        recipe: What is wanted, without its baselines and variants.
        directory: Where its files go.
        workshop: What candidates share.
        caches: Folder of what compilers have measured, for later builds; the one that holds `directory` by default.

    Raises:
        QvecError: The recipe, a file or the machine is not up to it; nothing is measured then.
    """
    with garbage_collector_off():  # a build allocates millions of small objects and leaves hardly any garbage
        return _build(recipe, directory, workshop, caches or directory.resolve().parent)


def _build(recipe: Recipe, directory: Path, workshop: Workshop, caches: Path) -> Artifact:
    with workshop.progress.stage("plan", recipe.name):
        plan = workshop.plan(recipe)
    made = workshop.make("engine", plan, directory, partial(_make_engine, plan, workshop, caches))
    parity = Parity(**made["parity"]) if made["parity"] is not None else None
    control = workshop.control(recipe)
    return Artifact(plan, directory, made["missing"], parity, made["errors"], tuple(made["notes"]), control)


def _make_engine(plan: Plan, workshop: Workshop, caches: Path, directory: Path) -> dict[str, Any]:
    """The weights of a candidate, its graph, and its engine where it has one; what is known of them as JSON values."""
    made = workshop.make("weights", plan, directory, partial(_make_weights, plan, workshop))
    with workshop.progress.stage("check", plan.recipe.name):
        missing, parity = check_engine(plan, directory, caches, workshop.progress)
    return {**made, "missing": missing, "parity": parity.model_dump() if parity is not None else None}


def _make_weights(plan: Plan, workshop: Workshop, directory: Path) -> dict[str, Any]:
    """What every lowering of a candidate is made from."""
    recipe = plan.recipe
    with workshop.progress.stage("quantize", recipe.name) as advance:
        images = workshop.calibration_images(plan)
        weights = make_weights(plan, workshop.receiver(recipe), workshop.sources(recipe), images, advance)
        count = len(weights.layout)
        write_packed(directory / WEIGHTS_FILE, weights.layout, _packed(weights.tensors, count, advance))
    skeleton = workshop.skeleton(plan)
    with workshop.progress.stage("lower", recipe.name):
        _write_graph(skeleton, directory)
        write_structure(directory, plan.architecture, recipe.receiver.model_args)
    return {"errors": dict(weights.errors), "notes": list(weights.notes)}


def run(recipe: Recipe, directory: Path, *, force: bool = False, workshop: Workshop | None = None) -> Bundle:
    """Build a recipe with its baselines and variants, measure all of them, and leave a bundle.

    Args:
        recipe: What is wanted.
        directory: The bundle; it appears whole or not at all.
        force: Replace an existing bundle.
        workshop: Progress and offline switch, and what is shared with other builds.

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
        check_cores(recipe.measure.cores, _threads(recipe) if recipe.target.runtime == "onnxruntime" else 1)
        images = open_images(bench)  # a wrong folder is refused before anything is built
        with workshop.progress.stage("coordinates", recipe.name):
            unknown = workshop.compare_coordinates(plan)
        choice = _choose(recipe, plan, workshop)
        resolved, candidates = _candidates(recipe, choice)
        artifacts, caches = {}, directory.resolve().parent
        for candidate in candidates:
            place = Path(scratch) / candidate.name
            place.mkdir()
            artifacts[candidate.name] = build(candidate, place, workshop, caches=caches)
        selection = _confirm(choice, artifacts, plan, workshop)
        shipped = artifacts[selection.shipped if selection is not None else recipe.name]
        report = predictions = None
        if not any(artifact.missing for artifact in artifacts.values()):  # one runtime may lack a single lowering
            contenders = [_contender(artifact, resolved, shipped) for artifact in artifacts.values()]
            bench = replace(bench, selected=shipped.plan.recipe.name, alone=workshop.alone)
            measured = measure_contenders(contenders, bench, images, workshop.progress)
            predictions = measured.predictions
            report = _judged(measured.report, resolved, shipped, selection, artifacts, unknown)
        done = _finished(resolved, shipped, artifacts, report, predictions, selection, workshop)
        for kept in filter(None, (done.shipped, done.plain)):
            unlink_files(kept.directory)  # onnx refuses weights that have a second name, such as on a sweep's shelf
        finish(staging, done)
    return Bundle.open(directory)


def _choose(recipe: Recipe, plan: Plan, workshop: Workshop) -> Choice | None:
    if recipe.select is None:
        return None
    from qvec_deploy.build.select.choose import choose

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
    from qvec_deploy.build.select.choose import confirm

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
    predictions: Predictions | None,
    selection: Selection | None,
    workshop: Workshop,
) -> Finished:
    candidate = shipped.plan.recipe
    sources = workshop.fingerprints(recipe)
    unknown = unverified(recipe, candidate, selection)
    plain = next((a for a in artifacts.values() if _is_plain(a.plan.recipe, candidate)), None) if unknown else None
    return Finished(recipe, shipped, plain, sources, report, predictions, selection, workshop.progress.timings_s)


def _packed(
    tensors: Iterator[tuple[str, Weight]], total: int, advance: Advance
) -> Iterator[tuple[str, PackedTensor | Float32]]:
    for count, (name, value) in enumerate(tensors):
        yield name, pack(value) if isinstance(value, QuantizedTensor) else value
        advance(count + 1, total)


def _write_graph(skeleton: onnx.ModelProto, directory: Path) -> None:
    from qvec_deploy.bundle.verify import check_graph
    from qvec_deploy.runtimes.graph.stored import attach_weights

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
        threads=_threads(own),
        sources=artifact.plan.sources,
        layer_errors=artifact.layer_errors,
        control=artifact.control,
    )


def _threads(recipe: Recipe) -> int:
    return recipe.target.threads or available_threads()


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
