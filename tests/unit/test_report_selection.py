"""What a report says about its selection and gates: sentences, tables, console lines, figures."""

import io
from dataclasses import replace

import pytest
from report_example import SELECTION, example_report, patched_report, selecting_report
from rich.console import Console
from shown import terminal_table

from qvec_deploy.bench.results import GateResult, Report
from qvec_deploy.bench.selection import DonorScore, SelectionCurve, SelectionPoint
from qvec_deploy.report import report_verdict as verdict
from qvec_deploy.report.render_terminal import verdict_lines
from qvec_deploy.report.selection_plot import selection_figures


def selecting(report: Report, **changes: object) -> Report:
    return replace(report, selection=replace(report.selection, **changes))


def printed(report: Report) -> str:
    stream = io.StringIO()
    console = Console(width=120, file=stream)
    console.print(terminal_table(report))
    for line in verdict_lines(report):
        console.print(line, highlight=False, soft_wrap=True)
    return stream.getvalue()


def test_a_patch_is_held_against_lambda_0():
    assert verdict.chosen(patched_report()) == (
        "mean (λ = 1), label-free, on 200 images of eurosat, confirmed on 200 others with the built engines: "
        "divergence 0.0633 ± 0.0077 nats against 0.297 ± 0.018 nats of ptq (λ = 0); ± is one standard error."
    )
    assert verdict.remarks(patched_report()) == ()


def test_lambda_0_is_held_against_the_best_patch():
    text = verdict.chosen(selecting_report())
    assert text.startswith("gptaq (λ = 0), label-free over 3 methods, on 200 images of eurosat, ")
    assert "divergence 0.060 ± 0.010 nats against 0.253 ± 0.031 nats of mean (λ = 1)" in text


def test_scores_of_labels_are_shares_of_wrong_answers():
    report = patched_report(by="labelled")
    text = verdict.chosen(report)
    assert ", by labels, on 200 images" in text
    assert "wrong answers 6.33 ± 0.77 % against 29.7 ± 1.8 % of ptq (λ = 0)" in text
    assert verdict.finalists(report).columns[3] == "Wrong answers, %"
    assert verdict.donors(report).rows[0] == ("svhn", "10.3", "0.471")


def test_what_pytorch_confirmed_is_said_to_be():
    assert "confirmed on 200 others with PyTorch: " in verdict.chosen(selecting(patched_report(), on="PyTorch"))


def test_a_patch_that_was_no_better_is_said_to_be():
    assert verdict.remarks(selecting_report()) == (
        "The patch was not clearly better: lambda 0 was taken, without a patch.",
    )


def test_no_lambda_better_than_0_is_another_finding():
    confirmed = tuple(entry for entry in SELECTION.confirmed if entry.name != "mean")
    report = selecting(selecting_report(), confirmed=confirmed)
    assert verdict.remarks(report) == ("No lambda was better than 0: lambda 0 was taken, without a patch.",)
    assert "against 0.540 ± 0.042 nats of ptq_mse (λ = 0)" in verdict.chosen(report)
    alone = selecting(report, confirmed=(confirmed[1],))
    assert verdict.chosen(alone).endswith("divergence 0.060 ± 0.010 nats; ± is one standard error.")


def test_where_no_vector_was_tried_none_is_spoken_of():
    curves = tuple(replace(curve, points=curve.points[:1]) for curve in SELECTION.curves)
    assert verdict.remarks(selecting(selecting_report(), curves=curves)) == ()


def test_generated_images_are_said_to_be():
    report = patched_report(images="generated/structured")
    assert "on 200 images that the tool generated, confirmed" in verdict.chosen(report)
    assert verdict.remarks(report) == (
        "It was selected and confirmed on generated images only, on none of the receiver's task.",
    )


def test_without_a_selection_nothing_is_said():
    report = example_report()
    assert (verdict.chosen(report), verdict.remarks(report), verdict.missed(report)) == ("", (), "")
    assert (verdict.finalists(report), verdict.donors(report), verdict.gates(report)) == (None, None, None)
    assert verdict_lines(report) == []
    assert selection_figures(report) == ()


def test_the_finalists_and_donors_as_tables():
    listing = verdict.finalists(selecting_report())
    assert listing.title == "Finalists, on 200 images that chose nothing"
    assert listing.shipped == "gptaq"
    assert listing.rows == (
        ("ptq", "rtn", "0", "1.187", "0.071", "–"),
        ("mean", "rtn", "1", "0.253", "0.031", "0.934 ± 0.066"),
        ("gptaq", "gptaq", "0", "0.060", "0.010", "–"),
        ("ptq_mse", "mse", "0", "0.540", "0.042", "–"),
    )
    donors = verdict.donors(selecting_report())
    assert donors.title == "Donors, mixed by ridge regression of the logits"
    assert donors.rows[-1] == ("stanford_cars_long_name", "1.31", "−0.062")
    assert verdict.donors(selecting(selecting_report(), donors=())) is None


def test_donors_are_named_by_file_unless_folders_tell_them_apart():
    def names(*labels: str) -> tuple[str, ...]:
        return verdict.donor_names(replace(SELECTION, donors=tuple(DonorScore(label, 0.1, 0.5) for label in labels)))

    assert names("a/x.safetensors", "hf://org/repo@main/v1.5.safetensors") == ("x", "v1.5")
    assert names("a/x.safetensors", "b/x.safetensors") == ("a/x", "b/x")
    assert names("d/qat.pt - d/fp.pt", "y.safetensors") == ("d/qat.pt - d/fp.pt", "y")


def test_missed_gates_are_counted_and_named():
    assert verdict.missed(selecting_report()) == "misses 1 of 4 gates: max_top1_drop"
    one = replace(example_report(), gates=(GateResult("beats ptq", "more", "less", passed=False),))
    assert verdict.missed(one) == "misses 1 of 1 gate: beats ptq"


def test_the_console_marks_the_selected_row_in_text():
    lines = printed(selecting_report()).splitlines()
    assert [line.split()[0] for line in lines if line.split()[1:2] == ["*"]] == ["gptaq"]
    assert "* in the bundle" in printed(selecting_report())
    assert "*" not in printed(example_report(selected=None))


def test_the_console_says_how_it_was_selected_and_which_gates_are_missed():
    lines = printed(selecting_report()).splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith("selected: "))
    assert lines[start].startswith("selected: gptaq (λ = 0), label-free over 3 methods, on 200 images of eurosat")
    assert lines[start + 1 :] == [
        "note: The patch was not clearly better: lambda 0 was taken, without a patch.",
        "gate beats lambda0: passed; wanted more right answers than lambda0 at level 0.05, "
        "found lambda0 itself is shipped",
        "gate beats ptq: passed; wanted more right answers than ptq at level 0.05, "
        "found 603 images gained, 40 lost of 2,700, p < 0.0001",
        "gate max_top1_drop: MISSED; wanted at most 1 point below the float receiver, found −1.4 points [−2.2, −0.6]",
        "gate max_stored_bits: passed; wanted at most 3.1 bits a weight, found 3.0417",
    ]


def test_brackets_in_names_are_no_markup_on_the_console():
    gate = GateResult("beats [red]x[/red]", "[bold]w", "[i]f", passed=False)
    assert "gate beats [red]x[/red]: MISSED; wanted [bold]w, found [i]f" in printed(
        replace(example_report(), gates=(gate,))
    )


def test_figures_of_a_selection():
    curves, donors = selection_figures(selecting_report())
    assert curves.title == "Score over λ"
    assert "on 200 images of eurosat, which selected" in curves.caption
    for words in ("rtn", "gptaq", "mse", "λ", "divergence, nats"):
        assert f">{words}</text>" in curves.svg
    assert "rtn: 0.251 at the best λ, 1; 1.15 at λ = 0" in curves.svg
    assert "gptaq: 0.0610 at the best λ, 0; mse" in curves.svg, "the best is λ = 0: said once"
    assert donors.title == "Donors"
    for words in ("svhn", "pets", "stanfor…rs_long_name", "weight"):
        assert f">{words}</text>" in donors.svg
    assert "stanford_cars_long_name: 1.31 nats alone, weight -0.062" in donors.svg


def test_the_line_without_a_vector_is_drawn_only_where_it_is_comparable():
    """Donors are tried with rounding to nearest, so lambda 0 of a calibrated method is no mark for them."""
    report = selecting_report()
    assert "Dashed" in selection_figures(report)[1].caption
    calibrated = selecting(report, curves=SELECTION.curves[1:2])
    assert "Dashed" not in selection_figures(calibrated)[1].caption


def test_a_single_donor_has_no_figure():
    assert [figure.title for figure in selection_figures(selecting(selecting_report(), donors=()))] == ["Score over λ"]


@pytest.mark.parametrize("scores", [(0.0, 0.0), (0.0, 0.5), (1e-7, 3.0), (0.4, 0.41)])
@pytest.mark.parametrize("by", ["label_free", "labelled"])
def test_any_range_of_scores_can_be_drawn(scores, by):
    points = tuple(SelectionPoint(lam, score) for lam, score in zip((0.0, 1.0), scores, strict=True))
    donors = tuple(DonorScore(f"d{index}", score, 0.0) for index, score in enumerate(scores))
    curves = tuple(
        SelectionCurve(method, points, 0.0, at_edge=False) for method in ("rtn", "mse", "awq", "gptq", "gptaq")
    )
    for figure in selection_figures(selecting(patched_report(by=by), curves=curves, donors=donors)):
        assert figure.svg.startswith("<svg") and "#0101" not in figure.svg


def test_dollar_signs_of_donors_are_not_mathematics():
    donors = (DonorScore("$x^2$", 0.1, 0.5), DonorScore("<b>", 0.2, 0.5))
    figure = selection_figures(selecting(patched_report(), donors=donors))[1]
    assert ">$x^2$</text>" in figure.svg and "&lt;b&gt;" in figure.svg
