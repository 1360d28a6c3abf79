"""What jobs of tests run: importable by name in their processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from qvec_deploy.errors import FetchError
from qvec_deploy.io.cache import Cache
from qvec_deploy.io.files import link_files
from qvec_deploy.io.machine_lock import MachineLock
from qvec_deploy.jobs.job import SendEvent


def add(send: SendEvent, *, left: int, right: int) -> int:
    send({"adding": left})
    return left + right


def whoami(send: SendEvent) -> dict[str, Any]:
    return {"pid": os.getpid(), "colorsys": "colorsys" in sys.modules}


def refuse(send: SendEvent) -> None:
    raise FetchError("nothing there", hint="look elsewhere")


def stumble(send: SendEvent) -> None:
    print("words before the fall")
    raise KeyError("a bug")


def not_json(send: SendEvent) -> object:
    return object()


def exhaust(send: SendEvent) -> None:
    raise MemoryError


def occupy(send: SendEvent, *, seconds: float) -> dict[str, Any]:
    """Which GPUs it sees, and from when to when it was at work, by the machine's one clock."""
    start = time.monotonic()
    time.sleep(seconds)
    return {"gpus": os.environ.get("CUDA_VISIBLE_DEVICES"), "start": start, "end": time.monotonic()}


def die(send: SendEvent, *, by: str | int) -> None:
    os.kill(os.getpid(), getattr(signal, by) if isinstance(by, str) else by)
    time.sleep(60)


def leave(send: SendEvent) -> None:
    os._exit(7)


def outlast(send: SendEvent) -> str:
    """Has its result, and a thread that keeps its process from ending."""
    threading.Thread(target=time.sleep, args=(30,)).start()
    return "done"


def look_at_cuda(send: SendEvent) -> dict[str, bool]:
    """Whether PyTorch was there before this job, and whether CUDA was used before the fork, which forbids it here."""
    preloaded = {"torch", "timm"} <= sys.modules.keys()
    import torch

    return {"preloaded": preloaded, "bad_fork": torch.cuda._is_in_bad_fork()}


def linger(send: SendEvent, *, folder: str) -> None:
    """Starts a process of its own and waits; cleans up when it is ended."""
    place = Path(folder)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    (place / "pids").write_text(f"{os.getpid()} {child.pid}")
    try:
        send("lingering")
        time.sleep(600)
    finally:
        (place / "cleaned").touch()


def obtain(send: SendEvent, *, folder: str, target: str, die: bool = False) -> str:
    """Takes from a cache what is made by whoever comes first."""
    place = Path(folder)
    (place / target).mkdir()

    def make(staging: Path) -> str:
        (staging / "file").write_text("made")
        if die:
            os.kill(os.getpid(), signal.SIGKILL)
        with (place / "made").open("a") as file:
            file.write("x")
        time.sleep(0.1)  # long enough for the other to come
        return target

    with Cache(place / "cache").entry("thing", 1) as entry:
        if entry.new:
            entry.record = make(entry.folder)
        link_files(entry.files, place / target)
    return str(entry.record)


def build_and_measure(send: SendEvent, *, folder: str, name: str, rounds: int) -> None:
    """Writes down when it builds and when it measures."""
    machine, events = MachineLock(Path(folder)), Path(folder) / "events"

    def note(event: str) -> None:
        with events.open("a") as file:
            file.write(f"{event}:{name}\n")

    for _ in range(rounds):
        with machine.shared():
            note("build")
            time.sleep(0.01)
            note("built")
            with machine.alone():
                note("measure")
                time.sleep(0.01)
                note("measured")


def die_of(send: SendEvent, *, options: dict[str, Any], **_: Any) -> None:
    """An engine's build that is ended by the signal whose number stands for its workspace."""
    os.kill(os.getpid(), options["workspace_mib"])
    time.sleep(60)


def hang(send: SendEvent, **arguments: Any) -> None:
    """An engine's build that never ends, with a limit of a second."""
    from qvec_deploy.runtimes.tensorrt import engine_build

    engine_build.BUILD_LIMIT_S = 1
    engine_build.load_tensorrt = lambda _: time.sleep(60)
    engine_build.build_job(send, **arguments)


def environment(send: SendEvent, *, name: str) -> str | None:
    return os.environ.get(name)


def build_packed_linear(send: SendEvent, *, columns: int) -> dict[str, Any]:
    """One Linear with our plugin, by TensorRT for RTX."""
    from linear_graphs import image_shape, linear_graph

    from qvec_deploy.runtimes.engine_options import Batches, EngineOptions
    from qvec_deploy.runtimes.registry import find_lowering
    from qvec_deploy.runtimes.tensorrt.tensorrt_builder import build_engine
    from qvec_deploy.runtimes.tensorrt.tensorrt_library import RTX, load_tensorrt

    graph = linear_graph(find_lowering(RTX.runtime, "packed"), columns)
    options = EngineOptions(compute_capabilities=(8.6, 8.9))
    built = build_engine(load_tensorrt(RTX), graph, Batches(1, 8, 8), image_shape(columns), options)
    (product,) = built.products
    return {"weights": built.weights_bytes, "fused": product.fused, "constants": product.constants}
