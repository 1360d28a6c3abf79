"""ModelOpt's calibrators on our grid: GPTQ and AWQ."""

from __future__ import annotations

import contextlib
import copy
import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from qvec_deploy.errors import IncompatibleError
from qvec_deploy.models import quantized_linears
from qvec_deploy.quantize.folding import fold_into_norms
from qvec_deploy.quantize.layer_inputs import accumulate_moments, linear_at, on_device_of, weight_at
from qvec_deploy.quantize.methods import Calibrated, OnLayer
from qvec_deploy.quantize.modelopt import BACKEND, insert_fake_quantizers, quantize, refresh_clip
from qvec_deploy.quantize.solver import feed_back, feedback_factor
from qvec_deploy.tensors import Float32, QuantizedTensor, Scheme

with warnings.catch_warnings():  # ModelOpt's imports use torch.jit.script, which torch 2.15 deprecates
    warnings.simplefilter("ignore")
    import modelopt.torch.quantization as mtq
    from modelopt.torch.quantization.utils.calib_utils import GPTQHelper, register_gptq_helper

ForwardLoop = Callable[[nn.Module], None]


def gptq(
    model: nn.Module,
    images: Sequence[Float32],
    scheme: Scheme,
    skip: tuple[str, ...],
    *,
    teacher: nn.Module | None = None,
    on_layer: OnLayer | None = None,
) -> Calibrated:
    """GPTQ by ModelOpt: every Linear for the inputs that it has in the float model, none for the others' rounding.

    The scales are those of the weights as they are. ModelOpt says nothing on the way; the teacher is not looked at.
    """
    _register()
    names = quantized_linears(model, skip)
    rounded = _calibrated(model, {"method": "gptq"}, over(images), scheme, skip)
    codes = {}
    for name in names:
        scale = quantize(weight_at(model, name), scheme).scale  # of the weights before: GPTQ's grid
        values = weight_at(rounded, name).reshape(*scale.shape, -1)
        found = np.rint(values / scale[:, :, None]).astype(np.int8)
        codes[f"{name}.weight"] = QuantizedTensor(found.reshape(len(found), -1), scale, scheme)
    if on_layer is not None:
        on_layer(len(names), len(names))
    return Calibrated(codes)


def awq(
    model: nn.Module,
    images: Sequence[Float32],
    scheme: Scheme,
    skip: tuple[str, ...],
    *,
    teacher: nn.Module | None = None,
    on_layer: OnLayer | None = None,
) -> Calibrated:
    """AWQ by ModelOpt: input columns that matter are made larger before rounding to nearest.

    Codes are those of the scaled weights; the factors are in the norm before a Linear, where there is one. The teacher
    is not looked at.
    """
    codes, factors, worse = search_factors(model, images, scheme, skip)
    if on_layer is not None:
        on_layer(len(codes), len(codes))
    floats, left = fold_into_norms(model, factors, images[0][:2])
    note = (
        f"awq makes {len(worse)} of {len(codes)} Linears worse on the images than rounding to nearest: "
        "those are rounded to nearest"
    )
    return Calibrated({f"{name}.weight": found for name, found in codes.items()}, floats, left, (note,) * bool(worse))


def search_factors(
    model: nn.Module, images: Sequence[Float32], scheme: Scheme, skip: tuple[str, ...]
) -> tuple[dict[str, QuantizedTensor], dict[str, Float32], list[str]]:
    """ModelOpt's `awq_lite`, and what it makes of every Linear.

    On a grid that searches its clip the column factors are searched at the clip ratios of the plain weights, and the
    clip is searched again for the scaled weights: searching both at once took twice the time and was no better.

    ModelOpt sends all inputs through a Linear for each of eleven factors, and compares the squared errors of outputs.
    Those depend on the second moments of the inputs only. So it gets as many rows as there are inputs, with the moments
    of all tokens (25,000 for 128 images of a ViT-B): the same errors to a millionth, hence the same factors unless two
    are that close. A last batch that is smaller weighs less, where ModelOpt weighs all batches alike.

    ModelOpt's grid of factors lacks "none at all", and its search rounds at other clip ratios than those that are used.
    So a Linear whose outputs on the images come out worse than with rounding to nearest is rounded to nearest.

    Returns:
        Codes of the scaled weights by name of the Linear; the factor (in,) of its input, where it is not 1; and the
        Linears that are rounded to nearest because AWQ makes them worse.
    """
    names = quantized_linears(model, skip)
    moments: dict[str, Tensor] = {}

    def forward_loop(network: nn.Module) -> None:
        """Called twice: for the mean magnitudes of inputs, and for the search."""
        if not moments:
            moments.update(accumulate_moments(network, images, names))
        else:
            for name, moment in moments.items():
                linear_at(network, name)(_rows_with_moment(moment).to(linear_at(network, name).weight.dtype))

    scaled = _calibrated(model, {"method": "awq_lite"}, forward_loop, scheme, skip)
    codes: dict[str, QuantizedTensor] = {}
    factors: dict[str, Float32] = {}
    worse: list[str] = []
    for name in names:
        codes[name] = quantize(weight_at(scaled, name), scheme)
        input_quantizer: Any = linear_at(scaled, name).input_quantizer
        factor: Float32 = input_quantizer.pre_quant_scale.detach().float().cpu().numpy().reshape(-1)
        if not (factor != 1).any():
            continue
        weight, moment = weight_at(model, name), moments[name]
        plain = quantize(weight, scheme)
        error = output_error(weight, codes[name].dequantize() * factor, moment)
        if error > output_error(weight, plain.dequantize(), moment):
            codes[name] = plain
            worse.append(name)
        else:
            factors[name] = factor
    return codes, factors, worse


def output_error(weight: Float32, rounded: Float32, moment: Tensor) -> float:
    """Mean squared error of a Linear's outputs, summed over them: tr(E H E') of E = rounded - weight.

    Args:
        moment: H (in, in) float64, mean of x x' over its inputs x.
    """
    error = torch.from_numpy(rounded - weight).to(moment.device).double()
    return float(((error @ moment) * error).sum())


def _rows_with_moment(moment: Tensor) -> Tensor:
    """Inputs x (in, in) whose sum of x x' is a moment (in, in), but for as much as makes it positive definite."""
    if not moment.any():
        return moment
    for damping in (1e-10, 1e-8, 1e-6, 1e-4):  # the first, unless inputs depend on each other
        damped = moment.clone()
        damped.diagonal().add_(damping * moment.diagonal().mean())
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed and lower.isfinite().all():
            return cast(Tensor, lower.T)
    raise IncompatibleError(
        "the second moments of a layer's inputs are not finite",
        hint="its activations overflow: check the checkpoint and the images' normalisation",
    )


def _calibrated(
    model: nn.Module, algorithm: dict[str, Any], forward_loop: ForwardLoop, scheme: Scheme, skip: tuple[str, ...]
) -> nn.Module:
    """A copy of the model with ModelOpt's quantizers in it, calibrated, fake-quantizing with our arithmetic."""
    work = copy.deepcopy(model)
    insert_fake_quantizers(work, scheme, skip)
    run_calibration(work, algorithm, forward_loop)
    refresh_clip(work)
    return work


def run_calibration(model: nn.Module, algorithm: Any, forward_loop: ForwardLoop) -> None:
    """ModelOpt's calibration of the quantizers in a model, for what a loop runs through it."""
    with quietly(), torch.no_grad():
        mtq.calibrate(model, algorithm, forward_loop=forward_loop)


def over(images: Sequence[Float32]) -> ForwardLoop:
    """A loop that runs images through a model."""

    def forward_loop(network: nn.Module) -> None:
        for batch in images:
            network(on_device_of(network, batch))

    return forward_loop


class _Gptq(GPTQHelper):  # type: ignore[misc]
    """ModelOpt's GPTQ with our solver in it.

    ModelOpt fake-quantizes the whole matrix anew for each of its columns (40 s for a ViT-Ti on a CPU), with a
    scale that our backend would take from the half-rounded weights, and rounds to nearest without a word where
    the moments cannot be inverted.
    """

    weight: Tensor
    module: Any

    def _prepare_hessian_inverse(self, hessian: Tensor, perc_damp: float) -> None:
        self.h_inv = feedback_factor(hessian)

    def _blockwise_update(self, block_size: int) -> None:
        scheme = Scheme.from_dict(self.module.weight_quantizer.backend_extra_args)
        grid = quantize(self.weight.cpu().numpy(), scheme)
        scale = torch.from_numpy(grid.scale).to(self.weight.device)
        codes = feed_back(self.weight.double(), self.h_inv, scale.double(), scheme)
        values = QuantizedTensor(codes.cpu().numpy(), grid.scale, scheme).dequantize()
        self.weight = torch.from_numpy(values).to(self.weight.device)


@cache
def _register() -> None:
    register_gptq_helper(BACKEND, _Gptq)


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """ModelOpt prints its progress and warns about Linears that no image reaches; the caller says so itself."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
