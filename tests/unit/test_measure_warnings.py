"""Each warning appears where it should, and only there."""

from dataclasses import replace

import numpy as np
import pytest

from qvec_deploy.measure.environment import Environment
from qvec_deploy.measure.latency import LatencySamples
from qvec_deploy.measure.warnings import (
    MeasurementWarning,
    accuracy_findings,
    headroom_finding,
    latency_findings,
    machine_findings,
)

QUIET = Environment("CPU", ("avx2",), 8, 4, 4, 0.3, 2**33, "performance", "Linux", "3.12.0", {"numpy": "2.0.0"})
STEADY = tuple(10.0 + 0.01 * (i % 3) for i in range(40))


def kinds(latency_ms: dict[str, tuple[float, ...]], baseline: str = "float") -> list[tuple[str, str]]:
    samples = {name: LatencySamples(1, taken) for name, taken in latency_ms.items()}
    return [(finding.subject, finding.warning.name) for finding in latency_findings(samples, baseline)]


def test_every_warning_has_a_remedy():
    for warning in MeasurementWarning:
        assert warning.remedy.endswith(".")


def test_a_quiet_machine_gives_no_finding():
    assert machine_findings(QUIET) == []
    assert machine_findings(replace(QUIET, governor=None)) == []
    assert machine_findings(replace(QUIET, load_average=4.0)) == []


def test_a_busy_machine():
    (finding,) = machine_findings(replace(QUIET, load_average=4.5))
    assert finding.warning is MeasurementWarning.BUSY_MACHINE
    assert finding.detail == "The load average before measuring was 4.5 on 4 usable cores."


def test_a_governor_that_is_seen_to_vary():
    (finding,) = machine_findings(replace(QUIET, governor="powersave"))
    assert finding.warning is MeasurementWarning.FREQUENCY_NOT_FIXED
    assert finding.detail == "The frequency governor is powersave."


def test_steady_samples_give_no_finding():
    assert kinds({"float": STEADY, "fast": tuple(taken / 2 for taken in STEADY)}) == []


@pytest.mark.parametrize(
    ("samples", "warning"),
    [
        (STEADY[:35], "TOO_FEW_SAMPLES"),
        ((10.0, 13.0) * 20, "NOISY_SAMPLES"),
        (tuple(np.linspace(10.0, 12.0, 40)), "DRIFT"),
        ((25.0, *(10.0,) * 1000), "SLOW_FIRST_SAMPLE"),
    ],
)
def test_doubtful_samples(samples, warning):
    assert kinds({"float": samples}) == [("float", warning)]


def test_too_few_samples_says_how_many_more():
    (finding,) = latency_findings({"float": LatencySamples(8, STEADY[:20])}, "float")
    assert finding.detail == "p90 needs 36 samples and has 20: 16 more (batch size 8)."


def test_a_speed_up_that_may_be_none():
    assert kinds({"float": STEADY, "same": STEADY}) == [("same", "SPEED_UP_UNCLEAR")]


def test_an_accuracy_difference_that_may_be_none():
    (finding,) = accuracy_findings("patched", "ptq", gained=10, lost=9, count=1000)
    assert finding.warning is MeasurementWarning.ACCURACY_UNCLEAR
    assert finding.detail == "The interval of its difference to ptq, -0.80 to +1.00 points, contains 0."
    assert accuracy_findings("patched", "ptq", gained=100, lost=9, count=1000) == []


def test_little_to_recover():
    (finding,) = headroom_finding("ptq", 0.955, 0.97)
    assert finding.warning is MeasurementWarning.NO_HEADROOM
    assert finding.subject == "ptq"
    assert finding.detail == "Without a vector it is 1.5 points below the float receiver."
    assert finding.warning.remedy == "A vector is not needed here: ship lambda 0."


@pytest.mark.parametrize(("top1", "found"), [(0.5, 0), (0.7499, 0), (0.7501, 1), (0.77, 1), (0.8, 1)])
def test_headroom_begins_at_two_points_below_float(top1, found):
    """One that is as good as float, or better, has none."""
    assert len(headroom_finding("ptq", top1, 0.77)) == found
