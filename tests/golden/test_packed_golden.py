"""One packed file of every released version of the format, byte for byte, for ever."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qvec_deploy.errors import IntegrityError
from qvec_deploy.packed import VERSION, Entry, PackedFile, entry_of, pack, unpack, write_packed
from qvec_deploy.packed.packed_file import FloatArray
from qvec_deploy.tensors import QuantizedTensor, Scheme

FILES = Path(__file__).parent / "packed"
SCHEMES = {
    **{f"blocks.{bits}.weight": Scheme(bits, "channel") for bits in range(2, 9)},
    "grouped.weight": Scheme(3, "group", group_size=7, method="mse"),
    "whole.weight": Scheme(3, "tensor", clip=0.75),
}


FILTERS = {"conv.weight": ((7, 7, 3, 2), Scheme(3, "channel"))}
"""Quantized convolutions, which 1.1.0 added: shape and scheme; as a matrix they are like the others."""


def quantized(scheme: Scheme) -> QuantizedTensor:
    """Every code of the scheme, in ragged rows; by a rule, since a generator's numbers may change."""
    codes = np.arange(7 * 42, dtype=np.int64).reshape(7, 42) * 5 % (1 << scheme.bits) + scheme.qmin
    count = 7 * scheme.groups(42)
    scale = np.arange(1, count + 1) if scheme.granularity != "tensor" else np.full(count, 3)
    return QuantizedTensor(codes.astype(np.int8), (scale / 64).astype(np.float32).reshape(7, -1), scheme)


def floats() -> dict[str, FloatArray]:
    return {
        "norm.weight": (np.arange(5) / 4).astype(np.float32),
        "patch_embed.proj.weight": (np.arange(24) / 8 - 1).astype(np.float32).reshape(2, 3, 2, 2),
        "pos_embed": (np.arange(9) / 8).astype(np.float16).reshape(1, 3, 3),
        "temperature": np.array(0.5, np.float32),
    }


def write(path: Path, *, filters: bool) -> None:
    weights = {name: pack(quantized(scheme)) for name, scheme in SCHEMES.items()} | floats()
    layout = {name: entry_of(tensor) for name, tensor in weights.items()}
    if filters:
        weights |= {name: pack(quantized(scheme)) for name, (_, scheme) in FILTERS.items()}
        layout |= {name: Entry(shape, scheme) for name, (shape, scheme) in FILTERS.items()}
    write_packed(path, layout, weights.items())


@pytest.mark.parametrize(("version", "filters"), [("1.0.0", False), (VERSION, True)])
def test_the_golden_bytes_are_written(tmp_path: Path, update_golden: bool, version: str, filters: bool) -> None:
    """A file is of the lowest version that knows what is in it: without convolutions nothing has changed."""
    golden = FILES / f"v{version}.qvec.safetensors"
    if update_golden:
        write(golden, filters=filters)
    write(tmp_path / "new", filters=filters)
    assert (tmp_path / "new").read_bytes() == golden.read_bytes()


def test_a_convolution_is_in_no_file_of_before(tmp_path: Path) -> None:
    write(tmp_path / "new", filters=True)
    data = (tmp_path / "new").read_bytes()
    assert data.count(b"1.1.0") == 1
    (tmp_path / "new").write_bytes(data.replace(b"1.1.0", b"1.0.0"))
    with pytest.raises(IntegrityError, match=r"not in version 1\.0\.0"):
        PackedFile.open(tmp_path / "new")


@pytest.mark.parametrize("path", sorted(FILES.glob("*.safetensors")), ids=lambda path: path.name)
def test_every_released_version_is_read(path: Path) -> None:
    file = PackedFile.open(path)
    file.check()
    assert path.name == f"v{file.version}.qvec.safetensors"
    filters = FILTERS if file.version != "1.0.0" else {}
    assert set(file.tensors) == SCHEMES.keys() | floats().keys() | filters.keys()
    assert all(file.tensors[name].shape == shape for name, (shape, _) in filters.items())
    for name, scheme in {**SCHEMES, **{name: scheme for name, (_, scheme) in filters.items()}}.items():
        tensor = unpack(file.packed(name))
        assert tensor.scheme == scheme
        np.testing.assert_array_equal(tensor.codes, quantized(scheme).codes)
        np.testing.assert_array_equal(tensor.scale, quantized(scheme).scale)
    for name, values in floats().items():
        assert file.array(name).dtype == values.dtype
        np.testing.assert_array_equal(file.array(name), values)
