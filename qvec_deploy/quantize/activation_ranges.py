"""ModelOpt's calibration of activations: the range of what each Linear's input quantizer sees."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from qvec_deploy.errors import IncompatibleError
from qvec_deploy.quantize.calibrators import over, quietly, run_calibration
from qvec_deploy.quantize.layer_inputs import linear_at, on_device_of
from qvec_deploy.tensors import Float32

PERCENTILE = 99.99


def calibrate_inputs(
    model: nn.Module,
    names: Sequence[str],
    factors: Mapping[str, Float32],
    images: Sequence[Float32],
    *,
    percentile: bool = False,
) -> dict[str, float]:
    """The range that ModelOpt gives the input of every Linear.

    Args:
        model: In evaluation mode; ModelOpt's quantizers are put in, calibrated and left there, disabled but for those.
        factors: (in,) by name of a Linear whose input is multiplied with them first, as AWQ does.
        percentile: Take the magnitude that 99.99 % stay below, from ModelOpt's histogram, and not the largest.

    Returns:
        ModelOpt's `amax` by name; 0 for a Linear that no image reaches.
    """
    import modelopt.torch.quantization as mtq

    inputs = [{"quantizer_name": f"{name}.input_quantizer", "cfg": {"num_bits": 8, "axis": None}} for name in names]
    config = {"quant_cfg": [{"quantizer_name": "*", "enable": False}, *inputs], "algorithm": None}

    with quietly(), torch.no_grad():
        mtq.quantize(model, config)
    for name, factor in factors.items():
        _input_quantizer(model, name).pre_quant_scale = torch.from_numpy(factor)
    quantizers = {name: _input_quantizer(model, name) for name in names}
    try:
        if percentile:
            _collect_histograms(model, quantizers.values(), images)
        else:
            run_calibration(model, "max", over(images))
    except AssertionError as error:  # ModelOpt's way to refuse NaN
        raise _not_finite() from error
    amax = {name: quantizer.amax for name, quantizer in quantizers.items()}
    found = {name: 0.0 if value is None else float(value) for name, value in amax.items()}
    if not all(map(math.isfinite, found.values())):
        raise _not_finite()
    return found


def _collect_histograms(model: nn.Module, quantizers: Iterable[Any], images: Sequence[Float32]) -> None:
    """Give quantizers the percentile of what the images bring them; those that nothing reaches keep none."""
    from modelopt.torch.quantization.calib import HistogramCalibrator

    for quantizer in quantizers:
        quantizer._calibrator = HistogramCalibrator(8, None, unsigned=False)
        quantizer.disable_quant()
        quantizer.enable_calib()
    with quietly(), torch.no_grad():
        for batch in images:
            model(on_device_of(model, batch))
    for quantizer in quantizers:
        if quantizer._calibrator._calib_hist is not None:
            quantizer.load_calib_amax("percentile", percentile=PERCENTILE)
        quantizer.disable_calib()


def _not_finite() -> IncompatibleError:
    return IncompatibleError(
        "the activations of the model are not finite", hint="check the checkpoint and the images; w8a8 needs ranges"
    )


def _input_quantizer(model: nn.Module, name: str) -> Any:
    linear: Any = linear_at(model, name)
    return linear.input_quantizer
