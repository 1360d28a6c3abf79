"""How a donor stands to a receiver, controls of equal norm, and images that are decoded once and never shared."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pico import PICO_ARGS, PICO_MODEL
from PIL import Image
from safetensors.numpy import load_file, save_file

from qvec_deploy.datasets import DataConfig, DatasetSpec, tiny
from qvec_deploy.errors import RecipeError
from qvec_deploy.models import create
from qvec_deploy.research.analyze.analysis import analyze
from qvec_deploy.research.analyze.analysis_inputs import AnalysisRequest
from qvec_deploy.research.study import task_images as decoded
from qvec_deploy.research.study.cell import compute_cell
from qvec_deploy.research.study.cell_network import with_norms
from qvec_deploy.research.study.cell_values import CellRequest, DonorFiles, TaskData
from qvec_deploy.research.study.task_images import choosing_images, generated_images, judging_images
from qvec_deploy.research.study.transferability import class_prototypes, cosine, prototype_cosine
from qvec_deploy.tensors import Scheme
from qvec_deploy.vectors.extract import extract_vector

State = dict[str, np.ndarray]
GRID = Scheme(3, "channel")
DIGITS = TaskData("digits", "tiny/realdigits")
CONFIG = DataConfig()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    decoded._decode.cache_clear()
    yield
    torch.set_num_threads(threads)


def _near(state: State, seed: int, size: float = 0.02) -> State:
    generator = np.random.default_rng(seed)
    return {name: (v + generator.normal(0, size, v.shape)).astype(np.float32) for name, v in state.items()}


@pytest.fixture
def request_(tmp_path: Path, pico_states: dict[str, State]) -> CellRequest:
    """Two donors: one whose vector is the receiver's own, and one that has nothing to do with it."""
    base, receiver = _near(pico_states["receiver"], 1), pico_states["receiver"]
    own_qat, fp = _near(receiver, 2), _near(base, 3)
    files = {"base": base, "receiver": receiver, "own_qat": own_qat, "twin": receiver, "other": fp}
    for name, state in files.items():
        save_file(state, tmp_path / f"{name}.safetensors")
    for task, pair in {"twin": (receiver, own_qat), "other": (fp, _near(fp, 4))}.items():
        extract_vector(*pair, tmp_path / f"vector_{task}.safetensors", scheme=GRID, skip=("head",), task=task, seed=0)
    data = {"twin": DIGITS, "other": None}
    donors = tuple(
        DonorFiles(task, str(tmp_path / f"vector_{task}.safetensors"), str(tmp_path / f"{task}.safetensors"), where)
        for task, where in data.items()
    )
    return CellRequest(
        model=PICO_MODEL,
        model_args=dict(PICO_ARGS),
        skip=("head",),
        grid=GRID,
        seed=0,
        receiver=DIGITS,
        fp=str(tmp_path / "receiver.safetensors"),
        own_qat=str(tmp_path / "own_qat.safetensors"),
        base=str(tmp_path / "base.safetensors"),
        donors=donors,
        methods=(),
        inputs=(),
        lambdas=(1.0,),
        controls=(),
        selecting=16,
        testing=8,
    )


@pytest.mark.slow
def test_relations(request_: CellRequest) -> None:
    found = compute_cell(request_).relations
    twin, other = found["twin"], found["other"]
    assert twin.prototype_cosine == pytest.approx(1.0) and other.prototype_cosine is None  # its images are not known
    assert twin.task_vector_cosine == pytest.approx(1.0) and abs(other.task_vector_cosine or 1) < 0.9
    assert twin.vector_cosine == pytest.approx(1.0, abs=1e-5) and abs(other.vector_cosine or 1) < 0.1
    assert twin.predicted_share == pytest.approx(1.0, abs=1e-4)


@pytest.mark.slow
def test_predicted_shares_are_those_of_an_analysis(request_: CellRequest) -> None:
    analysis = analyze(
        AnalysisRequest(
            receiver=request_.fp,
            receiver_qat=str(request_.own_qat),
            model=PICO_MODEL,
            data=DatasetSpec(DIGITS.dataset, "val", limit=16),
            vectors=tuple(donor.vector for donor in request_.donors),
            model_args=PICO_ARGS,
        )
    )
    expected = [donor.alignments["gauss_newton"].cos_squared for donor in analysis.donors]
    found = compute_cell(request_).relations
    assert [found[donor.task].predicted_share for donor in request_.donors] == pytest.approx(expected, rel=1e-4)


def test_a_donor_in_other_coordinates_is_said_to_be(request_: CellRequest) -> None:
    """Its neurons permuted, a donor is the same function, and its vector another."""
    permutation = np.random.default_rng(5).permutation(len(load_file(request_.fp)["blocks.0.mlp.fc1.weight"]))

    def permuted(path: str) -> State:
        state = load_file(path)
        for name in ("blocks.0.mlp.fc1.weight", "blocks.0.mlp.fc1.bias"):
            state[name] = np.ascontiguousarray(state[name][permutation])
        state["blocks.0.mlp.fc2.weight"] = np.ascontiguousarray(state["blocks.0.mlp.fc2.weight"][:, permutation])
        return state

    twin, other = request_.donors
    extract_vector(
        permuted(twin.fp),
        permuted(str(request_.own_qat)),
        Path(twin.vector),
        scheme=GRID,
        skip=("head",),
        task="twin",
        seed=0,
    )
    assert compute_cell(replace(request_, donors=(other,))).relations["other"].apart is None
    found = compute_cell(replace(request_, donors=(twin,))).relations["twin"].apart
    assert found == "the receiver is not in its donor's coordinates: permutation of MLP neurons in blocks.0.mlp.fc1"


def test_a_donors_images_are_named_by_the_donor(request_: CellRequest) -> None:
    unknown = replace(request_.donors[1], data=TaskData("other", "tiny/nothing"))
    with pytest.raises(RecipeError, match="donor other: there is no bundled task"):
        compute_cell(replace(request_, donors=(unknown,)))


def test_cosines_of_prototypes() -> None:
    receiver, donor = np.array([[2.0, 0.0], [0.0, 3.0]]), np.array([[1.0, 1.0], [0.0, -1.0], [1.0, 0.0]])
    assert prototype_cosine(receiver, donor) == pytest.approx((1.0 + 0.5**0.5) / 2)
    assert prototype_cosine(donor, receiver) == pytest.approx((0.5**0.5 + 0.0 + 1.0) / 3)


def test_prototypes_are_means_of_features_of_norm_1(request_: CellRequest, pico_states: dict[str, State]) -> None:
    base = _near(pico_states["receiver"], 1)
    model = create(PICO_MODEL, 10, PICO_ARGS)
    model.load_state_dict({name: torch.from_numpy(value) for name, value in base.items()})
    images = choosing_images(DIGITS, CONFIG, 10, 16, None)
    with torch.inference_mode():
        batch = torch.from_numpy(np.concatenate(images.batches))
        features = model.forward_head(model.forward_features(batch), pre_logits=True).double().numpy()  # type: ignore
    unit = features / np.linalg.norm(features, axis=1)[:, None]
    by_hand = [unit[images.labels == label].mean(axis=0) for label in sorted(set(images.labels.tolist()))]
    args = b'{"depth":2,"embed_dim":32,"global_pool":"avg","img_size":32,"num_heads":2,"patch_size":8}'
    found = class_prototypes(PICO_MODEL, args, str(request_.base), 0, CONFIG, DIGITS, 16)
    np.testing.assert_allclose(found, by_hand, rtol=1e-4, atol=1e-6)


def test_cosine_of_vectors() -> None:
    first = {"a": np.array([1.0, 0.0], np.float32), "b": np.array([[1.0]], np.float32)}
    second = {"b": np.array([[1.0]], np.float32), "a": np.array([0.0, 1.0], np.float32)}
    assert cosine(first, second) == pytest.approx(0.5)
    assert cosine(first, {name: 0 * value for name, value in second.items()}) is None


def test_controls_have_the_vectors_norms() -> None:
    generator = np.random.default_rng(0)
    rho = {name: generator.normal(0, 0.1, (6, 5)).astype(np.float32) for name in ("a", "b")}
    moved = {"a": generator.normal(0, 3, (6, 5)).astype(np.float32)}
    scaled = with_norms(moved, rho)
    np.testing.assert_allclose(scaled["a"] / np.linalg.norm(scaled["a"]), moved["a"] / np.linalg.norm(moved["a"]), 1e-5)
    assert not scaled["b"].any()  # what the other change leaves alone stays
    assert np.linalg.norm(scaled["a"]) == pytest.approx(np.linalg.norm(rho["a"]), rel=1e-5)


def test_images_are_decoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    take = tiny.TinyDataset.take
    monkeypatch.setattr(tiny.TinyDataset, "take", lambda self, rows: taken.append(len(rows)) or take(self, rows))
    first, again = (judging_images(DIGITS, CONFIG, 10, 20) for _ in range(2))
    assert taken == [20]
    np.testing.assert_array_equal(first.batches[0], again.batches[0])
    assert len(judging_images(DIGITS, CONFIG, 10, 30)) == 30 and taken == [20, 30]


def test_what_judges_does_not_choose() -> None:
    same_split = replace(DIGITS, selecting_split="test")
    testing = judging_images(same_split, CONFIG, 10, 24)
    selecting = choosing_images(same_split, CONFIG, 10, 40, testing)
    judges = {image.tobytes() for batch in testing.batches for image in batch}
    assert len(selecting) == 16
    assert not judges & {image.tobytes() for batch in selecting.batches for image in batch}
    with pytest.raises(RecipeError, match="digits: tiny/realdigits test has 0 images that are no copies"):
        choosing_images(same_split, CONFIG, 10, 24, testing)


def test_copies_choose_once(tmp_path: Path) -> None:
    for number in range(20):
        pixels = np.random.default_rng(number // 2).integers(0, 255, (32, 32, 3), np.uint8)
        place = tmp_path / "val" / f"class{number % 2}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place / f"{number}.png")
    found = choosing_images(TaskData("folder", "folder", str(tmp_path)), CONFIG, 2, 20, None)
    assert len(found) == len(found.labels) == 10


def test_generated_images() -> None:
    batches = generated_images(CONFIG, 60)
    assert [len(batch) for batch in batches] == [50, 10]
