"""The header of a vector file: what the vector fits and how it came about, known without reading a weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from qvec_deploy.errors import IncompatibleError, IntegrityError
from qvec_deploy.io.files import canonical_json
from qvec_deploy.io.untrusted import adapter, json_object, understood
from qvec_deploy.tensors import Scheme

FORMAT = "qvec-vector"
FORMAT_VERSION = "1.2.0"
_UNASSUMING = "1.1.0"  # files that rest on nothing unchecked have no field of 1.2
_FIELDS_1_0 = {"format", "version", "scheme", "skip", "task", "seed", "norm", "weight_norm", "made_by"}
_FIELDS_1_1 = _FIELDS_1_0 | {"norms", "base", "dtype", "sketch_seed", "parts", "control"}
_FIELDS = _FIELDS_1_1 | {"assumed"}


@dataclass(frozen=True)
class Part:
    """One donor of a mix: its task, its seed, its weight in the mix, and the SHA-256 of its file."""

    task: str
    seed: int
    weight: float
    sha256: str


@dataclass(frozen=True)
class VectorHeader:
    """What a vector fits, known without reading it. What follows `made_by` came with format 1.1.

    Attributes:
        seed: The donor's seed; the first donor's of a mix.
        norm: L2 norm of rho over all its tensors.
        weight_norm: L2 norm of the donor's float weights over the same tensors.
        norms: L2 norms of rho and of the donor's float weight, by tensor; empty where the donor's are not known.
        base: SHA-256 of the pretrained checkpoint the donor started from; None if it was not given.
        sketch_seed: Seed of the sketch in the file; None without one.
        control: What was put in rho's place, for a file that exists to be beaten; None for a real vector.
        assumed: What nobody could check when it was made, in words; it came with format 1.2.
    """

    scheme: Scheme
    skip: tuple[str, ...]
    task: str
    seed: int
    norm: float
    weight_norm: float
    made_by: str
    norms: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    base: str | None = None
    dtype: str = "float32"
    sketch_seed: int | None = None
    parts: tuple[Part, ...] = ()
    control: str | None = None
    assumed: tuple[str, ...] = ()

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seed of every donor in it."""
        return tuple(part.seed for part in self.parts) or (self.seed,)

    @property
    def share(self) -> float:
        """Norm of rho as a share of the weights' norm; 0.0 for weights of norm 0."""
        return self.norm / self.weight_norm if self.weight_norm else 0.0


def header_text(header: VectorHeader) -> str:
    """A header as the one metadata entry of its file."""
    return canonical_json(_as_dict(header, FORMAT_VERSION if header.assumed else _UNASSUMING)).decode()


def read_header(text: str, path: Path) -> VectorHeader:
    """The header in a file's metadata entry, of format 1.0 to 1.2."""
    with understood(f"{path}: its vector header", "make or download it again"):
        values = json_object(text)
        if values["format"] != FORMAT:
            raise IntegrityError(f"{path} is a {values['format']} file", hint="a quantization vector is needed here")
        version = str(values["version"])
        if version.split(".")[0] != FORMAT_VERSION.split(".")[0]:
            raise IncompatibleError(
                f"{path} has vector format {version}", hint=f"this version reads {FORMAT_VERSION}; upgrade"
            )
        wanted = _fields(version)
        if set(values) != wanted:
            raise IntegrityError(f"{path} has header fields {sorted(values)}", hint=f"expected {sorted(wanted)}")
        header = _from_dict(values)
        # pydantic converts where it can; a header that was written by this program needs that nowhere.
        if canonical_json(_as_dict(header, version)) != canonical_json(values):
            raise ValueError("a field has another type than this format gives it")
    return header


def _from_dict(values: dict[str, Any]) -> VectorHeader:
    fields = {name: value for name, value in values.items() if name not in ("format", "version")}
    fields["scheme"] = Scheme.from_dict(values["scheme"])
    header: VectorHeader = adapter(VectorHeader).validate_python(fields)
    return header


def _as_dict(header: VectorHeader, version: str) -> dict[str, Any]:
    values = {"format": FORMAT, "version": version, **asdict(header)}
    return {key: value for key, value in values.items() if key in _fields(version)}


def _fields(version: str) -> set[str]:
    return _FIELDS_1_0 if version.startswith("1.0.") else _FIELDS_1_1 if version.startswith("1.1.") else _FIELDS
