"""Cases that every home of the kernels must get right, and how near: interpreted on a CPU, and run on a GPU."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from qvec_deploy.runtimes.kernels.ahead import Tile
from qvec_deploy.runtimes.kernels.layouts import LAYOUTS, DeviceLayout

SMALL = Tile(16, 64, 4, 3)


@dataclass(frozen=True)
class Case:
    """One product. `group` 0 is one scale a row."""

    layout: str
    m: int
    n: int
    k: int
    bits: int = 3
    group: int = 0
    dtype: str = "float16"
    tile: Tile = SMALL
    bias: bool = True
    seed: int = 0

    def __str__(self) -> str:
        size = f"{self.m}x{self.n}x{self.k}"
        kind = ["nobias"] * (not self.bias)
        return "-".join([self.layout, size, f"b{self.bits}", f"g{self.group}", self.dtype, str(self.tile), *kind])

    @property
    def device_layout(self) -> DeviceLayout:
        return LAYOUTS[self.layout]


CASES = [
    *(
        Case(layout, m, n, k, bits, dtype=dtype, seed=seed)
        for seed, (m, bits) in enumerate([(1, 2), (5, 3), (17, 4)])
        for layout, n, k in [("p32", 64, 256), ("rows", 100, 96)]
        for dtype in ("float16", "bfloat16")
    ),
    Case("p32", 33, 64, 512, tile=Tile(32, 64, 2, 2), seed=3),
    Case("p32", 70, 192, 256, tile=Tile(64, 128, 4, 2), seed=4),  # half a tile of columns to spare
    Case("p32", 3, 64, 512, tile=Tile(16, 32, 1, 3), bias=False, seed=5),
    Case("p32", 17, 64, 512, group=16, tile=Tile(16, 32, 1, 3), seed=6),
    Case("p32", 17, 64, 512, group=64, tile=Tile(32, 64, 2, 2), seed=7),
    Case("p32", 5, 64, 512, group=256, bits=4, seed=8),
    Case("p32", 5, 64, 1024, group=512, bits=2, dtype="bfloat16", seed=9),
    Case("p32", 5, 64, 1280, tile=Tile(16, 64, 4, 4, split=4), seed=10),  # 5 blocks for 4 programs
    Case("p32", 3, 64, 256, tile=Tile(16, 64, 4, 4, split=2), seed=11),  # a program without work
    Case("p32", 3, 64, 1024, group=128, tile=Tile(16, 64, 4, 4, split=2), seed=12),
    Case("rows", 33, 192, 192, tile=Tile(32, 64, 2, 2), seed=13),
    Case("rows", 65, 384, 64, tile=Tile(64, 128, 4, 2), bias=False, seed=14),
    Case("rows", 2, 48, 269, seed=15),  # as 4304 = 16 * 269: no power of two in it
    Case("rows", 17, 50, 96, group=16, seed=16),
    Case("rows", 17, 50, 96, group=48, bits=2, seed=17),
    Case("rows", 17, 50, 192, group=96, bits=4, dtype="bfloat16", seed=18),
    Case("rows", 7, 33, 61, bits=5, seed=19),
    Case("rows", 7, 33, 61, bits=6, dtype="bfloat16", seed=20),
    Case("rows", 7, 33, 61, bits=7, seed=21),
    Case("rows", 7, 33, 64, bits=8, group=32, dtype="bfloat16", seed=22),
    Case("rows", 3, 96, 224, tile=Tile(16, 64, 4, 4, split=4), group=32, seed=23),
    Case("rows", 1, 1, 1, seed=24),
]


def tensors(case: Case, device: str) -> dict[str, Any]:
    """Codes, scales, x and bias as numpy, and what the kernels take as tensors."""
    generator = np.random.default_rng(case.seed)
    low = -(1 << (case.bits - 1))
    codes = generator.integers(low, -low, (case.n, case.k), dtype=np.int8)
    groups = case.k // case.group if case.group else 1
    scale = generator.uniform(0.01, 0.03, (case.n, groups)).astype(np.float32)
    dtype = getattr(torch, case.dtype)
    x = torch.from_numpy(generator.standard_normal((case.m, case.k)).astype(np.float32)).to(dtype)
    bias = torch.from_numpy(generator.standard_normal(case.n).astype(np.float32)).to(dtype) if case.bias else None
    return {
        "codes": codes,
        "x": x.to(device),
        "words": torch.from_numpy(case.device_layout.pack(codes, case.bits)).to(device),
        "scale": torch.from_numpy(scale).to(device),
        "bias": None if bias is None else bias.to(device),
    }


def device_weight(case: Case, values: dict[str, Any]) -> Any:
    """The weight as the kernels take it."""
    from qvec_deploy.runtimes.kernels.launch import DeviceWeight

    return DeviceWeight(values["words"], values["scale"], case.device_layout, case.bits, case.k, case.group)


def weight(case: Case, values: dict[str, Any], kind: type = np.float32) -> np.ndarray:
    """The weight that the codes stand for: one multiplication."""
    scale = values["scale"].cpu().numpy().astype(kind)
    return (values["codes"].astype(kind).reshape(*scale.shape, -1) * scale[:, :, None]).reshape(case.n, case.k)


def excess(
    case: Case, values: dict[str, Any], y: torch.Tensor, *, emulated: bool = False, rounded_weights: bool = False
) -> float:
    """The largest error of y as a share of what rounding explains: at most 1 if the kernel is right.

    Explained are one rounding of the result to its type (Triton's interpreter cuts bfloat16 off instead), and one
    rounding of each sum to float32. `rounded_weights` is for the way that dequantizes first: each weight is rounded to
    the type too, and so may the product be before the bias is added.
    """
    x, exact = values["x"].cpu().double().numpy(), weight(case, values, np.float64)
    expected = x @ exact.T
    terms = np.abs(x) @ np.abs(exact).T
    if values["bias"] is not None:
        expected = expected + values["bias"].cpu().double().numpy()
        terms = terms + np.abs(values["bias"].cpu().double().numpy())
    last = {"float16": 2.0**-11, "bfloat16": 2.0**-7 if emulated else 2.0**-8}[case.dtype]
    allowed = 1.001 * last * np.abs(expected) + (case.k + 8) * 2.0**-23 * terms + 2.0**-25
    if rounded_weights:
        allowed = allowed + 2 * last * terms
    return float(np.nan_to_num(np.abs(y.cpu().double().numpy() - expected) / allowed, nan=np.inf).max())


def dequantized(case: Case, values: dict[str, Any], emulated: bool = False) -> torch.Tensor:
    """The weight rounded once to the case's type."""
    single = torch.from_numpy(weight(case, values))
    if emulated and case.dtype == "bfloat16":
        return (single.view(torch.int32) & -65536).view(torch.float32).bfloat16()
    return single.to(getattr(torch, case.dtype))


def interpret() -> dict[str, dict[str, Any]]:
    """Run every case in Triton's interpreter; memory that a kernel leaves out is NaN."""
    from qvec_deploy.runtimes.kernels import launch

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)  # fills what is not initialized
    results = {}
    for case in CASES:
        values = tensors(case, "cpu")
        inputs = (values["x"], device_weight(case, values), values["bias"])
        y = launch.run(*inputs, case.tile, asm=False)
        w = launch.dequantize(inputs[1], inputs[0].dtype)
        fallback = launch.run(*inputs, None)
        results[str(case)] = {
            "excess": excess(case, values, y, emulated=True),
            "fallback": excess(case, values, fallback, emulated=True, rounded_weights=True),
            "fallback_held_to_exact_weights": excess(case, values, fallback, emulated=True),
            "dequantized": torch.equal(w, dequantized(case, values, emulated=True)),
        }
    return results


if __name__ == "__main__":
    json.dump(interpret(), sys.stdout)
