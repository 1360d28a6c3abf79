"""Ship, do not ship, or the reader's own decision: only gates that were judged make the first."""

from __future__ import annotations

from dataclasses import replace

import pytest
from report_example import example_report, selecting_report

from qvec_deploy.bench.accuracy import PairedAnswers
from qvec_deploy.bench.decision import decide
from qvec_deploy.bench.results import GateResult, Report
from qvec_deploy.bench.warnings import RECEIVER_DOUBTS, Finding, MeasurementWarning

ACCURATE = GateResult("max_top1_drop", "at most 9 points below the float receiver", "−5.5 points", passed=True)
SMALL = GateResult("max_stored_bits", "at most 8 bits a weight", "3.04", passed=True)


def gated(*gates: GateResult) -> Report:
    return replace(example_report(), gates=gates)


def test_gates_that_were_passed_ship() -> None:
    decision = decide(gated(ACCURATE, SMALL))
    assert decision is not None and decision.verdict == "ship"
    assert decision.reasons == ("mean passes all 2 gates: max_top1_drop, max_stored_bits.",)


def test_a_missed_gate_does_not_ship() -> None:
    decision = decide(gated(ACCURATE, replace(SMALL, passed=False)))
    assert decision is not None and decision.verdict == "do not ship"
    assert decision.sentence == (
        "Do not ship: mean misses 1 of 2 gates: max_stored_bits (wanted at most 8 bits a weight, found 3.04)."
    )


def test_without_gates_the_reader_decides() -> None:
    decision = decide(example_report())
    assert decision is not None and decision.verdict == "you decide"
    judged, weighed = decision.reasons
    assert "no gates" in judged
    assert (
        weighed
        == "It takes 8.57 MB instead of 86.7 MB, and its top-1 differs from float's by −5.5 points [−6.6, −4.4]."
    )


def test_gates_that_say_nothing_of_accuracy_leave_it_to_the_reader() -> None:
    decision = decide(gated(SMALL))
    assert decision is not None and decision.verdict == "you decide"
    assert decision.reasons[1] == "No gate judges its accuracy."


def test_what_was_not_measured_is_said() -> None:
    report = example_report()
    bare = tuple(replace(candidate, accuracy=None, paired={}) for candidate in report.candidates)
    decision = decide(replace(report, candidates=bare))
    assert decision is not None and decision.reasons[1] == "Its accuracy was not measured."


def test_bundles_side_by_side_have_no_decision() -> None:
    assert decide(example_report(selected=None)) is None


def test_an_unverified_patch_does_not_ship_whatever_the_gates_say() -> None:
    finding = Finding(MeasurementWarning.UNVERIFIED, "mean", "The patch was tried on no image.")
    decision = decide(replace(gated(ACCURATE), warnings=(finding,)))
    assert decision is not None and decision.sentence == "Do not ship: The patch was tried on no image."


@pytest.mark.parametrize(("gained", "lost", "verdict"), [(40, 45, "you decide"), (40, 150, "do not ship")])
def test_a_patch_that_is_clearly_worse_than_none_does_not_ship(gained: int, lost: int, verdict: str) -> None:
    report = example_report()
    worse = {**report["mean"].paired, "ptq": PairedAnswers(gained, lost, 2700 - gained - lost, 2700)}
    made = tuple(replace(c, paired=worse) if c.name == "mean" else c for c in report.candidates)
    decision = decide(replace(report, candidates=made))
    assert decision is not None and decision.verdict == verdict


def test_the_example_with_a_missed_gate() -> None:
    decision = decide(selecting_report())
    assert decision is not None and decision.verdict == "do not ship"


@pytest.mark.parametrize("kind", RECEIVER_DOUBTS)
def test_no_gate_ships_a_receiver_that_may_be_read_wrong(kind: MeasurementWarning) -> None:
    doubted = replace(gated(ACCURATE, SMALL), warnings=(Finding(kind, "float", "2 of 90 answers are right."),))
    decision = decide(doubted)
    assert decision is not None and decision.verdict == "you decide"
    assert decision.reasons[0].startswith(f"float may be read wrong ({kind})")
    assert decision.reasons[1] == "2 of 90 answers are right."


def test_an_engine_that_was_not_run_is_not_shipped_by_itself() -> None:
    report = example_report()
    candidates = tuple(replace(each, emulated=True, latency=(), footprint=None) for each in report.candidates)
    decision = decide(replace(report, candidates=candidates))
    assert decision is not None and decision.verdict == "you decide"
    assert decision.reasons[0] == ("mean was not run: its accuracy was computed on the CPU, its speed is not known.")
