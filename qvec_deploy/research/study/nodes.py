"""A node of a study: one piece of work, and all that decides its result."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, Literal, get_args

from qvec_deploy.io.files import canonical_json, sha256_bytes
from qvec_deploy.jobs.job import Job

NodeKind = Literal["base", "fp", "qat", "vector", "cell"]
KINDS: tuple[NodeKind, ...] = get_args(NodeKind)

WORK_VERSION = 1
"""Of what bases, fine-tunes and vectors are: raise it when the code that makes them makes other numbers.

Its text is not part of a node's key: a comment must not cost a day of training.
"""

_PACKAGES = ("torch", "timm", "nvidia-modelopt", "numpy")


@functools.cache
def package_versions() -> Mapping[str, str]:
    """Versions of the packages whose arithmetic a study's numbers come from."""
    return {package: version(package) for package in _PACKAGES}


@dataclass(frozen=True)
class Node:
    """One piece of work.

    Attributes:
        kind: `base`, `fp` and `qat` are weights, `vector` their difference, `cell` everything tried on a receiver.
        about: `model`, and where they apply `task`, `grid`, `seed`: what it is, for people.
        decides: All that decides its result, keys of its parents included. JSON values.
        settings: All that making it takes, paths included. JSON values.
        parents: Ids of the nodes it needs.
        gpus: That it computes on.
        versions: Of the packages whose arithmetic its numbers come from.
    """

    kind: NodeKind
    about: Mapping[str, str | int]
    decides: Mapping[str, Any]
    settings: Mapping[str, Any]
    parents: tuple[str, ...] = ()
    gpus: int = 0
    versions: Mapping[str, str] = field(default_factory=package_versions)

    @functools.cached_property
    def key(self) -> str:
        """SHA-256 of what decides its result, with the versions of the packages that make the numbers."""
        return sha256_bytes(canonical_json(self.keyed))

    @property
    def keyed(self) -> dict[str, Any]:
        """What its key is of."""
        return {"kind": self.kind, "work": WORK_VERSION, "versions": dict(self.versions), **self.decides}

    @property
    def name(self) -> str:
        """What people call it."""
        return " ".join([self.kind, *map(str, self.about.values())])

    @property
    def id(self) -> str:
        """Its name as a file's, with the beginning of its key."""
        words = (f"seed{value}" if key == "seed" else str(value) for key, value in self.about.items())
        return "-".join([self.kind, *words, self.key[:12]])

    def job(self, out: str) -> Job:
        """The node as a job that makes it."""
        values = {
            "kind": self.kind,
            "about": dict(self.about),
            "decides": dict(self.decides),
            "settings": dict(self.settings),
            "versions": dict(self.versions),
        }
        return Job(
            self.id, "qvec_deploy.research.study.tasks:work", {"out": out, "values": values}, self.parents, self.gpus
        )
