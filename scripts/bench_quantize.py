#!/usr/bin/env python3
"""How fast weights are quantized: the Linears of a ViT-B by method `mse` and `rtn`, with seeded weights.

The search of `mse` for clip ratios is timed beside ModelOpt's calibrator over the same ratios, once with a whole weight
at a time, as 0.1.0 used it, and once in pieces that stay in the cache. All have to choose the same ratios. `rtn` is
timed beside ModelOpt's quantizer, which has to give the same codes and scales. One thread, CPU time, interleaved; the
least of the rounds counts, which a busy machine disturbs least.

    scripts/bench_quantize.py            # a table
    scripts/bench_quantize.py --check    # exit 3 if an aim is missed
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qvec_deploy.quantize import modelopt, nearest
from qvec_deploy.quantize.clip_search import search_clips
from qvec_deploy.quantize.modelopt import calibrate_clips
from qvec_deploy.tensors import Scheme

SHAPES = ((2304, 768), (768, 768), (3072, 768), (768, 3072))  # of a ViT-B, twelve times each
GRAINS = (("channel", 0), ("group", 64), ("group", 128), ("tensor", 0))
BITS = (2, 3, 4, 6, 8)
PIECE = 1 << 16  # weights that ModelOpt's search takes at a time in the second way
WEIGHTS: dict[str, Callable[[np.random.Generator, tuple[int, int]], Any]] = {
    "normal": lambda random, shape: random.standard_normal(shape),
    "heavy tails": lambda random, shape: random.standard_t(4, shape),
}
AIMS = {"whole": 10.0}  # the least that a ratio may be in any row


def main() -> int:
    """Measure, print, and say which aims were missed."""
    options = parse_options()
    torch.set_num_threads(1)
    rows = []
    for row in measure(options):
        rows.append(row)
        if not options.json:
            show(row, header=len(rows) == 1)
    searches = [row for row in rows if row["method"] == "mse"]
    figures = {
        f"{way}_to_search": min((row["ratios"][way] for row in searches), default=0.0) for way in ("whole", "pieces")
    }
    missed = [f"{way}_to_search" for way, least in AIMS.items() if figures[f"{way}_to_search"] < least]
    missed += ["same"] * (not all(row["same"] for row in rows))
    if options.json:
        print(json.dumps({"rows": rows, "figures": figures, "missed": missed}, indent=2))
    else:
        print(", ".join(f"{name} at least {value:.1f}" for name, value in figures.items()))
    if options.check and missed:
        print(f"aims missed: {', '.join(missed)}", file=sys.stderr)
        return 3
    return 0


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="exit 3, naming them, if aims are missed")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--rounds", type=int, default=3, help="rounds, interleaved; the least counts (default 3)")
    parser.add_argument(
        "--bits", type=int, action="append", choices=range(2, 9), help="repeatable (default: 2 3 4 6 8)"
    )
    parser.add_argument("--weights", action="append", choices=WEIGHTS, help="repeatable (default: all)")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    return options


def measure(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row for every kind of weights, number of bits and granularity, summed over the shapes."""
    kinds = [(name, WEIGHTS[name]) for name in options.weights or WEIGHTS]
    for (name, draw), bits, (grain, size) in product(kinds, options.bits or BITS, GRAINS):
        random = np.random.default_rng(0)
        weights = [np.float32(0.02) * draw(random, shape).astype(np.float32) for shape in SHAPES]
        label = {"weights": name, "bits": bits, "granularity": f"{grain} {size or ''}".strip()}
        searched = Scheme(bits, grain, size, 1.0, "mse")
        yield {"method": "mse", **label} | compare(
            {"search": search_clips, "whole": calibrate_clips, "pieces": in_pieces},
            [(*rows_of(weight, searched), searched) for weight in weights],
            options.rounds,
        )
        plain = Scheme(bits, grain, size)
        yield {"method": "rtn", **label} | compare(
            {"nearest": nearest.quantize, "modelopt": modelopt.quantize},
            [(weight, plain) for weight in weights],
            options.rounds,
        )


def compare(ways: Mapping[str, Callable[..., Any]], inputs: list[Any], rounds: int) -> dict[str, Any]:
    """CPU nanoseconds a weight of every way, how many times the first's they are, and whether all found the same."""
    taken = {name: [0.0] * len(inputs) for name in ways}
    same = True
    for number, given in enumerate(inputs):
        next(iter(ways.values()))(*given)  # which makes tables once
        for round_ in range(rounds):
            found = []
            for name, way in ways.items():
                start = time.process_time()
                found.append(way(*given))
                seconds = time.process_time() - start
                taken[name][number] = min(taken[name][number], seconds) if round_ else seconds
            same = same and all(is_same(found[0], other) for other in found[1:])
    weights = sum(given[0].size if isinstance(given[0], np.ndarray) else given[0].numel() for given in inputs)
    nanoseconds = {name: 1e9 * sum(seconds) / weights for name, seconds in taken.items()}
    first, *others = nanoseconds
    ratios = {name: nanoseconds[name] / nanoseconds[first] for name in others}
    return {"ns_a_weight": nanoseconds, "ratios": ratios, "same": same}


def is_same(one: Any, other: Any) -> bool:
    """Whether two ways found the same clip ratios, or the same codes and scales."""
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    return np.array_equal(one.codes, other.codes) and np.array_equal(one.scale, other.scale)


def rows_of(weight: np.ndarray, scheme: Scheme) -> tuple[Tensor, Tensor]:
    """What shares a scale (rows, weights), and its largest magnitudes (rows, 1)."""
    count = 1 if scheme.granularity == "tensor" else len(weight) * scheme.groups(weight.shape[1])
    rows = torch.from_numpy(weight).reshape(count, -1)
    return rows, rows.abs().amax(dim=1, keepdim=True)


def in_pieces(rows: Tensor, absmax: Tensor, scheme: Scheme) -> Tensor:
    """ModelOpt's search of some rows at a time; of a lone row, whole, as rows cannot be searched in part."""
    step = max(1, PIECE // rows.shape[1])
    pieces = zip(torch.split(rows, step), torch.split(absmax, step), strict=True)
    return torch.cat([calibrate_clips(*piece, scheme) for piece in pieces])


def show(row: Mapping[str, Any], *, header: bool) -> None:
    """One line of the table."""
    if header:
        print("CPU nanoseconds a weight, and how many times the first's the others are")
    times = "   ".join(f"{name} {value:6.1f}" for name, value in row["ns_a_weight"].items())
    ratios = "   ".join(f"{name} x{value:.1f}" for name, value in row["ratios"].items())
    same = "same" if row["same"] else "DIFFERENT"
    print(
        f"{row['method']} {row['bits']} bits {row['granularity']:<9} {row['weights']:<12} {times}   {ratios}   {same}",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
