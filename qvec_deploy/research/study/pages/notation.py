"""A study's numbers and names -> text, the same on every page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TypeVar

from qvec_deploy.bench.statistics import Estimate
from qvec_deploy.formatting import NONE, p_value, signed_text
from qvec_deploy.research.study.analysis.row_key import Needs, clip_name
from qvec_deploy.research.study.analysis.study_summary import (
    PairedTest,
    PooledMean,
    StudySetting,
    StudySummary,
    WinCount,
)
from qvec_deploy.tensors import Scheme

T = TypeVar("T")

NEEDS: dict[Needs, str] = {
    "nothing": "nothing",
    "donors": "vectors",
    "images": "its images",
    "labels": "its labels",
    "training": "its training",
}
SIGNIFICANT = 0.05
BRACKETS = "In brackets: 95 % interval over receivers and seeds."


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


def optional(text: Callable[[T], str]) -> Callable[[T | None], str]:
    """The same for what may not be there."""
    return lambda value: NONE if value is None else text(value)


def _signed(value: float) -> str:
    return signed_text(f"{value:+.2f}") if round(abs(value), 2) else "0.00"


top1 = optional("{:.1f}".format)
error = optional("± {:.1f}".format)
"""A standard error in points."""
p_text = optional(p_value)
gain: Callable[[PooledMean | None], str] = optional(lambda mean: points(mean.value) + ends(mean.receivers))
"""A mean gain and its interval over receivers and seeds."""
over_images: Callable[[PooledMean | None], str] = optional(lambda mean: ends(mean.images).strip() or NONE)
over_seeds: Callable[[PooledMean | None], str] = optional(lambda mean: error(mean.seed_error))
difference: Callable[[PairedTest | None], str] = optional(
    lambda test: points(test.difference.value) + ends(test.difference)
)
"""The mean difference of two rows with the t-test's interval."""
share: Callable[[Estimate | None], str] = optional(
    lambda found: percent(found.value) + ends(found, lambda end: signed_text(str(round(100 * end))))
)
won: Callable[[WinCount | None], str] = optional(lambda wins: percent(wins.wins / wins.count))
"""The share of wins."""
correlation: Callable[[Estimate | None], str] = optional(lambda found: _signed(found.value) + ends(found, _signed))


def bars(shown: Sequence[PooledMean]) -> tuple[Callable[[PooledMean], Estimate], str]:
    """Which interval a figure draws, and what it is over: one for all its rows, images only where there is no other."""
    if any(one.receivers is not None for one in shown):
        return lambda one: one.receivers or Estimate(one.value, one.value, one.value), "receivers and seeds"
    return lambda one: one.images, "test images of one receiver"


def p_equals(p: float | None) -> str:
    """A p-value behind the letter p: = 0.02, or < 0.0001."""
    text = p_text(p)
    return text if text.startswith("<") else f"= {text}"


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, three significant digits."""
    size, unit = unit_of(seconds)
    return f"{seconds / size:.3g} {unit}"


def unit_of(seconds: float) -> tuple[float, str]:
    """The unit in which so many seconds read well: its size in seconds, and its name."""
    return next(((size, unit) for size, unit in ((3600.0, "h"), (60.0, "min")) if seconds >= 3 * size), (1.0, "s"))


def grid_words(grid: Scheme) -> str:
    """A grid in a few words: 3 bits per tensor, MSE clipping."""
    grain = f"group of {grid.group_size}" if grid.granularity == "group" else grid.granularity
    return f"{grid.bits} bits per {grain}, {clip_name(grid)}"


def numbered(summary: StudySummary) -> list[tuple[int, str, StudySetting]]:
    """Every setting with its number and a short name, unique: its grid, with the model where there are several."""
    models = {(setting.name, setting.model, str(setting.model_args)) for setting in summary.settings}
    called: dict[str, set[str]] = {}  # the study's names for a model, where timm's has several
    for setting in summary.settings:
        called.setdefault(setting.model, set()).add(setting.name)
    seen: Counter[str] = Counter()
    found = []
    for index, setting in enumerate(summary.settings):
        name = grid_words(setting.grid)
        if len(models) > 1:
            name = f"{setting.name if len(called[setting.model]) > 1 else setting.model}, {name}"
        seen[name] += 1
        found.append((index, name if seen[name] == 1 else f"{name} ({seen[name]})", setting))
    return found


def model_title(setting: StudySetting) -> str:
    """The study's name for the model with timm's, or the one name that it has: vit_demo (vit_tiny_patch16_224)."""
    return setting.model if setting.name == setting.model else f"{setting.name} ({setting.model})"


def many(count: int, noun: str) -> str:
    """A count with its noun: 1 donor, 2 donors."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def listed(names: Sequence[str]) -> str:
    """Names in a sentence: a, b and c."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def pair_count(setting: StudySetting) -> int:
    """Pairs of a donor and a receiver."""
    return len({(pair.donor, pair.receiver) for matrix in setting.matrices for pair in matrix.pairs})


def choosing(setting: StudySetting) -> str:
    """How many images choose; doubles of test images are dropped from them."""
    fewer = any(one.selecting is not None and one.selecting < setting.selecting for one in setting.headroom)
    return f"{'up to ' if fewer else ''}{setting.selecting:,}"


def words(label: str) -> str:
    """A label with the letter for lambda, as the page has it everywhere."""
    return label.replace("lambda 1", "λ = 1").replace("lambda", "λ")
