"""The container: what is written is read back, is what safetensors would write, and mistakes of ours are refused."""

from __future__ import annotations

import dataclasses
import json
import re
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.numpy

from qvec_deploy.errors import IntegrityError, QvecError, RecipeError, StorageError
from qvec_deploy.packed import (
    Entry,
    PackedFile,
    entry_of,
    pack,
    pack_codes,
    unpack,
    unpack_codes,
    write_packed,
)
from qvec_deploy.packed.packed_file import FloatArray
from qvec_deploy.tensors import PackedTensor, QuantizedTensor, Scheme

Weights = dict[str, PackedTensor | FloatArray]


def quantized(scheme: Scheme, rows: int, columns: int) -> QuantizedTensor:
    codes = np.random.default_rng(columns).integers(scheme.qmin, scheme.qmax + 1, (rows, columns), dtype=np.int8)
    scale = np.linspace(0.5, 2.0, rows * scheme.groups(columns), dtype=np.float32).reshape(rows, -1)
    return QuantizedTensor(codes, np.full_like(scale, 0.25) if scheme.granularity == "tensor" else scale, scheme)


@pytest.fixture
def weights() -> Weights:
    """Every granularity and dtype, ragged rows, a scalar, a name that sorts before and after its scale."""
    return {
        "blocks.0.attn.qkv.weight": pack(quantized(Scheme(3, "channel"), 6, 40)),
        "blocks.0.mlp.fc1.weight": pack(quantized(Scheme(5, "group", group_size=16), 4, 48)),
        "blocks.0.mlp.fc2.weight": pack(quantized(Scheme(2, "tensor", clip=0.75), 3, 33)),
        "head.weight": np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4),
        "norm.bias": np.array([1.5, -2.0, 0.0], np.float16),
        "patch_embed.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2),
        "temperature": np.array(0.5, np.float32),
        "layer.scale": np.ones(3, np.float32),
    }


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "weights.qvec.safetensors"


def save(path: Path, weights: Weights) -> None:
    write_packed(path, {name: entry_of(tensor) for name, tensor in weights.items()}, weights.items())


def test_everything_comes_back(path: Path, weights: Weights) -> None:
    save(path, weights)
    file = PackedFile.open(path)
    file.check()
    assert list(file.tensors) == sorted(weights)
    for name, tensor in weights.items():
        info = file.tensors[name]
        assert info.name == name
        assert Entry(info.shape, info.scheme, "F16" if info.dtype == "F16" else "F32") == entry_of(tensor)
        if isinstance(tensor, PackedTensor):
            read = file.packed(name)
            assert (read.scheme, read.shape) == (tensor.scheme, tensor.shape)
            np.testing.assert_array_equal(read.payload, tensor.payload)
            np.testing.assert_array_equal(read.scale, tensor.scale)
            np.testing.assert_array_equal(unpack(read).codes, unpack(tensor).codes)
        else:
            array = file.array(name)
            assert (array.dtype, array.shape) == (tensor.dtype, tensor.shape)
            np.testing.assert_array_equal(array, tensor)


def test_it_is_the_file_that_safetensors_writes(path: Path, weights: Weights) -> None:
    save(path, weights)
    with safetensors.safe_open(path, "numpy") as file:
        metadata = file.metadata()
    assert list(metadata) == ["qvec"]
    assert safetensors.numpy.save(safetensors.numpy.load_file(path), metadata) == path.read_bytes()


def test_spans_are_the_bytes_of_the_file(path: Path, weights: Weights) -> None:
    save(path, weights)
    data = path.read_bytes()
    for info in PackedFile.open(path).tensors.values():
        tensor = weights[info.name]
        values = tensor.payload if isinstance(tensor, PackedTensor) else tensor
        assert data[info.data.offset :][: info.data.size] == values.tobytes()
        assert info.data.offset % values.itemsize == 0
        if isinstance(tensor, PackedTensor):
            assert info.scale is not None
            assert data[info.scale.offset :][: info.scale.size] == tensor.scale.tobytes()


def test_the_order_of_tensors_and_layout_does_not_matter(path: Path, weights: Weights) -> None:
    save(path, weights)
    first = path.read_bytes()
    save(path, dict(reversed(weights.items())))
    assert path.read_bytes() == first


def test_arrays_are_read_only_views(path: Path, weights: Weights) -> None:
    save(path, weights)
    file = PackedFile.open(path)
    packed = file.packed("blocks.0.attn.qkv.weight")
    for array in (file.array("head.weight"), packed.payload, packed.scale):
        assert type(array) is np.ndarray
        assert not array.flags.writeable
        assert not array.flags.owndata


def test_an_empty_layout_is_a_file(path: Path) -> None:
    write_packed(path, {}, [])
    assert not PackedFile.open(path).tensors


def test_arrays_in_any_memory_order_are_written_alike(path: Path) -> None:
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    save(path, {"a": np.asfortranarray(array)})
    np.testing.assert_array_equal(PackedFile.open(path).array("a"), array)


@pytest.mark.parametrize("columns", [1024, 1000])
def test_temporary_memory_is_small(columns: int) -> None:
    codes = np.zeros((8192, columns), np.int8)
    tracemalloc.start()
    try:
        payload = pack_codes(codes, 3)
        packing = tracemalloc.get_traced_memory()[1] - payload.nbytes
        tracemalloc.reset_peak()
        held = tracemalloc.get_traced_memory()[0]
        unpacked = unpack_codes(payload, 3, columns)
        unpacking = tracemalloc.get_traced_memory()[1] - held - unpacked.nbytes
    finally:
        tracemalloc.stop()
    assert packing < 1 << 20
    assert unpacking < 1 << 20


def test_tensors_are_let_go_once_written(path: Path) -> None:
    layout = {f"t{index}": Entry((1 << 18,)) for index in range(20)}
    tracemalloc.start()
    try:
        write_packed(path, layout, ((name, np.zeros(1 << 18, np.float32)) for name in layout))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 << 20  # 1 MiB each, 20 MiB together


# What the writer refuses. Whatever it is, nothing is left behind.


def refuses(path: Path, weights: Weights, layout: dict[str, Entry], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match) as caught:
        write_packed(path, layout, weights.items())
    assert not isinstance(caught.value, QvecError) or caught.value.hint
    assert not list(path.parent.iterdir())


def layout_of(weights: Weights) -> dict[str, Entry]:
    return {name: entry_of(tensor) for name, tensor in weights.items()}


def test_missing_tensors_are_refused(path: Path, weights: Weights) -> None:
    layout = layout_of(weights)
    del weights["head.weight"], weights["norm.bias"]
    refuses(path, weights, layout, ValueError, "2 tensors of the layout never came, 'head.weight' among them")


def test_extra_tensors_are_refused(path: Path, weights: Weights) -> None:
    layout = layout_of(weights)
    del layout["head.weight"]
    refuses(path, weights, layout, ValueError, "'head.weight' came twice or is not in the layout")


def test_a_tensor_that_comes_twice_is_refused(path: Path) -> None:
    array = np.zeros(3, np.float32)
    with pytest.raises(ValueError, match="'a' came twice"):
        write_packed(path, {"a": Entry((3,))}, [("a", array), ("a", array)])
    assert not list(path.parent.iterdir())


@pytest.mark.parametrize(
    "entry",
    [Entry((4, 3)), Entry((3, 4), dtype="F16"), Entry((3, 4), Scheme(3, "channel"))],
    ids=["shape", "dtype", "quantized"],
)
def test_a_tensor_unlike_its_layout_is_refused(path: Path, weights: Weights, entry: Entry) -> None:
    refuses(
        path, weights, layout_of(weights) | {"head.weight": entry}, ValueError, "'head.weight' is .*the layout says"
    )


@pytest.mark.parametrize("scheme", [Scheme(3, "tensor"), Scheme(3, "channel", clip=0.75)], ids=str)
def test_a_tensor_of_another_scheme_is_refused_though_its_sizes_fit(
    path: Path, weights: Weights, scheme: Scheme
) -> None:
    layout = layout_of(weights) | {"blocks.0.attn.qkv.weight": Entry((6, 40), scheme)}
    refuses(path, weights, layout, ValueError, "qkv.weight' is .*the layout says")


@pytest.mark.parametrize(
    "change",
    [
        {"payload": np.zeros((6, 7), np.int32)},
        {"payload": np.zeros((6, 6), np.int64)},
        {"scale": np.ones((6, 2), np.float32)},
        {"scale": np.ones((6, 1), np.float64)},
        {"scale": np.ones(6, np.float32)},
    ],
    ids=["words", "int64", "groups", "float64", "vector"],
)
def test_a_packed_tensor_unlike_its_scheme_is_refused(
    path: Path, weights: Weights, change: dict[str, np.ndarray]
) -> None:
    name = "blocks.0.attn.qkv.weight"
    tensor = weights[name]
    assert isinstance(tensor, PackedTensor)
    broken = weights | {name: dataclasses.replace(tensor, **change)}
    refuses(path, broken, layout_of(weights), ValueError, "the layout says")


@pytest.mark.parametrize("value", [0.0, -0.0, -1.0, np.nan, np.inf])
def test_scales_that_are_not_positive_and_finite_are_refused(path: Path, weights: Weights, value: float) -> None:
    tensor = weights["blocks.0.attn.qkv.weight"]
    assert isinstance(tensor, PackedTensor)
    tensor.scale[2] = value
    refuses(path, weights, layout_of(weights), IntegrityError, "qkv.weight' has a scale that is not positive")


def test_several_scales_of_one_tensor_are_refused(path: Path, weights: Weights) -> None:
    tensor = weights["blocks.0.mlp.fc2.weight"]
    assert isinstance(tensor, PackedTensor)
    tensor.scale[2] *= 2
    refuses(path, weights, layout_of(weights), IntegrityError, "fc2.weight' has several scales")


def test_other_padding_is_refused(path: Path, weights: Weights) -> None:
    tensor = weights["blocks.0.mlp.fc2.weight"]
    assert isinstance(tensor, PackedTensor)
    tensor.payload[1, -1] = 0
    refuses(path, weights, layout_of(weights), IntegrityError, "fc2.weight': rows of 33 codes .* padded")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["head.weight", "norm.bias"])
def test_floats_that_are_not_finite_are_refused(path: Path, weights: Weights, name: str, value: float) -> None:
    array = weights[name]
    assert isinstance(array, np.ndarray)
    array.flat[1] = value
    refuses(path, weights, layout_of(weights), IntegrityError, f"{name}' holds NaN or infinity")


@pytest.mark.parametrize("name", ["", "__metadata__", "a\n", "ä", "a\x7f", "n" * 257], ids=repr)
def test_impossible_names_are_refused(path: Path, name: str) -> None:
    refuses(path, {name: np.zeros(1, np.float32)}, {name: Entry((1,))}, IntegrityError, "cannot name a tensor")


@pytest.mark.parametrize("name", ['q"uo\\te/ <b>', "n" * 256, " "])
def test_odd_names_are_written_as_safetensors_writes_them(path: Path, name: str) -> None:
    save(path, {name: np.zeros(1, np.float32), name[:200] + ".weight": pack(quantized(Scheme(3, "channel"), 1, 3))})
    with safetensors.safe_open(path, "numpy") as file:
        metadata = file.metadata()
    assert safetensors.numpy.save(safetensors.numpy.load_file(path), metadata) == path.read_bytes()
    assert name in PackedFile.open(path).tensors


@pytest.mark.parametrize("shape", [(0,), (3, 0), (1 << 40,), (1,) * 9], ids=str)
def test_impossible_shapes_are_refused(path: Path, shape: tuple[int, ...]) -> None:
    refuses(path, {}, {"a": Entry(shape)}, IntegrityError, "shape")


@pytest.mark.parametrize("entry", [Entry((4,), Scheme(3, "channel")), Entry((4, 4), Scheme(3, "channel"), "F16")])
def test_impossible_matrices_are_refused(path: Path, entry: Entry) -> None:
    refuses(path, {}, {"a": entry}, IntegrityError, "no quantized matrix")


def test_groups_that_do_not_divide_a_row_are_refused(path: Path) -> None:
    refuses(path, {}, {"a": Entry((4, 40), Scheme(3, "group", group_size=16))}, RecipeError, "group_size 16")


def test_a_float_tensor_in_the_place_of_a_scale_is_refused(path: Path) -> None:
    layout = {"a": Entry((4, 40), Scheme(3, "channel")), "a.scale": Entry((4,))}
    refuses(path, {}, layout, IntegrityError, "two tensors are called 'a.scale'")


def test_a_scale_without_its_weight_is_refused(path: Path) -> None:
    refuses(path, {}, {"a.weight.scale": Entry((4,))}, IntegrityError, "scale without a quantized tensor")


def test_headers_beyond_the_limit_are_refused(path: Path) -> None:
    layout = {f"{index:0256}": Entry((1,)) for index in range(14_000)}
    refuses(path, {}, layout, IntegrityError, "the header takes")


def test_other_dtypes_are_refused() -> None:
    with pytest.raises(ValueError, match="not float64"):
        entry_of(np.zeros(1))  # type: ignore[arg-type]


def test_a_file_that_stood_there_survives_a_failure(path: Path, weights: Weights) -> None:
    save(path, weights)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="never came"):
        write_packed(path, layout_of(weights), [])
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_place_that_cannot_be_written_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError):
        write_packed(tmp_path / "file" / "weights", {}, [])


# What the reader refuses of a caller; hostile files are in test_packed_hostile.py.


def test_absent_tensors_are_named(path: Path, weights: Weights) -> None:
    save(path, weights)
    file = PackedFile.open(path)
    for name in ("head.weight", "nothing"):
        with pytest.raises(IntegrityError, match=f"no quantized tensor '{name}'"):
            file.packed(name)
    for name in ("blocks.0.attn.qkv.weight", "blocks.0.attn.qkv.weight.scale", "nothing"):
        with pytest.raises(IntegrityError, match=f"no float tensor '{name}'"):
            file.array(name)


@pytest.mark.parametrize("what", ["missing", "directory"])
def test_what_cannot_be_opened_is_a_storage_error(tmp_path: Path, what: str) -> None:
    (tmp_path / "directory").mkdir()
    with pytest.raises(StorageError, match=re.escape(str(tmp_path / what))):
        PackedFile.open(tmp_path / what)


def test_metadata_is_canonical(path: Path, weights: Weights) -> None:
    save(path, weights)
    with safetensors.safe_open(path, "numpy") as file:
        text = file.metadata()["qvec"]
    assert text == json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"))
