"""A donor's float and QAT weights to a vector file: rho = theta_QAT - theta_FP, backbone only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path

import numpy as np

from qvec_deploy.errors import IncompatibleError
from qvec_deploy.tensors import Float32, Scheme
from qvec_deploy.vectors.file import VectorHeader, write_vector


def extract_vector(
    fp: Mapping[str, Float32],
    qat: Mapping[str, Float32],
    path: Path,
    *,
    scheme: Scheme,
    skip: tuple[str, ...],
    task: str,
    seed: int,
    head: str = "head",
    dtype: str = "float32",
) -> VectorHeader:
    """Write the quantization vector of a donor.

    Args:
        fp: The donor's float fine-tune, name to float32 tensor.
        qat: Its quantization-aware fine-tune: latent float weights, same names.
        path: The vector file to write.
        scheme: The grid of the QAT.
        skip: Child names that the QAT left float.
        task: Name of the donor's task.
        seed: Seed of both fine-tunes.
        head: Module name of the classification head, which is left out.
        dtype: `float32` or `float16`.

    Raises:
        IncompatibleError: The two differ in names or shapes.
        StorageError: The disk refuses.
    """
    names = [name for name in fp if not name.startswith(f"{head}.")]
    different = sorted(set(fp) ^ set(qat)) or [name for name in names if fp[name].shape != qat[name].shape]
    if different:
        raise IncompatibleError(
            f"the donor's FP and QAT checkpoints differ in {different[0]}", hint="use two fine-tunes of one model"
        )
    rho = {name: qat[name].astype(np.float32) - fp[name].astype(np.float32) for name in names}
    header = VectorHeader(
        scheme=scheme,
        skip=skip,
        task=task,
        seed=seed,
        norm=_norm(rho.values()),
        weight_norm=_norm(fp[name] for name in names),
        made_by=f"qvec-deploy {version('qvec-deploy')}",
    )
    write_vector(path, header, rho.items(), dtype=dtype)
    return header


def _norm(tensors: Iterable[Float32]) -> float:
    return float(np.sqrt(sum(float(np.square(t, dtype=np.float64).sum()) for t in tensors)))
