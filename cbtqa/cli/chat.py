"""`cbtqa chat`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cbtqa.cli.console import print_json, say, show_content, waiting
from cbtqa.cli.options import AsJson, settings_flags
from cbtqa.errors import AnswerWithheldError, EndpointError, UsageError
from cbtqa.safety.normalise import language_of
from cbtqa.safety.notices import (
    Locale,
    help_text,
    not_a_therapist,
    required_notices,
    stale_warning,
)
from cbtqa.settings import Resolved
from cbtqa.tuning.answering.chat import (
    ChatSettings,
    answer_safely,
    open_opinions,
    open_speaker,
)

if TYPE_CHECKING:
    from cbtqa.tuning.answering.chat import SecondOpinions, Speaker, Turn

Ask = Annotated[
    str | None, typer.Option("--ask", help="Answer this one question and end.", metavar="TEXT")
]
Web = Annotated[
    bool, typer.Option("--web", help="Serve the chat as a page on this machine, until Ctrl-C.")
]
Port = Annotated[
    int, typer.Option("--port", min=1, max=65535, help="With --web: port to listen on.")
]


_HELP = "type a question and press Enter; /help shows this; /quit, an empty line or Ctrl-D ends"


@settings_flags(ChatSettings)
def chat(
    resolved: Resolved[ChatSettings],
    ask: Ask = None,
    web: Web = False,
    port: Port = 8766,
    as_json: AsJson = False,
) -> None:
    """Try a model by hand: one question, one answer, behind the safety checks. Nothing is kept.

    Without a model the rule-based template system answers. Questions of explicit danger are
    answered with help routes, by no model. Personal data is masked before a question goes to an
    endpoint that is not local. With --ask, an answer withheld as unsafe ends with exit code 8.
    Further models may grade the question (--screen-endpoint) and read the answer
    (--guard-endpoint): the worse grade counts, and what they find unsafe is withheld.
    With --web the chat is a page on this machine, for the one who holds its link.
    Research only, not for people in need of help.

    [bold]Examples[/bold]

    cbtqa chat

    cbtqa chat --adapter runs/tuned --web

    cbtqa chat --endpoint vllm --model tuned --ask 朋友没有回我消息，我觉得他讨厌我
    """
    _refuse_unfit(ask, web, as_json)
    opinions = open_opinions(resolved.values)
    speaker = open_speaker(resolved.values, say)
    if web:
        _serve(speaker, opinions, port)
        return
    if ask is None:
        _introduce(speaker, opinions, "zh")
        _converse(speaker, opinions)
        return
    if not as_json:
        _introduce(speaker, opinions, language_of(ask))
    turn = answer_safely(speaker, ask, opinions)
    print_json(_described(speaker, turn)) if as_json else _show(turn)
    _raise_for(turn)


def _refuse_unfit(ask: str | None, web: bool, as_json: bool) -> None:
    if web and (ask is not None or as_json):
        raise UsageError("--web goes without --ask and --json")
    if as_json and ask is None:
        raise UsageError("--json goes with --ask TEXT")
    if ask is not None and not ask.strip():
        raise UsageError("--ask: an empty text")


def _serve(speaker: Speaker, opinions: SecondOpinions, port: int) -> None:
    """The page, until Ctrl-C; its link opens it to nobody else."""
    from cbtqa.tuning.answering.web import ChatPage, create_chat_app
    from cbtqa.web.server import LOOPBACK, allowed_hosts, serve

    page = ChatPage(speaker, opinions, "zh")
    app = create_chat_app(page, allowed_hosts(port))
    _introduce(speaker, opinions, "zh")
    say(f"open http://{LOOPBACK}:{port}/r/{page.token} (add ?lang=en for English); Ctrl-C ends")
    serve(app, host=LOOPBACK, port=port)


def _introduce(speaker: Speaker, opinions: SecondOpinions, language: Locale) -> None:
    notices = [not_a_therapist(language), *required_notices(language), help_text(language, "page")]
    say("\n".join(notices), style="dim", indent=2)
    if warning := stale_warning():
        say(f"warning: {warning}")
    if not (speaker.is_local and opinions.is_local):
        say("questions leave this machine: what is found of personal data is masked first, not all")
    if opinions.names:
        say("second opinion: " + ", ".join(dict.fromkeys(opinions.names)))
    say(f"{speaker.name} answers; every question stands alone; /help, /quit\n")


def _raise_for(turn: Turn) -> None:
    """The exit code of one question: 8 for an answer withheld, 5 for a reply that is none."""
    if turn.problems:
        raise AnswerWithheldError("the answer is withheld: " + _reasons(turn))
    if turn.fault is not None:
        raise EndpointError(f"no answer: {turn.fault.reason.value}, {turn.fault.detail}")


def _reasons(turn: Turn) -> str:
    return "; ".join(dict.fromkeys(f"{one.rule}, {one.detail}" for one in turn.problems))


def _converse(speaker: Speaker, opinions: SecondOpinions) -> None:
    for question in _questions():
        try:
            with waiting("answering"):
                turn = answer_safely(speaker, question, opinions)
        except EndpointError as error:  # the next question may fare better
            say(f"error: {error}")
        else:
            _show(turn)
            if turn.problems:
                say("the answer is withheld: " + _reasons(turn))
            elif turn.fault is not None:
                say(f"no answer: {turn.fault.reason.value}, {turn.fault.detail}")


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
    if turn.masked:
        say("masked before it was sent: " + ", ".join(turn.masked))
    for words in turn.unheard:
        say(f"{words}; the built-in checks alone decide")
    shown = [(turn.help, "bold yellow"), (turn.text or turn.notice, "")]
    if turn.problems:  # first that there is no answer, then where there is help
        shown.reverse()
    for text, style in shown:
        if text is not None:
            show_content(f"\n{text}\n", style=style, indent=2)


def _described(speaker: Speaker, turn: Turn) -> dict[str, Any]:
    return {
        "system": speaker.name,
        "risk": turn.risk,
        "help": turn.help,
        "text": turn.text,
        "withheld_for": [problem.rule for problem in turn.problems],
        "fault": turn.fault.reason.value if turn.fault else None,
        "notice": turn.notice,
        "masked": list(turn.masked),
        "unheard": list(turn.unheard),
        "notices": [not_a_therapist(), *required_notices()],
    }
