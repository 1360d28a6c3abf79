"""A bundle built where its runtime is missing, and used where it is not: nothing has to be built again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qvec_deploy.builder.pipeline import build
from qvec_deploy.bundle.bundle import Bundle
from qvec_deploy.bundle.side_by_side import bench_bundles
from qvec_deploy.bundle.write import require_engine, require_release
from qvec_deploy.errors import IncompatibleError
from qvec_deploy.recipe import load_recipe
from qvec_deploy.runtimes.registry import RUNTIMES
from qvec_deploy.runtimes.runtime import Runtime
from qvec_deploy.runtimes.torch_cuda.torch_session import TorchCuda

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("shared_work")]


@pytest.fixture
def made(pico_recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(TorchCuda, "missing", lambda self, lowering=None: "no GPU here")
    recipe = pico_recipe(
        target={"runtime": "torch-cuda", "lowering": "packed", "threads": 1}, vector=None, **{"lambda": 0.0}
    )
    build(load_recipe(recipe), tmp_path / "pico")
    return tmp_path / "pico"


@pytest.fixture
def arrive(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Have the machine run `torch-cuda` from now on: the same sessions, on the operator's reference."""

    def call() -> None:
        monkeypatch.undo()
        here = replace(RUNTIMES["torch-cuda"], backend="small_engines:torch_on_cpu")
        monkeypatch.setitem(RUNTIMES, "torch-cuda", here)

    return call


def test_where_it_was_built_it_has_no_engine(made: Path) -> None:
    bundle = Bundle.open(made)
    assert bundle.manifest.engine.missing == bundle.engine_missing() == "no GPU here"
    assert bundle.verify()["engine"] == "not opened: no GPU here"
    with pytest.raises(IncompatibleError, match="complete but for its engine: no GPU here") as caught:
        require_engine(bundle)
    assert "`qvec-deploy verify" in caught.value.hint and "compile" not in caught.value.hint
    with pytest.raises(IncompatibleError, match="has no engine: no GPU here"):
        bench_bundles([made])


def test_where_the_runtime_is_there_it_can_be_verified_and_released(made: Path, arrive: Callable[[], None]) -> None:
    arrive()
    bundle = Bundle.open(made)
    assert bundle.manifest.engine.missing == "no GPU here", "the manifest is as it was built"
    assert bundle.engine_missing() is None
    checks = bundle.verify()
    assert "engine" not in checks and "top-1 agreement 100%" in checks["parity"]
    require_engine(bundle)
    require_release(bundle)


def test_where_the_runtime_is_there_it_can_be_measured(
    made: Path, arrive: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    arrive()
    contenders: list[Any] = []

    class Stop(Exception):
        pass

    def measure(found: list[Any], *_: Any) -> Any:
        contenders.extend(found)
        raise Stop

    monkeypatch.setattr("qvec_deploy.bundle.side_by_side.measure_engines", measure)
    with pytest.raises(Stop):
        bench_bundles([made])
    assert [contender.lowering for contender in contenders] == ["packed"]


def test_engines_that_are_compiled_stay_missing_until_they_are(
    made: Path, arrive: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Bundle.open(made)
    engine = bundle.manifest.engine.model_copy(update={"runtime": "tensorrt"})
    compiled = Bundle(made, bundle.manifest.model_copy(update={"engine": engine}), bundle.recipe)
    arrive()
    monkeypatch.setattr(Runtime, "load", lambda self: pytest.fail("asked"))
    assert compiled.engine_missing() == "no GPU here"
    with pytest.raises(IncompatibleError) as caught:
        require_engine(compiled)
    assert "`qvec-deploy compile" in caught.value.hint
