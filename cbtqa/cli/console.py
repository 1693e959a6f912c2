"""How commands talk: results to stdout, talk and progress to stderr, one object with `--json`.

Nothing printed holds the key of an endpoint: `masked_streams` is the last door (see `secrets`).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, TextIO

from rich.cells import cell_len
from rich.console import Console, JustifyMethod
from rich.live import Live
from rich.table import Table
from rich.text import Text

from cbtqa.files import json_text
from cbtqa.secrets import masked

if TYPE_CHECKING:
    from cbtqa.llm.progress import Progress


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


# --- facts ---------------------------------------------------------------------------------------
# Facts about one thing as lines of name and value: for values too long for a table's cell.


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


# --- progress ------------------------------------------------------------------------------------
# Progress of long work on stderr: one live line on a terminal, a line now and then elsewhere.

PLAIN_EVERY_S = 10.0


class LiveProgress:
    """What `live_progress` gives: told of stages and of the engine's progress."""

    def __init__(self, live: Live | None) -> None:
        self._live, self._next_plain = live, time.monotonic() + PLAIN_EVERY_S

    def stage(self, words: str) -> None:
        """A new stage begins."""
        if self._live is None:
            say(f"{words} ...")
        else:
            self._live.update(Text(f"{words} ..."))

    def update(self, progress: Progress) -> None:
        """The engine's counters moved."""
        if self._live is not None:
            self._live.update(Text(describe_progress(progress)))
        elif time.monotonic() >= self._next_plain:
            self._next_plain = time.monotonic() + PLAIN_EVERY_S
            say(describe_progress(progress))


@contextmanager
def live_progress() -> Iterator[LiveProgress]:
    """Shows progress while the block runs."""
    if not talk.is_terminal:
        yield LiveProgress(None)
        return
    with Live(Text(""), console=talk, refresh_per_second=4, transient=True) as live:
        yield LiveProgress(live)


def describe_progress(progress: Progress) -> str:
    """One line: done, rate, time left, tokens, cost, retries, rejects."""
    total = f" of {progress.n_total:,}" if progress.n_total is not None else ""
    parts = [f"{progress.n_done:,}{total} done", f"{progress.rate_per_s:,.1f}/s"]
    if progress.eta_s is not None:
        parts.append(f"{describe_seconds(progress.eta_s)} left")
    if progress.in_flight:
        parts.append(f"{progress.in_flight} of {progress.limit} in flight")
    n_tokens = progress.usage.prompt_tokens + progress.usage.completion_tokens
    if n_tokens:
        parts.append(f"{n_tokens:,} tokens")
    if progress.cost is not None:
        parts.append(f"{progress.cost:.2f} {progress.currency or ''}".strip())
    if progress.n_repeats:
        parts.append(f"{progress.n_repeats:,} sent again")
    if progress.n_rejected:
        reasons = sorted(progress.rejected.items(), key=lambda pair: -pair[1])[:3]
        shown = ", ".join(f"{reason.value} {n}" for reason, n in reasons)
        parts.append(f"{progress.n_rejected:,} rejected ({shown})")
    if progress.oldest_s > 30:
        parts.append(f"oldest request {progress.oldest_s:.0f} s")
    return " | ".join(parts)


def describe_seconds(seconds: float) -> str:
    """Seconds as a person says them: `45 s`, `12 min`, `3 h 05 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
