#!/usr/bin/env python3
"""Pair evaluations a minute: as a study does them, and with everything loaded again for every pair.

    scripts/bench_study.py                                   # the demo's model
    scripts/bench_study.py --model vit_small_patch16_224     # random weights, noise for vectors, drawn images in files
    scripts/bench_study.py --model vit_small_patch16_224 --check

A pair is one donor's vector at lambda 1 on the receiver, on the grid, and its answers on the test images. The other
way opens receiver and vector, makes the timm model, opens the dataset and decodes its images for each pair, as scripts
do that take one pair a run. Both quantize with the same code and give the same answers; rounds alternate between the
two in one process, on one thread. With --check, exits 3 when less than 90 % of a pair's time is the forward pass.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from qvec_deploy.builder.select.trial_model import at
from qvec_deploy.builder.weights import load_model, make_weights
from qvec_deploy.datasets import DataConfig, DatasetSpec, batches, open_dataset
from qvec_deploy.datasets.generated import NAME as GENERATED
from qvec_deploy.datasets.splits import BATCH
from qvec_deploy.progress import Progress
from qvec_deploy.research.study.cell_network import CellNetwork, open_request, read_all
from qvec_deploy.research.study.cell_values import CellRequest, DonorFiles, TaskData, Trial, pack_right
from qvec_deploy.research.study.task_images import TaskImages, judging_images
from qvec_deploy.tensors import QuantizedTensor, Scheme

ROOT = Path(__file__).resolve().parent.parent
LEAST_FORWARD = 0.9
TINY_ARGS: dict[str, Any] = {
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": 96,
    "depth": 6,
    "num_heads": 3,
    "global_pool": "avg",
}
GRID = Scheme(3, "tensor", method="mse")
CLASSES = 10
STAGES = ("patch", "quantize", "forward")


def tiny_request(images: int) -> CellRequest:
    """The bundled demo: its receiver and its five donors."""
    folder = ROOT / "recipes" / "demo"
    receiver = str(folder / "receiver_symbols.safetensors")
    donors = ("lower", "upper", "realdigits", "pairs", "outline")
    files = tuple(DonorFiles(task, str(folder / f"vector_{task}.safetensors"), receiver) for task in donors)
    return _request("vit_tiny_patch16_224", TINY_ARGS, TaskData("symbols", "tiny/symbols"), receiver, files, images)


def made_request(model: str, images: int, folder: Path) -> CellRequest:
    """A model with random weights, two vectors of noise, and drawn images as files."""
    from safetensors.numpy import save_file

    from qvec_deploy.models import create, describe
    from qvec_deploy.vectors.extract import extract_vector

    generator = np.random.default_rng(0)
    fp = {
        name: generator.normal(0, 0.02, value.shape).astype(np.float32) if value.ndim > 1 else value.numpy()
        for name, value in create(model, CLASSES, {}).state_dict().items()
    }
    receiver = folder / "receiver.safetensors"
    save_file(fp, receiver)
    architecture = describe(model, CLASSES, {})
    files = []
    for seed in range(2):
        generator = np.random.default_rng(seed)
        qat = {
            name: value + np.float32(0.016 * float(value.std())) * generator.standard_normal(value.shape, np.float32)
            for name, value in fp.items()
        }
        path = folder / f"vector_{seed}.safetensors"
        extract_vector(
            fp, qat, path, scheme=GRID, skip=("head",), task=f"noise{seed}", seed=seed, architecture=architecture
        )
        files.append(DonorFiles(f"noise{seed}", str(path), str(receiver)))
    draw(folder / "images", images, DataConfig.from_mapping(architecture.data_config))
    task = TaskData("drawn", "folder", str(folder / "images"))
    return _request(model, {}, task, str(receiver), tuple(files), images)


def draw(folder: Path, count: int, config: DataConfig) -> None:
    """Generated images as PNG files, in one folder a class."""
    from PIL import Image

    pixels: Any = open_dataset(DatasetSpec(GENERATED, "test", limit=count), config)
    for row, image in enumerate(pixels.pixels):
        place = folder / "test" / f"class{row % CLASSES}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.transpose(1, 2, 0)).save(place / f"{row:05d}.png")


def _request(
    model: str, args: dict[str, Any], task: TaskData, receiver: str, donors: tuple[DonorFiles, ...], images: int
) -> CellRequest:
    return CellRequest(
        model=model,
        model_args=args,
        skip=("head",),
        grid=GRID,
        seed=0,
        receiver=task,
        fp=receiver,
        own_qat=None,
        base=None,
        donors=donors,
        methods=(),
        inputs=(),
        lambdas=(1.0,),
        controls=(),
        selecting=BATCH,
        testing=images,
    )


class Kept:
    """The study's way: what pairs share is made once."""

    def __init__(self, request: CellRequest) -> None:
        self.progress = Progress()
        self.opened = open_request(request)
        classes = self.opened.plan.architecture.classes
        testing = judging_images(request.receiver, self.opened.config, classes, request.testing)
        first = TaskImages(testing.batches[:1], testing.labels[: len(testing.batches[0])])
        self.network = CellNetwork(self.opened, first, testing, self.progress)

    def pair(self, donor: DonorFiles) -> str:
        """Right answers of one donor at lambda 1."""
        with self.progress.stage("read"):
            rho = read_all(self.opened.vectors[donor.task])
        self.network.show(self.network.patched(rho, 1.0), GRID)
        trial, _ = self.network.run(Trial("pair", GRID.method, 1.0, donor.task), choosing=False)
        return trial.right


def reload_pair(request: CellRequest, donor: DonorFiles) -> str:
    """Right answers of one donor at lambda 1, with everything opened, made and decoded for it."""
    import torch

    opened = open_request(replace(request, donors=(donor,)))
    made = make_weights(at(opened.plan, 1.0), opened.receiver, opened.sources)
    state = {name: w.dequantize() if isinstance(w, QuantizedTensor) else w for name, w in made.tensors}
    model = load_model(opened.plan, state.items())
    task = request.receiver
    root = None if task.root is None else Path(task.root)
    dataset = open_dataset(DatasetSpec(task.dataset, task.testing_split, root, request.testing), opened.config)
    right = []
    with torch.inference_mode():
        for images, labels in batches(dataset, BATCH):
            right.append(model(torch.from_numpy(images)).argmax(dim=1).numpy() == labels)
    return pack_right(np.concatenate(right))


def measure(request: CellRequest, rounds: int) -> dict[str, Any]:
    """Both ways in turn, every round another donor, after one round that is not counted."""
    kept = Kept(request)
    ways: dict[str, Callable[[DonorFiles], str]] = {
        "kept": kept.pair,
        "reloaded": lambda donor: reload_pair(request, donor),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    of_cpu: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        donor = request.donors[turn % len(request.donors)]
        answers = {}
        for name in sorted(ways, reverse=bool(turn % 2)):
            start, cpu = time.perf_counter(), time.process_time()
            answers[name] = ways[name](donor)
            seconds[name].append(time.perf_counter() - start)
            of_cpu[name].append(time.process_time() - cpu)
        if answers["kept"] != answers["reloaded"]:
            sys.exit(f"the two ways answer differently for {donor.task}: there is a mistake in one of them")
        if turn == 0:
            kept.progress.timings_s.clear()
    counted = {name: values[1:] for name, values in seconds.items()}
    total = sum(counted["kept"])
    shares = {stage: kept.progress.timings_s[stage] / total for stage in ("read", *STAGES)}
    typical = {name: median(values) for name, values in counted.items()}
    return {
        "model": request.model,
        "grid": str(GRID),
        "images": len(kept.network.testing),
        "rounds": rounds,
        "pairs_per_minute": {name: round(60 / value, 2) for name, value in typical.items()},
        "speed_up": round(typical["reloaded"] / typical["kept"], 2),
        "speed_up_cpu_time": round(median(of_cpu["reloaded"][1:]) / median(of_cpu["kept"][1:]), 2),
        "share_of_time": {stage: round(share, 4) for stage, share in shares.items()},
        "seconds": {name: [round(value, 4) for value in values] for name, values in counted.items()},
        "load_average": os.getloadavg()[0],
    }


def main() -> int:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", help="`tiny`, or a timm name such as vit_small_patch16_224")
    parser.add_argument("--images", type=int, help="test images (default: 500 for tiny, else 200)")
    parser.add_argument("--rounds", type=int, help="pairs that are timed each way (default: 10 for tiny, else 3)")
    parser.add_argument("--check", action="store_true", help="exit 3 when forward passes are less than 90 %%")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    tiny = options.model == "tiny"
    images, rounds = options.images or (500 if tiny else 200), options.rounds or (10 if tiny else 3)
    with tempfile.TemporaryDirectory() as scratch:
        request = tiny_request(images) if tiny else made_request(options.model, images, Path(scratch))
        found = measure(request, rounds)
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        show(found)
    missed = found["share_of_time"]["forward"] < LEAST_FORWARD
    if options.check and missed:
        print(f"missed: forward passes take less than {LEAST_FORWARD:.0%} of a pair's time", file=sys.stderr)
    return 3 if options.check and missed else 0


def show(found: dict[str, Any]) -> None:
    """The same as text."""
    print(f"{found['model']}, {found['grid']}, {found['images']} test images, one thread, {found['rounds']} rounds")
    for name, pairs in found["pairs_per_minute"].items():
        print(f"{name:9} {pairs:8.2f} pairs a minute")
    print(f"speed-up  {found['speed_up']:8.2f}; in CPU time, which a busy machine changes less, ", end="")
    print(f"{found['speed_up_cpu_time']:.2f}; load average {found['load_average']:.1f}")
    print("share of a pair's time: " + ", ".join(f"{stage} {x:.1%}" for stage, x in found["share_of_time"].items()))


if __name__ == "__main__":
    sys.exit(main())
