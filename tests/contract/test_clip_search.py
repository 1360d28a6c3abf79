"""The fast search for clip ratios chooses what ModelOpt's calibrator chooses over the same grid, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
import torch

from qvec_deploy.quantize import clip_search, modelopt
from qvec_deploy.quantize.modelopt import calibrate_clips
from qvec_deploy.quantize.reference import ABSMAX_FLOOR, CLIP_GRID
from qvec_deploy.tensors import Float32, Scheme

GRAINS = [("tensor", 0), ("channel", 0), ("group", 16), ("group", 64), ("group", 128)]
SHAPES = [(24, 384), (5, 400)]

Draw = Callable[[np.random.Generator, tuple[int, int], int], np.ndarray]


def _with_outliers(random: np.random.Generator, shape: tuple[int, int], qmax: int) -> np.ndarray:
    weight = random.normal(0, 0.02, shape)
    weight[::3, 5] = random.choice([-1, 1]) * random.uniform(0.2, 40)
    return weight


def _with_zeros(random: np.random.Generator, shape: tuple[int, int], qmax: int) -> np.ndarray:
    weight = random.normal(0, 0.02, shape)
    weight[::2] = 0
    weight[1::2, ::2] = 0
    return weight


def _at_thresholds(random: np.random.Generator, shape: tuple[int, int], qmax: int) -> np.ndarray:
    """Positions that are breaks of some ratio, in rows whose scale is a power of two."""
    weight = random.integers(-100 * qmax, 100 * qmax + 1, shape) / 100.0
    weight[:, ::16] = qmax
    return weight * 2.0**-7


def _on_the_grid(random: np.random.Generator, shape: tuple[int, int], qmax: int) -> np.ndarray:
    """Already quantized with some ratio: its loss is nothing but rounding."""
    weight = random.integers(-qmax - 1, qmax + 1, shape) * 0.01
    return weight.astype(np.float32) * CLIP_GRID[random.integers(0, len(CLIP_GRID), (len(weight), 1))]


def _near_the_floor(random: np.random.Generator, shape: tuple[int, int], qmax: int) -> np.ndarray:
    return random.normal(0, 1, shape) * float(ABSMAX_FLOOR) * 10.0 ** random.uniform(-3, 0, (shape[0], 1))


def _huge(random: np.random.Generator, shape: tuple[int, int], qmax: int) -> np.ndarray:
    return np.clip(random.normal(0, 1, shape) * 10.0 ** random.uniform(16, 38, (shape[0], 1)), -3e38, 3e38)


WEIGHTS: dict[str, Draw] = {
    "normal": lambda random, shape, qmax: random.normal(0, 0.02, shape),
    "heavy tails": lambda random, shape, qmax: random.standard_t(2, shape),
    "outliers": _with_outliers,
    "zeros": _with_zeros,
    "constant rows": lambda random, shape, qmax: np.broadcast_to(random.normal(0, 1, (shape[0], 1)), shape),
    "two values": lambda random, shape, qmax: random.choice([-0.3, 0.7], shape),
    "denormals": lambda random, shape, qmax: random.normal(0, 1, shape) * 10.0 ** random.uniform(-44, -38, shape),
    "beside denormals": lambda random, shape, qmax: random.normal(0, 1, shape) * 10.0 ** random.uniform(-44, 0, shape),
    "at thresholds": _at_thresholds,
    "on the grid": _on_the_grid,
    "float16 values": lambda random, shape, qmax: random.normal(0, 0.02, shape).astype(np.float16),
    "few digits": lambda random, shape, qmax: random.integers(-127, 128, shape) * 2.0 ** random.integers(-9, -5, shape),
    "near the floor": _near_the_floor,
    "squares overflow": _huge,
}  # fmt: skip


def _rows(weight: Float32, scheme: Scheme) -> tuple[torch.Tensor, torch.Tensor]:
    length = weight.size if scheme.granularity == "tensor" else weight.shape[1] // scheme.groups(weight.shape[1])
    rows = torch.from_numpy(weight).reshape(-1, length)
    return rows, rows.abs().amax(dim=1, keepdim=True).clamp(min=float(ABSMAX_FLOOR))


def _check(weight: Float32, scheme: Scheme, hint: str = "") -> None:
    rows, absmax = _rows(weight, scheme)
    before = rows.clone()
    found, expected = (search(rows, absmax, scheme) for search in (clip_search.search_clips, calibrate_clips))
    np.testing.assert_array_equal(found.numpy(), expected.numpy(), err_msg=f"{hint} {scheme}")
    assert found.shape == absmax.shape and found.dtype == torch.float32
    np.testing.assert_array_equal(rows.numpy(), before.numpy())


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("kind", WEIGHTS)
def test_the_ratios_are_those_of_modelopts_calibrator(bits: int, kind: str) -> None:
    random = np.random.default_rng(bits)
    for shape, (grain, size) in product(SHAPES, GRAINS):
        if not size or not shape[1] % size:
            weight = WEIGHTS[kind](random, shape, (1 << (bits - 1)) - 1).astype(np.float32)
            _check(weight, Scheme(bits, grain, size, 1.0, "mse"), kind)  # type: ignore[arg-type]


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_what_is_searched_in_several_pieces_is_put_together(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clip_search, "_PIECE", 1000)
    weight = np.random.default_rng(0).normal(0, 0.02, (40, 192)).astype(np.float32)
    weight[7] = 0
    for grain, size in GRAINS[:4]:
        _check(weight, Scheme(bits, grain, size, 1.0, "mse"))  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_of_a_training_that_diverged(value: float) -> None:
    weight = np.random.default_rng(0).normal(0, 0.02, (6, 256)).astype(np.float32)
    weight[2, 3] = value
    for grain, size in GRAINS:
        _check(weight, Scheme(3, grain, size, 1.0, "mse"))  # type: ignore[arg-type]


def test_other_numbers_than_float32_are_left_to_modelopt(monkeypatch: pytest.MonkeyPatch) -> None:
    """As are weights on other devices: the bound holds for float32 sums on a CPU."""
    rows = torch.randn(4, 256, generator=torch.Generator().manual_seed(0)).bfloat16()
    absmax = rows.abs().amax(dim=1, keepdim=True)
    scheme = Scheme(3, "channel", method="mse")
    monkeypatch.delattr(modelopt, "search_clips")
    with pytest.raises(NameError):
        modelopt._clips(rows.float(), scheme)
    assert torch.equal(modelopt._clips(rows, scheme), calibrate_clips(rows, absmax, scheme))


@pytest.mark.parametrize("bits", range(2, 9))
def test_few_rows_are_searched_step_by_step(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = 0
    try_all = clip_search._try_all

    def counted(rows: torch.Tensor, *args: object) -> torch.Tensor:
        nonlocal asked
        asked += len(rows)
        return try_all(rows, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(clip_search, "_try_all", counted)
    weight = np.random.default_rng(0).normal(0, 0.02, (512, 768)).astype(np.float32)
    weight[:100] = 0
    rows, absmax = _rows(weight, Scheme(bits, "channel", method="mse"))
    clip_search.search_clips(rows, absmax, Scheme(bits, "channel", method="mse"))
    assert asked < 0.05 * len(rows)


def test_the_losses_are_those_of_exact_arithmetic_but_for_a_constant() -> None:
    random = np.random.default_rng(0)
    weight = random.normal(0, 0.02, (4, 300)).astype(np.float32)
    for bits in range(2, 9):
        scheme = Scheme(bits, "channel", method="mse")
        rows, absmax = _rows(weight, scheme)
        found, _ = clip_search._losses(rows, absmax, clip_search._table(bits))
        position = 100 * scheme.qmax * weight.astype(np.float64) / absmax.numpy().astype(np.float64)
        for row, losses in zip(position, found.numpy(), strict=True):
            exact = []
            for step in np.arange(100, 8, -2.0):
                exact.append(((row - step * np.clip(np.rint(row / step), scheme.qmin, scheme.qmax)) ** 2).sum())
            share = row - np.floor(row)
            np.testing.assert_allclose(losses - (share * (1 - share)).sum(), exact, rtol=1e-5)


def test_the_grid_has_even_hundredths() -> None:
    """What the search rests on: every border between two codes is then an integer."""
    hundredths = np.rint(100 * CLIP_GRID.astype(np.float64))
    np.testing.assert_array_equal((hundredths / 100).astype(np.float32), CLIP_GRID)
    assert not (hundredths % 2).any() and (np.diff(hundredths) < 0).all()
