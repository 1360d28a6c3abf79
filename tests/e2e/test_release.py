"""`release` and `verify --key`, through the command line: what leaves the house, what must not, and tampering."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from manifests import edit_manifest, rewrite_file

from qvec_deploy.bundle import bundle as bundle_module
from qvec_deploy.bundle.bundle import Bundle
from qvec_deploy.errors import StorageError

Run = Callable[..., tuple[int, str, str]]
Write = Callable[..., Path]

DIGITS = {"dataset": "tiny/realdigits", "limit": 40}
GATES = {"max_stored_bits": 8.0}


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder, found = tmp_path_factory.mktemp("keys"), {}
    for name in ("own", "other"):
        private = ec.generate_private_key(ec.SECP256R1())
        found[name] = folder / f"{name}.pem"
        found[name].write_bytes(
            private.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        found[f"{name} public"] = folder / f"{name}.pub.pem"
        found[f"{name} public"].write_bytes(
            private.public_key().public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            )
        )
    return found


@pytest.fixture
def gated(build_once: Callable[..., Path]) -> Path:
    """A bundle that may be released; do not write to it."""
    return build_once("gated", evaluate=DIGITS, gates=GATES)


@pytest.fixture(scope="module")
def _releases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("releases")


@pytest.fixture
def signed(_releases: Path, gated: Path, keys: dict[str, Path], run: Run, tmp_path: Path) -> Path:
    """A copy of one signed release, this test's own."""
    path = _releases / "signed"
    if not path.exists():
        assert run("release", gated, "--to", path, "--key", keys["own"], "--quiet")[0] == 0
    return Path(shutil.copytree(path, tmp_path / "signed"))


@pytest.fixture
def own(gated: Path, tmp_path: Path) -> Path:
    """A copy of the bundle that may be released, this test's own."""
    return Path(shutil.copytree(gated, tmp_path / "own"))


@pytest.fixture
def refused(run: Run) -> Callable[..., str]:
    """Run a command that must be refused with `code`: one error line, one hint; the error."""

    def call(code: int, *arguments: object) -> str:
        actual, out, err = run(*arguments)
        assert (actual, out) == (code, ""), err
        lines = err.splitlines()
        assert [line.partition(": ")[0] for line in lines] == ["error", "hint"], err
        return lines[0]

    return call


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# What a release is


def test_a_release_is_a_bundle(gated: Path, tmp_path: Path, run: Run) -> None:
    code, out, err = run("release", gated, "--to", tmp_path / "r", "--json")
    assert code == 0, err
    told = json.loads(out)
    assert (told["signed"], set(told["checks"])) == (
        False,
        {"manifest", "files", "weights", "graph", "claims", "parity"},
    )
    assert told["gates"] == len(Bundle.open(gated).manifest.gates) > 0
    bundle = Bundle.open(tmp_path / "r")
    added = {"MODEL_CARD.md", "run.py", "requirements.txt", "sbom.cdx.json", "provenance.intoto.json"}
    assert set(bundle.manifest.files) == {*Bundle.open(gated).manifest.files, *added}
    assert set(told["files"]) == set(bundle.manifest.files)
    assert set(_contents(tmp_path / "r")) == {*bundle.manifest.files, "manifest.json"}
    code, out, _ = run("verify", tmp_path / "r", "--release", "--json")
    told = json.loads(out)
    assert (code, told["release"], told["signed"], told["signature_checked"]) == (0, True, False, False)
    code, out, _ = run("inspect", tmp_path / "r", "--json")
    assert (code, json.loads(out)["name"]) == (0, "pico")
    code, _, err = run("bench", tmp_path / "r", "--blocks", 2, "--quiet")
    assert code == 0, err


def test_docker_gets_its_files_where_they_are_asked_for(
    gated: Path, own: Path, tmp_path: Path, run: Run, refused: Callable[..., str]
) -> None:
    assert run("release", gated, "--to", tmp_path / "with", "--with", "docker", "--quiet")[0] == 0
    assert run("release", tmp_path / "with", "--to", tmp_path / "without", "--quiet")[0] == 0
    files = [set(Bundle.open(tmp_path / name).manifest.files) for name in ("with", "without")]
    assert files[0] - files[1] == {"Dockerfile", ".dockerignore"} and files[1] < files[0]
    assert "docker build -t pico ." in (tmp_path / "with" / "MODEL_CARD.md").read_text()
    edit_manifest(own, interface=None)
    assert "no run.py" in refused(4, "release", own, "--to", tmp_path / "none", "--with", "docker", "--quiet")
    assert not (tmp_path / "none").exists()


def test_what_it_says_is_what_was_measured(gated: Path, signed: Path) -> None:
    card = (signed / "MODEL_CARD.md").read_text()
    manifest = Bundle.open(gated).manifest
    for digest in manifest.sources.values():
        assert digest in card
    assert "40 images" in card and "| max_stored_bits |" in card and "Unverified" not in card
    text = (signed / "sbom.cdx.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    hashes = {
        entry["name"]: entry["hashes"][0]["content"] for entry in json.loads(text)["components"] if "hashes" in entry
    }
    for name, data in _contents(signed).items():
        if name not in ("manifest.json", "model.sig", "sbom.cdx.json", "provenance.intoto.json"):
            assert hashes[name] == hashlib.sha256(data).hexdigest()


def test_two_releases_differ_in_nothing_but_the_signature(
    gated: Path, keys: dict[str, Path], run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one second, which SOURCE_DATE_EPOCH stands for."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1796032800")
    release = ("--key", keys["own"], "--quiet")
    assert run("release", gated, "--to", tmp_path / "first", *release)[0] == 0
    for name, source in (("again", gated), ("of a release", tmp_path / "first")):
        assert run("release", source, "--to", tmp_path / name, *release)[0] == 0
        first, second = _contents(tmp_path / "first"), _contents(tmp_path / name)
        assert first.pop("model.sig") != second.pop("model.sig")
        assert first == second


def test_a_release_is_the_same_engine_as_its_bundle(gated: Path, signed: Path, run: Run) -> None:
    code, out, err = run("compare", signed, gated, "--strict", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["accuracy"]["source"] == found["latency"][0]["source"] == "same engine" and found["changes"] == []


def test_only_what_the_manifest_lists_is_released(own: Path, tmp_path: Path, run: Run) -> None:
    (own / "notes.txt").write_text("mine")
    assert run("release", own, "--to", tmp_path / "r", "--quiet")[0] == 0
    assert not (tmp_path / "r" / "notes.txt").exists()


def test_files_are_readable_whatever_the_umask(gated: Path, tmp_path: Path, run: Run, keys: dict[str, Path]) -> None:
    before = os.umask(0o077)
    try:
        assert run("release", gated, "--to", tmp_path / "r", "--key", keys["own"], "--quiet")[0] == 0
    finally:
        os.umask(before)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "r").rglob("*") if path.is_file()}
    assert modes == {0o644}


def test_an_unverified_patch_needs_a_word_and_the_card_says_so(
    finished: Path, tmp_path: Path, run: Run, refused: Callable[..., str]
) -> None:
    assert "is unverified" in refused(3, "release", finished, "--to", tmp_path / "r", "--quiet")
    assert not (tmp_path / "r").exists()
    assert run("release", finished, "--to", tmp_path / "r", "--accept-unverified", "--quiet")[0] == 0
    body = (tmp_path / "r" / "MODEL_CARD.md").read_text().split("---\n", 2)[2]
    assert body.split("\n\n")[1].startswith("**Do not ship:** Unverified: the patch was tried on no image")
    assert (tmp_path / "r" / "lambda0" / "model.onnx").is_file()
    assert run("verify", tmp_path / "r")[0] == 0


def test_a_fleet_takes_no_older_release(
    gated: Path, keys: dict[str, Path], run: Run, refused: Callable[..., str], tmp_path: Path
) -> None:
    key = ("--key", keys["own public"])
    for number in ("6", "7"):
        arguments = ("release", gated, "--to", tmp_path / number, "--key", keys["own"], "--number", number)
        assert run(*arguments, "--expires", "2999-12-31", "--quiet")[0] == 0
    code, out, _ = run("verify", tmp_path / "7", *key, "--not-older-than", "7", "--json")
    told = json.loads(out)["checks"]["release"]
    assert code == 0 and told.startswith("number 7, of ") and told.endswith("to be used until 2999-12-31")
    assert "is older than 7: number 6" in refused(4, "verify", tmp_path / "6", *key, "--not-older-than", "7")
    assert run("verify", tmp_path / "6", *key, "--not-older-than", "2026-01-01")[0] == 0
    assert "is older than 2998-01-01" in refused(4, "verify", tmp_path / "6", "--not-older-than", "2998-01-01")
    assert "is no day" in refused(2, "verify", tmp_path / "6", "--not-older-than", "x")
    assert "does not say which release" in refused(4, "verify", gated, "--not-older-than", "1")
    edit_manifest(tmp_path / "6", release={**_release(tmp_path / "6"), "number": "8"})
    assert run("verify", tmp_path / "6", "--not-older-than", "7")[0] == 0  # without a key, anybody can say so
    assert "manifest.json was changed" in refused(5, "verify", tmp_path / "6", *key, "--not-older-than", "7")


def test_a_release_expires(signed: Path, gated: Path, refused: Callable[..., str], tmp_path: Path) -> None:
    edit_manifest(signed, release={**_release(signed), "expires": "2026-01-31"})
    assert "expired on 2026-01-31; today is 20" in refused(4, "verify", signed)
    arguments = ("release", gated, "--to", tmp_path / "r", "--quiet")
    assert "would have expired" in refused(2, *arguments, "--expires", "2020-01-01")
    assert "is no release number" in refused(2, *arguments, "--number", "v7")
    assert not (tmp_path / "r").exists()


def test_two_keys(
    gated: Path, keys: dict[str, Path], run: Run, refused: Callable[..., str], tmp_path: Path, signed: Path
) -> None:
    both = tmp_path / "both"
    code, out, _ = run("release", gated, "--to", both, "--key", keys["own"], "--key", keys["other"], "--quiet")
    assert code == 0 and "model.sig" in out and "model.2.sig" in out
    for name in ("own public", "other public"):
        assert run("verify", both, "--key", keys[name])[0] == 0
    assert run("verify", signed, "--key", keys["other public"], "--key", keys["own public"])[0] == 0
    (both / "model.2.sig").unlink()
    assert "model.2.sig was removed" in refused(5, "verify", both)
    for name in ("own public", "other public"):
        refused(5, "verify", both, "--key", keys[name])
    assert "each once" in run("release", gated, "--to", tmp_path / "r", "--key", keys["own"], "--key", keys["own"])[2]


def test_sigstore_off_line(
    gated: Path, signed: Path, run: Run, refused: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Signing through its services has not been run: what is tested is what is said where they are not reached."""

    def no_network(*_: object, **__: object) -> None:
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr("model_signing.signing.Config.use_sigstore_signer", no_network)
    monkeypatch.setattr("model_signing.verifying.Config.use_sigstore_verifier", no_network)
    assert "sigstore cannot be used from here" in refused(7, "release", gated, "--to", tmp_path / "r", "--sigstore")
    assert not (tmp_path / "r").exists()
    who = ("--identity", "me@example.com", "--identity-provider", "https://accounts.example.com")
    assert "sigstore cannot be used from here" in refused(7, "verify", signed, *who)
    for arguments in (who[:2], who[2:], (*who, "--key", tmp_path / "key")):
        assert run("verify", signed, *arguments)[0] == 2
    assert run("release", gated, "--to", tmp_path / "r", "--sigstore", "--key", tmp_path / "key")[0] == 2


def _release(bundle: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((bundle / "manifest.json").read_text())["release"]
    return facts


# What must not leave the house


def test_gates_are_told(gated: Path, tmp_path: Path, run: Run, pico_recipe: Write) -> None:
    assert "ok  gates    1 passed" in run("release", gated, "--to", tmp_path / "r", "--quiet")[1]
    bundle = tmp_path / "none"
    assert run("build", "--recipe", pico_recipe(evaluate=DIGITS), "-o", bundle, "--quiet")[0] == 0
    assert "--  gates    none asked" in run("release", bundle, "--to", tmp_path / "s", "--quiet")[1]


def test_a_gate_of_a_disturbed_machine_is_to_be_measured_again(own: Path, tmp_path: Path, run: Run) -> None:
    found = "1.23× [1.15, 1.35], but measured on a disturbed machine (drift): measure again"
    edit_manifest(own, gates=[{"name": "min_speedup", "wanted": "at least 1", "found": found, "passed": False}])
    code, _, err = run("release", own, "--to", tmp_path / "r")
    assert code == 3 and found in err and "hint: do not release it" in err


def test_gates(own: Path, tmp_path: Path, refused: Callable[..., str], run: Run, pico_recipe: Write) -> None:
    bundle = tmp_path / "missed"
    recipe = pico_recipe(evaluate=DIGITS, gates={"max_stored_bits": 1.0})
    assert run("build", "--recipe", recipe, "-o", bundle, "--quiet")[0] == 3
    arguments = ("--to", tmp_path / "r", "--quiet")
    assert "misses 1 of 1 gates" in refused(3, "release", bundle, *arguments)
    gates = json.loads((bundle / "manifest.json").read_text())["gates"]
    edit_manifest(bundle, gates=[{**gate, "passed": True} for gate in gates])
    assert "its report has other gates than its manifest" in refused(5, "release", bundle, *arguments)
    assert "its report has other gates than its manifest" in refused(5, "verify", bundle, "--release")
    edit_manifest(own, gates=[])
    assert "its gates were not judged" in refused(3, "release", own, *arguments)
    assert not (tmp_path / "r").exists()


def test_no_engine_and_no_report(
    own: Path, tmp_path: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = json.loads((own / "manifest.json").read_text())
    files = {name: entry for name, entry in manifest["files"].items() if name != "report.json"}
    edit_manifest(own, files=files)
    assert "was never measured" in refused(3, "release", own, "--to", tmp_path / "r", "--quiet")
    monkeypatch.setattr(bundle_module.Bundle, "engine_missing", lambda self: "no GPU here")
    assert "but for its engine: no GPU here" in refused(4, "release", own, "--to", tmp_path / "r", "--quiet")
    assert not (tmp_path / "r").exists()


def test_an_edited_bundle(own: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    arguments = ("release", own, "--to", tmp_path / "r", "--quiet")
    report = (own / "report.json").read_bytes()
    (own / "report.json").write_bytes(report + b" ")
    assert "report.json was changed after the build" in refused(5, *arguments)
    document = json.loads(report)
    shipped = next(entry for entry in document["candidates"] if entry["name"] == document["selected"])
    shipped["stored_bits_per_weight"] = 3.0
    rewrite_file(own, "report.json", json.dumps(document).encode())
    assert "about another engine than its manifest" in refused(5, *arguments)
    assert not (tmp_path / "r").exists()


def test_an_engine_that_computes_something_else(own: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    from safetensors.numpy import load_file, save_file

    arrays = load_file(own / "parity.safetensors")
    name = next(name for name in arrays if "logit" in name)
    arrays[name] = arrays[name] + 1.0
    save_file(arrays, tmp_path / "parity.safetensors")
    rewrite_file(own, "parity.safetensors", (tmp_path / "parity.safetensors").read_bytes())
    refused(4, "release", own, "--to", tmp_path / "r", "--quiet")
    assert not (tmp_path / "r").exists()


def test_the_place(own: Path, tmp_path: Path, refused: Callable[..., str], run: Run) -> None:
    place = tmp_path / "r"
    assert run("release", own, "--to", place, "--quiet")[0] == 0
    assert f"{place} exists" in refused(6, "release", own, "--to", place, "--quiet")
    assert run("release", own, "--to", place, "--force", "--quiet")[0] == 0
    for inside in (own, own / "release"):
        assert "is in the bundle" in refused(6, "release", own, "--to", inside, "--force", "--quiet")
    assert "is not a bundle" in refused(6, "release", tmp_path / "absent", "--to", tmp_path / "s", "--quiet")
    (place / "manifest.json").unlink()
    assert "is not a bundle" in refused(6, "release", own, "--to", place, "--force", "--quiet")


def test_whole_or_not_at_all(
    gated: Path, keys: dict[str, Path], tmp_path: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise StorageError("no space", hint="free some")

    (tmp_path / "shop").mkdir()
    monkeypatch.setattr("qvec_deploy.bundle.release.release.bill_of_materials", fail)
    assert "no space" in refused(6, "release", gated, "--to", tmp_path / "shop" / "r", "--key", keys["own"], "--quiet")
    assert list((tmp_path / "shop").iterdir()) == []


def test_keys_and_the_library(
    gated: Path,
    signed: Path,
    keys: dict[str, Path],
    tmp_path: Path,
    refused: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments = ("release", gated, "--to", tmp_path / "r", "--quiet", "--key")
    assert "not a private key" in refused(2, *arguments, keys["own public"])
    assert "No such file" in refused(6, *arguments, tmp_path / "absent.pem")
    assert "not a public key" in refused(2, "verify", signed, "--key", keys["own"])
    monkeypatch.setitem(sys.modules, "model_signing", None)
    assert "need a library" in refused(4, *arguments, keys["own"])
    assert "need a library" in refused(4, "verify", signed, "--key", keys["own public"])
    assert not (tmp_path / "r").exists()


# Tampering


def test_a_signature_that_holds(signed: Path, keys: dict[str, Path], run: Run) -> None:
    code, out, _ = run("verify", signed, "--key", keys["own public"], "--json")
    told = json.loads(out)
    assert (code, told["signed"], told["signature_checked"]) == (0, True, True)
    assert next(iter(told["checks"])) == "signature"
    code, out, _ = run("verify", signed)
    assert code == 0
    assert out.splitlines()[0] == "--  signature signed, not checked: give --key"


def test_a_byte_of_any_file(signed: Path, keys: dict[str, Path], refused: Callable[..., str]) -> None:
    names = sorted(_contents(signed))
    assert {"manifest.json", "model.sig", "MODEL_CARD.md", "sbom.cdx.json", "weights.qvec.safetensors"} <= set(names)
    for name in names:
        path = signed / name
        whole = path.read_bytes()
        middle = len(whole) // 2
        path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
        error = refused(5, "verify", signed, "--key", keys["own public"])
        assert name == "model.sig" or f"{name} was changed" in error
        if name not in ("manifest.json", "model.sig"):
            assert f"{name} was changed" in refused(5, "verify", signed)
        path.write_bytes(whole)


def test_a_file_more_and_a_file_less(signed: Path, keys: dict[str, Path], refused: Callable[..., str]) -> None:
    key = keys["own public"]
    (signed / "extra").write_text("x")
    assert "extra was added" in refused(5, "verify", signed, "--key", key)
    assert "extra was added after the release" in refused(5, "verify", signed)
    (signed / "extra").unlink()
    (signed / "extra").symlink_to(signed.parent)
    assert "holds a link" in refused(5, "verify", signed, "--key", key)
    assert "extra was added after the release" in refused(5, "verify", signed)
    (signed / "extra").unlink()
    for name in sorted(_contents(signed)):
        path = signed / name
        whole = path.read_bytes()
        path.unlink()
        missing = "is not signed" if name == "model.sig" else f"{name} was removed"
        assert missing in refused(5, "verify", signed, "--key", key)
        path.write_bytes(whole)


def test_a_forger_with_a_key_of_their_own(
    signed: Path, keys: dict[str, Path], run: Run, refused: Callable[..., str]
) -> None:
    """Everything is consistent but the one thing a forger does not have."""
    from qvec_deploy.bundle.release.signature import open_signer, public_keys

    rewrite_file(signed, "MODEL_CARD.md", b"# Better than ever\n")
    edit_manifest(signed, release={**_release(signed), "signers": public_keys(keys["other"])})
    open_signer(keys["other"])(signed)
    assert run("verify", signed)[0] == 0
    assert run("verify", signed, "--key", keys["other public"])[0] == 0
    assert "signed with another key" in refused(5, "verify", signed, "--key", keys["own public"])


def test_nothing_is_parsed_before_the_signature_holds(
    signed: Path, keys: dict[str, Path], refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("the manifest was read")

    monkeypatch.setattr(bundle_module, "read_manifest", fail)
    (signed / "extra").write_text("x")
    assert "extra was added" in refused(5, "verify", signed, "--key", keys["own public"])


def test_an_unsigned_bundle_and_a_key(gated: Path, keys: dict[str, Path], refused: Callable[..., str]) -> None:
    assert "is not signed" in refused(5, "verify", gated, "--key", keys["own public"])
