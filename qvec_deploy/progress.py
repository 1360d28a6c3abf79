"""Stages of long work: their times for the manifest, their progress for whoever watches."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

Advance = Callable[[int, int], None]


class Progress:
    """Times stages and shows nothing; a front end overrides `show`.

    Attributes:
        timings_s: Seconds of every finished stage, summed over its repetitions.
    """

    def __init__(self) -> None:
        self.timings_s: dict[str, float] = {}

    @contextlib.contextmanager
    def stage(self, name: str, detail: str = "") -> Iterator[Advance]:
        """Run a stage; the block may call the yielded function with (done, total)."""
        start = time.monotonic()
        with self.show(name, detail) as advance:
            yield advance
        self.timings_s[name] = self.timings_s.get(name, 0.0) + time.monotonic() - start

    @contextlib.contextmanager
    def show(self, name: str, detail: str) -> Iterator[Advance]:
        """Display a stage while it runs."""
        yield lambda done, total: None
