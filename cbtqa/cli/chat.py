"""`cbtqa chat`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cbtqa.cli.console import print_json, say, show, waiting
from cbtqa.cli.options import AsJson, settings_flags
from cbtqa.errors import EndpointError, UsageError
from cbtqa.safety.notices import help_text, not_a_therapist, required_notices, stale_warning
from cbtqa.settings import Resolved
from cbtqa.tuning.answering.chat import ChatSettings, answer_safely, open_speaker

if TYPE_CHECKING:
    from cbtqa.tuning.answering.chat import Speaker, Turn

Ask = Annotated[
    str | None, typer.Option("--ask", help="Answer this one question and end.", metavar="TEXT")
]


_HELP = "type a question and press Enter; /help shows this; /quit, an empty line or Ctrl-D ends"


@settings_flags(ChatSettings)
def chat(resolved: Resolved[ChatSettings], ask: Ask = None, as_json: AsJson = False) -> None:
    """Try a model by hand: one question, one answer, behind the safety checks. Nothing is kept.

    Without a model the rule-based template system answers. Questions of explicit danger are
    answered with help routes, by no model. Research only, not for people in need of help.

    [bold]Examples[/bold]

    cbtqa chat

    cbtqa chat --adapter runs/tuned

    cbtqa chat --endpoint vllm --model tuned --ask 朋友没有回我消息，我觉得他讨厌我
    """
    if as_json and ask is None:
        raise UsageError("--json goes with --ask TEXT")
    if ask is not None and not ask.strip():
        raise UsageError("--ask: an empty text")
    speaker = open_speaker(resolved.values, say)
    if as_json and ask is not None:
        print_json(_described(speaker, answer_safely(speaker, ask)))
        return
    notices = [not_a_therapist(), *required_notices(), help_text("zh", "page")]
    say("\n".join(notices), style="dim", indent=2)
    if warning := stale_warning():
        say(f"warning: {warning}")
    say(f"{speaker.name} answers; every question stands alone; /help, /quit\n")
    _show(answer_safely(speaker, ask)) if ask is not None else _converse(speaker)


def _converse(speaker: Speaker) -> None:
    for question in _questions():
        try:
            with waiting("answering"):
                turn = answer_safely(speaker, question)
        except EndpointError as error:  # the next question may fare better
            say(f"error: {error}")
        else:
            _show(turn)


def _questions() -> Iterator[str]:
    """Lines typed or piped in, up to an empty one."""
    with suppress(ImportError):
        import readline  # noqa: F401 - makes `input` edit wide characters properly
    prompt = "> " if sys.stdin.isatty() and sys.stdout.isatty() else ""
    while True:
        try:
            line = input(prompt).strip()
        except EOFError:
            return
        if not line or line in ("/quit", "/exit"):
            return
        if line.startswith("/"):
            say(_HELP if line == "/help" else f"no such command: {line}; {_HELP}")
            continue
        yield line


def _show(turn: Turn) -> None:
    if turn.help is not None:
        show(f"\n{turn.help}\n", style="bold yellow", indent=2)
    if turn.text is not None:
        show(f"\n{turn.text}\n", indent=2)
    elif turn.problems:
        say("the answer is withheld: " + "; ".join(f"{p.rule}, {p.detail}" for p in turn.problems))
    elif turn.fault is not None:
        say(f"no answer: {turn.fault.reason.value}, {turn.fault.detail}")


def _described(speaker: Speaker, turn: Turn) -> dict[str, Any]:
    return {
        "system": speaker.name,
        "risk": turn.risk,
        "help": turn.help,
        "text": turn.text,
        "withheld_for": [problem.rule for problem in turn.problems],
        "fault": turn.fault.reason.value if turn.fault else None,
        "notices": [not_a_therapist(), *required_notices()],
    }
