"""Numbers as text."""

import pytest
from report_example import example_report

from qvec_deploy import formatting
from qvec_deploy.bench.results import Candidate, Patch, PatchDonor
from qvec_deploy.bench.statistics import Estimate
from qvec_deploy.report import candidate_text
from qvec_deploy.tensors import Scheme


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.01234, "0.0123"),
        (0.9996, "1.00"),
        (1.2345, "1.23"),
        (12.345, "12.3"),
        (99.96, "100"),
        (123.4, "123"),
        (1234.5, "1,230"),
        (-1.5, "−1.50"),
    ],
)
def test_three_significant_digits(value, text):
    assert formatting.three(value) == text


def test_short_numbers_lose_their_zeros():
    assert [formatting.short(value) for value in (3.0, 3.0417, 32.0, 0.45, -1.0)] == ["3", "3.04", "32", "0.45", "−1"]


def test_decimals_follow_the_number_of_images():
    assert formatting.percent(0.91234, 2_700) == "91.2"
    assert formatting.percent(0.91234, 50_000) == "91.23"
    assert formatting.percent(0.91234, 40) == "91"
    assert formatting.points(-0.0125, 2_700) == "−1.2"
    assert formatting.points(0.0125, 50_000) == "+1.25"


def test_intervals():
    estimate = Estimate(0.1, -0.05, 0.25)
    assert formatting.percent_interval(Estimate(0.1, 0.05, 0.25), 100) == "[5.0, 25.0]"
    assert formatting.points_interval(estimate, 100) == "[−5.0, +25.0]"
    assert formatting.times(1.934) == "1.93×"
    assert formatting.times_interval(Estimate(2, 1.95, 2.05)) == "[1.95, 2.05]"
    assert formatting.times_interval(Estimate(2, 1.5, 2.5)) == "[1.5, 2.5]"
    assert formatting.times(1.934, Estimate(1.934, 1.5, 2.5)) == "1.9×"


@pytest.mark.parametrize(
    ("value", "error", "texts"),
    [
        (0.0603, 0.0101, ("0.060", "0.010")),
        (1.1874, 0.0712, ("1.187", "0.071")),
        (29.685, 1.78, ("29.7", "1.8")),
        (29.685, 17.8, ("30", "18")),
        (1234.5, 123.0, ("1,234", "123")),
        (-0.5, 0.25, ("−0.50", "0.25")),
        (0.0603, 0.0, ("0.0603", "0")),
        (3e-12, 1e-12, ("3e−12", "1e−12")),
    ],
)
def test_a_number_has_the_decimals_of_its_error(value, error, texts):
    assert formatting.with_error(value, error) == texts


def candidate(scheme: Scheme | None, patch: Patch | None = None, method: str = "rtn") -> Candidate:
    return Candidate("x", "patched", scheme, patch, "onnxruntime-cpu", "int4", 1, 3.0, 4.0, method=method)


@pytest.mark.parametrize(
    ("scheme", "words"),
    [
        (None, "not quantized"),
        (Scheme(3, "channel"), "3 bits, rtn, clip 1, symmetric, 7 levels, one scale per output channel"),
        (Scheme(4, "tensor", clip=0.9), "4 bits, rtn, clip 0.9, symmetric, 16 levels, one scale per tensor"),
        (
            Scheme(2, "group", 64, method="mse"),
            "2 bits, mse, clip searched for least squared error, symmetric, 4 levels, "
            "one scale per group of 64 weights",
        ),
    ],
)
def test_a_grid_in_words(scheme, words):
    assert candidate_text.grid(candidate(scheme)) == words


@pytest.mark.parametrize(
    ("method", "scheme", "words"),
    [
        (
            "gptaq",
            Scheme(3, "channel", method="mse"),
            "3 bits, gptaq on the mse grid, clip searched for least squared error, symmetric, 8 levels, "
            "one scale per output channel",
        ),
        (
            "gptq",
            Scheme(3, "channel"),
            "3 bits, gptq on the rtn grid, clip 1, symmetric, 8 levels, one scale per output channel",
        ),
        (
            "awq",
            Scheme(3, "channel"),
            "3 bits, awq on the rtn grid, clip 1, symmetric, 7 levels, one scale per output channel",
        ),
        (
            "mse",
            Scheme(3, "tensor", method="mse"),
            "3 bits, mse, clip searched for least squared error, symmetric, 8 levels, one scale per tensor",
        ),
    ],
)
def test_a_calibrated_method_is_named_with_its_grid(method, scheme, words):
    assert candidate_text.grid(candidate(scheme, method=method)) == words


@pytest.mark.parametrize(
    ("patch", "words"),
    [
        (None, "none"),
        (Patch(1.0, (PatchDonor("svhn", 1.0),)), "λ = 1, svhn"),
        (Patch(-0.25, (PatchDonor("svhn", 0.5),)), "λ = −0.25, 0.5 × svhn"),
        (Patch(1.0, (PatchDonor("a", 0.5), PatchDonor("b", 0.5))), "λ = 1, 0.5 × a + 0.5 × b"),
        (Patch(1.0, (), "random signs"), "λ = 1, control: random signs"),
        (Patch(1.0, (PatchDonor("a", 1.0),), "shuffled"), "λ = 1, control: shuffled, a"),
    ],
)
def test_a_patch_in_words(patch, words):
    assert candidate_text.mixture(candidate(Scheme(3, "channel"), patch)) == words


def test_stored_and_run_time_bits_stand_side_by_side():
    assert candidate_text.bits(example_report()["mean"]) == "3.04 / 4.04"
