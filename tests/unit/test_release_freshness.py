"""Which release may be used: its number, its date, and the last day on which it is to be used."""

from __future__ import annotations

import datetime
import json
import re
from pathlib import Path

import pytest
from release_example import subject

from qvec_deploy.bundle.manifest import Manifest, ReleaseFacts, manifest_bytes, parse_manifest
from qvec_deploy.bundle.release.freshness import check_freshness, release_facts
from qvec_deploy.errors import IncompatibleError, IntegrityError, RecipeError

RELEASED = "2026-11-30T10:00:00+00:00"


def _manifest(number: str | None = "1.4.0", released: str = RELEASED, expires: str | None = None) -> Manifest:
    facts = ReleaseFacts(number=number, released=released, expires=expires)
    return subject().manifest.model_copy(update={"release": facts})


@pytest.mark.parametrize(
    "least", ["1.4.0", "1.4", "1.3.9", "1", "0", "2026-11-30", "2026-11-30T10:00:00+00:00", "2026-11-30T11:00:00+02:00"]
)
def test_what_is_not_older(least: str) -> None:
    assert check_freshness(_manifest(), least) == f"number 1.4.0, of {RELEASED}"


@pytest.mark.parametrize("least", ["1.4.1", "1.10", "2", "2026-12-01", "2026-11-30T10:00:01+00:00"])
def test_what_is_older(least: str) -> None:
    with pytest.raises(
        IncompatibleError, match=rf"eurosat_3bit is older than {re.escape(least)}: number 1\.4\.0, of 2026"
    ):
        check_freshness(_manifest(), least)


def test_numbers_are_compared_as_numbers() -> None:
    assert check_freshness(_manifest("10"), "9")
    with pytest.raises(IncompatibleError):
        check_freshness(_manifest("9"), "10")


def test_what_says_nothing_is_older_than_anything() -> None:
    assert check_freshness(subject().manifest) is None
    with pytest.raises(IncompatibleError, match="does not say which release it is"):
        check_freshness(subject().manifest, "1")
    assert check_freshness(_manifest(None), "2026-11-30") == f"no number, of {RELEASED}"
    with pytest.raises(IncompatibleError, match="is older than 0: no number"):
        check_freshness(_manifest(None), "0")


def test_the_last_day() -> None:
    today = datetime.datetime.now(datetime.UTC).date()
    assert f"until {today}" in (check_freshness(_manifest(expires=today.isoformat())) or "")
    yesterday = today - datetime.timedelta(days=1)
    with pytest.raises(IncompatibleError, match=f"expired on {yesterday}; today is {today}"):
        check_freshness(_manifest(expires=yesterday.isoformat()))


@pytest.mark.parametrize("least", ["", "v1", "1.", "-1", "1.2.3.4.5.6.7.8.9", "2026-13-01", "soon", "1" * 400, "١"])
def test_what_is_neither_number_nor_day(least: str) -> None:
    with pytest.raises(RecipeError, match="is no day"):
        check_freshness(_manifest(), least)


def test_what_a_release_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1796032800")
    facts = release_facts("7", "2026-12-31", ("key",))
    assert facts == ReleaseFacts(number="7", released=RELEASED, expires="2026-12-31", signers=("key",))
    with pytest.raises(RecipeError, match="would have expired on 2026-11-29"):
        release_facts(None, "2026-11-29")
    for number in ("", "a", "1..2", "1.x"):
        with pytest.raises(RecipeError, match="is no release number"):
            release_facts(number, None)
    with pytest.raises(RecipeError, match="is no day"):
        release_facts(None, "tomorrow")
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "x")
    with pytest.raises(RecipeError, match="is no time"):
        release_facts(None, None)


@pytest.mark.parametrize(
    "facts",
    [
        {"released": "soon"},
        {"released": "2026-11-30"},
        {"released": RELEASED, "expires": "never"},
        {"released": RELEASED, "number": "v1"},
        {"released": RELEASED, "signers": ["x"] * 9},
        {"released": RELEASED, "more": 1},
    ],
)
def test_a_manifest_that_says_it_wrongly_is_damaged(facts: dict[str, object]) -> None:
    values = json.loads(manifest_bytes(subject().manifest.model_dump(mode="json")))
    with pytest.raises(IntegrityError, match="is damaged: release"):
        parse_manifest(manifest_bytes(values | {"release": facts}), Path("manifest.json"))
