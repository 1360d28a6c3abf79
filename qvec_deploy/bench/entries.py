"""Which engines are measured, which share their answers, and how."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qvec_deploy.bench.parity import PARITY_FILE
from qvec_deploy.bench.results import Model, Role
from qvec_deploy.io.files import sha256_file
from qvec_deploy.recipe import Evaluate, Measure, Recipe
from qvec_deploy.runtimes.engine_files import WEIGHTS_FILE
from qvec_deploy.runtimes.registry import find_lowering


@dataclass(frozen=True)
class BenchEntry:
    """An engine on disk that is to be measured.

    Attributes:
        directory: Holds model.onnx and the packed weights.
        sources: Vectors in its patch and their mixing weights.
        control: What stands in for the vector in its patch, in words; None for a real one.
        emulated: Whether it is computed on the CPU (`runtimes.session.Emulator`), for it cannot be run here.
    """

    name: str
    role: Role
    recipe: Recipe
    directory: Path
    lowering: str
    threads: int
    sources: tuple[tuple[str, float], ...]
    layer_errors: Mapping[str, float]
    control: str | None = None
    emulated: bool = False


def shared_answers(entries: Sequence[BenchEntry], preferred: str | None, *, apart: bool) -> dict[str, str]:
    """Which engines need not be asked: those that compute the same as another one, up to float32's rounding.

    The same means the same packed weights, the same reference logits, one runtime and exact lowerings.

    Args:
        preferred: The entry that answers itself, whatever others it shares with.
        apart: Whether folders are bundles, perhaps of different versions of this package, and share nothing.

    Returns:
        The name of an entry to that of the one whose answers it has.
    """
    groups: dict[tuple[str, ...], list[str]] = {}
    for entry in sorted(entries, key=lambda entry: entry.name != preferred):
        files = [entry.directory / name for name in (WEIGHTS_FILE, PARITY_FILE)]
        target = entry.recipe.target
        if find_lowering(target.runtime, entry.lowering).exact and all(file.is_file() for file in files):
            place = str(entry.directory) if apart else ""
            same = (place, target.runtime, target.preprocessing, *map(sha256_file, files))
            groups.setdefault(same, []).append(entry.name)
    return {name: first for first, *others in groups.values() for name in others}


@dataclass(frozen=True)
class BenchOptions:
    """What to measure.

    Attributes:
        recipe: Name of the recipe or comparison.
        evaluate: Labelled images; None leaves accuracy out.
        data_root: The images' folder, resolved.
        selected: The entry that ships, if any.
        baseline: The entry that speed-ups refer to.
        alone: Held while load times and latencies are measured: nothing else of a sweep runs then.
    """

    title: str
    recipe: str
    model: Model
    evaluate: Evaluate | None
    data_root: Path | None
    measure: Measure
    batch_sizes: tuple[int, ...]
    selected: str | None
    baseline: str
    alone: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext
    profile: bool = True
