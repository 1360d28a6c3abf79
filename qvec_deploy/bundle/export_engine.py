"""A compiled engine of a bundle, or the graph that it is built from, as a file of its own for the vendor's tools."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qvec_deploy.bundle.bundle import Bundle
from qvec_deploy.bundle.export_bundle import require_new, write_model
from qvec_deploy.errors import IncompatibleError
from qvec_deploy.io.files import atomic_path, storage_errors, write_bytes
from qvec_deploy.runtimes.engine_options import Batches
from qvec_deploy.runtimes.registry import find_runtime


@dataclass(frozen=True)
class ExportedEngine:
    """An engine that was written.

    Attributes:
        batches: Images that it takes in a run, as in its name.
    """

    lowering: str
    batches: str
    size: int

    def as_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def export_engine(
    directory: Path, output: Path, lowering: str | None = None, *, batch_size: int | None = None, force: bool = False
) -> ExportedEngine:
    """Write one of a bundle's engines, made again where the bundle has a delta; no GPU is needed.

    Args:
        lowering: The bundle's own by default.
        batch_size: Images that it must take in a run; any by default.

    Raises:
        IncompatibleError: The bundle has no such engine, or its engine cannot be made again here.
        IntegrityError: The bundle is damaged.
        StorageError: The output exists, lies inside the bundle, or cannot be written.
    """
    require_new(directory, output, force=force)
    bundle = Bundle.open(directory)
    chosen, batches = choose_engine(bundle, lowering, batch_size)
    compiler = find_runtime(bundle.manifest.engine.runtime).load_compiler()
    plan = compiler.read(directory, chosen, batches)
    write_bytes(output, plan)
    return ExportedEngine(chosen, str(batches), len(plan))


def export_graph(directory: Path, output: Path, lowering: str | None = None, *, force: bool = False) -> ExportedEngine:
    """Write the ONNX graph that a bundle's engines are built from, for the vendor's own tools; no GPU is needed.

    Args:
        lowering: The bundle's own by default.

    Raises:
        IncompatibleError: The runtime compiles nothing, or the bundle lacks what the lowering needs.
        IntegrityError: The bundle is damaged.
        StorageError: The output exists, lies inside the bundle, or cannot be written.
    """
    require_new(directory, output, force=force)
    bundle = Bundle.open(directory)
    compiler = find_runtime(bundle.manifest.engine.runtime).load_compiler()
    chosen = bundle.check_lowering(lowering)
    bundle.require_activations(chosen)
    graph = compiler.graph(directory, chosen)
    with atomic_path(output) as temporary:
        write_model(graph, temporary, output)
    with storage_errors(output):
        return ExportedEngine(chosen, "any", output.stat().st_size)


def choose_engine(bundle: Bundle, lowering: str | None, batch_size: int | None = None) -> tuple[str, Batches]:
    """The engine for the most batch sizes, or where all are static the one for the fewest images.

    Args:
        lowering: The bundle's own by default.
        batch_size: Images that it must take in a run; any by default.

    Raises:
        IncompatibleError: There is none.
    """
    chosen = bundle.check_lowering(lowering)
    compiler = find_runtime(bundle.manifest.engine.runtime).load_compiler()
    built = [Batches.parse(engine["batches"]) for engine in compiler.describe(bundle.directory, chosen)]
    fitting = [each for each in built if batch_size is None or each.smallest <= batch_size <= each.largest]
    if not fitting:
        sizes = f" at batch {batch_size}; it has {', '.join(map(str, built))}" if built else ""
        raise IncompatibleError(
            f"{bundle.directory} has no engine for lowering `{chosen}`{sizes}",
            hint="`qvec-deploy compile BUNDLE` builds it, on the machine that will run it",
        )
    return chosen, min(fitting, key=lambda each: (each.static, each.largest))
