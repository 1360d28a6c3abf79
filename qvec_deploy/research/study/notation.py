"""A study's numbers and names -> text, the same on every page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from operator import attrgetter

from qvec_deploy.bench.statistics import Estimate
from qvec_deploy.formatting import NONE, p_value, signed_text
from qvec_deploy.research.study.rows import clip_name
from qvec_deploy.research.study.study_summary import Measured, Needs, Setting, Summary, Wins
from qvec_deploy.tensors import Scheme

NEEDS: dict[Needs, str] = {
    "nothing": "nothing",
    "donors": "vectors",
    "images": "its images",
    "labels": "its labels",
    "training": "its training",
}
SIGNIFICANT = 0.05
BRACKETS = "In brackets: 95 % interval over receivers and seeds."

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


def ends(interval: Estimate | None, text: Callable[[float], str] = points) -> str:
    """An interval, to stand behind its value: ` [low, high]`; empty where none could be had: its ends are the value."""
    if interval is None or interval.low == interval.high:
        return ""
    return f" [{text(interval.low)}, {text(interval.high)}]"


def gain(measured: Measured | None) -> str:
    """A mean gain and its interval over receivers and seeds."""
    if measured is None:
        return NONE
    return points(measured.value) + ends(measured.receivers)


def over_images(measured: Measured | None) -> str:
    """A mean gain's interval over images."""
    return NONE if measured is None else ends(measured.images).strip() or NONE


def bars(shown: Sequence[Measured]) -> tuple[Callable[[Measured], Estimate | None], str]:
    """Which interval a figure draws, and what it is over: one for all its rows, images only where there is no other."""
    if any(one.receivers is not None for one in shown):
        return attrgetter("receivers"), "receivers and seeds"
    return attrgetter("images"), "test images of one receiver"


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
    return percent(estimate.value) + ends(estimate, lambda end: signed_text(str(round(100 * end))))


def correlation(estimate: Estimate | None) -> str:
    """A correlation and its interval over tasks."""
    if estimate is None:
        return NONE
    return f"{_signed(estimate.value)}{ends(estimate, _signed)}"


def _signed(value: float) -> str:
    return signed_text(f"{value:+.2f}") if round(abs(value), 2) else "0.00"


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
    return f"{grid.bits} bits per {grain}, {clip_name(grid)}"


def setting_names(summary: Summary) -> tuple[str, ...]:
    """A short name for each setting, unique: its grid, with the model where there are several."""
    models = {(setting.name, setting.model, str(setting.model_args)) for setting in summary.settings}
    seen: Counter[str] = Counter()
    names = []
    for model, setting in zip(model_names(summary), summary.settings, strict=True):
        name = grid_name(setting.grid)
        if len(models) > 1:
            name = f"{model}, {name}"
        seen[name] += 1
        names.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return tuple(names)


def model_names(summary: Summary) -> tuple[str, ...]:
    """Of every setting: timm's name, or the study's where two of its models have one timm name."""
    called: dict[str, set[str]] = {}
    for setting in summary.settings:
        called.setdefault(setting.model, set()).add(setting.name)
    return tuple(one.name if len(called[one.model]) > 1 else one.model for one in summary.settings)


def model_title(setting: Setting) -> str:
    """The study's name for the model with timm's, or the one name that it has: vit_demo (vit_tiny_patch16_224)."""
    return setting.model if setting.name == setting.model else f"{setting.name} ({setting.model})"


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
