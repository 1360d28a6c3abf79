"""Writing safetensors files: whole or not there, with errors that name the path."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qvec_deploy.io.files import atomic_path


def write_safetensors(
    path: Path, arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, str] | None = None
) -> None:
    """Write arrays by name.

    Args:
        metadata: One entry at most, where files are to be reproducible: safetensors writes several in random order.

    Raises:
        StorageError: The folder cannot be written or is full.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    with atomic_path(path) as temporary:
        try:
            save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, temporary, metadata)
        except SafetensorError as error:  # how it reports what the disk refuses
            raise OSError(str(error)) from error
