"""How to add a method: this one rounds stochastically, and is complete.

A method is a function in a file of `qvec_deploy/quantize` and a row that says what it needs. The row goes into METHODS;
nothing else is touched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from qvec_deploy.models import quantized_linears
from qvec_deploy.quantize.layer_inputs import weight_at
from qvec_deploy.quantize.methods import Calibrated, Method, OnLayer
from qvec_deploy.quantize.reference import quantize
from qvec_deploy.tensors import Float32, Scheme

if TYPE_CHECKING:
    from torch import nn


def stochastic(
    model: nn.Module,
    images: Sequence[Float32],
    scheme: Scheme,
    skip: tuple[str, ...],
    *,
    teacher: nn.Module | None = None,
    on_layer: OnLayer | None = None,
) -> Calibrated:
    """Round up with the probability of the remainder; the images' bytes are the seed."""
    generator = np.random.default_rng(list(np.concatenate(images).tobytes()[:64]))
    codes = {}
    for name in quantized_linears(model, skip):
        weight = weight_at(model, name)
        nearest = quantize(weight, scheme)
        exact = weight / nearest.scale.repeat(weight.shape[1] // nearest.scale.shape[1], axis=1)
        drawn = np.floor(exact + generator.random(exact.shape, dtype=np.float32))
        codes[f"{name}.weight"] = replace(nearest, codes=drawn.clip(scheme.qmin, scheme.qmax).astype(np.int8))
    return Calibrated(codes)


STOCHASTIC = Method("stochastic", "stochastic rounding", None, "inputs", function="example_method:stochastic")
"""The row."""
