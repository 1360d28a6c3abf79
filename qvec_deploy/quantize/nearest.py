"""Methods that look at weights alone: round to nearest, on a grid whose clip ratio is given or searched.

ModelOpt's quantizer and its MSE calibrator give the same codes and scales, bit for bit (tests/contract/); loading them
takes longer than quantizing a ViT-B.
"""

from __future__ import annotations

from qvec_deploy.quantize import reference
from qvec_deploy.quantize.reference import ABSMAX_FLOOR, as_rows
from qvec_deploy.tensors import Float32, QuantizedTensor, Scheme


def quantize(weight: Float32, scheme: Scheme) -> QuantizedTensor:
    """Put one weight matrix on the grid.

    Args:
        weight: (out, in) float32, finite.

    Returns:
        int8 codes (out, in) and float32 scales (out, groups).
    """
    return reference.quantize(weight, scheme, _search(weight, scheme) if scheme.searched else None)


def _search(weight: Float32, scheme: Scheme) -> Float32:
    import torch

    from qvec_deploy.quantize.clip_search import one_thread, search_clips

    rows = torch.from_numpy(as_rows(weight if weight.flags.writeable else weight.copy(), scheme))
    with torch.no_grad(), one_thread():
        absmax = rows.abs().amax(dim=1, keepdim=True).clamp(min=float(ABSMAX_FLOOR))
        clips: Float32 = search_clips(rows, absmax, scheme).numpy()
    return clips
