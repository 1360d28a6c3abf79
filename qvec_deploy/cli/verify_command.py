"""`verify`: whether a bundle is what was built and released, and whether it may be released."""

from __future__ import annotations

from pathlib import Path

import click

from qvec_deploy.cli.options import PATH, at_work, json_option
from qvec_deploy.cli.terminal import echo_json, say


@click.command()
@click.argument("bundle", type=PATH)
@click.option(
    "--key",
    "keys",
    type=PATH,
    multiple=True,
    help="Check first who signed it: this public key, a PEM file, or another one given.",
)
@click.option("--identity", help="Check that this e-mail address or workflow signed it, through sigstore.")
@click.option("--identity-provider", metavar="URL", help="Who vouches for the identity; goes with --identity.")
@click.option("--not-older-than", metavar="NUMBER|DATE", help="Refuse a release of a smaller number, or made before.")
@click.option("--release", is_flag=True, help="Refuse also what must not be released: missed gates, no engine.")
@click.option("--accept-unverified", is_flag=True, help="With --release: let a patch pass that no image has verified.")
@json_option
def verify(
    bundle: Path,
    keys: tuple[Path, ...],
    identity: str | None,
    identity_provider: str | None,
    not_older_than: str | None,
    release: bool,
    accept_unverified: bool,
    as_json: bool,
) -> None:
    """Check a bundle: signature and hashes first, then formats, then its engine against PyTorch's logits.

    Exit codes: 0 all is well; 2 a key, number or day is none; 3 with --release, a gate is missed or not judged, or the
    patch is unverified; 4 the release has expired or is older than it may be, the engine cannot be opened here or
    computes something else, or the library for signatures is missing; 5 a file was changed, added or removed, or the
    signature does not hold; 6 a file cannot be read; 7 sigstore cannot be reached.
    """
    from qvec_deploy.bundle.bundle import Bundle
    from qvec_deploy.bundle.release.freshness import check_freshness
    from qvec_deploy.bundle.release.release import require_listed_only
    from qvec_deploy.bundle.release.release_subject import is_release, read_subject
    from qvec_deploy.bundle.release.signature import check_identity, check_signature, is_signed
    from qvec_deploy.bundle.write import require_release

    if accept_unverified and not release:
        raise click.UsageError("--accept-unverified goes with --release")
    if (identity is None) != (identity_provider is None) or (identity is not None and keys):
        raise click.UsageError("--identity goes with --identity-provider, and instead of --key")
    signed = check_signature(bundle, *keys) if keys else None
    if identity is not None and identity_provider is not None:
        signed = check_identity(bundle, identity, identity_provider)
    checks = {"signature": signed.told} if signed is not None else {}
    if signed is None and is_signed(bundle):
        checks["signature"] = "signed, not checked: give --key"
    opened = Bundle.open(bundle, manifest_sha256=signed.manifest_sha256 if signed is not None else None)
    require_listed_only(opened)
    told = check_freshness(opened.manifest, not_older_than)
    if told is not None:
        checks["release"] = told
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
                "signature_checked": signed is not None,
                "engine_missing": missing,
                "checks": checks,
            }
        )
        return
    unchecked = {"engine"} if missing else set()
    unchecked |= {"signature"} if signed is None else set()
    width = max(map(len, checks))
    for check, result in checks.items():
        say(f"{'--' if check in unchecked else 'ok'}  {check:{width}} {result}")
