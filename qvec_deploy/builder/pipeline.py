"""The pipeline, top to bottom: a recipe becomes engines, the engines a measured bundle. Read this first."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from qvec_deploy.bench.accuracy import Answered
from qvec_deploy.bench.entries import BenchOptions
from qvec_deploy.bench.latency import garbage_collector_off
from qvec_deploy.bench.pinned_cores import check_cores
from qvec_deploy.bench.predictions import Predictions
from qvec_deploy.bench.results import Report
from qvec_deploy.bench.run import measure_engines, open_images
from qvec_deploy.bench.selection import Selection
from qvec_deploy.builder.context import BuildContext
from qvec_deploy.builder.engine import EngineFacts, answers_here, engine_outputs, make_engine
from qvec_deploy.builder.images import open_own_images
from qvec_deploy.builder.measuring import bench_entry, bench_options, is_plain, judged, threads_of
from qvec_deploy.builder.receiver_check import check_receiver
from qvec_deploy.builder.select.choose import Choice, choose, confirm
from qvec_deploy.builder.weights import WeightFacts, write_weights
from qvec_deploy.bundle.bundle import Bundle
from qvec_deploy.bundle.claims import unverified
from qvec_deploy.bundle.write import Artifact, BundleContents, write_bundle
from qvec_deploy.datasets import OpenedDataset
from qvec_deploy.io.cache import kept_cache
from qvec_deploy.io.files import link_files, staging_directory
from qvec_deploy.jobs import apart
from qvec_deploy.planner import Plan
from qvec_deploy.recipe import Recipe


@dataclass(frozen=True)
class BuildResult:
    """A bundle that was just built.

    Attributes:
        report: What was measured; None where an engine cannot be opened here.
    """

    bundle: Bundle
    report: Report | None


def plan(recipe: Recipe, *, offline: bool = False) -> Plan:
    """Everything that is decided before any weight is read: what happens to every tensor.

    Raises:
        QvecError: The recipe, or what headers show, cannot be built.
    """
    return BuildContext(offline).plan(recipe)


def build(recipe: Recipe, directory: Path, *, force: bool = False, context: BuildContext | None = None) -> BuildResult:
    """Build a recipe with its baselines and variants, measure all of them, and leave a bundle.

    What candidates are made of lies beside the directory until it is there, in `.NAME.parts`: a build that was killed
    goes on with it, whatever recipe it is of, for all is found by what it is made from.

    Args:
        directory: The bundle; it appears whole or not at all.
        context: Progress and offline switch, and what is shared with other builds.

    Raises:
        QvecError: Anything the user can act on; the directory is then as it was before.
    """
    context = context or BuildContext()
    parts = directory.parent / f".{directory.name}.parts"
    with (
        apart.ended(),
        staging_directory(directory, force=force) as staging,
        kept_cache(parts) if context.cache is None else nullcontext(context.cache) as cache,
    ):
        context = replace(context, cache=cache)
        apart.submit("qvec_deploy.models:load")  # PyTorch is needed soon, and takes seconds to load
        timings = directory.resolve().parent  # of tactics, which later builds in the same place read
        *_, plan = context.plans(recipe)  # refuses what headers show to be wrong in any candidate
        if recipe.select is not None:
            plan = context.plan(recipe)  # the last candidate has another method, perhaps
        check_cores(recipe.measure.cores, threads_of(recipe) if recipe.target.on_cpu else 1)
        options = bench_options(recipe, plan)
        images = open_images(options, context.progress)  # a wrong folder is refused before anything is built
        own_names = images.class_names if images is not None else ()
        context = replace(context, class_names=plan.class_names.names or own_names)
        remarks = open_own_images(recipe, plan).remarks if recipe.images is not None else ()
        with context.progress.stage("coordinates", recipe.name):
            unknown = context.unknown_coordinates(plan)
        known = _believed(recipe, images, options, context, timings)
        choice = _choose(recipe, plan, context)
        resolved = choice.recipe if choice is not None else recipe
        candidates = resolved.candidates(choice.finalists if choice is not None else ())
        artifacts = {candidate.name: build_candidate(candidate, context, timings) for candidate in candidates}
        selection = _confirm(choice, artifacts, plan, context)
        shipped = artifacts[selection.shipped if selection is not None else resolved.name]
        report = predictions = None
        runs = all(artifact.runs for artifact in artifacts.values())  # one runtime may lack a single lowering
        apart.end()  # nothing else is in memory while engines are measured
        if runs or (images is not None and all(map(answers_here, artifacts.values()))):
            entries = [bench_entry(artifact, resolved, shipped) for artifact in artifacts.values()]
            options = replace(options, selected=shipped.plan.recipe.name, alone=context.alone)
            measured = measure_engines(entries, options, images, context.progress, known)
            report = judged(measured.report, resolved, shipped, selection, artifacts, unknown, remarks)
            predictions = measured.predictions
        write_bundle(staging, _contents(resolved, shipped, artifacts, report, predictions, selection, context))
    return BuildResult(Bundle.open(directory), report)


def build_candidate(recipe: Recipe, context: BuildContext, timings: Path | None = None) -> Artifact:
    """Build one candidate: plan, patch, quantize, pack, lower, compile, check.

    Args:
        recipe: What is wanted, without its baselines and variants.
        context: What candidates share; its cache holds the files.
        timings: Folder of what compilers have measured, for later builds; the cache's by default.

    Raises:
        QvecError: The recipe, a file or the machine is not up to it; nothing is measured then.
    """
    cache = context.cache
    assert cache is not None  # noqa: S101 - `build` has one made
    with garbage_collector_off():  # a build allocates millions of small objects and leaves hardly any garbage
        with context.progress.stage("plan", recipe.name):
            plan = context.plan(recipe)
        with cache.entry("weights", context.weights_key(plan)) as weights:
            if weights.new:
                context.export_ahead(plan)
                weights.record = asdict(write_weights(plan, context, weights.folder))
        with cache.entry("engine", context.engine_key(plan)) as engine:
            if engine.new:
                link_files(weights.files, engine.folder)
                engine.record = make_engine(plan, context, engine.folder, timings or cache.folder).as_dict()
    made, checked = WeightFacts(**weights.record), EngineFacts.from_dict(engine.record)
    control = context.control(recipe)
    return Artifact(
        plan,
        engine.folder,
        checked.missing,
        checked.parity,
        made.errors,
        tuple(made.notes),
        control,
        checked.not_run,
    )


def _believed(
    recipe: Recipe, images: OpenedDataset | None, options: BenchOptions, context: BuildContext, timings: Path
) -> Answered:
    """The float receiver's answers, by its candidate's name, once they are seen to fit the labels; else nothing.

    Raises:
        IncompatibleError: They do not, and the recipe does not accept them.
    """
    if images is None or recipe.evaluate is None or recipe.evaluate.accept_float:
        return {}
    receiver = build_candidate(recipe.float_candidate(), context, timings)
    return check_receiver(receiver, threads_of(receiver.plan.recipe), images, options, context.progress)


def _choose(recipe: Recipe, plan: Plan, context: BuildContext) -> Choice | None:
    if recipe.select is None:
        return None
    with context.progress.stage("select", recipe.name) as advance:
        return choose(recipe, plan, context, advance)


def _confirm(
    choice: Choice | None, artifacts: Mapping[str, Artifact], plan: Plan, context: BuildContext
) -> Selection | None:
    """Hold the finalists' built engines against the float one, on images that chose nothing."""
    if choice is None:
        return None
    outputs = {name: partial(engine_outputs, artifact) for name, artifact in artifacts.items()}
    on = "engine" if all(artifact.runs for artifact in artifacts.values()) else "PyTorch"
    with context.progress.stage("confirm", choice.recipe.name):
        return confirm(choice, outputs, outputs["float"], plan, on=on)


def _contents(
    recipe: Recipe,
    shipped: Artifact,
    artifacts: Mapping[str, Artifact],
    report: Report | None,
    predictions: Predictions | None,
    selection: Selection | None,
    context: BuildContext,
) -> BundleContents:
    """What goes into the bundle: beside a patch that nobody has verified, the same without it."""
    own = shipped.plan.recipe
    plain = None
    if unverified(recipe, own, selection):
        plain = next((a for a in artifacts.values() if is_plain(a.plan.recipe, own)), None)
    sources, timings_s = context.fingerprints(recipe), context.progress.timings_s
    names = context.class_names
    return BundleContents(recipe, shipped, plain, sources, report, predictions, selection, names, timings_s)
