"""How commands talk: results to stdout, talk and progress to stderr, one object with `--json`.

All text passes through `wrap` here: it is never markup, control characters do not reach the
terminal, the keys of endpoints are masked, and lines break by Chinese rules. What this program
says itself is put into the console's language by `language.told`. rich draws tables and live
lines, and is imported only when one is drawn: `cbtqa --help` and errors do without.
"""

from __future__ import annotations

import os
import re
import sys
import time
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from cbtqa.cli.language import current, told, told_cell, told_head
from cbtqa.plain_values import well_formed
from cbtqa.report.words import money, seconds
from cbtqa.secrets import masked

if TYPE_CHECKING:
    from pydantic import BaseModel
    from rich.console import Console, RenderableType
    from rich.live import Live
    from rich.progress_bar import ProgressBar
    from rich.text import Text

    from cbtqa.llm.progress import Progress
    from cbtqa.report.table import Table as ReportTable

_NEVER_FIRST = frozenset("，。、；：？！…‥～·・）」』】》〉〕］｝〗〙”’％‰℃々ー")
"""Chinese line-breaking rules (GB/T 15834-2011, 5.1): these never begin a line, and ..."""
_NEVER_LAST = frozenset("（「『【《〈〔［｛〖〘“‘￥＄")
"""... these never end one."""
_NOT_AFTER_WIDE = frozenset(",.!?:;)]}%/\"'")
_NOT_BEFORE_WIDE = frozenset("([{/$#\"'")
"""Their half-width likes stay beside a Chinese neighbour; between words only spaces break lines."""
_SPACES = " \u3000"
_JOINERS = frozenset("\u200d\u2060\ufeff")
_CONTROLS = dict.fromkeys((*range(32), *range(0x7F, 0xA0)), "\ufffd")
_CONTROLS |= {ord("\n"): "\n", ord("\t"): " ", ord("\r"): " "}


def clean(text: str) -> str:
    """The text with control characters made visible, each as one character: positions hold."""
    return text.translate(_CONTROLS)


def cells(text: str) -> int:
    """Columns that the text takes in a terminal, by East Asian width."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def padded(text: str, width: int) -> str:
    """The text with spaces up to so many columns."""
    return text + " " * (width - cells(text))


def wrap(text: str, width: int, *, fold: bool = True) -> list[str]:
    """The text as lines of at most `width` columns, broken by Chinese and English rules.

    A line breaks at spaces and beside wide characters, but no line begins with closing or ends
    with opening punctuation, and no number or Latin word is broken. Line breaks in the text hold.

    Args:
        fold: break what is wider than a line anywhere; otherwise it stays whole and sticks out,
            so that a path or link can still be copied from the terminal.
    """
    text = clean(text)
    return [text[start:end] for start, end in _lines(text, width, fold)]


def _lines(text: str, width: int, fold: bool) -> Iterator[tuple[int, int]]:
    """Start and end of every line in the cleaned text."""
    at, width = 0, max(1, width)
    for line in text.split("\n"):
        start, used = at, 0
        for unit_start, unit_end in _units(line):
            begin, end = at + unit_start, at + unit_end
            bare = cells(text[begin:end].rstrip(_SPACES))
            if used and used + bare > width:
                yield start, start + len(text[start:begin].rstrip(_SPACES))
                start, used = begin, 0
            while fold and used + bare > width:
                cut = _first_columns(text, start, end, width)
                yield start, cut
                start, used, bare = cut, 0, cells(text[cut:end].rstrip(_SPACES))
            used += cells(text[max(start, begin) : end])
        yield start, start + len(text[start : at + len(line)].rstrip(_SPACES))
        at += len(line) + 1


def _units(line: str) -> Iterator[tuple[int, int]]:
    """Stretches that no line break may divide, each with the spaces behind it."""
    start = 0
    for index in range(1, len(line)):
        if _may_break(line, index):
            yield start, index
            start = index
    if line:
        yield start, len(line)


def _may_break(line: str, index: int) -> bool:
    after, before = line[index], line[index - 1]
    if after in _SPACES or after in _NEVER_FIRST:
        return False
    if before in _SPACES:
        while index and line[index - 1] in _SPACES:
            index -= 1
        return index > 0 and line[index - 1] not in _NEVER_LAST  # indentation stays with its word
    if before in _NEVER_LAST or before in _NOT_BEFORE_WIDE or after in _NOT_AFTER_WIDE:
        return False
    if not (_is_wide(before) or _is_wide(after)) or before in _JOINERS:
        return False
    return cells(after) > 0 and not "\U0001f3fb" <= after <= "\U0001f3ff"


def _is_wide(character: str) -> bool:
    """Whether lines may break beside it: full-width digits and letters count as Latin words."""
    if character < "\u1100":
        return False
    kind = unicodedata.east_asian_width(character)
    return kind == "W" or (kind == "F" and not character.isalnum())


def _first_columns(text: str, start: int, end: int, width: int) -> int:
    """Where the first `width` columns of `text[start:end]` end: one character at least."""
    cut = start + 1
    while cut < end and cells(text[start : cut + 1]) <= width:
        cut += 1
    return cut


def terminal_width(stream: TextIO) -> int:
    """Columns of the terminal behind a stream; COLUMNS wins, 80 where there is none."""
    columns = os.environ.get("COLUMNS", "")
    if columns.isdigit() and int(columns):
        return int(columns)
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError, AttributeError):  # a pipe, or no file at all
        return 80


def say(message: str, *, style: str = "", indent: int = 0) -> None:
    """Talk on stderr, wrapped as `show` does."""
    _write(sys.stderr, told(message), style, indent)


def show(text: str, *, style: str = "", indent: int = 0) -> None:
    """A line of a result on stdout; a terminal gets it wrapped, a pipe line by line as it is."""
    show_content(told(text), style=style, indent=indent)


def show_content(text: str | Text, *, style: str = "", indent: int = 0) -> None:
    """As `show`, of text that this program did not make up: an answer, a row of a file."""
    _write(sys.stdout, text, style, indent)


def _write(stream: TextIO, text: str | Text, style: str, indent: int) -> None:
    # masked before a text is broken into lines: a piece of a key would not be found
    text = masked(text) if isinstance(text, str) else text
    plain = text if isinstance(text, str) else text.plain
    width = terminal_width(stream) - indent if stream.isatty() else sys.maxsize
    places = list(_lines(clean(plain), width, False))
    pad = " " * indent
    if isinstance(text, str) and not style:
        lines = clean(text)
        stream.write("".join(pad + lines[start:end] + "\n" for start, end in places))
        return
    from rich.text import Text

    # the styled text keeps its spans: only its plain text is cleaned, character for character
    styled = Text(plain, style) if isinstance(text, str) else text.copy()
    styled.plain = clean(plain)
    for start, end in places:
        draw(Text(pad) + styled[start:end] if end > start else Text(), stream)


def draw(what: RenderableType, stream: TextIO | None = None) -> None:
    """Writes something of rich as it is, on stdout by default."""
    stream = stream or sys.stdout
    console = _console(stream)
    with console.capture() as drawn:
        console.print(what, soft_wrap=True)
    # not by rich: it ends the program itself when the reader of a pipe has left
    stream.write(drawn.get())


def _console(stream: TextIO) -> Console:
    from rich.console import Console

    width = terminal_width(stream)
    return Console(file=stream, width=width, markup=False, emoji=False, highlight=False)


def print_json(value: dict[str, Any] | BaseModel) -> None:
    """The one JSON object of a `--json` run, on stdout."""
    from cbtqa.files import json_text

    sys.stdout.write(json_text(value, indent=2) + "\n")


def give(
    as_json: bool, value: dict[str, Any] | BaseModel, *tables: ReportTable, title: str = ""
) -> None:
    """A command's result: one JSON object, or its tables."""
    if as_json:
        print_json(value)
    else:
        for table in tables:
            show_table(table, title)


class _MaskedStream:
    """A text stream into which neither a key nor half a character is written; all else is the
    stream's own."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(well_formed(masked(text)))
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


_FIGURES = re.compile(r"[-+\d.,:%/()\[\]~<>=±×–−* ]*")
"""A cell of figures, an interval included: never broken."""
_PROSE_COLUMNS = (24, 16, 10)
"""Columns that wrapped text is given at least, tried in turn."""


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on stdout, no wider than the terminal, with nothing cut.

    Text wraps, figures do not. What is too wide as a whole is printed as several tables with the
    first column repeated; where not even two columns fit, each row as a list of its cells.
    """
    width = terminal_width(sys.stdout)
    table = [[clean(masked(told_head(head))) for head in columns]]
    table += [[clean(masked(told_cell(cell))) for cell in row] for row in rows]
    _print_title(title, width)
    blocks = _blocks(table, width)
    if not blocks:
        for first, *others in table[1:]:
            show_content("\n".join(wrap(first, width)), style="bold")
            _print_facts(list(zip(table[0][1:], others, strict=True)), width, indent=2)
        return
    for indices in blocks:
        _print_block([[row[index] for index in indices] for row in table], width)


def _print_title(title: str, width: int) -> None:
    if title:
        show_content("\n".join(wrap(told_head(title), width)), style="bold")


def _blocks(table: list[list[str]], width: int) -> list[list[int]]:
    """The columns of each table to print; none where a pair of columns does not fit."""
    n_columns = len(table[0])
    for prose in _PROSE_COLUMNS:
        least = [_least([row[index] for row in table], prose) for index in range(n_columns)]
        if sum(least) + _frame(n_columns) <= width or n_columns == 1:
            return [list(range(n_columns))]
    least = [_least([row[index] for row in table], _PROSE_COLUMNS[1]) for index in range(n_columns)]
    blocks: list[list[int]] = []
    for index in range(1, n_columns):
        if least[0] + least[index] + _frame(2) > width:
            return []
        fits = (
            blocks
            and sum(least[i] for i in [*blocks[-1], index]) + _frame(len(blocks[-1]) + 1) <= width
        )
        blocks[-1].append(index) if fits else blocks.append([0, index])
    return blocks


def _frame(n_columns: int) -> int:
    return 3 * n_columns + 1


def _least(column: Sequence[str], prose: int) -> int:
    """Columns in which nothing of it is broken inside a word or figure."""
    header, *body = column
    need = max((cells(header[start:end].rstrip()) for start, end in _units(header)), default=1)
    for cell in body:
        for line in cell.split("\n"):
            whole = cells(line)
            if not _FIGURES.fullmatch(line):
                units = (cells(line[start:end].rstrip()) for start, end in _units(line))
                whole = max(min(whole, prose), *units, 0)
            need = max(need, whole)
    return need


def _print_block(table: list[list[str]], width: int) -> None:
    from rich.table import Table
    from rich.text import Text

    columns = list(zip(*table, strict=True))
    natural = [max(cells(line) for cell in one for line in cell.split("\n")) for one in columns]
    widths = _shared(columns, natural, width - _frame(len(columns)))
    drawn = Table(show_header=any(table[0]))
    for index, (column, given) in enumerate(zip(columns, widths, strict=True)):
        is_figures = any(cell and _FIGURES.fullmatch(cell) for cell in column[1:])
        drawn.add_column(
            Text("\n".join(wrap(column[0], given))),
            width=given,
            no_wrap=True,
            justify="right" if index and is_figures else "left",
        )
    for row in table[1:]:
        drawn.add_row(*(Text("\n".join(wrap(*pair))) for pair in zip(row, widths, strict=True)))
    draw(drawn)


def _shared(columns: Sequence[Sequence[str]], natural: list[int], width: int) -> list[int]:
    """Widths of the columns: their least, and what is left over in equal parts to the others."""
    for prose in _PROSE_COLUMNS:
        widths = [_least(column, prose) for column in columns]
        if sum(widths) <= width:
            break
    if len(widths) == 1:
        return [max(1, min(natural[0], width))]
    while short := [index for index, full in enumerate(natural) if widths[index] < full]:
        left = width - sum(widths)
        if left <= 0:
            break
        for index in short:
            given = min(natural[index] - widths[index], max(1, left // len(short)), left)
            widths[index] += given
            left -= given
    return widths


def show_table(table: ReportTable, title: str = "") -> None:
    """A table on stdout, under its own title or another one."""
    print_table(title or table.title_in(current()), *table.cells(current()))


def print_facts(title: str, rows: Sequence[tuple[str, str]]) -> None:
    """Prints a title and facts about one thing, those without a value left out."""
    width = terminal_width(sys.stdout)
    _print_title(title, width)
    _print_facts(rows, width, indent=0)


def _print_facts(rows: Sequence[tuple[str, str]], width: int, indent: int) -> None:
    """Name and value side by side; a value with a word too long for that goes below its name."""
    shown = [(clean(told_head(k)), clean(masked(told_cell(v)))) for k, v in rows if v]
    column = max((cells(name) for name, _ in shown), default=0) + 2
    for name, value in shown:
        beside = width - indent - column
        if _least(["", value], beside) <= beside:
            lines = wrap(value, beside)
            lines = [padded(name, column) + lines[0]] + [" " * column + line for line in lines[1:]]
        else:
            lines = [*wrap(name, width - indent)]
            lines += ["  " + line for line in wrap(value, width - indent - 2)]
        sys.stdout.write("".join(f"{' ' * indent}{line}\n" for line in lines))


FIRST_PLAIN_S, PLAIN_EVERY_S = 10.0, 60.0
"""Where nobody watches a terminal: the first line of progress, and those after it."""
BAR_CELLS, BAR_FROM_COLUMNS = 20, 60
"""Width of the bar, and of the terminals that have room for it."""
LEAST_NOTE = 12
"""Columns from which a note is worth its beginning."""


class LiveProgress:
    """A bar and one live line on a terminal, a line a minute elsewhere."""

    def __init__(self, live: Live | None) -> None:
        self._live, self._began = live, time.monotonic()
        self._next_plain = self._began + FIRST_PLAIN_S
        self._said: set[str] = set()

    def stage(self, words: str) -> None:
        """A new stage begins."""
        if self._live is None:
            say(f"{told(words)} ...")
        else:
            self._show([f"{told(words)} ..."])

    def count(self, n_done: int, n_total: int) -> None:
        """Work without requests moved on."""
        from cbtqa.llm.progress import counted

        if n_done < n_total:
            self.update(counted(n_done, n_total, time.monotonic() - self._began))
        else:
            self._began = time.monotonic()  # what is counted next begins now

    def update(self, progress: Progress) -> None:
        """The engine's counters moved."""
        for notice in progress.notices:
            if notice not in self._said:
                self._said.add(notice)
                say(notice)
        if self._live is not None:
            self._show(progress_parts(progress), progress.note, _bar_of(progress))
        elif time.monotonic() >= self._next_plain:
            self._next_plain = time.monotonic() + PLAIN_EVERY_S
            say(fit_parts(progress_parts(progress), terminal_width(sys.stderr), progress.note))

    def _show(self, parts: Sequence[str], note: str = "", bar: ProgressBar | None = None) -> None:
        from rich.table import Table
        from rich.text import Text

        assert self._live is not None
        # one column is left free: some terminals move to the next line after the last one
        width = terminal_width(sys.stderr) - 1
        if bar is None or width < BAR_FROM_COLUMNS:
            self._live.update(Text(fit_parts(parts, width, note), no_wrap=True))
            return
        row = Table.grid(padding=(0, 1))
        row.add_row(bar, Text(fit_parts(parts, width - BAR_CELLS - 1, note), no_wrap=True))
        self._live.update(row)


def _bar_of(progress: Progress) -> ProgressBar | None:
    """How far a run is, where its end is known."""
    if not progress.n_total:
        return None
    from rich.progress_bar import ProgressBar

    return ProgressBar(progress.n_total, min(progress.n_done, progress.n_total), BAR_CELLS)


@contextmanager
def live_progress() -> Iterator[LiveProgress]:
    """Shows progress while the block runs."""
    if not sys.stderr.isatty():
        yield LiveProgress(None)
        return
    from rich.live import Live

    console = _console(sys.stderr)
    with Live("", console=console, refresh_per_second=4, transient=True) as live:
        yield LiveProgress(live)


def progress_parts(progress: Progress) -> list[str]:
    """What the counters say, the most important first."""
    n_done, n_total, unit = progress.n_done, progress.n_total, progress.unit or "done"
    done = f"{n_done:,} {unit}" if n_total is None else f"{n_done:,} of {n_total:,} {unit}"
    rate = progress.rate_per_s
    pace = f"{1 / rate:,.1f} s each" if progress.unit and 0 < rate < 1 else f"{rate:,.1f}/s"
    parts = [done, pace]
    if progress.eta_s is not None:
        parts.append(f"{seconds(progress.eta_s)} left")
    if progress.n_rejected:
        parts.append(f"{progress.n_rejected:,} rejected")
    if progress.note:
        parts.append(progress.note)
    if progress.cost is not None:
        parts.append(money(progress.cost, progress.currency))
    if progress.usage.n_tokens:
        parts.append(f"{progress.usage.n_tokens:,} tokens")
    if progress.oldest_s > 30:
        parts.append(f"oldest request {progress.oldest_s:.0f} s")
    if progress.in_flight:
        parts.append(f"{progress.in_flight} of {progress.limit} in flight")
    if progress.n_repeats:
        parts.append(f"{progress.n_repeats:,} sent again")
    reasons = sorted(progress.rejected.items(), key=lambda pair: -pair[1])[:3]
    if reasons:
        parts.append("rejected for " + ", ".join(f"{reason.value} {n}" for reason, n in reasons))
    return parts


def fit_parts(parts: Sequence[str], width: int, note: str = "") -> str:
    """The parts that fit on one line, from the first on; only the first and the note are cut."""
    line = ""
    note = _on_one_line(told(note))
    for part in (_on_one_line(told_cell(part)) for part in parts):
        before = f"{line} | " if line else ""
        room = width - cells(before)
        if cells(part) <= room:
            line = before + part
        elif (not line or part == note) and room >= LEAST_NOTE:
            line = before + part[: _first_columns(part, 0, len(part), room - 1)] + "…"
    return line


def _on_one_line(text: str) -> str:
    return " ".join(clean(text).split())


@contextmanager
def waiting(words: str) -> Iterator[None]:
    """Shows on a terminal that the block is at work."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.text import Text

    with _console(sys.stderr).status(
        Text(clean(told(words)))
    ):  # a plain str would be read as markup
        yield
