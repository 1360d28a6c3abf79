"""The door to the terminal: what goes through it is shown and not obeyed, on any terminal and in any encoding."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hostile_text import HOSTILE, hidden
from rich.console import Console
from rich.progress import Progress
from rich.text import Text

from qvec_deploy.cli import commands
from qvec_deploy.cli.console import DescriptionColumn, VisibleConsole, styled
from qvec_deploy.cli.terminal import echo_document, echo_json, print_table, say, say_error
from qvec_deploy.cli.terminal_progress import TerminalProgress
from qvec_deploy.report.page import Table

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("text", HOSTILE)
def test_a_line_is_one_line(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    say(text, "next")
    printed = capsys.readouterr().out
    assert hidden(printed) == set() and len(printed.split("\n")) == 3


def test_lines_of_a_message_cannot_pass_for_ours(capsys: pytest.CaptureFixture[str]) -> None:
    say_error("no file a\nhint: run \x1b[8mx\nok  files", "look\u202e")
    assert capsys.readouterr().err.splitlines() == [
        "error: no file a",
        "  hint: run \\x1b[8mx",
        "  ok  files",
        "hint: look\\u202e",
    ]


@pytest.mark.parametrize("text", HOSTILE)
def test_a_document_is_json_in_ascii(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    echo_json({text: [text, {"a": text}]})
    printed = capsys.readouterr().out
    assert printed.isascii() and hidden(printed) == set()
    assert json.loads(printed) == {text: [text, {"a": text}]}
    echo_document(json.dumps({"a": text.replace("\ud800", "")}, ensure_ascii=False))
    assert capsys.readouterr().out.isascii()


def test_a_number_that_is_none_is_no_json() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        echo_json({"a": float("nan")})


def _written(show: Callable[[Console], object]) -> str:
    stream = io.StringIO()
    show(VisibleConsole(stream, width=200, force_terminal=True, color_system=None))
    return stream.getvalue()


@pytest.mark.parametrize("text", HOSTILE)
def test_tables_and_styles_show_text_as_it_is(text: str) -> None:
    table = Table(text, ("Name", text), ((text, text), ("a", "b")), "ll", note=text)
    for show in (
        lambda console: console.print(text, style="bold"),
        lambda console: console.print(styled(text)),
        lambda console: print_table(table, console, {text: "yellow"}),
    ):
        assert hidden(_written(show)) == set()
    assert "[red]markup[/] [/]" in _written(lambda console: console.print("[red]markup[/] [/]"))


def test_a_text_of_somebody_else_is_shown_too() -> None:
    found = _written(lambda console: console.print(Text.from_ansi("a\x1b]8;;http://evil.example\x1b\\link\u202e")))
    assert hidden(found) == set() and "link\\u202e" in found


@pytest.mark.parametrize("text", HOSTILE)
def test_progress_shows_what_it_is_given(text: str) -> None:
    def show(console: Console) -> None:
        with Progress(DescriptionColumn(), console=console) as bars:
            bars.add_task(text, total=None)

    stream = io.StringIO()
    console = VisibleConsole(stream, width=200)
    with TerminalProgress(console).stage("check", text):
        pass
    show(console)
    assert hidden(stream.getvalue()) == set()


LOUD = """
import logging, os, sys, warnings
from qvec_deploy.cli import commands, terminal
from qvec_deploy.errors import IncompatibleError
evil = "\\x1b[31mred\\r\\u202e\\udcff\\x9b[red]"

@commands.commands.command("loud")
def loud():
    print(evil)
    print(evil, file=sys.stderr)
    warnings.warn(evil)
    logging.getLogger("vendor").error(evil)
    terminal.say(evil)
    with terminal_progress():
        print(evil, file=sys.stderr)
    raise {raised}

def terminal_progress():
    from rich.progress import Progress
    return Progress(console=terminal.errors_terminal())

sys.argv = ["qvec-deploy", "loud"]
commands.program()
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["PYTHONIOENCODING=ascii", "PYTHONIOENCODING=latin-1", "LC_ALL=C", "LC_ALL=C.UTF-8"])
@pytest.mark.parametrize(
    ("raised", "code"), [("IncompatibleError(evil, hint=evil)", 4), ("ValueError(evil)", 1), ("KeyboardInterrupt", 130)]
)
def test_whatever_prints_goes_through_the_door(name: str, raised: str, code: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOUD.replace("{raised}", raised)],
        capture_output=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), **dict([name.split("=")])},
    )
    assert done.returncode == code, done.stderr
    for stream in (done.stdout, done.stderr):
        text = stream.decode("ascii")  # everything that is not was shown by its code
        assert hidden(text) == set() and "\\x1b[31mred" in text


@pytest.mark.parametrize(
    "arguments", [["\x1b[2J"], ["bench", "x", "--cores", "\x1b[2J"], ["plan", "--\u202ex"], ["inspect", "\udcff"]]
)
def test_errors_of_the_command_line_show_what_was_typed(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["qvec-deploy", *arguments])
    with pytest.raises(SystemExit):
        commands.main()
    printed = capsys.readouterr().err
    assert hidden(printed) == set()
    assert any(name in printed for name in ("\\x1b[2J", "\\u202ex", "\\udcff"))
