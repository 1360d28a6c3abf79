"""Asymmetric GPTQ: each Linear makes up for what rounding did before it, and is then rounded itself."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from qvec_deploy.errors import IncompatibleError
from qvec_deploy.models import quantized_linears
from qvec_deploy.quantize.layer_inputs import Moments, flatten, in_step, linear_at
from qvec_deploy.quantize.methods import Calibrated, OnLayer
from qvec_deploy.quantize.solver import move_toward, round_for_inputs
from qvec_deploy.tensors import Float32, QuantizedTensor, Scheme

RIDGE = 0.1


def gptaq(
    model: nn.Module,
    images: Sequence[Float32],
    scheme: Scheme,
    skip: tuple[str, ...],
    *,
    teacher: nn.Module | None = None,
    on_layer: OnLayer | None = None,
) -> Calibrated:
    """Round the Linears one after another, each toward the float network's outputs.

    A Linear's inputs x come from the network whose earlier Linears are rounded already; what it should give is the
    float network's output on the float network's own input, W' x' + b'. Its weights are first moved there by ridge
    regression, then rounded with GPTQ's error feedback (the asymmetric calibration of GPTAQ, arXiv 2504.02692, with
    the shift solved for at once instead of inside the loop). Scales are those of the moved weights.

    Beside the networks' activations, memory holds the weights of one Linear: the others are the model's own.

    Args:
        images: All are in flight at once: their activations must fit in memory.
    """
    student = _sharing_weights(model)
    teacher = model if teacher is None else teacher
    names = quantized_linears(student, skip)
    _check_teacher(student, teacher, names)
    codes: dict[str, QuantizedTensor] = {}
    passes = [(network, batch) for batch in images for network in (teacher, student)]
    previous: str | None = None
    with contextlib.closing(in_step(passes, names)) as steps, torch.no_grad():
        for name, inputs in steps:
            if previous is not None:
                linear_at(student, previous).weight = linear_at(model, previous).weight
            linear, key, previous = linear_at(student, name), f"{name}.weight", name
            if key not in codes:  # else it is called a second time
                codes[key] = _round(linear, linear_at(teacher, name), inputs[1::2], inputs[0::2], scheme)
                if on_layer is not None:
                    on_layer(len(codes), len(names))
                if len(codes) == len(names):
                    break
            rounded = torch.from_numpy(codes[key].dequantize()).to(linear.weight.device)
            linear.weight = nn.Parameter(rounded, requires_grad=False)
    return Calibrated(codes)


def _sharing_weights(model: nn.Module) -> nn.Module:
    """A copy of a model whose parameters are the same tensors until it is given others."""
    return copy.deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})


def _check_teacher(student: nn.Module, teacher: nn.Module, names: Sequence[str]) -> None:
    """Refuse a teacher whose Linears are not the student's."""
    shapes = [
        {name: tuple(module.weight.shape) for name, module in network.named_modules() if isinstance(module, nn.Linear)}
        for network in (student, teacher)
    ]
    for name in names:
        if shapes[0][name] != shapes[1].get(name):
            raise IncompatibleError(
                f"the teacher's {name} is {shapes[1].get(name, 'missing')}, the model's {shapes[0][name]}",
                hint="the teacher is the unpatched receiver: the same model with other weights",
            )


def _round(
    linear: nn.Linear, wanted: nn.Linear, inputs: Sequence[Tensor], float_inputs: Sequence[Tensor], scheme: Scheme
) -> QuantizedTensor:
    """One Linear: `inputs` come from the rounded prefix, `float_inputs` are what `wanted` gets from the same images."""
    weight, target = linear.weight.double(), wanted.weight.double()
    narrow = weight.shape[0] < weight.shape[1]  # W' x' is smaller than x'
    moments, total = Moments(weight.shape[1], weight.device), torch.zeros_like(weight[0])
    cross = torch.zeros(min(weight.shape), weight.shape[1], dtype=weight.dtype, device=weight.device)
    for here, there in zip(map(flatten, inputs), map(flatten, float_inputs), strict=True):
        moments.add(here)
        cross += ((there @ wanted.weight.T.float()) if narrow else there).T @ here
        total += here.sum(0)
    moment = moments.total()
    # The sum of (W' x' + b' - W x - b) x' over all inputs, from their moments alone.
    gap = (cross if narrow else target @ cross) - weight @ moment
    if linear.bias is not None:
        gap += torch.outer((wanted.bias - linear.bias).double(), total)
    return round_for_inputs(move_toward(weight, gap, moment, RIDGE), moment, scheme)
