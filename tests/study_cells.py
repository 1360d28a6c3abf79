"""Cells of a study that was never run: six tasks, two grids, three seeds, nine lambdas, with a truth that is known.

A candidate's chance to be right is `truth` of it; images are hard or easy for all candidates alike, and seeds shift
every pair a little, as training again does. `pencils` is a donor that harms, `photos` one that points the wrong way,
`plates` a receiver with nothing to win on the first grid.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy import stats

from qvec_deploy.research.study.analysis.costs import FineTune
from qvec_deploy.research.study.analysis.row_key import RowKey
from qvec_deploy.research.study.cell_values import (
    Cell,
    CellRequest,
    Control,
    DonorFiles,
    Relation,
    TaskData,
    Trial,
    pack_right,
)
from qvec_deploy.tensors import Scheme

TASKS = ("lower", "upper", "symbols", "plates", "pencils", "photos")
GRIDS = (Scheme(3, "tensor", method="mse"), Scheme(2, "channel", clip=0.65))
SEEDS = (0, 1, 2)
LAMBDAS = (-0.5, -0.25, 0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
METHODS = ("awq", "gptq", "gptaq")
INPUTS = ("images", "generated")
CONTROLS: tuple[Control, ...] = ("random", "shuffle", "task_vector", "gptq_displacement")
IMAGES, SELECTING = 400, 200
MODEL = "vit_tiny_example"

FLOAT = {"lower": 92.0, "upper": 98.5, "symbols": 94.5, "plates": 97.0, "pencils": 95.0, "photos": 90.0}
QAT = (
    {"lower": 91.0, "upper": 98.0, "symbols": 93.5, "plates": 96.5, "pencils": 94.0, "photos": 89.0},
    {"lower": 86.0, "upper": 96.0, "symbols": 89.5, "plates": 95.0, "pencils": 90.0, "photos": 82.0},
)
PLAIN = (
    {"lower": 75.0, "upper": 90.0, "symbols": 80.0, "plates": 96.0, "pencils": 82.0, "photos": 77.0},
    {"lower": 40.0, "upper": 48.0, "symbols": 42.0, "plates": 60.0, "pencils": 45.0, "photos": 33.0},
)
"""Percent, by grid."""

ON_GRID = {"rtn": -15.0, "mse": 4.0, "awq": 3.0, "gptq": 9.0, "gptaq": 12.0}
"""Points over plain of other methods, as far as the gap allows."""


def row_key(text: str) -> RowKey:
    """The row that a record spells so: `gptq/images`, `pair/lambda_1`, `mean+gptq/images/lambda_1`."""
    first, *rest = text.split("/")
    kind, _, method = first.partition("+")
    if method:
        return RowKey(kind, rest[1], method, rest[0])  # type: ignore[arg-type]
    if kind in METHODS:
        return RowKey("calibrated", None, kind, rest[0])
    if kind == "control":
        return RowKey(kind, control=rest[0])  # type: ignore[arg-type]
    return RowKey(kind, *rest)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Response:
    """How a pair answers to lambda: gain = gap * share * (2 t - t^2) with t = lambda / best."""

    share: float
    best: float

    def gain(self, gap: float, lam: float) -> float:
        t = lam / self.best
        return gap * self.share * (2 * t - t * t)


def response(donor: str, receiver: str) -> Response:
    """Related tasks recover more; `pencils` overshoots, `photos` is anti-aligned, each for some receivers."""
    if donor == "photos" and receiver in ("lower", "upper"):
        return Response(0.05, -0.4)
    if donor == "pencils" and receiver in ("symbols", "photos"):
        return Response(0.15, 0.4)
    return Response(cosine(donor, receiver), 0.9)


def cosine(donor: str, receiver: str) -> float:
    """Of the pair: the nearer in TASKS the larger."""
    return 0.55 - 0.09 * abs(TASKS.index(donor) - TASKS.index(receiver))


def truth(grid: int, receiver: str, donor: str, lam: float) -> float:
    """Gain over plain, points, of one donor at lambda."""
    gap = QAT[grid][receiver] - PLAIN[grid][receiver]
    return max(response(donor, receiver).gain(gap, lam), 5.0 - PLAIN[grid][receiver])


def mean_truth(grid: int, receiver: str, lam: float) -> float:
    """Of the mean of donors: half as much again as the mean of their gains."""
    return 1.5 * float(np.mean([truth(grid, receiver, donor, lam) for donor in TASKS if donor != receiver]))


class Maker:
    """Draws the answers of one cell."""

    def __init__(self, grid: int, receiver: str, seed: int, images: int) -> None:
        self.grid, self.receiver, self.images = grid, receiver, images
        key = (grid, TASKS.index(receiver))
        self.difficulty = np.random.default_rng([7, key[1]]).standard_normal((2, images))
        self.draw = np.random.default_rng([11, *key, seed])

    def trial(self, top1: float, **values: object) -> Trial:
        """A trial that is right with chance `top1` percent."""
        chance = min(max(top1, 1.0), 99.5)
        hard = math.sqrt(0.8) * self.difficulty + math.sqrt(0.2) * self.draw.standard_normal((2, self.images))
        right, selecting = stats.norm.cdf(hard) < chance / 100
        divergence = 0.02 * abs(FLOAT[self.receiver] - chance) + 0.005 * abs(float(self.draw.standard_normal()))
        seen = {"divergence": divergence, "selecting_right": int(selecting[:SELECTING].sum())}
        blind = values.get("kind") in ("float", "own_qat", "control") or values.get("inputs") is not None
        return Trial(**(({} if blind else seen) | values), right=pack_right(right))  # type: ignore[arg-type]


@cache
def make_cell(grid: int, receiver: str, seed: int, images: int = IMAGES) -> Cell:
    """The cell of one receiver on one grid with one seed."""
    maker, scheme = Maker(grid, receiver, seed, images), GRIDS[grid]
    donors = tuple(task for task in TASKS if task != receiver)
    plain, own = PLAIN[grid][receiver], QAT[grid][receiver]
    method = "grid" if scheme.clip < 1 else scheme.method
    shift = {donor: 1 + 0.1 * float(maker.draw.standard_normal()) for donor in donors}
    trials = [
        maker.trial(FLOAT[receiver], kind="float", method="float", lam=0.0),
        maker.trial(own, kind="own_qat", method=method, lam=0.0),
    ]
    for name in ("rtn", "mse", *(["grid"] if scheme.clip < 1 else [])):
        points = ON_GRID[name] if name != method else 0.0
        trials.append(maker.trial(min(plain + points, own), kind="plain", method=name, lam=0.0))
    for name in METHODS:
        for looked_at in INPUTS:
            points = ON_GRID[name] - (1.0 if looked_at == "generated" else 0.0)
            top1 = min(plain + points, FLOAT[receiver])
            trials.append(maker.trial(top1, kind="plain", method=name, lam=0.0, inputs=looked_at))
            trials.append(maker.trial(top1 - 0.5, kind="mean", method=name, lam=1.0, inputs=looked_at))
    for lam in LAMBDAS:
        if lam == 0.0:
            continue
        for donor in donors:
            gain = shift[donor] * truth(grid, receiver, donor, lam)
            trials.append(maker.trial(plain + gain, kind="pair", method=method, lam=lam, donor=donor))
        top1 = plain + mean_truth(grid, receiver, lam)
        trials.append(maker.trial(min(top1, own), kind="mean", method=method, lam=lam))
    mix = min(plain + 1.2 * mean_truth(grid, receiver, 1.0), own)
    trials.append(maker.trial(mix, kind="mix", method=method, lam=1.0))
    for control in CONTROLS:
        points = 2.0 if control == "task_vector" else -0.5
        for donor in donors:
            trials.append(
                maker.trial(plain + points, kind="control", method=method, lam=1.0, donor=donor, control=control)
            )
    request = CellRequest(
        model=MODEL,
        model_args={"img_size": 32},
        skip=("head",),
        grid=scheme,
        seed=seed,
        receiver=TaskData(receiver, f"tiny/{receiver}"),
        fp=f"fp_{receiver}_{seed}.safetensors",
        own_qat=f"qat_{receiver}_{seed}.safetensors",
        base="base.safetensors",
        donors=tuple(DonorFiles(d, f"vector_{d}_{seed}.safetensors", f"fp_{d}_{seed}.safetensors") for d in donors),
        methods=METHODS,
        inputs=INPUTS,
        lambdas=LAMBDAS,
        controls=CONTROLS,
        selecting=SELECTING,
        testing=images,
    )
    return Cell(
        request=request,
        images=images,
        trials=tuple(trials),
        relations={
            donor: Relation(
                prototype_cosine=cosine(donor, receiver) + 0.3,
                task_vector_cosine=cosine(donor, receiver) / 2 + 0.02 * float(maker.draw.standard_normal()),
                vector_cosine=0.1 * float(maker.draw.random()),
                predicted_share=min(
                    1.0, max(0.0, cosine(donor, receiver) + 0.05 * float(maker.draw.standard_normal()))
                ),
            )
            for donor in donors
        },
        mix={donor: 1 / len(donors) for donor in donors},
        selecting=SELECTING - 3,
        seconds={"patch": 0.3, "quantize": 2.0, "forward": 12.0, "prepare": 1.0, "all": 15.5},
    )


def make_cells(
    grids: tuple[int, ...] = (0, 1),
    receivers: tuple[str, ...] = TASKS,
    seeds: tuple[int, ...] = SEEDS,
    images: int = IMAGES,
) -> tuple[Cell, ...]:
    """All cells of a study, or of a part of one."""
    return tuple(make_cell(g, r, s, images) for g in grids for s in seeds for r in receivers)


def make_fine_tunes(grids: tuple[int, ...] = (0, 1)) -> tuple[FineTune, ...]:
    """What training took: 20 seconds a float fine-tune, 26 a quantization-aware one."""
    fine_tunes = [FineTune("base", MODEL, None, None, None, 300.0)]
    for seed in SEEDS:
        for task in TASKS:
            fine_tunes.append(FineTune("fp", MODEL, task, None, seed, 20.0))
            fine_tunes += [FineTune("qat", MODEL, task, GRIDS[grid], seed, 26.0) for grid in grids]
    return tuple(fine_tunes)
