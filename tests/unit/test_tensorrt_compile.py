"""`qvec-deploy compile`: a bundle that was built without TensorRT gets its engines, and its manifest stays true."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result
from fake_tensorrt import GPU, Setup, install
from pico import pico_values
from without_build import ROOT, device_environment

from qvec_deploy.builder.pipeline import build
from qvec_deploy.bundle.bundle import Bundle
from qvec_deploy.bundle.compile_bundle import compile_bundle, engine_options
from qvec_deploy.bundle.manifest import LAMBDA0
from qvec_deploy.bundle.model_repository import export_to_repository
from qvec_deploy.cli.compile_command import compile_command
from qvec_deploy.errors import IncompatibleError, IntegrityError
from qvec_deploy.io.files import sha256_file
from qvec_deploy.recipe import load_recipe
from qvec_deploy.recipe.blocks import Target
from qvec_deploy.runtimes.cuda_driver import Gpu
from qvec_deploy.runtimes.kernels.ahead import TILES
from qvec_deploy.runtimes.tensorrt.tensorrt_library import FULL
from qvec_deploy.runtimes.tensorrt.tensorrt_runtime import TensorRT

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("shared_work")]

ENGINES = {"engine.packed.b1.plan", "engine.packed.b1.plan.json"}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, pico_folder: Path) -> Path:
    """Made where there is no TensorRT; its patch is unverified, so that the engine without it is there too."""
    from qvec_deploy.runtimes.tensorrt import tensorrt_library

    def nowhere(_: Any) -> Any:
        raise IncompatibleError("TensorRT cannot be imported", hint="none")

    folder = tmp_path_factory.mktemp("built")
    target = {"runtime": "tensorrt", "lowering": "packed", "threads": 1}
    values = pico_values(pico_folder) | {"target": target}
    del values["quantize"], values["measure"]
    (folder / "pico.yaml").write_text(yaml.safe_dump(values))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensorrt_library, "load_tensorrt", nowhere)
        build(load_recipe(folder / "pico.yaml"), folder / "pico")
    return folder / "pico"


@pytest.fixture
def bundle(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "out" / "pico"))


@pytest.fixture
def setup(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Setup:
    return install(monkeypatch)


def _engines(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir() if path.name.startswith("engine.")}


def test_a_bundle_gets_its_engines(setup: Setup, bundle: Path) -> None:
    before = Bundle.open(bundle).manifest
    assert before.engine.missing == "TensorRT cannot be imported"
    (compiled,) = compile_bundle(bundle)
    assert (compiled.lowering, compiled.parity.top1_agreement) == ("packed", 1.0)
    assert 0 < compiled.parity.relative_error < 1e-2
    after = Bundle.open(bundle).manifest
    assert after.engine.missing is None and after.parity == compiled.parity
    assert set(after.files) - set(before.files) == ENGINES | {f"{LAMBDA0}/{name}" for name in ENGINES}
    assert _engines(bundle) == _engines(bundle / LAMBDA0) == ENGINES
    assert not list(bundle.glob(".compile.*"))
    assert [path.name for path in bundle.parent.glob("*.timing")] == ["tensorrt-10.16.1.11-nvidia-test-sm89.timing"]
    changed = {"files", "parity", "engine"}
    assert before.model_dump(exclude=changed) == after.model_dump(exclude=changed)


_ON_A_DEVICE = """
import sys
from pathlib import Path

import pytest
from fake_tensorrt import install

from qvec_deploy.bundle.compile_bundle import compile_bundle

install(pytest.MonkeyPatch())
(compiled,) = compile_bundle(Path(sys.argv[1]))
kernels = sys.modules["qvec_deploy.runtimes.kernels.plugins"].kernels
print(compiled.parity.top1_agreement, len(kernels.kernels), {"torch", "triton"} & set(sys.modules))
"""


def test_a_device_needs_neither_triton_nor_torch(bundle: Path, tmp_path: Path) -> None:
    environment = device_environment(tmp_path)
    environment["PYTHONPATH"] += "".join(f"{os.pathsep}{ROOT / folder}" for folder in ("tests", "scripts"))
    done = subprocess.run(
        [sys.executable, "-c", _ON_A_DEVICE, str(bundle)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["1.0", str(len(TILES)), "set()"], done.stderr
    assert set(Bundle.open(bundle).manifest.files) > ENGINES


def test_kernels_of_a_bundle_are_listed_and_checked(setup: Setup, bundle: Path) -> None:
    assert {"kernels.json.gz", f"{LAMBDA0}/kernels.json.gz"} < set(Bundle.open(bundle).manifest.files)
    file = bundle / "kernels.json.gz"
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    result = CliRunner().invoke(compile_command, [str(bundle)])
    assert isinstance(result.exception, IntegrityError) and result.exception.exit_code == 5
    assert setup.trt.seen == [] and _engines(bundle) == set()


def test_a_plugin_library_goes_with_the_engines(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qvec_deploy.runtimes.tensorrt.plugin_library._loaded", {})
    setup = install(monkeypatch, "10.3.0.30")
    library = tmp_path / "libqvec_linear.so"
    library.write_bytes(b"\x7fELF QvecLinear")
    setup.faults.carries_plugins = False
    with pytest.raises(IncompatibleError, match=r"needs TensorRT 10\.9 or later"):
        compile_bundle(bundle)
    result = CliRunner().invoke(compile_command, [str(bundle), "--plugin", str(library)], catch_exceptions=False)
    assert result.exit_code == 0
    assert {"engine.packed.plugin.so", f"{LAMBDA0}/engine.packed.plugin.so"} < set(Bundle.open(bundle).manifest.files)
    with Bundle.open(bundle).session() as session:
        assert session.input_shape == (3, 32, 32)
    install(monkeypatch)
    compile_bundle(bundle)
    assert _engines(bundle) == ENGINES
    monkeypatch.setattr(Bundle, "check_lowering", lambda self, lowering: lowering)
    with pytest.raises(IncompatibleError, match="lowering `int4` has no plugin"):
        compile_bundle(bundle, lowerings=("int4",), plugin=library)


def test_a_build_keeps_its_timing_cache_beside_the_bundle(
    setup: Setup, pico_recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Candidates are built in a scratch folder that goes; what was measured for them stays, and is read again."""

    class Built(Exception):
        """Everything is built; engines of ours cannot be measured, which takes a process of its own."""

    def stop(*_: Any) -> None:
        raise Built

    monkeypatch.setattr("qvec_deploy.builder.pipeline.measure_engines", stop)
    recipe = pico_recipe(
        target={"runtime": "tensorrt", "lowering": "packed", "threads": 1}, vector=None, **{"lambda": 0.0}
    )
    out = tmp_path / "bundles" / "pico"
    for _ in range(2):
        with pytest.raises(Built):
            build(load_recipe(recipe), out)
        assert list(out.parent.rglob("*")) == [out.parent / "tensorrt-10.16.1.11-nvidia-test-sm89.timing"]
    (cache,) = out.parent.iterdir()
    assert cache.read_bytes() == b"timings"
    configs = [each[1] for each in setup.trt.seen if not isinstance(each, str)]
    assert len(configs) >= 2
    configs[-1].create_timing_cache.assert_called_once_with(b"timings")


def test_it_is_compiled_again_on_another_machine(setup: Setup, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compile_bundle(bundle)
    install(monkeypatch, "11.4.0.106", Gpu("NVIDIA Other", 120, "13.3"))
    with pytest.raises(IncompatibleError, match=r"built with TensorRT 10\.16\.1\.11"), Bundle.open(bundle).session():
        pass
    compile_bundle(bundle, batch_sizes=(2,))
    assert _engines(bundle) == {"engine.packed.b2.plan", "engine.packed.b2.plan.json"}
    with Bundle.open(bundle).session() as session:
        assert session.input_shape == (3, 32, 32)


def test_another_lowering_is_added(setup: Setup, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qvec_deploy.bundle import compile_bundle as module

    monkeypatch.setattr(module.Bundle, "check_lowering", lambda self, lowering: lowering)
    compile_bundle(bundle, lowerings=("int4",))
    opened = Bundle.open(bundle).manifest
    assert opened.engine.missing == "TensorRT cannot be imported", "the bundle's own lowering still has no engine"
    assert "engine.int4.b1.plan" in opened.files
    compile_bundle(bundle)
    names = set(Bundle.open(bundle).manifest.files)
    assert {"engine.int4.b1.plan", "engine.packed.b1.plan"} <= names


@pytest.mark.parametrize("moment", ["while building", "while installing"])
def test_an_interruption_leaves_a_bundle_that_is_true(
    setup: Setup, bundle: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    compile_bundle(bundle)

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    from qvec_deploy.bundle import compile_bundle as module

    monkeypatch.setattr(module, "check_parity" if moment == "while building" else "hash_files", interrupt)
    with pytest.raises(KeyboardInterrupt):
        compile_bundle(bundle)
    engine = Bundle.open(bundle).manifest.engine
    assert engine.missing == (None if moment == "while building" else "it was being compiled")
    monkeypatch.undo()
    install(monkeypatch)
    compile_bundle(bundle)
    assert Bundle.open(bundle).manifest.engine.missing is None


def test_an_engine_that_computes_something_else_is_not_installed(
    setup: Setup, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    strict = SimpleNamespace(tolerance=1e-9)
    monkeypatch.setattr("qvec_deploy.bench.parity.find_lowering", lambda runtime, lowering: strict)
    with pytest.raises(IncompatibleError, match="logits differ from PyTorch's by"):
        compile_bundle(bundle)
    assert _engines(bundle) == set()
    assert Bundle.open(bundle).manifest.engine.missing is not None


def test_what_a_lowering_lacks_is_refused_before_anything_is_built(setup: Setup, bundle: Path) -> None:
    with pytest.raises(IncompatibleError, match="knows nothing about activations") as caught:
        compile_bundle(bundle, lowerings=("packed", "w8a8"))
    assert "target.lowering: w8a8" in caught.value.hint
    assert setup.trt.seen == [] and _engines(bundle) == set()


def test_a_damaged_bundle_is_refused(setup: Setup, bundle: Path) -> None:
    (bundle / "model.onnx").write_bytes(b"")
    with pytest.raises(IntegrityError, match="was changed after the build"):
        compile_bundle(bundle)


def test_a_bundle_of_another_runtime_is_refused(tmp_path: Path, pico_recipe: Callable[..., Path]) -> None:
    path = pico_recipe(**{"quantize": {"bits": 32}, "target__lowering": "float", "lambda": 0.0})
    build(load_recipe(path), tmp_path / "cpu")
    with pytest.raises(IncompatibleError, match="is for runtime `onnxruntime`, which compiles nothing") as caught:
        compile_bundle(tmp_path / "cpu")
    assert "`qvec-deploy verify`" in caught.value.hint


def test_engines_as_deltas(setup: Setup, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bundle with them is compiled, verified, exported and compiled anew as one with whole engines is."""
    compile_bundle(bundle)
    whole = (bundle / "engine.packed.b1.plan").stat().st_size
    monkeypatch.setattr(TensorRT, "library", replace(FULL, stores_deltas=True))
    (compiled,) = compile_bundle(bundle)
    names = {"engine.packed.b1.plan.delta", "engine.packed.b1.plan.json"}
    assert _engines(bundle) == _engines(bundle / LAMBDA0) == names
    (engine,) = compiled.engines
    assert engine["plan_bytes"] == whole > 2 * engine["stored_bytes"]
    opened = Bundle.open(bundle)
    assert opened.manifest.files["engine.packed.b1.plan.delta"].size == engine["stored_bytes"]
    checks = opened.verify()
    assert "2 as built" in checks["engines"] and "and the weights" in checks["engines"] and "parity" in checks
    done = export_to_repository(bundle, tmp_path / "models")
    plan = done.directory / "1" / "model.plan"
    assert sha256_file(plan) == json.loads((bundle / "engine.packed.b1.plan.json").read_text())["sha256"]
    shutil.copytree(bundle, tmp_path / "moved")
    (tmp_path / "moved" / LAMBDA0 / "engine.packed.b1.plan.delta").write_bytes(b"")
    with pytest.raises(IntegrityError, match="was changed after the build"):
        Bundle.open(tmp_path / "moved")
    monkeypatch.setattr(TensorRT, "library", FULL)
    compile_bundle(bundle)
    assert _engines(bundle) == ENGINES and set(Bundle.open(bundle).manifest.files) > ENGINES


def _command(*arguments: object) -> Result:
    return CliRunner().invoke(compile_command, [str(argument) for argument in arguments], catch_exceptions=False)


def test_the_command(setup: Setup, bundle: Path) -> None:
    done = _command(bundle, "--quiet", "--batch-size", 1, "--batch-size", 4)
    assert done.exit_code == 0
    head, *lines = done.stdout.splitlines()
    assert head.startswith("packed: relative error ")
    assert [line.split()[0] for line in lines] == ["engine.packed.b1.plan", "engine.packed.b4.plan"]
    assert "MB stored" in lines[0]


def test_the_command_as_json(setup: Setup, bundle: Path) -> None:
    document = json.loads(_command(bundle, "--json").stdout)
    (compiled,) = document["compiled"]
    assert compiled["lowering"] == "packed"
    assert compiled["engines"][0]["machine"]["gpu"] == GPU.name


def test_the_command_where_tensorrt_does_not_say(setup: Setup, bundle: Path) -> None:
    del setup.trt.EngineStat
    assert "this TensorRT does not say" in _command(bundle, "--quiet").stdout


def test_options_come_from_the_recipe() -> None:
    target = Target(runtime="tensorrt", lowering="packed", batch_sizes=(1, 8))
    assert engine_options(target).batch_sizes == (1, 8)
    assert engine_options(target, (4,)).batch_sizes == (4,)
