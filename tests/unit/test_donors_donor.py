"""A donor from its recipe: what is written, what the numbers are of, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from pico import PICO_ARGS, PICO_MODEL
from PIL import Image
from safetensors.numpy import load_file, save_file

from qvec_deploy.datasets import DataConfig, DatasetSpec, open_dataset
from qvec_deploy.donors import donor as donors
from qvec_deploy.donors.donor import top1, train_donor
from qvec_deploy.donors.donor_inputs import fingerprint, open_base, open_task
from qvec_deploy.donors.donor_recipe import DonorRecipe, load_donor_recipe
from qvec_deploy.errors import FetchError, IncompatibleError, RecipeError, StorageError
from qvec_deploy.io.files import sha256_file
from qvec_deploy.models import create, quantized_linears
from qvec_deploy.quantize import reference
from qvec_deploy.tensors import Scheme
from qvec_deploy.vectors.vector_file import QuantizationVector

Write = Callable[..., DonorRecipe]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def recipe(tmp_path: Path, pico_folder: Path) -> Write:
    """A recipe of a pico donor on 40 real digits, with dotted overrides."""

    def write(**overrides: Any) -> DonorRecipe:
        values = {
            "version": 1,
            "name": "pico_donor",
            "base": {
                "model": PICO_MODEL,
                "model_args": PICO_ARGS,
                "checkpoint": str(pico_folder / "receiver.safetensors"),
            },
            "task": {"dataset": "tiny/realdigits", "limit": 40},
            "train": {
                "steps": 6, "batch_size": 10, "lr": 1e-3, "warmup_steps": 1, "augment": "none", "save_every": 2,
            },
        }  # fmt: skip
        path = tmp_path / "donor.yaml"
        path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
        return load_donor_recipe(path, [f"{key.replace('__', '.')}={value}" for key, value in overrides.items()])

    return write


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder with six training images of two classes and two validation images."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 3), ("val", 1)):
        for label in "ab":
            place = tmp_path / "images" / split / label
            place.mkdir(parents=True)
            for number in range(count):
                Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(place / f"{number}.png")
    return tmp_path / "images"


def test_what_a_donor_is(recipe: Write, tmp_path: Path):
    made = recipe()
    told: list[tuple[str, int]] = []
    record = train_donor(
        made, tmp_path / "out", environment={"cpu": "this one"}, watch=lambda run, at: told.append((run, at.step))
    )
    assert told == [(run, step) for run in ("fp", "qat") for step in range(1, 7)]
    names = ["fp.safetensors", "log.jsonl", "qat.safetensors", "record.json", "vector.safetensors"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    assert json.loads((tmp_path / "out" / "record.json").read_text()) == record
    assert record["sha256"] == {name: sha256_file(tmp_path / "out" / name) for name in names if name != "record.json"}
    assert record["recipe"] == made.as_dict()
    assert record["base_sha256"] == fingerprint(open_base(made))
    assert record["environment"] == {"cpu": "this one", "device": "cpu"}
    assert record["steps"] == 6

    log = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert [(line["run"], line["epoch"], line["step"]) for line in log] == [
        ("fp", 1, 4), ("fp", 2, 6), ("qat", 1, 4), ("qat", 2, 6)
    ]  # fmt: skip
    assert all(list(line) == ["run", "epoch", "step", "loss", "lr", "val_top1", "seconds"] for line in log)
    assert record["seconds"] == {"fp": log[1]["seconds"], "qat": log[3]["seconds"]}

    fp, qat = (load_file(tmp_path / "out" / f"{run}.safetensors") for run in ("fp", "qat"))
    vector = QuantizationVector.open(tmp_path / "out" / "vector.safetensors")
    assert vector.header.scheme == Scheme(3, "channel", method="mse")
    assert (vector.header.task, vector.header.seed, vector.header.skip) == ("tiny/realdigits", 0, ("head",))
    for name in ("blocks.0.attn.qkv.weight", "pos_embed", "fc_norm.bias"):
        assert np.array_equal(vector.read(name), qat[name] - fp[name])
    assert record["vector"]["norm"] == vector.header.norm
    assert record["vector"]["share"] == pytest.approx(vector.header.norm / vector.header.weight_norm)


@pytest.mark.slow
def test_the_accuracies_are_those_of_the_weights_as_they_are_deployed(recipe: Write, tmp_path: Path):
    made = recipe()
    record = train_donor(made, tmp_path / "out")
    data = open_dataset(DatasetSpec("tiny/realdigits", "val"), DataConfig())
    pictures, labels = data.take(range(len(data)))

    def share(run: str, scheme: Scheme | None) -> float:
        state = load_file(tmp_path / "out" / f"{run}.safetensors")
        model = create(PICO_MODEL, 10, PICO_ARGS)
        for name in quantized_linears(model, ("head",)) if scheme else ():
            state[f"{name}.weight"] = reference.quantize(state[f"{name}.weight"], scheme).dequantize()
        model.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()})
        with torch.no_grad():
            found = model(torch.from_numpy(pictures)).argmax(dim=1).numpy()
        return float((found == labels).mean())

    grid = Scheme(3, "channel", method="mse")
    val = record["val"]
    assert val["images"] == 200
    assert (val["fp_top1"], val["ptq_top1"], val["qat_top1"]) == (
        share("fp", None),
        share("fp", grid),
        share("qat", grid),
    )
    assert len({share("fp", None), share("fp", grid), share("qat", grid)}) > 1


@pytest.mark.slow
def test_measuring_does_not_move_the_training(recipe: Write, tmp_path: Path):
    for val in ("val", "null"):
        train_donor(recipe(task__val=val, base__model_args=json.dumps({**PICO_ARGS, "drop_rate": 0.2})), tmp_path / val)
    for run in ("fp", "qat"):
        assert len({(tmp_path / val / f"{run}.safetensors").read_bytes() for val in ("val", "null")}) == 1
    record = json.loads((tmp_path / "null" / "record.json").read_text())
    assert (record["val"], record["val_missing"]) == (None, "task.val is null")


@pytest.mark.slow
def test_settings_of_the_reading_and_saving_may_change_between_two_starts(recipe: Write, tmp_path: Path):
    class Killed(BaseException):
        pass

    def kill(run: str, progress: Any) -> None:
        if run == "qat":
            raise Killed

    with pytest.raises(Killed):
        train_donor(recipe(), tmp_path / "out", watch=kill)
    with pytest.raises(RecipeError, match=r"was begun with train\.seed 0, and this is 1"):
        train_donor(recipe(train__seed=1), tmp_path / "out")
    runs = []
    train_donor(recipe(train__save_every=1), tmp_path / "out", watch=lambda run, progress: runs.append(run))
    assert set(runs) == {"qat"}


def test_another_base_at_the_same_place(recipe: Write, tmp_path: Path, pico_states):
    class Killed(BaseException):
        pass

    def kill(run: str, progress: Any) -> None:
        raise Killed

    path = tmp_path / "base.safetensors"
    save_file(pico_states["receiver"], path)
    with pytest.raises(Killed):
        train_donor(recipe(base__checkpoint=path), tmp_path / "out", watch=kill)
    save_file(pico_states["fp"], path)
    with pytest.raises(RecipeError, match=r"was begun with base\.sha256"):
        train_donor(recipe(base__checkpoint=path), tmp_path / "out")


def test_a_float16_vector(recipe: Write, tmp_path: Path):
    train_donor(recipe(vector_dtype="float16"), tmp_path / "out")
    vector = QuantizationVector.open(tmp_path / "out" / "vector.safetensors")
    assert vector.tensors["pos_embed"].dtype == "F16"


# Images


@pytest.mark.slow
def test_a_folder_of_images_is_augmented_and_named_by_the_recipe(recipe: Write, images: Path, tmp_path: Path):
    made = recipe(task__dataset="folder", task__root=images, train__augment="timm", train__batch_size=2)
    record = train_donor(made, tmp_path / "out")
    assert record["task"]["name"] == "pico_donor"
    assert (record["task"]["images"], record["task"]["classes"], record["val"]["images"]) == (6, 2, 2)
    train_donor(made, tmp_path / "again")
    names = ("fp.safetensors", "qat.safetensors", "vector.safetensors")
    assert [(tmp_path / "out" / name).read_bytes() for name in names] == [
        (tmp_path / "again" / name).read_bytes() for name in names
    ]


def test_without_a_validation_folder_nothing_is_measured(recipe: Write, images: Path):
    made = recipe(task__dataset="folder", task__root=images)
    assert open_task(made).without_val is None
    (images / "val").rename(images.parent / "elsewhere")
    task = open_task(made)
    assert task.val is None
    assert task.without_val == f"{images} has train and no val"


def test_a_folder_without_splits_is_not_measured_on_what_it_trains_on(recipe: Write, images: Path):
    task = open_task(recipe(task__dataset="folder", task__root=images / "train"))
    assert len(task.train) == 6
    assert task.val is None
    assert "has no folder for val" in str(task.without_val)


def test_splits_of_different_classes(recipe: Write, images: Path):
    (images / "val" / "a").rename(images.parent / "a")
    task = open_task(recipe(task__dataset="folder", task__root=images))
    assert task.val is not None and task.val.take([0])[1].tolist() == [1]  # some classes, by name
    (images / "val" / "b").rename(images / "val" / "c")
    with pytest.raises(RecipeError, match="1 of 1 folders are no classes of the model: c; its 2 classes are a, b"):
        open_task(recipe(task__dataset="folder", task__root=images))


def test_an_unknown_bundled_task(recipe: Write, tmp_path: Path):
    with pytest.raises(RecipeError, match="there is no bundled task `tiny/lover`") as caught:
        train_donor(recipe(task__dataset="tiny/lover"), tmp_path / "out")
    assert "tiny/lower" in caught.value.hint
    assert not (tmp_path / "out").exists()


def test_augmentation_of_a_bundled_task(recipe: Write, tmp_path: Path):
    with pytest.raises(RecipeError, match="takes no augmentation"):
        train_donor(recipe(train__augment="timm"), tmp_path / "out")


def test_images_without_labels(recipe: Write, images: Path, tmp_path: Path):
    with pytest.raises(RecipeError, match="generated/structured has no classes to train on") as caught:
        train_donor(recipe(task__dataset="generated/structured", task__val="null"), tmp_path / "out")
    assert "labelled images" in caught.value.hint
    (images / "train" / "b").rename(images.parent / "b")
    with pytest.raises(RecipeError, match="has one class to train on"):
        train_donor(recipe(task__dataset="folder", task__root=images, task__val="null"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_skip_entry_is_refused_before_the_training(recipe: Write, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(donors, "begin", None)
    with pytest.raises(RecipeError, match="`nosuch` matches no Linear of the donor"):
        train_donor(recipe(skip="[head, nosuch]"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_too_few_images(recipe: Write, tmp_path: Path):
    with pytest.raises(RecipeError, match="tiny/realdigits has 40 images and a batch is 50"):
        train_donor(recipe(train__batch_size=50), tmp_path / "out")


# The base


def test_a_base_that_is_not_there(recipe: Write, tmp_path: Path):
    with pytest.raises(StorageError, match=r"none\.safetensors does not exist"):
        train_donor(recipe(base__checkpoint="none.safetensors"), tmp_path / "out")


def test_a_base_without_a_tensor_of_the_model(recipe: Write, tmp_path: Path, pico_states):
    state = {name: value for name, value in pico_states["receiver"].items() if name != "fc_norm.bias"}
    save_file(state, tmp_path / "base.safetensors")
    with pytest.raises(IncompatibleError, match=r"the base has no tensor `fc_norm\.bias`"):
        train_donor(recipe(base__checkpoint="base.safetensors"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_base_of_a_deeper_model(recipe: Write, tmp_path: Path):
    with pytest.raises(IncompatibleError, match=r"holds `blocks\.1\.attn\.proj\.bias`, which vit_tiny"):
        train_donor(recipe(base__model_args=json.dumps({**PICO_ARGS, "depth": 1})), tmp_path / "out")


def test_the_fingerprint_is_of_all_that_is_read(recipe: Write, tmp_path: Path, pico_states):
    state = {name: value.copy() for name, value in pico_states["receiver"].items()}
    seen = []
    for change in (lambda: None, lambda: state["head.bias"].fill(7), lambda: state["fc_norm.bias"].fill(7)):
        change()
        save_file(state, tmp_path / "base.safetensors")
        seen.append(fingerprint(open_base(recipe(base__checkpoint="base.safetensors"))))
    assert seen[0] == seen[1] != seen[2]


def pretrained(path: Path, model: str) -> DonorRecipe:
    path.write_text(
        yaml.safe_dump(
            {"version": 1, "name": "x", "base": {"model": model, "pretrained": True}, "task": {"dataset": "tiny/lower"}}
        )
    )
    return load_donor_recipe(path)


def test_pretrained_weights_that_are_not_in_the_cache(tmp_path: Path, monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    made = pretrained(tmp_path / "donor.yaml", "vit_tiny_patch16_224.augreg_in21k")
    before = huggingface_hub.constants.HF_HUB_OFFLINE
    with pytest.raises(FetchError, match=r"pretrained weights of vit_tiny_patch16_224\.augreg_in21k cannot") as caught:
        open_base(made, offline=True)
    assert "--offline" in caught.value.hint
    assert before == huggingface_hub.constants.HF_HUB_OFFLINE


def test_a_model_without_pretrained_weights(tmp_path: Path):
    with pytest.raises(RecipeError, match="timm has no pretrained weights of `vit_giant_patch14_224`"):
        open_base(pretrained(tmp_path / "donor.yaml", "vit_giant_patch14_224"))


def test_pretrained_weights_come_without_a_head(tmp_path: Path, monkeypatch):
    import timm

    build = timm.create_model
    asked: list[dict[str, Any]] = []

    def fake(name: str, *, pretrained: bool, **options: Any) -> torch.nn.Module:
        asked.append({"pretrained": pretrained, **options})
        return build(name, pretrained=False, **options)

    monkeypatch.setattr(timm, "create_model", fake)
    base = open_base(pretrained(tmp_path / "donor.yaml", "vit_tiny_patch16_224.augreg_in21k"))
    assert {"pretrained": True, "num_classes": 0} in asked
    assert "blocks.0.attn.qkv.weight" in base.state
    assert not any(name.startswith("head.") for name in base.state)


# The rest of the world


def test_a_loss_that_leaves_the_numbers(recipe: Write, tmp_path: Path):
    with pytest.raises(RecipeError, match="the loss is nan after step"):
        train_donor(recipe(train__lr="1.0e+30", train__warmup_steps=0), tmp_path / "out")


def test_no_cuda_device(recipe: Write, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(IncompatibleError, match="there is no CUDA device here"):
        train_donor(recipe(train__device="cuda"), tmp_path / "out")


def test_a_disk_that_is_too_full_is_seen_before_the_training(recipe: Write, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    monkeypatch.setattr(donors, "begin", None)
    with pytest.raises(StorageError, match="the disk has 0 MB free"):
        train_donor(recipe(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_finished_donor_is_replaced_by_force_only(recipe: Write, tmp_path: Path):
    train_donor(recipe(), tmp_path / "out")
    before = (tmp_path / "out" / "fp.safetensors").read_bytes()
    with pytest.raises(StorageError, match="holds a finished donor"):
        train_donor(recipe(), tmp_path / "out")
    with pytest.raises(RecipeError, match="bundled task"):
        train_donor(recipe(task__dataset="tiny/none"), tmp_path / "out", force=True)
    assert (tmp_path / "out" / "fp.safetensors").read_bytes() == before
    train_donor(recipe(train__seed=1), tmp_path / "out", force=True)
    assert (tmp_path / "out" / "fp.safetensors").read_bytes() != before


def test_top1_counts_a_last_smaller_batch(recipe: Write, pico_states):
    data = open_dataset(DatasetSpec("tiny/realdigits", "val", limit=65), DataConfig())
    share = top1(pico_states["receiver"], data, recipe(), grid=False)
    assert round(share * 65, 6) == int(round(share * 65, 6))
    assert 0.0 <= share < 0.5


@pytest.mark.slow
def test_a_vector_brings_moments_where_they_are_asked_for(recipe: Write, tmp_path: Path):
    plain = train_donor(recipe(), tmp_path / "plain")
    assert plain["recipe"]["moments"] == 0
    assert QuantizationVector.open(tmp_path / "plain" / "vector.safetensors").moments() is None
    made = recipe(moments=20)
    train_donor(made, tmp_path / "with")
    vector = QuantizationVector.open(tmp_path / "with" / "vector.safetensors")
    moments = vector.moments()
    assert moments is not None
    model = create(PICO_MODEL, 10, PICO_ARGS)
    assert set(moments) == set(quantized_linears(model, ("head",)))
    for matrix in moments.values():
        assert np.allclose(matrix, matrix.T, atol=1e-5)
        assert np.linalg.eigvalsh(matrix.astype(np.float64)).min() > -1e-4
    assert vector.header.base == sha256_file(Path(str(made.base.checkpoint)))
