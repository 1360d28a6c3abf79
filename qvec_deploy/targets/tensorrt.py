"""TensorRT on NVIDIA GPUs: bundles for it are written; its engines are not compiled by this version."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from qvec_deploy.errors import IncompatibleError

if TYPE_CHECKING:
    from qvec_deploy.targets import Session


class TensorRT:
    """The `tensorrt` runtime."""

    def missing(self) -> str | None:
        """Engines are not compiled yet, whatever the machine has."""
        return "this version writes bundles for TensorRT but does not compile its engines"

    @contextlib.contextmanager
    def open(self, directory: Path, lowering: str, threads: int) -> Iterator[Session]:
        """Refuse.

        Raises:
            IncompatibleError: Always.
        """
        raise IncompatibleError(
            f"{directory}: {self.missing()}", hint="open it with `--runtime onnxruntime` to check it on the CPU"
        )
        yield
