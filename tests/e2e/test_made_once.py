"""A build of many candidates opens every file once, and makes every plan and every structure once."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm

from qvec_deploy.bench.run import BenchResult
from qvec_deploy.builder import context as context_module
from qvec_deploy.builder.pipeline import build
from qvec_deploy.io.checkpoint import Checkpoint
from qvec_deploy.models import _describe, _known_model, _template, trace_forward
from qvec_deploy.recipe import load_recipe
from qvec_deploy.report.report_json import from_json
from qvec_deploy.runtimes.graph import export

VARIANTS = [
    {"name": "half", "set": {"lambda": 0.5}},
    {"name": "double", "set": {"lambda": 2.0}},
    {"name": "mse", "set": {"lambda": 0.0, "quantize.method": "mse"}},
    {"name": "two", "set": {"lambda": 0.0, "vector": None, "quantize.bits": 2}},
    {"name": "four", "set": {"lambda": 0.0, "vector": None, "quantize.bits": 4}},
    {"name": "int8", "set": {"target.lowering": "int8"}},
]


def test_nine_candidates(
    finished: Path, tmp_path: Path, pico_recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: Counter[tuple[Any, ...]] = Counter()

    def count(owner: object, name: str, key: Callable[..., tuple[Any, ...]]) -> None:
        real = getattr(owner, name)

        def counted(*arguments: Any, **named: Any) -> Any:
            counts[name, *key(*arguments)] += 1
            return real(*arguments, **named)

        monkeypatch.setattr(owner, name, counted)

    count(Checkpoint, "open", lambda source: (str(source),))
    count(context_module, "make_plan", lambda recipe, *_: (recipe.name,))
    count(timm, "create_model", lambda name: (name,))
    count(export, "export_skeleton", lambda *_: ())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    _forget_models()
    report = from_json((finished / "report.json").read_bytes())
    monkeypatch.setattr("qvec_deploy.builder.pipeline.measure_engines", lambda *_: BenchResult(report, None))
    recipe = load_recipe(pico_recipe(variants=VARIANTS))
    assert len(recipe.candidates()) == 9
    build(recipe, tmp_path / "bundle")
    assert sorted(name for name, *_ in counts) == sorted(
        ["open"] * 2 + ["make_plan"] * 9 + ["create_model", "export_skeleton"]
    )
    assert set(counts.values()) == {1}, counts

    # Another process that builds another checkpoint of the same architecture exports nothing.
    counts.clear()
    _forget_models()
    build(recipe, tmp_path / "again")
    assert not {"export_skeleton"} & {name for name, *_ in counts}
    assert set(counts.values()) == {1}, counts


def _forget_models() -> None:
    for known in (_describe, _known_model, _template, trace_forward):
        known.cache_clear()


PROGRAM = """
import sys
from pathlib import Path
from qvec_deploy import build, load_recipe

if __name__ == "__main__":
    build(load_recipe(Path(sys.argv[1])), Path(sys.argv[2]))
    print([name for name in ("torch", "timm", "modelopt", "onnxscript") if name in sys.modules])
"""


def test_a_process_that_builds_loads_no_pytorch(tmp_path: Path, pico_recipe: Callable[..., Path]) -> None:
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    for turn in ("first", "second"):
        command = [sys.executable, "-c", PROGRAM, str(pico_recipe()), str(tmp_path / turn)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1] == "[]", turn
    names = sorted(path.name for path in (tmp_path / "first").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "second").iterdir())
    for name in ("model.onnx", "weights.qvec.safetensors", "parity.safetensors"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes(), name
