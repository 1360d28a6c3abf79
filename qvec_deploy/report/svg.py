"""A matplotlib figure -> SVG that lives inside a page: its fonts, its colours in light and dark, no foreign ids."""

from __future__ import annotations

import contextlib
import functools
import io
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, ClassVar, ParamSpec

from qvec_deploy.report.csv_text import data_uri, to_csv
from qvec_deploy.visible import visible

P = ParamSpec("P")

# Colours that stand for the page's CSS variables: matplotlib draws with them, `inline` puts the variables in.
COLORS = {
    "ink": "#010101",
    "muted": "#010102",
    "line": "#010103",
    "surface": "#010104",
    "float": "#010105",
    "ptq": "#010106",
    "patched": "#010107",
    "variant": "#010108",
}

WIDTH = 360.0  # figure units; a phone shows them about 1:1, a desktop a quarter larger
CHARACTER = 5.6  # units a character takes at font size 9, on the safe side
LABEL_LENGTH = 20

STYLE = {
    "svg.fonttype": "none",  # text stays text: selectable, in the page's font
    "svg.hashsalt": "qvec-deploy",  # ids depend on the drawing alone
    "font.family": "DejaVu Sans",  # comes with matplotlib, so layout is the same everywhere; wider than most
    "font.size": 10,
    "text.color": COLORS["ink"],
    "text.parse_math": False,  # a name with two dollar signs is a name
    "axes.edgecolor": COLORS["line"],
    "axes.labelcolor": COLORS["muted"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "axes.grid": True,
    "grid.color": COLORS["line"],
    "grid.linewidth": 0.5,
    "xtick.color": COLORS["line"],
    "ytick.color": COLORS["line"],
    "xtick.labelcolor": COLORS["muted"],
    "ytick.labelcolor": COLORS["muted"],
    "figure.dpi": 72,  # one figure unit is one SVG unit
}


@dataclass(frozen=True)
class Figure:
    """A figure for the page.

    Attributes:
        name: Unique in the page: its anchor, and the name of the file of its numbers.
        svg: The `<svg>` element; None where matplotlib is not installed, as on devices.
        samples: The numbers that it draws, a tuple per line.
    """

    kind: ClassVar[str] = "figure"
    name: str
    title: str
    caption: str
    svg: str | None
    columns: tuple[str, ...]
    samples: tuple[tuple[str | float | int | bool | None, ...], ...]

    @property
    def csv(self) -> str:
        """Its numbers as a `data:` address."""
        return data_uri(to_csv(self.columns, self.samples))


def drawn(draw: Callable[P, str]) -> Callable[P, str | None]:
    """Of a function that draws with matplotlib, one that gives None where that is not installed."""

    @functools.wraps(draw)
    def draw_if_possible(*args: P.args, **kwargs: P.kwargs) -> str | None:
        try:
            import matplotlib  # noqa: F401 - whether it is there
        except ImportError:
            return None
        return draw(*args, **kwargs)

    return draw_if_possible


@contextlib.contextmanager
def page_style() -> Iterator[None]:
    """Draw and save figures inside this."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        yield


@dataclass(frozen=True)
class Drawing:
    """A figure of the page's width while it is drawn; lengths are figure units."""

    canvas: Any
    height: float

    def axes(self, left: float, right: float, top: float, bottom: float) -> Any:
        """Axes with so much room on each of their sides."""
        width, height = WIDTH - left - right, self.height - top - bottom
        return self.canvas.add_axes((left / WIDTH, bottom / self.height, width / WIDTH, height / self.height))

    def svg(self, name: str, description: str) -> str:
        """See `inline`."""
        return inline(self.canvas, name, description)


@contextlib.contextmanager
def drawing(height: float) -> Iterator[Drawing]:
    """Draw and save one figure inside this."""
    from matplotlib.figure import Figure as Canvas

    with page_style():
        yield Drawing(Canvas(figsize=(WIDTH / 72, height / 72)), height)


def legend(axes: Any, above: float = 1.02, columns: int = 2, **settings: Any) -> None:
    """What is what, above the axes: `above` is a multiple of their height."""
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0, above),
        ncols=columns,
        frameon=False,
        borderpad=0,
        borderaxespad=0,
        **settings,
    )


def name_rows(axes: Any, names: Sequence[str]) -> None:
    """A row for each name, the first on top."""
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_yticks(range(len(names)), map(visible, names))
    axes.tick_params(labelsize=9, length=0, axis="y")


def name_columns(axes: Any, names: Sequence[str], **settings: Any) -> None:
    """A column for each name."""
    axes.set_xticks(range(len(names)), map(visible, names), **settings)


def scale_logarithmic(axes: Any, axis: str, low: float, high: float) -> None:
    """The `x` or `y` axis logarithmic, with plain numbers at 1, 2 and 5."""
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    axes.set(**{f"{axis}scale": "log", f"{axis}lim": (low, high)})
    drawn = axes.xaxis if axis == "x" else axes.yaxis
    drawn.set_major_locator(LogLocator(subs=(1, 2, 5)))
    drawn.set_major_formatter(StrMethodFormatter("{x:g}"))
    drawn.set_minor_locator(NullLocator())


def inline(figure: Any, name: str, description: str) -> str:
    """The figure as an `<svg>` element for an HTML page, with everything in its texts visible."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_text(visible(text.get_text(), keep="\n"))
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<style.*?</style>|<metadata>.*?</metadata>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = (
        re.sub(r' (?:xmlns(?::xlink)?|version|width|height)="[^"]*"', "", text[: text.index(">")])
        + text[text.index(">") :]
    )
    text = text.replace("xlink:href", "href")
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    text = re.sub(r"'DejaVu Sans'(?:, [^;\"]*)?", "inherit", text)
    for variable, color in COLORS.items():
        text = text.replace(color, f"var(--{variable})")
    label = escape(visible(description), quote=True)
    return text.replace("<svg", f'<svg role="img" aria-label="{label}"', 1).strip()


def shorten(name: str) -> str:
    """A name that fits beside a plot, with its beginning and more of its end; the tables have it in full."""
    name = visible(name)
    if len(name) <= LABEL_LENGTH:
        return name
    end = LABEL_LENGTH * 3 // 5
    return f"{name[: LABEL_LENGTH - 1 - end]}…{name[-end:]}"


def labels(names: Sequence[str]) -> list[str]:
    """Names of one figure that fit beside it: words that all of them begin with are left out where one is too long."""
    if len(names) > 1 and max(map(len, names)) > LABEL_LENGTH:
        ends = list(zip(min(names), max(names), strict=False))  # what these two share, all share
        same = next((index for index, (one, other) in enumerate(ends) if one != other), len(ends))
        cut = max(names[0].rfind(mark, 0, same) for mark in "-_ ") + 1
        names = [f"…{name[cut:]}" for name in names] if cut > 1 else names
    return [shorten(name) for name in names]
