"""How commands talk: results to stdout, talk and progress to stderr, one object with `--json`.

Nothing printed holds the key of an endpoint: `masked_streams` is the last door (see `secrets`).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cbtqa.secrets import masked, masked_value

talk = Console(stderr=True, highlight=False)
"""For people: what is happening. Never results."""
out = Console(highlight=False)
"""Results for people. A command with `--json` prints `print_json` instead."""


def say(message: str) -> None:
    """One line of talk on stderr; text from data is never read as markup."""
    talk.print(masked(message), markup=False, soft_wrap=True)


def print_json(value: dict[str, Any]) -> None:
    """The one JSON object of a `--json` run, on stdout."""
    json.dump(masked_value(value), sys.stdout, ensure_ascii=False, indent=2, allow_nan=False)
    sys.stdout.write("\n")


def print_table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """A table on stdout; every column but the first is right-aligned. Cells are never markup."""
    has_header = any(columns)
    table = Table(title=title, title_justify="left", title_style="bold", show_header=has_header)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right")
    for row in rows:
        # masked before a cell is broken into lines: a piece of a key would not be found
        table.add_row(*(Text(masked(cell)) for cell in row))
    out.print(table)


class _MaskedStream:
    """A text stream into which no key is written; all else is the stream's own."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(masked(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def masked_streams() -> Iterator[None]:
    """While the block runs, everything that this process prints is masked, by whomever."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = map(_MaskedStream, before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
