"""The `cbtqa` program: the list of verbs, and the one place where errors become exit codes."""

from __future__ import annotations

import os
import sys
import traceback
from typing import Annotated, Any

import typer

import cbtqa
from cbtqa.cli import data
from cbtqa.cli.build_dataset import build_dataset
from cbtqa.cli.console import say
from cbtqa.cli.stats import stats
from cbtqa.errors import CbtqaError

EXIT_CODES = (
    "Exit codes: 0 done, 1 bug in cbtqa, 2 usage, 3 configuration or missing extra, 4 bad data, "
    "5 endpoint or network, 6 incomplete but resumable, 7 licence or permission, 130 interrupted."
)
_UsageError: Any = typer.BadParameter.__base__  # typer does not export the base of its usage errors

app = typer.Typer(
    name="cbtqa",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    epilog=EXIT_CODES,
    help="Chinese mental-health question answering in the structure of cognitive behavioural "
    "therapy. Research software, never a therapist. Start with: [bold]cbtqa build-dataset[/bold]",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"cbtqa {cbtqa.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    pass


app.command()(build_dataset)
app.command()(stats)
app.add_typer(data.app, name="data")


def main(arguments: list[str] | None = None) -> None:
    """Runs the program and exits with the code that `errors` draws.

    `--debug` anywhere on the line (or CBTQA_DEBUG=1) shows the traceback, never local values,
    which may hold a key.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    is_debug = "--debug" in words or os.environ.get("CBTQA_DEBUG") == "1"
    if not is_debug:
        sys.excepthook = _report_bug
    sys.exit(_run([word for word in words if word != "--debug"], is_debug))


def _run(words: list[str], is_debug: bool) -> int:
    try:
        # not `app(...)`: calling it puts typer's own hook for unexpected errors in place of ours
        code = typer.main.get_command(app).main(words, prog_name="cbtqa", standalone_mode=False)
    except CbtqaError as error:
        if is_debug:
            traceback.print_exc()
        _report(str(error), error.hint)
        return error.exit_code
    except _UsageError as error:
        _report(error.format_message(), f"{_path_of(error)} --help")
        return 2
    except (KeyboardInterrupt, typer.Abort):
        say("interrupted")
        return 130
    except BrokenPipeError:
        # the reader of our stdout left (`| head`): nothing to say, and nothing to flush
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return int(code or 0)


def _report_bug(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    _report(f"unexpected {kind.__name__}: {error}", "a bug in cbtqa: --debug shows where")


def _path_of(error: Any) -> str:
    return str(error.ctx.command_path) if getattr(error, "ctx", None) else "cbtqa"


def _report(message: str, hint: str | None) -> None:
    lines = message.splitlines() or ["unknown"]
    for line in lines:
        say(f"error: {line}")
    if hint:
        say(f"hint: {hint}")
