"""Fine-tunes in the layout of the paper's repository: found by pattern, fetched when asked for, and checked."""

from __future__ import annotations

import contextlib
import fnmatch
import re
from pathlib import Path
from typing import Any

from qvec_deploy.errors import FetchError, IncompatibleError, RecipeError, StorageError, first_line
from qvec_deploy.io.checkpoint import Checkpoint
from qvec_deploy.io.files import write_bytes
from qvec_deploy.io.hub import fetch, is_remote
from qvec_deploy.models import ModelArgs, describe, head_names
from qvec_deploy.tensors import Scheme

_ROOT = "checkpoints/vision/ilharco_timm_supervised"
_ADDRESS = re.compile(r"hf://(?P<repository>[^/@]+/[^/@]+)(@(?P<revision>[^/@]+))?(?P<path>/.*)?")
_COMMIT = re.compile(r"[0-9a-f]{40}")


def pinned(address: str, *, offline: bool = False) -> str:
    """An address on the Hub with the commit that its branch or tag stands for now: its bytes never change.

    Args:
        address: `hf://org/repo@revision`, with or without a path behind it; anything else comes back as it is.
        offline: Take the commit that the Hub's local cache knows. So it is where the Hub does not answer.
    """
    if not is_remote(address):
        return address
    found = _ADDRESS.fullmatch(address)
    if found is None:
        raise RecipeError(f"{address} is not an address on the Hub", hint="write hf://org/repo@revision")
    revision = found["revision"] or "main"
    if not _COMMIT.fullmatch(revision):
        revision = _commit(found["repository"], revision, offline)
    return f"hf://{found['repository']}@{revision}{found['path'] or ''}"


def _commit(repository: str, revision: str, offline: bool) -> str:
    """The commit of a branch or tag, from the Hub, else from the cache, where it is then kept."""
    from huggingface_hub import HfApi, constants

    known = Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}" / "refs" / revision
    reason = "it is not in the local cache"
    if not offline:
        try:
            commit = str(HfApi().repo_info(repository, revision=revision).sha)
        except Exception as error:  # noqa: BLE001 - the Hub client's transport, and its errors, differ by version
            reason = first_line(error)
        else:
            with contextlib.suppress(StorageError):  # the cache may be another user's
                write_bytes(known, commit.encode())
            return commit
    try:
        return known.read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        raise FetchError(
            f"hf://{repository}@{revision}: {reason}",
            hint="leave out --offline" if offline else "check the name, the revision, the network and your rights",
        ) from error


def checkpoint_pattern(
    model: str, task: str, epochs: int | None, seed: int, scheme: Scheme | None, skip: tuple[str, ...]
) -> str:
    """Where a released fine-tune is: the whole model with its head, a state dict.

    `*` matches across folders: some mirrors have a folder `mult=1` behind the optimizer's, some have not. The pickled
    heads beside it (`head_epoch_N.pt`) match no pattern and are never fetched.

    Args:
        epochs: The number in the file's name; None for any.
    """
    run = "fp" if scheme is None else "qat"
    spelled = re.sub(r"[/.-]", "_", model)
    grid = f"qat=bits={scheme.bits}_gran={scheme.granularity}_skip={skip[0]}/" if scheme is not None else ""
    epoch = "*" if epochs is None else epochs
    return f"{_ROOT}/{run}/{spelled}/{task}/optim=*/{grid}seed={seed}/classifier_epoch_{epoch}.pt"


def identify(hub: str, pattern: str) -> Any:
    """What tells a released file from others: its address, and for a folder the file's size and date. Reads nothing."""
    if is_remote(hub):
        return f"{hub}/{pattern}"
    if not Path(hub).is_dir():
        raise StorageError(f"{hub}: no such folder", hint="check checkpoints.hub")
    found = {name: (Path(hub) / name).stat() for name in _matches(Path(hub), pattern)}
    return [pattern, [[name, [stat.st_size, stat.st_mtime_ns]] for name, stat in found.items()]]


def find(hub: str, pattern: str, *, offline: bool = False) -> Path:
    """The one file that matches, downloaded into the Hub's cache if need be."""
    if is_remote(hub):
        return fetch(f"{hub}/{pattern}", offline=offline)
    matches = _matches(Path(hub), pattern)
    if len(matches) != 1:
        raise FetchError(
            f"{hub} has {len(matches)} files {pattern}",
            hint="check model, task, seed and grid; another layout must be renamed to the published one",
        )
    return Path(hub) / matches[0]


def require_model(path: Path, model: str, model_args: ModelArgs, classes: int) -> None:
    """Refuse a checkpoint of another model, or with a head for other classes."""
    checkpoint = Checkpoint.open(path)
    shapes = describe(model, classes, model_args).shapes
    found = {name: info.shape for name, info in checkpoint.tensors.items()}
    head = f"{head_names(model)[0]}.weight"
    if head in found and found[head][0] != classes:
        raise IncompatibleError(
            f"{path} has a head for {found[head][0]} classes, and the task has {classes}",
            hint="check the task's dataset, or its checkpoint",
        )
    odd = sorted(set(found) ^ set(shapes)) or [name for name, shape in shapes.items() if found[name] != tuple(shape)]
    if odd:
        raise IncompatibleError(f"{path} is no {model}: `{odd[0]}` differs", hint="check the model's name")


def _matches(folder: Path, pattern: str) -> list[str]:
    """Files below the folder that match, looked for below the pattern's fixed part only."""
    fixed = pattern.partition("/optim=")[0]
    names = sorted(path.relative_to(folder).as_posix() for path in (folder / fixed).rglob("*.pt"))
    return fnmatch.filter(names, pattern)
