"""The operator for PyTorch, `torch.ops.qvec.linear`: a reference on the CPU, the kernel on a GPU, and its shapes."""

# Annotations are read by torch when the operator is defined, so they are not postponed.

import torch
from torch import Tensor

from qvec_deploy.runtimes.kernels import launch
from qvec_deploy.runtimes.kernels.layouts import layout_named


@torch.library.custom_op("qvec::linear", mutates_args=())
def linear(
    x: Tensor,
    words: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    layout_id: str,
    bits: int,
    columns: int,
    group_size: int,
) -> Tensor:
    """As `launch.linear`; on the CPU in float32, to say what is meant. Words alone do not say `columns`."""
    weight = launch.DeviceWeight(words, scale, layout_named(layout_id), bits, columns, group_size)
    if x.is_cuda:
        return launch.linear(x, weight, bias)
    launch.check(x, weight, bias)
    rows, groups = scale.shape
    codes = torch.from_numpy(weight.layout.unpack(words.numpy(), bits, (rows, columns)))
    dense = (codes.float().view(rows, groups, -1) * scale[:, :, None]).view(rows, columns)
    y = torch.nn.functional.linear(x.float(), dense, None if bias is None else bias.float())
    return y.to(x.dtype)


@linear.register_fake
def _shape(x: Tensor, words: Tensor, scale: Tensor, *_: object) -> Tensor:
    return x.new_empty((*x.shape[:-1], scale.shape[0]))
