"""A study's nodes: how many, what decides each, and what its images and released files must be."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import study_recipes
from fake_datasets import fake_datasets
from pico import PICO_ARGS, PICO_MODEL
from PIL import Image
from study_recipes import hub_study, write_hub, write_study

from qvec_deploy.errors import FetchError, IncompatibleError, IntegrityError, QvecError, RecipeError, StorageError
from qvec_deploy.research.study.presets import BACKBONES
from qvec_deploy.research.study.released import checkpoint_pattern, find, pinned, require_model
from qvec_deploy.research.study.study_graph import build_graph
from qvec_deploy.research.study.study_node import KINDS, StudyNode
from qvec_deploy.research.study.study_recipe import load_study
from qvec_deploy.tensors import Scheme


def _nodes(tmp_path: Path, **changes: Any) -> list[StudyNode]:
    groups = build_graph(load_study(write_study(tmp_path, **changes)))
    return [node for group in groups for node in group]


def _keys(nodes: list[StudyNode], kind: str) -> list[str]:
    return [node.key for node in nodes if node.kind == kind]


def test_parents_come_first_and_nothing_is_there_twice(tmp_path: Path) -> None:
    nodes = _nodes(tmp_path, seeds=2, grids=[{"bits": 3}, {"bits": 2}])
    assert {kind: len(_keys(nodes, kind)) for kind in KINDS} == {"base": 1, "fp": 4, "qat": 8, "vector": 8, "cell": 8}
    seen: set[str] = set()
    for node in nodes:
        assert set(node.task.parents) <= seen
        seen.add(node.id)
    assert len(seen) == len(nodes) == len({node.key for node in nodes})


@pytest.mark.parametrize(
    ("changes", "changed"),
    [
        ({"lambdas": [0.5]}, {"cell"}),
        ({"testing": 33}, {"cell"}),
        ({"train__lr": 1e-4}, {"fp", "qat", "vector", "cell"}),
        ({"grids": [{"bits": 3, "granularity": "tensor", "clip_every": 7}]}, {"qat", "vector", "cell"}),
        ({"inputs": ["images", "moments"], "methods": ["gptq"], "moments": 8}, {"vector", "cell"}),
        ({"models": [{**study_recipes.VALUES["models"][0], "name": "other"}]}, set()),
        ({"train__save_every": 3}, set()),
        ({"train__workers": 1}, set()),
        ({"name": "other"}, set()),
    ],
    ids=lambda value: " ".join(sorted(value))[:30] if isinstance(value, set) else str(value)[:30],
)
def test_a_key_has_all_that_decides_a_result_and_nothing_else(
    tmp_path: Path, changes: dict[str, Any], changed: set[str]
) -> None:
    before, after = _nodes(tmp_path), _nodes(tmp_path, **changes)
    assert {kind for kind in KINDS if _keys(before, kind) != _keys(after, kind)} == changed


def test_the_base_and_the_packages_decide_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {node.key for node in _nodes(tmp_path)}
    model = {**study_recipes.VALUES["models"][0], "base": {"train": {"dataset": "tiny/pairs", "steps": 5}}}
    assert not before & {node.key for node in _nodes(tmp_path, models=[model])}
    node = _nodes(tmp_path)[0]
    other = dataclasses.replace(node, versions={**node.versions, "torch": "0"})
    assert other.key != node.key


def test_a_base_from_a_file_is_known_by_its_bytes(tmp_path: Path, pico_folder: Path) -> None:
    model = {**study_recipes.VALUES["models"][0], "base": {"checkpoint": str(pico_folder / "fp.safetensors")}}
    nodes = _nodes(tmp_path, models=[model])
    assert not _keys(nodes, "base") and nodes[0].task.parents == ()
    model["base"] = {"checkpoint": str(pico_folder / "qat.safetensors")}
    assert not {node.key for node in nodes} & {node.key for node in _nodes(tmp_path, models=[model])}


def test_gpus_are_asked_for_where_the_recipe_trains_on_them(tmp_path: Path) -> None:
    nodes = _nodes(tmp_path, train__device="cuda")
    assert {node.kind for node in nodes if node.gpus} == {"base", "fp", "qat"}
    assert nodes[0].job(Path("out")).gpus == 1


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"tasks": [{"name": "a", "dataset": "tiny/lowre"}] * 1 + [{"name": "b", "dataset": "tiny/upper"}]},
         RecipeError, "task a: there is no bundled task `tiny/lowre`"),
        ({"tasks": [{"name": "a", "dataset": "tiny/lower", "classes": 9}, {"name": "b", "dataset": "tiny/upper"}]},
         RecipeError, "task a: tiny/lower has 26 classes, the study says 9"),
        ({"tasks": [{"name": "a", "dataset": "folder", "root": "none"}, {"name": "b", "dataset": "tiny/upper"}]},
         QvecError, "task a: .*no such folder"),
        ({"models": [{"timm": "vit_teeny_patch16_224"}]}, RecipeError, "no model `vit_teeny"),
        ({"models": [{**study_recipes.VALUES["models"][0], "skip": ["haed"]}]},
         RecipeError, "skip `haed` matches none"),
        ({"models": [{**study_recipes.VALUES["models"][0], "base": {"checkpoint": "gone.pt"}}]},
         QvecError, "base of pico: .*gone.pt does not exist"),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_refusals(tmp_path: Path, changes: dict[str, Any], kind: type[QvecError], message: str) -> None:
    with pytest.raises(kind, match=message):
        _nodes(tmp_path, **changes)


def _pico(**changes: Any) -> dict[str, Any]:
    return {**study_recipes.VALUES["models"][0], **changes}


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"train__augment": "timm"}, RecipeError, "task lower: tiny/lower is drawn with its own jitter"),
        ({"train__warmup_steps": 6}, RecipeError, "task lower: 6 steps with 6 steps of warm-up"),
        ({"train__batch_size": 4001}, RecipeError, "task lower: tiny/lower has 4000 images and a batch is 4001"),
        ({"grids": [{"bits": 3, "granularity": "group", "group_size": 24}]},
         RecipeError, r"model pico: blocks\.0\.attn\.qkv: rows of 32 weights are not a multiple of group_size 24"),
        ({"models": [_pico(timm="resnet18", model_args={}, skip=["fc"])]},
         IncompatibleError, r"model pico: it has BatchNorm \(`bn1\.running_mean`\)"),
        ({"models": [_pico(timm="convnext_atto", model_args={"conv_mlp": True}, skip=["head"])]},
         IncompatibleError, "model pico: it has no Linear to quantize outside head"),
        ({"tasks": [{"name": "a", "dataset": "generated/structured"}, {"name": "b", "dataset": "tiny/upper"}]},
         RecipeError, "task a: generated/structured does not say that it has two classes"),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_what_training_or_a_cell_would_refuse_is_refused_before_anything_is_made(
    tmp_path: Path, changes: dict[str, Any], kind: type[QvecError], message: str
) -> None:
    with pytest.raises(kind, match=message):
        _nodes(tmp_path, **changes)


def _folder(root: Path, *splits: str) -> dict[str, Any]:
    for number, split in enumerate(splits):
        for label in "xy":
            for row in range(9):
                path = root / split / label / f"{row}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.full((32, 32, 3), 20 * row + number, np.uint8)).save(path)
    return {"name": root.name, "dataset": "folder", "root": str(root)}


def test_test_images_are_never_trained_on(tmp_path: Path, hub: Path) -> None:
    parted, whole = _folder(tmp_path / "parted", "train", "val", "test"), _folder(tmp_path / "lower", "")
    other = {"name": "realdigits", "dataset": "tiny/realdigits"}
    train = {**study_recipes.VALUES["train"], "augment": "timm"}
    parted_only = [parted, {**parted, "name": "again"}]
    assert len(_keys(_nodes(tmp_path, tasks=parted_only, train=train), "cell")) == 2
    for dataset in ("folder", "torch/image_folder"):
        with pytest.raises(RecipeError, match="task lower: its images of train and of test are the same"):
            _nodes(tmp_path, tasks=[{**whole, "dataset": dataset}, other])
    # Where nothing is trained, one folder may choose and judge: no image does both.
    found = hub_study(tmp_path, hub, tasks=[whole, other])
    assert len(build_graph(load_study(found))[0]) == 8


def test_splits_with_other_classes_are_refused(tmp_path: Path) -> None:
    """As many classes are not the same ones: their labels would be."""
    parted = _folder(tmp_path / "parted", "train", "val", "test")
    (tmp_path / "parted" / "test" / "y").rename(tmp_path / "parted" / "test" / "z")
    other = {"name": "realdigits", "dataset": "tiny/realdigits"}
    with pytest.raises(RecipeError, match="test have other classes: y, z"):
        _nodes(tmp_path, tasks=[parted, other])


def test_the_split_that_chooses_of_a_donor_decides_the_cells_of_others(tmp_path: Path) -> None:
    def key(choosing: str, judging: str) -> str:
        donor = {"name": "a", "dataset": "tiny/lower", "selecting_split": choosing, "testing_split": judging}
        nodes = _nodes(tmp_path, tasks=[donor, {"name": "b", "dataset": "tiny/upper"}])
        return next(node.key for node in nodes if node.kind == "cell" and node.about["task"] == "b")

    assert key("val", "test") != key("test", "val")  # the same images: the donor's prototypes are of others


def _on_hub(name: str, **changes: Any) -> dict[str, Any]:
    return {"name": name, "dataset": f"hfds/who/{name}", "selecting_split": "train", **changes}


def test_images_on_the_hub_are_known_by_their_commit_and_not_downloaded(tmp_path: Path) -> None:
    recipe = load_study(write_study(tmp_path, tasks=[_on_hub("a"), _on_hub("b")], train__augment="timm"))
    with fake_datasets({"who/a": {"train": 20, "test": 20}, "who/b": {"train": 20, "test": 20}}) as fake:
        before = build_graph(recipe)[0]
        assert not fake.loaded and fake.looked == ["who/a", "who/b"] and not any(fake.offline)
        assert {node.task.decides()["classes"] for node in before if node.kind == "vector"} == {2}
        again = build_graph(recipe, offline=True)[0]
        assert all(fake.offline[2:]) and [node.key for node in again] == [node.key for node in before]
        fake.commit = "another"
        after = build_graph(recipe)[0]
        same = {one.kind for one, other in zip(before, after, strict=True) if one.key == other.key}
        assert same == {"base"}


def test_images_on_the_hub_that_cannot_be(tmp_path: Path) -> None:
    with fake_datasets({"who/a": {"train": 4, "test": 20}}, classes={"who/a": None}):
        with pytest.raises(RecipeError, match="hfds/who/a does not say that it has two classes"):
            _nodes(tmp_path, tasks=[_on_hub("a"), _on_hub("b")])
        with pytest.raises(RecipeError, match="task a: hfds/who/a has 4 images and a batch is 8"):
            _nodes(tmp_path, tasks=[_on_hub("a", classes=2), _on_hub("b", dataset="hfds/who/a", classes=2)])
        with pytest.raises(FetchError, match="task b: hfds/who/b: Dataset"):
            _nodes(tmp_path, tasks=[_on_hub("b"), _on_hub("a")])


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hub(tmp_path_factory.mktemp("hub"), {"lower": 26, "realdigits": 10})


def _pattern(task: str, scheme: Scheme | None = None, epochs: int | None = None) -> str:
    return checkpoint_pattern(PICO_MODEL, task, epochs, 2038, scheme, ("head",))


def test_released_files_are_found_in_both_layouts(hub: Path) -> None:
    grid = Scheme(3, "channel")
    plain, multiplied = find(str(hub), _pattern("lower")), find(str(hub), _pattern("realdigits"))
    assert "mult=1" not in plain.parts and "mult=1" in multiplied.parts
    assert "qat=bits=3_gran=channel_skip=head" in find(str(hub), _pattern("realdigits", grid)).parts
    assert find(str(hub), _pattern("lower", epochs=7)).name == "classifier_epoch_7.pt"
    assert {path.name for path in (plain, multiplied)} == {"classifier_epoch_7.pt"}


def test_a_released_file_that_is_missing_or_there_twice(hub: Path, tmp_path: Path) -> None:
    for task, scheme, epochs in (("upper", None, None), ("lower", Scheme(2, "channel"), None), ("lower", None, 8)):
        with pytest.raises(FetchError, match="has 0 files"):
            find(str(hub), _pattern(task, scheme, epochs))
    both = write_hub(tmp_path, {"a": 2, "b": 2})
    folder = both / "checkpoints/vision/ilharco_timm_supervised/fp" / PICO_MODEL
    (one,), (other,) = (folder / "a").iterdir(), (folder / "b").iterdir()
    (other / "mult=1").rename(one / "mult=1")
    with pytest.raises(FetchError, match="has 2 files"):
        find(str(both), _pattern("a"))


def test_one_file_of_the_repository_is_fetched_and_never_a_pickled_head(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = (
        "checkpoints/vision/ilharco_timm_supervised/fp/vit_base_patch16_224_orig_in21k/DTD/optim=x/mult=1/seed=2038"
    )
    names = [f"{folder}/classifier_epoch_76.pt", f"{folder}/head_epoch_76.pt", folder.replace("DTD", "STL10") + "/a.pt"]
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda self, repository, revision: names)
    chosen = []
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda r, path, **kw: chosen.append(path) or "here")
    pattern = checkpoint_pattern(BACKBONES["vit_b"], "DTD", 76, 2038, None, ("head",))
    assert find("hf://gladia/qat-transfer-timm@main", pattern) == Path("here")
    assert chosen == [names[0]]


COMMITS = ["1" * 40, "2" * 40]


@pytest.fixture
def at_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the Hub answers next to whoever asks for a commit; an empty cache."""
    answers: list[Any] = []

    def repo_info(self: Any, repository: str, revision: str) -> Any:
        assert (repository, revision) == ("who/what", "main")
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return SimpleNamespace(sha=answer)

    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", repo_info)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return answers


def test_a_branch_on_the_hub_is_the_commit_that_it_stands_for(at_hub: list[Any]) -> None:
    at_hub += COMMITS
    assert pinned("hf://who/what") == f"hf://who/what@{COMMITS[0]}"
    assert pinned("hf://who/what@main/some/file.pt") == f"hf://who/what@{COMMITS[1]}/some/file.pt"
    # Offline, and where the Hub does not answer, it is the last that was heard of.
    assert pinned("hf://who/what@main", offline=True) == f"hf://who/what@{COMMITS[1]}"
    at_hub.append(ConnectionError("no route"))
    assert pinned("hf://who/what@main") == f"hf://who/what@{COMMITS[1]}"
    # What is pinned already, or is no address, is asked of nobody.
    for path in (f"hf://who/what@{COMMITS[0]}/x.pt", "/some/folder"):
        assert pinned(path) == path


def test_a_branch_that_nobody_knows(at_hub: list[Any]) -> None:
    at_hub.append(ConnectionError("no route\nto it"))
    with pytest.raises(FetchError, match=r"hf://who/what@main: no route$"):
        pinned("hf://who/what@main")
    with pytest.raises(FetchError, match="not in the local cache"):
        pinned("hf://who/what@main", offline=True)
    for odd in ("hf://who", "hf://who/what@", "hf://who/what@a@b"):
        with pytest.raises(RecipeError, match="is not an address on the Hub"):
            pinned(odd)


def test_other_released_bytes_are_other_nodes(tmp_path: Path, at_hub: list[Any]) -> None:
    model = {"name": "pico", "timm": PICO_MODEL, "model_args": PICO_ARGS}
    models = [{**model, "base": {"checkpoint": "hf://who/what@main/base.pt"}}]
    recipe = load_study(hub_study(tmp_path, tmp_path, models=models, checkpoints={"hub": "hf://who/what@main"}))
    keys = []
    for commit in COMMITS:
        at_hub += [commit] * 2
        nodes = build_graph(recipe)[0]
        assert not at_hub  # the hub is asked once for the fine-tunes, once for the base
        assert nodes[0].task.hub == f"hf://who/what@{commit}"
        assert nodes[-1].task.base.path == f"hf://who/what@{commit}/base.pt"
        keys.append([node.key for node in nodes])
    assert not set(keys[0]) & set(keys[1])


def test_a_hub_folder_that_is_not_there(tmp_path: Path) -> None:
    recipe = load_study(hub_study(tmp_path, tmp_path / "gone"))
    with pytest.raises(StorageError, match="gone: no such folder"):
        build_graph(recipe)


def test_released_files_must_fit_model_and_task(hub: Path) -> None:
    path = find(str(hub), _pattern("lower"))
    require_model(path, PICO_MODEL, PICO_ARGS, 26)
    with pytest.raises(IncompatibleError, match="a head for 26 classes, and the task has 10"):
        require_model(path, PICO_MODEL, PICO_ARGS, 10)
    with pytest.raises(IncompatibleError, match=r"`blocks\.2"):
        require_model(path, PICO_MODEL, {**PICO_ARGS, "depth": 3}, 26)
    with pytest.raises(IntegrityError, match="pickled code"):
        require_model(path.parent / "head_epoch_7.pt", PICO_MODEL, PICO_ARGS, 26)


def test_released_backbones_are_taken_one_after_another(hub: Path, tmp_path: Path) -> None:
    models = [{"name": name, "timm": PICO_MODEL, "model_args": PICO_ARGS} for name in ("one", "two")]
    groups = build_graph(load_study(hub_study(tmp_path, hub, models=models)))
    assert [{node.about["model"] for node in group} for group in groups] == [{"one"}, {"two"}]
    assert [node.kind for node in groups[0]] == ["fp", "fp", "qat", "qat", "vector", "vector", "cell", "cell"]
    before = [node.key for node in groups[0]]
    os.utime(find(str(hub), _pattern("lower")), ns=(1, 1))  # another file now, for all that is known
    after = [node.key for node in build_graph(load_study(tmp_path / "study.yaml"))[0]]
    assert [old == new for old, new in zip(before, after, strict=True)] == [
        False, True, True, True, False, True, False, False,
    ]  # fmt: skip
