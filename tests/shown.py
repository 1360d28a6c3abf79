"""Reports as they are shown: pages in HTML and Markdown, and the table of the terminal."""

from __future__ import annotations

from unittest.mock import patch

from rich.table import Table

from qvec_deploy.bench.results import Report
from qvec_deploy.bench.summary import rows
from qvec_deploy.report import svg
from qvec_deploy.report.build_report import report_page
from qvec_deploy.report.columns import comparison_table
from qvec_deploy.report.overview import Overview, overview_page
from qvec_deploy.report.page import Page
from qvec_deploy.report.render_html import render_html
from qvec_deploy.report.render_markdown import render_markdown
from qvec_deploy.report.render_terminal import render_candidates


def page_of(shown: Report | Overview) -> Page:
    """The page of one report or of several."""
    return report_page(shown) if isinstance(shown, Report) else overview_page(shown)


def html_of(shown: Report | Overview) -> str:
    """The HTML page."""
    return render_html(page_of(shown))


def markdown_of(shown: Report | Overview) -> str:
    """The Markdown, whose page's figures, which it leaves out, are not drawn to the end."""
    with patch.object(svg, "inline", return_value=""):
        page = page_of(shown)
    return render_markdown(page, "report.html")


def terminal_table(report: Report) -> Table:
    """The comparison on the terminal."""
    return render_candidates(comparison_table(report, rows(report), on_terminal=True), report.title)
