"""A model repository of Triton: its configuration holds to Triton's own schema, and to the model beside it."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner
from fake_tensorrt import install, run_on_cpu
from google.protobuf import text_format
from onnx import TensorProto
from shared import make_once

from qvec_deploy.bench.parity import parity_images, read_reference
from qvec_deploy.builder.pipeline import build
from qvec_deploy.bundle.bundle import Bundle
from qvec_deploy.bundle.compile_bundle import compile_bundle
from qvec_deploy.bundle.export_engine import export_engine, export_graph
from qvec_deploy.bundle.manifest import write_manifest
from qvec_deploy.bundle.model_repository import export_to_repository
from qvec_deploy.cli.commands import commands
from qvec_deploy.errors import IncompatibleError, StorageError
from qvec_deploy.recipe import load_recipe
from qvec_deploy.runtimes.engine_options import Batches

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("shared_work")]


@pytest.fixture
def bundle(pico_recipe: Callable[..., Path]) -> Bundle:
    recipe = pico_recipe(vector=None, **{"lambda": 0.0})
    return Bundle.open(make_once("served", lambda folder: build(load_recipe(recipe), folder)))


@pytest.fixture
def tensorrt_bundle(pico_recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle without engines, on a machine that has a TensorRT of ours."""
    from qvec_deploy.runtimes.tensorrt import tensorrt_library

    def nowhere(_: Any) -> Any:
        raise IncompatibleError("TensorRT cannot be imported", hint="none")

    def make(folder: Path) -> None:
        target = {"runtime": "tensorrt", "lowering": "packed", "batch_sizes": [1, 4]}
        recipe = pico_recipe(vector=None, target=target, **{"lambda": 0.0})
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tensorrt_library, "load_tensorrt", nowhere)
            build(load_recipe(recipe), folder)

    made = make_once("served_by_tensorrt", make)
    install(monkeypatch)
    return Path(shutil.copytree(made, tmp_path / "out" / "pico"))


def _config(model: Path) -> Any:
    """The configuration as Triton's schema reads it; what the schema does not have is an error."""
    path = distribution("tritonclient").locate_file("tritonclient/grpc/model_config_pb2.py")
    spec = importlib.util.spec_from_file_location("model_config_pb2", str(path))
    assert spec is not None and spec.loader is not None
    schema = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(schema)
    return text_format.Parse((model / "config.pbtxt").read_text(), schema.ModelConfig())


def test_triton_finds_a_model_that_is_what_its_configuration_says(bundle: Bundle, tmp_path: Path) -> None:
    done = export_to_repository(bundle.directory, tmp_path / "models")
    assert done.directory == tmp_path / "models" / "pico"
    files = {str(path.relative_to(done.directory)) for path in done.directory.rglob("*") if path.is_file()}
    assert files == {"config.pbtxt", "1/model.onnx", "1/weights.qvec.safetensors"}
    config = _config(done.directory)
    assert (config.name, config.backend, config.max_batch_size) == ("pico", "onnxruntime", 8)
    assert list(config.dynamic_batching.preferred_batch_size) == [4, 8]
    (group,) = config.instance_group
    assert (group.count, group.Kind.Name(group.kind)) == (1, "KIND_CPU")
    parameters = {name: value.string_value for name, value in config.parameters.items()}
    assert parameters == {"inter_op_thread_count": "1", "intra_op_thread_count": "1"}
    assert [warm_up.batch_size for warm_up in config.model_warmup] == [1, 4, 8]
    stock = onnxruntime.InferenceSession(str(done.directory / "1" / "model.onnx"), providers=["CPUExecutionProvider"])
    for found, said in ((stock.get_inputs(), config.input), (stock.get_outputs(), config.output)):
        ((tensor,), (entry,)) = found, said
        assert (tensor.name, tensor.shape[1:]) == (entry.name, list(entry.dims))
        assert (
            tensor.type,
            config.DESCRIPTOR.file.enum_types_by_name["DataType"].values_by_number[entry.data_type].name,
        ) == (
            "tensor(float)",
            "TYPE_FP32",
        )
    images = parity_images(bundle.manifest.model.input_shape)
    with bundle.session() as session:
        np.testing.assert_array_equal(stock.run(None, {config.input[0].name: images})[0], session.run(images))
    for warm_up in config.model_warmup:
        assert list(warm_up.inputs) == [config.input[0].name]
        assert list(warm_up.inputs[config.input[0].name].dims) == list(config.input[0].dims)


def test_pixels_are_taken_as_they_are(pico_recipe: Callable[..., Path], tmp_path: Path) -> None:
    target = {"runtime": "onnxruntime", "lowering": "int4", "threads": 2, "preprocessing": "in_graph"}
    recipe = pico_recipe(vector=None, target={**target, "batch_sizes": [16, 1]}, **{"lambda": 0.0})
    build(load_recipe(recipe), tmp_path / "pixels")
    config = _config(export_to_repository(tmp_path / "pixels", tmp_path / "models").directory)
    names = config.DESCRIPTOR.file.enum_types_by_name["DataType"].values_by_number
    assert (names[config.input[0].data_type].name, list(config.input[0].dims)) == ("TYPE_UINT8", [32, 32, 3])
    assert (config.max_batch_size, list(config.dynamic_batching.preferred_batch_size)) == (16, [16])
    assert config.parameters["intra_op_thread_count"].string_value == "2"


def test_classes_keep_their_names(bundle: Bundle, tmp_path: Path) -> None:
    named = Path(shutil.copytree(bundle.directory, tmp_path / "named"))
    names = (*(f"class {i}" for i in range(bundle.manifest.model.classes - 1)), "two\nlines")
    model = bundle.manifest.model.model_copy(update={"class_names": names})
    write_manifest(named, bundle.manifest.model_copy(update={"model": model}))
    done = export_to_repository(named, tmp_path / "models", "packed")
    assert (done.directory / "labels.txt").read_text().splitlines() == [*names[:-1], "two lines"]
    assert _config(done.directory).output[0].label_filename == "labels.txt"
    assert done.lowering == "packed"


def test_what_is_there_stays(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "models" / "pico").mkdir(parents=True)
    (tmp_path / "models" / "pico" / "config.pbtxt").write_text("mine")
    with pytest.raises(StorageError, match="exists"):
        export_to_repository(bundle.directory, tmp_path / "models")
    assert (tmp_path / "models" / "pico" / "config.pbtxt").read_text() == "mine"
    with pytest.raises(StorageError, match="is in the bundle"):
        export_to_repository(bundle.directory, bundle.directory / "models")
    with pytest.raises(IncompatibleError, match="no lowering `w8a8`"):
        export_to_repository(bundle.directory, tmp_path / "none", "w8a8")
    assert not (tmp_path / "none").exists()


def test_a_bundle_whose_engine_was_not_built_is_refused(tensorrt_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(IncompatibleError, match="no engine for lowering `packed`"):
        export_to_repository(tensorrt_bundle, tmp_path / "models")
    assert not (tmp_path / "models").exists()


def test_a_static_engine_takes_whole_batches(tensorrt_bundle: Path, tmp_path: Path) -> None:
    compile_bundle(tensorrt_bundle)
    done = export_to_repository(tensorrt_bundle, tmp_path / "models")
    config = _config(done.directory)
    assert (config.platform, config.max_batch_size, list(config.input[0].dims)) == ("tensorrt_plan", 0, [1, 3, 32, 32])
    assert not config.HasField("dynamic_batching") and len(config.model_warmup) == 1
    (group,) = config.instance_group
    assert group.Kind.Name(group.kind) == "KIND_GPU"
    plan = (done.directory / "1" / "model.plan").read_bytes()
    assert plan == (tensorrt_bundle / "engine.packed.b1.plan").read_bytes()


def test_a_dynamic_engine_takes_any_batch(tensorrt_bundle: Path, tmp_path: Path) -> None:
    from qvec_deploy.bundle import compile_bundle as module

    compile_bundle(tensorrt_bundle)
    with pytest.MonkeyPatch.context() as patch:
        options = module.EngineOptions(batch_sizes=(1, 4), dynamic=True)
        patch.setattr(module, "engine_options", lambda *_: options)
        compile_bundle(tensorrt_bundle)
    done = export_to_repository(tensorrt_bundle, tmp_path / "models")
    config = _config(done.directory)
    assert (config.max_batch_size, list(config.input[0].dims)) == (4, [3, 32, 32])
    assert list(config.dynamic_batching.preferred_batch_size) == [4]


def test_the_command(bundle: Bundle, tmp_path: Path) -> None:
    arguments = ["export", str(bundle.directory), "--format", "triton", "-o", str(tmp_path / "models")]
    done = CliRunner().invoke(commands, [*arguments, "--json"])
    assert done.exit_code == 0
    assert json.loads(done.stdout) == {
        "directory": str(tmp_path / "models" / "pico"),
        "lowering": "int4",
        "batches": 8,
        "calibrated": None,
    }
    assert CliRunner().invoke(commands, [*arguments, "--expanded"]).exit_code == 2


@pytest.mark.parametrize("batches", [Batches.of(3), Batches(1, 8, 8)])
def test_batches_are_read_as_they_are_written(batches: Batches) -> None:
    assert Batches.parse(str(batches)) == batches


def test_an_engine_by_itself(tensorrt_bundle: Path, tmp_path: Path) -> None:
    compile_bundle(tensorrt_bundle, batch_sizes=(1, 4))
    for size, name in ((None, "b1"), (1, "b1"), (4, "b4")):
        done = export_engine(tensorrt_bundle, tmp_path / "mine.plan", batch_size=size, force=True)
        plan = (tensorrt_bundle / f"engine.packed.{name}.plan").read_bytes()
        assert (tmp_path / "mine.plan").read_bytes() == plan
        assert done.as_dict() == {"lowering": "packed", "batches": name[1:], "size": len(plan)}
    with pytest.raises(IncompatibleError, match="no engine for lowering `packed` at batch 2; it has 1, 4"):
        export_engine(tensorrt_bundle, tmp_path / "other.plan", batch_size=2)
    with pytest.raises(StorageError, match="exists"):
        export_engine(tensorrt_bundle, tmp_path / "mine.plan")
    with pytest.raises(StorageError, match="is in the bundle"):
        export_engine(tensorrt_bundle, tensorrt_bundle / "other.plan")
    assert not (tmp_path / "other.plan").exists()


def test_the_graph_of_an_engine_by_itself(tensorrt_bundle: Path, tmp_path: Path) -> None:
    """It has its weights inside, for TensorRT's own tools and ONNX Runtime's provider of TensorRT for RTX."""
    output = tmp_path / "int4.onnx"
    arguments = ["export", str(tensorrt_bundle), "--format", "graph", "--lowering", "int4", "-o", str(output)]
    done = CliRunner().invoke(commands, arguments, catch_exceptions=False)
    assert done.exit_code == 0 and "int4, batch any" in done.output
    model = onnx.load(output)
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    assert sum(tensor.data_type == TensorProto.INT4 for tensor in model.graph.initializer) == 8
    logits = run_on_cpu(model, parity_images((3, 32, 32)))
    reference = read_reference(tensorrt_bundle)
    assert np.linalg.norm(logits - reference) / np.linalg.norm(reference) < 2e-2
    with pytest.raises(IncompatibleError, match="knows nothing about activations, which lowering `fp8` quantizes"):
        export_graph(tensorrt_bundle, tmp_path / "fp8.onnx", "fp8")
    with pytest.raises(StorageError, match="exists"):
        export_graph(tensorrt_bundle, output)


def test_what_has_no_engine(bundle: Bundle, tensorrt_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(IncompatibleError, match="compiles nothing"):
        export_engine(bundle.directory, tmp_path / "mine.plan")
    with pytest.raises(IncompatibleError, match="compiles nothing"):
        export_graph(bundle.directory, tmp_path / "mine.onnx")
    with pytest.raises(IncompatibleError, match="has no engine for lowering `packed`"):
        export_engine(tensorrt_bundle, tmp_path / "mine.plan")


@pytest.mark.parametrize(
    "options",
    [
        ["--format", "triton", "--force"],
        ["--format", "engine", "--expanded"],
        ["--format", "triton", "--batch-size", "1"],
        ["--batch-size", "1"],
    ],
)
def test_options_of_other_formats_are_refused(bundle: Bundle, tmp_path: Path, options: list[str]) -> None:
    arguments = ["export", str(bundle.directory), "-o", str(tmp_path / "x"), *options]
    assert CliRunner().invoke(commands, arguments).exit_code == 2


def test_the_command_for_an_engine(tensorrt_bundle: Path, tmp_path: Path) -> None:
    compile_bundle(tensorrt_bundle)
    plan = tmp_path / "mine.plan"
    done = CliRunner().invoke(
        commands, ["export", str(tensorrt_bundle), "--format", "engine", "-o", str(plan), "--json"]
    )
    size = plan.stat().st_size
    assert json.loads(done.stdout) == {"file": str(plan), "lowering": "packed", "batches": "1", "size": size}
