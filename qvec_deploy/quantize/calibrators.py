"""ModelOpt's calibrators on our grid: GPTQ and AWQ."""

from __future__ import annotations

import contextlib
import copy
import io
import warnings
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from qvec_deploy.models import quantized_linears
from qvec_deploy.quantize.inputs import linear_at, on_device_of, weight_at
from qvec_deploy.quantize.modelopt import BACKEND, insert_fake_quantizers, quantize, refresh_clip
from qvec_deploy.quantize.solver import feed_back, inverse_factor
from qvec_deploy.tensors import Float32, QuantizedTensor, Scheme

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import modelopt.torch.quantization as mtq
    from modelopt.torch.quantization.utils.calib_utils import GPTQHelper, register_gptq_helper


def gptq(
    model: nn.Module, images: Sequence[Float32], scheme: Scheme, skip: tuple[str, ...]
) -> dict[str, QuantizedTensor]:
    """GPTQ by ModelOpt: every Linear for the inputs that it has in the float model, none for the others' rounding.

    Args:
        model: In evaluation mode; not changed.
        images: Batches (B, C, H, W), normalised.
        scheme: The grid; scales are those of the weights as they are.
        skip: Child names whose Linears stay float.

    Returns:
        Codes by name of the Linear.

    Raises:
        IncompatibleError: Activations are not finite.
    """
    _register()
    names = quantized_linears(model, skip)
    rounded = _calibrated(model, {"method": "gptq"}, images, scheme, skip)
    result = {}
    for name in names:
        scale = quantize(weight_at(model, name), scheme).scale  # of the weights before: GPTQ's grid
        values = weight_at(rounded, name).reshape(*scale.shape, -1)
        codes = np.rint(values / scale[:, :, None]).astype(np.int8)
        result[name] = QuantizedTensor(codes.reshape(len(codes), -1), scale, scheme)
    return result


def awq(
    model: nn.Module, images: Sequence[Float32], scheme: Scheme, skip: tuple[str, ...]
) -> tuple[dict[str, QuantizedTensor], dict[str, Float32]]:
    """AWQ by ModelOpt (`awq_lite`): input columns that matter are made larger before rounding to nearest.

    With method `mse` the column factors are searched at the clip ratios of the plain weights, and the clip is searched
    again for the scaled weights: searching both at once took twice the time and was no better.

    Args:
        model: In evaluation mode; not changed.
        images: Batches (B, C, H, W), normalised.
        scheme: The grid.
        skip: Child names whose Linears stay float.

    Returns:
        Codes of the scaled weights by name of the Linear; and the factor (in,) of its input, where it is not 1.
    """
    scaled = _calibrated(model, {"method": "awq_lite"}, images, scheme, skip)
    codes, factors = {}, {}
    for name in quantized_linears(model, skip):
        codes[name] = quantize(weight_at(scaled, name), scheme)
        input_quantizer: Any = linear_at(scaled, name).input_quantizer
        factor: Float32 = input_quantizer.pre_quant_scale.detach().float().cpu().numpy().reshape(-1)
        if (factor != 1).any():
            factors[name] = factor
    return codes, factors


def _calibrated(
    model: nn.Module, algorithm: dict[str, Any], images: Sequence[Float32], scheme: Scheme, skip: tuple[str, ...]
) -> nn.Module:
    """A copy of the model with ModelOpt's quantizers in it, calibrated, fake-quantizing with our arithmetic."""
    work = copy.deepcopy(model)
    insert_fake_quantizers(work, scheme, skip)

    def forward_loop(network: nn.Module) -> None:
        for batch in images:
            network(on_device_of(network, batch))

    with _quietly(), torch.no_grad():
        mtq.calibrate(work, algorithm, forward_loop=forward_loop)
    refresh_clip(work)
    return work


class _Gptq(GPTQHelper):  # type: ignore[misc]
    """ModelOpt's GPTQ with our solver in it.

    ModelOpt fake-quantizes the whole matrix anew for each of its columns (40 s for a ViT-Ti on a CPU), with a
    scale that our backend would take from the half-rounded weights, and rounds to nearest without a word where
    the moments cannot be inverted.
    """

    weight: Tensor
    module: Any

    def _prepare_hessian_inverse(self, hessian: Tensor, perc_damp: float) -> None:
        self.h_inv = inverse_factor(hessian)

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
def _quietly() -> Iterator[None]:
    """ModelOpt prints its progress and warns about Linears that no image reaches; the caller says so itself."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
