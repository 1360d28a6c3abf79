"""A bundle's weights as a timm module in float16; its packed Linears stay packed and run `qvec::linear`. Torch only."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from qvec_deploy import models
from qvec_deploy.errors import IncompatibleError, first_line
from qvec_deploy.packed import PackedFile, unpack
from qvec_deploy.runtimes.graph.float16 import half
from qvec_deploy.runtimes.kernels.layouts import choose_layout
from qvec_deploy.runtimes.registry import find_lowering
from qvec_deploy.runtimes.torch_cuda import TORCH_CUDA
from qvec_deploy.runtimes.torch_cuda.torch_structure import Structure
from qvec_deploy.tensors import INPUT_SCALE, Float32, QuantizedTensor


class PackedLinear(nn.Module):
    """An nn.Linear whose weight is device words: y = x @ dequantized.T + bias.

    Args:
        bias: (out,) float16; None for none.
        factor: (in,) float16, multiplied with the input first (AWQ); None for none.
    """

    words: Tensor
    scale: Tensor
    bias: Tensor | None
    factor: Tensor | None

    def __init__(
        self, quantized: QuantizedTensor, bias: Tensor | None, factor: Tensor | None, device: torch.device
    ) -> None:
        super().__init__()
        rows, self.columns = quantized.codes.shape
        self.bits, self.group_size = quantized.scheme.bits, quantized.scheme.group_size
        layout = choose_layout(rows, self.columns, self.bits, self.group_size)
        self.layout_id = layout.id
        words = torch.from_numpy(layout.pack(quantized.codes, self.bits))
        self.register_buffer("words", words.to(device))
        self.register_buffer("scale", torch.from_numpy(quantized.scale.copy()).to(device))
        asked = torch.empty(0, dtype=torch.half, device=device)  # models ask for their weights' type and device
        self.register_buffer("weight", asked, persistent=False)
        self.register_buffer("bias", bias)
        self.register_buffer("factor", factor)

    def forward(self, x: Tensor) -> Tensor:
        """Y (..., out) of x (..., in), both float16."""
        if self.factor is not None:
            x = x * self.factor
        x = x.contiguous()  # nothing where it is so already: a ViT's are
        y: Tensor = torch.ops.qvec.linear(
            x, self.words, self.scale, self.bias, self.layout_id, self.bits, self.columns, self.group_size
        )
        return y


class HalfEngine(nn.Module):
    """Images and logits in float32 around a model in float16."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Logits (batch, classes) float32 of images (batch, C, H, W) float32."""
        logits: Tensor = self.model(images.half())
        return logits.float()

    @property
    def weight_bytes(self) -> int:
        """Bytes of everything that stays in the device's memory between runs, counted once."""
        held = {tensor.data_ptr(): tensor.nbytes for tensor in (*self.parameters(), *self.buffers())}
        return sum(held.values())


def load_engine(structure: Structure, weights: PackedFile, lowering: str, device: torch.device) -> HalfEngine:
    """Put a packed file into its timm model, tensor by tensor; `packed` never has float weights of Linears."""
    convert = find_lowering(TORCH_CUDA.name, lowering).load()
    model = models.structure(structure.name, structure.classes, structure.args).half()  # scales come later, in float32
    packed = {key: len(info.shape) for key, info in weights.tensors.items() if info.scheme is not None}
    linears = [key.removesuffix(".weight") for key, dimensions in packed.items() if dimensions == 2]
    factors, state = {}, {}
    for key in weights.tensors:
        if key.endswith(INPUT_SCALE):
            factors[key.removesuffix(INPUT_SCALE)] = weights.array(key).astype(np.float32)
    for key, info in weights.tensors.items():
        if info.scheme is None and not key.endswith(INPUT_SCALE):
            factor = factors.get(key.removesuffix(".weight"), np.float32(1))
            state[key] = _half(key, weights.array(key).astype(np.float32) * factor, device)
    for key in (key for key, dimensions in packed.items() if dimensions > 2):  # filters become floats
        filters = unpack(weights.packed(key)).dequantize().reshape(weights.tensors[key].shape)
        state[key] = _half(key, filters, device)
    for path in linears:
        quantized, bias = unpack(weights.packed(f"{path}.weight")), state.pop(f"{path}.bias", None)
        model.set_submodule(path, convert(path, quantized, bias, factors.get(path), device))
    try:
        _load(model, state, linears)
    except (RuntimeError, ValueError) as error:
        raise IncompatibleError(
            f"{weights.path} does not fit `{structure.name}`: {first_line(error)}", hint="build it again"
        ) from error
    return HalfEngine(model.to(device)).eval().requires_grad_(False)


def to_packed(
    path: str, quantized: QuantizedTensor, bias: Tensor | None, factor: Float32 | None, device: torch.device
) -> nn.Module:
    """A Linear whose weight stays packed."""
    import qvec_deploy.runtimes.kernels.op  # noqa: F401 - registers qvec::linear

    scaled = None if factor is None else _half(f"{path}{INPUT_SCALE}", factor, device)
    return PackedLinear(quantized, bias, scaled, device)


def to_float(
    path: str, quantized: QuantizedTensor, bias: Tensor | None, factor: Float32 | None, device: torch.device
) -> nn.Module:
    """A Linear in float16."""
    rows, columns = quantized.codes.shape
    linear = nn.Linear(columns, rows, bias is not None, device="meta")
    dense = quantized.dequantize() * (np.float32(1) if factor is None else factor)
    linear.weight = nn.Parameter(_half(f"{path}.weight", dense, device))
    if bias is not None:
        linear.bias = nn.Parameter(bias)
    return linear


def _half(name: str, array: Float32, device: torch.device) -> Tensor:
    return torch.from_numpy(half(name, array)).to(device)


def _load(model: nn.Module, state: dict[str, Tensor], linears: list[str]) -> None:
    """Assign the state; whatever it lacks must be a quantized Linear's own."""
    own = {f"{path}.{name}" for path in linears for name in model.get_submodule(path).state_dict()}
    own |= {name for name, value in model.state_dict().items() if not value.is_floating_point()}  # counters
    found: Any = model.load_state_dict(state, strict=False, assign=True)
    missing = sorted(set(found.missing_keys) - own)
    if missing or found.unexpected_keys:
        raise ValueError(f"missing {missing[:3]}, unexpected {found.unexpected_keys[:3]}")
