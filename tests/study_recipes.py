"""Study recipes of tests: pico models on bundled tasks, and a tree in the layout of the paper's repository."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from pico import PICO_ARGS, PICO_MODEL

VALUES: dict[str, Any] = {
    "version": 1,
    "name": "pico",
    "models": [
        {
            "name": "pico",
            "timm": PICO_MODEL,
            "model_args": PICO_ARGS,
            "base": {"train": {"dataset": "tiny/pairs", "steps": 4, "batch_size": 8}},
        }
    ],
    "tasks": {"preset": "tiny", "only": ["lower", "realdigits"]},
    "grids": [{"bits": 3, "granularity": "tensor"}],
    "methods": [],
    "lambdas": [1],
    "controls": ["random"],
    "selecting": 16,
    "testing": 32,
    "train": {
        "steps": 6, "batch_size": 8, "lr": 1e-3, "decay_all": False, "warmup_steps": 1, "augment": "none",
        "save_every": 2,
    },
}  # fmt: skip


def write_study(folder: Path, **changes: Any) -> Path:
    """A study recipe, with changed fields (`a__b` for `a.b`)."""
    values = copy.deepcopy(VALUES)
    for key, value in changes.items():
        *parents, last = key.split("__")
        block = values
        for parent in parents:
            block = block.setdefault(parent, {})
        if value is None:
            block.pop(last, None)
        else:
            block[last] = value
    path = folder / "study.yaml"
    folder.mkdir(parents=True, exist_ok=True)
    plain = json.loads(json.dumps(values))  # no object twice: YAML would write it as an alias
    path.write_text(yaml.safe_dump(plain, sort_keys=False), encoding="utf-8")
    return path


def write_hub(folder: Path, classes: dict[str, int]) -> Path:
    """A tree as published: a fine-tune in float and on the grid for every task, and the pickled heads beside them.

    Every other task lies under `mult=1`. The weights are not trained.
    """
    import torch

    from qvec_deploy.models import create

    base = None
    for number, (task, count) in enumerate(classes.items()):
        torch.manual_seed(0)
        model = create(PICO_MODEL, count, PICO_ARGS)
        state = model.state_dict()
        base = base or {name: value for name, value in state.items() if not name.startswith("head.")}
        generator = np.random.default_rng(number)
        fp = {**state, **{name: _near(value, generator) for name, value in base.items()}}
        qat = {name: _near(value, generator) for name, value in fp.items()}
        for run, weights in (("fp", fp), ("qat", qat)):
            place = folder / "checkpoints/vision/ilharco_timm_supervised" / run / PICO_MODEL / task
            place /= "optim=adamw_lr=1e-05_wd=0.1_ls=0.0_wl=500_mgn=1.0_bs=128"
            place /= "mult=1" if number % 2 else ""
            place /= "" if run == "fp" else "qat=bits=3_gran=channel_skip=head"
            place /= "seed=2038"
            place.mkdir(parents=True)
            torch.save({f"model.{name}": value for name, value in weights.items()}, place / "classifier_epoch_7.pt")
            torch.save(model.head, place / "head_epoch_7.pt")  # pickled code: must never be opened
    return folder


def _near(value: Any, generator: np.random.Generator) -> Any:
    import torch

    return value + torch.from_numpy(generator.normal(0, 0.01, tuple(value.shape)).astype(np.float32))


def hub_study(folder: Path, hub: Path, **changes: Any) -> Path:
    """A study of released fine-tunes."""
    changes = {
        "models": [{"name": "pico", "timm": PICO_MODEL, "model_args": PICO_ARGS}],
        "grids": [{"bits": 3, "granularity": "channel", "method": "rtn"}],
        "checkpoints": {"hub": str(hub)},
        "train": None,
        **changes,
    }
    return write_study(folder, **changes)
