"""What is expensive and only read is made once a run, whichever of pytest-xdist's workers needs it first."""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import onnx


def make_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A file or folder that all tests of a run share; do not write to it.

    Args:
        factory: pytest's.
        name: Unique in the run.
        make: Called with a path that does not exist yet, and makes it.
    """
    root = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent  # of all workers
    path = root / "shared" / name
    made = path.with_name(f".{path.name}.made")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            make(path)  # a test that fails here leaves no mark, and the next one fails too
            made.touch()
    return path


def exported_once(
    factory: pytest.TempPathFactory, export: Callable[..., onnx.ModelProto]
) -> Callable[..., onnx.ModelProto]:
    """The exporter, called once a run with the same arguments: it takes half of the time of a pico model's build."""

    def exported(*arguments: Any) -> onnx.ModelProto:
        import onnx

        key = hashlib.sha256(repr(arguments).encode()).hexdigest()
        path = make_once(
            factory, f"exports/{key}", lambda path: path.write_bytes(export(*arguments).SerializeToString())
        )
        return onnx.load_model_from_string(path.read_bytes())

    return exported
