"""Kernels in a bundle: what is compiled is found again, byte for byte; what is damaged or missing is said."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qvec_deploy.errors import IncompatibleError, IntegrityError
from qvec_deploy.packed import Entry, pack, write_packed
from qvec_deploy.quantize.reference import quantize
from qvec_deploy.runtimes.engine_files import KERNELS_FILE, WEIGHTS_FILE, is_of_engine
from qvec_deploy.runtimes.kernels import plugins
from qvec_deploy.runtimes.kernels.ahead import TILES, compile_ahead
from qvec_deploy.runtimes.kernels.kernel_file import plugin_config, read_kernels, write_kernels
from qvec_deploy.tensors import Scheme

LINEAR = plugin_config(64, 48, 3, 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two Linears that share kernels, one that has its own, and a filter, which is not multiplied packed."""
    place = tmp_path_factory.mktemp("kernels")
    scheme, draw = Scheme(3, "channel"), np.random.default_rng(0)
    shapes = {"a": (64, 48), "b": (32, 64), "c": (24, 30), "d": (8, 3, 4, 4)}
    layout = {name: Entry(shape, scheme) for name, shape in shapes.items()}
    values = {name: draw.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    matrices = {name: value.reshape(len(value), -1) for name, value in values.items()}
    write_packed(place / WEIGHTS_FILE, layout, [(name, pack(quantize(matrices[name], scheme))) for name in shapes])
    write_kernels(place)
    return place


def test_kernels_are_those_that_would_be_compiled_now(folder: Path) -> None:
    kernels = read_kernels(folder)
    assert kernels is not None and len(kernels.kernels) == 2 * len(TILES)
    for tile in (TILES[0], TILES[-1]):
        found = kernels.find(LINEAR, tile)
        assert found == compile_ahead(layout="rows", bits=3, rows=64, columns=48, tile=tile)
        assert found.grid(33)[1] == -(-64 // tile.columns)
    assert is_of_engine(KERNELS_FILE)


def test_the_same_weights_give_the_same_file(folder: Path) -> None:
    before = (folder / KERNELS_FILE).read_bytes()
    write_kernels(folder)
    assert (folder / KERNELS_FILE).read_bytes() == before
    assert len(before) < 200_000


def test_a_plugin_takes_the_bundles_kernels(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.setattr(plugins, "compile_ahead", lambda **_: pytest.fail("compiled"))
    with plugins.plugin_errors(read_kernels(folder)):
        assert plugins._compile(LINEAR, TILES[1], "float16").ptx.startswith(b".version")
        with pytest.raises(IncompatibleError, match="no compiled kernel of tile 16x64w4s3 in bfloat16"):
            plugins._compile(LINEAR, TILES[1], "bfloat16")
        with pytest.raises(IncompatibleError, match="no compiled kernel of tile 16x32w1s3"):
            plugins._compile(plugin_config(64, 48, 4, 0), TILES[0], "float16")
    monkeypatch.setattr(plugins, "compile_ahead", lambda **wanted: wanted["tile"])
    assert plugins._compile(LINEAR, TILES[1], "float16") == TILES[1]


def test_a_bundle_of_before_has_none(tmp_path: Path) -> None:
    assert read_kernels(tmp_path) is None


def _changed(**change: Any) -> bytes:
    return gzip.compress(json.dumps({"format": "qvec-kernels", "version": 1, "kernels": [], **change}).encode())


@pytest.mark.parametrize("data", [b"", b"PTX", gzip.compress(b"{"), _changed(kernels=[{"bits": 3}]), _changed()[:-9]])
def test_a_damaged_file_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / KERNELS_FILE).write_bytes(data)
    with pytest.raises(IntegrityError, match=r"kernels\.json\.gz is damaged"):
        read_kernels(tmp_path)


def test_a_later_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / KERNELS_FILE).write_bytes(_changed(version=2))
    with pytest.raises(IncompatibleError, match="format qvec-kernels 2"):
        read_kernels(tmp_path)


def test_a_file_of_any_size_is_not_read_into_memory(tmp_path: Path) -> None:
    with (tmp_path / KERNELS_FILE).open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(IntegrityError, match="it has more than"):
        read_kernels(tmp_path)
