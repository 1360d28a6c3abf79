"""The rows of a study's tables: which there are, how they are spelled in records, and what they are called."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from qvec_deploy.quantize import methods as quantize
from qvec_deploy.research.study.cell_values import Control
from qvec_deploy.tensors import Scheme

RowKind = Literal[
    "float", "own_qat", "rtn", "mse", "plain", "calibrated", "pair", "donor", "donor_lambda", "mean", "mix", "control"
]
"""`rtn`, `mse` and `plain` (on the donors' own grid) are round to nearest; `calibrated` looks at inputs; `pair` is over
all donors, `donor` is one that was chosen, `donor_lambda` one with its lambda."""

Chooser = Literal["lambda_1", "label_free", "labelled", "hindsight", "median"]
"""How lambda or the donor was chosen: not at all, by selecting images without or with labels, by test images, or the
donor in the middle of the test gains."""

Needs = Literal["nothing", "donors", "images", "labels", "training"]
"""What of the receiver's a row takes: `nothing` and `donors` none of its data (donors: other tasks' vectors), `images`
unlabelled ones, `labels` labelled ones, `training` a fine-tune of its own."""

CONTROLS: tuple[Control, ...] = get_args(Control)
METHODS = {row.name: row.label for row in quantize.METHODS.values() if row.calibrated}
INPUTS = {"images": "unlabelled images", "generated": "generated images", "moments": "donors' second moments"}
_SHORT_INPUTS = {"images": "", "generated": " (generated)", "moments": " (moments)"}


@dataclass(frozen=True)
class RowKey:
    """A row of a study's tables.

    Attributes:
        chooser: What chose lambda or a donor, where that could be chosen.
        method: Of a calibrated row, or of the mean of donors under one.
    """

    kind: RowKind
    chooser: Chooser | None = None
    method: str | None = None
    inputs: str | None = None
    control: Control | None = None

    def __str__(self) -> str:
        """As records, JSON and CSV spell it: `gptq/images`, `pair/lambda_1`, `mean+gptq/images/lambda_1`."""
        if self.kind == "calibrated":
            return f"{self.method}/{self.inputs}"
        kind = self.kind if self.method is None else f"{self.kind}+{self.method}/{self.inputs}"
        return "/".join(filter(None, (kind, self.control or self.chooser)))

    @property
    def label(self) -> str:
        """In words."""
        if self.method is None:
            return ROWS[self].label
        words = f"{METHODS.get(self.method, self.method)}, {INPUTS.get(self.inputs or '', self.inputs)}"
        if self.kind == "calibrated":
            return words
        chosen = "lambda 1" if self.chooser == "lambda_1" else "label-free lambda"
        return f"mean of donors, {chosen}, under {words}"

    @property
    def short(self) -> str:
        """Beside a plot or in a sentence."""
        if self.method is None:
            return ROWS[self].short
        name = METHODS.get(self.method, self.method) + _SHORT_INPUTS.get(self.inputs or "", f" ({self.inputs})")
        if self.kind == "calibrated":
            return name
        return f"{'mean' if self.chooser == 'lambda_1' else 'mean at chosen λ'} + {name}"

    @property
    def needs(self) -> Needs:
        """Of the receiver."""
        if self.method is None:
            return ROWS[self].needs
        if self.inputs == "images" or self.chooser == "label_free":
            return "images"
        return "donors" if self.kind == "mean" or self.inputs == "moments" else "nothing"

    @property
    def vector(self) -> bool:
        """Whether a quantization vector is in it."""
        return self.kind in ("pair", "donor", "donor_lambda", "mean", "mix")

    @property
    def without_vector(self) -> RowKey:
        """The calibrated row that the mean of donors was added to."""
        return RowKey("calibrated", None, self.method, self.inputs)


@dataclass(frozen=True)
class RowText:
    """What a row is called, in words and in short, and what it needs of the receiver."""

    label: str
    short: str
    needs: Needs


FLOAT, OWN_QAT, PLAIN, MSE, MIX = RowKey("float"), RowKey("own_qat"), RowKey("plain"), RowKey("mse"), RowKey("mix")
PAIR, MEAN = RowKey("pair", "lambda_1"), RowKey("mean", "lambda_1")
DISPLACEMENT = RowKey("control", control="gptq_displacement")

ROWS = {
    FLOAT: RowText("float receiver", "float", "nothing"),
    OWN_QAT: RowText("the receiver's own QAT", "own QAT", "training"),
    RowKey("rtn"): RowText("round to nearest, absmax", "absmax", "nothing"),
    MSE: RowText("MSE clipping", "MSE clipping", "nothing"),
    PLAIN: RowText("plain PTQ on the grid", "plain PTQ", "nothing"),
    PAIR: RowText("one donor, lambda 1", "one donor at λ = 1", "donors"),
    RowKey("pair", "label_free"): RowText("one donor, label-free lambda", "one donor at label-free λ", "images"),
    RowKey("pair", "labelled"): RowText("one donor, labelled lambda", "one donor at labelled λ", "labels"),
    RowKey("donor", "label_free"): RowText("label-free donor, lambda 1", "label-free donor", "images"),
    RowKey("donor", "labelled"): RowText("labelled donor, lambda 1", "labelled donor", "labels"),
    RowKey("donor_lambda", "label_free"): RowText("label-free donor and lambda", "label-free donor and λ", "images"),
    RowKey("donor_lambda", "labelled"): RowText("labelled donor and lambda", "labelled donor and λ", "labels"),
    MEAN: RowText("mean of donors, lambda 1", "mean of donors at λ = 1", "donors"),
    RowKey("mean", "label_free"): RowText("mean of donors, label-free lambda", "mean at label-free λ", "images"),
    MIX: RowText("label-free mix of donors", "label-free mix", "images"),
    RowKey("control", control="random"): RowText("random vector, norms of a donor's", "random control", "donors"),
    RowKey("control", control="shuffle"): RowText("a donor's vector, rows shuffled", "shuffled control", "donors"),
    RowKey("control", control="task_vector"): RowText(
        "a donor's task vector, norms of its vector", "task-vector control", "donors"
    ),
    DISPLACEMENT: RowText("a donor's GPTQ displacement, norms of its vector", "GPTQ-displacement control", "donors"),
}
"""Rows that every study may have, in the order of the table; calibrated rows follow `plain`, and the mean of donors
under them follows the mix."""


def in_order(keys: Iterable[RowKey]) -> list[RowKey]:
    """Keys in the order of the table; methods and inputs that it does not know come last."""
    orders: tuple[list[object], ...] = [*ROWS], [*METHODS], [*INPUTS]

    def place(key: RowKey) -> list[float]:
        after = key if key in ROWS else PLAIN if key.kind == "calibrated" else MIX
        places = [
            order.index(value) if value in order else len(order)
            for order, value in zip(orders, (after, key.method, key.inputs), strict=True)
        ]
        return [places[0] + (key not in ROWS) / 2, *places[1:]]

    return sorted(keys, key=place)


def methods_of(keys: Iterable[RowKey]) -> tuple[RowKey, ...]:
    """The rows of methods without a vector that do more than plain PTQ, in the order of the table."""
    return tuple(key for key in in_order(keys) if key == MSE or key.kind == "calibrated")


def baselines(keys: Iterable[RowKey]) -> list[RowKey]:
    """Rows that others are held against: plain, MSE, and of each method with images where tried, else what was."""
    there = set(keys)
    found = [key for key in (PLAIN, MSE) if key in there]
    for method in METHODS:
        tried = (RowKey("calibrated", None, method, inputs) for inputs in INPUTS)
        found += [key for key in tried if key in there][:1]
    return found


def clip_name(grid: Scheme) -> str:
    """How a grid's scale is found, and so what plain PTQ on it is: MSE clipping, absmax or clip 0.65."""
    if grid.searched:
        return "MSE clipping"
    return "absmax" if grid.clip == 1 else f"clip {grid.clip:g}"
