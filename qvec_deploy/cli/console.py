"""Rich's console, in which data is neither markup nor an instruction to the terminal."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TextIO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import ProgressColumn, Task
from rich.segment import Segment
from rich.text import Text

from qvec_deploy.visible import visible


class VisibleConsole(Console):
    """Shows every string as one line, as it is."""

    def __init__(self, file: TextIO, **settings: Any) -> None:
        super().__init__(file=file, highlight=False, markup=False, emoji=False, **settings)

    def render_str(self, text: str, **settings: Any) -> Text:
        """A string as it is shown, before anybody asks how wide it is."""
        return super().render_str(visible(text), **{**settings, "markup": False, "emoji": False, "highlight": False})

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """What is written; whatever made a text, its characters are shown, and it is no link."""
        for segment in super().render(renderable, options):
            if segment.control:
                yield segment
            else:
                style = segment.style.update_link(None) if segment.style and segment.style.link else segment.style
                yield Segment(visible(segment.text, keep="\n"), style)


class DescriptionColumn(ProgressColumn):
    """What a bar is about; the task's field `style` is its style."""

    def render(self, task: Task) -> Text:
        """The description in one line."""
        return styled(task.description, task.fields.get("style", ""))


def styled(text: str, style: str = "") -> Text:
    """A line with a style."""
    return Text(visible(text), style)
