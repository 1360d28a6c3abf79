"""model.sig: OpenSSF Model Signing signatures over every file of a release, its manifest among them."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from qvec_deploy.bundle.manifest import MANIFEST_FILE, MAX_SIGNERS
from qvec_deploy.errors import (
    FetchError,
    IncompatibleError,
    IntegrityError,
    QvecError,
    RecipeError,
    StorageError,
    first_line,
)
from qvec_deploy.io.files import sha256_bytes, sha256_file, storage_errors
from qvec_deploy.io.scratch import scratch_folder
from qvec_deploy.io.untrusted import MAX_BYTES, json_object, read_json, read_limited, understood

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec
    from model_signing import hashing, verifying

SIGNATURE_FILE = "model.sig"
CURVES = ("secp256r1", "secp384r1", "secp521r1")
"""What Model Signing takes: P-256, P-384 and P-521."""

_STYLES: tuple[dict[str, Any], ...] = ({"separators": (",", ":")}, {}, {"indent": 2})
"""Ways in which versions of the library write JSON."""

_MAKE_KEY = "make one: openssl ecparam -name prime256v1 -genkey -noout -out private.pem"
_MAKE_PUBLIC = "make it from the private key: openssl ec -in private.pem -pubout -out public.pem"
_DO_NOT_USE = "do not use it; fetch the release again from whoever signed it"


Sign = Callable[[Path], None]
"""Signs a directory and leaves the signatures in it."""


class Signed(NamedTuple):
    """What signatures say of a directory.

    Attributes:
        told: The same in words.
        manifest_sha256: Of the manifest that they cover.
    """

    told: str
    manifest_sha256: str


def signature_name(index: int) -> str:
    """The file of a release's signature: the first is where other programs look for it."""
    return f"model.{index + 1}.sig" if index else SIGNATURE_FILE


def signature_files(directory: Path) -> list[str]:
    """Signatures that are there, the first one first; whether they hold is another question."""
    with storage_errors(directory):
        return [name for name in map(signature_name, range(MAX_SIGNERS)) if os.path.lexists(directory / name)]


def is_signed(directory: Path) -> bool:
    """Whether a signature is there; whether it holds is another question."""
    with storage_errors(directory):
        return (directory / SIGNATURE_FILE).is_file()


def open_signer(*keys: Path) -> Sign:
    """A function that signs a directory with every key.

    Args:
        keys: PEM files of elliptic-curve private keys, not encrypted. The signature of the first one covers those of
            the others.
    """
    _require_library()
    for key in keys:
        _private_key(key)

    def sign(directory: Path) -> None:
        from model_signing import signing

        for index, key in reversed(list(enumerate(keys))):
            config = signing.Config().use_elliptic_key_signer(private_key=key)  # type: ignore[no-untyped-call]
            with storage_errors(directory):
                config.set_hashing_config(_hashing(index)).sign(directory, directory / signature_name(index))

    return sign


def open_sigstore_signer() -> Sign:
    """A function that signs a directory with an identity instead of a key, by sigstore's public instance.

    The identity is the workflow's where it has one, else whoever logs in with a browser. Certificate and signature go
    into a public log.

    Raises:
        FetchError: The instance cannot be reached.
    """
    _require_library()
    from model_signing import signing

    with _sigstore():
        config = signing.Config().use_sigstore_signer(use_ambient_credentials=True)  # type: ignore[no-untyped-call]

    def sign(directory: Path) -> None:
        with _sigstore(), storage_errors(directory), contextlib.redirect_stdout(sys.stderr):
            config.set_hashing_config(_hashing(0)).sign(directory, directory / SIGNATURE_FILE)

    return sign


def public_keys(*keys: Path) -> tuple[str, ...]:
    """The public keys of private ones: base64 of DER."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    ders = (
        _private_key(key).public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) for key in keys
    )
    return tuple(base64.b64encode(der).decode() for der in ders)


def check_signature(directory: Path, *keys: Path) -> Signed:
    """Hold every file of a release against its signatures. Nothing but those is parsed before one of them holds.

    Opening a bundle compares hashes only, and whoever can change a file can change the manifest with it: where a
    release comes from elsewhere, this comes first. `compile` adds engines, after which no signature holds.

    Args:
        keys: PEM files of public keys; one of them is to have signed it. What it signed names the other signers, whose
            signatures must hold too.

    Raises:
        IntegrityError: It is not what was signed, or nobody of them has signed it.
    """
    _require_library()
    for key in keys:
        _check_public_key(key)
    folder = _signed_folder(directory)
    found = signature_files(folder)
    refusals: list[IntegrityError] = []
    for key in keys:
        for index in range(len(found)):
            try:
                signed = _check_one(directory, folder, key, index)
            except IntegrityError as error:
                refusals.append(error)
                continue
            count = _check_all(directory, folder, signed)
            told = f"every file is as the owner of {key.name} signed it"
            others = f"; {count - 1} other signature{'s' if count > 2 else ''} too" if count > 1 else ""
            return Signed(told + others, signed)
    raise next((error for error in refusals if "another key" not in error.message), refusals[0])


def check_identity(directory: Path, identity: str, provider: str) -> Signed:
    """The same of a release that was signed through sigstore.

    Args:
        identity: Who is to have signed it: an e-mail address, or the address of a workflow.
        provider: The OpenID Connect provider that is to have vouched for it.

    Raises:
        FetchError: What sigstore is trusted by cannot be fetched.
    """
    _require_library()
    from model_signing import verifying

    folder = _signed_folder(directory)
    with _sigstore():
        config = verifying.Config().use_sigstore_verifier(identity=identity, oidc_issuer=provider)  # type: ignore[no-untyped-call]
    signed = _hold(directory, folder, 0, config, f"{identity} at {provider}")
    _check_all(directory, folder, signed)
    return Signed(f"every file is as {identity} signed it, says {provider}", signed)


def _signed_folder(directory: Path) -> Path:
    """The folder itself, of real files, with a signature.

    Raises:
        IntegrityError: It holds a link, a special file, or no signature.
    """
    with storage_errors(directory):
        if not directory.is_dir():
            raise StorageError(f"{directory} is not a bundle", hint="name a directory that was released")
        if not os.path.lexists(directory / SIGNATURE_FILE):
            raise IntegrityError(f"{directory} is not signed: it has no {SIGNATURE_FILE}", hint=_DO_NOT_USE)
        folder = directory.resolve()  # the library refuses links, and releases are often reached through one
        for path in folder.rglob("*"):
            status, name = path.lstat(), path.relative_to(folder)
            if stat.S_ISDIR(status.st_mode):
                if not any(path.iterdir()):  # which no signature covers
                    raise IntegrityError(f"{directory}: {name} was added, an empty folder", hint=_DO_NOT_USE)
            elif not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
                what = f"it holds a link or a special file, {name}, which no release does"
                raise IntegrityError(f"{directory}: {what}", hint="copy the files themselves")
    return folder


def _check_one(directory: Path, folder: Path, key: Path, index: int) -> str:
    from model_signing import verifying

    config = verifying.Config().use_elliptic_key_verifier(public_key=key)  # type: ignore[no-untyped-call]
    return _hold(directory, folder, index, config, key)


def _hold(directory: Path, folder: Path, index: int, config: verifying.Config, signer: object) -> str:
    """Have the library hold a folder against one of its signatures; the SHA-256 of the manifest that is signed."""
    from cryptography.exceptions import InvalidSignature

    name = signature_name(index)
    try:
        with storage_errors(directory), contextlib.redirect_stdout(sys.stderr):  # the library prints its warnings
            config.set_hashing_config(_hashing(index)).verify(folder, folder / name)
            return _signed_files(folder / name).get(MANIFEST_FILE, "")
    except InvalidSignature as error:
        raise IntegrityError(
            f"{directory}: the signature is not by {signer}, or was altered", hint=_DO_NOT_USE
        ) from error
    except ValueError as error:
        raise IntegrityError(f"{directory}: {_reason(error, folder, name, signer)}", hint=_DO_NOT_USE) from error
    except QvecError:
        raise
    except Exception as error:
        raise IntegrityError(f"{directory}: {name} is damaged", hint=_DO_NOT_USE) from error


def _check_all(directory: Path, folder: Path, manifest_sha256: str) -> int:
    """Hold all signatures that a signed manifest names, each by the key that it names; how many there are."""
    path = folder / MANIFEST_FILE
    with understood(path):
        data = read_limited(path, MAX_BYTES)
        if sha256_bytes(data) != manifest_sha256:
            raise ValueError("it was changed while its signature was checked")
        signers = (json_object(data).get("release") or {}).get("signers") or [""]
        ders = [base64.b64decode(signer, validate=True) for signer in signers]
    found = signature_files(folder)
    if found != [signature_name(each) for each in range(len(ders))]:
        raise IntegrityError(f"{directory}: it has other signatures than it was released with", hint=_DO_NOT_USE)
    with scratch_folder("keys") as scratch:
        for index, der in enumerate(ders):
            if der:
                key, text = scratch / f"signer {index + 1} of {MANIFEST_FILE}", base64.b64encode(der).decode()
                key.write_text(f"-----BEGIN PUBLIC KEY-----\n{text}\n-----END PUBLIC KEY-----\n")
                _check_one(directory, folder, key, index)
    return len(ders)


@contextlib.contextmanager
def _sigstore() -> Iterator[None]:
    """Tell what goes wrong with sigstore's services in one line."""
    try:
        yield
    except (QvecError, OSError) as error:
        if isinstance(error, QvecError):
            raise
        raise _unreachable(error) from error
    except Exception as error:
        raise _unreachable(error) from error


def _unreachable(error: Exception) -> FetchError:
    return FetchError(
        f"sigstore cannot be used from here: {first_line(error)}", hint="go on line, or sign and verify with --key"
    )


def _require_library() -> None:
    try:
        import model_signing  # noqa: F401 - whether it is there
    except ImportError as error:
        raise IncompatibleError(
            f"signatures need a library that cannot be imported here: {error}",
            hint="pip install 'qvec-deploy[sign]'",
        ) from error


def _hashing(index: int) -> hashing.Config:
    """All files but a signature itself and those before it, by SHA-256; links are refused, and so is `.git`."""
    from model_signing import hashing

    config = hashing.Config().use_file_serialization(hashing_algorithm="sha256", allow_symlinks=False)  # type: ignore[no-untyped-call]
    ignored = [signature_name(each) for each in range(index + 1)]
    return config.set_ignored_paths(paths=ignored, ignore_git_paths=False)


def _private_key(key: Path) -> ec.EllipticCurvePrivateKey:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    data = _read_key(key)
    if b"ENCRYPTED" in data:
        raise RecipeError(f"{key} is encrypted", hint=f"decrypt it: openssl ec -in {key} -out private.pem")
    try:
        private = load_pem_private_key(data, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise RecipeError(f"{key} is not a private key in PEM format", hint=_MAKE_KEY) from error
    _check_curve(key, private, _MAKE_KEY)
    return cast("ec.EllipticCurvePrivateKey", private)


def _read_key(key: Path) -> bytes:
    with storage_errors(key):
        return key.read_bytes()


def _check_public_key(key: Path) -> None:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        public = load_pem_public_key(_read_key(key))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise RecipeError(f"{key} is not a public key in PEM format", hint=_MAKE_PUBLIC) from error
    _check_curve(key, public, "the owner of the release has the right one")


def _check_curve(path: Path, key: object, hint: str) -> None:
    """Refuse keys that the library has no algorithm for."""
    curve = getattr(getattr(key, "curve", None), "name", None)
    if curve not in CURVES:
        kind = f"of the curve {curve}" if curve is not None else "of no elliptic curve"
        raise RecipeError(f"{path} is a key {kind}; signatures take P-256, P-384 and P-521", hint=hint)


def _reason(error: ValueError, folder: Path, name: str, signer: object) -> str:
    """What the library found, in one line."""
    text = str(error)
    if text.startswith("Key mismatch"):
        return f"it was signed with another key than {signer}"
    if text.startswith("Signature mismatch"):  # the signature itself holds, so its list of files can be believed
        return f"it is not what was signed: {_difference(folder, name)}"
    return f"{name} is damaged"


def _signed_files(path: Path) -> dict[str, str]:
    """Hex digest by file, as a signature that holds lists them; and the signature's file is only that.

    Raises:
        ValueError: It holds more than a signature, or says the same in other bytes.
    """
    from model_signing._signing.sign_sigstore_pb import Signature

    text, document = path.read_text(encoding="utf-8"), read_json(path)
    plain = text in [json.dumps(document, **style) for style in _STYLES]
    envelope = document["dsseEnvelope"]
    if not plain or json.loads(Signature.read(path).bundle.to_json()) != document or len(envelope["signatures"]) != 1:
        raise ValueError("it holds more than a signature")
    resources = json_object(base64.b64decode(envelope["payload"])).get("predicate", {}).get("resources", [])
    if any(entry["algorithm"] != "sha256" for entry in resources):
        return {}
    return {entry["name"]: entry["digest"] for entry in resources}


def _difference(folder: Path, name: str) -> str:
    """The first file that is not as a signature says; the library's own words are full of digests."""
    signed = _signed_files(folder / name)
    if not signed:
        return "it was signed with other hashes than SHA-256"
    paths = (path for path in folder.rglob("*") if path.is_file())
    found = {str(path.relative_to(folder)): path for path in paths if str(path.relative_to(folder)) != name}
    for each in sorted(signed | found):
        if each not in found:
            return f"{each} was removed"
        if each not in signed:
            return f"{each} was added"
        if sha256_file(found[each]) != signed[each]:
            return f"{each} was changed"
    return "its list of files is not understood here"
