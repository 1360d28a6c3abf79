"""What makes things: the versions of packages, and this package's own text."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
from collections.abc import Iterable
from pathlib import Path

from qvec_deploy.io.files import sha256_file

_NO_MAKERS = ("cli", "report", "research")
"""Of this package, what decides no byte of a candidate. All other text does; it changes within a version."""


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Versions by package, without those that are not installed."""
    found = {}
    for name in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


@functools.cache
def own_text() -> str:
    """Hex SHA-256 of this package's text, as far as it decides what is made."""
    package = Path(__file__).parents[1]
    texts = sorted(t for t in package.rglob("*.py") if t.relative_to(package).parts[0] not in _NO_MAKERS)
    return hashlib.sha256(b"".join(sha256_file(text).encode() for text in texts)).hexdigest()
