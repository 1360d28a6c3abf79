"""Manifests that somebody edits and whose digest is made anew, as whoever wants to deceive would."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from qvec_deploy.bundle.manifest import manifest_bytes


def edit_manifest(bundle: Path, **changes: Any) -> None:
    """Set fields of a bundle's manifest."""
    path = bundle / "manifest.json"
    path.write_bytes(manifest_bytes(json.loads(path.read_text()) | changes))


def rewrite_file(bundle: Path, name: str, data: bytes) -> None:
    """Change a file of a bundle, and its hash in the manifest with it."""
    (bundle / name).write_bytes(data)
    files = json.loads((bundle / "manifest.json").read_text())["files"]
    files[name] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    edit_manifest(bundle, files=files)
