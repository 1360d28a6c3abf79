"""The plugin in Python: what it says of itself with NVIDIA's real classes, and what it launches on a stand-in's GPU."""

from __future__ import annotations

import ctypes
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fake_tensorrt import FakeCuda, write_sources

from qvec_deploy.errors import IncompatibleError, IntegrityError, StorageError
from qvec_deploy.io.files import sha256_file
from qvec_deploy.runtimes.kernels.ahead import TILES, compile_ahead
from qvec_deploy.runtimes.kernels.kernel_file import CompiledKernels, compile_kernels, plugin_config, read_kernels
from qvec_deploy.runtimes.kernels.plugins import plugin_errors
from qvec_deploy.runtimes.tensorrt import python_plugin
from qvec_deploy.runtimes.tensorrt.python_plugin import KernelLauncher, register_python_plugin
from qvec_deploy.runtimes.tensorrt.tensorrt_runtime import TensorRTForRTX
from qvec_deploy.tensors import Scheme

trt: Any = pytest.importorskip("tensorrt_rtx_bindings", reason="the extra `rtx` is not installed")
CONFIG = plugin_config(64, 48, 3, 0)


class LaunchingCuda(FakeCuda):
    """Keeps what is launched."""

    def load_kernel(self, ptx: bytes, name: str) -> int:
        self.loaded = [*getattr(self, "loaded", []), (ptx, name)]
        return len(self.loaded)

    def launch(self, kernel: int, grid: Any, threads: int, shared: int, arguments: Any, stream: int) -> None:
        kinds = [type(each) for each in arguments]
        assert kinds == [ctypes.c_uint64] * 4 + [ctypes.c_int32] * 3 + [ctypes.c_uint64]
        self.launched = (kernel, grid, threads, shared, [each.value for each in arguments], stream)


@pytest.fixture(scope="module")
def kernels() -> CompiledKernels:
    return compile_kernels([CONFIG])


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Made by the creator that the parser and the runtime would ask."""
    monkeypatch.setattr(python_plugin, "_launches", [])
    creator = python_plugin._make_creator(trt)
    text = str(CONFIG).encode()
    fields = [trt.PluginField("cfg", text, trt.PluginFieldType.CHAR)]
    return creator.create_plugin("fc", trt.PluginFieldCollection(fields), trt.TensorRTPhase.RUNTIME)


def _tensor(shape: tuple[int, ...], dtype: Any = trt.float16) -> Any:
    desc = trt.PluginTensorDesc()
    desc.dims, desc.type, desc.format = trt.Dims(shape), dtype, trt.TensorFormat.LINEAR
    return desc


def _given(columns: int = 48) -> list[Any]:
    types = [trt.float16, trt.int32, trt.float32, trt.float16]
    shapes = [(-1, 17, columns), CONFIG.words_shape, CONFIG.scale_shape, (64,)]
    return [SimpleNamespace(desc=_tensor(shape, kind)) for shape, kind in zip(shapes, types, strict=True)]


def test_it_takes_what_the_graph_gives(plugin: Any) -> None:
    assert (plugin.plugin_name, plugin.plugin_version, plugin.plugin_namespace) == ("QvecLinear", "1", "qvec")
    assert isinstance(plugin, trt.IPluginV3) and plugin.clone().config == CONFIG
    plugin.configure_plugin(_given(), [])
    tensors = [*_given(), SimpleNamespace(desc=_tensor((-1, 17, 64)))]
    assert all(plugin.supports_format_combination(at, tensors, 4) for at in range(5))
    tensors[1] = SimpleNamespace(desc=_tensor(CONFIG.words_shape, trt.float32))
    assert not plugin.supports_format_combination(1, tensors, 4)
    (field,) = plugin.get_fields_to_serialize()
    assert bytes(field.data).decode().rstrip("\0") == str(CONFIG)


def test_what_it_raises_is_not_swallowed(plugin: Any) -> None:
    def as_tensorrt_does() -> None:
        with pytest.raises(IncompatibleError):
            plugin.configure_plugin(_given(columns=96), [])

    with pytest.raises(IncompatibleError, match="QvecLinear is given"), plugin_errors():
        as_tensorrt_does()


def test_without_a_gpu_it_launches_nothing(plugin: Any) -> None:
    with pytest.raises(IncompatibleError, match="runs where nothing launches its kernels"):
        plugin.enqueue([_tensor((2, 17, 48))], [], [1, 2, 3, 4], [5], 0, 9)


@pytest.mark.parametrize(("batch", "tile"), [(1, TILES[2]), (2, TILES[4])])
def test_it_launches_the_bundles_kernel_on_the_stream(
    plugin: Any, kernels: CompiledKernels, monkeypatch: pytest.MonkeyPatch, batch: int, tile: Any
) -> None:
    cuda = LaunchingCuda()
    monkeypatch.setattr(python_plugin, "_creators", [plugin])
    register_python_plugin(trt, KernelLauncher(kernels, cuda))  # type: ignore[arg-type]
    for _ in range(2):
        plugin.enqueue([_tensor((batch, 17, 48))], [], [11, 12, 13, 14], [15], 0, 9)
    expected = compile_ahead(layout="rows", bits=3, rows=64, columns=48, tile=tile)
    assert cuda.loaded == [(expected.ptx, expected.name)], "it is loaded once"
    m = 17 * batch
    arguments = [11, 12, 13, 14, m, 64, 48, 15]
    assert cuda.launched == (1, expected.grid(m), expected.threads, expected.shared_bytes, arguments, 9)


def test_engines_find_the_kernels_that_they_were_built_with(
    tmp_path: Path, pico_states: dict[str, dict[str, np.ndarray]], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_sources(tmp_path, pico_states["receiver"], Scheme(3, "channel"))
    file = tmp_path / "kernels.json.gz"
    sidecar: Any = SimpleNamespace(kernels_sha256=sha256_file(file))
    registered: list[Any] = []
    monkeypatch.setattr(python_plugin, "register_python_plugin", lambda _, launch: registered.append(launch))
    backend, cuda = TensorRTForRTX(), LaunchingCuda()
    backend._load_plugins(trt, cuda, tmp_path, [SimpleNamespace(kernels_sha256="")])  # type: ignore[arg-type, list-item]
    assert registered == []
    backend._load_plugins(trt, cuda, tmp_path, [sidecar])  # type: ignore[arg-type]
    (launcher,) = registered
    found = read_kernels(tmp_path)
    assert found is not None
    kernel = next(iter(found.kernels.values()))
    config = replace(CONFIG, rows=32 if "n" in kernel.aligned else 33, columns=32)
    launcher(config, 40, [1, 2, 3, 4, 5], 6)
    assert cuda.launched[-1] == 6
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    with pytest.raises(IntegrityError):
        backend._load_plugins(trt, cuda, tmp_path, [sidecar])  # type: ignore[arg-type]
    file.unlink()
    with pytest.raises(StorageError, match="does not exist"):
        backend._load_plugins(trt, cuda, tmp_path, [sidecar])  # type: ignore[arg-type]
