"""Vectors that carry nothing of rho but its norms: what a real vector must beat."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from qvec_deploy.errors import IncompatibleError, RecipeError
from qvec_deploy.tensors import Float32
from qvec_deploy.vectors.extract import MADE_BY, l2_norm
from qvec_deploy.vectors.vector_file import QuantizationVector, VectorHeader, write_vector
from qvec_deploy.vectors.vector_sources import random_like

KINDS = ("random", "shuffle", "task")

State = Mapping[str, Float32]


def write_control(
    vector: QuantizationVector,
    path: Path,
    *,
    kind: str,
    seed: int = 0,
    donor: tuple[State, State] | None = None,
) -> VectorHeader:
    """Write a control of a vector; every tensor has the norm that rho has there.

    Args:
        kind: `random` is Gaussian noise, `shuffle` is rho with each row's values in random order, `task` is the
            task vector of the donor, theta_FP - theta_base, scaled tensor by tensor.
        donor: The donor's float fine-tune and its base; for `task` only.
    """
    if kind not in KINDS:
        raise RecipeError(f"there is no control `{kind}`", hint=f"choose {', '.join(KINDS)}")
    if (kind == "task") != (donor is not None):
        raise RecipeError(
            f"control `{kind}` {'needs' if kind == 'task' else 'takes no'} fine-tune and base",
            hint="give --fp and --base with `task`, and only there",
        )
    tensors: dict[str, Float32] = {}
    for name in vector.tensors:
        rho = vector.read(name)
        if donor is not None:
            tensors[name] = _task_like(rho, name, *donor)
        else:
            tensors[name] = random_like(rho, name, seed) if kind == "random" else shuffled(rho, name, seed)
    header = replace(
        vector.header,
        norm=l2_norm(tensors.values()),
        made_by=MADE_BY,
        control="task vector" if kind == "task" else f"{kind}, seed {seed}",
    )
    dtype = "float16" if {info.dtype for info in vector.tensors.values()} == {"F16"} else "float32"
    return write_vector(path, header, tensors.items(), dtype=dtype, sketch=vector.sketch())


def shuffled(rho: Float32, name: str, seed: int) -> Float32:
    """Rho with the values of each row, along the first axis, in random order; a vector is one row.

    Args:
        name: Its name; every tensor draws from a stream of its own.
    """
    generator = np.random.default_rng([seed, *name.encode()])
    rows = rho.reshape(rho.shape[0] if rho.ndim > 1 else 1, -1)
    values: Float32 = generator.permuted(rows, axis=1).reshape(rho.shape)
    return values


def _task_like(rho: Float32, name: str, fp: State, base: State) -> Float32:
    if not all(name in state and state[name].shape == rho.shape for state in (fp, base)):
        raise IncompatibleError(
            f"the fine-tune or its base has another {name} than the vector", hint="name the vector's own donor"
        )
    task = fp[name] - base[name]
    norm, wanted = l2_norm([task]), l2_norm([rho])
    if wanted and not norm:
        raise IncompatibleError(
            f"{name} is the same in the fine-tune and in its base", hint="name a fine-tune and what it started from"
        )
    return task * np.float32(wanted / norm if norm else 0)
