"""One error hierarchy: each class is one exit code, and every error says what to do about it.

Functions raise the class that fits; their docstrings name errors only where that is not plain from what they do.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any, ClassVar

_MOST = 4000
"""Characters of a message."""


class QvecError(Exception):
    """Something the user can act on.

    Args:
        message: What is wrong and where, in one sentence.
        hint: What to do about it. Required, so that no error leaves the reader alone.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str) -> None:
        if len(message) > _MOST:  # it quotes a file that anybody may have written
            message = f"{message[:_MOST]}..."
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(type(self), hint=self.hint), (self.message,)  # an exception is pickled without its keywords


class RecipeError(QvecError):
    """The recipe or the command line asks for something that cannot be (exit 2)."""

    exit_code = 2


class GateError(QvecError):
    """Everything was built, and a gate was missed (exit 3)."""

    exit_code = 3


class IncompatibleError(QvecError):
    """Two things do not go together: versions, devices, vectors, lowerings (exit 4)."""

    exit_code = 4


class IntegrityError(QvecError):
    """A file is damaged, altered or unsafe (exit 5)."""

    exit_code = 5


class StorageError(QvecError):
    """Reading or writing failed: missing, exists, no permission, disk full (exit 6)."""

    exit_code = 6


class FetchError(QvecError):
    """A remote file could not be fetched (exit 7)."""

    exit_code = 7


SEVERITY = (1, 5, 6, 7, 4, 2, 3, 0)
"""Exit codes, the worst first. What is refused is worse than a gate: 3 says that everything was built."""


def worst(codes: Iterable[int]) -> int:
    """The worst of exit codes; 0 without any."""
    return min(codes, key=SEVERITY.index, default=0)


def first_line(error: BaseException) -> str:
    """The first line of what an error of others says, or its kind where it says nothing."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


@contextlib.contextmanager
def errors_about(what: str) -> Iterator[None]:
    """Name what errors of the block are about."""
    try:
        yield
    except QvecError as error:
        raise type(error)(f"{what}: {error.message}", hint=error.hint) from error
