"""How commands talk: results to stdout, talk and progress to stderr, one object with `--json`."""

from __future__ import annotations

import json
import sys
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

talk = Console(stderr=True, highlight=False)
"""For people: what is happening. Never results."""
out = Console(highlight=False)
"""Results for people. A command with `--json` prints `print_json` instead."""


def say(message: str) -> None:
    """One line of talk on stderr; text from data is never read as markup."""
    talk.print(message, markup=False, soft_wrap=True)


def print_json(value: dict[str, Any]) -> None:
    """The one JSON object of a `--json` run, on stdout."""
    json.dump(value, sys.stdout, ensure_ascii=False, indent=2, allow_nan=False)
    sys.stdout.write("\n")


def print_table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """A table on stdout; every column but the first is right-aligned. Cells are never markup."""
    has_header = any(columns)
    table = Table(title=title, title_justify="left", title_style="bold", show_header=has_header)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right")
    for row in rows:
        table.add_row(*map(Text, row))
    out.print(table)
