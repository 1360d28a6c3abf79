"""The paper's published figures, each with its setting, beside the study's where the setting is the same.

Figures: arXiv 2604.03420 and the logs that its authors publish with the code (`journal.md`, `RESEARCH_NOTE.md` and, on
a branch, `QUANT_STEERING_LOG.md` of the repository qat-transfer); one training seed. Model, grid, method, lambda, split
and tasks must agree, or the two are not comparable: a mean over other tasks is another quantity. Fine-tunes that were
trained here are others than the released ones; what differs is said.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from qvec_deploy.bench.statistics import Estimate
from qvec_deploy.research.study.analysis.row_key import OWN_QAT, PAIR, PLAIN, RowKey
from qvec_deploy.research.study.analysis.study_summary import PublishedFigure, StudyRow, StudySetting
from qvec_deploy.research.study.presets import BACKBONES, PAPER_TASKS
from qvec_deploy.tensors import Scheme

Unit = Literal["points", "%", "lambda", "correlation"]
Read = Callable[[StudySetting], Estimate | float | None]

VIT_B, DEIT_B = BACKBONES["vit_b"], BACKBONES["deit3_b"]
BERT_L = "google-bert/bert-large-uncased"
W2, W3, W4 = (Scheme(bits, "channel") for bits in (2, 3, 4))
HEAD = ("head",)
GPTQ, AWQ = RowKey("calibrated", None, "gptq", "images"), RowKey("calibrated", None, "awq", "images")
JOURNAL, NOTE, LOG = "authors' journal", "authors' research note", "authors' quant-steering log"
SAME = "same setting; seeds, calibration images and how many test images are used are the study's own"
TRAINED = "the fine-tunes too: trained here, by the study's recipe, and not the released ones"


@dataclass(frozen=True)
class PaperFigure:
    """A published figure.

    Attributes:
        model: timm name, or the name of a model that timm does not have.
        task: The one receiver that it is about; None for means over all of them.
        read: Where a study has it; None for what a study does not compute.
        differs: In what the study's value is another all the same; empty for nothing.
    """

    source: str
    what: str
    unit: Unit
    value: float
    read: Read | None
    split: str = "test"
    task: str | None = None
    differs: str = ""
    model: str = VIT_B
    grid: Scheme = W3


def plain_name(task: str) -> str:
    """A task's name without what differs between spellings: its letters and digits, lower case."""
    return "".join(character for character in task.lower() if character.isalnum())


def beside_paper(settings: Sequence[StudySetting], trained: Collection[str] = ()) -> tuple[PublishedFigure, ...]:
    """Every published figure with the study's value, or with why there is none.

    Args:
        trained: Models, by timm's names, whose fine-tunes were trained here.
    """
    return tuple(_beside(figure, settings, figure.model in trained) for figure in FIGURES)


def _beside(figure: PaperFigure, settings: Sequence[StudySetting], trained: bool) -> PublishedFigure:
    wanted = (figure.model, figure.grid, HEAD)
    same = [s for s in settings if (s.model, s.grid, s.skip) == wanted and not s.model_args]
    reason = _differs(figure, settings, same)
    value = figure.read(same[0]) if figure.read is not None and not reason else None
    if value is None:
        reason = f"not comparable: {reason or 'the study did not try it'}"
    else:
        reason = "; ".join([SAME, *([TRAINED] if trained else []), *([figure.differs] if figure.differs else [])])
    interval = value if isinstance(value, Estimate) and value.low < value.high else None
    return PublishedFigure(
        source=figure.source,
        what=figure.what + (f", {figure.task}" if figure.task else ""),
        unit=figure.unit,
        setting=f"{figure.model}, {figure.grid}, {figure.split} split",
        published=figure.value,
        study=value.value if isinstance(value, Estimate) else value,
        low=interval.low if interval else None,
        high=interval.high if interval else None,
        reason=reason,
    )


def _differs(figure: PaperFigure, settings: Sequence[StudySetting], same: Sequence[StudySetting]) -> str:
    """What keeps a figure from being compared; empty where nothing does."""
    if figure.model not in {setting.model for setting in settings}:
        return f"the study has no {figure.model}"
    if not same:
        return f"the study has no {figure.grid} that skips only the head, for this model without model_args"
    if figure.split != "test":
        return f"published on the {figure.split} split; a study judges on test images"
    if figure.read is None:
        return "a study does not compute it"
    return _other_tasks(figure, same[0])


def _other_tasks(figure: PaperFigure, setting: StudySetting) -> str:
    """Whether a figure is over other tasks, or other pairs of them."""
    papers, there = set(map(plain_name, PAPER_TASKS)), set(map(plain_name, setting.receivers))
    if figure.task is not None:
        return "" if plain_name(figure.task) in there else f"{figure.task} is not among the study's receivers"
    if there != papers or set(map(plain_name, setting.tasks)) != papers:
        return f"published over {len(papers)} tasks; the study has {len(there & papers)} of them as receivers"
    pairs, every = len(setting.pairs()), len(papers) * (len(papers) - 1)
    return "" if pairs == every else f"published over {every} pairs; the study has {pairs} of them"


def _of_row(key: RowKey, read: Callable[[StudyRow], Estimate | None]) -> Read:
    return lambda setting: read(row) if (row := setting.row(key)) else None


def _top1(key: RowKey) -> Read:
    return _of_row(key, lambda row: row.top1.receivers)


def _gain(key: RowKey) -> Read:
    return _of_row(key, lambda row: row.gain.receivers if row.gain else None)


def _wins(key: RowKey, baseline: RowKey) -> Read:
    return _of_row(key, lambda row: _percent(wins.share) if (wins := row.wins_over(baseline)) else None)


def _percent(share: Estimate | None) -> Estimate | None:
    return share and Estimate(100 * share.value, 100 * share.low, 100 * share.high)


def _difference(better: RowKey, worse: RowKey) -> Read:
    return lambda setting: test.difference if (test := setting.test(better, worse)) else None


def _median_gain(setting: StudySetting) -> float | None:
    gains = [pair.gain for pair in setting.pairs()]
    return float(np.median(gains)) if gains else None


def _cosine_correlation(setting: StudySetting) -> Estimate | None:
    found = [c for s in setting.similarities if s.measure == "vector_cosine" for c in s.correlations]
    return next((c.spearman for c in found if c.over == "pairs"), None)


def _receiver(key: Literal["float_top1", "plain_top1", "own_qat_top1"], task: str) -> Read:
    name = plain_name(task)
    return lambda setting: next((getattr(h, key) for h in setting.headroom if plain_name(h.receiver) == name), None)


def _pair(*names: str) -> Read:
    """Of a donor and a receiver."""
    wanted = [plain_name(name) for name in names]
    return lambda setting: next(
        (pair.gain for pair in setting.pairs() if [plain_name(pair.donor), plain_name(pair.receiver)] == wanted), None
    )


def _of_receiver(task: str, source: str = JOURNAL, **percent: float) -> tuple[PaperFigure, ...]:
    """Published accuracies of one receiver of ViT-B at 3 bits."""
    words = {"float_top1": "float top-1", "plain_top1": "round to nearest", "own_qat_top1": "own QAT"}
    return tuple(
        PaperFigure(source, words[key], "%", value, _receiver(key, task), task=task)  # type: ignore[arg-type]
        for key, value in percent.items()
    )


SHARE_OF_GAP = _of_row(PAIR, lambda row: _percent(row.share_of_gap))
FIGURES: tuple[PaperFigure, ...] = (
    PaperFigure(JOURNAL, "gap: own QAT over round to nearest", "points", 45.26, _gain(OWN_QAT)),
    PaperFigure(JOURNAL, "pairs that gain at lambda 1", "%", 76.6, _wins(PAIR, PLAIN)),
    PaperFigure(JOURNAL, "mean gain of a pair at lambda 1", "points", 9.7, _gain(PAIR)),
    PaperFigure(JOURNAL, "median gain of a pair at lambda 1", "points", 5.4, _median_gain),
    PaperFigure(JOURNAL, "share of the gap at lambda 1 (ratio of the means above)", "%", 21.4, SHARE_OF_GAP),
    PaperFigure(JOURNAL, "GPTQ over round to nearest", "points", 57.2, _gain(GPTQ)),
    PaperFigure(JOURNAL, "GPTQ", "%", 79.1, _top1(GPTQ)),
    PaperFigure(JOURNAL, "AWQ over round to nearest", "points", 53.0, _gain(AWQ)),
    PaperFigure(JOURNAL, "pairs at lambda 1 that beat AWQ", "%", 0.0, _wins(PAIR, AWQ)),
    PaperFigure(JOURNAL, "a pair at lambda 1 over AWQ", "points", -43.3, _difference(PAIR, AWQ)),
    PaperFigure(JOURNAL, "pairs at lambda 1 under GPTQ that beat GPTQ", "%", 9.3, None),
    PaperFigure(JOURNAL, "a pair at lambda 1 under GPTQ over GPTQ", "points", -3.2, None),
    PaperFigure(NOTE, "pairs that gain at lambda 1", "%", 74.0, _wins(PAIR, PLAIN), "validation"),
    PaperFigure(NOTE, "gain of the best lambda over lambda 1", "points", 3.99, None, "validation"),
    PaperFigure(NOTE, "median best lambda", "lambda", 0.75, None, "validation"),
    PaperFigure(
        NOTE,
        "Spearman of vector cosine and gain at lambda 1, all pairs",
        "correlation",
        0.015,
        _cosine_correlation,
        differs="the published cosine is of the quantized Linears alone, the study's of the whole backbone",
    ),
    PaperFigure(NOTE, "gain from STL10 at lambda 1", "points", 24.3, _pair("STL10", "CIFAR10"), task="CIFAR10"),
    PaperFigure(NOTE, "gain from CIFAR10 at lambda 1", "points", -7.7, _pair("CIFAR10", "STL10"), task="STL10"),
    *_of_receiver("MNIST", plain_top1=14.3, own_qat_top1=98.0),
    *_of_receiver("ImageNet", float_top1=74.4, plain_top1=11.0),
    *_of_receiver("GTSRB", LOG, float_top1=94.7),
    *_of_receiver("GTSRB", plain_top1=19.7),
    *_of_receiver("RESISC45", plain_top1=28.6),
    *_of_receiver("SUN397", plain_top1=5.4),
    *_of_receiver("CIFAR10", LOG, float_top1=97.8),
    *_of_receiver("CIFAR10", own_qat_top1=86.8),
    *_of_receiver("EuroSAT", float_top1=98.26, own_qat_top1=95.89),
    *_of_receiver("Flowers102", LOG, float_top1=96.9),
    *_of_receiver("Cars", LOG, float_top1=38.4),
    *_of_receiver("EMNIST", LOG, float_top1=81.2),
    PaperFigure(JOURNAL, "float top-1", "%", 98.74, _receiver("float_top1", "EuroSAT"), task="EuroSAT", model=DEIT_B),
    PaperFigure(
        JOURNAL, "round to nearest", "%", 82.37, _receiver("plain_top1", "EuroSAT"), task="EuroSAT", model=DEIT_B
    ),
    PaperFigure(JOURNAL, "gap: own QAT over round to nearest", "points", 1.08, _gain(OWN_QAT), grid=W4),
    PaperFigure(JOURNAL, "round to nearest", "%", 10.3, _top1(PLAIN), grid=W2),
    PaperFigure(JOURNAL, "GPTQ", "%", 28.9, _top1(GPTQ), grid=W2),
    PaperFigure(JOURNAL, "pairs that gain at lambda 1 (text)", "%", 15.5, None, model=BERT_L),
    PaperFigure(JOURNAL, "mean gain of a pair at lambda 1 (text)", "points", -29.1, None, model=BERT_L),
)
