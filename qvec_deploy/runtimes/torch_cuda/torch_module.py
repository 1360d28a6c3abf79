"""A bundle's weights as a timm module in float16; its packed Linears stay packed and run `qvec::linear`. Torch only."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from qvec_deploy import models
from qvec_deploy.errors import IncompatibleError
from qvec_deploy.packed import PackedFile, PackedInfo, unpack
from qvec_deploy.runtimes.graph.float16 import half
from qvec_deploy.runtimes.kernels.layouts import choose_layout
from qvec_deploy.runtimes.torch_cuda.torch_structure import Structure
from qvec_deploy.tensors import INPUT_SCALE, Float32


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
        self, weights: PackedFile, info: PackedInfo, bias: Tensor | None, factor: Tensor | None, device: torch.device
    ) -> None:
        super().__init__()
        quantized, scheme = unpack(weights.packed(info.name)), info.scheme
        assert scheme is not None  # noqa: S101 - `unpack` has refused anything else
        rows, self.columns = info.shape
        self.bits, self.group_size = scheme.bits, scheme.group_size
        layout = choose_layout(rows, self.columns, self.bits, self.group_size)
        self.layout_id = layout.id
        words = torch.from_numpy(layout.pack(quantized.codes, self.bits))
        self.register_buffer("words", words.to(device))
        self.register_buffer("scale", torch.from_numpy(quantized.scale.copy()).to(device))
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
    if lowering not in ("float", "packed"):
        raise IncompatibleError(f"runtime `torch-cuda` has no lowering `{lowering}`", hint="it has float, packed")
    model = models.structure(structure.name, structure.classes, structure.args).half()  # scales come later, in float32
    if lowering == "packed":
        import qvec_deploy.runtimes.kernels.op  # noqa: F401 - registers qvec::linear

    factors = {
        key.removesuffix(INPUT_SCALE): weights.array(key).astype(np.float32)
        for key in weights.tensors
        if key.endswith(INPUT_SCALE)
    }
    state: dict[str, Tensor] = {}
    packed: list[str] = []
    for key, info in weights.tensors.items():
        factor = factors.get(key.removesuffix(".weight"), np.float32(1))
        if key.endswith(INPUT_SCALE):
            continue
        if info.scheme is None:
            state[key] = _half(key, weights.array(key).astype(np.float32) * factor, device)
        elif lowering == "float":
            state[key] = _half(key, unpack(weights.packed(key)).dequantize() * factor, device)
        else:
            packed.append(key)
    for key in packed:
        path = key.removesuffix(".weight")
        bias = state.pop(f"{path}.bias", None)
        scaled = _half(f"{path}{INPUT_SCALE}", factors[path], device) if path in factors else None
        model.set_submodule(path, PackedLinear(weights, weights.tensors[key], bias, scaled, device))
    try:
        _load(model, state)
    except (RuntimeError, ValueError) as error:
        raise IncompatibleError(
            f"{weights.path} does not fit `{structure.name}`: {str(error).splitlines()[0]}", hint="build it again"
        ) from error
    return HalfEngine(model.to(device)).eval().requires_grad_(False)


def _half(name: str, array: Float32, device: torch.device) -> Tensor:
    return torch.from_numpy(half(name, array)).to(device)


def _load(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Assign the state; whatever it lacks must be a packed Linear's own."""
    own = {
        f"{path}.{name}"
        for path, module in model.named_modules()
        if isinstance(module, PackedLinear)
        for name, _ in module.named_buffers()
    }
    found: Any = model.load_state_dict(state, strict=False, assign=True)
    missing = sorted(set(found.missing_keys) - own)
    if missing or found.unexpected_keys:
        raise ValueError(f"missing {missing[:3]}, unexpected {found.unexpected_keys[:3]}")
