"""What it takes to make a bundle's timm model again, kept beside its weights."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from qvec_deploy.io.files import canonical_json, require_file, write_bytes
from qvec_deploy.io.untrusted import read_json, understood
from qvec_deploy.models import Architecture, ModelArgs
from qvec_deploy.runtimes.engine_files import STRUCTURE_FILE

_MOST = 1 << 20
"""Of any size of a model's images or answers."""


@dataclass(frozen=True)
class Structure:
    """What it takes to make the timm model again.

    Attributes:
        input_shape: (C, H, W) of one image.
    """

    name: str
    classes: int
    args: ModelArgs
    input_shape: tuple[int, int, int]


def write_structure(directory: Path, architecture: Architecture, args: ModelArgs) -> None:
    """Keep the model's structure beside its weights."""
    structure = Structure(architecture.name, architecture.classes, dict(args), architecture.input_shape)
    write_bytes(directory / STRUCTURE_FILE, canonical_json(asdict(structure)))


def read_structure(directory: Path) -> Structure:
    """What `write_structure` kept."""
    path = require_file(directory / STRUCTURE_FILE, what="structure")
    values = read_json(path)
    with understood(path):
        channels, height, width = map(int, values["input_shape"])
        name, classes, args = str(values["name"]), int(values["classes"]), dict(values["args"])
        if not all(0 < size < _MOST for size in (channels, height, width, classes)):
            raise ValueError("it has impossible sizes")
    return Structure(name, classes, args, (channels, height, width))
