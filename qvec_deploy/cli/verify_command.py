"""`verify`: whether a bundle is what was built and released, and whether it may be released."""

from __future__ import annotations

from pathlib import Path

import click

from qvec_deploy.cli.options import PATH, at_work, json_option
from qvec_deploy.cli.terminal import echo_json, say


@click.command()
@click.argument("bundle", type=PATH)
@click.option("--key", type=PATH, help="Check the signature first, with this public key, a PEM file.")
@click.option("--release", is_flag=True, help="Refuse also what must not be released: missed gates, no engine.")
@click.option("--accept-unverified", is_flag=True, help="With --release: let a patch pass that no image has verified.")
@json_option
def verify(bundle: Path, key: Path | None, release: bool, accept_unverified: bool, as_json: bool) -> None:
    """Check a bundle: signature and hashes first, then formats, then its engine against PyTorch's logits.

    Exit codes: 0 all is well; 2 the key is none; 3 with --release, a gate is missed or not judged, or the patch is
    unverified; 4 the engine cannot be opened here or computes something else, or the library for signatures is
    missing; 5 a file was changed, added or removed, or the signature does not hold; 6 a file cannot be read.
    """
    from qvec_deploy.bundle.bundle import Bundle
    from qvec_deploy.bundle.release.release import require_listed_only
    from qvec_deploy.bundle.release.release_subject import is_release, read_subject
    from qvec_deploy.bundle.release.signature import check_signature, is_signed
    from qvec_deploy.bundle.write import require_release

    if accept_unverified and not release:
        raise click.UsageError("--accept-unverified goes with --release")
    checks = {}
    if key is not None:
        checks["signature"] = check_signature(bundle, key)
    elif is_signed(bundle):
        checks["signature"] = "signed, not checked: give --key"
    opened = Bundle.open(bundle)
    require_listed_only(opened)
    if release:
        require_release(opened, accept_unverified=accept_unverified)
        read_subject(opened)
    with at_work(f"verify  {bundle}"):
        checks |= opened.verify()
    missing = opened.engine_missing()
    if as_json:
        echo_json(
            {
                "bundle": str(bundle),
                "ok": True,
                "release": is_release(opened.manifest),
                "signed": is_signed(bundle),
                "signature_checked": key is not None,
                "engine_missing": missing,
                "checks": checks,
            }
        )
        return
    unchecked = {"engine"} if missing else set()
    unchecked |= {"signature"} if key is None else set()
    width = max(map(len, checks))
    for check, result in checks.items():
        say(f"{'--' if check in unchecked else 'ok'}  {check:{width}} {result}")
