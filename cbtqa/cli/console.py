"""How commands talk: results to stdout, talk and progress to stderr, one object with `--json`."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from cbtqa.llm.progress import Progress


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
    if progress.note:
        parts.append(progress.note)
    return " | ".join(parts)


def describe_seconds(seconds: float) -> str:
    """Seconds as a person says them: `45 s`, `12 min`, `3 h 05 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
