"""manifest.json, written last: every file's hash, and what made the bundle."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

from qvec_deploy.bench.results import Model, Parity
from qvec_deploy.bench.selection import Selection
from qvec_deploy.errors import IncompatibleError, IntegrityError, StorageError
from qvec_deploy.io.files import canonical_json, sha256_bytes, sha256_file, storage_errors, write_bytes
from qvec_deploy.io.untrusted import AGAIN, MAX_BYTES, json_object, read_limited, understood
from qvec_deploy.quantize.methods import ROUND_TO_NEAREST
from qvec_deploy.runtimes.session import LinearProduct

MANIFEST_FILE = "manifest.json"
LAMBDA0 = "lambda0"
"""Folder with the engine without the patch, in a bundle whose patch nobody has verified."""
FORMAT = "qvec-bundle"
FORMAT_VERSION = "1.3.0"
_WITHOUT_DIGEST = ("1.0.0", "1.1.0", "1.2.0")
RELEASE_NUMBER = r"^[0-9]{1,9}(\.[0-9]{1,9}){0,7}$"
MAX_SIGNERS = 8
_TIME = re.compile(r"(?:19|20)[0-9]{2}-[0-9]{2}-[0-9]{2}T[0-9:.]{8,15}[+-][0-9]{2}:[0-9]{2}")
_MAX_SECONDS = 1e9  # thirty years
_MAX_NAME = 255  # bytes; what file systems take


class ManifestPart(BaseModel):
    """A part of the manifest: frozen, with its own fields and no others."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


def _require_time(text: str) -> str:
    if not _TIME.fullmatch(text):
        raise ValueError("it is no time such as 2026-11-30T10:00:00+00:00")
    datetime.datetime.fromisoformat(text)
    return text


Time = Annotated[str, AfterValidator(_require_time)]
"""A time with its zone, as `datetime.isoformat` writes it."""


class FileEntry(ManifestPart):
    """A file of the bundle."""

    sha256: str
    size: int


class Engine(ManifestPart):
    """How the engine runs.

    `missing` says what stood in the way of compiling or opening it where the bundle was built; null if nothing.
    `not_run` says why an engine that is there was not run, and so not compared with PyTorch, where it was built.
    `products` says what its quantized Linears are multiplied in, where its compiler tells.
    """

    runtime: str
    lowering: str
    threads: int | None
    missing: str | None
    not_run: str | None = None
    products: tuple[LinearProduct, ...] = ()


class TensorSpec(ManifestPart):
    """What goes into model.onnx or comes out of it; a side given by a name may have any length."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


class Interface(ManifestPart):
    """What a program has to know that runs the engine without this package, beside `model` and `engine.threads`.

    `session_options` and `session_config` are those of the runtime that the engine was measured with.
    """

    model: str
    weights: str
    input: TensorSpec
    output: TensorSpec
    session_options: dict[str, int]
    session_config: dict[str, str]


class PatchVector(ManifestPart):
    """A quantization vector in the patch and its mixing weight."""

    name: str
    weight: float


class Layer(ManifestPart):
    """Relative L2 quantization error of a layer's weights."""

    name: str
    error: float


class Gate(ManifestPart):
    """A gate of the recipe, what was measured, and whether that is enough."""

    name: str
    wanted: str
    found: str
    passed: bool


class ReleaseFacts(ManifestPart):
    """What a release says of itself, which its signatures cover.

    `number` is whole numbers with dots between them, of which the publisher gives a later release a larger one;
    `released` is when it was made; `expires` the last day, in UTC, on which it is to be used. `signers` are the public
    keys of its signatures, base64 of DER, in their order.
    """

    number: str | None = Field(default=None, pattern=RELEASE_NUMBER)
    released: Time
    expires: str | None = None
    signers: tuple[str, ...] = Field(default=(), max_length=MAX_SIGNERS)

    @field_validator("expires")
    @classmethod
    def _day(cls, text: str | None) -> str | None:
        if text is not None:
            datetime.date.fromisoformat(text)
        return text


class Manifest(ManifestPart):
    """Everything a bundle says about itself.

    `receiver_weights` is `ema` or `raw` where the receiver's file had both or said so. `unverified` says why nobody
    knows whether the patch helps; null where images have shown it. `recipe_folder` is what relative paths of the recipe
    start from, where the bundle was built; releases have none. `interface`, `receiver_weights` and `recipe_folder` came
    with version 1.2. From version 1.3, `digest` is the SHA-256 of everything else as canonical JSON: it finds
    accidents, for whoever edits a manifest can make it anew. `source_commit` is the commit of this program that built
    the bundle, where it ran from a git checkout; `release` is what `release` says of a release. Both came with 1.3.
    """

    format: str = FORMAT
    version: str = FORMAT_VERSION
    name: str
    created: Time
    recipe_sha256: str
    sources: dict[str, str]
    model: Model
    engine: Engine
    interface: Interface | None = None
    receiver_weights: str | None = None
    recipe_folder: str | None = None
    lam: float
    vectors: tuple[PatchVector, ...]
    control: str | None
    stored_bytes: int
    stored_bits_per_weight: float
    runtime_bits_per_weight: float
    layers: tuple[Layer, ...]
    parity: Parity | None
    method: str = ROUND_TO_NEAREST.name
    selection: Selection | None = None
    gates: tuple[Gate, ...] = ()
    unverified: str | None = None
    versions: dict[str, str]
    timings_s: dict[str, float]
    files: dict[str, FileEntry]
    source_commit: str | None = None
    release: ReleaseFacts | None = None
    digest: str | None = Field(default=None, exclude=True)

    @field_validator("timings_s")
    @classmethod
    def _durations(cls, seconds: dict[str, float]) -> dict[str, float]:
        if not all(0 <= each <= _MAX_SECONDS for each in (*seconds.values(), sum(seconds.values()))):
            raise ValueError("they are no durations")
        return seconds

    @property
    def older(self) -> bool:
        """Whether it was written before graphs had the form of their lowering."""
        return self.version.startswith(("1.0.", "1.1."))


def hash_files(directory: Path, names: Iterable[str]) -> dict[str, FileEntry]:
    """Size and SHA-256 of the named files."""
    return {
        name: FileEntry(sha256=sha256_file(directory / name), size=(directory / name).stat().st_size)
        for name in sorted(names)
    }


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write manifest.json, whole or not at all."""
    write_bytes(directory / MANIFEST_FILE, manifest_bytes(manifest.model_dump(mode="json")))


def manifest_bytes(values: Mapping[str, Any]) -> bytes:
    """manifest.json with these values and their digest."""
    content = {name: value for name, value in values.items() if name != "digest"}
    whole = content | {"digest": sha256_bytes(canonical_json(content))}
    return f"{json.dumps(whole, indent=2, sort_keys=True, allow_nan=False)}\n".encode()


def read_manifest(directory: Path, *, sha256: str | None = None) -> Manifest:
    """Read manifest.json and hold it against its digest; the other files are not touched."""
    path = directory / MANIFEST_FILE
    with storage_errors(path):
        if not path.is_file():
            raise StorageError(
                f"{directory} is not a bundle", hint="name a directory that `qvec-deploy build` has written"
            )
    with understood(path):
        data = read_limited(path, MAX_BYTES)
        if sha256 is not None and sha256_bytes(data) != sha256:
            raise IntegrityError(f"{path} was changed after its signature was checked", hint=AGAIN)
        return parse_manifest(data, path)


def parse_manifest(data: bytes, path: Path) -> Manifest:
    """As `read_manifest`, of bytes; `path` is for messages."""
    with understood(path):
        values = json_object(data)
        kind, version = values["format"], str(values["version"])
    if kind != FORMAT:
        raise IntegrityError(
            f"{path} describes a `{kind}`", hint="name a directory that `qvec-deploy build` has written"
        )
    if version.split(".")[0] != FORMAT_VERSION.split(".")[0]:
        raise IncompatibleError(
            f"{path} has bundle format {version}",
            hint=f"this version reads {FORMAT_VERSION}; upgrade or build it again",
        )
    with understood(path):
        if ("digest" in values or version not in _WITHOUT_DIGEST) and data != manifest_bytes(values):
            raise IntegrityError(f"{path} was changed: it is not what its own digest says", hint=AGAIN)
        return Manifest.model_validate_json(json.dumps(values))


def check_files(directory: Path, manifest: Manifest) -> None:
    """Compare every file with its size and hash in the manifest."""
    for name, entry in manifest.files.items():
        path = directory / name
        if len(name.encode()) > _MAX_NAME or not name.isprintable():
            raise IntegrityError(f"{directory}: the manifest names {name[:80]!r}, no file", hint="do not use it")
        if Path(name).name != name and Path(name).parent != Path(LAMBDA0):
            raise IntegrityError(f"{directory}: the manifest names {name}, outside the bundle", hint="do not use it")
        if not path.is_file():
            raise IntegrityError(f"{path} is missing", hint="build or copy the bundle again")
        if path.stat().st_size != entry.size or sha256_file(path) != entry.sha256:
            raise IntegrityError(f"{path} was changed after the build", hint="build or copy the bundle again")
