"""What a recipe's `measure` may ask for, and what `bench` makes of its options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from qvec_deploy.errors import RecipeError
from qvec_deploy.recipe import load_recipe

MINIMAL = "version: 1\nname: mine\nlambda: 0\nreceiver: { checkpoint: r.safetensors, model: vit_base_patch16_224 }\n"


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(MINIMAL, encoding="utf-8")
    return path


def test_all_of_it(recipe: Path) -> None:
    text = "{ cores: [0, 2], l2: cold, max_seconds: 90, scenarios: [offline], mlperf_rules: true }"
    target = "{ runtime: torch-cuda, lowering: packed }"
    recipe.write_text(f"{MINIMAL}target: {target}\nmeasure: {text}\n", encoding="utf-8")
    measure = load_recipe(recipe).measure
    assert (measure.cores, measure.l2, measure.max_seconds) == ((0, 2), "cold", 90.0)
    assert (measure.scenarios, measure.mlperf_rules) == (("offline",), True)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("measure.cores=[-1]", "measure.cores.0"),
        ("measure.cores=[1, 1]", "a core is named twice"),
        ("measure.l2=hot", "measure.l2"),
        ("measure.l2=cold", "runs on the CPU"),
        ("measure.max_seconds=0", "measure.max_seconds"),
        ("measure.scenarios=[server]", "measure.scenarios"),
        ("measure.scenarios=[offline, offline]", "a scenario is named twice"),
        ("measure.mlperf_rules=true", "those of `scenarios`"),
    ],
)
def test_what_is_refused(recipe: Path, override: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe, [override])
    assert message in str(caught.value.message)


@pytest.mark.parametrize("text", ["x", "0,-1", "", "1,,2"])
def test_cores_that_are_no_list(text: str) -> None:
    from qvec_deploy.cli.bench_command import bench

    result = CliRunner().invoke(bench, ["bundle", "--cores", text])
    assert result.exit_code == 2
    assert "is no list of cores such as 0,1" in result.output


def test_options_of_bench_become_fields_of_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    from qvec_deploy.bundle import side_by_side
    from qvec_deploy.cli.bench_command import bench

    asked: list[Any] = []

    def stop(*bundles: Any, **options: Any) -> None:
        asked.append(options["measure"])
        raise KeyboardInterrupt

    monkeypatch.setattr(side_by_side, "bench_bundles", stop)
    options = "--cores 1,0,1 --l2 cold --max-seconds 5 --scenario offline --scenario offline"
    CliRunner().invoke(bench, ["bundle", *options.split()])
    CliRunner().invoke(bench, ["bundle"])
    assert asked == [{"cores": (0, 1), "l2": "cold", "max_seconds": 5.0, "scenarios": ("offline",)}, {}]
