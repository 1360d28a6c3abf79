"""model.sig: an OpenSSF Model Signing signature over every file of a release, its manifest among them."""

from __future__ import annotations

import base64
import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from qvec_deploy.errors import IncompatibleError, IntegrityError, RecipeError, StorageError
from qvec_deploy.io.files import sha256_file, storage_errors
from qvec_deploy.io.untrusted import json_object, read_json

if TYPE_CHECKING:
    from model_signing import hashing

SIGNATURE_FILE = "model.sig"
CURVES = ("secp256r1", "secp384r1", "secp521r1")
"""What Model Signing takes: P-256, P-384 and P-521."""

_MAKE_KEY = "make one: openssl ecparam -name prime256v1 -genkey -noout -out private.pem"
_MAKE_PUBLIC = "make it from the private key: openssl ec -in private.pem -pubout -out public.pem"
_DO_NOT_USE = "do not use it; fetch the release again from whoever signed it"
_MALFORMED = (KeyError, TypeError, IndexError, AttributeError, RecursionError)


def is_signed(directory: Path) -> bool:
    """Whether a signature is there; whether it holds is another question."""
    with storage_errors(directory):
        return (directory / SIGNATURE_FILE).is_file()


def open_signer(key: Path) -> Callable[[Path], None]:
    """A function that signs a directory and leaves model.sig in it.

    Args:
        key: PEM file of an elliptic-curve private key, not encrypted.
    """
    _require_library()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key
    from model_signing import signing

    data = _read_key(key)
    if b"ENCRYPTED" in data:
        raise RecipeError(f"{key} is encrypted", hint=f"decrypt it: openssl ec -in {key} -out private.pem")
    try:
        private = load_pem_private_key(data, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise RecipeError(f"{key} is not a private key in PEM format", hint=_MAKE_KEY) from error
    _check_curve(key, private, _MAKE_KEY)

    def sign(directory: Path) -> None:
        config = signing.Config().use_elliptic_key_signer(private_key=key).set_hashing_config(_hashing())  # type: ignore[no-untyped-call]
        with storage_errors(directory):
            config.sign(directory, directory / SIGNATURE_FILE)

    return sign


def check_signature(directory: Path, key: Path) -> str:
    """Hold every file of a release against its signature. Nothing but model.sig is parsed.

    Opening a bundle compares hashes only, and whoever can change a file can change the manifest with it: where a
    release comes from elsewhere, this comes first. `compile` adds engines, after which no signature holds.

    Args:
        key: PEM file of the public key.
    """
    _require_library()
    from cryptography.exceptions import InvalidSignature
    from model_signing import verifying

    _check_public_key(key)
    with storage_errors(directory):
        if not directory.is_dir():
            raise StorageError(f"{directory} is not a bundle", hint="name a directory that was released")
    if not is_signed(directory):
        raise IntegrityError(f"{directory} is not signed: it has no {SIGNATURE_FILE}", hint=_DO_NOT_USE)
    folder = directory.resolve()  # the library refuses links, and releases are often reached through one
    config = verifying.Config().use_elliptic_key_verifier(public_key=key).set_hashing_config(_hashing())  # type: ignore[no-untyped-call]
    try:
        with storage_errors(directory), contextlib.redirect_stdout(sys.stderr):  # the library prints its warnings
            config.verify(folder, folder / SIGNATURE_FILE)
    except InvalidSignature as error:
        raise IntegrityError(f"{directory}: the signature is not by {key}, or was altered", hint=_DO_NOT_USE) from error
    except ValueError as error:
        raise IntegrityError(f"{directory}: {_reason(error, folder, key)}", hint=_DO_NOT_USE) from error
    except _MALFORMED as error:
        raise IntegrityError(f"{directory}: {SIGNATURE_FILE} is damaged", hint=_DO_NOT_USE) from error
    return f"every file is as the owner of {key.name} signed it"


def _require_library() -> None:
    try:
        import model_signing  # noqa: F401 - whether it is there
    except ImportError as error:
        raise IncompatibleError(
            f"signatures need a library that cannot be imported here: {error}",
            hint="pip install 'qvec-deploy[sign]'",
        ) from error


def _hashing() -> hashing.Config:
    """All files but the signature itself, by SHA-256; links are refused, and so are additions such as `.git`."""
    from model_signing import hashing

    config = hashing.Config().use_file_serialization(hashing_algorithm="sha256", allow_symlinks=False)  # type: ignore[no-untyped-call]
    return config.set_ignored_paths(paths=[SIGNATURE_FILE], ignore_git_paths=False)


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


def _reason(error: ValueError, folder: Path, key: Path) -> str:
    """What the library found, in one line."""
    text = str(error)
    if text.startswith("Key mismatch"):
        return f"it was signed with another key than {key}"
    if text.startswith("Signature mismatch"):  # the signature itself holds, so its list of files can be believed
        return f"it is not what was signed: {_difference(folder)}"
    if text.startswith("Cannot use"):
        return "it holds a link or a special file, which no release does"
    return f"{SIGNATURE_FILE} is damaged"


def _difference(folder: Path) -> str:
    """The first file that is not as its signature says; the library's own words are full of digests."""
    envelope = read_json(folder / SIGNATURE_FILE)["dsseEnvelope"]
    resources = json_object(base64.b64decode(envelope["payload"])).get("predicate", {}).get("resources", [])
    if any(entry["algorithm"] != "sha256" for entry in resources):
        return "it was signed with other hashes than SHA-256"
    signed = {entry["name"]: entry["digest"] for entry in resources}
    paths = (path for path in folder.rglob("*") if path.is_file())
    found = {str(path.relative_to(folder)): path for path in paths if path != folder / SIGNATURE_FILE}
    for name in sorted(signed | found):
        if name not in found:
            return f"{name} was removed"
        if name not in signed:
            return f"{name} was added"
        if sha256_file(found[name]) != signed[name]:
            return f"{name} was changed"
    return "its list of files is not understood here"
