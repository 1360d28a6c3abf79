#!/usr/bin/env python3
"""A/A runs: one bundle against itself. Whatever is found to differ is a false alarm.

Every run loads the engine twice, times both side by side as `bench` does, and asks for the verdict that `compare`
gives. The two are the same file in different memory, so FASTER and SLOWER are both wrong; SAME is right, and UNSURE
says that the machine was too noisy for the number of blocks.

    scripts/bench_aa.py                          # 20 runs of out/demo_3bit
    scripts/bench_aa.py --bundle B --blocks 60   # exit 3 on a false alarm
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from qvec_deploy.bench.environment import capture_environment, complete_environment
from qvec_deploy.bench.latency import LatencySamples, measure_latency
from qvec_deploy.bench.parity import parity_images
from qvec_deploy.bench.statistics import coefficient_of_variation, median
from qvec_deploy.bench.verdicts import LEVEL, TOLERANCE, latency_verdict
from qvec_deploy.bundle.bundle import Bundle
from qvec_deploy.errors import QvecError
from qvec_deploy.runtimes.registry import find_runtime

FALSE_ALARMS = ("FASTER", "SLOWER")
MISSED = 3


def main() -> int:
    """Measure, print, and say whether there was a false alarm."""
    options = parse_options()
    try:
        bundle = Bundle.open(options.bundle)
        lowering, threads = bundle.check_lowering(options.lowering or bundle.recipe.target.lowering), options.threads
        before = capture_environment(threads)
        runs = []
        for seed in range(options.runs):
            run = judge(measure(bundle, lowering, threads, options.blocks, seed))
            if not options.json:
                print(row(seed, run), flush=True)
            runs.append(run)
    except QvecError as error:
        print(f"error: {error.message}\nhint: {error.hint}", file=sys.stderr)
        return error.exit_code
    false_alarms = sum(run["verdict"] in FALSE_ALARMS for run in runs)
    environment = complete_environment(before)
    if options.json:
        setting = {"level": LEVEL, "tolerance": TOLERANCE, "lowering": lowering, "blocks": options.blocks}
        document = setting | {"false_alarms": false_alarms, "runs": runs, "environment": asdict(environment)}
        print(json.dumps(document, indent=2))
    else:
        counts = Counter(str(run["verdict"]) for run in runs)
        print(f"\n{lowering}, {threads} threads, {options.blocks} blocks, level {LEVEL:g}, tolerance {TOLERANCE:.0%}")
        print(f"load average {environment.load_average} before, {environment.load_average_after} after")
        print(", ".join(f"{verdict} {count}" for verdict, count in counts.most_common()))
        print(f"false alarms: {false_alarms} of {len(runs)}")
    return MISSED if false_alarms else 0


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=Path("out/demo_3bit"), help="default: %(default)s")
    parser.add_argument("--runs", type=_positive, default=20, help="default: %(default)s")
    parser.add_argument("--blocks", type=_positive, default=400, help="samples per run; default: %(default)s")
    parser.add_argument("--lowering", help="default: the bundle's own")
    parser.add_argument("--threads", type=_positive, default=1, help="default: %(default)s")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    return parser.parse_args()


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return value


def measure(bundle: Bundle, lowering: str, threads: int, blocks: int, seed: int) -> tuple[LatencySamples, ...]:
    """Latencies of two loads of the same engine, in the same blocks."""
    target = find_runtime(bundle.recipe.target.runtime).load()
    with (
        target.open(bundle.directory, lowering, threads) as first,
        target.open(bundle.directory, lowering, threads) as second,
    ):
        images = parity_images(first.input_shape)[:1]
        taken = measure_latency({"first": first, "second": second}, images, blocks=blocks, warmup=5, seed=seed)
    return taken["first"], taken["second"]


def judge(taken: tuple[LatencySamples, ...]) -> dict[str, Any]:
    """The verdict of one run, and what it rests on."""
    first, second = (each.samples_ms for each in taken)
    verdict, ratio = latency_verdict(first, second)
    return {
        "verdict": verdict,
        "ratio": ratio.value if ratio else None,
        "low": ratio.low if ratio else None,
        "high": ratio.high if ratio else None,
        "median_ms": median(first),
        "variation": coefficient_of_variation(first),
        "warmup": taken[0].warmup,
        "settled": all(each.settled for each in taken),
    }


def row(number: int, run: dict[str, Any]) -> str:
    """One line of the table."""
    if run["ratio"] is None:
        return f"{number + 1:3d}  {run['median_ms']:8.3f} ms  too few blocks  {run['verdict']}"
    interval = f"{run['ratio']:.4f} [{run['low']:.4f}, {run['high']:.4f}]"
    return f"{number + 1:3d}  {run['median_ms']:8.3f} ms  CoV {run['variation']:7.1%}  {interval}  {run['verdict']}"


if __name__ == "__main__":
    raise SystemExit(main())
