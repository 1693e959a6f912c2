"""Facts about one thing as lines of name and value: for values too long for a table's cell."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from cbtqa.cli.console import out


def print_facts(title: str, rows: Sequence[tuple[str, str]]) -> None:
    """Prints a title and its facts; facts without a value are left out, text is never markup."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in rows:
        if value:
            grid.add_row(Text(name), Text(value))
    out.print(Text(title, style="bold"))
    out.print(grid)
