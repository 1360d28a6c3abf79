"""What engines answered, predicted times, MLPerf's metrics, and everything as CSV."""

import csv
import io
from dataclasses import replace

import numpy as np
import pytest
from report_example import IMAGES, example_report, gpu_report, selecting_report

from qvec_deploy.bench.accuracy import Accuracy, pair
from qvec_deploy.bench.evaluation import CHANGES, answers_of
from qvec_deploy.bench.latency import LatencySamples
from qvec_deploy.bench.results import AnswerCounts, ClassCount, Report
from qvec_deploy.bench.summary import rows
from qvec_deploy.formatting import p_value
from qvec_deploy.report import accuracy_section as accuracy
from qvec_deploy.report import prose
from qvec_deploy.report import timing_section as timing
from qvec_deploy.report.build_report import environment_facts
from qvec_deploy.report.csv_text import data_uri, to_csv
from qvec_deploy.report.render_csv import candidates_csv, samples_csv


@pytest.fixture(scope="module")
def report():
    return selecting_report(batch_sizes=(1, 8))


def changed(report: Report, name: str, **changes: object) -> Report:
    candidates = tuple(replace(c, **changes) if c.name == name else c for c in report.candidates)
    return replace(report, candidates=candidates, gates=())


def read(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_answers_of_every_candidate_beside_the_number_of_images(report):
    listing = accuracy.answers(report, rows(report))
    assert listing.shipped == "gptaq"
    by_name = {cells[0]: cells[1:] for cells in listing.rows}
    assert by_name["gptaq"][0] == "95.3 [94.5, 96.1]"
    assert by_name["gptaq"][3:] == ("94.2 [93.3, 95.0]", "603 / 40", "< 0.0001")
    assert by_name["ptq"][-2:] == ("–", "–"), "not compared with itself"
    assert by_name["float"][3] == "–", "its own answers"
    assert listing.note.startswith("n = 2,700 images")


def test_what_was_not_counted_has_no_column(report):
    bare = tuple(
        replace(c, accuracy=replace(c.accuracy, top5=None, bins=())) if c.accuracy else c for c in report.candidates
    )
    listing = accuracy.answers(replace(report, candidates=bare), rows(replace(report, candidates=bare)))
    assert listing.columns == (
        "Candidate",
        "Top-1, %",
        "Same answer as float, %",
        "Gained / lost to ptq",
        "McNemar's p",
    )
    nothing = tuple(replace(c, accuracy=None, paired={}) for c in report.candidates)
    nothing = replace(report, candidates=nothing, gates=())
    assert accuracy.answers(nothing, rows(nothing)) is None
    assert (accuracy.by_class(nothing), accuracy.changes(nothing)) == (None, None)


def test_classes_are_in_order_and_beside_the_receivers(report):
    listing = accuracy.by_class(report)
    assert [cells[0] for cells in listing.rows] == list(report.class_names)
    assert listing.rows[6] == ("PermanentCrop", "270", "236", "87.4", "90.7", "−3.3")
    assert "2,700 images" in listing.note


def test_of_many_classes_those_that_changed_most_are_shown(report):
    def spread(drop: int) -> AnswerCounts:
        classes = tuple(ClassCount(label, 90 - drop * (label % 7), 90) for label in range(30))
        return AnswerCounts(sum(entry.correct for entry in classes), IMAGES, classes=classes)

    report = changed(report, "gptaq", accuracy=spread(2))
    report = replace(changed(report, "float", accuracy=spread(0)), class_names=())
    listing = accuracy.by_class(report)
    assert len(listing.rows) == accuracy.MOST_CLASSES
    assert listing.title == "By class, the 20 that changed most of 30"
    drops = [cells[-1] for cells in listing.rows]
    assert drops[:4] == ["−13"] * 4 and "+0" not in drops
    assert listing.rows[0][0] == "class 6"


def test_a_class_that_the_receiver_never_saw_and_a_receiver_alone(report):
    float_answers = replace(report["float"].accuracy, classes=())
    listing = accuracy.by_class(changed(report, "float", accuracy=float_answers))
    assert listing.columns == ("Class", "Images", "Right", "gptaq, %")
    alone = replace(report, candidates=(report["float"],), selected="float", selection=None, gates=(), warnings=())
    assert accuracy.by_class(alone).columns == ("Class", "Images", "Right", "float, %")
    some = replace(report["float"].accuracy, classes=report["float"].accuracy.classes[:-1])
    assert accuracy.by_class(changed(report, "float", accuracy=some)).rows[-1][-2:] == ("–", "–")


def test_changes_are_named_and_counted(report):
    listing = accuracy.changes(report)
    assert listing.rows[0] == ("PermanentCrop → AnnualCrop", "61", "9", "47", "5")
    assert "156 changed answers" in listing.note and "2,700 images" in listing.note
    assert listing.note.startswith("Changes of the float receiver's answer")


def test_changes_beyond_those_that_a_report_keeps_are_counted(report):
    labels = np.arange(IMAGES, dtype=np.int32) % 60
    now = np.where(np.arange(IMAGES) % 3 == 0, (labels + 1) % 60, labels).astype(np.int32)  # 900 changes of 20 kinds
    now[1:80:3] = 59 - labels[1:80:3]
    full, engine = (Accuracy(labels, each, None, np.ones(IMAGES, np.float32)) for each in (labels, now))
    answered = {name: answers_of(each, full) for name, each in (("float", full), ("gptaq", engine))}
    paired = {**report["gptaq"].paired, "float": pair(now, labels, labels)}
    report = changed(changed(report, "float", accuracy=answered["float"]), "gptaq", accuracy=answered["gptaq"])
    listing = accuracy.changes(changed(report, "gptaq", paired=paired))
    assert len(listing.rows) == CHANGES
    different = int((now != labels).sum())
    assert different > sum(int(row[1]) for row in listing.rows)
    assert listing.note.startswith("The 20 most frequent changes") and f"{different} changed answers" in listing.note
    assert accuracy.changes(changed(report, "gptaq", paired={})) is None


@pytest.mark.parametrize(("chance", "text"), [(1.0, "1"), (0.049, "0.049"), (0.00012, "0.00012"), (3e-9, "< 0.0001")])
def test_p_values(chance, text):
    assert p_value(chance) == text


def test_predictions_of_engines_alike_are_shown_once_with_what_ships(report):
    listing = timing.predicted(report, rows(report))
    assert [cells[:2] for cells in listing.rows] == [("float", "1"), ("float", "8"), ("gptaq", "1"), ("gptaq", "8")]
    assert listing.rows[0][2:] == ("7.62", "11.8", "1.55×", "1 of 49")
    assert "AMD EPYC 9575F, 4 threads, measured: 38.4 GB/s" in listing.note
    assert timing.predicted(replace(report, device=None), rows(report)) is None


def test_a_prediction_without_a_measurement_has_no_ratio(report):
    bare = tuple(replace(c, latency=()) for c in report.candidates)
    one = replace(report, candidates=bare, gates=())
    assert {cells[3:5] for cells in timing.predicted(one, rows(one)).rows} == {("–", "–")}


def test_the_metrics_of_scenarios_are_not_called_results(report):
    listing = timing.scenarios(report)
    assert [cells[:4] for cells in listing.rows] == [
        ("float", "single stream", "1", "p90 latency"),
        ("float", "offline", "8", "throughput"),
        ("gptaq", "single stream", "1", "p90 latency"),
        ("gptaq", "offline", "8", "throughput"),
    ]
    assert "the rules ask for" in listing.rows[0][-1] and "no MLPerf results" in listing.note
    assert timing.scenarios(example_report(batch_sizes=())) is None


def test_parts_of_a_run_are_medians():
    listing = timing.stages(gpu_report())
    assert [cells[:2] for cells in listing.rows] == [("float", "1"), ("float", "8"), ("mean", "1"), ("mean", "8")]
    assert listing.rows[0][2:] == ("0.236", "0.590", "10.4", "0.118", "11.8")
    assert timing.stages(example_report()) is None


def test_p99_is_shown_where_enough_samples_support_it():
    report = example_report()
    many = tuple(replace(c, latency=(LatencySamples(1, c.latency[0].samples_ms * 10),)) for c in report.candidates)
    assert rows(report)[0].latency[0].p99_ms is None and rows(report)[0].latency[0].missing_p99 == 328
    entry = rows(replace(report, candidates=many))[0].latency[0]
    assert entry.missing_p99 == 0 and entry.p90_ms < entry.p99_ms <= max(many[0].latency[0].samples_ms)


def test_the_warm_up_that_was_run_is_told_and_not_the_one_that_was_asked_for():
    report = example_report()
    assert "after 14 blocks of warm-up" in dict(prose.method(report, rows(report)))["Latency"]


def test_the_headline_names_what_is_clearly_better_in_no_more_room():
    report = example_report(selected="ptq_mse")
    better = {**report["ptq_mse"].paired, "mean": replace(report["mean"].paired["ptq"], gained=40, lost=132)}
    report = changed(report, "ptq_mse", paired=better)
    assert "mean is 3.4 points above it in no more room." in prose.headline(report, rows(report))
    larger = changed(report, "mean", stored_bytes=9_000_000)
    assert "no more room" not in prose.headline(larger, rows(larger))
    unclear = changed(report, "ptq_mse", paired={"mean": replace(better["mean"], gained=40, lost=55)})
    assert "no more room" not in prose.headline(unclear, rows(unclear))


def test_the_surroundings_of_a_measurement():
    facts = dict(environment_facts(gpu_report()))
    assert facts["Affinity"] == "0, 1, 2, 3"
    assert facts["Load average"] == "0.42 before measuring, 3.87 after"
    assert facts["Frequency"] == "3280 MHz right after measuring"
    assert facts["GPU"] == "NVIDIA L4, 24.0 GiB, driver 570.86"
    report = gpu_report()
    blind = replace(report.environment.gpu, sm_clock_mhz=None, memory_clock_mhz=None, power_w=None, throttling=())
    facts = dict(environment_facts(replace(report, environment=replace(report.environment, gpu=blind))))
    assert facts["GPU clocks"] == "not locked" and facts["GPU throttling"] == "none was seen"
    assert "GPU power" not in facts


def test_every_candidate_and_batch_size_is_a_line_of_the_table(report):
    lines = read(candidates_csv({"edge": report}))
    assert [(line["candidate"], line["batch_size"]) for line in lines] == [
        (candidate.name, str(batch)) for candidate in report.candidates for batch in (1, 8)
    ]
    assert {line["report"] for line in lines} == {"edge"}
    shown = next(row for row in rows(report) if row.selected)
    line = next(line for line in lines if line["selected"] == "True" and line["batch_size"] == "8")
    assert float(line["median_ms"]) == shown.latency[1].median_ms
    assert float(line["speed_up_low"]) == shown.latency[1].speed_up.low
    assert float(line["top1"]) == shown.top1.value
    assert float(line["mcnemar_p_plain"]) == shown.p_values["ptq"]
    assert (line["p99_ms"], line["control"]) == ("", "")
    assert float(line["predicted_ms"]) == report["gptaq"].predictions[1].ms


def test_what_was_never_timed_is_a_line_too():
    lines = read(candidates_csv({"a": example_report(batch_sizes=()), "b": gpu_report()}))
    assert [(line["report"], line["batch_size"]) for line in lines[7:10]] == [("a", ""), ("b", "1"), ("b", "8")]
    assert lines[8]["images"] == ""


def test_every_sample_is_a_line_with_its_parts():
    report = gpu_report()
    lines = read(samples_csv({"gpu": report, "cpu": example_report()}))
    assert len(lines) == 2 * 2 * 40 + 8 * 40
    entry = report["float"].latency[1]
    assert [float(line["host_latency_ms"]) for line in lines[40:80]] == list(entry.samples_ms)
    assert [float(line["compute_ms"]) for line in lines[40:80]] == list(entry.stages.compute_ms)
    assert lines[-1]["compute_ms"] == ""
    assert "compute_ms" not in read(samples_csv({"cpu": example_report()}))[0]


@pytest.mark.parametrize("name", ["=1+1", "+x", "-x", "@x", "\tx", " =1+1", "＝1+1"])
def test_a_name_is_no_formula(name):
    assert to_csv(("a", "b"), [(name, -1.5)]) == f"a,b\r\n'{name},-1.5\r\n"


def test_cells_with_commas_quotes_and_lines_survive():
    text = to_csv(("a",), [('x, "y"\nz',), (None,)])
    assert list(csv.reader(io.StringIO(text, newline=""))) == [["a"], ['x, "y"\nz'], [""]]


def test_an_address_of_numbers_holds_no_markup():
    assert data_uri("a,\"<b>&'\r\n") == "data:text/csv;charset=utf-8,a,%22%3Cb%3E%26%27%0D%0A"
