"""model.sig: it holds for exactly what was signed, and what does not hold is one clear refusal."""

from __future__ import annotations

import base64
import inspect
import json
import os
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from model_signing import signing, verifying

from qvec_deploy.bundle.manifest import read_manifest
from qvec_deploy.bundle.release.signature import (
    SIGNATURE_FILE,
    check_identity,
    check_signature,
    is_signed,
    open_signer,
    open_sigstore_signer,
    public_keys,
    signature_files,
)
from qvec_deploy.errors import FetchError, IncompatibleError, IntegrityError, RecipeError, StorageError
from qvec_deploy.io.files import sha256_file

PEM = serialization.Encoding.PEM
Private = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey


def _write(folder: Path, name: str, private: Private, password: bytes | None = None) -> tuple[Path, Path]:
    lock = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    files = folder / f"{name}.pem", folder / f"{name}.pub.pem"
    files[0].write_bytes(private.private_bytes(PEM, serialization.PrivateFormat.PKCS8, lock))
    files[1].write_bytes(private.public_key().public_bytes(PEM, serialization.PublicFormat.SubjectPublicKeyInfo))
    return files


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    return _write(tmp_path, "own", ec.generate_private_key(ec.SECP256R1()))


@pytest.fixture
def signed(tmp_path: Path, keys: tuple[Path, Path]) -> Path:
    folder = tmp_path / "release"
    (folder / "lambda0").mkdir(parents=True)
    for name in ("manifest.json", "model.onnx", "lambda0/model.onnx"):
        (folder / name).write_bytes(json.dumps({"contents of": name}).encode())
    open_signer(keys[0])(folder)
    return folder


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()], ids=lambda curve: curve.name)
def test_what_was_signed_holds(tmp_path: Path, signed: Path, curve: ec.EllipticCurve) -> None:
    private, public = _write(tmp_path, "curve", ec.generate_private_key(curve))
    open_signer(private)(signed)
    assert is_signed(signed)
    assert "as the owner of curve.pub.pem signed it" in check_signature(signed, public).told


def test_it_holds_elsewhere_under_another_name_and_through_a_link(signed: Path, keys: tuple[Path, Path]) -> None:
    moved = signed.rename(signed.parent / "moved")
    link = signed.parent / "current"
    link.symlink_to(moved)
    assert check_signature(moved, keys[1]) == check_signature(link, keys[1])


def test_the_signature_names_the_folder_and_every_file(signed: Path) -> None:
    envelope = json.loads((signed / SIGNATURE_FILE).read_bytes())["dsseEnvelope"]
    statement = json.loads(base64.b64decode(envelope["payload"]))
    assert statement["subject"][0]["name"] == "release"
    names = [entry["name"] for entry in statement["predicate"]["resources"]]
    assert names == ["lambda0/model.onnx", "manifest.json", "model.onnx"]
    assert statement["predicate"]["serialization"]["allow_symlinks"] is False


def test_any_changed_file(signed: Path, keys: tuple[Path, Path]) -> None:
    for name in ("manifest.json", "model.onnx", "lambda0/model.onnx"):
        path = signed / name
        whole = path.read_bytes()
        path.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
        with pytest.raises(IntegrityError, match=f"not what was signed: {name} was changed"):
            check_signature(signed, keys[1])
        path.write_bytes(whole)
    assert check_signature(signed, keys[1])


@pytest.mark.parametrize("name", ["added.txt", "lambda0/added", ".gitignore", ".git/config", "lambda0/model.sig"])
def test_an_added_file(signed: Path, keys: tuple[Path, Path], name: str) -> None:
    (signed / name).parent.mkdir(exist_ok=True)
    (signed / name).write_text("x")
    with pytest.raises(IntegrityError, match=f"not what was signed: {name} was added"):
        check_signature(signed, keys[1])


def test_a_removed_file(signed: Path, keys: tuple[Path, Path]) -> None:
    (signed / "model.onnx").unlink()
    with pytest.raises(IntegrityError, match=r"not what was signed: model\.onnx was removed"):
        check_signature(signed, keys[1])


def test_a_link_in_place_of_a_file(signed: Path, keys: tuple[Path, Path]) -> None:
    (signed / "model.onnx").rename(signed.parent / "elsewhere")
    (signed / "model.onnx").symlink_to(signed.parent / "elsewhere")
    with pytest.raises(IntegrityError, match="holds a link"):
        check_signature(signed, keys[1])


def test_no_signature(signed: Path, keys: tuple[Path, Path]) -> None:
    (signed / SIGNATURE_FILE).unlink()
    assert not is_signed(signed)
    with pytest.raises(IntegrityError, match="is not signed"):
        check_signature(signed, keys[1])


def test_other_hashes_than_ours(signed: Path, keys: tuple[Path, Path]) -> None:
    from model_signing import hashing, signing

    blake = hashing.Config().use_file_serialization(hashing_algorithm="blake2")
    config = signing.Config().use_elliptic_key_signer(private_key=keys[0])
    config.set_hashing_config(blake.set_ignored_paths(paths=[SIGNATURE_FILE])).sign(signed, signed / SIGNATURE_FILE)
    with pytest.raises(IntegrityError, match="signed with other hashes than SHA-256"):
        check_signature(signed, keys[1])


def test_what_the_library_signs_by_itself_holds(signed: Path, keys: tuple[Path, Path]) -> None:
    """`model_signing sign key` with its defaults, as another team might use it."""
    from model_signing import hashing, signing

    config = signing.Config().use_elliptic_key_signer(private_key=keys[0])
    config.set_hashing_config(hashing.Config().set_ignored_paths(paths=[SIGNATURE_FILE]))
    config.sign(signed, signed / SIGNATURE_FILE)
    assert check_signature(signed, keys[1])


def test_another_key(signed: Path, tmp_path: Path) -> None:
    other, public = _write(tmp_path, "other", ec.generate_private_key(ec.SECP256R1()))
    with pytest.raises(IntegrityError, match="signed with another key"):
        check_signature(signed, public)
    envelope = json.loads((signed / SIGNATURE_FILE).read_bytes())
    open_signer(other)(signed)
    forged = json.loads((signed / SIGNATURE_FILE).read_bytes())
    envelope["dsseEnvelope"] = forged["dsseEnvelope"]  # the right key's name on another key's signature
    (signed / SIGNATURE_FILE).write_text(json.dumps(envelope))
    with pytest.raises(IntegrityError, match=r"is not by .*own\.pub\.pem, or was altered"):
        check_signature(signed, tmp_path / "own.pub.pem")


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "{}", '{"verificationMaterial": {}}', "[" * 100_000, '{"mediaType": 1}', "\xff"],
    ids=lambda text: text[:20] or "empty",
)
def test_a_signature_that_is_none(signed: Path, keys: tuple[Path, Path], text: str) -> None:
    (signed / SIGNATURE_FILE).write_text(text, encoding="latin-1")
    with pytest.raises(IntegrityError, match=r"model\.sig is damaged"):
        check_signature(signed, keys[1])


def test_no_damage_to_a_signature_is_more_than_a_refusal(signed: Path, keys: tuple[Path, Path]) -> None:
    """Whatever happens to it, the library's exceptions stay inside; hardly any byte is without meaning."""
    path = signed / SIGNATURE_FILE
    whole = path.read_bytes()
    chosen, held = random.Random(0).sample(range(len(whole)), 200), 0
    for position in chosen:
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 4]) + whole[position + 1 :])
        try:
            check_signature(signed, keys[1])
            held += 1
        except IntegrityError:
            pass
    assert held <= 5
    for length in range(0, len(whole), 37):
        path.write_bytes(whole[:length])
        with pytest.raises(IntegrityError):
            check_signature(signed, keys[1])


def test_keys_that_cannot_sign(tmp_path: Path, keys: tuple[Path, Path]) -> None:
    ours = ec.generate_private_key(ec.SECP256R1())
    assert callable(open_signer(keys[0]))
    foreign: dict[str, Private] = {
        "of the curve secp256k1": ec.generate_private_key(ec.SECP256K1()),
        "of no elliptic curve": ed25519.Ed25519PrivateKey.generate(),
        "of no elliptic curve; ": rsa.generate_private_key(65537, 2048),
    }
    for match, private in foreign.items():
        with pytest.raises(RecipeError, match=match):
            open_signer(_write(tmp_path, "foreign", private)[0])
    with pytest.raises(RecipeError, match="is encrypted"):
        open_signer(_write(tmp_path, "locked", ours, b"secret")[0])
    with pytest.raises(RecipeError, match="is not a private key"):
        open_signer(keys[1])
    (tmp_path / "text.pem").write_text("hello")
    with pytest.raises(RecipeError, match="is not a private key"):
        open_signer(tmp_path / "text.pem")
    with pytest.raises(StorageError, match=r"absent\.pem: No such file"):
        open_signer(tmp_path / "absent.pem")
    with pytest.raises(StorageError, match="Is a directory"):
        open_signer(tmp_path)


def test_keys_that_cannot_check(tmp_path: Path, signed: Path, keys: tuple[Path, Path]) -> None:
    with pytest.raises(RecipeError, match="is not a public key") as caught:
        check_signature(signed, keys[0])
    assert "-pubout" in caught.value.hint
    with pytest.raises(RecipeError, match="of no elliptic curve"):
        check_signature(signed, _write(tmp_path, "ed", ed25519.Ed25519PrivateKey.generate())[1])
    with pytest.raises(StorageError, match=r"absent\.pem: No such file"):
        check_signature(signed, tmp_path / "absent.pem")


def test_a_key_that_may_not_be_read(keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(self: Path) -> bytes:
        raise PermissionError(13, os.strerror(13), str(self))

    monkeypatch.setattr(Path, "read_bytes", deny)
    with pytest.raises(StorageError, match=r"own\.pem: Permission denied"):
        open_signer(keys[0])


def test_no_library(signed: Path, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "model_signing", None)
    with pytest.raises(IncompatibleError) as caught:
        check_signature(signed, keys[1])
    assert caught.value.hint == "pip install 'qvec-deploy[sign]'"
    with pytest.raises(IncompatibleError):
        open_signer(keys[0])


def test_no_directory(tmp_path: Path, keys: tuple[Path, Path]) -> None:
    with pytest.raises(StorageError, match="is not a bundle"):
        check_signature(tmp_path / "absent", keys[1])


def test_nothing_is_printed(signed: Path, keys: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    """The library prints warnings about signatures without the key's name; `--json` must stay JSON."""
    document = json.loads((signed / SIGNATURE_FILE).read_bytes())
    del document["verificationMaterial"]["publicKey"]["hint"]
    (signed / SIGNATURE_FILE).write_text(json.dumps(document))
    assert check_signature(signed, keys[1])
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "WARNING" in captured.err


# Several keys


@pytest.fixture
def rotated(signed: Path, keys: tuple[Path, Path], tmp_path: Path) -> tuple[Path, dict[str, Path]]:
    """A release of two signers, and the public keys of both and of a stranger."""
    found = {"old": keys[1]}
    private = [keys[0]]
    for name in ("new", "stranger"):
        own, found[name] = _write(tmp_path, name, ec.generate_private_key(ec.SECP256R1()))
        private.append(own)
    (signed / SIGNATURE_FILE).unlink()
    facts = {"release": {"signers": list(public_keys(*private[:2]))}}
    (signed / "manifest.json").write_text(json.dumps(facts))
    open_signer(*private[:2])(signed)
    return signed, found


def test_any_of_its_signers_will_do(rotated: tuple[Path, dict[str, Path]]) -> None:
    folder, found = rotated
    assert signature_files(folder) == ["model.sig", "model.2.sig"]
    for given in (("old",), ("new",), ("old", "new"), ("stranger", "new"), ("stranger", "old")):
        signed = check_signature(folder, *(found[name] for name in given))
        assert signed.told.endswith("signed it; 1 other signature too")
    with pytest.raises(IntegrityError, match="signed with another key"):
        check_signature(folder, found["stranger"])


def test_devices_that_know_one_key_take_its_releases_before_and_after(
    rotated: tuple[Path, dict[str, Path]], tmp_path: Path
) -> None:
    folder, found = rotated
    before, after = (Path(shutil.copytree(folder, tmp_path / name)) for name in ("before", "after"))
    for place, name in ((before, "own"), (after, "new")):
        key = tmp_path / f"{name}.pem"
        for each in signature_files(place):
            (place / each).unlink()
        (place / "manifest.json").write_text(json.dumps({"release": {"signers": list(public_keys(key))}}))
        open_signer(key)(place)
    both = found["old"], found["new"]
    assert check_signature(before, *both) and check_signature(folder, *both) and check_signature(after, *both)
    assert check_signature(before, found["old"]) and check_signature(after, found["new"])
    with pytest.raises(IntegrityError, match="another key"):
        check_signature(after, found["old"])


def test_every_signature_holds_whichever_key_is_known(rotated: tuple[Path, dict[str, Path]], tmp_path: Path) -> None:
    folder, found = rotated
    other = check_signature(Path(shutil.copytree(folder, tmp_path / "copy")), found["new"])
    assert other
    for name in signature_files(folder):
        whole = (folder / name).read_bytes()
        foreign = json.loads(whole)
        foreign["dsseEnvelope"]["signatures"][0]["sig"] = base64.b64encode(b"nothing").decode()
        for changed in (whole[:-1], whole[:300] + bytes([whole[300] ^ 1]) + whole[301:], json.dumps(foreign).encode()):
            (folder / name).write_bytes(changed)
            for key in ("old", "new"):
                with pytest.raises(IntegrityError):
                    check_signature(folder, found[key])
        (folder / name).unlink()
        for key in ("old", "new"):
            with pytest.raises(IntegrityError):
                check_signature(folder, found[key])
        (folder / name).write_bytes(whole)
    shutil.copy(folder / "model.sig", folder / "model.3.sig")
    for key in ("old", "new"):
        with pytest.raises(IntegrityError):
            check_signature(folder, found[key])


def test_a_signer_that_is_none(signed: Path, keys: tuple[Path, Path]) -> None:
    for signers in (["x"], ["", ""], [3], "abc", {"a": 1}):
        (signed / "manifest.json").write_text(json.dumps({"release": {"signers": signers}}))
        for name in signature_files(signed):
            (signed / name).unlink()
        open_signer(keys[0], keys[0])(signed) if signers == ["", ""] else open_signer(keys[0])(signed)
        if signers in (["x"], [3], "abc", {"a": 1}):
            with pytest.raises(IntegrityError):
                check_signature(signed, keys[1])


# Real files


def test_hard_links_and_special_files_are_no_release(signed: Path, keys: tuple[Path, Path]) -> None:
    os.link(signed / "model.onnx", signed.parent / "elsewhere")
    with pytest.raises(IntegrityError, match=r"holds a link or a special file, model\.onnx"):
        check_signature(signed, keys[1])
    (signed.parent / "elsewhere").unlink()
    assert check_signature(signed, keys[1])
    os.mkfifo(signed / "pipe")
    with pytest.raises(IntegrityError, match="a special file, pipe"):
        check_signature(signed, keys[1])
    (signed / "pipe").unlink()
    (signed / "lambda0").rename(signed.parent / "lambda0")
    (signed / "lambda0").symlink_to(signed.parent / "lambda0")
    with pytest.raises(IntegrityError, match="a special file, lambda0"):
        check_signature(signed, keys[1])


def test_a_manifest_that_is_swapped_after_its_signature(signed: Path, keys: tuple[Path, Path]) -> None:
    sha256 = check_signature(signed, keys[1]).manifest_sha256
    assert sha256 == sha256_file(signed / "manifest.json")
    (signed / "manifest.json").write_text("{}")
    with pytest.raises(IntegrityError, match="changed after its signature was checked"):
        read_manifest(signed, sha256=sha256)


# sigstore, whose services nobody reaches from here


def test_without_its_services_sigstore_is_one_error(signed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr("model_signing.signing.Config.use_sigstore_signer", no_network)
    monkeypatch.setattr("model_signing.verifying.Config.use_sigstore_verifier", no_network)
    with pytest.raises(FetchError, match="sigstore cannot be used from here: Name or service not known") as caught:
        open_sigstore_signer()
    assert "--key" in caught.value.hint
    with pytest.raises(FetchError, match="sigstore cannot be used from here"):
        check_identity(signed, "me@example.com", "https://accounts.example.com")


def test_what_the_library_is_asked_for(signed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's own parameters, so that a version without them fails here."""
    asked: list[dict[str, object]] = []
    signer = inspect.signature(signing.Config.use_sigstore_signer)
    verifier = inspect.signature(verifying.Config.use_sigstore_verifier)

    def taking(signature: inspect.Signature) -> Callable[..., object]:
        def take(self: object, **given: object) -> object:
            asked.append(dict(signature.bind(self, **given).arguments))
            return self

        return take

    monkeypatch.setattr(signing.Config, "use_sigstore_signer", taking(signer))
    monkeypatch.setattr(verifying.Config, "use_sigstore_verifier", taking(verifier))
    open_sigstore_signer()
    with pytest.raises(IntegrityError, match=r"model\.sig is damaged"):
        check_identity(signed, "me@example.com", "https://accounts.example.com")
    assert asked[0]["use_ambient_credentials"] is True
    assert (asked[1]["identity"], asked[1]["oidc_issuer"]) == ("me@example.com", "https://accounts.example.com")
