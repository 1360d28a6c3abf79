"""What of a build is measured, and what its report says beyond the measurements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from qvec_deploy.bench.entries import BenchEntry, BenchOptions
from qvec_deploy.bench.environment import available_threads
from qvec_deploy.bench.gates import judge
from qvec_deploy.bench.results import Report, Role
from qvec_deploy.bench.selection import Selection
from qvec_deploy.bench.warnings import Finding, MeasurementWarning
from qvec_deploy.bundle.claims import unverified
from qvec_deploy.bundle.interface import model_of
from qvec_deploy.bundle.write import Artifact
from qvec_deploy.planner import Plan
from qvec_deploy.recipe import FLOAT_BITS, Recipe


def bench_options(recipe: Recipe, plan: Plan) -> BenchOptions:
    """How a recipe wants its candidates measured."""
    root = recipe.evaluate.root if recipe.evaluate is not None else None
    return BenchOptions(
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


def bench_entry(artifact: Artifact, recipe: Recipe, shipped: Artifact) -> BenchEntry:
    """A built candidate as it is measured.

    Args:
        recipe: The recipe it is a candidate of, its selection made.
    """
    own = artifact.plan.recipe
    return BenchEntry(
        name=own.name,
        role=_role(own, recipe, shipped.plan.recipe),
        recipe=own,
        directory=artifact.directory,
        lowering=own.target.lowering,
        threads=threads_of(own),
        sources=artifact.plan.sources,
        layer_errors=artifact.layer_errors,
        control=artifact.control,
        emulated=not artifact.runs,
    )


def threads_of(recipe: Recipe) -> int:
    """Threads of a candidate's engine: as its recipe says, or all cores this process may use."""
    return recipe.target.threads or available_threads()


def is_plain(candidate: Recipe, shipped: Recipe) -> bool:
    """Whether a candidate is the shipped one without its patch."""
    return candidate.lam == 0 and (candidate.quantize, candidate.target) == (shipped.quantize, shipped.target)


def _role(candidate: Recipe, recipe: Recipe, shipped: Recipe) -> Role:
    """`ptq` is the shipped method without a patch: what the patch is worth is its difference to that."""
    if candidate.quantize.bits in FLOAT_BITS:
        return "float"
    if candidate.name in {variant.name for variant in recipe.variants}:
        return "variant"
    if is_plain(candidate, shipped):
        return "ptq"
    return "patched" if candidate.name in (shipped.name, recipe.name) else "variant"


def judged(
    report: Report,
    recipe: Recipe,
    shipped: Artifact,
    selection: Selection | None,
    artifacts: Mapping[str, Artifact],
    unknown: Sequence[str],
    remarks: Sequence[str] = (),
) -> Report:
    """The report with the selection, its doubts and the recipe's gates.

    Args:
        selection: How it was chosen; None where the recipe names it.
        unknown: Vectors of which nobody knows the coordinates, by label.
        remarks: What there is to know about the images that choose and calibrate.
    """
    findings = [Finding(MeasurementWarning.FILES_LEFT_ASIDE, "unlabelled images", remark) for remark in remarks]
    findings += [Finding(MeasurementWarning.COORDINATES_UNKNOWN, recipe.name, f"{label}.") for label in unknown]
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
    complete = replace(report, selection=selection, warnings=(*report.warnings, *findings))
    if any(entry.emulated for entry in complete.candidates):  # the engines themselves were not measured
        return complete
    return replace(complete, gates=judge(recipe.gates, complete))
