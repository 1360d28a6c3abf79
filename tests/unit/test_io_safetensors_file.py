"""The library reads what we write, and what a killed process was writing does not stay."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save

from qvec_deploy.io.safetensors_file import write_safetensors

ARRAYS = {
    name: np.arange(6).reshape(2, 3).astype(dtype)
    for name, dtype in {"a": "u1", "b": "f2", "c": "f4", "d": "f8", "e": "i8", "f": "?", "g": "i4", "h": ">f4"}.items()
} | {"scalar": np.float32(3.5).reshape(()), "none": np.zeros((0, 4), "f4"), "strided": np.arange(12.0)[::3]}


def test_the_library_reads_the_same(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "a.safetensors", ARRAYS, {"qvec": "é"})
    found = load_file(tmp_path / "a.safetensors")
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].shape == array.shape and found[name].dtype == array.dtype.newbyteorder("=")
    with safe_open(tmp_path / "a.safetensors", "numpy") as file:
        assert file.metadata() == {"qvec": "é"}
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.mark.parametrize("metadata", [None, {"qvec": "x"}])
def test_arrays_of_one_type_are_written_as_the_library_writes_them(
    tmp_path: Path, metadata: dict[str, str] | None
) -> None:
    arrays = {name: np.full((3, 2), index, np.float32) for index, name in enumerate(("b", "a", "c"))}
    write_safetensors(tmp_path / "a.safetensors", arrays, metadata)
    assert (tmp_path / "a.safetensors").read_bytes() == save(arrays, metadata)
