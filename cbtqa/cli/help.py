"""`--help` of every command: flag and value on one line, what it means below, nothing ever cut.

`CommandGroup` is the `typer.Typer` in which commands are declared: `-h` and `--help` say the
same, and a bare group prints its help and is done. Plain text: rich is not even imported.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup

from cbtqa.cli.console import cells, terminal_width, wrap

MAX_WIDTH = 100
"""Longer lines are hard to read, however wide the terminal is."""
_Function = TypeVar("_Function", bound=Callable[..., Any])
_BOLD, _PLAIN = "\033[1m", "\033[0m"


class HelpCommand(TyperCommand):
    """A command whose help is rendered here."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        formatter.write("\n".join(_help_lines(self, ctx)))


class HelpGroup(TyperGroup):
    """A group whose help is rendered here; without a command it prints it, which is no error."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        formatter.write("\n".join(_help_lines(self, ctx)))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args and self.no_args_is_help and not ctx.resilient_parsing:
            typer.echo(ctx.get_help())
            ctx.exit()
        return super().parse_args(ctx, args)


class CommandGroup(typer.Typer):
    """Where commands are declared."""

    def __init__(self, *, cls: type[HelpGroup] = HelpGroup, **settings: Any) -> None:
        super().__init__(cls=cls, no_args_is_help=True, pretty_exceptions_enable=False, **settings)

    def command(self, *words: Any, **settings: Any) -> Callable[[_Function], _Function]:
        """As `typer.Typer.command`."""
        return super().command(*words, cls=HelpCommand, **settings)


def _help_lines(command: Any, context: Any) -> list[str]:
    width = min(terminal_width(sys.stdout), MAX_WIDTH)
    usage = " ".join(["Usage:", context.command_path, *command.collect_usage_pieces(context)])
    lines = _hanging(usage, width, "", "    ")
    for paragraph in _paragraphs(command.help):
        lines += ["", *_paragraph_lines(paragraph, width)]
    panels: dict[str, list[Any]] = {"Arguments": [], "Options": []}
    for parameter in command.get_params(context):
        kind = "Arguments" if parameter.param_type_name == "argument" else "Options"
        panels.setdefault(parameter.rich_help_panel or kind, []).append(parameter)
    for title, parameters in panels.items():
        if parameters:
            lines += ["", _heading(title)]
        for parameter in parameters:
            lines += _parameter_lines(parameter, context, width)
    if isinstance(command, TyperGroup):
        lines += ["", _heading("Commands"), *_command_lines(command, context, width)]
    for paragraph in _paragraphs(command.epilog):
        lines += ["", *_paragraph_lines(paragraph, width)]
    return lines


def _paragraphs(text: str | None) -> Iterator[str]:
    """The paragraphs, each in one line; `Example: cbtqa ...` counts as two."""
    for part in inspect.cleandoc(text or "").split("\n\n"):
        words = re.sub(r"\[/?bold\]", "", " ".join(part.split()))
        if example := re.fullmatch(r"(Example): (cbtqa .*)", words):
            yield from example.groups()
        elif words:
            yield words


def _paragraph_lines(words: str, width: int) -> list[str]:
    if words in ("Example", "Examples"):
        return [_heading(words)]
    if not words.startswith("cbtqa "):
        return wrap(words, width)
    # a command over several lines can still be copied into a shell; flags keep their values
    joined = re.sub(r"(--[\w-]+) (?=[^-])", "\\1\u00a0", words)
    lines = [line.replace("\u00a0", " ") for line in _hanging(joined, width - 2, "  ", "      ")]
    return [f"{line} \\" for line in lines[:-1]] + lines[-1:]


def _parameter_lines(parameter: Any, context: Any, width: int) -> list[str]:
    record = parameter.get_help_record(context)
    if record is None:  # hidden
        return []
    name, text = record
    for written, shown in (("<list[", "<"), ("]>", ">..."), (" range>", ">"), ("Path>", "path>")):
        name = name.replace(written, shown)
    # typer's own remarks, such as `[default: 20]`, look like those of our settings
    text = re.sub(r" *\[([^][]*)\]$", r" (\1)", text)
    lines = ["  " + name]
    if cells(lines[0]) > width:
        flag, value = name.split(" <", 1)
        lines = [f"  {flag}", *_hanging(f"<{value}".replace("|", "| "), width, "    ", "    ")]
    return [*lines, *_hanging(text, width, "      ", "      ")]


def _command_lines(group: Any, context: Any, width: int) -> list[str]:
    names = group.list_commands(context)
    column = max(map(len, names)) + 4
    lines = []
    for name in names:
        about = next(_paragraphs(group.get_command(context, name).help), "")
        lines += _hanging(about, width, f"  {name}".ljust(column), " " * column)
    return lines


def _heading(words: str) -> str:
    return f"{_BOLD}{words}{_PLAIN}"  # echo takes the codes away where no terminal reads them


def _hanging(text: str, width: int, first: str, others: str) -> list[str]:
    lines = wrap(text, width - max(len(first), len(others)))
    return [first + lines[0], *(others + line for line in lines[1:])]
