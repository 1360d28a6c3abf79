"""Each gate passed and missed, what needs no test, and what cannot be judged."""

from dataclasses import replace

import pytest
from report_example import IMAGES, SELECTION, example_report, gpu_report, selecting_report

from qvec_deploy.bench.accuracy import PairedAnswers
from qvec_deploy.bench.gates import judge
from qvec_deploy.bench.latency import LatencySamples
from qvec_deploy.bench.results import Patch, PatchDonor, Report
from qvec_deploy.bench.selection import Confirmed
from qvec_deploy.errors import RecipeError
from qvec_deploy.recipe import Gates


def changed(report: Report, name: str, /, **changes: object) -> Report:
    candidates = tuple(replace(c, **changes) if c.name == name else c for c in report.candidates)
    return replace(report, candidates=candidates)


def paired(gained: int, lost: int) -> PairedAnswers:
    return PairedAnswers(gained, lost, agreeing=IMAGES - gained - lost, count=IMAGES)


def only(gates: Gates, report: Report):
    (result,) = judge(gates, report)
    return result


def test_no_gates_no_results():
    assert judge(Gates(), example_report()) == ()


def test_gates_come_in_a_fixed_order():
    gates = Gates(beats=("ptq", "float"), max_top1_drop=6, max_stored_bits=3, min_speedup=1.2)
    results = judge(gates, example_report())
    assert [(result.name, result.passed) for result in results] == [
        ("beats ptq", True),
        ("beats float", False),
        ("max_top1_drop", True),
        ("max_stored_bits", False),
        ("min_speedup", True),
    ]


@pytest.mark.parametrize(
    ("gained", "lost", "level", "passed", "chance"),
    [
        (492, 40, 0.05, True, "p < 0.0001"),
        (8, 1, 0.05, True, "p = 0.039"),  # 2 (1 + 9) / 2^9
        (8, 1, 0.01, False, "p = 0.039"),
        (1, 8, 0.05, False, "p = 0.039"),  # as unlikely, and worse
        (8, 2, 0.05, False, "p = 0.11"),
        (0, 0, 0.05, False, "p = 1"),
    ],
)
def test_to_beat_is_to_have_more_right_answers_than_chance_gives(gained, lost, level, passed, chance):
    report = changed(example_report(), "mean", paired={"ptq_mse": paired(gained, lost)})
    result = only(Gates(beats=("ptq_mse",), level=level), report)
    assert result.passed is passed
    assert result.wanted == f"more right answers than ptq_mse at level {level:g}"
    assert result.found == f"{gained} images gained, {lost} lost of 2,700, {chance}"


def test_lambda_0_is_plain_ptq():
    report = changed(example_report(), "mean", paired={"ptq": paired(3, 9)})
    result = only(Gates(beats=("lambda0",)), report)
    assert (result.name, result.passed) == ("beats lambda0", False)
    assert result.found.startswith("3 images gained, 9 lost")


def test_lambda_0_is_of_the_shipped_method_where_methods_competed():
    """A patched gptaq that beats round-to-nearest by far is still held against gptaq without a patch."""
    report = selecting_report()
    patch = Patch(0.5, (PatchDonor("svhn", 1.0),))
    pairs = {"ptq": paired(500, 10), "gptaq": paired(9, 8), "float": paired(2, 40)}
    made = replace(report["gptaq"], name="gptaq_patched", patch=patch, paired=pairs)
    confirmed = (*SELECTION.confirmed, Confirmed("gptaq_patched", 0.05, 0.01))
    report = replace(
        report,
        candidates=(*report.candidates, made),
        selected="gptaq_patched",
        selection=replace(SELECTION, confirmed=confirmed, shipped="gptaq_patched"),
    )
    result = only(Gates(beats=("lambda0",)), report)
    assert not result.passed
    assert result.found.startswith("9 images gained, 8 lost")


@pytest.mark.parametrize("rival", ["lambda0", "ptq"])
def test_what_is_shipped_itself_is_not_beaten_and_need_not_be(rival):
    result = only(Gates(beats=(rival,)), example_report(selected="ptq"))
    assert result.passed
    assert result.found == f"{rival} itself is shipped"


def test_the_same_weights_under_another_name_are_itself():
    """`beats: [rtn]` builds a candidate rtn that is ptq over again: they never differ, and that is no failure."""
    report = example_report(selected="ptq")
    twin = replace(report["ptq"], name="rtn")
    result = only(Gates(beats=("rtn",)), replace(report, candidates=(*report.candidates, twin)))
    assert result.passed
    assert result.found == "ptq, which is shipped, is rtn itself"
    other = replace(twin, layer_errors=report["random_1"].layer_errors)
    report = replace(report, candidates=(*report.candidates, other))
    report = changed(report, "ptq", paired={"rtn": paired(0, 0)})
    assert not only(Gates(beats=("rtn",)), report).passed


def test_an_unknown_rival_cannot_be_judged():
    with pytest.raises(RecipeError, match=r"gates\.beats: there is no candidate `missing`"):
        judge(Gates(beats=("missing",)), example_report())


def test_without_right_answers_nothing_is_beaten():
    report = changed(example_report(), "mean", paired={})
    with pytest.raises(RecipeError, match=r"gates\.beats: right answers of mean and ptq were not counted"):
        judge(Gates(beats=("lambda0",)), report)
    with pytest.raises(RecipeError, match=r"gates\.max_top1_drop: right answers of mean"):
        judge(Gates(max_top1_drop=1.0), report)


def test_gates_need_something_that_is_shipped():
    with pytest.raises(RecipeError, match="none is"):
        judge(Gates(max_stored_bits=4), example_report(selected=None))


@pytest.mark.parametrize(("limit", "passed"), [(7.0, True), (6.99, False), (0.0, False)])
def test_the_drop_is_held_against_its_measured_value(limit, passed):
    """189 of 2700 are 7 points, whatever binary fractions say."""
    report = changed(example_report(), "mean", paired={"float": paired(11, 200)})
    result = only(Gates(max_top1_drop=limit), report)
    assert result.passed is passed
    assert result.wanted == f"at most {limit:g} points below the float receiver"
    assert result.found.startswith("−7.0 points [−8.")


def test_a_gain_is_no_drop():
    report = changed(example_report(), "mean", paired={"float": paired(20, 10)})
    assert only(Gates(max_top1_drop=0.0), report).passed


def test_the_receiver_itself_drops_nothing():
    result = only(Gates(max_top1_drop=0.0), example_report(selected="float"))
    assert result.passed
    assert result.found == "the receiver itself is shipped"


@pytest.mark.parametrize(("limit", "passed"), [(3.0417, True), (3.0416, False), (4, True)])
def test_stored_bits(limit, passed):
    result = only(Gates(max_stored_bits=limit), example_report())
    assert result.passed is passed
    assert (result.wanted, result.found) == (f"at most {limit:g} bits a weight", "3.0417")


def test_the_lower_end_of_the_speed_up_counts():
    report = example_report()
    result = only(Gates(min_speedup=1.2), report)
    assert result.passed
    assert result.wanted == "at least 1.2 times the speed of float, at the interval's lower end"
    assert result.found == "1.29× [1.29, 1.30]"
    assert not only(Gates(min_speedup=1.295), report).passed, "its median is there, its lower end is not"


def test_too_few_samples_miss_the_gate():
    report = example_report()
    few = tuple(
        replace(c, latency=tuple(LatencySamples(1, e.samples_ms[:5]) for e in c.latency)) for c in report.candidates
    )
    result = only(Gates(min_speedup=1.01), replace(report, candidates=few))
    assert not result.passed
    assert result.found == "too few samples for an interval"
    assert not only(Gates(min_speedup=1.01), example_report(batch_sizes=())).passed


def disturbed_report(name: str) -> Report:
    """Half of a candidate's blocks beside other work, which slows it down by a fifth."""
    report = example_report()
    first = report[name].latency[0]
    slow = (*(1.2 * sample for sample in first.samples_ms[:20]), *first.samples_ms[20:])
    return changed(report, name, latency=(replace(first, samples_ms=slow),))


@pytest.mark.parametrize("name", ["mean", "float"])
def test_a_speed_of_a_disturbed_machine_passes_no_gate(name):
    """Two processes that copied memory made 0.81 times into 1.23 times, with an interval from 1.15 on."""
    report = disturbed_report(name)
    result = only(Gates(min_speedup=1.0), report)
    assert not result.passed
    assert result.found.endswith("], but measured on a disturbed machine (drift): measure again")
    busy = replace(report, environment=replace(report.environment, load_average=9.0))
    assert "(busy machine, drift)" in only(Gates(min_speedup=1.0), busy).found
    assert only(Gates(max_stored_bits=4), report).passed


def test_other_candidates_and_a_load_that_samples_do_not_show_disturb_nothing():
    report = disturbed_report("ptq")
    assert only(Gates(min_speedup=1.2), report).passed
    busy = replace(report, environment=replace(report.environment, load_average=9.0))
    assert only(Gates(min_speedup=1.2), busy).passed


def test_a_throttled_gpu_and_a_warm_up_that_did_not_end_disturb():
    report = example_report()
    throttled = replace(report, environment=gpu_report().environment)
    assert "(throttled)" in only(Gates(min_speedup=1.2), throttled).found
    unsettled = changed(report, "mean", latency=(replace(report["mean"].latency[0], settled=False),))
    assert "(warm-up not stable)" in only(Gates(min_speedup=1.2), unsettled).found


@pytest.mark.parametrize(("limit", "passed"), [(1.0, True), (1.1, False)])
def test_the_baseline_has_its_own_speed(limit, passed):
    result = only(Gates(min_speedup=limit), example_report(selected="float"))
    assert (result.passed, result.found) == (passed, "the baseline itself is shipped")
