"""Shared fixtures: golden files, GPU marks, and a pico model that makes end-to-end tests cost seconds."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from pico import PICO_ARGS, PICO_CLASSES, PICO_MODEL, pico_values
from shared import make_once, share_builds, share_in

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")  # read when PyTorch or numpy is imported: there is a worker on every core


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write golden files anew; read the diff")
    parser.addoption("--require-gpu", action="store_true", help="fail gpu tests instead of skipping them")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    gpu = [item for item in items if item.get_closest_marker("gpu")]
    if gpu and not config.getoption("--require-gpu"):
        import torch

        if not torch.cuda.is_available():
            for item in gpu:
                item.add_marker(pytest.mark.skip(reason="no NVIDIA GPU here; --require-gpu makes this a failure"))


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Give every worker a user's cache of its own: whoever measures waits for all builds that share one."""
    share_in(tmp_path_factory)
    usual = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    os.environ.setdefault("MPLCONFIGDIR", str(usual / "matplotlib"))  # finding the fonts anew takes seconds
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def update_golden(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--update-golden"))


@pytest.fixture
def check_golden(update_golden: bool) -> Callable[[Path, str], None]:
    """Compare text with a golden file; a missing file fails."""

    def check(path: Path, text: str) -> None:
        if update_golden:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        assert path.is_file(), f"{path} is missing: run pytest --update-golden and read the diff"
        assert text == path.read_text(encoding="utf-8")

    return check


@pytest.fixture(scope="session")
def pico_states() -> dict[str, dict[str, np.ndarray]]:
    """State dicts of a pico ViT: a receiver, and a donor's float and QAT fine-tunes near it. Not trained."""
    import torch

    from qvec_deploy.models import create

    torch.manual_seed(0)
    model = create(PICO_MODEL, PICO_CLASSES, PICO_ARGS)
    receiver = {name: value.detach().numpy().copy() for name, value in model.state_dict().items()}
    generator = np.random.default_rng(1)
    for value in receiver.values():  # timm's tiny initial weights would hide mistakes
        if value.ndim >= 2:
            value[...] = generator.normal(0, 0.2, value.shape)

    def near(state: dict[str, np.ndarray], size: float) -> dict[str, np.ndarray]:
        return {
            name: (value + generator.normal(0, size, value.shape)).astype(np.float32) for name, value in state.items()
        }

    donor = near(receiver, 0.01)
    return {"receiver": receiver, "fp": donor, "qat": near(donor, 0.01)}


@pytest.fixture(scope="session")
def pico_folder(pico_states: dict[str, dict[str, np.ndarray]]) -> Path:
    """A folder with receiver, fp, qat and vector.safetensors; do not write to it."""

    def make(folder: Path) -> None:
        from safetensors.numpy import save_file

        from qvec_deploy.tensors import Scheme
        from qvec_deploy.vectors.extract import extract_vector

        folder.mkdir()
        for name, state in pico_states.items():
            save_file(state, folder / f"{name}.safetensors")
        extract_vector(
            pico_states["fp"],
            pico_states["qat"],
            folder / "vector.safetensors",
            scheme=Scheme(3, "channel"),
            skip=("head",),
            task="pico",
            seed=0,
        )

    return make_once("pico", make)


@pytest.fixture
def nothing_shared() -> None:
    """Every build of the test exports its model and measures the machine itself."""


@pytest.fixture
def shared_work(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Builds share what takes most of their time: a model's export, the speed of this CPU, a lowering's footprint."""
    if "nothing_shared" not in request.fixturenames:
        share_builds(monkeypatch.setattr)


@pytest.fixture
def pico_recipe(tmp_path: Path, pico_folder: Path) -> Callable[..., Path]:
    """Write a recipe for the pico model, with dotted overrides, and return its path."""

    def write(**overrides: Any) -> Path:
        values = pico_values(pico_folder)
        for key, value in overrides.items():
            *parents, last = key.split("__")
            block = values
            for parent in parents:
                block = block.setdefault(parent, {})
            block[last] = value
        if values.get("evaluate") is not None:  # the pico model guesses
            values["evaluate"] = {"accept_float": True, **values["evaluate"]}
        path = tmp_path / "pico.yaml"
        path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
        return path

    return write
