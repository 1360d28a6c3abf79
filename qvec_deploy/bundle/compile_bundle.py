"""A bundle made elsewhere gets its engines: built here, held to PyTorch's logits, added to the manifest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from qvec_deploy.bench.parity import PARITY_FILE, check_parity, read_reference
from qvec_deploy.bench.results import Parity
from qvec_deploy.bundle.bundle import Bundle
from qvec_deploy.bundle.manifest import LAMBDA0, Manifest, hash_files, write_manifest
from qvec_deploy.errors import IncompatibleError
from qvec_deploy.io.files import publish, remove_first, storage_errors
from qvec_deploy.io.scratch import scratch_folder
from qvec_deploy.progress import Progress
from qvec_deploy.recipe.blocks import Target
from qvec_deploy.runtimes.engine_files import ACTIVATIONS_FILE, KERNELS_FILE, MODEL_FILE, WEIGHTS_FILE
from qvec_deploy.runtimes.engine_options import EngineOptions
from qvec_deploy.runtimes.registry import find_lowering, find_runtime, products_of
from qvec_deploy.runtimes.runtime import Runtime

_SOURCES = (MODEL_FILE, WEIGHTS_FILE, PARITY_FILE, ACTIVATIONS_FILE, KERNELS_FILE)


@dataclass(frozen=True)
class CompiledEngines:
    """Engines of one lowering that a bundle now has.

    Attributes:
        parity: How they compare with PyTorch; None where they were not run.
        not_run: Why they were not: they were built for GPUs that are elsewhere.
    """

    lowering: str
    parity: Parity | None
    not_run: str | None
    engines: list[dict[str, Any]]


def engine_options(target: Target, batch_sizes: Sequence[int] = ()) -> EngineOptions:
    """How a recipe wants its engines built."""
    return EngineOptions(batch_sizes=tuple(batch_sizes) or target.batch_sizes, **target.engine.model_dump())


def compile_engines(target: Target, directory: Path, caches: Path, progress: Progress) -> list[str]:
    """Build the engines of a candidate beside its weights.

    Args:
        caches: Folder of the measured tactics, which outlasts the build: the one that holds the bundle.
    """
    stage = partial(progress.stage, "compile")
    compiler = find_runtime(target.runtime).load_compiler()
    return compiler.compile(directory, target.lowering, engine_options(target), caches=caches, stage=stage)


def compile_bundle(
    directory: Path,
    *,
    lowerings: Sequence[str] = (),
    batch_sizes: Sequence[int] = (),
    plugin: Path | None = None,
    progress: Progress | None = None,
) -> list[CompiledEngines]:
    """Build a bundle's engines on this machine, in place of those it had, and run them where they run here.

    They are built and tried in a scratch folder; until they are in place and in the manifest, the bundle is as it was
    or says that it has no engine.

    Args:
        plugin: Our plugin as a compiled library, for releases of TensorRT that take none from Python.

    Raises:
        IncompatibleError: The bundle is for another runtime, or lacks what a lowering needs; TensorRT or the GPU is
            missing or refuses; an engine computes something else than PyTorch.
    """
    bundle, progress = Bundle.open(directory), progress or Progress()
    own = bundle.manifest.engine
    row = find_runtime(own.runtime)
    if not row.compiles:
        raise IncompatibleError(
            f"{directory} is for runtime `{own.runtime}`, which compiles nothing",
            hint=f"it can be used as it is where {own.runtime} runs: try `qvec-deploy verify`; for TensorRT, build it "
            "with target.runtime: tensorrt",
        )
    chosen = tuple(dict.fromkeys(bundle.check_lowering(lowering) for lowering in lowerings or (own.lowering,)))
    for lowering in chosen:
        bundle.require_activations(lowering)
    options = engine_options(bundle.recipe.target, batch_sizes)
    if plugin is not None:
        if not any(find_lowering(own.runtime, name).carries_kernels for name in chosen):
            raise IncompatibleError(f"lowering `{chosen[0]}` has no plugin", hint="leave out --plugin")
        options = replace(options, plugin_library=str(plugin.resolve()))
    plain = [LAMBDA0] if (directory / LAMBDA0).is_dir() else []
    compiled: list[CompiledEngines] = []
    with storage_errors(directory), scratch_folder("compile", directory) as scratch:
        made: dict[str, Path] = {}
        for lowering in chosen:
            for part in ("", *plain):
                place = _linked(directory / part, scratch / lowering / part)
                names, parity, not_run = _compile(row, place, lowering, options, directory.resolve().parent, progress)
                made |= {str(Path(part) / name): place / name for name in names}
                if not part:
                    compiled.append(
                        CompiledEngines(lowering, parity, not_run, row.load_compiler().describe(place, lowering))
                    )
        _install(bundle, made, chosen, compiled)
    return compiled


def _linked(source: Path, place: Path) -> Path:
    """A folder that has a bundle's files without copying them."""
    place.mkdir(parents=True)
    for name in _SOURCES:
        if (source / name).is_file():
            (place / name).symlink_to((source / name).resolve())
    return place


def _compile(
    row: Runtime, place: Path, lowering: str, options: EngineOptions, caches: Path, progress: Progress
) -> tuple[list[str], Parity | None, str | None]:
    compiler = row.load_compiler()
    names = compiler.compile(place, lowering, options, caches=caches, stage=partial(progress.stage, "compile"))
    not_run = row.missing(lowering)
    if not_run is not None:
        return names, None, not_run
    with progress.stage("check", lowering), compiler.open(place, lowering, 1) as session:
        return names, check_parity(session, row.name, lowering, read_reference(place)), None


def _install(
    bundle: Bundle, made: dict[str, Path], lowerings: Sequence[str], compiled: Sequence[CompiledEngines]
) -> None:
    """Move engines into a bundle; its manifest is true at every moment."""
    directory, manifest = bundle.directory, bundle.manifest
    stale = {
        name for name in manifest.files for lowering in lowerings if Path(name).name.startswith(f"engine.{lowering}.")
    }
    kept = {name: entry for name, entry in manifest.files.items() if name not in stale}
    own = manifest.engine.lowering in lowerings
    if own or stale:
        missing = "it was being compiled" if own else manifest.engine.missing
        _write(bundle, manifest, missing=missing, not_run=manifest.engine.not_run, files=kept)
    for name in stale:
        remove_first(directory / name)
    for name, path in made.items():
        publish(path, directory / name)
    files = kept | hash_files(directory, made)
    missing, not_run, parity = manifest.engine.missing, manifest.engine.not_run, manifest.parity
    for each in compiled:
        if each.lowering == manifest.engine.lowering:
            missing, not_run, parity = None, each.not_run, each.parity
    _write(bundle, manifest, missing=missing, not_run=not_run, files=files, parity=parity)


def _write(bundle: Bundle, manifest: Manifest, *, missing: str | None, not_run: str | None, **changes: Any) -> None:
    products = products_of(manifest.engine.runtime, bundle.directory, manifest.engine.lowering)
    engine = manifest.engine.model_copy(update={"missing": missing, "not_run": not_run, "products": products})
    write_manifest(bundle.directory, manifest.model_copy(update={"engine": engine, **changes}))
