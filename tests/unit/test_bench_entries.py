"""Engines that compute the same are asked once; all others are asked themselves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qvec_deploy.bench.entries import BenchEntry, shared_answers
from qvec_deploy.recipe.blocks import Target
from qvec_deploy.runtimes.registry import RUNTIMES

Make = Callable[..., BenchEntry]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def entry(name: str, lowering: str, weights: str = "w", parity: str = "p", **target: Any) -> BenchEntry:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "weights.qvec.safetensors").write_text(weights)
        (folder / "parity.safetensors").write_text(parity)
        recipe: Any = SimpleNamespace(target=Target(lowering=lowering, **target))
        return BenchEntry(name, "variant", recipe, folder, lowering, 1, (), {})

    return entry


def test_exact_lowerings_of_the_same_weights_share_their_answers(make: Make) -> None:
    entries = [make("packed", "packed"), make("mine", "int4"), make("int8", "int8"), make("int8_2", "int8")]
    assert shared_answers(entries, "mine", apart=False) == {"packed": "mine"}
    assert shared_answers(entries, None, apart=False) == {"mine": "packed"}


@pytest.mark.parametrize(
    "other", [{"weights": "other"}, {"parity": "other"}, {"preprocessing": "in_graph"}, {"runtime": "torch-cuda"}]
)
def test_what_differs_is_asked_itself(make: Make, other: dict[str, Any]) -> None:
    assert shared_answers([make("one", "packed"), make("two", "packed", **other)], None, apart=False) == {}


def test_bundles_share_nothing_with_others(make: Make) -> None:
    one, two = make("one", "packed"), make("two", "int4")
    assert shared_answers([one, two], None, apart=True) == {}
    again = replace(one, name="one int4", lowering="int4")
    assert shared_answers([one, again, two], None, apart=True) == {"one int4": "one"}


def test_an_engine_without_weights_is_asked_itself(make: Make) -> None:
    entries = [make("one", "packed"), make("two", "int4")]
    for entry in entries:
        (entry.directory / "weights.qvec.safetensors").unlink()
    assert shared_answers(entries, None, apart=False) == {}


def test_float32_alone_is_exact() -> None:
    exact = {(row.name, lowering.name) for row in RUNTIMES.values() for lowering in row.lowerings if lowering.exact}
    assert exact == {("onnxruntime", "float"), ("onnxruntime", "packed"), ("onnxruntime", "int4")}
