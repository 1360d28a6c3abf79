"""Each warning appears where it should, and only there."""

import re
from dataclasses import replace

import numpy as np
import pytest

from qvec_deploy.bench.environment import Environment, GpuState
from qvec_deploy.bench.latency import LatencySamples
from qvec_deploy.bench.warnings import (
    INPUT_DOUBTS,
    RECEIVER_DOUBTS,
    MeasurementWarning,
    accuracy_findings,
    headroom_finding,
    image_findings,
    latency_findings,
    machine_findings,
)
from qvec_deploy.datasets import DataConfig, DatasetSpec, open_dataset

QUIET = Environment("CPU", ("avx2",), 8, 4, 4, 0.3, 2**33, "performance", "Linux", "3.12.0", {"numpy": "2.0.0"})
STEADY = tuple(10.0 + 0.01 * (i % 3) for i in range(40))


def kinds(latency_ms: dict[str, tuple[float, ...]], baseline: str = "float") -> list[tuple[str, str]]:
    samples = {name: LatencySamples(1, taken) for name, taken in latency_ms.items()}
    return [(finding.subject, finding.warning.name) for finding in latency_findings(samples, baseline)]


def test_every_warning_has_a_remedy():
    for warning in MeasurementWarning:
        assert warning.remedy.endswith(".")


def test_what_went_in_is_doubted_before_anything_else():
    assert tuple(MeasurementWarning)[: len(INPUT_DOUBTS)] == INPUT_DOUBTS
    assert INPUT_DOUBTS[: len(RECEIVER_DOUBTS)] == RECEIVER_DOUBTS


def test_files_left_aside_and_classes_without_images(tmp_path):
    for name in ("a/0.png", "a/notes.txt", "x.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    names = tuple("abcdefghijkl")
    images = open_dataset(DatasetSpec("folder", root=tmp_path, class_names=names), DataConfig())
    aside, absent = image_findings(images)
    assert (aside.warning, absent.warning) == INPUT_DOUBTS[len(RECEIVER_DOUBTS) :]
    assert aside.detail == "2 files are left aside (1 .txt, 1 in no class folder), such as x.jpg, a/notes.txt."
    assert absent.detail == "11 of 12 classes have no image: b, c, d, e, f, g, h, i, j, k and 1 more."
    assert image_findings(open_dataset(DatasetSpec("tiny/lower", limit=2), DataConfig())) == image_findings(None) == []


def test_a_quiet_machine_gives_no_finding():
    assert machine_findings(QUIET) == []
    assert machine_findings(replace(QUIET, governor=None)) == []
    assert machine_findings(replace(QUIET, load_average=4.0)) == []


def test_a_busy_machine():
    (finding,) = machine_findings(replace(QUIET, load_average=4.5))
    assert finding.warning is MeasurementWarning.BUSY_MACHINE
    assert finding.detail == "The load average before measuring was 4.5 on 4 usable cores."


def test_a_busy_machine_while_held_to_a_core():
    """The load is the whole machine's, which has eight."""
    held = replace(QUIET, usable_cores=1, affinity=(3,))
    assert machine_findings(replace(held, load_average=7.5)) == []
    (finding,) = machine_findings(replace(held, load_average=8.5))
    assert finding.detail == "The load average before measuring was 8.5 on 8 cores."


def test_a_governor_that_is_seen_to_vary():
    (finding,) = machine_findings(replace(QUIET, governor="powersave"))
    assert finding.warning is MeasurementWarning.FREQUENCY_NOT_FIXED
    assert finding.detail == "The frequency governor is powersave."


GPU = GpuState("NVIDIA Test", "580.65", 2**34, sm_clock_mhz=1410.0, clocks_locked=True)


def test_a_gpu_with_locked_clocks_gives_no_finding():
    assert machine_findings(replace(QUIET, gpu=GPU)) == []
    assert machine_findings(replace(QUIET, gpu=replace(GPU, clocks_locked=None))) == []


def test_clocks_that_are_not_locked():
    (finding,) = machine_findings(replace(QUIET, gpu=replace(GPU, clocks_locked=False)))
    assert finding.warning is MeasurementWarning.CLOCKS_NOT_LOCKED
    assert finding.detail == "The clocks of the NVIDIA Test are not locked (1410 MHz after measuring)."
    (finding,) = machine_findings(replace(QUIET, gpu=replace(GPU, clocks_locked=False, sm_clock_mhz=None)))
    assert finding.detail == "The clocks of the NVIDIA Test are not locked."


def test_a_throttled_gpu():
    (finding,) = machine_findings(replace(QUIET, gpu=replace(GPU, throttling=("power cap", "power brake"))))
    assert finding.warning is MeasurementWarning.THROTTLED
    assert finding.detail == "The NVIDIA Test lowered its clocks while measuring: power cap, power brake."


def test_a_warm_up_that_did_not_settle():
    (finding,) = latency_findings({"float": LatencySamples(8, STEADY, warmup=50, settled=False)}, "float")
    assert finding.warning is MeasurementWarning.WARM_UP_NOT_STABLE
    assert finding.detail == "After 50 blocks of warm-up its times were still changing (batch size 8)."


def test_fewer_samples_than_asked():
    (finding,) = latency_findings({"float": LatencySamples(1, STEADY)}, "float", asked_blocks=60)
    assert finding.warning is MeasurementWarning.FEWER_SAMPLES
    assert finding.detail == "The time was up after 40 of 60 samples (batch size 1)."
    assert latency_findings({"float": LatencySamples(1, STEADY)}, "float", asked_blocks=40) == []


def test_less_time_than_asked():
    samples = {"float": LatencySamples(1, STEADY)}
    taken_s = sum(STEADY) / 1e3
    assert latency_findings(samples, "float", 40, taken_s) == []
    (finding,) = latency_findings(samples, "float", 40, 600.0)
    assert finding.warning is MeasurementWarning.FEWER_SAMPLES
    assert finding.detail == f"The time was up after 40 of 40 samples, {taken_s:.3g} of 600 s (batch size 1)."


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
    assert finding.warning.remedy == "A vector is not needed here: take lambda 0."


@pytest.mark.parametrize(("top1", "found"), [(0.5, 0), (0.7499, 0), (0.7501, 1), (0.77, 1), (0.8, 1)])
def test_headroom_begins_at_two_points_below_float(top1, found):
    """One that is as good as float, or better, has none."""
    assert len(headroom_finding("ptq", top1, 0.77)) == found


def test_details_are_sentences():
    """No name of a variable stands in them."""
    slow_first = (40.0, *STEADY[1:])
    drifting = (*STEADY[:20], *(2 * value for value in STEADY[20:]))
    samples = {"float": LatencySamples(1, slow_first), "int4": LatencySamples(1, drifting)}
    details = [finding.detail for finding in latency_findings(samples, "float")]
    assert any("first sample took" in detail for detail in details)
    assert any("half's median" in detail for detail in details)
    for detail in details:
        assert not re.search(r"[a-z_]\.[a-z]", detail), detail
