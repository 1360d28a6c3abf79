"""What is expensive and only read is made once a run, whichever of pytest-xdist's workers needs it first."""

from __future__ import annotations

import fcntl
import functools
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import onnx

    from qvec_deploy.bench.footprint import Footprint
    from qvec_deploy.bench.roofline.devices import Device


_folder: list[Path] = []


def share_in(factory: pytest.TempPathFactory) -> None:
    """Say where pytest's temporary folders are, once a worker."""
    root = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent  # of all workers
    _folder[:] = [root / "shared"]


def make_once(name: str, make: Callable[[Path], object]) -> Path:
    """A file or folder that all tests of a run share; do not write to it.

    Args:
        name: Unique in the run.
        make: Called with a path that does not exist yet, and makes it.
    """
    path = _folder[0] / name
    made = path.with_name(f".{path.name}.made")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            make(path)  # a test that fails here leaves no mark, and the next one fails too
            made.touch()
    return path


def export_once(export: Callable[..., onnx.ModelProto], *arguments: Any) -> onnx.ModelProto:
    """What the exporter returns, called once a run with the same arguments: it takes most of a small build."""
    import onnx

    key = hashlib.sha256(repr(arguments).encode()).hexdigest()
    path = make_once(f"exports/{key}", lambda path: path.write_bytes(export(*arguments).SerializeToString()))
    return onnx.load_model_from_string(path.read_bytes())


_footprints: dict[str, Footprint] = {}


def probe_once(
    probe: Callable[..., Footprint], opener: str, arguments: Mapping[str, Any], **settings: Any
) -> Footprint:
    """A footprint, whose process is started once a worker for engines of one runtime and model."""
    key = json.dumps([opener, {**arguments, "directory": "", "lowering": ""}, settings], sort_keys=True)
    if key not in _footprints:
        _footprints[key] = probe(opener, arguments, **settings)
    return _footprints[key]


@functools.cache
def measure_once(threads: int) -> Device:
    """What this CPU does at best, measured once a worker."""
    from qvec_deploy.bench.roofline.devices import measure_device

    return measure_device(threads)
