"""`verify`: whether a bundle is what was built, and whether it may be released."""

from __future__ import annotations

from pathlib import Path

import click

from qvec_deploy.cli.options import echo_json, json_option


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--release", is_flag=True, help="Refuse also what must not be released: missed gates, no engine.")
@click.option("--accept-unverified", is_flag=True, help="With --release: let a patch pass that no image has verified.")
@json_option
def verify(bundle: Path, release: bool, accept_unverified: bool, as_json: bool) -> None:
    """Check a bundle: hashes first, then formats, then its engine against PyTorch's logits."""
    from qvec_deploy.bundle.bundle import Bundle
    from qvec_deploy.bundle.finish import require_release

    if accept_unverified and not release:
        raise click.UsageError("--accept-unverified goes with --release")
    opened = Bundle.open(bundle)
    if release:
        require_release(opened, accept_unverified=accept_unverified)
    results = opened.verify()
    missing = opened.manifest.engine.missing
    if as_json:
        echo_json({"bundle": str(bundle), "ok": True, "engine_missing": missing, "checks": results})
        return
    for check, result in results.items():
        click.echo(f"{'--' if check == 'engine' and missing else 'ok'}  {check:8} {result}")
