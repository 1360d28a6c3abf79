"""`qvec-deploy compile`: the engines of a bundle that was made elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from qvec_deploy.cli.options import PATH, batch_size_option, json_option, progress_shown, quiet_option
from qvec_deploy.cli.terminal import say, show


@click.command("compile")
@click.argument("bundle", type=PATH)
@click.option("--lowering", "lowerings", multiple=True, help="Instead of the recipe's; repeatable.")
@batch_size_option
@click.option("--plugin", type=PATH, help="Our plugin as a library, for TensorRT below 10.9.")
@quiet_option
@json_option
def compile_command(
    bundle: Path,
    lowerings: tuple[str, ...],
    batch_sizes: tuple[int, ...],
    plugin: Path | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Build a bundle's engines on this machine: TensorRT's for its GPU, those of TensorRT for RTX for any."""
    from qvec_deploy.bundle.compile_bundle import compile_bundle

    compiled = compile_bundle(
        bundle,
        lowerings=lowerings,
        batch_sizes=batch_sizes,
        plugin=plugin,
        progress=progress_shown(quiet or as_json),
    )
    results = [
        {
            "lowering": each.lowering,
            "parity": each.parity.model_dump() if each.parity else None,
            "not_run": each.not_run,
            "engines": each.engines,
        }
        for each in compiled
    ]

    def print_text() -> None:
        for each in compiled:
            if each.parity is None:
                say(f"{each.lowering}: built, and not run here: {each.not_run}; parity is not known")
            else:
                say(f"{each.lowering}: relative error {each.parity.relative_error:.1e} against PyTorch")
            for engine in each.engines:
                say(f"  {_line(engine)}")

    show({"bundle": str(bundle), "compiled": results}, as_json, print_text)


def _line(engine: dict[str, Any]) -> str:
    stored = engine["weights_bytes"]
    told = f"{stored / 1e6:.1f} MB stored" if stored is not None else "stored bytes: this TensorRT does not say"
    size = f"{engine['stored_bytes'] / 1e6:.1f} of {engine['plan_bytes'] / 1e6:.1f} MB"
    given = f"{engine['given_bytes'] / 1e6:.1f} MB given"
    return f"{engine['file']}  {size} in the bundle; weights: {told}, {given}; built in {engine['build_s']:.0f} s"
