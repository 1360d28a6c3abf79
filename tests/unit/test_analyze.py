"""The analysis as a whole, on a pico receiver: its numbers, its table, its document, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from pico import PICO_ARGS, PICO_CLASSES, PICO_MODEL
from PIL import Image
from safetensors.numpy import save_file

from qvec_deploy.cli.analyze_command import analyze as command
from qvec_deploy.datasets import DataConfig, DatasetSpec, open_dataset
from qvec_deploy.errors import IncompatibleError, IntegrityError, QvecError, RecipeError, StorageError
from qvec_deploy.models import create
from qvec_deploy.quantize.reference import quantize
from qvec_deploy.research.analyze.analysis import METRICS, Analysis, analysis_document, analyze
from qvec_deploy.research.analyze.analysis_inputs import AnalysisRequest
from qvec_deploy.research.analyze.response import GRID
from qvec_deploy.tensors import Scheme
from qvec_deploy.vectors.extract import extract_vector

pytestmark = pytest.mark.slow

State = dict[str, np.ndarray]

SCHEME = Scheme(3, "channel")
COUNT = 24
DIGITS = DatasetSpec("tiny/realdigits", "val", limit=COUNT)  # ten classes, as the pico model has


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _on_grid(state: State) -> State:
    linears = [n for n, v in state.items() if n.startswith("blocks.") and n.endswith("weight") and v.ndim == 2]
    return state | {name: quantize(state[name], SCHEME).dequantize() for name in linears}


def _vector(path: Path, fp: State, qat: State, scheme: Scheme = SCHEME, skip: tuple[str, ...] = ("head",)) -> str:
    extract_vector(fp, qat, path, scheme=scheme, skip=skip, task=path.stem, seed=0)
    return str(path)


@pytest.fixture(scope="module")
def states(pico_states: dict[str, State]) -> dict[str, State]:
    """A receiver, what stands in for its QAT (weights pushed a little against their rounding errors), and a donor."""
    receiver = pico_states["receiver"]
    rng = np.random.default_rng(11)
    grid = _on_grid(receiver)
    qat = {name: (value + 0.3 * (value - grid[name])).astype(np.float32) for name, value in receiver.items()}
    qat |= {name: value + np.float32(0.01) for name, value in receiver.items() if name.endswith("norm1.bias")}
    noise = {name: rng.normal(0, 0.01, value.shape).astype(np.float32) for name, value in receiver.items()}
    donor = {name: receiver[name] + np.float32(0.5) * (qat[name] - receiver[name]) + noise[name] for name in receiver}
    return {"receiver": receiver, "qat": qat, "donor": donor}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, states: dict[str, State]) -> Path:
    folder = tmp_path_factory.mktemp("analyze")
    for name in ("receiver", "qat"):
        save_file(states[name], folder / f"{name}.safetensors")
    _vector(folder / "own.safetensors", states["receiver"], states["qat"])
    _vector(folder / "donor.safetensors", states["receiver"], states["donor"])
    return folder


@pytest.fixture(scope="module")
def asked(folder: Path) -> AnalysisRequest:
    return AnalysisRequest(
        receiver=str(folder / "receiver.safetensors"),
        receiver_qat=str(folder / "qat.safetensors"),
        model=PICO_MODEL,
        model_args=PICO_ARGS,
        vectors=(str(folder / "own.safetensors"), str(folder / "donor.safetensors")),
        data=DIGITS,
        batch_size=10,
    )


@pytest.fixture(scope="module")
def analysis(asked: AnalysisRequest) -> Analysis:
    return analyze(asked)


@pytest.mark.parametrize("metric", METRICS)
def test_the_receivers_own_vector_is_its_own_best_donor(analysis: Analysis, metric: str) -> None:
    own, donor = analysis.donors
    assert own.alignments[metric].lambda_star == pytest.approx(1, rel=1e-5)
    assert own.alignments[metric].cos_squared == pytest.approx(1, rel=1e-5)
    assert own.response.share(1.0) == 1.0
    assert own.response.curve[1.0] == own.response.own
    other = donor.alignments[metric].cos_squared
    assert other is not None and other < 0.99


def test_euclid_is_the_plain_inner_product(analysis: Analysis, states: dict[str, State]) -> None:
    backbone = [name for name in states["receiver"] if not name.startswith("head.")]
    own, donor = (
        np.concatenate([(states[which][n] - states["receiver"][n]).ravel() for n in backbone]).astype(np.float64)
        for which in ("qat", "donor")
    )
    found = analysis.donors[1].alignments["euclidean"]
    assert found.lambda_star == pytest.approx(own @ donor / (donor @ donor), rel=1e-5)
    assert found.cos_squared == pytest.approx((own @ donor) ** 2 / ((donor @ donor) * (own @ own)), rel=1e-5)


@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])
def test_what_is_measured_is_the_patched_receiver_on_the_grid(
    analysis: Analysis, states: dict[str, State], lam: float
) -> None:
    """Recomputed with the reference quantizer and a network of its own."""
    receiver, donor = states["receiver"], states["donor"]
    rho = {name: donor[name] - receiver[name] for name in receiver if not name.startswith("head.")}
    patched = receiver | {name: receiver[name] + np.float32(lam) * value for name, value in rho.items()}
    images, labels = open_dataset(DIGITS, DataConfig()).take(np.arange(COUNT))
    logits = []
    for state in (receiver, _on_grid(patched)):
        model = create(PICO_MODEL, PICO_CLASSES, PICO_ARGS)
        model.load_state_dict({name: torch.tensor(value) for name, value in state.items()})
        with torch.no_grad():
            logits.append(model(torch.from_numpy(images)).double())
    teacher, student = (values.log_softmax(dim=1) for values in logits)
    kl = float((teacher.exp() * (teacher - student)).sum(dim=1).mean())
    found = analysis.donors[1].response.curve[lam]
    assert found.kl == pytest.approx(kl, rel=1e-3)
    assert found.loss == found.kl
    assert found.top1 == float((logits[1].argmax(dim=1).numpy() == labels).mean())


def test_every_predicted_lambda_is_measured_beside_the_grid(analysis: Analysis) -> None:
    assert analysis.images == COUNT
    for donor in analysis.donors:
        assert set(GRID) <= set(donor.response.curve)
        assert donor.gradient.lambda_hat in donor.response.curve
        assert all(found.lambda_star in donor.response.curve for found in donor.alignments.values())
        assert list(donor.response.curve) == sorted(donor.response.curve)
        assert donor.response.share(1.0) is not None, "the stand-in for a QAT must be better than no QAT"


def test_two_runs_agree(asked: AnalysisRequest, analysis: Analysis) -> None:
    one = replace(asked, vectors=asked.vectors[1:])
    assert analyze(one).donors == analysis.donors[1:]


def test_float_weights_have_one_curvature_for_the_teacher_and_two_for_labels(asked: AnalysisRequest) -> None:
    teacher = analyze(replace(asked, at="fp"))
    labels = analyze(replace(asked, at="fp", loss="labels"))
    assert teacher.one_curvature and not labels.one_curvature
    for first, second in zip(teacher.donors, labels.donors, strict=True):
        assert first.alignments["hessian"] == first.alignments["gauss_newton"] == second.alignments["gauss_newton"]
        assert second.alignments["hessian"] != second.alignments["gauss_newton"]
        assert second.response.plain.loss > second.response.plain.kl == first.response.plain.kl
        assert second.gradient == first.gradient, "the estimate never looks at labels"


def test_curvature_depends_on_where_it_is_taken(asked: AnalysisRequest, analysis: Analysis) -> None:
    at_qat = analyze(replace(asked, at="qat"))
    assert at_qat.donors[1].alignments["euclidean"] == analysis.donors[1].alignments["euclidean"]
    assert at_qat.donors[1].alignments["gauss_newton"] != analysis.donors[1].alignments["gauss_newton"]
    assert at_qat.donors[1].gradient == analysis.donors[1].gradient


@pytest.mark.parametrize("dataset", ["tiny/upper", "generated/structured"])
def test_a_teacher_needs_no_labels(asked: AnalysisRequest, dataset: str) -> None:
    found = analyze(replace(asked, data=DatasetSpec(dataset, "val", limit=4), vectors=asked.vectors[:1]))
    assert not found.labelled
    assert all(point.top1 is None for point in found.donors[0].response.curve.values())
    assert "no label" not in json.dumps(analysis_document(found), allow_nan=False)


def _run(asked: AnalysisRequest, *more: str) -> Result:
    arguments = [f"--receiver={asked.receiver}", f"--receiver-qat={asked.receiver_qat}", f"--model={asked.model}"]
    arguments += [f"--model-arg={name}={value}" for name, value in asked.model_args.items()]
    arguments += [f"--vector={vector}" for vector in asked.vectors]
    arguments += [f"--data={asked.data.name}", f"--images={COUNT}", "--batch-size=10", *more]
    return CliRunner().invoke(command, arguments, catch_exceptions=True)


def test_the_document_has_every_number_and_every_setting(asked: AnalysisRequest, analysis: Analysis) -> None:
    result = _run(asked, "--json")
    document = json.loads(result.stdout)
    assert document == json.loads(json.dumps(analysis_document(analysis)))
    assert document["images"] == COUNT
    assert (document["loss"], document["curvature_at"], document["split"]) == ("teacher", "ptq", "val")
    donor = document["vectors"][1]
    assert set(donor["geometry"]) == set(METRICS)
    assert donor["geometry"]["gauss_newton"]["lambda_star"] == analysis.donors[1].alignments["gauss_newton"].lambda_star
    assert [point["lambda"] for point in donor["curve"]] == list(analysis.donors[1].response.curve)


def test_the_table_names_vectors_metrics_and_setting(asked: AnalysisRequest) -> None:
    shown = _run(asked, "--quiet").stdout
    for part in ("own ", "donor ", "Euclidean", "Gauss-Newton", "Hessian", "gradient: ", "top-1 %", f"{COUNT} images"):
        assert part in shown
    merged = _run(asked, "--quiet", "--at=fp").stdout
    assert "Gauss-Newton = Hessian" in merged


def _other(folder: Path, name: str, state: State) -> str:
    save_file(state, folder / f"{name}.safetensors")
    return str(folder / f"{name}.safetensors")


def _deeper() -> State:
    model = create(PICO_MODEL, PICO_CLASSES, PICO_ARGS | {"depth": 3})
    return {name: value.detach().numpy().copy() for name, value in model.state_dict().items()}


def _no_head(state: State) -> State:
    return {name: value for name, value in state.items() if not name.startswith("head.")}


Change = Callable[[Path, dict[str, State]], dict[str, Any]]
REFUSED: list[tuple[str, Change, type[QvecError], str]] = [
    (
        "qat-of-another-architecture",
        lambda to, s: {"receiver_qat": _other(to, "deep", _deeper())},
        IncompatibleError,
        "is not a `vit_tiny",
    ),
    (
        "qat-of-other-classes",
        lambda to, s: {
            "receiver_qat": _other(
                to, "wide", s["qat"] | {"head.weight": np.zeros((12, 32), np.float32), "head.bias": np.zeros(12, "f4")}
            )
        },
        IncompatibleError,
        "head.weight has shape",
    ),
    (
        "qat-equal-to-fp",
        lambda to, s: {"receiver_qat": _other(to, "same", s["receiver"])},
        IncompatibleError,
        "own vector is zero",
    ),
    (
        "settled-qat",
        lambda to, s: {"receiver_qat": _other(to, "settled", _on_grid(s["qat"]))},
        IncompatibleError,
        "on the grid already",
    ),
    ("missing-file", lambda to, s: {"receiver": str(to / "none.safetensors")}, StorageError, "none.safetensors"),
    (
        "receiver-without-head",
        lambda to, s: {"receiver": _other(to, "headless", _no_head(s["receiver"]))},
        IncompatibleError,
        "has no classes",
    ),
    ("unknown-model", lambda to, s: {"model": "vit_tinny_patch16_224"}, RecipeError, "timm has no model"),
    ("no-vector", lambda to, s: {"vectors": ()}, RecipeError, "no vector"),
    ("not-a-vector", lambda to, s: {"vectors": (_other(to, "q", s["qat"]),)}, IntegrityError, "not a quantization"),
    (
        "vector-of-another-architecture",
        lambda to, s: {
            "vectors": (_vector(to / "deep.safetensors", _deeper(), {n: v + 0.011 * v for n, v in _deeper().items()}),)
        },
        IncompatibleError,
        "does not fit the receiver: blocks.2",
    ),
    (
        "zero-vector",
        lambda to, s: {"vectors": (_vector(to / "zero.safetensors", s["donor"], s["donor"]),)},
        IncompatibleError,
        "zero everywhere",
    ),
    (
        "two-grids",
        lambda to, s: {
            "vectors": (
                _vector(to / "a.safetensors", s["receiver"], s["donor"]),
                _vector(to / "b.safetensors", s["receiver"], s["donor"], Scheme(2, "channel")),
            )
        },
        IncompatibleError,
        "3 bits per channel, rtn with head left float",
    ),
    ("labels-of-other-classes", lambda to, s: {"data": DatasetSpec("tiny/upper", "val", limit=4)}, RecipeError, "26 c"),
    (
        "no-labels",
        lambda to, s: {"data": DatasetSpec("generated/structured", "val", limit=4)},
        RecipeError,
        "labels of 0 classes",
    ),
    ("one-image", lambda to, s: {"data": DatasetSpec("tiny/realdigits", "val", limit=1)}, IncompatibleError, "one im"),
]


@pytest.mark.parametrize(("change", "kind", "message"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_what_does_not_belong_together_is_refused(
    tmp_path: Path,
    asked: AnalysisRequest,
    states: dict[str, State],
    change: Change,
    kind: type[QvecError],
    message: str,
) -> None:
    with pytest.raises(kind) as raised:
        analyze(replace(asked, loss="labels", **change(tmp_path, states)))
    assert type(raised.value) is kind
    assert message in raised.value.message
    assert raised.value.hint


def test_a_flat_folder_of_images_has_no_labels_to_take_a_loss_of(tmp_path: Path, asked: AnalysisRequest) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for number in range(3):
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), np.uint8)).save(tmp_path / "images" / f"{number}.png")
    flat = replace(asked, data=DatasetSpec("folder", "val", tmp_path), loss="labels")
    with pytest.raises(RecipeError, match="labels of 1 classes") as raised:
        analyze(flat)
    assert "--loss teacher" in raised.value.hint
    assert analyze(replace(flat, loss="teacher", vectors=asked.vectors[:1])).images == 3


@pytest.mark.parametrize("text", ["img_size", "=3"])
def test_a_malformed_model_argument_is_refused(asked: AnalysisRequest, text: str) -> None:
    error = _run(asked, f"--model-arg={text}").exception
    assert isinstance(error, RecipeError)
    assert "is not NAME=VALUE" in error.message
