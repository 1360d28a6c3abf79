"""What the report says of an engine's file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qvec_deploy.bundle.bench import stored_bits_per_weight
from qvec_deploy.packed import Entry, PackedFile, pack, write_packed
from qvec_deploy.quantize.reference import quantize
from qvec_deploy.tensors import Scheme


def test_factors_of_inputs_are_stored_too(tmp_path: Path) -> None:
    scheme = Scheme(3, "channel")
    weight = np.random.default_rng(0).standard_normal((32, 64)).astype(np.float32)
    scaled = {"a.weight": pack(quantize(weight, scheme)), "a.bias": np.zeros(32, np.float32)}
    layout = {"a.weight": Entry((32, 64), scheme), "a.bias": Entry((32,), None)}

    def bits(**more: np.ndarray) -> float:
        entries = layout | {name: Entry(value.shape, None) for name, value in more.items()}
        write_packed(tmp_path / "w.safetensors", entries, {**scaled, **more}.items())
        return stored_bits_per_weight(PackedFile.open(tmp_path / "w.safetensors"))

    plain = 3 + 32 * 32 / (32 * 64)
    assert bits() == pytest.approx(plain)
    assert bits(**{"a.input_scale": np.ones(64, np.float32)}) == pytest.approx(plain + 32 * 64 / (32 * 64))
