"""METHODS: the one table of ways to put weights on a grid. What differs by method is asked of its row."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, Protocol

from qvec_deploy.errors import RecipeError
from qvec_deploy.tensors import Float32, GridRule, QuantizedTensor, Scheme

if TYPE_CHECKING:
    from torch import Tensor, nn

Needs = Literal["nothing", "inputs", "outputs"]
OnLayer = Callable[[int, int], None]
"""Told how many Linears are done, of how many."""


@dataclass(frozen=True, eq=False)
class Calibrated:
    """A model's weights on the grid.

    Attributes:
        codes: Codes by state-dict name, such as `blocks.0.attn.qkv.weight`.
        floats: Other tensors that changed, by state-dict name: norms with AWQ's factors in them.
        input_scales: By Linear name, (in,): what its input must be multiplied by, where no norm does it already.
        notes: What the user must know, one sentence each.
    """

    codes: Mapping[str, QuantizedTensor]
    floats: Mapping[str, Float32] = field(default_factory=dict)
    input_scales: Mapping[str, Float32] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


class OnInputs(Protocol):
    """What a method does with a model and images of its inputs."""

    def __call__(
        self,
        model: nn.Module,
        images: Sequence[Float32],
        scheme: Scheme,
        skip: tuple[str, ...],
        *,
        teacher: nn.Module | None,
        on_layer: OnLayer | None,
    ) -> Calibrated:
        """Codes of the Linears that images reach; see `calibrated.calibrate` for the arguments."""


class OnMoments(Protocol):
    """What a method does with one weight and the second moment of its inputs."""

    def __call__(self, weight: Tensor, moment: Tensor, scheme: Scheme) -> QuantizedTensor:
        """Codes of a weight (out, in) for inputs whose mean of x x' is `moment` (in, in)."""


@dataclass(frozen=True)
class Method:
    """A way to put weights on a grid.

    Attributes:
        name: The word of recipes, reports and manifests.
        label: The words of tables and plots.
        paper: Where it was published; None for what is older than papers about it.
        needs: `nothing` but the weights; `inputs`: what reaches the Linears of the model, from unlabelled images;
            `outputs`: those and what another network, the float one, gives for them.
        grid: How it finds scales, where it is a grid itself; None where the recipe's `grid` says so.
        function: `module:function`, imported on use, of a method that needs inputs (`OnInputs`).
        from_moments: `module:function` of one for which second moments of the inputs are enough (`OnMoments`).
        error_feedback: Whether it moves weights beyond the magnitude that their scale was taken from, so that the
            lowest code is reached.
        scales_columns: Whether its codes are those of other weights: columns were scaled first.
        competes: Whether `select: best` tries it where a recipe names no methods.
        meaning: What it does, for somebody who has never heard of it: a sentence, or more.
    """

    name: str
    label: str
    paper: str | None
    needs: Needs
    grid: GridRule | None = None
    function: str | None = None
    from_moments: str | None = None
    error_feedback: bool = False
    scales_columns: bool = False
    competes: bool = False
    meaning: str = ""

    @property
    def calibrated(self) -> bool:
        """Whether it looks at activations."""
        return self.needs != "nothing"

    def on_inputs(self) -> OnInputs:
        """Its function of images."""
        function: OnInputs = self._load(self.function, "inputs")
        return function

    def on_moments(self) -> OnMoments:
        """Its function of second moments."""
        function: OnMoments = self._load(self.from_moments, "second moments")
        return function

    def _load(self, place: str | None, what: str) -> Any:
        if place is None:
            raise RecipeError(f"method `{self.name}` does not work with {what} alone", hint="choose another method")
        module, name = place.split(":")
        return getattr(import_module(module), name)


ROUND_TO_NEAREST = Method(
    "rtn",
    "round to nearest, absmax",
    None,
    "nothing",
    grid="rtn",
    meaning="Round to nearest: every weight goes to the nearest level, and the levels reach to the largest weight.",
)
"""The default, and the method of documents that name none."""

METHODS: dict[str, Method] = {
    row.name: row
    for row in (
        ROUND_TO_NEAREST,
        Method(
            "mse",
            "MSE clipping",
            None,
            "nothing",
            grid="mse",
            meaning="As rtn, but the levels reach only as far as makes the squared error of the weights least.",
        ),
        Method(
            "awq",
            "AWQ",
            "arXiv 2306.00978",
            "inputs",
            function="qvec_deploy.quantize.calibrators:awq",
            scales_columns=True,
            meaning="Inputs of a layer that are large on images are given more exact weights before rounding.",
        ),
        Method(
            "gptq",
            "GPTQ",
            "arXiv 2210.17323",
            "inputs",
            function="qvec_deploy.quantize.calibrators:gptq",
            from_moments="qvec_deploy.quantize.solver:round_for_inputs",
            error_feedback=True,
            meaning="Weights are rounded one after another, and those that follow make up for the error on images.",
        ),
        Method(
            "gptaq",
            "asymmetric GPTQ",
            "arXiv 2504.02692",
            "outputs",
            function="qvec_deploy.quantize.gptaq:gptaq",
            error_feedback=True,
            competes=True,
            meaning="Asymmetric GPTQ: weights are rounded one after another, and those that follow make up for the "
            "error, so that each layer gives what it gives in the float model. It looks at images, not at labels.",
        ),
    )
}
"""Every method by name, those that need nothing first."""


def find_method(name: str) -> Method:
    """The row of a method."""
    if name not in METHODS:
        raise RecipeError(f"there is no method `{name}`", hint=f"choose {', '.join(METHODS)}")
    return METHODS[name]


def calibrated_methods() -> list[str]:
    """Names of the methods that look at activations."""
    return [row.name for row in METHODS.values() if row.calibrated]


def by_moments() -> list[str]:
    """Names of the methods for which second moments of the inputs are enough."""
    return [row.name for row in METHODS.values() if row.from_moments is not None]


def competing() -> list[str]:
    """Names of the methods that a selection over methods tries where none is named."""
    return [row.name for row in METHODS.values() if row.competes]
