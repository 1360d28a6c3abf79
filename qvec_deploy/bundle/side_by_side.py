"""Existing bundles side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from qvec_deploy.bench.entries import BenchEntry, BenchOptions
from qvec_deploy.bench.results import Report, Role
from qvec_deploy.bench.run import measure_engines, open_images
from qvec_deploy.bundle.bundle import Bundle
from qvec_deploy.errors import IncompatibleError, StorageError
from qvec_deploy.io.machine_lock import MachineLock
from qvec_deploy.progress import Progress
from qvec_deploy.recipe import FLOAT_BITS, Evaluate, Measure


def bench_bundles(
    directories: Sequence[Path],
    *,
    lowerings: Sequence[str] = (),
    threads: int | None = None,
    batch_sizes: Sequence[int] = (),
    blocks: int | None = None,
    data_root: Path | None = None,
    evaluate: bool = True,
    profile: bool = True,
    measure: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Report:
    """Measure bundles as `build` measures its candidates.

    Args:
        directories: The bundles; the first is the baseline.
        lowerings: Run every packed bundle with each of these instead of its own.
        threads: Threads of every engine instead of the recipes'.
        blocks: Latency samples instead of the first recipe's.
        data_root: Folder of the images instead of the recipe's.
        evaluate: Measure accuracy, on the images of the first recipe that names some.
        measure: Fields of the recipe's `measure` instead of the first recipe's, validated as there.
    """
    bundles = [Bundle.open(directory) for directory in directories]
    first = bundles[0]
    for bundle in bundles:
        unusable = bundle.engine_unusable()
        if unusable is not None:
            hint = "measure it on a machine where it runs, or leave it out"
            raise IncompatibleError(f"{bundle.directory} {unusable}", hint=hint)
        require_same_images(first, bundle)
    entries = [c for bundle in bundles for c in _entries(bundle, lowerings, threads)]
    recipe = first.recipe
    judge, root = _judge(bundles) if evaluate else (None, None)
    changed = {**recipe.measure.model_dump(), **(measure or {}), **({} if blocks is None else {"blocks": blocks})}
    options = BenchOptions(
        title=" and ".join(dict.fromkeys(bundle.manifest.name for bundle in bundles)),
        recipe=recipe.name,
        model=first.manifest.model,
        evaluate=judge,
        data_root=data_root or root,
        measure=Measure(**changed),
        batch_sizes=tuple(batch_sizes) or recipe.target.batch_sizes,
        selected=None,
        baseline="",
        profile=profile,
    )
    if options.data_root is not None and not options.data_root.is_dir():
        raise StorageError(
            f"{options.data_root}: no such folder", hint="name the folder with --data; `bench --no-accuracy` needs none"
        )
    entries = _unique(entries)
    machine, progress = MachineLock.here(), progress or Progress()
    options = replace(options, baseline=entries[0].name, alone=lambda: machine.alone(progress.stage("wait")))
    images = open_images(options, progress)
    with machine.shared(progress.stage("wait")):
        return measure_engines(entries, options, images, progress).report


def require_same_images(first: Bundle, other: Bundle) -> None:
    """Refuse bundles whose engines take other images or give other classes."""
    same = ("classes", "input_shape", "data_config")
    odd = [f for f in same if getattr(other.manifest.model, f) != getattr(first.manifest.model, f)]
    if odd:
        raise IncompatibleError(
            f"{other.directory} and {first.directory} differ in {', '.join(odd)}",
            hint="bundles are compared on the same images; choose bundles of one task",
        )


def _judge(bundles: Sequence[Bundle]) -> tuple[Evaluate | None, Path | None]:
    """The first labelled images that a recipe names, and their folder."""
    for bundle in bundles:
        evaluate = bundle.recipe.evaluate
        if evaluate is not None:
            return evaluate, Path(bundle.recipe.locate(evaluate.root)) if evaluate.root is not None else None
    return None, None


def _entries(bundle: Bundle, lowerings: Sequence[str], threads: int | None) -> list[BenchEntry]:
    manifest, recipe = bundle.manifest, bundle.recipe
    is_float = recipe.quantize.bits in FLOAT_BITS
    role: Role = "float" if is_float else ("patched" if recipe.lam != 0 else "ptq")
    wanted = [manifest.engine.lowering] if is_float or not lowerings else list(dict.fromkeys(lowerings))
    return [
        BenchEntry(
            name=manifest.name if len(wanted) == 1 else f"{manifest.name} {lowering}",
            role=role,
            recipe=recipe,
            directory=bundle.directory,
            lowering=bundle.check_lowering(lowering),
            threads=bundle.threads(threads),
            sources=tuple((vector.name, vector.weight) for vector in manifest.vectors),
            layer_errors={layer.name: layer.error for layer in manifest.layers},
            control=manifest.control,
        )
        for lowering in wanted
    ]


def _unique(entries: Sequence[BenchEntry]) -> list[BenchEntry]:
    """Bundles of one name get a number."""
    seen: dict[str, int] = {}
    named = []
    for entry in entries:
        seen[entry.name] = count = seen.get(entry.name, 0) + 1
        named.append(entry if count == 1 else replace(entry, name=f"{entry.name} ({count})"))
    return named
