"""Schemes refuse what means nothing, and tensors stand for the values they say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qvec_deploy.errors import IntegrityError, RecipeError
from qvec_deploy.tensors import QuantizedTensor, Scheme


@pytest.mark.parametrize(
    "values",
    [
        {"bits": 1, "granularity": "channel"},
        {"bits": 9, "granularity": "channel"},
        {"bits": 3, "granularity": "group"},
        {"bits": 3, "granularity": "channel", "group_size": 16},
        {"bits": 3, "granularity": "channel", "group_size": -1},
        {"bits": 3, "granularity": "channel", "clip": 0.0},
        {"bits": 3, "granularity": "channel", "clip": 1.5},
        {"bits": 3, "granularity": "channel", "clip": 0.5, "method": "mse"},
    ],
)
def test_impossible_schemes_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(RecipeError):
        Scheme(**values)


@pytest.mark.parametrize(("bits", "low", "high"), [(2, -2, 1), (3, -4, 3), (8, -128, 127)])
def test_code_range(bits: int, low: int, high: int) -> None:
    scheme = Scheme(bits, "channel")
    assert (scheme.qmin, scheme.qmax) == (low, high)


def test_groups_must_divide_a_row() -> None:
    assert Scheme(3, "group", 16).groups(48) == 3
    assert Scheme(3, "tensor").groups(48) == 1
    with pytest.raises(RecipeError, match="50"):
        Scheme(3, "group", 16).groups(50)


def test_scheme_survives_its_dictionary() -> None:
    scheme = Scheme(3, "group", 16, 0.65)
    assert Scheme.from_dict(scheme.as_dict()) == scheme


@pytest.mark.parametrize(
    "change",
    [
        {"bits": "3"},
        {"bits": True},
        {"bits": 1},
        {"granularity": "row"},
        {"method": "gptq"},
        {"extra": 1},
        {"clip": 1},
        {"group_size": -7},
    ],
)
def test_damaged_schemes_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(IntegrityError):
        Scheme.from_dict(Scheme(3, "channel").as_dict() | change)


def test_missing_scheme_fields_are_refused() -> None:
    values = Scheme(3, "channel").as_dict()
    del values["clip"]
    with pytest.raises(IntegrityError):
        Scheme.from_dict(values)


def test_dequantize_multiplies_each_group_by_its_scale() -> None:
    codes = np.array([[1, -2, 3, -4], [0, 1, 2, 3]], np.int8)
    scale = np.array([[0.5, 2.0], [1.0, 0.25]], np.float32)
    tensor = QuantizedTensor(codes, scale, Scheme(3, "group", 2))
    expected = np.array([[0.5, -1.0, 6.0, -8.0], [0.0, 1.0, 0.5, 0.75]], np.float32)
    np.testing.assert_array_equal(tensor.dequantize(), expected)
