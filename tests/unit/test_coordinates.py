"""The symmetries of a ViT, one by one: applied to the demo's receiver, its function stays and the check names them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from qvec_deploy.errors import IncompatibleError
from qvec_deploy.io.checkpoint import Checkpoint
from qvec_deploy.models import create, describe
from qvec_deploy.quantize.reference import quantize
from qvec_deploy.tensors import Scheme
from qvec_deploy.vectors import symmetries
from qvec_deploy.vectors.coordinates import (
    Coordinates,
    check_coordinates,
    require_same_coordinates,
    require_undone,
    sketch_like,
)
from qvec_deploy.vectors.extract import extract_vector
from qvec_deploy.vectors.sketch import Sketch, make_sketch
from qvec_deploy.vectors.symmetric_places import Attention, Geometry, Mlp, find_geometry
from qvec_deploy.vectors.symmetries import commutes
from qvec_deploy.vectors.undo import corrected
from qvec_deploy.vectors.vector_file import QuantizationVector

DEMO = Path(__file__).parents[2] / "recipes" / "demo"
MODEL = "vit_tiny_patch16_224"
ARGS = {"img_size": 32, "patch_size": 8, "embed_dim": 96, "depth": 6, "num_heads": 3, "global_pool": "avg"}
WIDTH, HEADS = 96, 3
CHANNELS = WIDTH // HEADS
CHANNEL, TENSOR, GROUP = Scheme(3, "channel"), Scheme(3, "tensor"), Scheme(3, "group", 32)
MSE = Scheme(3, "tensor", method="mse")

State = dict[str, np.ndarray]
Transform = Callable[[State, int, np.random.Generator], None]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so small a model only waits for its threads
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def receiver() -> State:
    checkpoint = Checkpoint.open(DEMO / "receiver_symbols.safetensors")
    return {name: checkpoint.read(name) for name in checkpoint.tensors}


@pytest.fixture(scope="module")
def donor(tmp_path_factory: pytest.TempPathFactory) -> Sketch:
    """The sketch of the other receiver, as its vector file brings it."""
    fp = Checkpoint.open(DEMO / "receiver_realdigits.safetensors")
    rho = QuantizationVector.open(DEMO / "vector_realdigits.safetensors")
    state = {name: fp.read(name) for name in rho.tensors}
    path = tmp_path_factory.mktemp("donor") / "vector.safetensors"
    qat = {name: state[name] + rho.read(name) for name in state}
    extract_vector(
        state,
        qat,
        path,
        scheme=MSE,
        skip=("head",),
        task="realdigits",
        seed=0,
        dtype="float16",
        architecture=describe(MODEL, 1, ARGS),
    )
    sketch = QuantizationVector.open(path).sketch()
    assert sketch is not None
    return sketch


@pytest.fixture(scope="module")
def geometry() -> Geometry:
    return find_geometry(MODEL, ARGS)


def _names(block: int) -> tuple[str, str, str, str]:
    return tuple(f"blocks.{block}.{part}" for part in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"))  # type: ignore[return-value]


def _rows(state: State, module: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    for kind in ("weight", "bias"):
        state[f"{module}.{kind}"] = change(state[f"{module}.{kind}"]).astype(np.float32)


def _columns(state: State, module: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    state[f"{module}.weight"] = change(state[f"{module}.weight"].T).T.astype(np.float32)


def _times(factors: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    return lambda values: values * factors.reshape(-1, *[1] * (values.ndim - 1))


def permute_neurons(state: State, block: int, generator: np.random.Generator) -> None:
    _, _, fc1, fc2 = _names(block)
    order = generator.permutation(4 * WIDTH)
    _rows(state, fc1, lambda values: values[order])
    _columns(state, fc2, lambda values: values[order])


def _permute_channels(state: State, block: int, qk: np.ndarray, vp: np.ndarray) -> None:
    qkv, proj, _, _ = _names(block)
    rows = np.concatenate([qk, WIDTH + qk, 2 * WIDTH + vp])
    _rows(state, qkv, lambda values: values[rows])
    _columns(state, proj, lambda values: values[vp])


def permute_heads(state: State, block: int, generator: np.random.Generator) -> None:
    order = np.arange(WIDTH).reshape(HEADS, -1)[[2, 0, 1]].ravel()
    _permute_channels(state, block, order, order)


def permute_channels(state: State, block: int, generator: np.random.Generator) -> None:
    qk, vp = (
        np.concatenate([head * CHANNELS + generator.permutation(CHANNELS) for head in range(HEADS)]) for _ in range(2)
    )
    _permute_channels(state, block, qk, vp)


def _scale(state: State, block: int, qk: np.ndarray, vp: np.ndarray) -> None:
    qkv, proj, _, _ = _names(block)
    _rows(state, qkv, _times(np.concatenate([qk, 1 / qk, vp])))
    _columns(state, proj, _times(1 / vp))


def flip_qk(state: State, block: int, generator: np.random.Generator) -> None:
    _scale(state, block, generator.choice([-1.0, 1.0], WIDTH), np.ones(WIDTH))


def flip_vp(state: State, block: int, generator: np.random.Generator) -> None:
    _scale(state, block, np.ones(WIDTH), generator.choice([-1.0, 1.0], WIDTH))


def scale_qk(state: State, block: int, generator: np.random.Generator) -> None:
    _scale(state, block, np.exp(generator.choice([-0.8, 0.0, 0.8], WIDTH)), np.ones(WIDTH))


def scale_vp(state: State, block: int, generator: np.random.Generator) -> None:
    _scale(state, block, np.ones(WIDTH), np.exp(generator.choice([-0.8, 0.0, 0.8], WIDTH)))


def fold_gain(state: State, block: int, generator: np.random.Generator) -> None:
    norm, (qkv, _, _, _) = f"blocks.{block}.norm1", _names(block)
    gain = state[f"{norm}.weight"]
    _columns(state, qkv, _times(gain))
    state[f"{norm}.weight"], state[f"{norm}.bias"] = np.ones_like(gain), state[f"{norm}.bias"] / gain


def fold_root(state: State, block: int, generator: np.random.Generator) -> None:
    factors = np.ones(3 * WIDTH)
    factors[:WIDTH] = CHANNELS**-0.5
    _rows(state, _names(block)[0], _times(factors))


@pytest.fixture(scope="module")
def logits(receiver: State) -> Callable[..., np.ndarray]:
    """Logits on seeded images; the blocks in `scaled` bring 1/sqrt(d) in their weights."""
    model = create(MODEL, len(receiver["head.bias"]), ARGS)
    images = torch.from_numpy(np.random.default_rng(5).normal(size=(4, 3, 32, 32)).astype(np.float32))
    for block in model.blocks:
        block.attn.fused_attn = False

    def compute(state: Mapping[str, np.ndarray], *, scaled: tuple[int, ...] = ()) -> np.ndarray:
        model.load_state_dict({name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in state.items()})
        for number, block in enumerate(model.blocks):
            block.attn.scale = 1.0 if number in scaled else CHANNELS**-0.5
        with torch.no_grad():
            return model(images).numpy()

    return compute


def _applied(receiver: State, transform: Transform, blocks: tuple[int, ...]) -> State:
    state, generator = dict(receiver), np.random.default_rng(3)
    for block in blocks:
        transform(state, block, generator)
    return state


def _check(state: State, donor: Sketch, geometry: Geometry, scheme: Scheme) -> Coordinates:
    return check_coordinates(sketch_like(donor, state.__getitem__), donor, geometry, scheme)


def _put_right(state: State, found: Coordinates) -> State:
    read = corrected(state.__getitem__, found.changes)
    return {name: read(name) for name in state}


UNDONE = [
    (permute_neurons, symmetries.NEURONS, "mlp.fc1", CHANNEL),
    (permute_neurons, symmetries.NEURONS, "mlp.fc1", MSE),
    (permute_heads, symmetries.HEADS, "attn.qkv", MSE),
    (permute_channels, symmetries.CHANNELS, "attn.qkv", CHANNEL),
    (flip_qk, symmetries.SIGNS_QK, "attn.qkv", TENSOR),
    (flip_vp, symmetries.SIGNS_VP, "attn.qkv", CHANNEL),
    (scale_qk, symmetries.SCALE_QK, "attn.qkv", CHANNEL),
    (fold_root, symmetries.ROOT, "attn.qkv", GROUP),
]

REFUSED = [
    (permute_neurons, symmetries.NEURONS, "mlp.fc1", GROUP),
    (permute_heads, symmetries.HEADS, "attn.qkv", GROUP),
    (permute_channels, symmetries.CHANNELS, "attn.qkv", GROUP),
    (flip_qk, symmetries.SIGNS_QK, "attn.qkv", MSE),
    (flip_vp, symmetries.SIGNS_VP, "attn.qkv", Scheme(3, "channel", clip=0.8)),
    (scale_qk, symmetries.SCALE_QK, "attn.qkv", TENSOR),
    (scale_vp, symmetries.SCALE_VP, "attn.qkv", CHANNEL),
    (fold_gain, symmetries.GAIN, "norm1", CHANNEL),
    (fold_root, symmetries.ROOT, "attn.qkv", MSE),
]


@pytest.mark.slow
@pytest.mark.parametrize(("transform", "name", "where", "scheme"), UNDONE)
def test_what_the_quantizer_commutes_with_is_found_and_undone(
    receiver: State,
    logits: Callable[..., np.ndarray],
    donor: Sketch,
    geometry: Geometry,
    transform: Transform,
    name: str,
    where: str,
    scheme: Scheme,
) -> None:
    blocks = (1, 4)
    state, scaled = _applied(receiver, transform, blocks), blocks if transform is fold_root else ()
    np.testing.assert_allclose(logits(state, scaled=scaled), logits(receiver), rtol=0, atol=1e-4)

    found = _check(state, donor, geometry, scheme)
    assert [(item.symmetry, item.where) for item in found.findings] == [
        (name, f"blocks.{block}.{where}") for block in blocks
    ]
    assert all(item.undone and item.units > 0 for item in found.findings)
    assert found.distance is not None and found.distance < 0.1
    with pytest.raises(IncompatibleError, match="not in its donor's coordinates: " + _literal(name)) as caught:
        require_same_coordinates(state.__getitem__, donor, geometry, scheme)
    assert "vector check" in caught.value.hint

    right = _put_right(state, found)
    exact = transform not in (scale_qk, fold_root)
    for key, value in receiver.items():  # a scale comes back up to what fine-tuning did to it
        np.testing.assert_allclose(right[key], value, rtol=0 if exact else 0.1, atol=0 if exact else 1e-6)
    np.testing.assert_allclose(logits(right), logits(receiver), rtol=0, atol=1e-4)
    assert require_same_coordinates(right.__getitem__, donor, geometry, scheme) is None


@pytest.mark.slow
@pytest.mark.parametrize(("transform", "name", "where", "scheme"), REFUSED)
def test_what_the_quantizer_does_not_commute_with_is_refused_by_name(
    receiver: State,
    logits: Callable[..., np.ndarray],
    donor: Sketch,
    geometry: Geometry,
    transform: Transform,
    name: str,
    where: str,
    scheme: Scheme,
) -> None:
    state, scaled = _applied(receiver, transform, (0,)), (0,) if transform is fold_root else ()
    np.testing.assert_allclose(logits(state, scaled=scaled), logits(receiver), rtol=0, atol=1e-4)
    found = _check(state, donor, geometry, scheme)
    assert [(item.symmetry, item.where, item.undone) for item in found.findings] == [(name, f"blocks.0.{where}", False)]
    message = f"not in its donor's coordinates: {_literal(name)} in blocks.0.{where}"
    for refuse in (
        lambda: require_same_coordinates(state.__getitem__, donor, geometry, scheme),
        lambda: require_undone(found.findings),
    ):
        with pytest.raises(IncompatibleError, match=message) as caught:
            refuse()
        assert "before any export" in caught.value.hint


def _literal(name: str) -> str:
    return name.replace("(", r"\(").replace(")", r"\)")


def test_symmetries_on_top_of_one_another(
    receiver: State, logits: Callable[..., np.ndarray], donor: Sketch, geometry: Geometry
) -> None:
    state = dict(receiver)
    for transform in (permute_channels, flip_qk, scale_qk, flip_vp, permute_heads, permute_neurons, fold_root):
        transform(state, 2, np.random.default_rng(9))
    np.testing.assert_allclose(logits(state, scaled=(2,)), logits(receiver), rtol=0, atol=1e-4)
    found = _check(state, donor, geometry, CHANNEL)
    assert {item.symmetry for item in found.findings} == {
        symmetries.NEURONS,
        symmetries.HEADS,
        symmetries.CHANNELS,
        symmetries.SIGNS_QK,
        symmetries.SIGNS_VP,
        symmetries.SCALE_QK,
        symmetries.ROOT,
    }
    right = _put_right(state, found)
    for key, value in receiver.items():
        np.testing.assert_allclose(right[key], value, rtol=0.1, atol=1e-6)
    np.testing.assert_allclose(logits(right), logits(receiver), rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("noise", [0.0, 0.05, 0.3])
def test_fine_tuning_raises_no_alarm(receiver: State, donor: Sketch, geometry: Geometry, noise: float) -> None:
    generator = np.random.default_rng(2)

    def noisy(name: str) -> np.ndarray:
        weight = receiver[name]
        size = noise * np.linalg.norm(weight) / weight.size**0.5 if weight.ndim == 2 else 0
        return (weight + size * generator.standard_normal(weight.shape)).astype(np.float32)

    state = {name: noisy(name) for name in receiver}
    found = _check(state, donor, geometry, MSE)
    assert found.findings == () and found.changes == {}
    assert found.distance == pytest.approx(np.hypot(0.0527, noise), rel=0.1)
    assert require_same_coordinates(state.__getitem__, donor, geometry, MSE) is None


def test_another_base_is_refused(donor: Sketch, geometry: Geometry) -> None:
    torch.manual_seed(0)
    model = create(MODEL, 10, ARGS)
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    for places in (geometry, Geometry()):
        with pytest.raises(IncompatibleError, match="another base"):
            require_same_coordinates(state.__getitem__, donor, places, MSE)


def test_one_unknown_layer_is_refused(
    receiver: State, logits: Callable[..., np.ndarray], donor: Sketch, geometry: Geometry
) -> None:
    generator = np.random.default_rng(0)
    state, (qkv, proj, _, _) = dict(receiver), _names(3)
    rotation = np.linalg.qr(generator.normal(size=(WIDTH, WIDTH)))[0]
    rotation *= np.kron(np.eye(HEADS), np.ones((CHANNELS, CHANNELS)))  # inside the heads
    rotation = np.linalg.qr(rotation)[0]
    _rows(state, qkv, lambda values: np.concatenate([values[: 2 * WIDTH], rotation @ values[2 * WIDTH :]]))
    _columns(state, proj, lambda values: rotation @ values)
    np.testing.assert_allclose(logits(state), logits(receiver), rtol=0, atol=1e-4)
    with pytest.raises(IncompatibleError, match=r"blocks\.3\.attn\.proj .* no known symmetry explains"):
        _check(state, donor, geometry, CHANNEL)


def test_without_a_geometry_a_permutation_is_no_known_symmetry(receiver: State, donor: Sketch) -> None:
    state = _applied(receiver, permute_neurons, (0,))
    with pytest.raises(IncompatibleError, match=r"blocks\.0\.mlp\.fc. .* no known symmetry"):
        _check(state, donor, Geometry(), CHANNEL)


def test_dead_neurons_are_no_permutation(receiver: State, donor: Sketch, geometry: Geometry) -> None:
    generator = np.random.default_rng(0)
    state, (_, _, fc1, fc2) = dict(receiver), _names(0)
    dead = np.ones(4 * WIDTH)
    dead[::10] = 1e-6
    noise = generator.normal(size=(4 * WIDTH, WIDTH)) * 1e-6
    _rows(state, fc1, _times(dead))
    _columns(state, fc2, lambda values: values * dead[:, None] + noise)
    found = _check(state, donor, geometry, CHANNEL)
    assert found.findings == ()


def test_permuted_neurons_are_found_among_dead_ones(receiver: State, donor: Sketch, geometry: Geometry) -> None:
    state, (_, _, fc1, fc2) = dict(receiver), _names(0)
    dead = np.ones(4 * WIDTH)
    dead[::10] = 0
    _rows(state, fc1, _times(dead))
    _columns(state, fc2, _times(dead))
    permuted = dict(state)
    permute_neurons(permuted, 0, np.random.default_rng(0))
    found = _check(permuted, donor, geometry, CHANNEL)
    right = _put_right(permuted, found)
    for key, value in state.items():
        np.testing.assert_array_equal(right[key], value)


def test_models_that_differ_are_refused(receiver: State, donor: Sketch, geometry: Geometry) -> None:
    lacking = {name: value for name, value in receiver.items() if name != "blocks.0.attn.qkv.weight"}
    with pytest.raises(IncompatibleError, match=r"has no blocks\.0\.attn\.qkv\.weight"):
        require_same_coordinates(lacking.__getitem__, donor, geometry, CHANNEL)
    for name in ("blocks.0.attn.qkv", "blocks.0.norm1"):
        cut = receiver | {f"{name}.weight": receiver[f"{name}.weight"][:30]}
        with pytest.raises(IncompatibleError, match=f"another {name}"):
            require_same_coordinates(cut.__getitem__, donor, geometry, CHANNEL)
    for places in (
        Geometry(mlps=(Mlp("other.fc1", "other.fc2"),)),
        Geometry(attentions=(Attention("blocks.0.mlp.fc1", "blocks.0.mlp.fc2", 2),)),
    ):
        with pytest.raises(IncompatibleError, match="does not fit the model"):
            _check(receiver, donor, places, CHANNEL)
    other = make_sketch(receiver, receiver.__getitem__, seed=1)
    with pytest.raises(IncompatibleError, match="different seeds"):
        check_coordinates(other, donor, geometry, CHANNEL)


@pytest.mark.parametrize(
    ("name", "table"), [("swin_tiny_patch4_window7_224", True), ("deit3_small_patch16_224", False)]
)
def test_swin_and_deit3_heads(name: str, table: bool) -> None:
    small = {"img_size": 56, "embed_dim": 32, "depths": [1, 1], "num_heads": [2, 4], "window_size": 7}
    args = small if table else {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 1, "num_heads": 4}
    torch.manual_seed(0)
    model = create(name, 5, args)
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.2)
    state = {key: value.numpy().copy() for key, value in model.state_dict().items()}
    geometry = find_geometry(name, args)
    attention = geometry.attentions[-1]
    assert (attention.table != "") == table and len(geometry.mlps) == len(geometry.attentions)
    donor = make_sketch([key for key in state if not key.startswith("head.")], state.__getitem__)

    size = state[f"{attention.proj}.weight"].shape[1]
    order = np.arange(size).reshape(attention.heads, -1)[::-1].ravel()
    moved = dict(state)
    _rows(moved, attention.qkv, lambda values: values[np.concatenate([order, size + order, 2 * size + order])])
    _columns(moved, attention.proj, lambda values: values[order])
    if table:
        moved[attention.table] = moved[attention.table][:, ::-1].copy()
    images = torch.randn(2, 3, args["img_size"], args["img_size"], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = model(images)
        model.load_state_dict({key: torch.from_numpy(value) for key, value in moved.items()})
        np.testing.assert_allclose(model(images).numpy(), before.numpy(), rtol=0, atol=1e-3)

    found = _check(moved, donor, geometry, CHANNEL)
    assert [(item.symmetry, item.where) for item in found.findings] == [(symmetries.HEADS, attention.qkv)]
    right = _put_right(moved, found)
    for key, value in state.items():
        np.testing.assert_array_equal(right[key], value)


def test_blocks_with_other_symmetries_are_left_out() -> None:
    args = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 1, "num_heads": 4}
    normed = find_geometry("vit_tiny_patch16_224", args | {"qk_norm": True})
    assert normed.attentions == () and len(normed.mlps) == 1 and len(normed.norms) == 2
    gated = find_geometry("eva02_tiny_patch14_224", {})
    assert gated == Geometry()


CASES = [
    (symmetries.NEURONS, lambda w: np.roll(w, 5, axis=0), lambda w: np.roll(w, 5, axis=1)),
    (symmetries.HEADS, lambda w: np.roll(w, 8, axis=0), lambda w: np.roll(w, 8, axis=1)),
    (symmetries.CHANNELS, lambda w: np.roll(w, 1, axis=0), lambda w: np.roll(w, 1, axis=1)),
    (symmetries.SIGNS_QK, lambda w: w * _signs(len(w))[:, None], lambda w: w * _signs(len(w))[:, None]),
    (symmetries.SIGNS_VP, lambda w: w * _signs(len(w))[:, None], lambda w: w * _signs(w.shape[1])),
    (symmetries.SCALE_QK, lambda w: w * _scales(len(w))[:, None], lambda w: w / _scales(len(w))[:, None]),
    (symmetries.SCALE_VP, lambda w: w * _scales(len(w))[:, None], lambda w: w / _scales(w.shape[1])),
    (symmetries.ROOT, lambda w: np.concatenate([w[:16] / np.float32(8), w[16:]]), lambda w: w),
    (symmetries.GAIN, lambda w: w * _scales(w.shape[1]), lambda w: w),
]


def _signs(size: int) -> np.ndarray:
    return np.where(np.arange(size) % 3 == 0, -1, 1).astype(np.float32)


def _scales(size: int) -> np.ndarray:
    return np.exp2(np.arange(size) % 5 - 2).astype(np.float32)  # powers of two: no rounding in the way


@pytest.mark.parametrize(
    "scheme", [CHANNEL, TENSOR, Scheme(3, "group", 16), MSE, Scheme(3, "channel", clip=0.5)], ids=str
)
@pytest.mark.parametrize(("name", "first", "second"), CASES, ids=[case[0] for case in CASES])
def test_what_commutes_is_so_for_the_reference_quantizer(
    name: str, first: Callable[..., np.ndarray], second: Callable[..., np.ndarray], scheme: Scheme
) -> None:
    weight = np.random.default_rng(0).standard_normal((48, 48)).astype(np.float32)

    def same(change: Callable[..., np.ndarray]) -> bool:
        after = change(quantize(weight, scheme).dequantize())
        before = quantize(np.ascontiguousarray(change(weight)), scheme).dequantize()
        return bool(np.allclose(after, before, rtol=1e-5, atol=0))

    assert (same(first) and same(second)) == commutes(name, scheme)
