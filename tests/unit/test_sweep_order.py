"""What a sweep makes of its builds: their exit codes, their rows, and which of them are done already."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from qvec_deploy.cli.sweep import SweepDisplay, _figures, _verdict
from qvec_deploy.errors import RecipeError
from qvec_deploy.measure.statistics import Estimate
from qvec_deploy.recipe import load_recipes
from qvec_deploy.shelf import Shelf
from qvec_deploy.sweep import Latency, Row, Summary, default_jobs, sweep
from qvec_deploy.workshop import Workshop


def _row(code: int, name: str = "one") -> Row:
    return Row(name, "built" if code == 0 else "failed", False, code, "reason", "hint")


@pytest.mark.parametrize(
    ("codes", "worst"),
    [
        ([], 0),
        ([0, 0], 0),
        ([0, 3], 3),
        ([3, 4, 0], 4),
        ([4, 7], 7),
        ([7, 6], 6),
        ([5, 6], 5),
        ([5, 1], 1),
        ([3, 2], 2),
    ],
)
def test_the_worst_outcome_decides(codes: list[int], worst: int) -> None:
    assert Summary(tuple(map(_row, codes))).exit_code == worst


def test_jobs_leave_room_for_engines(pico_recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qvec_deploy.sweep.available_threads", lambda: 8)
    one = load_recipes(pico_recipe(target__threads=1))
    three = load_recipes(pico_recipe(target__threads=3))
    all_cores = load_recipes(pico_recipe(target={"lowering": "int4"}))
    assert (default_jobs(one), default_jobs(three), default_jobs((*one, *three)), default_jobs(all_cores)) == (
        8,
        2,
        2,
        1,
    )


def test_bundles_need_names_of_their_own(tmp_path: Path, pico_recipe: Callable[..., Path]) -> None:
    recipe = load_recipes(pico_recipe())
    with pytest.raises(RecipeError, match="two recipes are called pico"):
        sweep((*recipe, *recipe), tmp_path / "sweep")
    assert not (tmp_path / "sweep").exists()


def test_a_recipe_that_cannot_be_stops_all_before_anything(tmp_path: Path, pico_recipe: Callable[..., Path]) -> None:
    recipes = load_recipes(pico_recipe(matrix={"quantize.skip": [["head"], ["heed"]]}))
    with pytest.raises(RecipeError, match=r"pico-heed: .*`heed` matches no Linear"):
        sweep(recipes, tmp_path / "sweep")
    assert not (tmp_path / "sweep").exists()


class TestTable:
    ROW = Row(
        "one",
        "gate missed",
        True,
        3,
        correct=180,
        images=200,
        stored_bytes=434_000,
        latency=Latency(1, 60, 0.5, Estimate(1.5, 1.25, 1.75)),
        gates=1,
        gates_asked=2,
    )

    def test_figures_have_their_counts_and_intervals(self) -> None:
        assert _figures(self.ROW) == ["90.0 [85.1, 93.4], 200", "0.434", "0.500", "1.50× [1.25, 1.75]", "1/2"]
        assert _figures(_row(4)) == ["-"] * 5

    def test_verdicts_say_what_was_kept(self) -> None:
        assert _verdict(self.ROW) == "gate missed (kept)"
        assert _verdict(replace(self.ROW, verdict="built", exit_code=0)) == "kept"
        assert _verdict(replace(self.ROW, verdict="built", kept=False)) == "built"


@pytest.mark.parametrize("terminal", [True, False])
def test_the_display_counts_ends_and_names_reasons(terminal: bool) -> None:
    console = Console(force_terminal=terminal, width=100, record=True, file=io.StringIO())
    with SweepDisplay(console, 2) as display:
        display.event("one", {"stage": "quantize", "detail": "ptq"})
        display.event("one", {"done": 1, "total": 4})
        display.event("one", {"stage": "latency", "detail": ""})
        display.ended(replace(_row(0), reason=""))
        display.ended(_row(4, "two"))
    text = console.export_text()
    assert "1/2  one: built" in text and "2/2  two: failed: reason" in text


class TestWhatIsMadeOnce:
    """Keys on the shelf: equal exactly where the bytes are."""

    @pytest.fixture
    def key(self, tmp_path: Path, pico_recipe: Callable[..., Path]) -> Iterator[Callable[..., Any]]:
        def inputs(part: str = "engine", **overrides: Any) -> Any:
            (recipe,) = load_recipes(pico_recipe(**overrides))
            shop = Workshop(shelf=Shelf(tmp_path / "shelf"))
            plan = shop.plan(recipe)
            found = shop._of_weights(plan) | (shop._of_engine(plan) if part == "engine" else {})
            return json.dumps(found, sort_keys=True)

        yield inputs

    @pytest.mark.parametrize(
        "change",
        [
            {"name": "other"},
            {"measure__blocks": 7},
            {"evaluate": {"dataset": "tiny/realdigits"}},
            {"variants": [{"name": "v", "set": {"quantize.bits": 2, "lambda": 0}}]},
            {"gates": {"min_speedup": 2}},
            {"images": {"dataset": "tiny/realdigits"}, "lambda": 1.0},
            {"target__batch_sizes": [1, 8]},
        ],
        ids=str,
    )
    def test_what_does_not_matter(self, key: Callable[..., Any], change: dict[str, Any]) -> None:
        assert key() == key(**change)

    @pytest.mark.parametrize(
        "change",
        [
            {"lambda": 0.5},
            {"lambda": 0.0},
            {"quantize__clip": 0.9},
            {"vector__control": {"kind": "random", "seed": 1}},
            {"receiver__model_args__num_heads": 4},
        ],
        ids=str,
    )
    def test_what_decides_the_weights(self, key: Callable[..., Any], change: dict[str, Any]) -> None:
        if "quantize__clip" in change:
            change = {**change, "lambda": 0.0}
            assert key("weights", **{"lambda": 0.0}) != key("weights", **change)
        else:
            assert key("weights") != key("weights", **change)

    def test_lowerings_share_weights_and_no_engine(self, key: Callable[..., Any]) -> None:
        other = {"target__lowering": "int8"}
        assert key("weights") == key("weights", **other)
        assert key() != key(**other)

    def test_at_lambda_0_the_vector_does_not_matter(self, key: Callable[..., Any]) -> None:
        assert key(**{"lambda": 0.0}) == key(vector=None, **{"lambda": 0.0})

    def test_files_count_by_content(self, key: Callable[..., Any], tmp_path: Path, pico_folder: Path) -> None:
        copy = tmp_path / "copy.safetensors"
        data = (pico_folder / "receiver.safetensors").read_bytes()
        copy.write_bytes(data)
        assert key() == key(receiver__checkpoint=str(copy))
        copy.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        assert key() != key(receiver__checkpoint=str(copy))

    def test_images_count_by_content(self, key: Callable[..., Any]) -> None:
        looking = {"quantize": {"bits": 3, "method": "gptaq", "calibration": {"on": "generated", "count": 8}}}
        fewer = {"quantize": {"bits": 3, "method": "gptaq", "calibration": {"on": "generated", "count": 9}}}
        plain = {"vector": None, "lambda": 0.0}
        assert key("weights", **looking, **plain) == key("weights", **looking, **plain)
        assert key("weights", **looking, **plain) != key("weights", **fewer, **plain)
