"""Where outputs may go: not into a bundle, whose manifest lists every file."""

from __future__ import annotations

from pathlib import Path

from qvec_deploy.errors import StorageError
from qvec_deploy.io.files import storage_errors


def require_outside(path: Path, bundle: Path) -> None:
    """Refuse to write into a bundle, whose manifest lists every file.

    Raises:
        StorageError: `path` is the bundle or lies in it.
    """
    inner, outer = path.resolve(), bundle.resolve()
    if inner == outer or outer in inner.parents:
        raise StorageError(f"{path} is in the bundle {bundle}", hint="choose another folder")


def require_report_folder(path: Path) -> None:
    """Refuse a folder that a report must not be written into, before the measuring and not after it.

    Raises:
        StorageError: It is a bundle, whose files have hashes, or in one, or it cannot be made.
    """
    for folder in (path.resolve(), *path.resolve().parents):
        if (folder / "manifest.json").is_file():
            where = "is a bundle" if folder == path.resolve() else f"is in the bundle {folder}"
            raise StorageError(f"{path} {where}", hint="write the report into another directory")
    with storage_errors(path):
        path.mkdir(parents=True, exist_ok=True)
