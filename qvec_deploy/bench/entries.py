"""Which engines are measured, and how."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from qvec_deploy.bench.results import Model, Role
from qvec_deploy.recipe import Evaluate, Measure, Recipe


@dataclass(frozen=True)
class BenchEntry:
    """An engine on disk that is to be measured.

    Attributes:
        directory: Holds model.onnx and the packed weights.
        sources: Vectors in its patch and their mixing weights.
        control: What stands in for the vector in its patch, in words; None for a real one.
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
