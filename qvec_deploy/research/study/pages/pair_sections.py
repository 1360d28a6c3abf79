"""What a study found over its pairs: gains, lambda, similarity, losses, and Prop. 1 held against measurements."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from operator import attrgetter

from qvec_deploy.formatting import NONE, short, signed_text
from qvec_deploy.report.page import Block, Facts, Prose, Section, Table
from qvec_deploy.report.svg import Figure
from qvec_deploy.research.study.analysis.pair_values import (
    GainMatrix,
    LambdaGain,
    LosingPair,
    PairGain,
    PropositionCheck,
    RankCorrelation,
    TaskSimilarity,
)
from qvec_deploy.research.study.analysis.row_key import PLAIN, RowKey
from qvec_deploy.research.study.analysis.study_summary import StudySetting, StudySummary
from qvec_deploy.research.study.pages import notation
from qvec_deploy.research.study.pages.study_plots import (
    CurveLine,
    PairPoint,
    colour_limit,
    heatmap,
    line_plot,
    scatter_plot,
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


def matrices(summary: StudySummary) -> Section:
    """For every setting: which donors help a receiver, a heatmap per way of choosing lambda, and all pairs."""
    helped, every = [], []
    drawn: dict[str, list[Figure]] = {}  # by way of choosing lambda: settings stand side by side
    for index, name, setting in notation.numbered(summary):
        over_plain = [one for one in setting.matrices if one.baseline == PLAIN and one.pairs]
        largest = colour_limit([pair.gain for one in over_plain for pair in one.pairs])
        for one in over_plain:
            lost = sum(pair.gain < 0 for pair in one.pairs)
            caption = (
                f"{name}. A row is a donor, a column a receiver; gain over plain PTQ in points, seeds averaged. "
                f"{lost} of {notation.many(len(one.pairs), 'pair')} {'loses' if lost == 1 else 'lose'}."
            )
            place = one.tasks.index
            pairs = sorted(one.pairs, key=lambda pair: (place(pair.receiver), place(pair.donor)))
            title = f"Gains at {notation.words(one.label)}"
            drawn.setdefault(one.mode, []).append(heatmap(f"gains-{index}-{one.mode}", title, caption, pairs, largest))
            every.append(_every(name, setting, one))
        if setting.pairs():
            helped.append(_helped(name, setting))
    figures = (figure for alike in drawn.values() for figure in alike)
    return Section("gains", "Gains, donors × receivers", (*helped, *figures, *every))


def _helped(name: str, setting: StudySetting) -> Table:
    """Of every receiver: how many donors beat each baseline, and the one that does best."""
    against = [one.baseline for one in setting.matrices if one.mode == "lambda_1"]

    def mine(receiver: str, key: RowKey) -> list[PairGain]:
        return [pair for pair in setting.pairs(baseline=key) if pair.receiver == receiver]

    def best(receiver: str) -> str:  # of one receiver the same over every baseline
        found = max(mine(receiver, against[0]), key=attrgetter("gain"), default=None)
        return found.donor if found else NONE

    def helping(key: RowKey, receiver: str) -> str:
        gains = [pair.gain for pair in mine(receiver, key)]
        return f"{sum(gain > 0 for gain in gains)} of {len(gains)}, {notation.points(max(gains))}" if gains else NONE

    columns: dict[str, Callable[[str], str]] = {"Receiver": str, "Best donor": best}
    columns |= {f"over {key.short}": partial(helping, key) for key in against}
    note = (
        "How many donors gain at λ = 1, seeds averaged, and what the best gains, in points. It is chosen in hindsight, "
        "on test images, and so a little flattered; not tested."
    )
    return Table.of(f"Donors that help a receiver: {name}", setting.receivers, columns, words=2, note=note)


def _every(name: str, setting: StudySetting, matrix: GainMatrix) -> Table:
    """Every pair at one way of choosing lambda: over plain with its errors, and over other methods."""

    def found(gains: dict[tuple[str, str], float], pair: PairGain) -> str:
        return notation.optional(notation.points)(gains.get((pair.donor, pair.receiver)))

    columns: dict[str, Callable[[PairGain], str]] = {
        "Receiver": lambda pair: pair.receiver,
        "Donor": lambda pair: pair.donor,
        "λ": lambda pair: ", ".join(map(short, pair.lambdas if len(set(pair.lambdas)) > 1 else pair.lambdas[:1])),
        "Gain over plain, points": lambda pair: notation.points(pair.gain),
        "Seeds": lambda pair: notation.error(pair.seed_error),
        "Images": lambda pair: notation.error(pair.image_error),
    }
    for one in setting.matrices:
        if one.mode == matrix.mode and one.baseline != matrix.baseline:
            gains = {(pair.donor, pair.receiver): pair.gain for pair in one.pairs}
            columns[f"over {one.baseline.short}"] = partial(found, gains)
    ordered = sorted(matrix.pairs, key=lambda pair: (matrix.tasks.index(pair.receiver), -pair.gain))
    note = "Seeds averaged. ±: standard error over seeds, and over test images. λ: of each seed, where it was chosen."
    title = f"Every pair at {notation.words(matrix.label)}: {name}"
    return Table.of(title, ordered, columns, words=2, note=note, folded=True)


def lambdas(summary: StudySummary) -> Section:
    """Mean gain over lambda with its interval, and the same as tables."""
    columns = {
        "Curve": lambda one: notation.words(one[0].label),
        "λ": lambda one: signed_text(f"{one[1].lam:g}"),
        "Gain over plain, points": lambda one: notation.gain(one[1].gain),
        "Seeds": lambda one: notation.over_seeds(one[1].gain),
        "Images": lambda one: notation.over_images(one[1].gain),
        "Wins": lambda one: notation.percent(one[1].win_share),
    }
    figures, tables = [], []
    for index, name, setting in notation.numbered(summary):
        if any(len(curve.points) > 1 for curve in setting.curves):
            points = [(curve, point) for curve in setting.curves for point in curve.points]
            pick, over = notation.bars([point.gain for _, point in points])
            caption = f"{name}. Bands are 95 % intervals over {over}; λ = 0 is no patch."
            lines = []
            for curve in setting.curves:
                drawn = [(point.lam, point.gain.value, pick(point.gain)) for point in curve.points]
                band = tuple((lam, value, interval.low, interval.high) for lam, value, interval in drawn)
                lines.append(CurveLine(notation.words(curve.label), band, 0 if curve.key == "pair" else 1))
            figures.append(line_plot(f"lambda-{index}", "Gain over λ", caption, lines, ("λ", "gain, points")))
            tables.append(Table.of(f"Curves: {name}", points, columns, note=notation.BRACKETS, folded=True))
    return Section("lambda", "Gain over λ", (*figures, *tables))


def similarities(summary: StudySummary) -> Section:
    """Gain against each measure of similarity, with correlations and terciles."""
    drawn: dict[str, list[Figure]] = {}  # by measure: settings stand side by side
    correlations, terciles = [], []
    for index, name, setting in notation.numbered(summary):
        for one in setting.similarities:
            figure = _similar(f"similarity-{index}-{one.measure}", name, one)
            drawn.setdefault(one.measure, []).append(figure)
            correlations += [((one.label, name), each) for each in one.correlations]
            terciles += [(one.label, name, each) for each in one.bins]
    blocks: list[Block] = []
    if correlations:
        blocks.append(_correlations("Correlation with the gain at λ = 1", ("Measure", "Setting"), correlations))
    blocks += [figure for alike in drawn.values() for figure in alike]
    if terciles:
        columns = {
            "Measure": lambda one: one[0],
            "Setting": lambda one: one[1],
            "Similarity": lambda one: signed_text(f"{one[2].low:.2f} to {one[2].high:.2f}"),
            "Pairs": lambda one: str(one[2].pairs),
            "Mean gain, points": lambda one: notation.points(one[2].gain) + notation.ends(one[2].interval),
            "Wins": lambda one: notation.percent(one[2].win_share),
        }
        note = f"Pairs in three groups of like similarity, at λ = 1. {notation.BRACKETS}"
        blocks.append(Table.of("Gain by similarity", terciles, columns, words=2, note=note, folded=True))
    return Section("similarity", "Similarity of tasks", tuple(blocks))


def _similar(anchor: str, name: str, one: TaskSimilarity) -> Figure:
    points = [PairPoint(point.donor, point.receiver, point.similarity, point.gain) for point in one.points]
    overall = next((each for each in one.correlations if each.over == "pairs"), None)
    correlation = f" {_in_words(overall)}" if overall is not None else ""
    caption = f"{name}. A point per pair, seeds averaged; diamonds lose.{correlation}"
    return scatter_plot(anchor, f"Gain and {one.label}", caption, points, ("cosine", "gain at λ = 1, points"))


def _in_words(correlation: RankCorrelation) -> str:
    if correlation.spearman is None:
        return "One of the two does not vary: no correlation."
    text = f"Spearman {notation.correlation(correlation.spearman)}"
    if correlation.qap_p is None:
        return f"{text}, no label permutation (too few tasks, or a pair is missing)."
    adjusted = notation.p_text(correlation.qap_adjusted)
    return (
        f"{text}, label-permutation (QAP) p {notation.p_equals(correlation.qap_p)}, {adjusted} after Holm's correction."
    )


def _correlations(title: str, about: tuple[str, ...], rows: Iterable[tuple[tuple[str, ...], RankCorrelation]]) -> Table:
    def tried(one: RankCorrelation) -> str:
        return f"{'all ' if one.exact else ''}{one.permutations:,}" if one.qap_p is not None else NONE

    columns: dict[str, Callable[[RankCorrelation], str]] = {
        "Over": lambda one: one.over,
        "Spearman": lambda one: notation.correlation(one.spearman),
        "QAP p": lambda one: notation.p_text(one.qap_p),
        "QAP p, Holm": lambda one: notation.p_text(one.qap_adjusted),
        "Permutations": tried,
    }
    note = (
        "In brackets: 95 % interval over tasks (a bootstrap of tasks, not of pairs). QAP permutes the tasks' labels, "
        "as pairs share donors and receivers. Within receivers, donors are ranked for each receiver by itself."
    )
    cells = tuple((*names, *(cell(one) for cell in columns.values())) for names, one in rows)
    return Table(title, (*about, *columns), cells, "l" * len(about) + "lrrrr", note=note)


def failures(summary: StudySummary) -> Section:
    """Every pair that loses, with its cause."""
    settings = notation.numbered(summary)
    counted = [(name, setting.failures, len(setting.pairs())) for _, name, setting in settings]
    sentences = [f"{name}: {_counted(lost, total)}" for name, lost, total in counted if total]
    tables = [_failures(name, setting.failures) for _, name, setting in settings if setting.failures]
    causes = {one.cause for _, _, setting in settings for one in setting.failures}
    if not causes:
        return Section("failures", "Pairs that lose", tuple(map(Prose, sentences)))
    facts = tuple((cause.capitalize(), f"{rule}.") for cause, rule in CAUSES if cause in causes)
    return Section("failures", "Pairs that lose", (*map(Prose, [*sentences, CHANCE]), *tables, Facts(facts)))


def _counted(lost: tuple[LosingPair, ...], total: int) -> str:
    if not lost:
        return f"none of {notation.many(total, 'pair')} loses at λ = 1."
    noise = sum(one.within_noise for one in lost)
    causes = [one.cause for one in lost]
    parts = ", ".join(f"{causes.count(cause)} {cause}" for cause in dict.fromkeys(causes))
    verb = "loses" if len(lost) == 1 else "lose"
    count = f"{len(lost)} of {notation.many(total, 'pair')} {verb} at λ = 1"
    return f"{count}, {noise or 'none'} within noise; by cause: {parts}."


def _failures(name: str, lost: tuple[LosingPair, ...]) -> Table:
    best: Callable[[LambdaGain | None], str] = notation.optional(
        lambda found: f"{notation.points(found.gain)} at {short(found.lam)}"
    )
    columns = {
        "Donor": lambda one: one.donor,
        "Receiver": lambda one: one.receiver,
        "Gain at λ = 1": lambda one: notation.points(one.gain),
        "Noise ±": lambda one: f"{one.noise:.1f}",
        "Cause": lambda one: f"{one.cause} (within noise)" if one.within_noise else one.cause,
        "Float, %": lambda one: notation.top1(one.float_top1),
        "Own QAT, %": lambda one: notation.top1(one.own_qat_top1),
        "Plain, %": lambda one: notation.top1(one.plain_top1),
        "Best 0 < λ < 1": lambda one: best(one.best_between),
        "Best λ < 0": lambda one: best(one.best_negative),
    }
    note = (
        "Noise: how far a gain may be from its mean by chance (95 %), over seeds and images together. The best gains "
        f"are in hindsight, on test images: they explain a loss and are not what one would have got. {CHANCE}"
    )
    table = Table.of(name, lost, columns, words=2, note=note, folded=True)
    return replace(table, alignment="llrrlrrrrr")


def predictions(summary: StudySummary) -> Section:
    """Prop. 1's share of the headroom against the measured one."""
    labels = ("predicted share of the headroom", "measured share of the gap")
    figures, rows, errors = [], [], []
    for index, name, setting in notation.numbered(summary):
        one = setting.prediction
        if one is not None and one.points:
            points = [PairPoint(point.donor, point.receiver, point.predicted, point.measured) for point in one.points]
            caption = f"{name}. Dashed: where prediction and measurement are equal. Diamonds lose."
            title = "Predicted and measured shares"
            figures.append(scatter_plot(f"prediction-{index}", title, caption, points, labels, equal=True))
            rows += [((name,), each) for each in one.correlations]
            errors.append(_errors(name, one))
    if not errors:
        return Section("prediction", "Proposition 1")
    tables = [_correlations("Correlation of predicted and measured shares", ("Setting",), rows)] if rows else []
    return Section("prediction", "Proposition 1", (*map(Prose, (PROPOSITION, *errors)), *tables, *figures))


def _errors(name: str, one: PropositionCheck) -> str:
    mode = {"label_free": "without labels", "labelled": "with labels"}[one.mode]
    left = f" {notation.many(one.left_out, 'pair')} of receivers without headroom left out." if one.left_out else ""
    side = "above" if one.mean_error >= 0 else "below"
    return (
        f"{name}: over {notation.many(len(one.points), 'pair')} the predicted share is {100 * abs(one.mean_error):.0f} "
        f"points {side} the measured one on average, and {100 * one.mean_absolute_error:.0f} points away from it, to "
        f"either side; λ was chosen {mode} on selecting images.{left}"
    )
