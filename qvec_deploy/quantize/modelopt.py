"""The reference quantizer as a ModelOpt backend: PTQ tensor by tensor, and QAT inside a model.

ModelOpt's stock fake quantizer multiplies by a rounded reciprocal, which moves values by an ulp and codes at ties.
Registered as a backend, our arithmetic runs inside ModelOpt's TensorQuantizer and is bit-exact with numpy.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from qvec_deploy.models import quantized_linears
from qvec_deploy.quantize.clip_search import one_thread, search_clips
from qvec_deploy.quantize.reference import ABSMAX_FLOOR, CLIP_GRID
from qvec_deploy.tensors import Float32, QuantizedTensor, Scheme

logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it announces that there is no GPU
with warnings.catch_warnings():  # ModelOpt's imports use torch.jit.script, which torch 2.15 deprecates
    warnings.simplefilter("ignore")
    import modelopt.torch.quantization as mtq
    from modelopt.torch.quantization.calib.mse import MseCalibrator
    from modelopt.torch.quantization.config import QuantizerAttributeConfig
    from modelopt.torch.quantization.nn import TensorQuantizer, register_quant_backend

BACKEND = "qvec"


def quantize(weight: Float32, scheme: Scheme) -> QuantizedTensor:
    """Quantize one weight matrix with ModelOpt, as methods do that look at activations.

    Args:
        weight: (out, in) float32, finite.

    Returns:
        int8 codes (out, in) and float32 scales (out, groups), equal to the numpy reference bit for bit.
    """
    quantizer = TensorQuantizer(QuantizerAttributeConfig(**_attributes(scheme)), if_quant=True)
    tensor = torch.from_numpy(weight if weight.flags.writeable else weight.copy())
    with torch.no_grad(), one_thread():
        if scheme.searched:
            rows = _as_rows(tensor, scheme)
            quantizer.register_buffer("_clip", _clips(rows, scheme))
        values = quantizer(tensor)
        rows = _as_rows(tensor, scheme)
        scale = _scale(rows, quantizer, scheme)
        # Exact: values are code * scale rounded once, so the quotient is within an ulp of an integer below 2^7.
        codes = _as_rows(values, scheme).div_(scale).round_().to(torch.int8)
    out, columns = weight.shape
    spread = scale.expand(out, 1) if scheme.granularity == "tensor" else scale.reshape(out, scheme.groups(columns))
    return QuantizedTensor(codes.reshape(out, columns).numpy(), np.ascontiguousarray(spread.numpy()), scheme)


def insert_fake_quantizers(model: nn.Module, scheme: Scheme, skip: tuple[str, ...]) -> None:
    """Make every forward pass of `model` see fake-quantized Linear weights, for QAT.

    The weights stay latent floats; gradients pass straight through; the scale is recomputed from the latent
    weights at every forward. With method `mse` the clip ratio is searched now and by `refresh_clip`.
    """
    enabled = [
        {"quantizer_name": f"{name}.weight_quantizer", "cfg": _attributes(scheme)}
        for name in quantized_linears(model, skip)
    ]
    config = {"quant_cfg": [{"quantizer_name": "*", "enable": False}, *enabled], "algorithm": None}
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):  # it prints how many it inserted
        warnings.simplefilter("ignore")
        mtq.quantize(model, config)
    refresh_clip(model)


def refresh_clip(model: nn.Module) -> None:
    """Search the clip ratios of method `mse` again, for the latent weights as they are now."""
    for module, quantizer, scheme in _active(model):
        if scheme.searched:
            with torch.no_grad():
                rows = _as_rows(module.weight, scheme)
                quantizer.register_buffer("_clip", _clips(rows, scheme))


def calibrate_clips(rows: Tensor, absmax: Tensor, scheme: Scheme) -> Tensor:
    """ModelOpt's search for the clip ratios of method `mse`, on any device.

    Args:
        rows: What shares a scale, (rows, weights).
        absmax: (rows, 1), as the scale uses it.

    Returns:
        (rows, 1) clip ratios.
    """

    def fake_quantize(values: Tensor, clip: Tensor) -> Tensor:
        scale = (clip * absmax) / float(scheme.qmax)
        return torch.clamp(torch.round(values / scale), scheme.qmin, scheme.qmax) * scale

    # The search multiplies an initial amax by each ratio; starting from ones it returns the ratios themselves.
    search = _GridCalibrator(
        amax=torch.ones_like(absmax),
        axis=0,
        quant_func=fake_quantize,
        error_func=lambda x, y: (x - y).square().double(),
    )
    search.collect(rows)
    best: Tensor = search.compute_amax()
    return best


class _GridCalibrator(MseCalibrator):  # type: ignore[misc]
    """ModelOpt's MSE search over our clip ratios instead of an even grid of its own."""

    def _generate_candidates(self, device: torch.device) -> Tensor:
        return torch.from_numpy(CLIP_GRID).to(device)


def _clips(rows: Tensor, scheme: Scheme) -> Tensor:
    fast = rows.device.type == "cpu" and rows.dtype == torch.float32
    return (search_clips if fast else calibrate_clips)(rows, _absmax(rows), scheme)


def latent_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The float weights under the names they had before `insert_fake_quantizers`."""
    return {name: value for name, value in model.state_dict().items() if "_quantizer" not in name}


class _FakeQuantize(torch.autograd.Function):
    """Round to the grid forward, identity backward (the straight-through estimator)."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, scale: Tensor, qmin: int, qmax: int) -> Tensor:
        return torch.div(rows, scale).round_().clamp_(qmin, qmax).mul_(scale)  # in place: new memory costs more

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        return gradients[0], None, None, None


def _fake_quantize(tensor: Tensor, quantizer: TensorQuantizer) -> Tensor:
    """The backend: called by ModelOpt's TensorQuantizer with the weight, already cut into groups if need be."""
    scheme = Scheme.from_dict(quantizer.backend_extra_args)
    rows = tensor.reshape(1, -1) if scheme.granularity == "tensor" else tensor
    scale = _scale(rows.detach(), quantizer, scheme)
    values: Tensor = _FakeQuantize.apply(rows, scale, scheme.qmin, scheme.qmax)
    return values.reshape(tensor.shape)


def _scale(rows: Tensor, quantizer: TensorQuantizer, scheme: Scheme) -> Tensor:
    clip = quantizer._clip if scheme.searched else torch.tensor(np.float32(scheme.clip), device=rows.device)
    return (clip * _absmax(rows)) / float(scheme.qmax)


def _absmax(rows: Tensor) -> Tensor:
    largest = torch.maximum(rows.amax(dim=1, keepdim=True), rows.amin(dim=1, keepdim=True).neg())
    return largest.clamp(min=float(ABSMAX_FLOOR))


def _as_rows(weight: Tensor, scheme: Scheme) -> Tensor:
    if scheme.granularity == "tensor":
        return weight.reshape(1, -1)
    return weight.reshape(weight.shape[0] * scheme.groups(weight.shape[1]), -1)


def _attributes(scheme: Scheme) -> dict[str, Any]:
    """ModelOpt's quantizer attributes for a scheme."""
    _register()
    attributes: dict[str, Any] = {
        "num_bits": scheme.bits,
        "axis": 0 if scheme.granularity == "channel" else None,
        "backend": BACKEND,
        "backend_extra_args": scheme.as_dict(),
    }
    if scheme.granularity == "group":
        attributes["block_sizes"] = {-1: scheme.group_size}
    return attributes


def _active(model: nn.Module) -> Iterator[tuple[Any, TensorQuantizer, Scheme]]:
    for module in model.modules():
        quantizer = getattr(module, "weight_quantizer", None)
        if isinstance(quantizer, TensorQuantizer) and quantizer.is_enabled and quantizer.backend == BACKEND:
            yield module, quantizer, Scheme.from_dict(quantizer.backend_extra_args)


@cache
def _register() -> None:
    register_quant_backend(BACKEND, _fake_quantize)
