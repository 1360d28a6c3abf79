"""TensorRT on NVIDIA GPUs: bundles for it are written; its engines are not compiled by this version."""

from __future__ import annotations

from contextlib import AbstractContextManager
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

    def open(self, directory: Path, lowering: str, threads: int) -> AbstractContextManager[Session]:
        """Refuse.

        Raises:
            IncompatibleError: Always.
        """
        raise IncompatibleError(f"{directory}: {self.missing()}", hint="use the runtime `onnxruntime` on this machine")
