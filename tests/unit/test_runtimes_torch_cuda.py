"""The torch-cuda runtime on the CPU: the same session on the operator's reference; and every refusal."""

from __future__ import annotations

import contextlib
import json
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pico import PICO_ARGS
from small_engines import WIDE_ARGS, relative_error, write_engine

from qvec_deploy.bench.parity import parity_images
from qvec_deploy.errors import IncompatibleError, IntegrityError, StorageError
from qvec_deploy.packed import PackedFile
from qvec_deploy.runtimes.engine_files import STRUCTURE_FILE, WEIGHTS_FILE
from qvec_deploy.runtimes.torch_cuda.torch_module import HalfEngine, load_engine
from qvec_deploy.runtimes.torch_cuda.torch_session import TorchCuda, TorchSession, _Graph, out_of_memory
from qvec_deploy.runtimes.torch_cuda.torch_structure import read_structure
from qvec_deploy.tensors import Scheme

HALF_TOLERANCE = 5e-3  # relative L2 of the logits; float16 rounds to 5e-4, a few dozen times in a row
SHAPE = (3, 32, 32)
IMAGES = parity_images(SHAPE)


@pytest.mark.parametrize("args", [PICO_ARGS, WIDE_ARGS], ids=["rows", "p32"])
@pytest.mark.parametrize(
    "scheme",
    [Scheme(3, "channel"), Scheme(3, "group", 16), Scheme(2, "tensor", method="mse"), Scheme(4, "channel")],
    ids=str,
)
def test_packed_computes_what_pytorch_computes(tmp_path: Path, scheme: Scheme, args: dict[str, Any]) -> None:
    reference = write_engine(tmp_path, scheme, args)
    with TorchCuda("cpu").open(tmp_path, "packed", 1) as session:
        logits = session.run(IMAGES)
        assert session.input_shape == SHAPE
    assert logits.dtype == np.float32
    assert relative_error(logits, reference) < HALF_TOLERANCE


@pytest.mark.parametrize("lowering", ["packed", "float"])
def test_input_scales_are_applied(tmp_path: Path, lowering: str) -> None:
    reference = write_engine(tmp_path, factors=True)
    with TorchCuda("cpu").open(tmp_path, lowering, 1) as session:
        assert relative_error(session.run(IMAGES), reference) < HALF_TOLERANCE


def test_packed_weights_stay_packed_in_memory(tmp_path: Path) -> None:
    write_engine(tmp_path, args=WIDE_ARGS)
    held = {}
    for lowering in ("packed", "float"):
        with TorchCuda("cpu").open(tmp_path, lowering, 1) as session:
            assert isinstance(session, TorchSession)
            held[lowering] = session.engine.weight_bytes
    weights = PackedFile.open(tmp_path / WEIGHTS_FILE)
    linears = sum(info.shape[0] * info.shape[1] for info in weights.tensors.values() if info.scheme)
    rows = sum(info.shape[0] for info in weights.tensors.values() if info.scheme)
    assert held["float"] - held["packed"] == 2 * linears - (3 * linears // 8 + 4 * rows)


def test_a_batch_at_a_time_is_the_same_as_one_image_at_a_time(tmp_path: Path) -> None:
    write_engine(tmp_path)
    with TorchCuda("cpu").open(tmp_path, "packed", 1) as session:
        together = session.run(np.ascontiguousarray(IMAGES[::-1]))
        apart = np.concatenate([session.run(IMAGES[i : i + 1]) for i in (1, 0)])
        np.testing.assert_array_equal(session.run(IMAGES[::-1]), together)  # a view with a negative stride
    np.testing.assert_allclose(together, apart, rtol=0, atol=HALF_TOLERANCE * np.abs(apart).max())


def test_values_beyond_float16_are_refused(tmp_path: Path) -> None:
    from qvec_deploy.packed import Entry, write_packed

    write_engine(tmp_path, scheme=None)
    weights = PackedFile.open(tmp_path / WEIGHTS_FILE)
    values = {name: np.array(weights.array(name)) for name in weights.tensors}
    values["head.bias"][0] = 1e6
    write_packed(tmp_path / WEIGHTS_FILE, {name: Entry(value.shape) for name, value in values.items()}, values.items())
    with pytest.raises(IncompatibleError, match=r"head\.bias.*float16"), TorchCuda("cpu").open(tmp_path, "float", 1):
        pass


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    write_engine(tmp_path)
    path = tmp_path / STRUCTURE_FILE
    values = json.loads(path.read_bytes())
    values["args"]["depth"] = 3
    path.write_text(json.dumps(values))
    with pytest.raises(IncompatibleError, match=r"does not fit.*missing"), TorchCuda("cpu").open(tmp_path, "packed", 1):
        pass


@pytest.mark.parametrize("text", ["{", "[]", '{"name": "vit"}', '{"name":"v","classes":1,"args":{},"input_shape":[3]}'])
def test_a_damaged_structure_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / STRUCTURE_FILE).write_text(text)
    with pytest.raises(IntegrityError, match=r"structure\.json is damaged"):
        read_structure(tmp_path)


def test_a_directory_without_structure_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"structure\.json does not exist"):
        read_structure(tmp_path)


class _Held:
    """Stands for memory of a run."""


class _Crowded(torch.nn.Module):
    """Stands for an engine on a GPU that is full beyond a batch size; a run that fails has taken memory by then."""

    def __init__(self, most: int, error: Exception | None = None) -> None:
        super().__init__()
        self.most, self.error = most, error or torch.OutOfMemoryError("CUDA out of memory")
        self.taken: list[weakref.ref[_Held]] = []
        self.still_held: list[int] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.still_held.append(sum(held() is not None for held in self.taken))
        held = _Held()
        self.taken.append(weakref.ref(held))
        if len(images) > self.most:
            raise type(self.error)(*self.error.args)
        return images.float().flatten(1)[:, :2]


@pytest.mark.parametrize(
    ("most", "said"), [(5, r"`packed`.* at batch 20; batch 5 does"), (0, "`packed`.* at batch 20, and at no smaller")]
)
def test_out_of_memory_names_lowering_and_batch_that_fits(most: int, said: str) -> None:
    session = TorchSession(HalfEngine(_Crowded(most)), SHAPE, "packed", torch.device("cpu"))
    with pytest.raises(IncompatibleError, match=said):
        session.run(np.zeros((20, *SHAPE), np.float32))
    if most:
        assert session.run(np.zeros((most, *SHAPE), np.float32)).shape == (most, 2), "the session can still be used"


def test_nothing_of_a_failed_run_is_left_when_the_next_is_tried() -> None:
    crowded = _Crowded(5)
    session = TorchSession(HalfEngine(crowded), SHAPE, "packed", torch.device("cpu"))
    with pytest.raises(IncompatibleError, match="batch 5 does"):
        session.run(np.zeros((20, *SHAPE), np.float32))
    assert crowded.still_held == [0, 0, 0]


@pytest.mark.parametrize(
    "said",
    [
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
    ],
)
def test_libraries_run_out_of_memory_in_their_own_words(said: str) -> None:
    session = TorchSession(HalfEngine(_Crowded(5, RuntimeError(said))), SHAPE, "packed", torch.device("cpu"))
    with pytest.raises(IncompatibleError, match="batch 5 does"):
        session.run(np.zeros((20, *SHAPE), np.float32))


def test_an_error_that_came_of_a_full_memory_is_one() -> None:
    broken_off = RuntimeError("CUDA error: operation failed due to a previous error during capture")
    assert not out_of_memory(broken_off)
    broken_off.__context__ = torch.OutOfMemoryError("CUDA out of memory")
    assert out_of_memory(broken_off)


def test_other_errors_are_not_taken_for_a_full_memory() -> None:
    session = TorchSession(HalfEngine(_Crowded(5, RuntimeError("boom"))), SHAPE, "packed", torch.device("cpu"))
    with pytest.raises(RuntimeError, match="boom"):
        session.run(np.zeros((20, *SHAPE), np.float32))


def test_workspaces_of_cublas_are_a_recordings_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """None that the warm-up took is recorded, and none that was recorded is left to the next; CUDA is played here."""
    events: list[str] = []

    class Recording(contextlib.AbstractContextManager[None]):
        def __init__(self, graph: object, pool: object) -> None:
            pass

        def __enter__(self) -> None:
            events.append("record")

        def __exit__(self, *_: object) -> None:
            events.append("recorded")

    class Stream:
        def __init__(self, *_: object) -> None:
            pass

        def wait_stream(self, _: object) -> None:
            pass

    def engine(images: torch.Tensor) -> torch.Tensor:
        events.append("run")
        return images

    for name in ("zeros", "empty"):
        real = getattr(torch, name)
        monkeypatch.setattr(torch, name, lambda shape, real=real, **_: real(shape))
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "graph", Recording)
    monkeypatch.setattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: events.append("clear"))
    _Graph(engine, (1, *SHAPE), torch.device("cpu"), None)
    assert events == ["run", "run", "run", "clear", "record", "run", "recorded", "clear"]


def test_weights_that_do_not_fit_name_the_lowering(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    write_engine(tmp_path)
    monkeypatch.setattr("qvec_deploy.runtimes.torch_cuda.torch_module.load_engine", full)
    with (
        pytest.raises(IncompatibleError, match=r"`float`.* does not fit") as caught,
        TorchCuda("cpu").open(tmp_path, "float", 1),
    ):
        pass
    assert "`packed` needs a fifth" in caught.value.hint


@pytest.mark.parametrize(
    ("patches", "said"),
    [
        ({"torch.version.cuda": None}, "built without CUDA"),
        ({"torch.cuda.is_available": lambda: False}, "finds no NVIDIA GPU"),
        ({"importlib.util.find_spec": lambda name: None}, "triton"),
        ({"torch.cuda.get_device_capability": lambda: (7, 5)}, "a T4 is sm_75; the kernels need sm_80"),
        ({}, None),
    ],
    ids=["no-cuda", "no-gpu", "no-triton", "old-gpu", "works"],
)
def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch, patches: dict[str, Any], said: str | None) -> None:
    working = {
        "torch.version.cuda": "13.0",
        "torch.cuda.is_available": lambda: True,
        "torch.cuda.get_device_capability": lambda: (9, 0),
        "torch.cuda.get_device_name": lambda: "a T4",
        "importlib.util.find_spec": lambda name: name,
    }
    for name, value in {**working, **patches}.items():
        monkeypatch.setattr(name, value)
    reason = TorchCuda().missing("packed")
    if said is None:
        assert reason is None
    else:
        assert reason is not None
        assert said in reason


@pytest.mark.parametrize("lowering", ["float", None])
def test_float_needs_neither_triton_nor_a_recent_gpu(monkeypatch: pytest.MonkeyPatch, lowering: str | None) -> None:
    monkeypatch.setattr("torch.version.cuda", "13.0")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: (7, 5))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert TorchCuda().missing(lowering) is None
    assert TorchCuda().missing("packed") is not None


def test_opening_without_a_gpu_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    write_engine(tmp_path)
    with (
        pytest.raises(IncompatibleError, match=r"finds no NVIDIA GPU|built without"),
        TorchCuda().open(tmp_path, "packed", 1),
    ):
        pass


def test_computed_buffers_get_their_values(tmp_path: Path) -> None:
    """A Swin's masks are not stored; on the meta device they would be garbage."""
    from qvec_deploy.bench.parity import reference_logits
    from qvec_deploy.models import create, describe
    from qvec_deploy.packed import Entry, write_packed
    from qvec_deploy.runtimes.torch_cuda.torch_structure import write_structure

    name, args = "swin_tiny_patch4_window7_224", {"img_size": 64, "window_size": 4, "embed_dim": 24, "depths": [1, 2]}
    args["num_heads"] = [2, 4]
    architecture = describe(name, 5, args)
    generator = np.random.default_rng(0)
    state = {
        key: generator.normal(0, 0.1, value.shape).astype(np.float32)
        for key, value in create(name, 5, args).state_dict().items()
    }
    write_packed(tmp_path / WEIGHTS_FILE, {key: Entry(value.shape) for key, value in state.items()}, state.items())
    write_structure(tmp_path, architecture, args)
    weights, images = PackedFile.open(tmp_path / WEIGHTS_FILE), parity_images(architecture.input_shape)
    engine = load_engine(read_structure(tmp_path), weights, "float", torch.device("cpu"))
    logits = engine(torch.from_numpy(images)).numpy()
    assert relative_error(logits, reference_logits(weights, name, 5, args, images)) < HALF_TOLERANCE
