"""What is expensive and only read is made once a run, whichever of pytest-xdist's workers needs it first."""

from __future__ import annotations

import fcntl
import functools
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import onnx

    from qvec_deploy.bench.footprint import Footprint
    from qvec_deploy.bench.roofline.devices import Device


FOLDER = "QVEC_TESTS_SHARE_IN"


def share_in(factory: pytest.TempPathFactory) -> None:
    """Say where pytest's temporary folders are, once a worker, to child processes too."""
    root = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent  # of all workers
    os.environ[FOLDER] = str(root / "shared")


def make_once(name: str, make: Callable[[Path], object]) -> Path:
    """A file or folder that all tests of a run share; do not write to it.

    Args:
        name: Unique in the run.
        make: Called with a path that does not exist yet, and makes it.
    """
    path = Path(os.environ[FOLDER]) / name
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


def probe_once(
    probe: Callable[..., Footprint], opener: str, arguments: Mapping[str, Any], **settings: Any
) -> Footprint:
    """A footprint, whose process is started once a run for engines of one runtime and model."""
    from qvec_deploy.bench.footprint import Footprint

    asked = {**arguments, "directory": "", "lowering": ""}
    return Footprint(**_told_once(["footprint", opener, asked, settings], lambda: probe(opener, arguments, **settings)))


def measure_once(measure: Callable[[int], Device], threads: int) -> Device:
    """What this CPU does at best, measured once a run."""
    from qvec_deploy.bench.roofline.devices import Device

    return Device(**_told_once(["device", threads], lambda: measure(threads)))


def _told_once(asked: Any, answer: Callable[[], Any]) -> dict[str, Any]:
    key = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
    path = make_once(f"told/{key}.json", lambda path: path.write_text(json.dumps(asdict(answer()))))
    told: dict[str, Any] = json.loads(path.read_text())
    return told


def share_builds(put: Callable[[object, str, object], None] = setattr) -> None:
    """Have builds share what takes most of their time: a model's export, the speed of this CPU, engines' footprints.

    Args:
        put: What replaces an attribute of a module.
    """
    from qvec_deploy.bench import layers, run
    from qvec_deploy.runtimes.graph import export

    put(export, "export_skeleton", functools.partial(export_once, export.export_skeleton))
    put(layers, "measure_device", functools.partial(measure_once, layers.measure_device))
    put(run, "probe", functools.partial(probe_once, run.probe))
