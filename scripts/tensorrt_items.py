"""What `scripts/check_tensorrt` asks of a machine, and how it judges the answers. Knows no TensorRT: a backend does."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol

LOWERINGS = ("packed", "int4", "w8a8", "float")
MODELS = ("demo", "vit_b")
SWITCHES = 10_000
BATCHES = (1, 8)
LAYER_TOLERANCE = 5e-3

Status = Literal["pass", "fail", "skip", "noted"]


class Skip(Exception):
    """This machine cannot answer; the message says why."""


class Backend(Protocol):
    """The machine under test. Every method may raise; `Skip` where the machine lacks something."""

    def environment(self) -> dict[str, Any]:
        """Versions and devices."""

    def layer(self, code: str) -> dict[str, Any]:
        """Build and run one QvecLinear whose kernel is handed over as `code`.

        Args:
            code: `stripped` (as shipped), `unstripped`, `cubin`, `native` (PTX for this GPU's own architecture), or
                `shared` (more than 48 KiB of shared memory).

        Returns:
            `error` (relative, against numpy), `weights_bytes`, `given_bytes`, `packed_bytes`, `allowed_bytes` (as
            `lower.tensorrt_graph.allowed_bytes` says), `plan_bytes`.
        """

    def trtexec(self) -> dict[str, Any]:
        """Run the one-layer engine with trtexec: `returncode`, `output`."""

    def fresh_process(self) -> dict[str, Any]:
        """Run a packed engine in a process that never loads our plugins: `error`, `plugins_loaded`."""

    def precedence(self, namespace: bool) -> dict[str, Any]:
        """Parse a node that also has a function body, with `plugin_namespace` or without.

        Returns:
            `parsed`, `errors` of the parser, `plugin_layers`.
        """

    def flag(self, name: str) -> dict[str, Any]:
        """Build the one-layer engine with a builder flag or compatibility level, and try to run it.

        Returns:
            `plan_bytes`; `error`, or `does_not_run` with the reason.
        """

    def copies(self) -> dict[str, Any]:
        """Build 1 and 8 equal layers: `overhead_bytes` a further layer beyond its weights, `ptx_bytes`."""

    def switches(self, count: int) -> dict[str, Any]:
        """Switch the batch size so often: `lost_bytes` of GPU memory."""

    def model(self, name: str, lowering: str) -> dict[str, Any]:
        """Build a model's engine: `error`, `tolerance`, `captured`, `plugin_layers`, and the bytes as `layer`."""

    def latency(self, name: str, lowerings: Sequence[str], batch_size: int) -> dict[str, list[float]]:
        """Milliseconds of interleaved runs, by lowering."""


@dataclass(frozen=True)
class Outcome:
    """What came of an item.

    Attributes:
        status: `pass` and `fail` where something is claimed; `noted` where a question was answered, whatever the
            answer; `skip` where this machine could not answer.
        detail: In a sentence.
        data: What was measured.
    """

    status: Status
    detail: str
    data: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Item:
    """One thing to check.

    Attributes:
        name: Its name in the record.
        title: What it is, in a phrase.
        check: The check.
    """

    name: str
    title: str
    check: Callable[[Backend], Outcome]


def _agrees(data: Mapping[str, Any], tolerance: float, what: str) -> Outcome:
    error = float(data["error"])
    status: Status = "pass" if error <= tolerance else "fail"  # NaN fails
    return Outcome(status, f"{what}: relative error {error:.1e}, at most {tolerance:g} is right", dict(data))


def _works(code: str) -> Callable[[Backend], Outcome]:
    """Whether another way to hand over the kernel works: a question, not a claim."""

    def check(backend: Backend) -> Outcome:
        try:
            data = backend.layer(code)
        except Skip:
            raise
        except Exception as error:  # noqa: BLE001 - that it fails is the answer
            return Outcome("noted", f"does not work: {_first_line(error)}")
        right = float(data["error"]) <= LAYER_TOLERANCE
        return Outcome("noted", "works" if right else f"runs, but errs by {data['error']:.1e}", dict(data))

    return check


def _stripped(backend: Backend) -> Outcome:
    return _agrees(backend.layer("stripped"), LAYER_TOLERANCE, "one layer with the PTX as shipped")


def _trtexec(backend: Backend) -> Outcome:
    data = backend.trtexec()
    code = data["returncode"]
    return Outcome("pass" if code == 0 else "fail", f"trtexec exits with {code}", data)


def _fresh(backend: Backend) -> Outcome:
    data = backend.fresh_process()
    if data["plugins_loaded"]:
        return Outcome("fail", "the process had our plugins loaded: it shows nothing", data)
    return _agrees(data, LAYER_TOLERANCE * 4, "in a process without our plugins")


def _stored(backend: Backend) -> Outcome:
    return _judge_stored(backend.layer("stripped"))


def _judge_stored(data: Mapping[str, Any]) -> Outcome:
    stored, given = data["weights_bytes"], data["given_bytes"]
    if stored is None:
        raise Skip("this TensorRT does not say what it stores")
    low, high = data["packed_bytes"], data["allowed_bytes"]
    detail = f"{stored:,} bytes stored of {given:,} given, {high:,} at most if nothing is unpacked"
    if stored < low:
        return Outcome("fail", f"{detail}: it does not count all of them, so it shows nothing", dict(data))
    return Outcome("pass" if stored <= high else "fail", detail, dict(data))


def _precedence(namespace: bool) -> Callable[[Backend], Outcome]:
    def check(backend: Backend) -> Outcome:
        data = backend.precedence(namespace)
        if not data["parsed"]:
            reason = data["errors"][0].strip().splitlines()[0] if data["errors"] else "TensorRT does not say why"
            return Outcome("fail" if namespace else "noted", f"cannot be parsed: {reason}", data)
        won = "the plugin" if data["plugin_layers"] else "the function body"
        if not namespace:
            return Outcome("noted", f"{won} wins", data)
        return Outcome("pass" if data["plugin_layers"] else "fail", f"{won} wins", data)

    return check


def _flag(name: str) -> Callable[[Backend], Outcome]:
    def check(backend: Backend) -> Outcome:
        try:
            data = backend.flag(name)
        except Skip:
            raise
        except Exception as error:  # noqa: BLE001 - that it fails is the answer
            return Outcome("noted", f"does not build: {_first_line(error)}")
        reason = data.get("does_not_run")
        result = f"relative error {data['error']:.1e}" if reason is None else f"but does not run: {reason}"
        return Outcome("noted", f"builds, {data['plan_bytes']:,} bytes, {result}", data)

    return check


def _copies(backend: Backend) -> Outcome:
    data = backend.copies()
    shared = data["overhead_bytes"] < data["ptx_bytes"] / 2
    how = "shared" if shared else "repeated"
    return Outcome("noted", f"PTX is {how}: {data['overhead_bytes']:,} bytes a layer beyond its weights", data)


def _switches(backend: Backend) -> Outcome:
    data = backend.switches(SWITCHES)
    return Outcome("noted", f"{data['lost_bytes']:,} bytes of GPU memory lost in {SWITCHES:,} changes of shape", data)


def _model(name: str, lowering: str) -> Callable[[Backend], Outcome]:
    def check(backend: Backend) -> Outcome:
        data = backend.model(name, lowering)
        parity = _agrees(data, data["tolerance"], "against PyTorch")
        if parity.status == "fail":
            return parity
        if not data["captured"]:
            return Outcome("fail", "it does not run as a CUDA graph", data)
        if data["allowed_bytes"] is not None:
            try:
                stored = _judge_stored(data)
            except Skip as reason:  # the rest was shown, this was not: say so
                return Outcome("skip", f"{parity.detail}; stored bytes unknown: {reason}", data)
            if stored.status == "fail":
                return stored
        return Outcome("pass", parity.detail, data)

    return check


def _latency(batch_size: int) -> Callable[[Backend], Outcome]:
    def check(backend: Backend) -> Outcome:
        samples = backend.latency("vit_b", LOWERINGS, batch_size)
        if not samples:
            raise Skip("no lowering of vit_b was built")
        medians = {name: sorted(taken)[len(taken) // 2] for name, taken in samples.items()}
        absent = [name for name in LOWERINGS if name not in samples]
        text = ", ".join(f"{name} {value:.2f} ms" for name, value in medians.items())
        missing = f"; not built: {', '.join(absent)}" if absent else ""
        return Outcome("noted", f"median {text}{missing}", {"medians_ms": medians, "samples_ms": samples})

    return check


FLAGS = ("STRIP_PLAN", "REFIT", "WEIGHT_STREAMING", "VERSION_COMPATIBLE", "AMPERE_PLUS")

ITEMS: tuple[Item, ...] = (
    Item("1 aot", "a compiled plugin in an engine", _stripped),
    Item("1 unstripped", "PTX with Triton's hidden parameters", _works("unstripped")),
    Item("1 trtexec", "the engine without Python", _trtexec),
    Item("1 fresh process", "the engine without our plugins", _fresh),
    Item("2 stored", "3-bit weights stay 3-bit", _stored),
    Item("3 shared memory", "more than 48 KiB", _works("shared")),
    Item("4 cubin", "machine code in place of PTX", _works("cubin")),
    Item("4 native", "PTX for this very architecture", _works("native")),
    Item("5 switches", "memory lost to changes of shape", _switches),
    Item("6 namespace", "plugin or function body, with plugin_namespace", _precedence(True)),
    Item("6 no namespace", "plugin or function body, without", _precedence(False)),
    *(Item(f"7 {name}", f"builder option {name} with the plugin", _flag(name)) for name in FLAGS),
    Item("7 copies", "PTX of equal layers", _copies),
    *(
        Item(f"{model} {lowering}", f"{model}, lowering {lowering}", _model(model, lowering))
        for model in MODELS
        for lowering in LOWERINGS
    ),
    *(Item(f"8 latency {size}", f"ViT-B/16, batch {size}, all lowerings", _latency(size)) for size in BATCHES),
)


def run_items(
    backend: Backend, items: Sequence[Item] = ITEMS, show: Callable[[Item, Outcome, float], None] | None = None
) -> dict[str, Any]:
    """Check everything that can be checked; one item's failure is not the next one's.

    Args:
        backend: The machine.
        items: What to check.
        show: Told of every outcome, with the seconds it took.

    Returns:
        The record: environment, every item, counts by status.
    """
    results, counts = [], dict.fromkeys(("pass", "noted", "fail", "skip"), 0)
    for item in items:
        start = time.monotonic()
        trace = None
        try:
            outcome = item.check(backend)
        except Skip as reason:
            outcome = Outcome("skip", str(reason))
        except Exception as error:  # noqa: BLE001 - one broken item must not hide the others
            outcome, trace = Outcome("fail", _first_line(error)), traceback.format_exc()
        seconds = time.monotonic() - start
        counts[outcome.status] += 1
        record = {"name": item.name, "title": item.title, **asdict(outcome), "seconds": round(seconds, 3)}
        results.append(record | ({"traceback": trace} if trace else {}))
        if show is not None:
            show(item, outcome, seconds)
    return {"environment": _environment(backend), "counts": counts, "items": results}


def verdict(record: Mapping[str, Any]) -> tuple[int, str]:
    """Exit code and last line: 0 only if everything was asked and nothing failed; 3 failed; 4 something was skipped."""
    counts = record["counts"]
    text = ", ".join(f"{count} {status}" for status, count in counts.items())
    if counts["fail"]:
        return 3, f"{text}: not as claimed"
    if counts["skip"] or not sum(counts.values()):
        return 4, f"{text}: what was skipped is not shown"
    return 0, f"{text}: as claimed"


def _environment(backend: Backend) -> dict[str, Any]:
    try:
        return backend.environment()
    except Exception as error:  # noqa: BLE001 - the record is worth having without it
        return {"unknown": _first_line(error)}


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}".rstrip(": ")
