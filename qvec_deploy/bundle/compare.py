"""Existing bundles side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from qvec_deploy.bundle.bench import Bench, Contender, measure_contenders, open_images
from qvec_deploy.bundle.bundle import Bundle
from qvec_deploy.bundle.progress import Progress
from qvec_deploy.errors import IncompatibleError, StorageError
from qvec_deploy.recipe import FLOAT_BITS
from qvec_deploy.report.values import Report, Role


def bench_bundles(
    directories: Sequence[Path],
    *,
    lowerings: Sequence[str] = (),
    threads: int | None = None,
    batch_sizes: Sequence[int] = (),
    blocks: int | None = None,
    data_root: Path | None = None,
    progress: Progress | None = None,
) -> Report:
    """Measure bundles as `build` measures its candidates.

    Args:
        directories: The bundles; the first is the baseline.
        lowerings: Run every packed bundle with each of these instead of its own.
        threads: Threads of every engine instead of the recipes'.
        batch_sizes: Instead of the first recipe's.
        blocks: Latency samples instead of the first recipe's.
        data_root: Folder of the images instead of the first recipe's.
        progress: Shows the stages.

    Raises:
        QvecError: A bundle is damaged, has no engine, or takes other images than the first.
    """
    bundles = [Bundle.open(directory) for directory in directories]
    first = bundles[0]
    for bundle in bundles:
        if bundle.manifest.engine.missing is not None:
            raise IncompatibleError(
                f"{bundle.directory} has no engine: {bundle.manifest.engine.missing}", hint="leave it out"
            )
        same = ("classes", "input_shape", "data_config")
        odd = [f for f in same if getattr(bundle.manifest.model, f) != getattr(first.manifest.model, f)]
        if odd:
            raise IncompatibleError(
                f"{bundle.directory} and {first.directory} differ in {', '.join(odd)}",
                hint="bundles are compared on the same images; choose bundles of one task",
            )
    contenders = [c for bundle in bundles for c in _contenders(bundle, lowerings, threads)]
    recipe = first.recipe
    root = recipe.evaluate.root if recipe.evaluate is not None else None
    measure = recipe.measure if blocks is None else recipe.measure.model_copy(update={"blocks": blocks})
    bench = Bench(
        title=" and ".join(dict.fromkeys(bundle.manifest.name for bundle in bundles)),
        recipe=recipe.name,
        model=first.manifest.model,
        evaluate=recipe.evaluate,
        data_root=data_root or (Path(recipe.locate(root)) if root is not None else None),
        measure=measure,
        batch_sizes=tuple(batch_sizes) or recipe.target.batch_sizes,
        selected=None,
        baseline="",
    )
    if bench.data_root is not None and not bench.data_root.is_dir():
        raise StorageError(f"{bench.data_root}: no such folder", hint="name the images' folder with --data")
    contenders = _unique(contenders)
    bench = replace(bench, baseline=contenders[0].name)
    return measure_contenders(contenders, bench, open_images(bench), progress or Progress())


def _contenders(bundle: Bundle, lowerings: Sequence[str], threads: int | None) -> list[Contender]:
    manifest, recipe = bundle.manifest, bundle.recipe
    is_float = recipe.quantize.bits in FLOAT_BITS
    role: Role = "float" if is_float else ("patched" if recipe.lam != 0 else "ptq")
    wanted = [manifest.engine.lowering] if is_float or not lowerings else list(dict.fromkeys(lowerings))
    return [
        Contender(
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


def _unique(contenders: Sequence[Contender]) -> list[Contender]:
    """Bundles of one name get a number."""
    seen: dict[str, int] = {}
    named = []
    for contender in contenders:
        seen[contender.name] = count = seen.get(contender.name, 0) + 1
        named.append(contender if count == 1 else replace(contender, name=f"{contender.name} ({count})"))
    return named
