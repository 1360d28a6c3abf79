"""A page -> HTML: one file without script or network, light and dark, phone and paper."""

from __future__ import annotations

import re
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING

from qvec_deploy.report.page import VERDICTS, Page, groups
from qvec_deploy.visible import visible

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

LONG = 12  # rows from which a folded table starts closed


def render_html(page: Page) -> str:
    """One page. Every text is escaped; figures are SVG that this package drew."""
    template = page_environment().get_template("page.html")
    return template.render(page=page, css=resource("page.css"), long=LONG, groups=groups, verdicts=VERDICTS)


@cache
def page_environment() -> Environment:
    """The templates as pages need them: every text through `html_text`, strict, with filters of numbers and names."""
    import jinja2

    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=jinja2.FunctionLoader(resource),
        finalize=lambda value: html_text(value) if isinstance(value, str) else value,
    )
    environment.filters["unbroken"] = unbroken
    environment.filters["breakable"] = breakable
    return environment


def html_text(text: str) -> Markup:
    """Text that a page shows as it is; what is markup already stays."""
    from markupsafe import Markup, escape

    return text if isinstance(text, Markup) else escape(visible(text, keep="\n"))


def unbroken(text: str) -> str:
    """No line break inside an interval, between a number and its unit, or around an error and a lambda's value."""
    text = re.sub(r"\[[^\]]*\]", lambda interval: interval.group().replace(" ", "\u00a0"), text)
    text = re.sub(r"(?<=\d) ± (?=\d)|(?<=[λp]) = (?=\S)", lambda sign: sign.group().replace(" ", "\u00a0"), text)
    return re.sub(r"(?<=\d) (?=(?:%|ms|MB|s|nats|points|times)(?!\w))", "\u00a0", text)


def breakable(name: str) -> Markup:
    """A name that may break after its underscores, in a narrow cell, rather than anywhere."""
    from markupsafe import Markup

    return Markup("_<wbr>").join(map(html_text, name.split("_")))


def resource(name: str) -> str:
    """The text of a template or style sheet."""
    return resources.files("qvec_deploy.report").joinpath(name).read_text(encoding="utf-8")
