"""docs/cli.md as rendered from the live command registry."""

from __future__ import annotations

from functools import cache
from typing import Any

import typer

from cbtqa.cli.main import EXIT_CODES, app


@cache
def walk_commands() -> list[tuple[str, Any]]:
    """Every command with its words, groups included, in order of appearance."""

    def walk(words: str, command: Any) -> list[tuple[str, Any]]:
        found = [(words, command)]
        if hasattr(command, "list_commands"):
            context = typer.Context(command)
            for name in command.list_commands(context):
                found += walk(f"{words} {name}", command.get_command(context, name))
        return found

    return walk("cbtqa", typer.main.get_command(app))[1:]


def render_cli_docs() -> str:
    """Every command with its flags, as Markdown."""
    parts = [
        "# Commands\n\nMade by `scripts/make_cli_docs` from the help texts; do not edit.\n\n"
        f"{EXIT_CODES} `--debug` anywhere on the line shows the traceback of an error.\n\n"
        "Step by step: [the tutorials](index.md). When a command fails: "
        "[troubleshooting by exit code](howto/troubleshooting.md).\n"
    ]
    for words, command in walk_commands():
        parts.append(f"## {words}\n\n{_plain(command.help or '')}\n")
        rows = [_row(parameter) for parameter in command.params if not _is_help(parameter)]
        if rows and not hasattr(command, "list_commands"):
            parts.append("| flag | meaning |\n|---|---|\n" + "\n".join(rows) + "\n")
    return "\n".join(parts)


def _is_help(parameter: Any) -> bool:
    return parameter.name in ("help", "install_completion", "show_completion")


def _row(parameter: Any) -> str:
    flags = [*getattr(parameter, "opts", []), *getattr(parameter, "secondary_opts", [])]
    is_argument = not any(flag.startswith("-") for flag in flags)
    name = f"`{parameter.name.upper()}`" if is_argument else ", ".join(f"`{f}`" for f in flags)
    return f"| {name} | {_plain(getattr(parameter, 'help', '') or '')} |"


def _plain(text: str) -> str:
    for mark in ("[bold]", "[/bold]"):
        text = text.replace(mark, "")
    return text.replace("|", "\\|").replace("\f", "").strip()
