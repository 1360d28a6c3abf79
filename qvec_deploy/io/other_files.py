"""Files that people take for checkpoints, told by their first bytes, and what to do about each."""

from __future__ import annotations

from pathlib import Path

from qvec_deploy.errors import IncompatibleError, IntegrityError

SAVE = "load the model where it was trained, and save its weights: torch.save(model.state_dict(), path)"
"""What to do where a file is no state dict."""
_UNPACK = "unpack it, and name the checkpoint inside"
_STARTS: tuple[tuple[bytes, str, str], ...] = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file it stands for", "run `git lfs pull` there"),
    *(
        (start, "a web page saved in the place of a checkpoint", "download the file itself (its raw link)")
        for start in (b"<!doctype", b"<html", b"<?xml", b"<!--", b"<error", b"<head")
    ),
    (b"\x1f\x8b", "compressed (gzip)", _UNPACK),
    (b"BZh", "compressed (bzip2)", _UNPACK),
    (b"\xfd7zXZ", "compressed (xz)", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "compressed (zstd)", _UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", _UNPACK),
    (b"Rar!", "a RAR archive", _UNPACK),
    (b"\x93NUMPY", "a NumPy array", SAVE),
    (b"\x89HDF", "an HDF5 file, as Keras writes", "use a timm model that was trained in PyTorch"),
    (
        b"GGUF",
        "a GGUF file, which holds weights that are quantized already",
        "use the float weights that it was made of",
    ),
)
"""The first bytes, in any case; what a file is that begins so; what to do."""
_PICKLES = tuple(b"\x80" + bytes([version]) for version in range(2, 6))
_TAR_MARK = slice(257, 262)


def refuse_other(path: Path, start: bytes) -> None:
    """Refuse a file of another kind.

    Args:
        start: Its first bytes, 262 or more where it is as long.

    Raises:
        IncompatibleError: An ONNX model.
        IntegrityError: Anything else that is known.
    """
    if not start:
        raise IntegrityError(f"{path} is empty", hint="copy or download it again")
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    for mark, what, hint in _STARTS:
        if start.startswith(mark) or text.lower().startswith(mark.lower()):
            raise IntegrityError(f"{path} is {what}", hint=hint)
    if start[_TAR_MARK] == b"ustar":
        raise IntegrityError(f"{path} is a tar archive", hint=_UNPACK)
    # An ONNX model begins with its version, then producer or graph.
    if start[0] == 8 and b"\x00" < start[1:2] < b" " and start[2:3] in (b"\x12", b"\x3a"):
        raise IncompatibleError(f"{path} is an ONNX model", hint=SAVE)
    if start.startswith(_PICKLES):
        raise IntegrityError(f"{path} is a bare pickle, whose code is never run", hint=SAVE)
