"""What stands on the first screen: words, classes that pay, the file, and which images were looked at."""

from __future__ import annotations

from dataclasses import replace

import pytest
from report_example import example_report, selecting_report
from shown import markdown_of, page_of

from qvec_deploy.bench.summary import dataset_named, rows
from qvec_deploy.quantize.methods import METHODS
from qvec_deploy.report.accuracy_section import class_costs
from qvec_deploy.report.first_screen import file_and_commands, words
from qvec_deploy.report.page import Commands


def test_the_words_that_occur_are_explained() -> None:
    said = dict(words(selecting_report()).entries)
    assert list(said) == ["float", "ptq", "rtn", "mse", "gptaq", "patch", "λ, lambda", "control"]
    bare = replace(example_report(selected=None), candidates=example_report().candidates[:1])
    assert list(dict(words(bare).entries)) == ["float"]


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_every_method_says_what_it_does(method) -> None:
    assert method.meaning.endswith(".")


def test_a_candidate_says_what_it_is_under_its_name() -> None:
    sections = {section.name: section for section in page_of(example_report()).sections}
    comparison, _ = sections["comparison"].blocks
    assert [entry.what for entry in comparison.candidates][:5] == [
        "not quantized",
        "rtn, as int4",
        "mse, as int4",
        "rtn + patch, λ = 1, as int4",
        "rtn + patch, λ = 1, as int4",
    ]
    assert comparison.candidates[5].what == "rtn + control, λ = 1, as int4"


def test_the_classes_that_pay_are_named() -> None:
    (said,) = class_costs(selecting_report())
    assert said == (
        "The bits are paid for by “PermanentCrop” (right 245 → 236 of 270), “HerbaceousVegetation” (right 252 → 244 of "
        "270), “Highway” (right 256 → 249 of 270); 5 other classes lose less."
    )


def test_where_no_class_pays_that_is_said() -> None:
    report = selecting_report()
    same = replace(report["gptaq"], accuracy=report["float"].accuracy)
    report = replace(report, candidates=(*report.candidates[:-1], same))
    assert class_costs(report) == ("No class has fewer right answers than with float.",)
    assert class_costs(replace(report, candidates=report.candidates, selected="float", selection=None, gates=())) == ()


def test_the_file_and_how_it_is_run() -> None:
    facts, commands = file_and_commands(example_report())
    assert facts.title == "The file, if you ship it" and "model.onnx" in facts.entries[0][1]
    assert isinstance(commands, Commands)
    assert any(line.startswith("qvec-deploy release") for line in commands.lines)
    facts, commands = file_and_commands(selecting_report())
    assert facts.title == "The file, which should not be shipped"
    assert not any(line.startswith("qvec-deploy release") for line in commands.lines)
    assert file_and_commands(example_report(selected=None)) == ()


def test_an_engine_that_is_compiled_is_compiled_first() -> None:
    report = example_report()
    made = tuple(replace(candidate, runtime="tensorrt") for candidate in report.candidates)
    _, commands = file_and_commands(replace(report, candidates=made))
    assert "qvec-deploy compile BUNDLE" in commands.lines


def test_images_are_named_by_folder_count_and_hash() -> None:
    report = replace(example_report(), dataset="folder", images_folder="fashion", images_sha256="0123456789abcdef" * 4)
    assert dataset_named(report) == "fashion (folder), split test, sha256 0123456789ab"
    assert "2,700 images of fashion (folder), split test, sha256 0123456789ab" in markdown_of(report)
    assert dataset_named(example_report()) == "eurosat, split test"


def test_a_latency_has_the_digits_that_its_interval_supports() -> None:
    report = example_report()
    assert rows(report)[0].first_latency.shown(11.8123) == "11.8"
    first = report["float"].latency[0]
    noisy = replace(first, samples_ms=tuple(ms * (1 + 0.9 * (i % 2)) for i, ms in enumerate(first.samples_ms)))
    candidates = (replace(report["float"], latency=(noisy,)), *report.candidates[1:])
    assert rows(replace(report, candidates=candidates))[0].first_latency.shown(11.8123) == "12"
