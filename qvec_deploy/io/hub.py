"""Files on the Hugging Face Hub, and what can go wrong with it."""

from __future__ import annotations

import contextlib
import fnmatch
from collections.abc import Iterator
from pathlib import Path

from qvec_deploy.errors import FetchError, QvecError, RecipeError, first_line


@contextlib.contextmanager
def hub_errors(what: str, *, hint: str) -> Iterator[None]:
    """Turn whatever the Hub's client raises into a FetchError: its errors, and its transport's, differ by version.

    Args:
        what: The beginning of the message: what was asked for.
    """
    try:
        yield
    except QvecError:
        raise
    except Exception as error:
        raise FetchError(f"{what}: {first_line(error)}", hint=hint) from error


def is_remote(source: str) -> bool:
    """Whether `source` names a file on the Hugging Face Hub."""
    return source.startswith("hf://")


def fetch(source: str, *, offline: bool) -> Path:
    """Local path of `hf://org/repo@revision/path`, downloaded into the Hub's cache if need be.

    The path may hold `*`, `?` and `[]`, which match across folders; exactly one file of the repository must match.

    Raises:
        RecipeError: The address is malformed.
        FetchError: It is not there, matches several files, or is not in the cache when offline.
    """
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    parts = source.removeprefix("hf://").split("/")
    malformed = RecipeError(f"{source} is not an address on the Hub", hint="write hf://org/repo@revision/path/to/file")
    name, at, revision = parts[1].partition("@") if len(parts) > 2 else ("", "", "")
    if not all(parts) or not name or (at and not revision) or "@" in revision:
        raise malformed
    repository, path = f"{parts[0]}/{name}", "/".join(parts[2:])
    with hub_errors(source, hint="check the name, the revision and your access rights"):
        try:
            if set("*?[") & set(path):
                if offline:
                    root = Path(snapshot_download(repository, revision=revision or None, local_files_only=True))
                    names = [str(file.relative_to(root)) for file in root.rglob("*") if file.is_file()]
                else:
                    names = HfApi().list_repo_files(repository, revision=revision or None)
                path = _only_match(source, path, names)
            return Path(hf_hub_download(repository, path, revision=revision or None, local_files_only=offline))
        except LocalEntryNotFoundError as error:
            hint = "leave out --offline to download it" if offline else "check the network, or fetch it elsewhere"
            raise FetchError(f"{source} is not in the local cache", hint=hint) from error
        except HFValidationError as error:
            raise malformed from error


def _only_match(source: str, pattern: str, names: list[str]) -> str:
    matches = sorted(fnmatch.filter(names, pattern))
    if len(matches) != 1:
        found = ", ".join(matches[:3]) or "none"
        raise FetchError(
            f"{source} matches {len(matches)} files: {found}", hint="write a pattern that matches exactly one file"
        )
    return matches[0]
