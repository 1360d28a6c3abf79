"""What the demo's checkpoints are worth: accuracy of a tiny model with its weights on a grid, patched or not."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from qvec_deploy.datasets import DataConfig, Dataset, DatasetSpec, Split, batches, open_dataset
from qvec_deploy.tensors import Float32, Scheme
from qvec_deploy.vectors.file import QuantizationVector

MODEL = "vit_tiny_patch16_224"
MODEL_ARGS: dict[str, Any] = {
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": 96,
    "depth": 6,
    "num_heads": 3,
    "global_pool": "avg",
}
SKIP = ("head",)

State = dict[str, Float32]


@functools.cache  # drawn once for all rows of a table
def open_split(task: str, split: Split, limit: int | None = None) -> Dataset:
    """A bundled task, as the demo's model takes it: 32x32, mean and standard deviation 0.5."""
    return open_dataset(DatasetSpec(f"tiny/{task}", split, limit=limit), DataConfig())


def measure(
    receiver: str, limit: int | None, fp: Mapping[str, State], qat: Mapping[str, State], out: Path, scheme: Scheme
) -> dict[str, Any]:
    """The demo's table for one receiver.

    Args:
        receiver: Its task.
        limit: Test images; None takes the task's own number.
        fp: Float fine-tunes by task.
        qat: QAT fine-tunes by task: latent weights.
        out: The folder with the vectors, which are measured as they are stored.
        scheme: The grid of the vectors.

    Returns:
        Task, and rows with `what`, `correct`, `images` and `top1` in percent.
    """
    theta = fp[receiver]
    donors = [task for task in fp if task != receiver]
    stored = {task: QuantizationVector.open(out / f"vector_{task}.safetensors") for task in fp}
    rho = {task: {name: stored[task].read(name) for name in stored[task].tensors} for task in fp}
    exact = {task: {name: qat[task][name] - fp[task][name] for name in rho[task]} for task in fp}
    mean = mean_of([rho[task] for task in donors])
    plain = Scheme(scheme.bits, scheme.granularity)

    candidates: list[tuple[str, State, Scheme | None]] = [
        ("float", theta, None),
        ("round to nearest", theta, plain),
        ("MSE clipping", theta, scheme),
        *((f"donor {task}, lambda 1", patched(theta, rho[task]), scheme) for task in donors),
        (f"mean of {len(donors)} donors, lambda 1", patched(theta, mean), scheme),
        ("the same from float32 vectors", patched(theta, mean_of([exact[task] for task in donors])), scheme),
        *(
            (
                f"random vector {seed}, norms of donor {donors[0]}",
                patched(theta, random_like(rho[donors[0]], seed)),
                scheme,
            )
            for seed in range(3)
        ),
        (f"mean of {len(donors)} donors, round to nearest", patched(theta, mean), plain),
        ("the receiver's own QAT (needs its data)", qat[receiver], scheme),
        ("the receiver's own vector, lambda 1", patched(theta, rho[receiver]), scheme),
    ]
    rows = [{"what": what, **top1(on_grid(state, grid), receiver, limit)} for what, state, grid in candidates]
    return {"receiver": f"tiny/{receiver}", "rows": rows}


def on_grid(state: State, scheme: Scheme | None) -> State:
    """Every Linear weight of the backbone on the grid and back to float, all else as it is; None changes nothing."""
    from qvec_deploy.quantize.reference import quantize

    if scheme is None:
        return state
    linear = [name for name in state if name.startswith("blocks.") and state[name].ndim == 2]
    return {**state, **{name: quantize(state[name], scheme).dequantize() for name in linear}}


def patched(theta: State, rho: State) -> State:
    """Add a vector to weights; tensors that the vector does not cover, the head's, stay."""
    return {**theta, **{name: theta[name] + value for name, value in rho.items()}}


def mean_of(vectors: list[State]) -> State:
    """The mean of several vectors."""
    return {name: np.mean([vector[name] for vector in vectors], axis=0, dtype=np.float32) for name in vectors[0]}


def random_like(rho: State, seed: int) -> State:
    """Noise with the norm of every tensor of a vector: the control that tells direction from size."""
    rng = np.random.default_rng(seed)
    noise = {name: rng.standard_normal(value.shape, np.float32) for name, value in rho.items()}
    return {
        name: value * np.float32(np.linalg.norm(rho[name]) / np.linalg.norm(value)) for name, value in noise.items()
    }


def distance(state: State, base: State) -> float:
    """How far a fine-tune's backbone is from a base, relative to the base: vectors fit receivers of one base only."""
    names = [name for name in base if name.split(".")[0] not in SKIP]
    moved = sum(float(np.square(state[name] - base[name]).sum()) for name in names)
    return round((moved / sum(float(np.square(base[name]).sum()) for name in names)) ** 0.5, 4)


def top1(state: State, task: str, limit: int | None) -> dict[str, Any]:
    """Right answers on a task's test images: `correct`, `images`, `top1` in percent."""
    import torch

    from qvec_deploy.models import create

    torch.set_num_threads(1)  # a network this small is slower on two
    data = open_split(task, "test", limit)
    model = create(MODEL, data.classes, MODEL_ARGS)
    model.load_state_dict({name: torch.tensor(value) for name, value in state.items()})
    correct = 0
    with torch.no_grad():
        for images, labels in batches(data, 250):
            correct += int((model(torch.from_numpy(images)).argmax(1).numpy() == labels).sum())
    return {"correct": correct, "images": len(data), "top1": round(100 * correct / len(data), 2)}
