"""A bundle becomes a release: checked, described and signed in a folder that is a bundle itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from qvec_deploy.bundle.bundle import Bundle
from qvec_deploy.bundle.manifest import MANIFEST_FILE, ReleaseFacts, hash_files, write_manifest
from qvec_deploy.bundle.release.bom import bill_of_materials
from qvec_deploy.bundle.release.container_image import container_files
from qvec_deploy.bundle.release.freshness import release_facts
from qvec_deploy.bundle.release.model_card import model_card
from qvec_deploy.bundle.release.provenance import provenance
from qvec_deploy.bundle.release.release_subject import (
    BOM_FILE,
    CARD_FILE,
    PROVENANCE_FILE,
    REQUIREMENTS_FILE,
    RUN_FILE,
    Subject,
    is_release,
    read_subject,
)
from qvec_deploy.bundle.release.signature import (
    SIGNATURE_FILE,
    open_signer,
    open_sigstore_signer,
    public_keys,
    signature_files,
    signature_name,
)
from qvec_deploy.bundle.write import require_release
from qvec_deploy.datasets import standalone_run
from qvec_deploy.errors import IncompatibleError, IntegrityError
from qvec_deploy.io.files import copy_file, move_files, staging_directory, storage_errors, write_bytes
from qvec_deploy.io.output_places import require_outside
from qvec_deploy.io.scratch import scratch_folder
from qvec_deploy.progress import Progress
from qvec_deploy.runtimes.registry import RUNTIMES


@dataclass(frozen=True)
class Release:
    """What was released.

    Attributes:
        files: Name to hex SHA-256 of everything but manifest and signature.
        gates: How many it passed; 0 where the recipe asks for none.
    """

    directory: Path
    files: dict[str, str]
    checks: dict[str, str]
    signatures: list[str]
    gates: int


def release(
    directory: Path,
    to: Path,
    *,
    keys: Sequence[Path] = (),
    sigstore: bool = False,
    number: str | None = None,
    expires: str | None = None,
    accept_unverified: bool = False,
    with_docker: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> Release:
    """Check a bundle and copy what its manifest lists, with model card, bill of materials, provenance and signatures.

    Args:
        to: The release; it appears whole or not at all.
        keys: Elliptic-curve private keys that sign it, PEM files; at most eight.
        sigstore: Sign it with an identity instead, through sigstore.
        number: Its number, which the publisher makes larger with every release.
        expires: The last day on which it is to be used.
        accept_unverified: Let a patch pass that was tried on no image of the receiver's task; the card says so.
        with_docker: Add what Docker builds an image from that runs it.

    Raises:
        GateError: It misses a gate, was not judged or measured, or its patch is unverified.
        IncompatibleError: It has no engine, its engine cannot be opened here or run in a container, or the library that
            signs is missing.
        IntegrityError: It is damaged, or was edited after the build.
        RecipeError: A key cannot sign, or the number or the day is none.
        FetchError: sigstore cannot be used from here.
        StorageError: `to` exists or lies inside the bundle, or the disk refuses.
    """
    progress = progress or Progress()
    require_outside(to, directory)
    facts = release_facts(number, expires, public_keys(*keys) if keys else ())  # refused before anything is copied
    sign = open_signer(*keys) if keys else open_sigstore_signer() if sigstore else None
    with progress.stage("open", directory.name):
        bundle = Bundle.open(directory)
        require_release(bundle, accept_unverified=accept_unverified)
        subject = replace(read_subject(bundle), with_docker=with_docker)
        if with_docker and not subject.stands_alone:
            raise IncompatibleError(
                f"{directory} brings no {RUN_FILE} for a container to run",
                hint=f"release it without Docker, or build it anew with target.runtime: {next(iter(RUNTIMES))}",
            )
        require_listed_only(bundle)
    with (
        staging_directory(to, force=force) as staging,
        scratch_folder("release", staging) as scratch,
    ):
        place = scratch / to.resolve().name  # a signature names the folder that it was made in
        with progress.stage("copy", to.name):
            _copy(directory, place, subject)
        with progress.stage("verify", to.name):
            checks = Bundle.open(place).verify()
        with progress.stage("describe", to.name):
            files = _describe(place, subject, facts)
        if sign is not None:
            with progress.stage("sign", to.name):
                sign(place)
        move_files(place, staging)
    return Release(to, files, checks, signature_files(to), len(subject.report.gates))


def require_listed_only(bundle: Bundle) -> None:
    """Refuse a release with files that its manifest does not list; in other bundles nobody opens them."""
    if not is_release(bundle.manifest):
        return
    directory = bundle.directory
    facts = bundle.manifest.release
    signatures = [signature_name(index) for index in range(len(facts.signers) if facts is not None else 0)]
    expected = {*bundle.manifest.files, MANIFEST_FILE, SIGNATURE_FILE, *signatures}
    with storage_errors(directory):
        paths = [path for path in directory.rglob("*") if path.is_symlink() or not path.is_dir()]
    found = sorted(str(path.relative_to(directory)) for path in paths)
    lost = [name for name in signatures if name not in found]
    if lost:
        raise IntegrityError(f"{directory}: {lost[0]} was removed", hint="fetch the release again")
    added = [name for name in found if name not in expected]
    if added:
        raise IntegrityError(
            f"{directory}: {added[0]} was added after the release", hint="remove it, or fetch it again"
        )


def _copy(directory: Path, place: Path, subject: Subject) -> None:
    """Copy what the manifest lists, and make sure that it is what was checked."""
    with storage_errors(place):
        for name in subject.manifest.files:
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            copy_file(directory / name, place / name)
    write_manifest(place, subject.manifest)


def _describe(place: Path, subject: Subject, facts: ReleaseFacts) -> dict[str, str]:
    """Write card, program, bill of materials and provenance, then the manifest, which lists them."""
    files = dict(subject.manifest.files)
    write_bytes(place / CARD_FILE, model_card(subject).encode())
    added = [CARD_FILE]
    if subject.stands_alone:
        write_bytes(place / RUN_FILE, Path(standalone_run.__file__).read_bytes())
        write_bytes(place / REQUIREMENTS_FILE, standalone_run.REQUIREMENTS.encode())
        added += [RUN_FILE, REQUIREMENTS_FILE]
    if subject.with_docker:
        for name, text in container_files(subject).items():
            write_bytes(place / name, text.encode())
            added.append(name)
    files |= hash_files(place, added)
    write_bytes(place / BOM_FILE, bill_of_materials(subject, files))
    files |= hash_files(place, [BOM_FILE])
    write_bytes(place / PROVENANCE_FILE, provenance(subject, files))
    files |= hash_files(place, [PROVENANCE_FILE])
    changes = {"files": dict(sorted(files.items())), "release": facts}
    write_manifest(place, subject.manifest.model_copy(update=changes))
    return {name: entry.sha256 for name, entry in sorted(files.items())}
