"""The page: complete, self-contained, and safe with hostile names."""

import re
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from urllib.parse import unquote

import pytest
from report_example import example_report, gpu_report, selecting_report
from shown import html_of

from qvec_deploy.bench.summary import numbered_warnings, rows
from qvec_deploy.report.build_report import headline_tiles
from qvec_deploy.report.render_html import unbroken

SECTIONS = (
    "gates",
    "comparison",
    "warnings",
    "trade-offs",
    "accuracy",
    "latency",
    "layers",
    "selection",
    "method",
    "candidates",
    "environment",
)
VOID = {"meta", "wbr", "link", "br", "hr", "img", "input"}


class Page(HTMLParser):
    """Checks nesting, collects ids, references and the texts of headings."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in ("href", "src"):
                self.references.append(value)
            self.references += re.findall(r"url\(([^)]*)\)", value or "")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def report():
    return selecting_report(batch_sizes=(1, 8))


@pytest.fixture(scope="module")
def text(report):
    return html_of(report)


@pytest.fixture(scope="module")
def page(text):
    return Page(text)


@pytest.mark.slow
def test_nothing_is_loaded_from_anywhere(text, page):
    assert "http://" not in text and "https://" not in text
    assert not page.tags & {"script", "link", "img", "iframe", "object", "embed", "base", "form"}
    assert not {name for name in page.attributes if name.startswith("on")}
    assert "@import" not in text
    assert "default-src 'none'" in text


def test_every_reference_is_to_an_element_of_the_page(page):
    assert len(page.ids) == len(set(page.ids))
    assert page.references
    inside = [reference for reference in page.references if not reference.startswith("data:text/csv")]
    assert all(reference.startswith("#") and reference[1:] in page.ids for reference in inside)
    assert len(page.references) - len(inside) == 9, "one CSV for a figure"


def test_it_has_every_section(page):
    assert set(SECTIONS) <= set(page.ids)


def test_it_has_every_figure_as_text(text):
    assert text.count('<svg role="img"') == 9
    for words in (
        "mean confidence, %",
        "ms a run, all blocks",
        "median host latency, ms",
        "stored size, MB",
        "attn.qkv",
        "λ",
        "divergence, nats",
        "weight",
    ):
        assert f">{words}</text>" in text


def test_figures_follow_the_theme(text):
    svg = "".join(re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL))
    assert not re.search(r"#[0-9a-f]{6}\b", svg), "every colour is a variable of the page"
    for variable in set(re.findall(r"var\((--[a-z]+)\)", text)):
        light, dark = text.split("@media (prefers-color-scheme: dark)", 1)
        assert f"{variable}:" in light and f"{variable}:" in dark


@pytest.mark.slow
def test_the_same_report_is_the_same_page(report, text):
    assert html_of(report) == text


def test_hostile_text_is_escaped():
    report = example_report()
    name = "<script>alert(1)</script>\"'&"
    candidates = tuple(replace(c, name=name) if c.name == "one_donor" else c for c in report.candidates)
    hostile = replace(report, candidates=candidates, title="</title><script>", dataset="<img src=x onerror=y>")
    text = html_of(hostile)
    parsed = Page(text)
    assert "script" not in parsed.tags and "img" not in parsed.tags
    assert "onerror" not in parsed.attributes
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text


def test_sections_without_data_are_left_out(report):
    nothing = {"accuracy": None, "paired": {}, "latency": (), "footprint": None, "layer_times": (), "predictions": ()}
    bare = replace(report["float"], **nothing)
    text = html_of(replace(report, candidates=(bare,), selected=None, warnings=(), selection=None, gates=()))
    assert set(SECTIONS) & set(Page(text).ids) == {"comparison", "method", "candidates", "environment"}
    assert "float (86.7\u00a0MB) was measured." in text


def test_the_tiles_are_the_selected_candidates_numbers(report):
    shown = {tile.term: tile for tile in headline_tiles(report, rows(report))}
    assert list(shown) == ["Top-1 accuracy", "Stored size", "Latency", "Peak memory"]
    assert (shown["Top-1 accuracy"].value, shown["Top-1 accuracy"].unit) == ("95.3", "%")
    assert shown["Top-1 accuracy"].notes[1] == "+20.9 points to ptq [+19.2, +22.5]"
    assert shown["Stored size"].notes == ("3.04 bits per quantized weight", "10 % of float, 86.7 MB")
    assert shown["Latency"].notes[1].endswith("over float")
    assert shown["Peak memory"].notes[0] == "of which loading and running add 43.0 MB"


def test_a_tile_says_when_a_speed_up_is_unclear(report):
    same = replace(report["mean"], latency=report["float"].latency)
    changed = replace(
        report, candidates=(report["float"], same), selected="mean", warnings=(), selection=None, gates=()
    )
    latency = headline_tiles(changed, rows(changed))[2]
    assert latency.notes[1] == "1.00× [1.00, 1.00] over float: no clear difference"


def test_a_tile_says_that_the_machine_was_disturbed(report):
    shown = {tile.term: tile for tile in headline_tiles(report, rows(report))}
    assert "measured on a disturbed machine" not in shown["Latency"].notes
    throttled = replace(report, environment=gpu_report().environment)
    shown = {tile.term: tile for tile in headline_tiles(throttled, rows(throttled))}
    assert shown["Latency"].notes[-1] == "measured on a disturbed machine"


def test_numbers_keep_their_units_and_intervals_their_ends_on_one_line():
    assert unbroken("9.34 ms in 8.57 MB [1.2, 3.4] to go") == "9.34\u00a0ms in 8.57\u00a0MB [1.2,\u00a03.4] to go"
    assert unbroken("0.06 ± 0.01 nats (λ = 1)") == "0.06\u00a0±\u00a00.01\u00a0nats (λ\u00a0=\u00a01)"


def test_a_missed_gate_stands_out(text):
    assert text.count('<strong class="bad">MISSED</strong>') == 1
    assert "gptaq misses 1 of 4 gates: max_top1_drop (wanted" in text
    assert '<p class="chosen important">The patch was not clearly better: lambda 0 was taken' in text


def test_names_break_after_underscores_and_stay_escaped():
    from qvec_deploy.report.render_html import breakable

    assert str(breakable("a_b")) == "a_<wbr>b"
    assert str(breakable("<i>_x")) == "&lt;i&gt;_<wbr>x"


def test_a_figure_downloads_its_numbers(report, text):
    (found,) = re.findall(r'<a href="data:text/csv;charset=utf-8,([^"]*)" download="samples-8.csv">', text)
    lines = unquote(unescape(found)).split("\r\n")
    assert lines[0] == 'candidate,block,"host latency, ms"'
    assert lines[1] == f"float,0,{report['float'].latency[1].samples_ms[0]}"
    assert len(lines) == 1 + 9 * 40 + 1


def test_parts_of_a_run_and_the_gpu_are_shown_where_there_are_some():
    text = html_of(gpu_report())
    for words in (
        "GPU compute, ms",
        "Parts of a run",
        "NVIDIA L4",
        "1950 MHz of 2040 MHz, memory 6251 MHz, not locked",
    ):
        assert words in text
    assert "61 W of 72 W" in text and "power cap" in text
    assert "Enqueue" in text and "<dt>H2D</dt>" in text


def test_terms_of_parts_are_left_out_without_parts(text):
    assert "<dt>Host latency</dt>" in text and "<dt>H2D</dt>" not in text


def test_the_answer_is_on_top(text):
    assert re.search(r'<p class="answer"><b class="missed">Do not ship:</b> gptaq misses 1 of 4 gates', text)


@pytest.mark.parametrize(("selected", "said"), [("mean", "You decide:"), (None, None)])
def test_what_no_gate_judged_is_never_said_to_ship(selected, said):
    text = html_of(example_report(selected=selected))
    assert (said is None) == ('class="answer"' not in text)
    assert not re.search(r"ships|within|passes", unescape(re.sub(r"<style>.*?</style>|<[^>]+>", "", text, flags=re.S)))


def test_a_doubt_is_one_line_with_its_count(text, report):
    summaries = re.findall(r'<li id="warning-\d+">\n<details>\n<summary>(.*?)</summary>', text)
    counts = [len(entry.details) for entry in numbered_warnings(report)]
    assert [int(re.search(r"</strong> \((\d+)\)\.", line)[1]) for line in summaries] == counts
    assert f"{len(counts)} doubts about these numbers:" in text
