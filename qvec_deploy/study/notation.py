"""A study's numbers and names -> text, the same on every page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from qvec_deploy.measure.statistics import Estimate
from qvec_deploy.report.formatting import NONE, p_value, signed_text
from qvec_deploy.study.summary import Measured, Needs, Setting, Summary, Wins
from qvec_deploy.tensors import Scheme

NEEDS: dict[Needs, str] = {
    "nothing": "nothing",
    "donors": "vectors",
    "images": "its images",
    "labels": "its labels",
    "training": "its training",
}
SIGNIFICANT = 0.05

SHORT = {
    "float": "float",
    "own_qat": "own QAT",
    "rtn": "absmax",
    "mse": "MSE clipping",
    "plain": "plain PTQ",
    "pair/lambda_1": "one donor at λ = 1",
    "pair/label_free": "one donor at label-free λ",
    "pair/labelled": "one donor at labelled λ",
    "donor/label_free": "label-free donor",
    "donor/labelled": "labelled donor",
    "donor_lambda/label_free": "label-free donor and λ",
    "donor_lambda/labelled": "labelled donor and λ",
    "mean/lambda_1": "mean of donors at λ = 1",
    "mean/label_free": "mean at label-free λ",
    "mix": "label-free mix",
    "control/random": "random control",
    "control/shuffle": "shuffled control",
    "control/task_vector": "task-vector control",
    "control/gptq_displacement": "GPTQ-displacement control",
}
"""Rows by key."""


def points(value: float) -> str:
    """Percentage points with their sign: +8.3."""
    return signed_text(f"{value:+.1f}") if round(abs(value), 1) else "0.0"


def percent(share: float) -> str:
    """A share in percent, whole: 67 %."""
    return signed_text(f"{round(100 * share)} %")


def between(low: float, high: float) -> str:
    """The ends of an interval in points."""
    return f"[{points(low)}, {points(high)}]"


def gain(measured: Measured | None) -> str:
    """A mean gain and its interval over receivers and seeds."""
    if measured is None:
        return NONE
    ends = measured.receivers
    return points(measured.value) + (f" {between(ends.low, ends.high)}" if ends is not None else "")


def over_images(measured: Measured | None) -> str:
    """A mean gain's interval over images."""
    return between(measured.images.low, measured.images.high) if measured is not None else NONE


def over_seeds(measured: Measured | None) -> str:
    """A mean's standard error over seeds."""
    return error(measured.seed_error if measured is not None else None)


def error(value: float | None) -> str:
    """A standard error in points."""
    return NONE if value is None else f"± {value:.1f}"


def top1(value: float | None) -> str:
    """An accuracy in percent."""
    return NONE if value is None else f"{value:.1f}"


def share(estimate: Estimate | None) -> str:
    """A share and its interval in percent."""
    if estimate is None:
        return NONE
    if estimate.low == estimate.high:
        return percent(estimate.value)
    ends = signed_text(f"[{round(100 * estimate.low)}, {round(100 * estimate.high)}]")
    return f"{percent(estimate.value)} {ends}"


def won(wins: Wins) -> str:
    """The share of wins."""
    return percent(wins.wins / wins.count) if wins.count else NONE


def chance(p: float | None) -> str:
    """A p-value."""
    return NONE if p is None else p_value(p)


def equals(p: float | None) -> str:
    """A p-value behind the letter p: = 0.02, or < 0.0001."""
    text = chance(p)
    return text if text.startswith("<") else f"= {text}"


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, three significant digits."""
    for unit, size in (("h", 3600.0), ("min", 60.0)):
        if seconds >= 3 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"


def grid_name(grid: Scheme) -> str:
    """A grid in a few words: 3 bits per tensor, MSE clipping."""
    grain = f"group of {grid.group_size}" if grid.granularity == "group" else grid.granularity
    clips = {"mse": "MSE clipping", "rtn": "absmax" if grid.clip == 1 else f"clip {grid.clip:g}"}
    return f"{grid.bits} bits per {grain}, {clips[grid.method]}"


def setting_names(summary: Summary) -> tuple[str, ...]:
    """A short name for each setting, unique: its grid, with the model where there are several."""
    models = {(setting.model, str(setting.model_args)) for setting in summary.settings}
    seen: Counter[str] = Counter()
    names = []
    for setting in summary.settings:
        name = grid_name(setting.grid)
        if len(models) > 1:
            name = f"{setting.model}, {name}"
        seen[name] += 1
        names.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return tuple(names)


def many(count: int, noun: str) -> str:
    """A count with its noun: 1 donor, 2 donors."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def listed(names: Sequence[str]) -> str:
    """Names in a sentence: a, b and c."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def pairs(setting: Setting) -> int:
    """Pairs of a donor and a receiver."""
    return len({(pair.donor, pair.receiver) for matrix in setting.matrices for pair in matrix.pairs})


def words(label: str) -> str:
    """A label with the letter for lambda, as the page has it everywhere."""
    return label.replace("lambda 1", "λ = 1").replace("lambda", "λ")


def short_label(key: str, otherwise: str = "") -> str:
    """A row's name beside a plot or in a sentence; the tables have it in full."""
    methods = {"awq": "AWQ", "gptq": "GPTQ", "gptaq": "asymmetric GPTQ"}
    looked = {"images": "", "generated": " (generated)", "moments": " (moments)"}
    if key in SHORT:
        return SHORT[key]
    method, *rest = key.removeprefix("mean+").split("/")
    if method not in methods or not rest or rest[0] not in looked:
        return words(otherwise or key)
    name = methods[method] + looked[rest[0]]
    way = "mean" if rest[-1] == "lambda_1" else "mean at chosen λ"
    return f"{way} + {name}" if key.startswith("mean+") else name
