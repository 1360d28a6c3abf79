"""What every donor does for every receiver: who is helped and by how much, drawn, and every pair in numbers."""

from __future__ import annotations

from operator import attrgetter

from qvec_deploy.formatting import NONE, short
from qvec_deploy.report.html_listing import Listing
from qvec_deploy.report.svg import Figure
from qvec_deploy.research.study import notation
from qvec_deploy.research.study.heatmap import Square, heatmap, strongest
from qvec_deploy.research.study.study_page import Section
from qvec_deploy.research.study.study_summary import Matrix, PairGain, Setting, Summary

Pair = tuple[str, str]


def matrices(summary: Summary) -> Section:
    """For every setting: which donors help a receiver, a heatmap per way of choosing lambda, and all pairs."""
    helped, every = [], []
    drawn: dict[str, list[Figure]] = {}  # by way of choosing lambda: settings stand side by side
    for index, (name, setting) in enumerate(zip(notation.setting_names(summary), summary.settings, strict=True)):
        over_plain = [one for one in setting.matrices if one.baseline == "plain" and one.pairs]
        largest = strongest([pair.gain for one in over_plain for pair in one.pairs])
        for one in over_plain:
            drawn.setdefault(one.mode, []).append(_matrix(f"gains-{index}-{one.mode}", name, one, largest))
            every.append(_every(name, setting, one))
        if setting.pairs():
            helped.append(_helped(name, setting))
    figures = tuple(figure for alike in drawn.values() for figure in alike)
    return Section("gains", "Gains, donors × receivers", listings=tuple(helped), figures=figures, folded=tuple(every))


def _helped(name: str, setting: Setting) -> Listing:
    """Of every receiver: how many donors beat each baseline, and the one that does best."""
    against = [one.baseline for one in setting.matrices if one.mode == "lambda_1"]
    columns = ("Receiver", "Best donor", *(f"over {notation.short_label(key)}" for key in against))
    rows = []
    for receiver in setting.receivers:
        mine = [[pair for pair in setting.pairs(baseline=key) if pair.receiver == receiver] for key in against]
        best = max(mine[0], key=attrgetter("gain"), default=None)  # of one receiver the same over every baseline
        rows.append((receiver, best.donor if best else NONE, *map(_helping, mine)))
    note = (
        "How many donors gain at λ = 1, seeds averaged, and what the best gains, in points. It is chosen in hindsight, "
        "on test images, and so a little flattered; not tested."
    )
    title = f"Donors that help a receiver: {name}"
    return Listing(title, columns, tuple(rows), "ll" + "r" * len(against), note=note)


def _helping(pairs: list[PairGain]) -> str:
    gains = [pair.gain for pair in pairs]
    return f"{sum(gain > 0 for gain in gains)} of {len(gains)}, {notation.points(max(gains))}" if gains else NONE


def _matrix(anchor: str, name: str, matrix: Matrix, largest: float) -> Figure:
    order = {task: place for place, task in enumerate(matrix.tasks)}
    chosen = sorted(matrix.pairs, key=lambda pair: (order[pair.receiver], order[pair.donor]))
    seeds = any(pair.seed_error is not None for pair in chosen)
    errors = [pair.seed_error if seeds else pair.image_error for pair in chosen]
    squares = [Square(pair.donor, pair.receiver, pair.gain, error) for pair, error in zip(chosen, errors, strict=True)]
    lost = sum(pair.gain < 0 for pair in chosen)
    caption = (
        f"{name}. A row is a donor, a column a receiver; gain over plain PTQ in points, seeds averaged. "
        f"{lost} of {notation.many(len(chosen), 'pair')} {'loses' if lost == 1 else 'lose'}."
    )
    title = f"Gains at {notation.words(matrix.label)}"
    return heatmap(anchor, title, caption, squares, largest, "seeds" if seeds else "test images")


def _every(name: str, setting: Setting, matrix: Matrix) -> Listing:
    """Every pair at one way of choosing lambda: over plain with its errors, and over other methods."""
    others = [one for one in setting.matrices if one.mode == matrix.mode and one.baseline != matrix.baseline]
    gains = [{(pair.donor, pair.receiver): pair.gain for pair in one.pairs} for one in others]
    methods = tuple(f"over {notation.short_label(one.baseline)}" for one in others)
    columns = ("Receiver", "Donor", "λ", "Gain over plain, points", "Seeds", "Images", *methods)
    ordered = sorted(matrix.pairs, key=lambda pair: (matrix.tasks.index(pair.receiver), -pair.gain))
    rows = tuple((*_pair(pair), *(_found(one, pair) for one in gains)) for pair in ordered)
    note = "Seeds averaged. ±: standard error over seeds, and over test images. λ: of each seed, where it was chosen."
    title = f"Every pair at {notation.words(matrix.label)}: {name}"
    return Listing(title, columns, rows, "llrrrr" + "r" * len(methods), note=note)


def _pair(pair: PairGain) -> tuple[str, ...]:
    used = pair.lambdas if len(set(pair.lambdas)) > 1 else pair.lambdas[:1]
    errors = map(notation.error, (pair.seed_error, pair.image_error))
    return pair.receiver, pair.donor, ", ".join(map(short, used)), notation.points(pair.gain), *errors


def _found(gains: dict[Pair, float], pair: PairGain) -> str:
    gain = gains.get((pair.donor, pair.receiver))
    return NONE if gain is None else notation.points(gain)
