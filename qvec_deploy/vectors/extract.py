"""A donor's float and QAT weights to a vector file: rho = theta_QAT - theta_FP, backbone only."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qvec_deploy.errors import IncompatibleError, IntegrityError, RecipeError
from qvec_deploy.models import HEAD, Architecture, in_head, is_skipped
from qvec_deploy.tensors import Float32, Scheme
from qvec_deploy.vectors.coordinates import UNRELATED
from qvec_deploy.vectors.sketch import make_sketch
from qvec_deploy.vectors.vector_file import VectorHeader, write_vector

DTYPES = ("float32", "float16")
MADE_BY = f"qvec-deploy {version('qvec-deploy')}"

_EPS = float(np.finfo(np.float32).eps)
_SAMPLE = 64  # rows, or thousands of weights, of a matrix that are held against the grid

State = Mapping[str, Float32]


def extract_vector(
    fp: State,
    qat: State,
    path: Path,
    *,
    scheme: Scheme,
    skip: tuple[str, ...],
    task: str,
    seed: int,
    architecture: Architecture | None = None,
    dtype: str = "float32",
    base: tuple[State, str] | None = None,
    moments: Mapping[str, NDArray[np.floating]] | None = None,
    assumed: tuple[str, ...] = (),
) -> VectorHeader:
    """Write the quantization vector of a donor, with the sketch of its float weights.

    Args:
        qat: Its quantization-aware fine-tune: latent float weights, same names.
        architecture: What the donor is, its number of classes aside; its head is left out. Without it the head is
            `head`, and the files must have one.
        base: The pretrained weights both started from, and the SHA-256 of their file.
        moments: Second moments of the inputs of the donor's Linears: module to (in, in).
        assumed: What nobody can check, in words, for the header.

    Raises:
        IncompatibleError: The two differ in names or shapes, are no donor of the architecture, have no known head, or
            come from another base than the one given; the QAT weights lie on their grid already; rho is zero.
        IntegrityError: FP + rho would not give QAT, or a value is not finite.
        RecipeError: A dtype that vectors do not have, or a skip entry that matches nothing.
    """
    if dtype not in DTYPES:
        raise RecipeError(f"vectors are not stored as {dtype}", hint=f"choose {' or '.join(DTYPES)}")
    heads = architecture.heads if architecture is not None else (HEAD,)
    names = [name for name in fp if not in_head(name, heads)]
    _require_same_task(fp, qat, heads)
    if architecture is not None:
        _require_architecture(fp, names, architecture)
    elif len(names) == len(fp):
        raise IncompatibleError(
            f"the donor has no tensor under `{HEAD}.`: its head is not known, and must not get into rho",
            hint="name the donor's model: --model, and --model-arg where its arguments are not timm's",
        )
    require_skip(fp, skip, heads)
    if base is not None:
        _require_base(names, fp, base[0])
    _require_latent({name: qat[name] for name in names}, scheme, skip)
    rho = {name: qat[name].astype(np.float32) - fp[name].astype(np.float32) for name in names}
    for name in names:
        require_reproduction(name, fp[name], rho[name], qat[name], dtype)
    _require_moments(moments or {}, fp)
    norms = {name: (l2_norm([rho[name]]), l2_norm([fp[name]])) for name in names}
    header = VectorHeader(
        scheme=scheme,
        skip=skip,
        task=task,
        seed=seed,
        norm=l2_norm(rho.values()),
        weight_norm=l2_norm(fp[name] for name in names),
        made_by=MADE_BY,
        norms=norms,
        base=base[1] if base is not None else None,
        assumed=assumed,
    )
    sketch = make_sketch(names, fp.__getitem__)
    return write_vector(path, header, rho.items(), dtype=dtype, sketch=sketch, moments=moments)


def require_skip(tensors: Mapping[str, Any], skip: tuple[str, ...], heads: tuple[str, ...]) -> None:
    """Refuse a skip entry that matches no Linear; a head's name may stand for a head that is not there."""
    parts = {HEAD, *(part for head in heads for part in head.split("."))}
    for name, tensor in tensors.items():
        *modules, kind = name.split(".")
        if kind == "weight" and tensor.ndim == 2:
            parts.update(modules)
    for entry in skip:
        if entry not in parts:
            near = difflib.get_close_matches(entry, parts, n=2) or sorted(parts)[:5]
            raise RecipeError(
                f"skip: `{entry}` matches no Linear of the donor",
                hint=f"names are matched exactly; nearest: {', '.join(near)}",
            )


def require_reproduction(name: str, fp: Float32, rho: Float32, qat: Float32, dtype: str) -> None:
    """Refuse a rho that, stored as `dtype` and added to the float weights, does not give the QAT weights back.

    Args:
        dtype: `float32`, where a rounding of the sum is allowed, or `float16`, where half an ulp of rho is as well.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        stored = rho.astype(dtype)
        error = np.abs(fp + stored.astype(np.float32) - qat)
        allowed = 2 * _EPS * (np.abs(fp) + np.abs(qat))
        if dtype == "float16":
            allowed = allowed + 0.5 * np.spacing(np.abs(stored)).astype(np.float32)
        wrong = ~(error <= allowed)  # NaN is wrong too
    if wrong.any():
        raise IntegrityError(
            f"{name}: FP + rho does not give QAT back, or would not be finite, as {dtype}",
            hint="the donor diverged, or its vector needs float32",
        )


def on_grid(weight: Float32, scheme: Scheme) -> bool:
    """Whether a matrix already lies on a symmetric grid of `scheme`, whatever its clip ratio.

    Everything that shares a scale must be a whole number of steps, where the largest magnitude is 1 to 2^(bits-1)
    steps. Latent weights miss the grid by a quarter of a step on average; float16 copies of settled ones by less
    than a tenth.
    """
    if scheme.granularity == "tensor":
        rows = weight.reshape(1, -1)
    else:
        rows = weight.reshape(weight.shape[0] * scheme.groups(weight.shape[1]), -1)
    largest = np.abs(rows).max(axis=1, keepdims=True)
    if scheme.granularity == "tensor":
        rows = rows[:, : _SAMPLE * 1000]
    rows, largest = rows[largest[:, 0] > 0][:_SAMPLE], largest[largest[:, 0] > 0][:_SAMPLE]
    settled = np.zeros(len(rows), bool)
    for steps in range(1, -scheme.qmin + 1):
        codes = rows * (steps / largest)
        settled |= (np.abs(codes - np.rint(codes)) < 0.1).all(axis=1)
    return bool(len(rows)) and bool(settled.all())


def _require_same_task(fp: State, qat: State, heads: tuple[str, ...]) -> None:
    odd = sorted(set(fp) ^ set(qat)) or [name for name in fp if fp[name].shape != qat[name].shape]
    if not odd:
        return
    if all(in_head(name, heads) and name in fp and name in qat for name in odd):
        raise IncompatibleError(
            f"the donor's checkpoints were not fine-tuned on the same task: {odd[0]} is {fp[odd[0]].shape} "
            f"and {qat[odd[0]].shape}",
            hint="use a float and a QAT fine-tune on one task: the difference of two tasks is no quantization vector",
        )
    raise IncompatibleError(
        f"the donor's FP and QAT checkpoints differ in {odd[0]}", hint="use two fine-tunes of one model"
    )


def _require_architecture(fp: State, names: list[str], architecture: Architecture) -> None:
    shapes = architecture.backbone
    odd = sorted(shapes.keys() ^ set(names)) or [name for name in names if fp[name].shape != shapes[name]]
    if not odd:
        return
    if odd[0] in shapes and odd[0] in fp:
        what = f"its {odd[0]} is {fp[odd[0]].shape} and not {shapes[odd[0]]}"
    else:
        what = f"it {'holds' if odd[0] in fp else 'lacks'} {odd[0]}"
    raise IncompatibleError(
        f"the donor is not a `{architecture.name}`: {what}",
        hint="name the model that the checkpoints are of, with its arguments (--model, --model-arg)",
    )


def _require_latent(qat: State, scheme: Scheme, skip: tuple[str, ...]) -> None:
    for name, weight in qat.items():
        is_linear = weight.ndim == 2 and name.endswith(".weight")
        if is_linear and not is_skipped(name.removesuffix(".weight"), skip) and on_grid(weight, scheme):
            raise IncompatibleError(
                f"the QAT checkpoint is settled: {name} already lies on its grid",
                hint="a vector is made of the latent weights, as QAT trains them; save those before rounding",
            )


def _require_base(names: list[str], fp: State, base: State) -> None:
    odd = [name for name in names if name not in base or base[name].shape != fp[name].shape]
    if odd:
        raise IncompatibleError(f"the base has another {odd[0]} than the donor", hint="name the donor's own base")
    linears = [name for name in names if fp[name].ndim == 2]
    distance, norm = l2_norm(fp[name] - base[name] for name in linears), l2_norm(base[name] for name in linears)
    if distance > UNRELATED * norm:
        raise IncompatibleError(
            f"another base: the donor's weights are {distance / norm:.2f} of the base's norm away from it",
            hint="fine-tunes stay within a few per cent; name the donor's own base",
        )


def _require_moments(moments: Mapping[str, NDArray[np.floating]], fp: State) -> None:
    for module, matrix in moments.items():
        weight = fp.get(f"{module}.weight")
        if weight is None or weight.ndim != 2 or matrix.shape != (weight.shape[1],) * 2:
            raise IncompatibleError(
                f"the moments of {module} do not fit the donor", hint="give one (in, in) matrix for a Linear"
            )
        values = np.asarray(matrix, np.float32)
        if not np.isfinite(values).all() or l2_norm([values - values.T]) > 1e-3 * l2_norm([values]):
            raise IntegrityError(
                f"the moments of {module} are not finite, or not symmetric", hint="they are the mean of x x'"
            )


def l2_norm(tensors: Iterable[Float32]) -> float:
    """L2 norm over all values of several tensors, summed in float64."""
    return float(np.sqrt(sum(float(np.square(t, dtype=np.float64).sum()) for t in tensors)))
