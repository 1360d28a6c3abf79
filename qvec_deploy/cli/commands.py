"""The commands. Each is thin: parse, call one function, print its value."""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qvec_deploy.cli.analyze_command import analyze
from qvec_deploy.cli.bench_command import bench
from qvec_deploy.cli.build_command import build
from qvec_deploy.cli.compare_command import compare
from qvec_deploy.cli.compile_command import compile_command
from qvec_deploy.cli.donor_command import donor
from qvec_deploy.cli.export_command import export
from qvec_deploy.cli.init_command import init
from qvec_deploy.cli.options import PATH, at_work, json_option
from qvec_deploy.cli.parts import missing_part
from qvec_deploy.cli.plan_command import plan
from qvec_deploy.cli.predict_command import predict
from qvec_deploy.cli.release_command import release
from qvec_deploy.cli.report_command import report
from qvec_deploy.cli.study_command import study
from qvec_deploy.cli.terminal import Printed, echo_json, say, say_error, show, show_streams
from qvec_deploy.cli.vector_command import vector
from qvec_deploy.cli.verify_command import verify
from qvec_deploy.errors import IncompatibleError, QvecError
from qvec_deploy.io.files import storage_error
from qvec_deploy.io.scratch import remove_process_folders
from qvec_deploy.jobs.job import JobFailure

if TYPE_CHECKING:
    from qvec_deploy.io.state_dict import Weights

EPILOG = (
    "Exit codes: 0 ok, 1 our bug, 2 usage or recipe, 3 gate missed, 4 incompatible, 5 integrity, 6 files and disk, "
    "7 remote fetch, 130 interrupted."
)


def main() -> None:
    """Entry point: run the command, turn errors into one clear line and an exit code; with --json a document too."""
    printed = Printed()
    try:
        code = _run(printed)
    except QvecError as error:
        say_error(error.message, error.hint)
        code = _document(printed, error.message, error.hint, error.exit_code)
    except click.ClickException as error:
        if isinstance(error, click.UsageError) and error.ctx is not None:
            say(*error.ctx.get_usage().split("\n"), f"Try '{error.ctx.command_path} --help' for help.", "", err=True)
        say(f"Error: {error.format_message()}", err=True)
        code = _document(printed, error.format_message(), "see --help", error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        say("interrupted; nothing was left half written", err=True)
        code = _document(printed, "interrupted", "nothing was left half written; run it again", 130)
    except BrokenPipeError:
        code = 0
    except Exception:  # noqa: BLE001 - the last resort: a bug of ours, shown whole
        say(*traceback.format_exc().split("\n"), err=True)
        say_error("this is a bug in qvec-deploy", "report it with the lines above")
        code = _document(printed, "this is a bug in qvec-deploy", "report it with the lines on standard error", 1)
    sys.exit(code or 0)


def _run(printed: Printed) -> int | None:
    """The command; what is missing here, a part of the package, memory or a file, is no bug of ours."""
    try:
        code: int | None = commands.main(standalone_mode=False, obj=printed)
    except ModuleNotFoundError as error:
        missing = missing_part(error)
        if missing is None:
            raise
        raise missing from error
    except (BrokenPipeError, QvecError, click.ClickException):
        raise
    except OSError as error:
        if error.errno is None:
            raise
        raise storage_error(error, Path("the system")) from error
    except Exception as error:
        failure = JobFailure.of(error)
        if failure.exit_code == 1:
            raise
        raise IncompatibleError(failure.message, hint=failure.hint) from error
    return code


def _document(printed: Printed, message: str, hint: str, exit_code: int) -> int:
    """With --json, an error is the one document on standard output, unless the command's own is already there."""
    if "--json" in sys.argv[1:] and not printed.document:
        echo_json({"error": message, "hint": hint, "exit_code": exit_code})
    return exit_code


def program() -> None:
    """`main` as a process of its own: it cleans up when it is terminated, and ends at once.

    Everything is written and closed by then; tearing down torch and its kin would take another second or two.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.unraisablehook = _interrupt_again
    show_streams()
    try:
        main()
    except SystemExit as stop:
        remove_process_folders()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(int(stop.code or 0))


def _interrupt_again(raised: sys.UnraisableHookArgs) -> None:
    """An interruption that came while an object was being removed is lost there: it comes again, a little later."""
    if issubclass(raised.exc_type, KeyboardInterrupt):
        again = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
        again.daemon = True
        again.start()
    else:
        sys.__unraisablehook__(raised)


@click.group(epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="qvec-deploy")
def commands() -> None:
    """Patch a fine-tuned vision transformer, quantize it to 3 bits, and ship a measured engine."""


@commands.command()
@click.argument("path", type=PATH)
@click.option("--weights", type=click.Choice(["raw", "ema"]), help="Of a checkpoint that holds both.")
@json_option
def inspect(path: Path, weights: Weights | None, as_json: bool) -> None:
    """Print what a bundle, vector, packed file or checkpoint is, without opening an engine."""
    from qvec_deploy.cli.printing import document_lines, inspect_path

    document = inspect_path(path, weights)
    show(document, as_json, lambda: say(*document_lines(document)))


@commands.command()
@json_option
def doctor(as_json: bool) -> None:
    """Say what this machine can do, and how to get the rest."""
    with at_work("look at this machine"):
        from qvec_deploy.cli.doctor_command import examine, print_examination

        found = examine()
    show(found, as_json, lambda: print_examination(found))


@commands.command()
@click.option("--of", type=click.Choice(["recipe", "report", "study"]), default="recipe", help="What it describes.")
def schema(of: str) -> None:
    """Print the JSON schema of recipes, of report.json, or of study recipes."""
    if of == "report":
        from qvec_deploy.report.report_json import report_schema as described
    elif of == "study":
        from qvec_deploy.research.study.study_recipe import study_schema as described
    else:
        from qvec_deploy.recipe import recipe_schema as described
    echo_json(described())


for command in (
    analyze,
    bench,
    build,
    compare,
    compile_command,
    donor,
    export,
    init,
    plan,
    predict,
    release,
    report,
    study,
    vector,
    verify,
):
    commands.add_command(command)
