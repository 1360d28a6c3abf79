"""A bundle against the one it may replace: what changed, and whether it became better or worse."""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from qvec_deploy.bench.comparison import AccuracyChange, Comparison, LatencyChange, Side, SizeChange
from qvec_deploy.bench.results import Report
from qvec_deploy.bench.verdicts import size_verdict
from qvec_deploy.bench.warnings import Finding, MeasurementWarning
from qvec_deploy.bundle.bundle import Bundle
from qvec_deploy.bundle.changes import all_changes, gate_changes, same_engine
from qvec_deploy.bundle.compare_stored import (
    BundlePair,
    CompareOptions,
    identical_latency,
    judged,
    judged_latency,
    stored_accuracy,
    stored_latency,
)
from qvec_deploy.bundle.manifest import MANIFEST_FILE
from qvec_deploy.bundle.side_by_side import bench_bundles, require_same_images
from qvec_deploy.errors import FetchError, GateError, IncompatibleError, IntegrityError, RecipeError, StorageError
from qvec_deploy.io.files import sha256_file
from qvec_deploy.progress import Progress
from qvec_deploy.report.report_json import read_report_json

REPORT_FILE = "report.json"
_JUDGED_HERE = (  # a verdict says these better
    MeasurementWarning.NO_HEADROOM,
    MeasurementWarning.ACCURACY_UNCLEAR,
    MeasurementWarning.SPEED_UP_UNCLEAR,
)


def compare_bundles(
    old: Path, new: Path, options: CompareOptions | None = None, progress: Progress | None = None
) -> Comparison:
    """Compare NEW with OLD: accuracy image by image, latency interleaved in this process, sizes, gates, fields.

    Answers are those that the bundles keep where both were evaluated on the same images; else both engines run, on
    the images of OLD's recipe, or of NEW's where OLD's names none. What cannot be known here is UNSURE, with the
    reason. Bundles of the same engine are the SAME without a test.

    Raises:
        StorageError: There is no such bundle, or no such folder of images where one was named.
        IntegrityError: A bundle is damaged, or was changed after the build.
        IncompatibleError: The two take other images, or an engine computes something else than PyTorch.
    """
    options = options or CompareOptions()
    first, second = Bundle.open(old), Bundle.open(new)
    require_same_images(first, second)
    reports = (_read_report(first), _read_report(second))
    pair = BundlePair(first, second, reports, same_engine(first, second), options)
    accuracy = stored_accuracy(pair)
    measured = None
    if options.stored or pair.identical:
        latency = identical_latency(pair) if pair.identical else stored_latency(pair)
    else:
        reason = next(filter(None, (_cannot_run(b, n, options) for n, b in (("OLD", first), ("NEW", second)))), None)
        if reason is None:
            measured, why = _measure(pair, accuracy, progress or Progress())
            accuracy = _measured_accuracy(pair, measured, accuracy, why)
            latency = _measured_latency(pair, measured)
        else:
            latency = (LatencyChange("UNSURE", None, reason),)
    return Comparison(
        old=_side(first),
        new=_side(second),
        tolerances=options.tolerances,
        changes=all_changes(first, second, reports),
        accuracy=accuracy,
        latency=latency,
        size=_size(pair),
        gates=gate_changes(first, second),
        environment=measured.environment if measured is not None else None,
        warnings=_warnings(measured),
        created_by=f"qvec-deploy {version('qvec-deploy')}",
    )


def require_no_regression(comparison: Comparison, *, strict: bool = False) -> None:
    """Refuse a bundle that is worse than the one it would replace."""
    regressions, doubts = comparison.regressions(), comparison.doubts()
    if regressions:
        raise GateError(
            f"{comparison.new.name} is a regression: {'; '.join(regressions)}",
            hint="keep the old bundle, or state a tolerance that allows for it",
        )
    if strict and doubts:
        raise GateError(
            f"{comparison.new.name} is not shown to be as good: {'; '.join(doubts)}",
            hint="settle what is UNSURE, or leave out --strict",
        )


def _read_report(bundle: Bundle) -> Report | None:
    """The bundle's report; None where it has none, or one that another version wrote."""
    if REPORT_FILE not in bundle.manifest.files:
        return None
    try:
        return read_report_json(bundle.directory / REPORT_FILE)
    except (IncompatibleError, IntegrityError):  # its hash was right: it is as it was written, but not by this version
        return None


def _side(bundle: Bundle) -> Side:
    manifest = bundle.manifest
    return Side(
        name=manifest.name,
        created=manifest.created,
        manifest_sha256=sha256_file(bundle.directory / MANIFEST_FILE),
        runtime=manifest.engine.runtime,
        lowering=manifest.engine.lowering,
        method=manifest.method,
        lam=manifest.lam,
    )


def _size(pair: BundlePair) -> SizeChange:
    old, new = pair.old.manifest, pair.new.manifest
    return SizeChange(
        size_verdict(old.stored_bytes, new.stored_bytes, pair.options.tolerances.size),
        old.stored_bytes,
        new.stored_bytes,
        old.stored_bits_per_weight,
        new.stored_bits_per_weight,
        old.runtime_bits_per_weight,
        new.runtime_bits_per_weight,
    )


def _cannot_run(bundle: Bundle, name: str, options: CompareOptions) -> str | None:
    """Why an engine cannot be measured here; None where it can."""
    unusable = bundle.engine_unusable()
    if unusable is not None:
        return f"{name} {unusable}"
    try:
        with bundle.session(threads=options.threads):
            return None
    except IncompatibleError as error:
        return f"{name} cannot be opened here: {error.message}"


def _measure(pair: BundlePair, accuracy: AccuracyChange, progress: Progress) -> tuple[Report, str]:
    """Latency of both and, where their kept answers cannot be paired, accuracy too.

    Returns:
        The measurements, and why there is no accuracy among them; empty where there is, or where none was needed.
    """
    options, why = pair.options, ""
    evaluate = accuracy.source is None

    def bench(*, evaluate: bool) -> Report:
        return bench_bundles(
            [pair.old.directory, pair.new.directory],
            threads=options.threads,
            batch_sizes=pair.batch_sizes(),
            blocks=options.blocks,
            data_root=options.data_root,
            evaluate=evaluate,
            profile=False,
            progress=progress,
        )

    if evaluate and all(bundle.recipe.evaluate is None for bundle in (pair.old, pair.new)):
        evaluate, why = False, "neither recipe has `evaluate`"
    if evaluate:
        try:
            return bench(evaluate=True), ""
        except (StorageError, FetchError, RecipeError) as error:
            if options.data_root is not None:  # the folder was named: that it does not open is no mere doubt
                raise
            why = f"the images cannot be opened here: {error.message}"
    return bench(evaluate=False), why


def _measured_accuracy(pair: BundlePair, report: Report, kept: AccuracyChange, why: str) -> AccuracyChange:
    old, new = report.candidates
    if kept.source is not None or old.accuracy is None or new.accuracy is None:
        return replace(kept, reason=f"{kept.reason}; {why}") if why else kept
    correct = old.accuracy.correct, new.accuracy.correct
    return judged(pair, "measured", new.paired[old.name], correct, (report.dataset, report.split))


def _measured_latency(pair: BundlePair, report: Report) -> tuple[LatencyChange, ...]:
    old, new = report.candidates
    both = zip(old.latency, new.latency, strict=True)
    return tuple(judged_latency(pair, "measured", before, after) for before, after in both)


def _warnings(report: Report | None) -> tuple[Finding, ...]:
    """Doubts about the measurement, under the names of this comparison."""
    if report is None:
        return ()
    old, new = report.candidates
    names = {old.name: "OLD", new.name: "NEW"}
    return tuple(
        replace(finding, subject=names.get(finding.subject, finding.subject))
        for finding in report.warnings
        if finding.warning not in _JUDGED_HERE
    )
