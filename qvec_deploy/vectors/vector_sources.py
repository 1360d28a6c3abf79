"""What a recipe's `vector` block names, opened: vector files or donors' checkpoints, as one interface."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from qvec_deploy.errors import IncompatibleError
from qvec_deploy.io.checkpoint import Checkpoint, TensorInfo
from qvec_deploy.io.state_dict import Weights
from qvec_deploy.models import in_head
from qvec_deploy.recipe import Recipe
from qvec_deploy.tensors import Float32, Scheme
from qvec_deploy.vectors.sketch import Sketch, make_sketch
from qvec_deploy.vectors.vector_file import QuantizationVector, VectorHeader


@dataclass(frozen=True)
class PairHeader:
    """Header of a donor given as two checkpoints: what the recipe states about them."""

    scheme: Scheme
    skip: tuple[str, ...]


class Source(Protocol):
    """One quantization vector, whatever it is stored as."""

    @property
    def header(self) -> VectorHeader | PairHeader: ...  # noqa: D102
    @property
    def tensors(self) -> Mapping[str, TensorInfo]: ...  # noqa: D102
    def read(self, name: str) -> Float32:
        """One tensor of rho, float32."""

    def fingerprints(self) -> dict[str, str]:
        """SHA-256 of every file behind it, by file name."""

    def sketch(self) -> Sketch | None:
        """The sketch of the donor's float weights, by which coordinates are compared; None where it is not known."""

    def moment(self, module: str) -> Float32 | None:
        """Second moments (in, in) of the inputs of one of the donor's Linears; None where the vector ships none."""

    def control(self) -> str | None:
        """What was put in rho's place, in words, for a control; None for a real vector."""


class DonorPair:
    """A donor's FP and QAT checkpoints; rho is their difference, computed on demand."""

    def __init__(self, fp: Checkpoint, qat: Checkpoint, header: PairHeader, heads: tuple[str, ...]) -> None:
        odd = sorted(set(fp.tensors) ^ set(qat.tensors))
        odd += [name for name, info in fp.tensors.items() if not odd and qat.tensors[name].shape != info.shape]
        if odd:
            raise IncompatibleError(
                f"{fp.path} and {qat.path} differ in {odd[0]}",
                hint="a donor is two fine-tunes of one model on one task",
            )
        self.header = header
        self.tensors = {name: info for name, info in fp.tensors.items() if not in_head(name, heads)}
        self._fp, self._qat = fp, qat

    def read(self, name: str) -> Float32:
        """theta_QAT - theta_FP of one tensor, float32."""
        return self._qat.read(name) - self._fp.read(name)

    def fingerprints(self) -> dict[str, str]:
        """SHA-256 of both files, by file name."""
        return {self._fp.source: self._fp.fingerprint(), self._qat.source: self._qat.fingerprint()}

    def sketch(self) -> Sketch:
        """The sketch of the donor's float weights, made now."""
        return make_sketch(self.tensors, self._fp.read)

    def moment(self, module: str) -> None:
        """None: checkpoints hold no moments."""

    def control(self) -> None:
        """None: a donor's checkpoints are no control."""


class OpenFiles:
    """Checkpoints and vectors, each opened once however many candidates name it."""

    def __init__(self, *, offline: bool = False) -> None:
        self._offline = offline
        self._checkpoints: dict[tuple[str, str, Weights | None], Checkpoint] = {}
        self._vectors: dict[tuple[str, str], QuantizationVector] = {}

    def checkpoint(self, source: str, label: str, weights: Weights | None = None) -> Checkpoint:
        """An opened checkpoint; `label` is what errors and records call it."""
        key = (source, label, weights)
        if key not in self._checkpoints:
            self._checkpoints[key] = Checkpoint.open(source, offline=self._offline, label=label, weights=weights)
        return self._checkpoints[key]

    def vector(self, source: str, label: str) -> QuantizationVector:
        """An opened vector file; `label` is what errors and records call it."""
        key = (source, label)
        if key not in self._vectors:
            self._vectors[key] = QuantizationVector.open(source, offline=self._offline, label=label)
        return self._vectors[key]


def open_sources(recipe: Recipe, heads: tuple[str, ...], files: OpenFiles) -> dict[str, Source]:
    """Open the vectors of a recipe, headers only; empty without a vector."""
    if recipe.vector is None:
        return {}
    sources: dict[str, Source] = {}
    wanted = iter(recipe.vector.sha256)
    for path in recipe.vector.files:
        vector = files.vector(recipe.locate(path), path)
        vector.checkpoint.require(next(wanted, None))
        sources[path] = vector
    for donor in recipe.vector.donors:
        assert recipe.vector.scheme is not None  # noqa: S101 - the recipe's validator made sure
        header = PairHeader(recipe.vector.scheme.scheme(), recipe.quantize.skip)
        fp, qat = (files.checkpoint(recipe.locate(path), path) for path in (donor.fp, donor.qat))
        fp.require(next(wanted, None))
        qat.require(next(wanted, None))
        sources[f"{donor.qat} - {donor.fp}"] = DonorPair(fp, qat, header, heads)
    return sources


def random_like(rho: Float32, name: str, seed: int) -> Float32:
    """A Gaussian tensor with the norm of `rho`: the control that a vector must beat."""
    generator = np.random.default_rng([seed, *name.encode()])
    noise = generator.standard_normal(rho.shape, dtype=np.float32)
    norm = np.linalg.norm(noise)
    return noise * (np.linalg.norm(rho) / norm) if norm else noise
