"""A study's nodes: how many, what decides each, and what its images and released files must be."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import study_recipes
from pico import PICO_ARGS, PICO_MODEL
from study_recipes import hub_study, write_hub, write_study

from qvec_deploy.errors import FetchError, IncompatibleError, IntegrityError, QvecError, RecipeError
from qvec_deploy.study.graph import build_graph
from qvec_deploy.study.nodes import KINDS, Node
from qvec_deploy.study.presets import BACKBONES
from qvec_deploy.study.published import checkpoint_pattern, find, require_model
from qvec_deploy.study.recipe import load_study
from qvec_deploy.study.store import Store
from qvec_deploy.tensors import Scheme


def _nodes(tmp_path: Path, **changes: Any) -> list[Node]:
    groups = build_graph(load_study(write_study(tmp_path, **changes)), Store(tmp_path / "out"))
    return [node for group in groups for node in group]


def _keys(nodes: list[Node], kind: str) -> list[str]:
    return [node.key for node in nodes if node.kind == kind]


def test_parents_come_first_and_nothing_is_there_twice(tmp_path: Path) -> None:
    nodes = _nodes(tmp_path, seeds=2, grids=[{"bits": 3}, {"bits": 2}])
    assert {kind: len(_keys(nodes, kind)) for kind in KINDS} == {"base": 1, "fp": 4, "qat": 8, "vector": 8, "cell": 8}
    seen: set[str] = set()
    for node in nodes:
        assert set(node.parents) <= seen
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
        ({"train__save_every": 3}, set()),
        ({"train__workers": 1}, set()),
        ({"name": "other"}, set()),
    ],
    ids=lambda value: str(value)[:30],
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
    other = Node(node.kind, node.about, node.decides, node.settings, versions={**node.versions, "torch": "0"})
    assert other.key != node.key


def test_a_base_from_a_file_is_known_by_its_bytes(tmp_path: Path, pico_folder: Path) -> None:
    model = {**study_recipes.VALUES["models"][0], "base": {"checkpoint": str(pico_folder / "fp.safetensors")}}
    nodes = _nodes(tmp_path, models=[model])
    assert not _keys(nodes, "base") and nodes[0].parents == ()
    model["base"] = {"checkpoint": str(pico_folder / "qat.safetensors")}
    assert not {node.key for node in nodes} & {node.key for node in _nodes(tmp_path, models=[model])}


def test_gpus_are_asked_for_where_the_recipe_trains_on_them(tmp_path: Path) -> None:
    nodes = _nodes(tmp_path, train__device="cuda")
    assert {node.kind for node in nodes if node.gpus} == {"base", "fp", "qat"}
    assert nodes[0].job("out").gpus == 1


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
    groups = build_graph(load_study(hub_study(tmp_path, hub, models=models)), Store(tmp_path / "out"))
    assert [{node.about["model"] for node in group} for group in groups] == [{"one"}, {"two"}]
    assert [node.kind for node in groups[0]] == ["fp", "fp", "qat", "qat", "vector", "vector", "cell", "cell"]
    before = [node.key for node in groups[0]]
    os.utime(find(str(hub), _pattern("lower")), ns=(1, 1))  # another file now, for all that is known
    after = [node.key for node in build_graph(load_study(tmp_path / "study.yaml"), Store(tmp_path / "out"))[0]]
    assert [old == new for old, new in zip(before, after, strict=True)] == [
        False, True, True, True, False, True, False, False,
    ]  # fmt: skip
