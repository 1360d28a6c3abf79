"""Nothing that is done to a signed release is taken: a sample here, all of it by script, with a dated record."""

from __future__ import annotations

import datetime
import json

import pytest
import release_attack


@pytest.mark.slow
def test_a_sample_of_all_attacks() -> None:
    found = release_attack.attack_release(release_attack.BUNDLE, flips=2)
    assert found["tried"] > 1000 and found["bits_of_the_manifest"] > 1000
    assert {kind: row["accepted"] for kind, row in found["attacks"].items() if row["accepted"]} == {}
    assert found["accepted"] == found["bits_unnoticed_without_a_key"] == 0


def test_the_record_is_of_all_attacks() -> None:
    record = json.loads(release_attack.RECORD.read_text())
    assert datetime.date.fromisoformat(record["date"])
    assert record["tried"] == sum(row["tried"] for row in record["attacks"].values()) > 5000
    assert record["attacks"]["a bit is flipped"]["tried"] > 5000 and record["bits_of_the_manifest"] > 30_000
    assert record["accepted"] == record["bits_unnoticed_without_a_key"] == 0
