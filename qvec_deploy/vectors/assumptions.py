"""What a vector of two checkpoints rests on that nobody has checked, in sentences."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from qvec_deploy.tensors import Scheme


@dataclass(frozen=True)
class ExtractionInputs:
    """What was said about a donor, and what was not.

    Attributes:
        by_default: Options that nobody gave, by the names that the command has for them.
        model: timm's name of the donor; None where none was given.
        has_base: Whether the pretrained weights were given.
        fp_dtypes: Dtypes of the float fine-tune's tensors.
        qat_dtypes: Dtypes of the QAT fine-tune's tensors.
        stored: The dtype of rho in the file.
    """

    scheme: Scheme
    skip: tuple[str, ...]
    by_default: Collection[str]
    model: str | None
    has_base: bool
    fp_dtypes: tuple[str, ...]
    qat_dtypes: tuple[str, ...]
    stored: str


def assumptions(said: ExtractionInputs) -> tuple[str, ...]:
    """What was taken on trust: the grid, what was left float, the base, the model, and the precision of the weights."""
    head = said.skip or ("nothing",)
    grid = ("method",) if said.scheme.searched else ("method", "clip")
    found = [
        f"grid: {said.scheme}{_default(said, *grid)}; latent weights do not show which grid they were trained for, "
        "only that they are not rounded to it yet",
        f"left float by the QAT: {', '.join(head)}{_default(said, 'skip')}; the weights do not show it",
    ]
    if said.has_base:
        found.append("base: the float fine-tune lies near the one that was given; that the QAT began there is not seen")
    else:
        found.append("base: none was given, so nobody has checked that both fine-tunes began from one pretrained model")
    if said.model is None:
        found.append("model: none was given, so the head is taken to be `head`, and shapes were held against none")
    dtypes = f"dtype: float weights {', '.join(said.fp_dtypes)}, QAT weights {', '.join(said.qat_dtypes)}"
    low = {*said.fp_dtypes, *said.qat_dtypes} - {"F32", "F64"}
    lost = "; what is finer than these files hold is lost" if low else ""
    found.append(f"{dtypes}, the vector {said.stored}{_default(said, 'dtype')}{lost}")
    if "seed" in said.by_default:
        found.append("seed: 0, by default")
    return tuple(found)


def _default(said: ExtractionInputs, *options: str) -> str:
    taken = [option for option in options if option in said.by_default]
    return f" ({' and '.join(taken)} by default)" if taken else ""
