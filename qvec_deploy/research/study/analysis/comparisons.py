"""Which rows are tested against which, in families of comparisons that answer one question each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from qvec_deploy.research.study.analysis.row_key import (
    CONTROLS,
    FLOAT,
    MEAN,
    MIX,
    OWN_QAT,
    PAIR,
    PLAIN,
    RowKey,
    methods_of,
)
from qvec_deploy.research.study.analysis.setting_cells import SettingCells, row_of
from qvec_deploy.research.study.analysis.study_statistics import holm, paired
from qvec_deploy.research.study.analysis.study_summary import ComparisonFamily, PairedTest, StudySetting

FAMILIES = {
    "plain": "Is a vector better than plain PTQ on the grid?",
    "ptq": "Is another PTQ method, with a vector or without, better than plain PTQ on the grid?",
    "controls against plain": "Does something else of a vector's norms do anything?",
    "controls": "Is one donor's vector better than something else of its norms?",
    "methods": "Is a vector better than another PTQ method?",
    "on top": "Does the mean of donors add to a calibrated method?",
    "choices": "Is it worth choosing, averaging or mixing?",
    "similarity": "Do similar tasks gain more?",
}
"""P-values are adjusted (Holm) over a family in all settings of the study together: a study of two grids asks each
question twice, and one answer that came by chance would be one too many. The correlations are a family of their own."""

REFERENCES = (FLOAT, OWN_QAT, PLAIN)
VECTORS = (PAIR, MEAN, MIX)
CHOICES = (
    (RowKey("pair", "label_free"), PAIR),
    (RowKey("pair", "labelled"), PAIR),
    (RowKey("donor", "label_free"), PAIR),
    (MEAN, PAIR),
    (MIX, MEAN),
)


def questions(rows: Iterable[RowKey]) -> list[tuple[str, RowKey, RowKey]]:
    """Every comparison between rows that were tried, each once: its family, what may be better, and than what."""
    keys = tuple(rows)
    asked = [(_against_plain(key), key, PLAIN) for key in keys if key not in REFERENCES]
    asked += [("controls", PAIR, RowKey("control", control=control)) for control in CONTROLS]
    asked += [("methods", vector, method) for vector in VECTORS for method in methods_of(keys)]
    asked += [("on top", key, key.without_vector) for key in keys if key.kind == "mean" and key.method]
    asked += [("choices", *pair) for pair in CHOICES]
    return [(family, better, worse) for family, better, worse in asked if {better, worse} <= set(keys)]


def _against_plain(key: RowKey) -> str:
    """The family of a row's comparison with plain."""
    if key.kind == "control":
        return "controls against plain"
    return "plain" if key.vector and key.method is None else "ptq"


def compare(cells: SettingCells, rows: Iterable[RowKey]) -> tuple[PairedTest, ...]:
    """Paired tests over receivers, seeds averaged first; not yet adjusted.

    A receiver's difference is over the seeds that have both rows. A row that is plain PTQ by another name (a lambda
    that was always chosen to be 0) is not compared with anything: plain is.
    """
    top1 = {key: cells.top1(row_of(key)) for key in rows if key == PLAIN or not is_plain(cells, key)}
    found = []
    for family, better, worse in questions(top1):
        difference = top1[better] - top1[worse]
        by_receiver = [float(np.nanmean(row)) for row in difference if np.isfinite(row).any()]
        if by_receiver:
            label = f"{better.label} against {worse.label}"
            tested = paired(by_receiver)
            found.append(PairedTest(**vars(tested), family=family, better=better, worse=worse, label=label))
    return tuple(found)


def is_plain(cells: SettingCells, key: RowKey) -> bool:
    """Whether a row is the very trials of plain PTQ."""
    return all(cell.of_row(key) == (cell.plain,) for cell in cells.by_place.values())


def adjust(settings: Sequence[StudySetting]) -> tuple[tuple[StudySetting, ...], tuple[ComparisonFamily, ...]]:
    """Settings with every family's p-values adjusted, and how large the families are."""
    tests: dict[int, PairedTest] = {}  # adjusted, by the identity of the one that was not
    sizes: dict[str, int] = {}
    for name in FAMILIES:
        family = [one for setting in settings for one in setting.comparisons if one.family == name]
        adjusted = zip(family, holm([c.t_p for c in family]), holm([c.wilcoxon_p for c in family]), strict=True)
        tests |= {id(one): replace(one, t_adjusted=t, wilcoxon_adjusted=wilcoxon) for one, t, wilcoxon in adjusted}
        sizes[name] = sum(c.wilcoxon_p is not None for c in family)  # it needs two receivers, the t-test a spread too
    every = [one for setting in settings for similarity in setting.similarities for one in similarity.correlations]
    p_values = holm([one.qap_p for one in every])
    correlations = {id(one): replace(one, qap_adjusted=p) for one, p in zip(every, p_values, strict=True)}
    sizes["similarity"] = sum(p is not None for p in p_values)
    done = tuple(
        replace(
            setting,
            comparisons=tuple(tests[id(one)] for one in setting.comparisons),
            similarities=tuple(
                replace(entry, correlations=tuple(correlations[id(one)] for one in entry.correlations))
                for entry in setting.similarities
            ),
        )
        for setting in settings
    )
    return done, tuple(ComparisonFamily(name, label, sizes[name]) for name, label in FAMILIES.items() if sizes[name])
