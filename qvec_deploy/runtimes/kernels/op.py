"""The operator for PyTorch, `torch.ops.qvec.linear`: a reference on the CPU, the kernel on a GPU, and its shapes."""

# Annotations are read by torch when the operator is defined, so they are not postponed.

import torch
from torch import Tensor

from qvec_deploy.runtimes.kernels.launch import check
from qvec_deploy.runtimes.kernels.launch import linear as launch_linear
from qvec_deploy.runtimes.kernels.layouts import layout_named


@torch.library.custom_op("qvec::linear", mutates_args=(), device_types="cpu")
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
    """Return x @ dequant(words).T + bias, as `launch.linear`; on the CPU in float32, to say what is meant.

    Args:
        columns: Of the weight, which the words alone do not say.
    """
    layout = layout_named(layout_id)
    check(x, words, scale, bias, layout=layout, bits=bits, columns=columns, group_size=group_size)
    rows, groups = scale.shape
    codes = torch.from_numpy(layout.unpack(words.numpy(), bits, (rows, columns)))
    weight = (codes.float().view(rows, groups, -1) * scale[:, :, None]).view(rows, columns)
    y = torch.nn.functional.linear(x.float(), weight, None if bias is None else bias.float())
    return y.to(x.dtype)


@linear.register_kernel("cuda")
def _on_gpu(
    x: Tensor,
    words: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    layout_id: str,
    bits: int,
    columns: int,
    group_size: int,
) -> Tensor:
    layout = layout_named(layout_id)
    return launch_linear(x, words, scale, bias, layout=layout, bits=bits, columns=columns, group_size=group_size)


@linear.register_fake
def _shape(
    x: Tensor,
    words: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    layout_id: str,
    bits: int,
    columns: int,
    group_size: int,
) -> Tensor:
    return x.new_empty((*x.shape[:-1], scale.shape[0]))
