"""What a sweep makes of its builds: their exit codes, their rows, and which of them are done already."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from qvec_deploy.bench.statistics import Estimate
from qvec_deploy.builder import keys
from qvec_deploy.builder.context import BuildContext
from qvec_deploy.cli.sweep_command import SweepDisplay, _figures, _verdict
from qvec_deploy.errors import RecipeError
from qvec_deploy.jobs.job import Executor, Job, JobFailure, JobOutcome
from qvec_deploy.recipe import load_recipes
from qvec_deploy.runtimes.cuda_driver import Gpu
from qvec_deploy.sweep.sweep import default_jobs, sweep
from qvec_deploy.sweep.sweep_summary import ShippedLatency, SweepRow, SweepSummary


def _row(code: int, name: str = "one") -> SweepRow:
    return SweepRow(name, "built" if code == 0 else "failed", False, code, "reason", "hint")


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
    assert SweepSummary(tuple(map(_row, codes))).exit_code == worst


def test_jobs_leave_room_for_engines(pico_recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qvec_deploy.sweep.sweep.available_threads", lambda: 8)
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


@pytest.mark.parametrize(
    "preload", ["qvec_deploy.sweep.sweep import _PRELOAD", "qvec_deploy.research.study.study_run import PRELOAD"]
)
def test_jobs_may_use_a_gpu(preload: str) -> None:
    """What is imported before jobs are forked must not touch CUDA. In a process of its own: the server starts once."""
    script = (
        "import json\n"
        "from qvec_deploy.jobs.job import Job\n"
        "from qvec_deploy.jobs.processes import LocalProcesses\n"
        f"from {preload} as preload\n"
        "if __name__ == '__main__':\n"
        "    with LocalProcesses(1, preload=preload) as processes:\n"
        "        processes.submit(Job('look', 'job_functions:look_at_cuda'))\n"
        "        (outcome,) = processes.outcomes()\n"
        "    print(json.dumps(outcome.result))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {"preloaded": True, "bad_fork": False}, done.stderr


class _Interrupted(Executor):
    """An executor that ends one job, and is interrupted in the next."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.jobs: list[Job] = []

    def submit(self, job: Job) -> None:
        self.jobs.append(job)

    def outcomes(self) -> Iterator[JobOutcome]:
        yield JobOutcome(self.jobs[0], failure=JobFailure("FetchError", "nothing there", "look elsewhere", 7))
        raise KeyboardInterrupt

    def close(self) -> None:
        pass


def test_a_sweep_that_is_interrupted_leaves_a_summary_of_all(tmp_path: Path, pico_recipe: Callable[..., Path]) -> None:
    recipes = load_recipes(pico_recipe(matrix={"lambda": [0, 0.5, 1]}))
    with pytest.raises(KeyboardInterrupt):
        sweep(recipes, tmp_path, jobs=1, start=_Interrupted)
    summary = json.loads((tmp_path / "sweep.json").read_text())
    assert summary["exit_code"] is None  # not 7: what is pending may be worse
    assert [(row["name"], row["verdict"], row["exit_code"]) for row in summary["builds"]] == [
        ("pico-lambda0", "failed", 7),
        ("pico-lambda0.5", "pending", None),
        ("pico-lambda1", "pending", None),
    ]


class TestTable:
    ROW = SweepRow(
        "one",
        "gate missed",
        True,
        3,
        correct=180,
        images=200,
        stored_bytes=434_000,
        latency=ShippedLatency(1, 60, 0.5, Estimate(1.5, 1.25, 1.75)),
        gates=1,
        gates_asked=2,
    )

    def test_figures_have_their_counts_and_intervals(self) -> None:
        assert _figures(self.ROW) == ["90.0 [85.1, 93.4], 200", "0.434", "0.500", "1.5× [1.2, 1.8]", "1/2"]
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
    """Keys of the cache: equal exactly where the bytes are."""

    @pytest.fixture
    def key(self, tmp_path: Path, pico_recipe: Callable[..., Path]) -> Iterator[Callable[..., Any]]:
        def inputs(part: str = "engine", **overrides: Any) -> Any:
            (recipe,) = load_recipes(pico_recipe(**overrides))
            context = BuildContext()
            plan = context.plan(recipe)
            found = context.engine_key(plan) if part == "engine" else context.weights_key(plan)
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

    def test_engines_of_gpus_count_by_gpu_and_driver(
        self, key: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        target = {"target": {"runtime": "tensorrt", "lowering": "packed"}}
        found = []
        for gpu in (Gpu("A", 80, "12.8"), Gpu("B", 80, "12.8"), Gpu("A", 80, "13.0")):
            monkeypatch.setattr(keys, "_gpu", lambda gpu=gpu: asdict(gpu))
            found.append(key(**target))
        assert len(set(found)) == 3

    def test_images_count_by_content(self, key: Callable[..., Any]) -> None:
        looking = {"quantize": {"bits": 3, "method": "gptaq", "calibration": {"on": "generated", "count": 8}}}
        fewer = {"quantize": {"bits": 3, "method": "gptaq", "calibration": {"on": "generated", "count": 9}}}
        plain = {"vector": None, "lambda": 0.0}
        assert key("weights", **looking, **plain) == key("weights", **looking, **plain)
        assert key("weights", **looking, **plain) != key("weights", **fewer, **plain)
