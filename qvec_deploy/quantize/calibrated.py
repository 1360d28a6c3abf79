"""One entry for all methods that put a model's weights on the grid of a scheme: see METHODS."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from qvec_deploy.errors import IncompatibleError, RecipeError
from qvec_deploy.models import quantized_linears
from qvec_deploy.quantize.methods import Calibrated, OnLayer, find_method
from qvec_deploy.tensors import Float32, QuantizedTensor, Scheme

if TYPE_CHECKING:
    from torch import nn


def calibrate(
    model: nn.Module,
    images: Sequence[Float32],
    scheme: Scheme,
    skip: tuple[str, ...],
    method: str,
    *,
    teacher: nn.Module | None = None,
    on_layer: OnLayer | None = None,
) -> Calibrated:
    """Put the Linear weights of a model on the grid, and leave the model as it is.

    Args:
        model: In evaluation mode, on the device where the work is to be done.
        images: Batches (B, C, H, W) float32, normalised as the model wants them; none for a method without needs.
        skip: Child names whose Linears stay float, matched exactly at any depth.
        teacher: Whose outputs a method aims at that needs some; the model itself where None. For a patched model, the
            receiver as it was.
    """
    row, names = find_method(method), quantized_linears(model, skip)
    if not row.calibrated:
        return Calibrated({f"{name}.weight": _nearest(model, name, scheme) for name in names})
    _check_images(images, f"method `{method}`")
    result = row.on_inputs()(model, images, scheme, skip, teacher=teacher, on_layer=on_layer)
    return _with_notes(result, model, images, scheme, names, method)


def calibrate_from_moments(
    model: nn.Module,
    moments: Mapping[str, Float32],
    scheme: Scheme,
    skip: tuple[str, ...],
    method: str,
    *,
    on_layer: OnLayer | None = None,
) -> Calibrated:
    """The same for the inputs that another model's Linears had: no image is run through this one.

    Args:
        moments: What `collect_moments` gave for a donor of the same base, (in, in) by Linear name.
    """
    from qvec_deploy.quantize.layer_inputs import weight_at

    names = quantized_linears(model, skip)
    codes = {}
    for done, name in enumerate(names, start=1):
        codes[f"{name}.weight"] = quantize_by_moment(name, weight_at(model, name), moments.get(name), scheme, method)
        if on_layer is not None:
            on_layer(done, len(names))
    return Calibrated(codes)


def quantize_by_moment(
    name: str, weight: Float32, moment: Float32 | None, scheme: Scheme, method: str
) -> QuantizedTensor:
    """One Linear's weights on the grid, for the inputs that another model's Linear had.

    Args:
        name: What errors call the Linear.
        weight: (out, in).
        moment: Mean of x x' over the inputs x, (in, in); None where there is none.
    """
    import torch

    rounded, width = find_method(method).on_moments(), weight.shape[1]
    if moment is None or moment.shape != (width, width):
        raise IncompatibleError(
            f"{name} needs second moments ({width}, {width}); there are {'none' if moment is None else moment.shape}",
            hint="take moments of a donor of the same base, collected with the same skip list",
        )
    return rounded(torch.from_numpy(weight), torch.from_numpy(moment), scheme)


def collect_moments(model: nn.Module, images: Sequence[Float32], skip: tuple[str, ...]) -> dict[str, Float32]:
    """Second moments of what reaches a model's Linears: all that GPTQ has to know about images.

    Returns:
        Mean of x x' over the inputs x, (in, in) float32 by Linear name.
    """
    from qvec_deploy.quantize.layer_inputs import accumulate_moments

    _check_images(images, "collecting second moments")
    names = quantized_linears(model, skip)
    moments = accumulate_moments(model, images, names)
    for name in names:
        if name not in moments:
            raise IncompatibleError(f"the model never calls {name}", hint=f"skip it: add it to {list(skip)}")
    return {name: moments[name].float().cpu().numpy() for name in names}


def _with_notes(
    result: Calibrated,
    model: nn.Module,
    images: Sequence[Float32],
    scheme: Scheme,
    names: Sequence[str],
    method: str,
) -> Calibrated:
    """Say which Linears no image reached, and round those to nearest; say so if the method did nothing at all."""
    from qvec_deploy.quantize.layer_inputs import called_linears

    reached = called_linears(model, images[0][:1], names)
    codes = {f"{name}.weight": result.codes.get(f"{name}.weight") or _nearest(model, name, scheme) for name in names}
    notes = list(result.notes)
    notes += [f"{name} is never called with the images: rounded to nearest" for name in names if name not in reached]
    if not result.input_scales and not result.floats and _all_nearest(model, codes, scheme):
        notes.append(f"{method} changes nothing on this grid ({scheme}): the codes are those of rounding to nearest")
    return Calibrated(codes, result.floats, result.input_scales, tuple(notes))


def _all_nearest(model: nn.Module, codes: Mapping[str, QuantizedTensor], scheme: Scheme) -> bool:
    for name, quantized in codes.items():  # ends at the first that differs: usually the first
        if not np.array_equal(quantized.codes, _nearest(model, name.removesuffix(".weight"), scheme).codes):
            return False
    return True


def _check_images(images: Sequence[Float32], purpose: str) -> None:
    if sum(map(len, images)) == 0:
        raise RecipeError(f"{purpose} needs images", hint="give unlabelled ones, or use a method that needs none")
    if not all(np.isfinite(batch).all() for batch in images):
        raise RecipeError("calibration images hold NaN or infinity", hint="check the images' normalisation")


def _nearest(model: nn.Module, name: str, scheme: Scheme) -> QuantizedTensor:
    from qvec_deploy.quantize.layer_inputs import weight_at
    from qvec_deploy.quantize.nearest import quantize

    return quantize(weight_at(model, name), scheme)
