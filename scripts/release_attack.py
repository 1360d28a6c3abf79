#!/usr/bin/env python3
"""Change a signed release in every way that comes to mind, and count the changes that `verify --key` takes.

    scripts/release_attack.py [--bundle DIR] [--flips N] [--output FILE]

A bundle is released twice, as number 1 and as number 2 of the same two signers. Every attack is made on a copy of the
second and put to what `verify --key PUBLIC --not-older-than 2` asks before it looks into any file: signatures, hashes,
what is listed, which release it is. Bits of the manifest are flipped without a key too, before the bundle is opened.
The exit code is 3 where one change is taken.
"""

from __future__ import annotations

import argparse
import base64
import datetime
import json
import os
import random
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from qvec_deploy.bench.environment import capture_environment
from qvec_deploy.bundle.bundle import Bundle
from qvec_deploy.bundle.manifest import MANIFEST_FILE, manifest_bytes, parse_manifest
from qvec_deploy.bundle.release.freshness import check_freshness
from qvec_deploy.bundle.release.release import release, require_listed_only
from qvec_deploy.bundle.release.signature import check_signature, open_signer, signature_files
from qvec_deploy.errors import QvecError
from qvec_deploy.io.files import sha256_bytes, write_bytes

ROOT = Path(__file__).resolve().parents[1]
BUNDLE = ROOT / "tests" / "golden" / "v0.1.0" / "bundle"
RECORD = ROOT / "scripts" / "release_attack.record.json"
SIGNERS = ("old", "new")
PEM = serialization.Encoding.PEM

Attack = Callable[[Path], object]


@dataclass(frozen=True)
class Target:
    """A release to attack, and what an attacker has.

    Attributes:
        keys: Public keys by name, of which the device trusts the first signer's.
        private: Private keys by name; an attacker has `stranger` only.
        older: The release before.
    """

    files: dict[str, bytes]
    older: dict[str, bytes]
    keys: dict[str, Path]
    private: dict[str, Path]


def prepare(bundle: Path, folder: Path) -> Target:
    """Two releases of a bundle, signed twice each, and keys of a stranger."""
    private, public = {}, {}
    for name in (*SIGNERS, "stranger"):
        key = ec.generate_private_key(ec.SECP256R1())
        private[name], public[name] = folder / f"{name}.pem", folder / f"{name}.pub.pem"
        private[name].write_bytes(
            key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        )
        public[name].write_bytes(key.public_key().public_bytes(PEM, serialization.PublicFormat.SubjectPublicKeyInfo))
    found = []
    for number in ("1", "2"):
        place = folder / number / "release"
        release(bundle, place, keys=[private[name] for name in SIGNERS], number=number, accept_unverified=True)
        found.append({str(path.relative_to(place)): path.read_bytes() for path in place.rglob("*") if path.is_file()})
    return Target(found[1], found[0], public, private)


def write_files(folder: Path, files: dict[str, bytes]) -> None:
    """A folder with these files and nothing else."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def accepted(folder: Path, key: Path) -> bool:
    """Whether `verify --key KEY --not-older-than 2` would go on to look into the files."""
    try:
        signed = check_signature(folder, key)
        bundle = Bundle.open(folder, manifest_sha256=signed.manifest_sha256)
        require_listed_only(bundle)
        check_freshness(bundle.manifest, "2")
    except QvecError:
        return False
    return True


def attacks(target: Target, flips: int, generator: random.Random) -> Iterator[tuple[str, Attack]]:
    """Every attack, by its kind."""
    for name, data in target.files.items():
        yield from _on_a_file(target, name, data, flips, generator)
    yield from _on_the_folder(target)
    yield from _on_the_manifest(target)
    yield from _on_signatures(target)


def _on_a_file(
    target: Target, name: str, data: bytes, flips: int, generator: random.Random
) -> Iterator[tuple[str, Attack]]:
    def put(changed: bytes) -> Attack:
        return lambda folder: (folder / name).write_bytes(changed)

    count = 8 * len(data)
    for bit in sorted(generator.sample(range(count), min(flips, count))):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        yield "a bit is flipped", put(bytes(changed))
    for length in {0, 1, len(data) // 2, len(data) - 1}:
        yield "a file is cut off", put(data[:length])
    for more in (b"\0", b"\n", b" " * 4096, data):
        yield "something is appended", put(data + more)
    yield "something is put before", put(b"\n" + data)
    for other, instead in target.files.items():
        if instead != data:
            yield "a file takes another's place", put(instead)
            yield "two files change places", lambda folder, other=other: _swap(folder / name, folder / other)
    if target.older[name] != data:
        yield "a file is that of the older release", put(target.older[name])
    yield "a file is removed", lambda folder: (folder / name).unlink()
    yield "a file is renamed", lambda folder: (folder / name).rename(folder / f"{name}.old")
    yield "a file is renamed", lambda folder: (folder / name).rename(folder / name.swapcase())
    yield "a file becomes a folder", lambda folder: ((folder / name).unlink(), (folder / name).mkdir())
    yield "a file becomes a link", lambda folder: _link(folder / name, os.symlink)
    yield "a file becomes a link", lambda folder: _link(folder / name, os.link)


def _on_the_folder(target: Target) -> Iterator[tuple[str, Attack]]:
    added = ("notes.txt", ".hidden", ".git/config", "lambda0/extra", "model.3.sig", "model.sig.bak", "a/b/c", " ")
    for name in added:
        for data in (b"", b"x", target.files["model.sig"]):
            yield "a file is added", lambda folder, name=name, data=data: write_bytes(folder / name, data)
    yield "a folder is added", lambda folder: (folder / "empty").mkdir()
    yield "a link is added", lambda folder: (folder / "link").symlink_to(folder / "model.onnx")
    yield "a link is added", lambda folder: (folder / "link").symlink_to("/nowhere")
    yield "a link is added", lambda folder: (folder / "link").symlink_to(folder.parent)
    yield "a pipe is added", lambda folder: os.mkfifo(folder / "pipe")
    yield "the older release is played again", lambda folder: write_files(folder, target.older)
    everything = {**target.files, **{name: target.older[name] for name in ("model.sig", "model.2.sig")}}
    yield "signatures of the older release", lambda folder: write_files(folder, everything)
    newer = {**target.older, **{name: target.files[name] for name in ("model.sig", "model.2.sig")}}
    yield "the older release with new signatures", lambda folder: write_files(folder, newer)
    for name in ("sbom.cdx.json", "provenance.intoto.json", "report.json"):
        text = target.files[name].replace(b'"', b'" ', 1)
        yield (
            "a document and its hash in the manifest",
            lambda folder, name=name, text=text: _rehash(folder, name, text),
        )


def _on_the_manifest(target: Target) -> Iterator[tuple[str, Attack]]:
    """Every value of the manifest changed, and its digest made anew."""
    values = json.loads(target.files[MANIFEST_FILE])

    def put(changed: dict[str, Any]) -> Attack:
        return lambda folder: (folder / MANIFEST_FILE).write_bytes(manifest_bytes(changed))

    for path, value in _leaves(values):
        for other in _others(value):
            changed = json.loads(target.files[MANIFEST_FILE])
            place = changed
            for step in path[:-1]:
                place = place[step]
            place[path[-1]] = other
            yield "a value of the manifest", put(changed)
    for name in values:
        yield "a field of the manifest is dropped", put({key: each for key, each in values.items() if key != name})
    same = json.dumps(values).encode()
    yield "the manifest in other bytes", lambda folder: (folder / MANIFEST_FILE).write_bytes(same)


def _on_signatures(target: Target) -> Iterator[tuple[str, Attack]]:
    names = [f"model.{index}.sig" if index > 1 else "model.sig" for index in (1, 2)]
    for count in (1, 2):
        keys = [target.private["stranger"]] * count
        yield "a stranger signs", lambda folder, keys=keys: (_unsign(folder), open_signer(*keys)(folder))
    for name in names:
        document = json.loads(target.files[name])
        for forged in _forgeries(document):
            data = json.dumps(forged).encode()
            yield "a signature is forged", lambda folder, name=name, data=data: (folder / name).write_bytes(data)

    def hint(folder: Path) -> None:
        """A stranger's signature under the name of the right key."""
        ours = json.loads(target.files["model.sig"])
        open_signer(target.private["stranger"])(folder)
        theirs = json.loads((folder / "model.sig").read_bytes())
        ours["dsseEnvelope"] = theirs["dsseEnvelope"]
        (folder / "model.sig").write_text(json.dumps(ours))

    def signer(folder: Path) -> None:
        """A stranger takes the place of one of the signers, in the manifest too."""
        values = json.loads(target.files[MANIFEST_FILE])
        pem = target.keys["stranger"].read_text().splitlines()
        values["release"]["signers"][1] = "".join(pem[1:-1])
        (folder / MANIFEST_FILE).write_bytes(manifest_bytes(values))
        (folder / "model.2.sig").unlink()
        open_signer(target.private["stranger"])(folder)
        (folder / "model.sig").rename(folder / "model.2.sig")
        (folder / "model.sig").write_bytes(target.files["model.sig"])

    yield "keys are confused", hint
    yield "keys are confused", signer
    yield "keys are confused", lambda folder: (folder / "model.2.sig").rename(folder / "model.sig")
    yield "a signature is copied", lambda folder: shutil.copy(folder / "model.sig", folder / "model.2.sig")
    yield "a signature is copied", lambda folder: shutil.copy(folder / "model.2.sig", folder / "model.sig")
    yield "signatures are removed", _unsign


def _forgeries(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A signature whose payload, signature or form is another."""

    def changed() -> tuple[dict[str, Any], dict[str, Any]]:
        copy = json.loads(json.dumps(document))
        return copy, copy["dsseEnvelope"]

    payload = json.loads(base64.b64decode(document["dsseEnvelope"]["payload"]))
    for index in range(len(payload["predicate"]["resources"])):
        fewer = json.loads(json.dumps(payload))
        del fewer["predicate"]["resources"][index]
        copy, envelope = changed()
        envelope["payload"] = base64.b64encode(json.dumps(fewer).encode()).decode()
        yield copy
    for signatures in ([], [{"sig": ""}], [{"sig": "AAAA"}], document["dsseEnvelope"]["signatures"] * 2):
        copy, envelope = changed()
        envelope["signatures"] = signatures
        yield copy
    copy, envelope = changed()
    envelope["payloadType"] = "text/plain"
    yield copy
    for key in ("mediaType", "verificationMaterial", "dsseEnvelope"):
        yield {name: value for name, value in document.items() if name != key}
    yield {**document, "more": 1}


def _leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    if isinstance(value, dict | list) and value:
        entries = value.items() if isinstance(value, dict) else enumerate(value)
        for key, each in entries:
            yield from _leaves(each, (*path, key))
    elif path:
        yield path, value


def _others(value: Any) -> list[Any]:
    if isinstance(value, bool):
        return [not value, None]
    if isinstance(value, int | float):
        return [value + 1, -value, 0 if value else 1]
    if isinstance(value, str):
        return [value + "x", value[:-1], value.swapcase() if value.swapcase() != value else "x", None]
    return ["x", 1]


def _rehash(folder: Path, name: str, data: bytes) -> None:
    """Change a file, its hash in the manifest, and the manifest's digest."""
    (folder / name).write_bytes(data)
    values = json.loads((folder / MANIFEST_FILE).read_bytes())
    values["files"][name] = {"sha256": sha256_bytes(data), "size": len(data)}
    (folder / MANIFEST_FILE).write_bytes(manifest_bytes(values))


def _swap(one: Path, other: Path) -> None:
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


def _link(path: Path, link: Callable[[Path, Path], None]) -> None:
    """The same bytes, elsewhere."""
    elsewhere = Path(mkdtemp(dir=path.parents[2 if path.parent.name == "lambda0" else 1])) / path.name
    path.rename(elsewhere)
    link(elsewhere, path)


def _unsign(folder: Path) -> None:
    for name in signature_files(folder):
        (folder / name).unlink()


def attack_release(bundle: Path, flips: int, seed: int = 0) -> dict[str, Any]:
    """What was tried and what was taken, by kind."""
    tried: Counter[str] = Counter()
    taken: Counter[str] = Counter()
    with TemporaryDirectory(prefix="attack.") as scratch:
        place = Path(scratch)
        target = prepare(bundle, place)
        folder = place / "attacked" / "release"
        write_files(folder, target.files)
        if not all(accepted(folder, target.keys[name]) for name in SIGNERS) or accepted(
            folder, target.keys["stranger"]
        ):
            raise SystemExit("the release itself is not taken, or by anybody")
        for index, (kind, attack) in enumerate(attacks(target, flips, random.Random(seed))):
            write_files(folder, target.files)
            attack(folder)
            if _same(folder, target.files):  # a digest that is made anew, for one
                continue
            tried[kind] += 1
            taken[kind] += accepted(folder, target.keys[SIGNERS[index % 2]])
        manifest = target.files[MANIFEST_FILE]
    bits = range(0, 8 * len(manifest), 1 if flips > 100 else 37)
    return {
        "attacks": {kind: {"tried": tried[kind], "accepted": taken[kind]} for kind in sorted(tried)},
        "tried": tried.total(),
        "accepted": taken.total(),
        "bits_of_the_manifest": len(bits),
        "bits_unnoticed_without_a_key": sum(_opens(manifest, bit) for bit in bits),
    }


def _same(folder: Path, files: dict[str, bytes]) -> bool:
    """Whether a folder is what it was: these files, none of them a link, and no more."""
    found = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.name != "lambda0"}
    real = all(path.is_file() and not path.is_symlink() and path.stat().st_nlink == 1 for path in found.values())
    return real and {name: path.read_bytes() for name, path in found.items()} == files


def _opens(manifest: bytes, bit: int) -> bool:
    changed = bytearray(manifest)
    changed[bit // 8] ^= 1 << bit % 8
    try:
        parse_manifest(bytes(changed), Path(MANIFEST_FILE))
    except QvecError:
        return False
    return True


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=BUNDLE, help="what is released")
    parser.add_argument("--flips", type=int, default=400, help="flipped bits of every file")
    parser.add_argument("--output", type=Path, default=RECORD, help="the record")
    options = parser.parse_args(arguments)
    start = time.monotonic()
    found = attack_release(options.bundle, options.flips)
    about = {"date": datetime.date.today().isoformat(), "packages": capture_environment(1).packages}
    record = {**about, "flips_of_each_file": options.flips, **found, "seconds": round(time.monotonic() - start)}
    write_bytes(options.output, (json.dumps(record, indent=1) + "\n").encode())
    for kind, row in found["attacks"].items():
        print(f"{row['tried']:6}  {row['accepted']:4} taken  {kind}")
    print(f"{found['tried']:6}  {found['accepted']:4} taken, of all")
    print(
        f"{found['bits_of_the_manifest']:6}  {found['bits_unnoticed_without_a_key']:4} unnoticed: bits of the manifest"
    )
    return 3 if found["accepted"] or found["bits_unnoticed_without_a_key"] else 0


if __name__ == "__main__":
    sys.exit(main())
