"""What `scripts/check_tensorrt` asks of a machine, and how it judges the answers. Knows no TensorRT: a backend does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from checked_items import Item, NotRun, Outcome, State, first_line

from qvec_deploy.runtimes.tensorrt import TENSORRT, TENSORRT_RTX

LOWERINGS = {row.name: tuple(lowering.name for lowering in row.lowerings) for row in (TENSORRT, TENSORRT_RTX)}
"""By library, under the name of its runtime."""
MODELS = ("demo", "vit_b")
SWITCHES = 10_000
BATCHES = (1, 8)
LAYER_TOLERANCE = 5e-3


class Backend(Protocol):
    """The machine under test. Every method may raise; `NotRun` where the machine lacks something."""

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

    def build(self, name: str, lowering: str) -> dict[str, Any]:
        """Build a model's engine: what `Compiler.describe` says of it."""

    def run(self, name: str, lowering: str) -> dict[str, Any]:
        """Run the engine that was built: `error`, `tolerance`, `captured` (whether it runs as a CUDA graph)."""

    def latency(self, name: str, lowerings: Sequence[str], batch_size: int) -> dict[str, list[float]]:
        """Milliseconds of interleaved runs, by lowering."""

    def opening(self, name: str, lowering: str) -> dict[str, Any]:
        """Seconds until the first answer: `without` a runtime cache, and `with` the one that it left."""


def _agrees(data: Mapping[str, Any], tolerance: float, what: str) -> Outcome:
    error = float(data["error"])
    state: State = "passed" if error <= tolerance else "failed"  # NaN fails
    return Outcome(state, f"{what}: relative error {error:.1e}, at most {tolerance:g} is right", dict(data))


def _works(code: str) -> Callable[[Backend], Outcome]:
    """Whether another way to hand over the kernel works: a question, not a claim."""

    def check(backend: Backend) -> Outcome:
        try:
            data = backend.layer(code)
        except NotRun:
            raise
        except Exception as error:  # noqa: BLE001 - that it fails is the answer
            return Outcome("noted", f"does not work: {first_line(error)}")
        right = float(data["error"]) <= LAYER_TOLERANCE
        return Outcome("noted", "works" if right else f"runs, but errs by {data['error']:.1e}", dict(data))

    return check


def _stripped(backend: Backend) -> Outcome:
    return _agrees(backend.layer("stripped"), LAYER_TOLERANCE, "one layer with the PTX as shipped")


def _trtexec(backend: Backend) -> Outcome:
    data = backend.trtexec()
    code = data["returncode"]
    return Outcome("passed" if code == 0 else "failed", f"trtexec exits with {code}", data)


def _fresh(backend: Backend) -> Outcome:
    data = backend.fresh_process()
    if data["plugins_loaded"]:
        return Outcome("failed", "the process had our plugins loaded: it shows nothing", data)
    return _agrees(data, LAYER_TOLERANCE * 4, "in a process without our plugins")


def _stored(backend: Backend) -> Outcome:
    return _judge_stored(backend.layer("stripped"))


def _judge_stored(data: Mapping[str, Any]) -> Outcome:
    stored, given = data["weights_bytes"], data["given_bytes"]
    if stored is None:
        raise NotRun("this TensorRT does not say what it stores")
    low, high = data["packed_bytes"], data["allowed_bytes"]
    detail = f"{stored:,} bytes stored of {given:,} given, {high:,} at most if nothing is unpacked"
    if stored < low:
        return Outcome("failed", f"{detail}: it does not count all of them, so it shows nothing", dict(data))
    return Outcome("passed" if stored <= high else "failed", detail, dict(data))


def _precedence(namespace: bool) -> Callable[[Backend], Outcome]:
    def check(backend: Backend) -> Outcome:
        data = backend.precedence(namespace)
        if not data["parsed"]:
            reason = data["errors"][0].strip().splitlines()[0] if data["errors"] else "TensorRT does not say why"
            return Outcome("failed" if namespace else "noted", f"cannot be parsed: {reason}", data)
        won = "the plugin" if data["plugin_layers"] else "the function body"
        if not namespace:
            return Outcome("noted", f"{won} wins", data)
        return Outcome("passed" if data["plugin_layers"] else "failed", f"{won} wins", data)

    return check


def _flag(name: str) -> Callable[[Backend], Outcome]:
    def check(backend: Backend) -> Outcome:
        try:
            data = backend.flag(name)
        except NotRun:
            raise
        except Exception as error:  # noqa: BLE001 - that it fails is the answer
            return Outcome("noted", f"does not build: {first_line(error)}")
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


def _built(name: str, lowering: str) -> Callable[[Backend], Outcome]:
    def check(backend: Backend) -> Outcome:
        data = backend.build(name, lowering)
        size = f"{data['plan_bytes']:,} bytes in {data['build_s']:.0f} s"
        if data["allowed_bytes"] is None:
            return Outcome("passed", size, data)
        try:
            stored = _judge_stored(data)
        except NotRun as reason:
            return Outcome("noted", f"{size}; stored bytes unknown: {reason}", data)
        return Outcome(stored.state, f"{size}; {stored.detail}", data)

    return check


def _runs(library: str, name: str, lowering: str) -> Callable[[Backend], Outcome]:
    def check(backend: Backend) -> Outcome:
        data = backend.run(name, lowering)
        parity = _agrees(data, data["tolerance"], "against PyTorch")
        if parity.state == "passed" and library == TENSORRT.name and not data["captured"]:
            return Outcome("failed", "it does not run as a CUDA graph", data)
        return parity

    return check


def _opening(name: str, lowering: str) -> Callable[[Backend], Outcome]:
    def check(backend: Backend) -> Outcome:
        data = backend.opening(name, lowering)
        return Outcome("noted", f"first answer after {data['without']:.2f} s, {data['with']:.2f} s with a cache", data)

    return check


def _latency(library: str, batch_size: int) -> Callable[[Backend], Outcome]:
    lowerings = LOWERINGS[library]

    def check(backend: Backend) -> Outcome:
        samples = backend.latency("vit_b", lowerings, batch_size)
        if not samples:
            raise NotRun("no lowering of vit_b was built")
        medians = {name: sorted(taken)[len(taken) // 2] for name, taken in samples.items()}
        absent = [name for name in lowerings if name not in samples]
        text = ", ".join(f"{name} {value:.2f} ms" for name, value in medians.items())
        missing = f"; not built: {', '.join(absent)}" if absent else ""
        return Outcome("noted", f"median {text}{missing}", {"medians_ms": medians, "samples_ms": samples})

    return check


FLAGS = ("STRIP_PLAN", "REFIT", "WEIGHT_STREAMING", "VERSION_COMPATIBLE", "AMPERE_PLUS")

_QUESTIONS: tuple[Item, ...] = (
    Item("1 aot", "a compiled plugin in an engine", _stripped),
    Item("1 unstripped", "PTX with Triton's hidden parameters", _works("unstripped")),
    Item("1 trtexec", "the engine without Python", _trtexec),
    Item("1 fresh process", "the engine without our plugins", _fresh, 600),
    Item("2 stored", "3-bit weights stay 3-bit", _stored),
    Item("3 shared memory", "more than 48 KiB", _works("shared")),
    Item("4 cubin", "machine code in place of PTX", _works("cubin")),
    Item("4 native", "PTX for this very architecture", _works("native")),
    Item("5 switches", "memory lost to changes of shape", _switches),
    Item("6 namespace", "plugin or function body, with plugin_namespace", _precedence(True)),
    Item("6 no namespace", "plugin or function body, without", _precedence(False)),
    *(Item(f"7 {name}", f"builder option {name} with the plugin", _flag(name)) for name in FLAGS),
    Item("7 copies", "PTX of equal layers", _copies),
)
"""About the plugin that is compiled ahead, which full TensorRT alone takes."""


def _engines(library: str) -> tuple[Item, ...]:
    made: list[Item] = []
    for model in MODELS:
        for lowering in LOWERINGS[library]:
            name, what = f"{model} {lowering}", f"{model}, lowering {lowering}"
            made.append(Item(f"{name} built", f"{what}, by the builder", _built(model, lowering), 1200))
            made.append(Item(f"{name} run", f"{what}, on the GPU", _runs(library, model, lowering)))
    latency = (Item(f"8 latency {n}", f"ViT-B/16, batch {n}, all lowerings", _latency(library, n)) for n in BATCHES)
    return (*made, *latency)


ITEMS: dict[str, tuple[Item, ...]] = {
    TENSORRT.name: (*_QUESTIONS, *_engines(TENSORRT.name)),
    TENSORRT_RTX.name: (
        *_engines(TENSORRT_RTX.name),
        Item("9 runtime cache", "ViT-B/16, lowering int4, opened twice", _opening("vit_b", "int4")),
    ),
}
"""What is asked of each library."""
