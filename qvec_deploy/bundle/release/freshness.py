"""Whether a release is the one to use: not older than what a device has, and not expired."""

from __future__ import annotations

import datetime
import os
import re

from qvec_deploy.bundle.manifest import RELEASE_NUMBER, Manifest, ReleaseFacts
from qvec_deploy.errors import IncompatibleError, RecipeError

_NUMBER = re.compile(RELEASE_NUMBER)
_DAY = re.compile(r"\d{4}-\d\d-\d\d(T|$)", re.ASCII)
_NEWER = "fetch the newest release from whoever signs them"


def release_facts(number: str | None, expires: str | None, signers: tuple[str, ...] = ()) -> ReleaseFacts:
    """What a release that is made now says of itself; SOURCE_DATE_EPOCH stands for now where it is set.

    Raises:
        RecipeError: No number, or no day that is still to come.
    """
    if number is not None and not _NUMBER.fullmatch(number):
        raise RecipeError(f"{number!r} is no release number", hint="give whole numbers with dots, such as 7 or 1.4.0")
    now = _now()
    last = None
    if expires is not None:
        last = _day(expires).date()
        if last < now.date():
            raise RecipeError(f"the release would have expired on {last}", hint="give a day that is to come")
    released = now.isoformat(timespec="seconds")
    day = last.isoformat() if last is not None else None
    return ReleaseFacts(number=number, released=released, expires=day, signers=signers)


def check_freshness(manifest: Manifest, not_older_than: str | None = None) -> str | None:
    """Refuse a release that has expired, or is older than it may be.

    Args:
        not_older_than: A release number, or a day.

    Returns:
        What it says of itself, in words; None where it is no release, or one of before.

    Raises:
        IncompatibleError: It is to be refused.
        RecipeError: `not_older_than` is neither a number nor a day.
    """
    least = _least(not_older_than) if not_older_than is not None else None
    facts = manifest.release
    if facts is None:
        if least is not None:
            raise IncompatibleError(f"{manifest.name} does not say which release it is", hint=_NEWER)
        return None
    today = datetime.datetime.now(datetime.UTC).date()
    if facts.expires is not None and today > datetime.date.fromisoformat(facts.expires):
        raise IncompatibleError(f"{manifest.name} expired on {facts.expires}; today is {today}", hint=_NEWER)
    told = f"number {facts.number}" if facts.number is not None else "no number"
    told += f", of {facts.released}" + (f", to be used until {facts.expires}" if facts.expires is not None else "")
    if least is not None and _older(facts, least):
        raise IncompatibleError(f"{manifest.name} is older than {not_older_than}: {told}", hint=_NEWER)
    return told


def _older(facts: ReleaseFacts, least: tuple[int, ...] | datetime.datetime) -> bool:
    if isinstance(least, datetime.datetime):
        return datetime.datetime.fromisoformat(facts.released) < least
    return facts.number is None or _parts(facts.number) < least


def _least(text: str) -> tuple[int, ...] | datetime.datetime:
    return _parts(text) if _NUMBER.fullmatch(text) else _day(text)


def _parts(number: str) -> tuple[int, ...]:
    """Its parts without trailing zeros, for 1.4 is 1.4.0."""
    parts = [int(part) for part in number.split(".")]
    while parts and not parts[-1]:
        parts.pop()
    return tuple(parts)


def _day(text: str) -> datetime.datetime:
    """The beginning of a day, in UTC, or a time of it."""
    try:
        if not _DAY.match(text):
            raise ValueError
        time = datetime.datetime.fromisoformat(text)
    except ValueError as error:
        raise RecipeError(f"{text!r} is no day", hint="write it as 2026-11-30") from error
    return time if time.tzinfo is not None else time.replace(tzinfo=datetime.UTC)


def _now() -> datetime.datetime:
    """The time, or what SOURCE_DATE_EPOCH says it is, which makes releases reproducible."""
    given = os.environ.get("SOURCE_DATE_EPOCH")
    if given is None:
        return datetime.datetime.now(datetime.UTC)
    try:
        return datetime.datetime.fromtimestamp(int(given), datetime.UTC)
    except (ValueError, OverflowError, OSError) as error:
        raise RecipeError(f"SOURCE_DATE_EPOCH={given!r} is no time", hint="unset it, or give seconds") from error
