"""`release`: a bundle leaves the house."""

from __future__ import annotations

from pathlib import Path

import click

from qvec_deploy.cli.options import PATH, json_option, progress_shown, quiet_option
from qvec_deploy.cli.terminal import echo_json, say


@click.command()
@click.argument("bundle", type=PATH)
@click.option("--to", type=PATH, required=True, help="The release's directory.")
@click.option(
    "--key",
    "keys",
    type=PATH,
    multiple=True,
    help="Sign with this elliptic-curve private key, a PEM file; repeatable.",
)
@click.option("--sigstore", is_flag=True, help="Sign it with your identity instead, through sigstore's public service.")
@click.option("--number", help="The release's number, larger with every release: 7, or 1.4.0.")
@click.option("--expires", metavar="DATE", help="The last day on which `verify` takes it, in UTC.")
@click.option(
    "--accept-unverified", is_flag=True, help="Let a patch pass that no image has verified; the card says so."
)
@click.option(
    "--with",
    "additions",
    type=click.Choice(["docker"]),
    multiple=True,
    help="Add a Dockerfile that runs it.",
)
@click.option("--force", is_flag=True, help="Replace an existing release.")
@quiet_option
@json_option
def release(
    bundle: Path,
    to: Path,
    keys: tuple[Path, ...],
    sigstore: bool,
    number: str | None,
    expires: str | None,
    accept_unverified: bool,
    additions: tuple[str, ...],
    force: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Check a bundle and its gates, and copy it with model card, bill of materials, provenance and signatures."""
    from qvec_deploy.bundle.manifest import MAX_SIGNERS
    from qvec_deploy.bundle.release.release import release as make_release

    if keys and sigstore:
        raise click.UsageError("--sigstore signs instead of --key")
    if len(keys) > MAX_SIGNERS or len(set(keys)) != len(keys):
        raise click.UsageError(f"--key takes up to {MAX_SIGNERS} keys, each once")

    done = make_release(
        bundle,
        to,
        keys=keys,
        sigstore=sigstore,
        number=number,
        expires=expires,
        accept_unverified=accept_unverified,
        with_docker="docker" in additions,
        force=force,
        progress=progress_shown(quiet or as_json),
    )
    if as_json:
        document = {"release": str(to), "signed": bool(done.signatures), "checks": done.checks, "gates": done.gates}
        echo_json(document | {"files": done.files})
        return
    for check, result in done.checks.items():
        say(f"ok  {check:8} {result}")
    say(f"ok  gates    {done.gates} passed" if done.gates else "--  gates    none asked")
    say("", f"release  {to}", f"card     {to}/MODEL_CARD.md")
    signed = ", ".join(f"{to}/{name}" for name in done.signatures)
    say(f"signed   {signed or 'no: give --key'}")
