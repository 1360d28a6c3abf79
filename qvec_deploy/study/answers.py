"""A study's answer in a few sentences, none of which says more than the tests show.

What is called better is better by the paired t-test over receivers after Holm's correction, at 5 %. What only has the
higher mean is said to have the higher mean.
"""

from __future__ import annotations

from collections.abc import Iterable

from qvec_deploy.study import notation
from qvec_deploy.study.summary import Comparison, Row, Setting, Summary

VECTOR = "pair/lambda_1"
PLAIN = "plain"
CONTROL = "control/"
MEAN = "mean/lambda_1"
TOLD = 3  # settings that are told one by one
AGAINST = (
    ("better", "better than"),
    ("unclear", "not told apart from"),
    ("worse", "worse than"),
    ("untested", "not tested against"),
)


def answers(summary: Summary) -> tuple[str, ...]:
    """What one donor's vector does to plain PTQ: a sentence per setting, or counts of many."""
    settings = _answering(summary)
    if not settings:
        return ("No donor's vector was tried at λ = 1: there is nothing to answer.",)
    if len(settings) > TOLD:
        verdicts = [verdict(compared(setting, VECTOR, PLAIN)) for _, setting in settings]
        return (f"One donor's vector at λ = 1, against plain PTQ on the same grid: {_counts(verdicts)}.",)
    return tuple(_gain(name, setting) for name, setting in settings)


def remarks(summary: Summary) -> tuple[str, ...]:
    """Against controls, against what needs no vector, and what weakens the answer."""
    settings = _answering(summary)
    told = (_against_controls(settings), _against_methods(settings), _doubts(summary))
    return tuple(sentence for sentence in told if sentence)


def _answering(summary: Summary) -> list[tuple[str, Setting]]:
    names = notation.setting_names(summary)
    return [(name, setting) for name, setting in zip(names, summary.settings, strict=True) if setting.row(VECTOR)]


def compared(setting: Setting, better: str, worse: str) -> Comparison | None:
    """The paired test of two rows, if it was made."""
    return next((one for one in setting.comparisons if (one.better, one.worse) == (better, worse)), None)


def verdict(comparison: Comparison | None) -> str:
    """`better`, `worse`, `unclear`: a test did not tell them apart, or `untested`."""
    if comparison is None or comparison.t_adjusted is None:
        return "untested"
    if comparison.t_adjusted >= notation.SIGNIFICANT:
        return "unclear"
    return "better" if comparison.difference.value > 0 else "worse"


def _gain(name: str, setting: Setting) -> str:
    row, tested = setting.row(VECTOR), compared(setting, VECTOR, PLAIN)
    if row is None or row.gain is None:
        return ""
    value = f"{notation.points(row.gain.value)} points" + _ends(row)
    p = (
        f"p {notation.equals(tested.t_adjusted)} after Holm's correction, {notation.chance(tested.t_p)} before"
        if tested
        else ""
    )
    subject = f"{name}: one donor's vector at λ = 1"
    found = {
        "better": f"{subject} is better than plain PTQ, by {value} ({p})",
        "worse": f"{subject} is worse than plain PTQ: {value} ({p})",
        "unclear": f"{subject} is not shown to differ from plain PTQ: {value} ({p})",
        "untested": f"{subject} changes plain PTQ by {value}, on too few receivers to test",
    }[verdict(tested)]
    against = next((wins for wins in row.wins if wins.baseline == PLAIN), None)
    share = f"; it wins {against.wins} of {against.count} pairs and seeds" if against else ""
    return f"{found}{share}."


def _ends(row: Row) -> str:
    ends = row.gain.receivers if row.gain else None
    return f" {notation.between(ends.low, ends.high)}" if ends else ""


def _counts(verdicts: list[str]) -> str:
    words = {"better": "better", "worse": "worse", "unclear": "not told apart", "untested": "too few receivers to test"}
    return ", ".join(f"{words[one]} in {verdicts.count(one)}" for one in words if one in verdicts) + (
        f" of {len(verdicts)} settings"
    )


def _against_controls(settings: list[tuple[str, Setting]]) -> str:
    """In which settings it beats every control, and which controls it is not shown to beat elsewhere."""
    held = [
        (name, setting, [row.key for row in setting.rows if row.key.startswith(CONTROL)]) for name, setting in settings
    ]
    held = [entry for entry in held if entry[2]]
    if not held and settings:
        return "No control took a donor's place: a gain may be one of size rather than of direction."
    missed = [(name, _unbeaten(setting, keys)) for name, setting, keys in held]
    if not any(keys for _, keys in missed):
        kinds = notation.many(max(len(keys) for _, _, keys in held), "control")
        where = " in every setting" if len(held) > 1 else ""
        return f"It is better than each of the {kinds} of equal norm{where}."
    if len(missed) > TOLD:
        beaten = sum(not keys for _, keys in missed)
        return f"It is better than every control of equal norm in {beaten} of {len(missed)} settings."
    parts = [
        f"{name}: {f'not shown to be better than {notation.listed(keys)}' if keys else 'better than each'}"
        for name, keys in missed
    ]
    return f"Against controls of equal norm, {'; '.join(parts)}."


def _unbeaten(setting: Setting, keys: Iterable[str]) -> list[str]:
    return [notation.short_label(key) for key in keys if verdict(compared(setting, VECTOR, key)) != "better"]


def _against_methods(settings: list[tuple[str, Setting]]) -> str:
    """What the tests say of the mean of donors (of one donor without it) against methods without a vector."""
    if len(settings) > TOLD:
        return ""
    parts = []
    for name, setting in settings:
        subject = MEAN if setting.row(MEAN) else VECTOR
        held = [one for one in setting.comparisons if one.family == "methods" and one.better == subject]
        told = [
            f"{words} {notation.listed([notation.short_label(one.worse) for one in held if verdict(one) == found])}"
            for found, words in AGAINST
            if any(verdict(one) == found for one in held)
        ]
        if told:
            parts.append(f"{name}: {notation.short_label(subject)} is {', '.join(told)}.")
    return f"Against methods without a vector. {' '.join(parts)}" if parts else ""


def _doubts(summary: Summary) -> str:
    """What the study cannot say."""
    doubts = []
    if any(len(setting.seeds) == 1 for setting in summary.settings):
        doubts.append("One seed: nothing here says what training again would change.")
    missing = sum(len(setting.missing) for setting in summary.settings)
    if missing:
        doubts.append(
            f"{notation.many(missing, 'cell')} {'is' if missing == 1 else 'are'} missing: the tables name them."
        )
    return " ".join(doubts)
