"""How long and how fast a training runs, and what it tells while it runs. No torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class TrainConfig:
    """AdamW with linear warm-up and cosine decay to zero. The defaults are those of the bundled tiny tasks.

    Recipes refuse what cannot train.

    Attributes:
        lr: Peak learning rate of the backbone. Gentle on purpose: at 3e-4 the vectors of two tasks of
            a tiny model are orthogonal and carry nothing over.
        roll: Training images are shifted in a circle by up to this many pixels either way.
        clip_every: Steps between two searches of the clip ratio (QAT with method `mse`).
        accumulate: Parts in which a batch goes through the model, to save memory; it must divide the batch size.
        decay_all: Weight decay of every parameter, as in arXiv 2604.03420; else biases, norms and tokens have none.
        precision: Of the forward pass: `bf16` is autocast on a GPU; weights and optimizer stay float32.
        workers: Processes that read images ahead; 0 reads them in the training process.
    """

    steps: int = 600
    batch_size: int = 32
    lr: float = 1e-4
    head_lr: float = 1e-3
    weight_decay: float = 0.1
    warmup: float = 0.1
    clip_norm: float = 1.0
    label_smoothing: float = 0.0
    roll: int = 0
    clip_every: int = 50
    accumulate: int = 1
    decay_all: bool = False
    precision: Literal["float32", "bf16"] = "float32"
    workers: int = 0


@dataclass(frozen=True)
class TrainingProgress:
    """Where a training stands.

    Attributes:
        loss: Cross-entropy of the last batch, in nats.
    """

    step: int
    steps: int
    loss: float
    lr: float
    seconds: float


OnStep = Callable[[TrainingProgress], None]
