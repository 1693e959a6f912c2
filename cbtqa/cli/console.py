"""How commands talk: results to stdout, talk and progress to stderr, one object with `--json`.

Nothing printed holds the key of an endpoint: `masked_streams` is the last door (see `secrets`).
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import zip_longest
from typing import Any, TextIO

from rich.cells import cell_len
from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text

from cbtqa.files import json_text
from cbtqa.secrets import masked

talk = Console(stderr=True, highlight=False)
"""For people: what is happening. Never results."""
out = Console(highlight=False)
"""Results for people. A command with `--json` prints `print_json` instead."""


def say(message: str) -> None:
    """One line of talk on stderr; text from data is never read as markup."""
    talk.print(masked(message), markup=False, soft_wrap=True)


def print_json(value: dict[str, Any]) -> None:
    """The one JSON object of a `--json` run, on stdout."""
    sys.stdout.write(json_text(value, indent=2) + "\n")


def print_table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """A table on stdout; every column but the first is right-aligned. Cells are never markup."""
    has_header = any(columns)
    table = Table(title=title, title_justify="left", title_style="bold", show_header=has_header)
    widths = _widths([columns, *rows], out.width - 3 * len(columns) - 1)
    for index, (column, width) in enumerate(zip(columns, widths, strict=True)):
        justify: JustifyMethod = "left" if index == 0 else "right"
        table.add_column(column, justify=justify, overflow="fold", width=width)
    for row in rows:
        # masked before a cell is broken into lines: a piece of a key would not be found
        table.add_row(*(Text(masked(cell)) for cell in row))
    out.print(table)


def _widths(rows: list[list[str]], room: int) -> list[int | None]:
    """Widths at which no word is broken; None each where rich may decide.

    Rich shrinks columns by their share of the width, and so breaks words in narrow columns while
    wide ones have room left.
    """
    cells = list(zip_longest(*rows, fillvalue=""))
    natural = [max(map(cell_len, column)) for column in cells]
    widths = [
        max((cell_len(word) for cell in column for word in cell.split()), default=0)
        for column in cells
    ]
    if sum(natural) <= room or sum(widths) > room:
        return [None] * len(cells)
    for _ in range(room - sum(widths)):
        neediest = max(range(len(cells)), key=lambda index: natural[index] - widths[index])
        widths[neediest] += 1
    return list(widths)


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
