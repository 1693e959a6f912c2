"""The `cbtqa` program: the list of verbs, and the one place where errors become exit codes."""

from __future__ import annotations

import difflib
import logging
import os
import sys
import traceback
from enum import StrEnum
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

import cbtqa
from cbtqa.cli import language
from cbtqa.cli.console import masked_streams, say
from cbtqa.cli.help import CommandGroup, HelpGroup
from cbtqa.errors import CbtqaError
from cbtqa.paths import system_error

EXIT_CODES = (
    "Exit codes: 0 done, 1 bug, 2 usage, 3 configuration or missing extra, 4 bad data, "
    "5 endpoint or network, 6 incomplete but resumable, 7 licence or permission, 8 answer withheld "
    "as unsafe, 130 interrupted."
)
_UsageError: Any = typer.BadParameter.__base__  # typer does not export the base of its usage errors

VERBS = {
    "build-dataset": "Build a Chinese CBT QA dataset from PsyQA questions.",
    "stats": "Count a dataset, with the paper's figures beside it.",
    "data": "Look at question files before building from them.",
    "distortions": "Label cognitive distortions, train and evaluate labellers.",
    "safety": "Grade crisis content, mask personal data, list the dated help lines.",
    "reproduce": "Run one experiment from end to end, by recipe: data to tables, one report.",
    "report": "Write one page of experiments: our tables beside the paper's.",
    "backbones": "List the base models that can be tuned, or explain one.",
    "export": "Write a dataset for LLaMA-Factory, ms-swift, TRL or EvalScope.",
    "convert": "Rewrite Baichuan-7B or Qwen-7B weights for today's libraries, exactly.",
    "cache": "List or clear the converted copies of base models.",
    "finetune": "Tune a backbone with LoRA: SFT or ORPO, packed, resumed exactly.",
    "merge": "Merge an adapter into its base: plain weights for vLLM and llama.cpp.",
    "generate": "Let a tuned model, any model or an endpoint answer questions.",
    "chat": "Try a model by hand, one question at a time, behind the safety checks.",
    "score": "Score predictions with Chinese metrics, several systems side by side.",
    "compare": "Test whether systems differ: intervals, adjusted p, win rates.",
    "judge": "Rate answers 0-2 with a language model, never without its agreement.",
    "simulate": "Play, export, check and judge simulated English therapy sessions.",
    "rate": "Have people rate answers blindly: sheets, a web form, agreement.",
    "publish": "Publish a dataset or model to the Hub or ModelScope: scanned, private, gated.",
    "join": "Put question text back into a text-free dataset, from your own file.",
    "hub-preview": "Show on a local page what publishing would put on the Hub.",
    "doctor": "Check this machine, a file, a server or settings before the work begins.",
    "env": "Say what an issue report needs: versions, cards, keys set or not, folders.",
}
"""Verb to the line that `cbtqa --help` shows."""
MODULES = {
    "backbones": "weights",
    "convert": "weights",
    "merge": "weights",
    "cache": "weights",
    "compare": "score",
    "report": "reproduce",
    "join": "publish",
    "hub-preview": "publish",
}
"""Module in `cbtqa.cli` of the verbs that share one; the others have a module of their own name."""


class _InterruptedError(Exception):
    """Ctrl-C, with what is kept."""


class _LazyGroup(HelpGroup):
    """Imports a verb's module when the verb is used: `cbtqa --help` imports none."""

    _is_listing = False

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stopped:
            # typer would put an error without words in its place
            raise _InterruptedError(str(stopped)) from None

    def list_commands(self, ctx: Any) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in VERBS:
            return None
        if self._is_listing:
            return TyperCommand(cmd_name, help=VERBS[cmd_name])
        from cbtqa.cli.options import refuse_doubled_flags

        command: Any
        name = cmd_name.replace("-", "_")
        module = import_module(f"cbtqa.cli.{MODULES.get(cmd_name, name)}")
        if cmd_name not in MODULES and hasattr(module, "app"):
            # not get_command: it would add the completion flags to every group
            command = typer.main.get_group(module.app)
        else:
            single = CommandGroup(add_completion=False)
            single.command()(getattr(module, name))
            command = typer.main.get_command(single)
        command.name = cmd_name
        refuse_doubled_flags(command)
        return command

    def format_help(self, ctx: Any, formatter: Any) -> None:
        self._is_listing = True
        try:
            super().format_help(ctx, formatter)
        finally:
            self._is_listing = False


app = CommandGroup(
    name="cbtqa",
    cls=_LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=EXIT_CODES,
    help="Chinese mental-health question answering in the structure of cognitive behavioural "
    "therapy. Research software, never a therapist. Start with: [bold]cbtqa build-dataset[/bold]",
)


class Language(StrEnum):
    """What `language.choose` knows."""

    EN = "en"
    ZH = "zh"


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
    lang: Annotated[
        Language | None,
        typer.Option(
            "--lang",
            help="Language of messages and tables on the terminal; CBTQA_LANG, too. "
            "(default: that of the locale)",
        ),
    ] = None,
) -> None:
    pass


def main(arguments: list[str] | None = None) -> None:
    """Runs the program and exits with the code that `errors` draws.

    `--debug` anywhere on the line (or CBTQA_DEBUG=1) shows the traceback, never local values; the
    key of an endpoint is masked in both.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    language.choose([word for word in words if word != "--debug"])
    is_debug = "--debug" in words or os.environ.get("CBTQA_DEBUG") == "1"
    sys.excepthook = _show_trace if is_debug else _report_bug
    logging.getLogger("cbtqa").handlers = [_SayHandler()]
    with masked_streams():
        code = _run([word for word in words if word != "--debug"], is_debug)
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            code = _leave_pipe()
    sys.exit(code)


class _SayHandler(logging.Handler):
    """What the library has to tell while it works, such as what it waits for."""

    def emit(self, record: logging.LogRecord) -> None:
        say(record.getMessage())


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
        _report(_told(error), _usage_hint(error, words))
        return 2
    except (_InterruptedError, KeyboardInterrupt, typer.Abort) as stopped:
        say(str(stopped) or "interrupted")
        return 130
    except BrokenPipeError:
        return _leave_pipe()
    except OSError as error:
        # a disk or a folder that refuses is no bug of ours
        if is_debug:
            traceback.print_exc()
        refused = system_error(error)
        _report(str(refused), refused.hint)
        return refused.exit_code
    except SystemExit as leaving:
        # typer ends the program itself, with 1, when a pipe breaks
        if isinstance(leaving.__context__, BrokenPipeError):
            return _leave_pipe()
        raise
    return int(code or 0)


def _leave_pipe() -> int:
    """What reads our output left (`| head`), which is no error: nothing to say or to flush."""
    null = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.__stdout__, sys.__stderr__):
        if stream is not None:
            os.dup2(null, stream.fileno())
    return 0


def _report_bug(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    _report(f"unexpected {kind.__name__}: {error}", "a bug in cbtqa: --debug shows where")


def _show_trace(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    with masked_streams():
        traceback.print_exception(kind, error, trace)


def _told(error: Any) -> str:
    """The parser's words; a missing argument is told as `settings.resolve` tells it."""
    is_missing = type(error).__name__ == "MissingParameter" and error.param is not None
    return f"missing: {error.param.name}" if is_missing else str(error.format_message())


def _usage_hint(error: Any, words: list[str]) -> str:
    # an option without its value is found before the parser says in which command
    words = list(language.from_verb(words))
    verb = [word for word in words[:1] if word in VERBS]
    path = error.ctx.command_path if getattr(error, "ctx", None) else " ".join(["cbtqa", *verb])
    if getattr(error, "option_name", "") == language.FLAG:
        return f"before the verb: cbtqa {language.FLAG} zh {path.removeprefix('cbtqa ')}"
    close = difflib.get_close_matches(words[0], VERBS, n=1) if words else []
    if close and words[0] not in VERBS:
        return f"did you mean: cbtqa {close[0]}"
    is_missing = type(error).__name__ == "MissingParameter" and getattr(error.param, "help", None)
    if is_missing and language.current() == "en":  # help is in English alone
        return f"{error.param.metavar or error.param.name}: {error.param.help} {path} --help"
    return f"{path} --help"


def _report(message: str, hint: str | None) -> None:
    # as a whole: a message of several lines may be one of the catalogue
    lines = language.told(message).splitlines() or ["unknown"]
    for line in lines:
        say(f"error: {line}")
    if hint:
        say(f"hint: {hint}")
