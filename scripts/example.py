"""The library from a program: build the demo's receiver at 3 bits, run its engine, and hold it against another one.

python scripts/example.py [OUT]
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

import qvec_deploy as qd

RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "demo_3bit.yaml"
QUICK = ["variants=[]", "evaluate.limit=200", "measure.blocks=10"]


def main(out: Path) -> None:
    """Plan, build, run, compare, release."""
    recipe = qd.load_recipe(RECIPE, [*QUICK, "name=patched"])
    plan = qd.plan(recipe)
    print(f"{len(plan.quantized)} Linears at {plan.stored_bits_per_weight:.2f} bits a weight")

    vector = qd.QuantizationVector.open(recipe.locate(recipe.vector.files[0]))
    print(f"a vector of {len(vector.tensors)} tensors, trained for {vector.header.scheme}")

    patched = qd.build(recipe, out / "patched", force=True)
    shipped = patched.report["patched"].accuracy
    print(f"patched: {shipped.correct} of {shipped.count} right")
    plain = qd.build(qd.load_recipe(RECIPE, [*QUICK, "name=plain", "lambda=0"]), out / "plain", force=True)

    bundle = qd.Bundle.open(out / "patched")  # every file is held against the manifest
    with bundle.session(threads=1) as session:
        logits = session.run(np.zeros((2, *session.input_shape), np.float32))
    print(f"logits {logits.shape}")

    verdict = qd.compare(plain.bundle.directory, bundle.directory)
    print(f"against plain quantization: {verdict.accuracy.verdict}")

    released = qd.release(bundle.directory, out / "released", force=True)
    print(f"released: {', '.join(released.files)}")


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1] if len(sys.argv) > 1 else "out/example"))
    except qd.QvecError as error:
        sys.exit(f"error: {error.message}\nhint: {error.hint}")
