#!/usr/bin/env python3
"""Run the demo's releases and exports where they were not built, and write what came out into a record.

    scripts/check_processors.py [requirements] [aarch64] [web] [openvino] [--output FILE] [--work DIR]

Needs Debian on x86-64, PyPI and npm; environments are made in a temporary folder, and nothing is installed on the
machine. Takes some ten minutes, most of them for `aarch64`, which is emulated: its seconds say nothing about speed. The
exit code is 3 where something is not as the README says.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image
from processor_environments import ENVIRONMENTS, LOWERINGS, Environment, Failed

from qvec_deploy.bench.parity import parity_images
from qvec_deploy.builder.pipeline import build
from qvec_deploy.bundle.bundle import Bundle
from qvec_deploy.bundle.export_bundle import export_model
from qvec_deploy.bundle.release.release import release
from qvec_deploy.datasets import DataConfig, DatasetSpec, batches, open_dataset
from qvec_deploy.io.files import write_bytes
from qvec_deploy.recipe import load_recipe
from qvec_deploy.runtimes.registry import find_lowering
from qvec_deploy.tensors import Float32

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "recipes" / "demo_3bit.yaml"
RECORD = ROOT / "scripts" / "processors.record.json"
DRAWN = 30
"""Images of the demo's task, beside those that bundles keep PyTorch's logits of."""
SMALLER = ("variants=[]", "evaluate=null")
FLOAT = ("quantize.bits=32", "vector=null", "lambda=0")


class Models:
    """The demo in every lowering: releases, exports, and what they answer here."""

    def __init__(self, work: Path) -> None:
        self._work = work
        self.releases = {lowering: self._release(lowering) for lowering in LOWERINGS}
        manifest = self.releases[LOWERINGS[0]].manifest
        config = DataConfig.from_mapping(manifest.model.data_config)
        drawn, _ = next(iter(batches(open_dataset(DatasetSpec("tiny/symbols", "test", limit=DRAWN), config), DRAWN)))
        images = np.concatenate([parity_images(manifest.model.input_shape), drawn])
        self.shape = images.shape
        self.images = work / "images.bin"
        images.astype(np.float32).tofile(self.images)
        self.answers = {lowering: _answers(bundle, images) for lowering, bundle in self.releases.items()}
        self.pictures = [work / "wide.png", work / "high.jpg"]
        generator = np.random.default_rng(0)
        for path, size in zip(self.pictures, ((48, 96, 3), (80, 50, 3)), strict=True):
            Image.fromarray(generator.integers(0, 256, size, np.uint8)).save(path)

    def _release(self, lowering: str) -> Bundle:
        changes = [*SMALLER, f"target.lowering={lowering}", *(FLOAT if lowering == "float" else ())]
        recipe = load_recipe(RECIPE, changes)
        built, released = self._work / f"{lowering}.bundle", self._work / f"{lowering}.release"
        build(recipe, built)
        release(built, released, accept_unverified=True)
        return Bundle.open(released)

    def file(self, lowering: str, form: str) -> Path:
        """The model file of a lowering: in its release, or exported as one file, packed or expanded."""
        bundle = self.releases[lowering].directory
        if form == "release":
            return bundle / "model.onnx"
        path = self._work / f"{lowering}.{form}.onnx"
        if not path.exists():
            export_model(bundle, path, lowering, expanded=form == "expanded")
        return path


def _answers(bundle: Bundle, images: Float32) -> Float32:
    with bundle.session() as session:
        return session.run(images)


def try_model(
    environment: Environment, processor: str, models: Models, lowering: str, form: str, scratch: Path
) -> dict[str, Any]:
    """One model on one processor: how far its logits and probabilities are from those of this machine."""
    expected, bound = models.answers[lowering], find_lowering("onnxruntime", lowering).tolerance
    model, answers = models.file(lowering, form), scratch / "answers.bin"
    told = environment.probe(processor, [str(model), str(models.images), str(answers), *map(str, models.shape)])
    logits = np.fromfile(answers, np.float32).reshape(expected.shape)
    error = float(np.linalg.norm(logits - expected) / np.linalg.norm(expected))
    found = {
        "relative_error": float(f"{error:.2g}"),
        "bound": bound,
        "top1_agreement": float((logits.argmax(1) == expected.argmax(1)).mean()),
        "passed": error <= bound,
        **{name: round(value, 2) if isinstance(value, float) else value for name, value in told.items()},
    }
    if form == "release":
        arguments = [str(model.with_name("run.py")), "--json", "--top", "99", *map(str, models.pictures)]
        here = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True).stdout
        there = environment.program(processor, arguments)
        if there is not None:
            apart = largest_difference(json.loads(here), json.loads(there))
            found |= {"probabilities_apart": float(f"{apart:.2g}"), "passed": found["passed"] and apart <= bound}
    return found


def largest_difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    """The largest difference between two probabilities that run.py gave the same class of the same picture."""
    tables = [
        {
            (picture["image"], entry["name"]): entry["probability"]
            for picture in told["predictions"]
            for entry in picture["classes"]
        }
        for told in (one, other)
    ]
    if tables[0].keys() != tables[1].keys():
        return 1.0
    return max(abs(tables[0][key] - tables[1][key]) for key in tables[0])


def try_all(environment: Environment, models: Models, work: Path) -> Iterator[dict[str, Any]]:
    """Every model on every processor; what cannot be run is told with its reason."""
    for processor in environment.processors():
        for lowering, form, claimed in environment.models():
            row = {"processor": processor, "lowering": lowering, "form": form, "claimed": claimed}
            try:
                row |= try_model(environment, processor, models, lowering, form, work)
            except Failed as error:
                row |= {"passed": False, "error": str(error)}
            yield row


def show(row: Mapping[str, Any]) -> None:
    """One line."""
    what = f"{row['processor']:12} {row['lowering']:7} {row['form']:9}"
    if "error" in row:
        print(f"{what} {'FAILED' if row['claimed'] else 'refused'}: {row['error'][-300:]}", flush=True)
        return
    verdict = "ok" if row["passed"] else "FAILED"
    print(f"{what} {verdict:6} {row['relative_error']:.1e} of at most {row['bound']:g}", flush=True)


def main() -> int:
    """Make, try, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("environment", nargs="*", metavar="ENVIRONMENT", help=f"{', '.join(ENVIRONMENTS)}; all of them")
    parser.add_argument("--output", type=Path, default=RECORD, help="the record; the parts that were not tried stay")
    parser.add_argument("--work", type=Path, help="where everything is made; kept, must be empty")
    options = parser.parse_args()
    unknown = set(options.environment) - set(ENVIRONMENTS)
    if unknown:
        parser.error(f"no environment {', '.join(sorted(unknown))}; there are {', '.join(ENVIRONMENTS)}")
    failed = 0
    with TemporaryDirectory(prefix="qvec-processors.") as temporary:
        work = (options.work or Path(temporary)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        models = Models(work)
        for name in options.environment or ENVIRONMENTS:
            environment, folder = ENVIRONMENTS[name](), work / name
            folder.mkdir()
            requirements = (models.releases[LOWERINGS[0]].directory / "requirements.txt").read_text()
            environment.make(folder, requirements)
            rows = []
            for row in try_all(environment, models, folder):
                rows.append(row)
                show(row)
                failed += row["claimed"] and not row["passed"]
            _write(options.output, name, (environment.__doc__ or "").strip(), rows)
    print(f"\nrecord: {options.output}")
    return 3 if failed else 0


def _write(output: Path, name: str, what: str, rows: list[dict[str, Any]]) -> None:
    record = json.loads(output.read_text()) if output.exists() else {}
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    record[name] = {"date": date, "what": what, "models": rows}
    write_bytes(output, json.dumps(record, indent=1, sort_keys=True).encode() + b"\n")


if __name__ == "__main__":
    sys.exit(main())
