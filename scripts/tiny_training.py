"""Trainings at tiny scale, each done once: a base from the pretraining mix, and fine-tunes in float or on a grid."""

from __future__ import annotations

import dataclasses
import functools
import json
import time
from pathlib import Path
from typing import Any

from demo_table import MODEL, MODEL_ARGS, SKIP, State, open_split
from safetensors.numpy import load_file, save_file

from qvec_deploy.donors.config import OnStep, Progress, TrainConfig
from qvec_deploy.store import atomic_path, canonical_json, sha256_bytes, write_bytes
from qvec_deploy.tensors import Scheme

TASKS = ("realdigits", "lower", "upper", "symbols", "pairs", "outline")

BASE_SEED = 1
PRETRAIN = TrainConfig(steps=5000, batch_size=64, lr=1e-3, head_lr=1e-3, weight_decay=0.05, roll=2)
FINETUNE = TrainConfig()


@dataclasses.dataclass(frozen=True)
class Job:
    """One training: of the base (`task` is the mix), or of a fine-tune from it, float or on the grid."""

    task: str
    scheme: Scheme | None
    hyper: TrainConfig
    seed: int

    @property
    def settings(self) -> dict[str, Any]:
        """All that decides the weights: the images and the base's own settings included."""
        own = {"task": self.task, "scheme": str(self.scheme), "hyper": vars(self.hyper), "seed": self.seed}
        base = [] if self == BASE else [BASE.settings]
        return {"model": MODEL, "args": MODEL_ARGS, "base": base, "images": first_images(self.task), **own}

    def path(self, work: Path) -> Path:
        """Where its weights are kept: a file per settings."""
        kind = "base" if self == BASE else "fp" if self.scheme is None else "qat"
        return work / f"{kind}_{self.task}_{sha256_bytes(canonical_json(self.settings))[:12]}.safetensors"


BASE = Job("mix", None, PRETRAIN, BASE_SEED)


@functools.cache
def first_images(task: str) -> str:
    """SHA-256 of a task's first training images and labels: drawn otherwise, they are another task of the same name."""
    images, labels = open_split(task, "train", 16).take(range(16))
    return sha256_bytes(images.tobytes() + labels.tobytes())


def train(job: Job, work: Path, *, quiet: bool = False) -> float:
    """Do a job if its file is not there yet; returns the seconds it took, when it was done."""
    import torch

    torch.set_num_threads(1)
    path = job.path(work)
    timing = path.with_suffix(".json")
    if path.is_file() and timing.is_file():
        return float(json.loads(timing.read_text())["seconds"])
    started = time.monotonic()
    say: OnStep = (lambda progress: None) if quiet else _reporter(path.stem)
    state = pretrain(job, say) if job == BASE else _finetune(job, work, say)
    with atomic_path(path) as temporary:
        save_file(state, temporary)
    seconds = round(time.monotonic() - started, 1)
    write_bytes(timing, canonical_json({"seconds": seconds, "settings": job.settings}))
    if not quiet:
        print(f"{path.stem}: {seconds} s", flush=True)
    return seconds


def _reporter(name: str) -> OnStep:
    def say(progress: Progress) -> None:
        if progress.step % 500 == 0:
            print(f"{name}: step {progress.step}/{progress.steps}, loss {progress.loss:.3f}", flush=True)

    return say


def pretrain(job: Job, say: OnStep) -> State:
    """The base: the pretraining mix from random weights."""
    import torch

    from qvec_deploy.donors.train import train as run
    from qvec_deploy.models import create

    data = open_split("mix", "train")
    torch.manual_seed(job.seed)
    model = create(MODEL, data.classes, MODEL_ARGS)
    for name, module in model.named_modules():
        # timm starts Linears at a standard deviation of 0.02, from which a network this narrow learns slowly.
        if isinstance(module, torch.nn.Linear) and name not in SKIP:
            torch.nn.init.normal_(module.weight, 0.0, module.in_features**-0.5)
    run(model, data, job.hyper, head="head", seed=job.seed, on_step=say)
    return {name: value.numpy() for name, value in model.state_dict().items()}


def _finetune(job: Job, work: Path, say: OnStep) -> State:
    from qvec_deploy.donors.finetune import Base, finetune

    base = Base(MODEL, load_file(BASE.path(work)), MODEL_ARGS)
    data = open_split(job.task, "train")
    return finetune(base, data, scheme=job.scheme, hyper=job.hyper, seed=job.seed, skip=SKIP, on_step=say)
