"""Everything that headers can show to be wrong is refused before a weight is read."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file

from qvec_deploy.builder.context import BuildContext
from qvec_deploy.errors import IncompatibleError, QvecError, RecipeError
from qvec_deploy.io.checkpoint import Checkpoint
from qvec_deploy.planner import Plan
from qvec_deploy.recipe import load_recipe
from qvec_deploy.runtimes.kernels.layouts import choose_layout
from qvec_deploy.runtimes.registry import RUNTIMES, check_lowering, find_lowering
from qvec_deploy.runtimes.tensorrt import int4_block
from qvec_deploy.tensors import Scheme
from qvec_deploy.vectors.extract import extract_vector

States = dict[str, dict[str, np.ndarray]]


@pytest.fixture(autouse=True)
def _no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan that reads a weight fails."""

    def refuse(self: Checkpoint, name: str) -> None:
        raise AssertionError(f"the plan read {name}")

    monkeypatch.setattr(Checkpoint, "read", refuse)


def _plan(path: Path) -> Plan:
    return BuildContext().plan(load_recipe(path))


def _receiver(folder: Path, state: dict[str, np.ndarray]) -> str:
    save_file(state, folder / "other.safetensors")
    return str(folder / "other.safetensors")


def test_decisions(pico_recipe: Callable[..., Path]) -> None:
    plan = _plan(pico_recipe())
    by_name = {tensor.name: tensor for tensor in plan.tensors}
    assert by_name["blocks.0.attn.qkv.weight"].scheme == Scheme(3, "channel")
    assert by_name["blocks.0.attn.qkv.bias"].scheme is None and by_name["blocks.0.attn.qkv.bias"].patched
    assert by_name["patch_embed.proj.weight"].scheme is None and by_name["pos_embed"].patched
    assert by_name["head.weight"].scheme is None and not by_name["head.weight"].patched
    assert len(plan.quantized) == 8 and plan.architecture.classes == 10
    assert plan.architecture.input_shape == (3, 32, 32)


def test_stored_bits_are_the_files(pico_recipe: Callable[..., Path]) -> None:
    plan = _plan(pico_recipe())
    weights = sum(tensor.size for tensor in plan.quantized)
    payload = sum(3 * tensor.size for tensor in plan.quantized)  # every row is a multiple of 32 wide
    scales = sum(32 * tensor.shape[0] for tensor in plan.quantized)
    assert plan.stored_bits_per_weight == pytest.approx((payload + scales) / weights)


def test_lambda_zero_patches_nothing(pico_recipe: Callable[..., Path]) -> None:
    plan = _plan(pico_recipe(**{"lambda": 0}))
    assert not any(tensor.patched for tensor in plan.tensors) and plan.sources == ()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s: s.pop("norm.weight", None) or s.pop("fc_norm.weight"), "1 missing"),
        (lambda s: s.update(extra=np.zeros(1, np.float32)), "1 not in the model (extra)"),
        (lambda s: s.update({"pos_embed": np.zeros((1, 5, 32), np.float32)}), "pos_embed has shape (1, 5, 32)"),
        (lambda s: s.update({"pos_embed": s["pos_embed"].astype(np.int64)}), "dtype I64"),
        (lambda s: s.pop("head.weight"), "`head.weight` is missing"),
    ],
)
def test_receivers_that_do_not_fit(
    tmp_path: Path, pico_recipe: Callable[..., Path], pico_states: States, change: Callable[..., object], says: str
) -> None:
    state = dict(pico_states["receiver"])
    change(state)
    with pytest.raises(IncompatibleError) as caught:
        _plan(pico_recipe(receiver__checkpoint=_receiver(tmp_path, state)))
    assert says in caught.value.message


def test_unknown_models_name_the_nearest(pico_recipe: Callable[..., Path]) -> None:
    with pytest.raises(RecipeError) as caught:
        _plan(pico_recipe(receiver__model="vit_tiny_patch16_225"))
    assert "vit_tiny_patch16_224" in caught.value.hint
    with pytest.raises(RecipeError, match="cannot create"):
        _plan(pico_recipe(receiver__model_args={"no_such_argument": 1}))


def test_skip_matches_whole_names(pico_recipe: Callable[..., Path]) -> None:
    plan = _plan(pico_recipe(quantize__skip=["head", "attn"], vector=None, **{"lambda": 0}))
    assert {tensor.name for tensor in plan.quantized} == {
        f"blocks.{b}.mlp.fc{n}.weight" for b in (0, 1) for n in (1, 2)
    }
    with pytest.raises(RecipeError, match="`att` matches no Linear") as caught:
        _plan(pico_recipe(quantize__skip=["head", "att"], vector=None, **{"lambda": 0}))
    assert "attn" in caught.value.hint


@pytest.mark.parametrize("change", [{"bits": 2}, {"granularity": "tensor"}, {"method": "mse"}, {"clip": 0.5}])
def test_a_vector_works_on_its_own_grid_only(pico_recipe: Callable[..., Path], change: dict[str, object]) -> None:
    quantize = {"bits": 3, "granularity": "channel"} | change
    with pytest.raises(IncompatibleError, match="was trained for 3 bits per channel"):
        _plan(pico_recipe(quantize=quantize))


def test_a_vector_of_other_tensors_is_refused(
    tmp_path: Path, pico_recipe: Callable[..., Path], pico_states: States
) -> None:
    fp, qat = ({k: v for k, v in pico_states[name].items() if k != "pos_embed"} for name in ("fp", "qat"))
    path = tmp_path / "v.safetensors"
    common = {"scheme": Scheme(3, "channel"), "task": "t", "seed": 0}
    extract_vector(fp, qat, path, skip=("head",), **common)  # type: ignore[arg-type]
    with pytest.raises(IncompatibleError, match=r"does not fit.*pos_embed"):
        _plan(pico_recipe(vector={"files": [str(path)]}))
    extract_vector(pico_states["fp"], pico_states["qat"], path, skip=("head", "attn"), **common)  # type: ignore[arg-type]
    with pytest.raises(IncompatibleError, match="left head, attn float"):
        _plan(pico_recipe(vector={"files": [str(path)]}))


def test_groups_must_divide_every_row(pico_recipe: Callable[..., Path]) -> None:
    quantize = {"bits": 3, "granularity": "group", "group_size": 64}
    with pytest.raises(RecipeError, match="rows of 32 weights"):
        _plan(pico_recipe(quantize=quantize, vector=None, **{"lambda": 0}))
    quantize["group_size"] = 24
    with pytest.raises(IncompatibleError, match="groups of 24"):
        _plan(pico_recipe(quantize=quantize, vector=None, **{"lambda": 0}))


@pytest.mark.parametrize(
    ("runtime", "lowering", "takes", "refuses", "says"),
    [
        ("torch-cuda", "packed", (16, 48, 128), (8, 24), "a multiple of 16"),
        ("tensorrt", "packed", (16, 48, 128), (8, 24), "a multiple of 16"),
        ("tensorrt", "int4", (64, 128, 192), (16, 32, 96), "a multiple of 64"),
        ("onnxruntime", "int4", (16, 64), (8, 48), "a power of two of at least 16"),
        ("onnxruntime-cuda", "int4", (16, 64), (8, 48), "a power of two of at least 16"),
        ("onnxruntime", "packed", (8, 24, 64), (), ""),
    ],
)
def test_groups_are_those_that_the_lowering_can_make(
    runtime: str, lowering: str, takes: tuple[int, ...], refuses: tuple[int, ...], says: str
) -> None:
    for size in takes:
        check_lowering(runtime, lowering, 3, "group", size)
    for size in refuses:
        with pytest.raises(IncompatibleError, match=f"cannot take groups of {size}") as caught:
            check_lowering(runtime, lowering, 3, "group", size)
        assert says in caught.value.hint


@pytest.mark.parametrize("columns", [768, 192, 4304])
def test_what_a_plan_takes_can_be_lowered(columns: int) -> None:
    """The kernels' layouts and TensorRT's blocks agree with the table, for every group size that divides a row."""
    for size in (size for size in range(1, columns + 1) if columns % size == 0):
        if find_lowering("tensorrt", "packed").takes_groups(size):
            choose_layout(768, columns, 3, size)
        if find_lowering("tensorrt", "int4").takes_groups(size):
            assert size % int4_block(columns, size) == 0


@pytest.mark.parametrize("runtime", ["onnxruntime", "tensorrt"])
def test_the_table_of_lowerings_is_what_a_plan_takes(pico_recipe: Callable[..., Path], runtime: str) -> None:
    for lowering, bits, granularity in product(
        ("float", "packed", "int4", "int8"), (2, 3, 4, 5, 8, 16, 32), ("tensor", "channel", "group")
    ):
        quantize = {"bits": bits, "granularity": granularity, "group_size": 16 if granularity == "group" else 0}
        path = pico_recipe(
            quantize=quantize, target={"runtime": runtime, "lowering": lowering}, vector=None, **{"lambda": 0}
        )
        entry = next((row for row in RUNTIMES[runtime].lowerings if row.name == lowering), None)
        takes = entry is not None and bits in entry.bits and granularity in entry.granularities
        takes = takes and entry.takes_groups(quantize["group_size"])
        try:
            _plan(path)
            planned = True
        except QvecError as error:
            planned = False
            mixed = (bits > 8) != (lowering == "float")  # refused already as a recipe
            assert error.exit_code == (2 if mixed else 4), (lowering, bits, granularity)
        assert planned == takes, (lowering, bits, granularity)


def _with_channels(
    pico_recipe: Callable[..., Path], pico_states: States, folder: Path, channels: int, **preprocessing: object
) -> Path:
    state = dict(pico_states["receiver"])
    state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"][:, :1].repeat(channels, axis=1)
    recipe = pico_recipe(vector=None, receiver__preprocessing=preprocessing, **{"lambda": 0.0})
    values = yaml.safe_load(recipe.read_text())
    values["receiver"]["checkpoint"] = _receiver(folder, state)
    values["receiver"]["model_args"]["in_chans"] = channels
    recipe.write_text(yaml.safe_dump(values))
    return recipe


def test_a_gray_model_is_normalised_by_one_number(
    pico_recipe: Callable[..., Path], pico_states: States, tmp_path: Path
) -> None:
    config = _plan(_with_channels(pico_recipe, pico_states, tmp_path, 1)).architecture.data_config
    assert config["input_size"][0] == len(config["mean"]) == len(config["std"]) == 1
    given = _plan(_with_channels(pico_recipe, pico_states, tmp_path, 1, mean=[0.13], std=[0.31]))
    assert given.architecture.data_config["mean"] == (0.13,)
    with pytest.raises(RecipeError, match=r"preprocessing\.mean has 3 numbers"):
        _plan(_with_channels(pico_recipe, pico_states, tmp_path, 1, mean=[0.1, 0.2, 0.3]))


def test_one_number_is_for_every_channel(pico_recipe: Callable[..., Path]) -> None:
    assert _plan(pico_recipe(receiver__preprocessing={"mean": [0.4]})).architecture.data_config["mean"] == (0.4,) * 3
    with pytest.raises(RecipeError, match=r"preprocessing\.std has 2 numbers"):
        _plan(pico_recipe(receiver__preprocessing={"std": [0.4, 0.5]}))


def test_models_of_other_channels_are_refused(
    pico_recipe: Callable[..., Path], pico_states: States, tmp_path: Path
) -> None:
    with pytest.raises(IncompatibleError, match="4 channels"):
        _plan(_with_channels(pico_recipe, pico_states, tmp_path, 4))
