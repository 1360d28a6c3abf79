"""A pytest plugin: every process takes its share of the tests, `QVEC_SHARD=1/4` the second of four.

A bare machine has no pytest-xdist, and most of the time of the kernels' tests goes into compiling for one of them.
"""

from __future__ import annotations

import os
from typing import Any


def pytest_collection_modifyitems(config: Any, items: list[Any]) -> None:
    """Leave out what other processes run."""
    index, count = map(int, os.environ["QVEC_SHARD"].split("/"))
    config.hook.pytest_deselected(items=[item for place, item in enumerate(items) if place % count != index])
    items[:] = items[index::count]
