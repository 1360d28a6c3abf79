"""A study's answer in a few sentences, none of which says more than the tests show.

What is called better is better by the paired t-test over receivers after Holm's correction, at 5 %. What only has the
higher mean is said to have the higher mean.
"""

from __future__ import annotations

from statistics import mean

from qvec_deploy.research.study.analysis.row_key import DISPLACEMENT, MEAN, PAIR, PLAIN, RowKey
from qvec_deploy.research.study.analysis.study_summary import PairedTest, StudySetting, StudySummary
from qvec_deploy.research.study.analysis.task_pairs import NO_HEADROOM
from qvec_deploy.research.study.pages import notation

NO_IMAGES = "need none of the receiver's images either"
TOLD = 3  # settings that are told one by one
AGAINST = (
    ("better", "better than"),
    ("unclear", "not told apart from"),
    ("worse", "worse than"),
    ("untested", "not tested against"),
)


def answers(summary: StudySummary) -> tuple[str, ...]:
    """What one donor's vector does to plain PTQ: a sentence per setting, or counts and the range of many."""
    settings = _answering(summary)
    if not settings:
        return ("No donor's vector was tried at λ = 1: there is nothing to answer.",)
    if len(settings) > TOLD:
        verdicts = [verdict(setting.test(PAIR, PLAIN)) for _, setting in settings]
        gains = [row.gain.value for _, setting in settings if (row := setting.row(PAIR)) and row.gain]
        ends = f"{notation.points(min(gains))} to {notation.points(max(gains))} points"
        found = f"{_counts(verdicts)}; mean gains are {ends}"
        return (f"One donor's vector at λ = 1, against plain PTQ on the same grid: {found}.",)
    return tuple(_gain(name, setting) for name, setting in settings)


def remarks(summary: StudySummary) -> tuple[str, ...]:
    """Against controls, against what needs no vector, and what weakens the answer."""
    settings = _answering(summary)
    told = (_against_controls(settings), _against_methods(settings), _doubts(summary))
    return tuple(sentence for sentence in told if sentence)


def _answering(summary: StudySummary) -> list[tuple[str, StudySetting]]:
    return [(name, setting) for _, name, setting in notation.numbered(summary) if setting.row(PAIR)]


def verdict(comparison: PairedTest | None) -> str:
    """`better`, `worse`, `unclear`: a test did not tell them apart, or `untested`."""
    if comparison is None or comparison.t_adjusted is None:
        return "untested"
    if comparison.t_adjusted >= notation.SIGNIFICANT:
        return "unclear"
    return "better" if comparison.difference.value > 0 else "worse"


def _gain(name: str, setting: StudySetting) -> str:
    row, tested = setting.row(PAIR), setting.test(PAIR, PLAIN)
    if row is None or row.gain is None:
        return ""
    pick, over = notation.bars([row.gain])
    ends = notation.ends(pick(row.gain))
    known = [f"95 % interval{ends} over {over}, for these donors"] if ends else []
    if tested is not None and tested.t_adjusted is not None:
        known.append(
            f"p of a paired t-test over {notation.many(tested.receivers, 'receiver')} "
            f"{notation.p_equals(tested.t_adjusted)} after Holm's correction, {notation.p_text(tested.t_p)} before"
        )
    value = f"{notation.points(row.gain.value)} points" + (f" ({'; '.join(known)})" if known else "")
    subject = f"{name}: one donor's vector at λ = 1"
    found = {
        "better": f"{subject} is better than plain PTQ, by {value}",
        "worse": f"{subject} is worse than plain PTQ: {value}",
        "unclear": f"{subject} is not shown to differ from plain PTQ: {value}",
        "untested": f"{subject} changes plain PTQ by {value}, on too few receivers to test",
    }[verdict(tested)]
    against = row.wins_over(PLAIN)
    share = f"; it wins {against.wins} of {against.count} pairs and seeds" if against else ""
    return f"{found}{share}."


def _counts(verdicts: list[str]) -> str:
    words = {"better": "better", "worse": "worse", "unclear": "not told apart", "untested": "too few receivers to test"}
    counts = ", ".join(f"{words[one]} in {verdicts.count(one)}" for one in words if one in verdicts)
    return f"{counts} of {len(verdicts)} settings"


def _against_controls(settings: list[tuple[str, StudySetting]]) -> str:
    """In which settings it beats every control, and which controls it is not shown to beat elsewhere."""
    if not settings:
        return ""
    most, aside, missed = 0, "", []
    for name, setting in settings:
        keys = [row.key for row in setting.rows if row.key.kind == "control"]
        if keys:
            missed.append((name, [key.short for key in keys if verdict(setting.test(PAIR, key)) != "better"]))
            most = max(most, len(keys))
        if DISPLACEMENT in keys:
            aside = " The GPTQ displacement has it in the quantized Linears alone."
    if not missed:
        return "No control took a donor's place: a gain may be one of size rather than of direction."
    if not any(unbeaten for _, unbeaten in missed):
        where = "In every setting it" if len(missed) > 1 else "It"
        return f"{where} is better than each of the {notation.many(most, 'control')} of its norm.{aside}"
    if len(missed) > TOLD:
        beaten = sum(not unbeaten for _, unbeaten in missed)
        return f"It is better than every control of its norm in {beaten} of {len(missed)} settings.{aside}"
    parts = [
        f"{name}: {f'not shown to be better than {notation.listed(unbeaten)}' if unbeaten else 'better than each'}"
        for name, unbeaten in missed
    ]
    return f"Against controls of its norm. {'; '.join(parts)}.{aside}"


def _against_methods(settings: list[tuple[str, StudySetting]]) -> str:
    """What the tests say of the mean of donors (of one donor without it) against methods without a vector."""
    parts = _counted(settings) if len(settings) > TOLD else [_told(name, setting) for name, setting in settings]
    told = " ".join(filter(None, parts))
    return f"Against methods without a vector. {told}" if told else ""


def _methods(setting: StudySetting) -> tuple[RowKey, list[PairedTest]]:
    """The row that is held against methods without a vector, and its tests."""
    subject = MEAN if setting.row(MEAN) else PAIR
    return subject, [one for one in setting.comparisons if one.family == "methods" and one.better == subject]


def _told(name: str, setting: StudySetting) -> str:
    """One setting: which methods by verdict, each with the difference; those apart that need more than a vector."""
    subject, held = _methods(setting)
    parts = []
    look = f"look at {notation.choosing(setting)} unlabelled images of it"
    for where, looking in ((NO_IMAGES, False), (look, True)):
        some = [one for one in held if (one.worse.needs == "images") == looking]
        told = []
        for found, words in AGAINST:
            methods = [_difference(one) for one in some if verdict(one) == found]
            told += [f"{words} {notation.listed(methods)}"] if methods else []
        if some:
            parts.append(f"against those that {where}, {', '.join(told)}")
    return f"{name}: {subject.short} is, {'; '.join(parts)}." if parts else ""


def _difference(one: PairedTest) -> str:
    """A method with the difference: GPTQ (−5.1 points), GPTQ (generated: −1.5 points)."""
    name, _, looked = one.worse.short.rstrip(")").partition(" (")
    return f"{name} ({f'{looked}: ' if looked else ''}{notation.points(one.difference.value)} points)"


def _counted(settings: list[tuple[str, StudySetting]]) -> list[str]:
    """Many settings: how often each method was better, worse or neither; those apart that look at images."""
    verdicts: dict[RowKey, dict[RowKey, list[str]]] = {}  # by the row that is held against the method, and the method
    for _, setting in settings:
        subject, held = _methods(setting)
        for one in held:
            verdicts.setdefault(subject, {}).setdefault(one.worse, []).append(verdict(one))
    told = []
    for subject, against in verdicts.items():
        for where, looking in ((NO_IMAGES, False), ("look at unlabelled images of it", True)):
            parts = [
                f"against {method.short} {_counts(found)}"
                for method, found in against.items()
                if (method.needs == "images") == looking
            ]
            if parts:
                told.append(f"Of those that {where}, {subject.short} is {'; '.join(parts)}.")
    return told


def _doubts(summary: StudySummary) -> str:
    """What the study cannot say."""
    doubts = [_no_headroom(summary)]
    counts = {len(setting.seeds) for setting in summary.settings}
    if 1 in counts:
        doubts.append("One seed: nothing here says what training again would change.")
    if 2 in counts:
        doubts.append("Two seeds: an interval over seeds rests on one difference of two, and is weak.")
    missing = sum(len(setting.missing) for setting in summary.settings)
    if missing:
        doubts.append(
            f"{notation.many(missing, 'cell')} {'is' if missing == 1 else 'are'} missing: the tables name them."
        )
    return " ".join(filter(None, doubts))


def _no_headroom(summary: StudySummary) -> str:
    """Settings in which rounding costs next to nothing, so that nothing can win it back."""
    parts = []
    for _, name, setting in notation.numbered(summary):
        if setting.headroom and (gap := mean(one.gap for one in setting.headroom)) < NO_HEADROOM:
            trained = [one.own_qat_top1 is not None for one in setting.headroom]
            ceiling = "the receivers' own QAT" if all(trained) else "own QAT or float" if any(trained) else "float"
            parts.append(f"{name}: {ceiling} less plain PTQ is {notation.points(gap)} points on average")
    if not parts:
        return ""
    told = "; ".join(parts)
    if len(parts) > TOLD:
        shown = f"In {len(parts)} of {len(summary.settings)} settings"
        told = f"{shown} own QAT (or float) less plain PTQ is below {NO_HEADROOM:g} points on average"
    return f"{told}. There is next to nothing to recover: the question cannot be answered there."
