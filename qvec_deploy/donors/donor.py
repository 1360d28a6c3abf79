"""A donor from its recipe: an FP and a QAT fine-tune of one base, the vector between them, and a record. Resumable."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from qvec_deploy.datasets import Dataset
from qvec_deploy.donors.donor_folder import LOG, RUNS, VECTOR, DonorFolder, Entry, require_space
from qvec_deploy.donors.donor_inputs import Task, begin, fingerprint, open_base, open_task, require_device
from qvec_deploy.donors.donor_recipe import DonorRecipe
from qvec_deploy.donors.feed import feed
from qvec_deploy.donors.finetune import Base, start, weights
from qvec_deploy.donors.train_config import TrainConfig, TrainingProgress
from qvec_deploy.io.checkpoint import Checkpoint
from qvec_deploy.io.files import sha256_file
from qvec_deploy.io.safetensors_file import write_safetensors
from qvec_deploy.models import create, describe, head_names
from qvec_deploy.quantize.modelopt import insert_fake_quantizers
from qvec_deploy.tensors import Float32, Scheme

_COPIES = 10  # of the model: fp, qat, vector; a saved state is three, and there are two while one is replaced
_EVAL_BATCH = 64
_FREE = ("workers", "save_every")  # fields of `train` that do not change the weights

State = Mapping[str, Float32]
OnRun = Callable[[str, TrainingProgress], None]


@dataclass(frozen=True)
class _Job:
    """What both runs share."""

    recipe: DonorRecipe
    base: Base
    task: Task
    hyper: TrainConfig
    folder: DonorFolder
    watch: OnRun | None
    offline: bool

    @property
    def device(self) -> str:
        return self.recipe.train.device

    @property
    def scheme(self) -> Scheme:
        return self.recipe.scheme.scheme()


def train_donor(
    recipe: DonorRecipe,
    directory: Path,
    *,
    force: bool = False,
    offline: bool = False,
    environment: Mapping[str, Any] | None = None,
    watch: OnRun | None = None,
) -> dict[str, Any]:
    """Make a donor, or go on with one that was interrupted: then its bytes are those of an uninterrupted one.

    Writes `fp.safetensors`, `qat.safetensors`, `vector.safetensors`, `log.jsonl` (a line an epoch of each run) and,
    last, `record.json`; each is whole or not there.

    Args:
        watch: Called with the run (`fp` or `qat`) after every step.

    Raises:
        RecipeError: The recipe, or a loss that left the numbers; what is there was made under other settings.
        IncompatibleError: The base is another model's, or there is no such device.
    """
    require_device(recipe.train.device)
    folder = DonorFolder.open(directory, force=force)
    base = open_base(recipe, offline=offline)
    task = open_task(recipe)
    job = _Job(recipe, base, task, recipe.hyper(len(task.train)), folder, watch, offline)
    require_space(directory, _COPIES * _model_bytes(recipe, base, task) - folder.size())
    base_sha256 = fingerprint(base)
    folder.claim(_settings(job, base_sha256), force=force)
    for run in RUNS:
        if not folder.weights(run).is_file():
            _train(job, run)
    return _conclude(job, base_sha256, environment)


def top1(state: State, data: Dataset, recipe: DonorRecipe, *, grid: bool) -> float:
    """Share of images that weights get right, in float32.

    Args:
        grid: Put the Linears on the grid first, as PTQ does.
    """
    model = _model_of(state, data.classes, recipe)
    if grid:
        insert_fake_quantizers(model, recipe.scheme.scheme(), recipe.skip)  # rounds as PTQ does, bit for bit
    starts = range(0, len(data), _EVAL_BATCH)
    plan = ((0, np.arange(at, min(at + _EVAL_BATCH, len(data)))) for at in starts)
    right = 0
    with torch.no_grad():
        for images, labels in feed(data, plan, recipe.train.workers):
            found = model(torch.from_numpy(images).to(recipe.train.device)).argmax(dim=1).cpu().numpy()
            right += int((found == labels).sum())
    return right / len(data)


def _model_of(state: State, classes: int, recipe: DonorRecipe) -> nn.Module:
    with torch.random.fork_rng(devices=[]):  # timm draws initial weights; a training's numbers must not move
        model = create(recipe.base.model, classes, recipe.base.model_args)
    model.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()})
    return model.to(recipe.train.device)


def _model_bytes(recipe: DonorRecipe, base: Base, task: Task) -> int:
    """Size of the float32 weights; refuses another model's base or skip list before anything is written."""
    from qvec_deploy.vectors.extract import require_skip

    state = start(base, task.train.classes, scheme=None, skip=(), seed=0).state_dict()
    require_skip(state, recipe.skip, head_names(recipe.base.model))
    return sum(value.numel() * value.element_size() for value in state.values())


def _settings(job: _Job, base_sha256: str) -> dict[str, Any]:
    """All that decides the weights: the recipe's fields, and what the base and the images really are."""
    fields = job.recipe.as_dict()
    for name in _FREE:
        del fields["train"][name]
    del fields["base"]["checkpoint"], fields["base"]["pretrained"]
    fields["base"]["sha256"] = base_sha256
    return {**fields, "images": job.task.fingerprint, "steps": job.hyper.steps}


def _train(job: _Job, run: str) -> None:
    """One fine-tune, from its last saved state where there is one, to its file."""
    recipe, folder, hyper = job.recipe, job.folder, job.hyper
    model, training = begin(recipe, job.base, job.task.train, run)
    saved = folder.load(run)
    if saved is not None:
        training.restore(saved)
    log = [entry for entry in folder.read_log() if entry["run"] != run or entry["step"] <= training.step]
    epoch = len(job.task.train) // hyper.batch_size

    def after(progress: TrainingProgress) -> None:
        if progress.step % epoch == 0 or progress.step == hyper.steps:
            log.append(_entry(job, run, model, progress, epoch))
            folder.write_log(log)
        if progress.step % recipe.train.save_every == 0 and progress.step < hyper.steps:
            folder.save(run, training.state())
        if job.watch is not None:
            job.watch(run, progress)

    training.run(after)
    write_safetensors(folder.weights(run), weights(model))
    folder.finish(run)


def _entry(job: _Job, run: str, model: nn.Module, progress: TrainingProgress, epoch: int) -> Entry:
    """A line of the log; the accuracy of a QAT run is that of its rounded weights."""
    val = job.task.val
    return {
        "run": run,
        "epoch": math.ceil(progress.step / epoch),
        "step": progress.step,
        "loss": progress.loss,
        "lr": progress.lr,
        "val_top1": None if val is None else top1(weights(model), val, job.recipe, grid=run == "qat"),
        "seconds": round(progress.seconds, 3),
    }


def _base(job: _Job) -> tuple[State, str] | None:
    """The base and the hash of its file, by which a vector names it; None for weights that timm fetched."""
    checkpoint = job.recipe.base.checkpoint
    if checkpoint is None:
        return None
    source = Checkpoint.open(job.recipe.locate(checkpoint), offline=job.offline)
    return {name: np.asarray(value) for name, value in job.base.state.items()}, source.fingerprint()


def _moments(job: _Job, fp: State) -> dict[str, Float32] | None:
    """Second moments of the float donor's Linear inputs on evenly spaced training images."""
    recipe, data = job.recipe, job.task.train
    count = min(recipe.moments, len(data))
    if not count:
        return None
    from qvec_deploy.quantize.calibrated import collect_moments

    model = _model_of(fp, data.classes, recipe)
    rows = np.linspace(0, len(data) - 1, count).round().astype(int)
    batches = [data.take(rows[at : at + _EVAL_BATCH])[0] for at in range(0, count, _EVAL_BATCH)]
    return collect_moments(model.eval(), batches, recipe.skip)


def _conclude(job: _Job, base_sha256: str, environment: Mapping[str, Any] | None) -> dict[str, Any]:
    """Vector, accuracy and record of two finished runs."""
    from safetensors.numpy import load_file

    from qvec_deploy.vectors.extract import extract_vector

    recipe, folder, task = job.recipe, job.folder, job.task
    fp, qat = (load_file(folder.weights(run)) for run in RUNS)
    header = extract_vector(
        fp,
        qat,
        folder.path / VECTOR,
        scheme=job.scheme,
        skip=recipe.skip,
        task=task.name,
        seed=recipe.train.seed,
        architecture=describe(recipe.base.model, task.train.classes, recipe.base.model_args),
        dtype=recipe.vector_dtype,
        base=_base(job),
        moments=_moments(job, fp),
    )
    log = folder.read_log()
    last = {run: next(entry for entry in reversed(log) if entry["run"] == run) for run in RUNS}
    val = None
    if task.val is not None:
        val = {
            "images": len(task.val),
            "fp_top1": last["fp"]["val_top1"],
            "ptq_top1": top1(fp, task.val, recipe, grid=True),
            "qat_top1": last["qat"]["val_top1"],
        }
    record = {
        "format": "qvec-donor",
        "version": 1,
        "name": recipe.name,
        "recipe": recipe.as_dict(),
        "base_sha256": base_sha256,
        "task": {"name": task.name, **task.fingerprint},
        "steps": job.hyper.steps,
        "val": val,
        "val_missing": task.without_val,
        "vector": {
            "norm": header.norm,
            "weight_norm": header.weight_norm,
            "share": header.share,
        },
        "seconds": {run: last[run]["seconds"] for run in RUNS},
        "sha256": {
            path.name: sha256_file(path)
            for path in (*map(folder.weights, RUNS), folder.path / VECTOR, folder.path / LOG)
        },
        "environment": {
            **(environment or {}),
            "device": torch.cuda.get_device_name() if job.device == "cuda" else "cpu",
        },
    }
    folder.complete(record)
    return record
