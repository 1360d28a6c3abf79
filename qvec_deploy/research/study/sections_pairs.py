"""What a study found over its pairs: lambda, similarity, failures, and Prop. 1 held against measurements."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from qvec_deploy.bench.statistics import Estimate
from qvec_deploy.formatting import NONE, short, signed_text
from qvec_deploy.report.html_listing import Listing
from qvec_deploy.report.svg import Figure
from qvec_deploy.research.study import notation
from qvec_deploy.research.study.study_page import Section
from qvec_deploy.research.study.study_plots import Line, Spot, cloud, curves
from qvec_deploy.research.study.study_summary import (
    Correlation,
    Curve,
    Failure,
    LambdaGain,
    Measured,
    Prediction,
    Setting,
    Similarity,
    Summary,
)

CAUSES = (
    ("coordinates", "Donor and receiver are not in the same coordinates"),
    ("no headroom", "Plain PTQ is within 2 points of the receiver's own QAT, or of float: there is nothing to win"),
    ("overshoot", "Some λ between 0 and 1 gains"),
    ("anti-aligned", "Of the λ below 1, only a negative one gains"),
    ("useless", "No λ below 1 gains"),
)
CHANCE = (
    "Causes are decided by the sign of the best of several λ on test images: chance alone may make a useless pair "
    "overshoot or anti-aligned."
)
PROPOSITION = (
    "Proposition 1 of the paper (arXiv 2604.03420) says which share of the receiver's headroom a donor's vector wins "
    "at its best λ: the squared cosine of its vector and the receiver's own, in the curvature of the receiver's loss. "
    "It is about loss; what is measured here is accuracy, so at best the order of pairs should agree."
)


def lambdas(summary: Summary) -> Section:
    """Mean gain over lambda with its interval, and the same as tables."""
    figures, tables = [], []
    for index, (name, setting) in enumerate(zip(notation.setting_names(summary), summary.settings, strict=True)):
        if any(len(curve.points) > 1 for curve in setting.curves):
            pick, over = notation.bars([point.gain for curve in setting.curves for point in curve.points])
            caption = f"{name}. Bands are 95 % intervals over {over}; λ = 0 is no patch."
            lines = [_line(curve, pick) for curve in setting.curves if curve.points]
            figures.append(curves(f"lambda-{index}", "Gain over λ", caption, lines, ("λ", "gain, points")))
            tables.append(_lambdas(name, setting))
    return Section("lambda", "Gain over λ", figures=tuple(figures), folded=tuple(tables))


def _line(curve: Curve, pick: Callable[[Measured], Estimate | None]) -> Line:
    points = []
    for point in curve.points:
        value, ends = point.gain.value, pick(point.gain)
        low, high = (ends.low, ends.high) if ends else (value, value)
        points.append((point.lam, low, value, high))
    return Line(notation.words(curve.label), tuple(points), 0 if curve.key == "pair" else 1)


def _lambdas(name: str, setting: Setting) -> Listing:
    columns = ("Curve", "λ", "Gain over plain, points", "Seeds", "Images", "Wins")
    rows = tuple(
        (
            notation.words(curve.label),
            signed_text(f"{point.lam:g}"),
            notation.gain(point.gain),
            notation.over_seeds(point.gain),
            notation.over_images(point.gain),
            notation.percent(point.win_share),
        )
        for curve in setting.curves
        for point in curve.points
    )
    return Listing(f"Curves: {name}", columns, rows, "lrrrrr", note=notation.BRACKETS)


def similarities(summary: Summary) -> Section:
    """Gain against each measure of similarity, with correlations and bins."""
    drawn: dict[str, list[Figure]] = {}  # by measure: settings stand side by side
    correlations, bins = [], []
    for index, (name, setting) in enumerate(zip(notation.setting_names(summary), summary.settings, strict=True)):
        for one in setting.similarities:
            figure = _similar(f"similarity-{index}-{one.measure}", name, one)
            drawn.setdefault(one.measure, []).append(figure)
            correlations += [(one.label, name, *_correlation(each)) for each in one.correlations]
            bins += _bins(name, one)
    tables: list[Listing] = []
    folded: tuple[Listing, ...] = ()
    if correlations:
        tables.append(_correlations("Correlation with the gain at λ = 1", ("Measure", "Setting"), correlations))
    if bins:
        columns = ("Measure", "Setting", "Similarity", "Pairs", "Mean gain, points", "Wins")
        note = f"Pairs in three groups of like similarity, at λ = 1. {notation.BRACKETS}"
        folded = (Listing("Gain by similarity", columns, tuple(bins), "llrrrr", note=note),)
    figures = tuple(figure for alike in drawn.values() for figure in alike)
    return Section("similarity", "Similarity of tasks", (), tuple(tables), figures, folded)


def _similar(anchor: str, name: str, one: Similarity) -> Figure:
    spots = [Spot(point.donor, point.receiver, point.similarity, point.gain) for point in one.points]
    overall = next((each for each in one.correlations if each.over == "pairs"), None)
    told = f" {_told(overall)}" if overall is not None else ""
    caption = f"{name}. A point per pair, seeds averaged; diamonds lose.{told}"
    return cloud(anchor, f"Gain and {one.label}", caption, spots, ("cosine", "gain at λ = 1, points"))


def _told(correlation: Correlation) -> str:
    if correlation.spearman is None:
        return "One of the two does not vary: no correlation."
    text = f"Spearman {notation.correlation(correlation.spearman)}"
    if correlation.qap_p is None:
        return f"{text}, no label permutation (too few tasks, or a pair is missing)."
    adjusted = notation.chance(correlation.qap_adjusted)
    return (
        f"{text}, label-permutation (QAP) p {notation.equals(correlation.qap_p)}, {adjusted} after Holm's correction."
    )


def _correlation(one: Correlation) -> tuple[str, ...]:
    tried = f"{'all ' if one.exact else ''}{one.permutations:,}" if one.qap_p is not None else NONE
    return (
        one.over,
        notation.correlation(one.spearman),
        notation.chance(one.qap_p),
        notation.chance(one.qap_adjusted),
        tried,
    )


def _correlations(title: str, about: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Listing:
    columns = (*about, "Over", "Spearman", "QAP p", "QAP p, Holm", "Permutations")
    note = (
        "In brackets: 95 % interval over tasks (a bootstrap of tasks, not of pairs). QAP permutes the tasks' labels, "
        "as pairs share donors and receivers. Within receivers, donors are ranked for each receiver by itself."
    )
    return Listing(title, columns, tuple(rows), "l" * len(about) + "lrrrr", note=note)


def _bins(name: str, one: Similarity) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for each in one.bins:
        ends = signed_text(f"{each.low:.2f} to {each.high:.2f}")
        value = notation.points(each.gain) + notation.ends(each.interval)
        rows.append((one.label, name, ends, str(each.pairs), value, notation.percent(each.win_share)))
    return rows


def failures(summary: Summary) -> Section:
    """Every pair that loses, with its cause."""
    tables, sentences, causes = [], [], dict[str, None]()
    for name, setting in zip(notation.setting_names(summary), summary.settings, strict=True):
        total = len(setting.pairs())
        if total:
            sentences.append(f"{name}: {_counted(setting.failures, total)}")
        if setting.failures:
            tables.append(_failures(name, setting.failures))
            causes |= dict.fromkeys(one.cause for one in setting.failures)
    if causes:
        sentences.append(CHANCE)
    facts = tuple((cause.capitalize(), f"{rule}.") for cause, rule in CAUSES if cause in causes)
    return Section("failures", "Pairs that lose", tuple(sentences), folded=tuple(tables), facts=facts)


def _counted(lost: tuple[Failure, ...], total: int) -> str:
    if not lost:
        return f"none of {notation.many(total, 'pair')} loses at λ = 1."
    noise = sum(one.within_noise for one in lost)
    causes = [one.cause for one in lost]
    parts = ", ".join(f"{causes.count(cause)} {cause}" for cause in dict.fromkeys(causes))
    verb = "loses" if len(lost) == 1 else "lose"
    count = f"{len(lost)} of {notation.many(total, 'pair')} {verb} at λ = 1"
    return f"{count}, {noise or 'none'} within noise; by cause: {parts}."


def _failures(name: str, lost: tuple[Failure, ...]) -> Listing:
    seen = ("Donor", "Receiver", "Gain at λ = 1", "Noise ±", "Cause", "Float, %", "Own QAT, %", "Plain, %")
    columns = (*seen, "Best 0 < λ < 1", "Best λ < 0")
    rows = tuple(
        (
            one.donor,
            one.receiver,
            notation.points(one.gain),
            f"{one.noise:.1f}",
            f"{one.cause} (within noise)" if one.within_noise else one.cause,
            *map(notation.top1, (one.float_top1, one.own_qat_top1, one.plain_top1)),
            *map(_best, (one.best_between, one.best_negative)),
        )
        for one in lost
    )
    note = (
        "Noise: how far a gain may be from its mean by chance (95 %), over seeds and images together. The best gains "
        f"are in hindsight, on test images: they explain a loss and are not what one would have got. {CHANCE}"
    )
    return Listing(name, columns, rows, "llrrlrrrrr", note=note)


def _best(found: LambdaGain | None) -> str:
    return NONE if found is None else f"{notation.points(found.gain)} at {short(found.lam)}"


def predictions(summary: Summary) -> Section:
    """Prop. 1's share of the headroom against the measured one."""
    figures, rows, errors = [], [], []
    for index, (name, setting) in enumerate(zip(notation.setting_names(summary), summary.settings, strict=True)):
        one = setting.prediction
        if one is None or not one.points:
            continue
        figures.append(_predicted(f"prediction-{index}", name, one))
        rows += [(name, *_correlation(each)) for each in one.correlations]
        errors.append(_errors(name, one))
    tables = [_correlations("Correlation of predicted and measured shares", ("Setting",), rows)] if rows else []
    told = (PROPOSITION, *errors) if errors else ()
    return Section("prediction", "Proposition 1", told, tuple(tables), tuple(figures))


def _predicted(anchor: str, name: str, one: Prediction) -> Figure:
    spots = [Spot(point.donor, point.receiver, point.predicted, point.measured) for point in one.points]
    caption = f"{name}. Dashed: where prediction and measurement are equal. Diamonds lose."
    labels = ("predicted share of the headroom", "measured share of the gap")
    return cloud(anchor, "Predicted and measured shares", caption, spots, labels, equal=True)


def _errors(name: str, one: Prediction) -> str:
    mode = {"label_free": "without labels", "labelled": "with labels"}[one.mode]
    left = f" {notation.many(one.left_out, 'pair')} of receivers without headroom left out." if one.left_out else ""
    side = "above" if one.mean_error >= 0 else "below"
    return (
        f"{name}: over {notation.many(len(one.points), 'pair')} the predicted share is {100 * abs(one.mean_error):.0f} "
        f"points {side} the measured one on average, and {100 * one.mean_absolute_error:.0f} points away from it, to "
        f"either side; λ was chosen {mode} on selecting images.{left}"
    )
