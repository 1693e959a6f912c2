"""One table for every place that shows it: page, Markdown, LaTeX, terminal, CSV, JSON, pandas.

    table = Table(["system", Column("BLEU", digits(1))], [["base", Estimate(26.5, 25.1, 27.9)]])
    table.cells(), table.markdown(), table.latex(), table.csv(), table.records(), table.to_pandas()

Rows hold values, not text: `cbtqa.report.words` writes them where people read, and programs get
them as they are. What is missing is None, and `Estimate(None, reason="...")` gives the reason.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from cbtqa.report.page import Lang, Phrase
from cbtqa.report.words import GAP, Show, count, digits, estimate

if TYPE_CHECKING:
    import pandas

    from cbtqa.statistics.agreement import Coefficient


@dataclass(frozen=True)
class Estimate:
    """A number with its interval, or the reason why either is missing."""

    value: float | None
    low: float | None = None
    high: float | None = None
    reason: str | None = ""
    note: str = ""
    """Follows the number where people read it, such as `(98/100)`."""
    show: Show | None = None
    """How it is written, where that differs from its column."""

    @classmethod
    def of(cls, coefficient: Coefficient) -> Estimate:
        """A coefficient with its interval, or the reason why either is missing."""
        reason = coefficient.reason or coefficient.interval_reason
        return cls(coefficient.value, coefficient.low, coefficient.high, reason)


Cell = str | Phrase | Markup | int | float | Estimate | None
"""Text is escaped unless it is `Markup`; a `Phrase` shows both languages on a page."""


@dataclass(frozen=True)
class Column:
    """A head, and how real numbers below it are written, by default with three decimals."""

    head: Phrase | str
    show: Show | None = None


AnyColumn = Column | Phrase | str
Row = Sequence[Cell]

_FIGURES = re.compile(r"[-+\d.,:%/()\[\]~<>=±×–−* ]*")


@dataclass(frozen=True)
class Table:
    """Heads, rows and a title; a column of figures is set to the right, all others to the left."""

    columns: Sequence[AnyColumn]
    rows: Sequence[Row]
    title: Phrase | str = ""

    @cached_property
    def _columns(self) -> list[Column]:
        return [c if isinstance(c, Column) else Column(c) for c in self.columns]

    @property
    def heads(self) -> list[Phrase | str]:
        return [column.head for column in self._columns]

    @property
    def is_figures(self) -> list[bool]:
        """For each column, whether it holds figures; the first names the rows."""
        found = [index > 0 for index in range(len(self._columns))]
        for row in self.rows:
            for index, cell in enumerate(row):
                is_text = isinstance(cell, str) and not _FIGURES.fullmatch(cell)
                found[index] = found[index] and not is_text and not isinstance(cell, Phrase)
        return found

    def shown(self, row: Row) -> Iterator[str | Phrase]:
        """The cells of a row as a page shows them: only what is `Markup` is not escaped."""
        for column, cell in zip(self._columns, row, strict=True):
            text = _written(cell, column.show)
            if isinstance(cell, Estimate) and cell.reason and cell.low is None:
                number = _number(cell, column.show)
                text = Markup('{} <span class="second">{}</span>').format(number, cell.reason)
            yield text

    def title_in(self, lang: Lang = "en") -> str:
        return _plain(self.title, lang)

    def cells(self, lang: Lang = "en") -> tuple[list[str], list[list[str]]]:
        heads = [_plain(head, lang) for head in self.heads]
        rows = [
            [
                _plain(_written(cell, column.show), lang)
                for column, cell in zip(self._columns, row, strict=True)
            ]
            for row in self.rows
        ]
        return heads, rows

    def markdown(self, lang: Lang = "en") -> str:
        heads, rows = self.cells(lang)
        rules = ["---:" if right else "---" for right in self.is_figures]
        lines = [[markdown_cell(text) for text in heads], rules]
        lines += [[markdown_cell(text) for text in row] for row in rows]
        return "".join(f"| {' | '.join(line)} |\n" for line in lines)

    def latex(self, lang: Lang = "en") -> str:
        """A `booktabs` tabular."""
        heads, rows = self.cells(lang)
        sides = "".join("r" if right else "l" for right in self.is_figures)
        head, *body = (
            " & ".join(latex_text(text) for text in line) + r" \\" for line in (heads, *rows)
        )
        lines = [rf"\begin{{tabular}}{{{sides}}}", r"\toprule", head, r"\midrule", *body]
        return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])

    def records(self) -> list[dict[str, Any]]:
        """Rows as objects with plain values; an interval and a reason get keys of their own."""
        columns: dict[str, list[Any]] = {}
        for index, column in enumerate(self._columns):
            name = _plain(column.head, "en") or f"column {index + 1}"
            while name in columns:
                name += " *"
            cells = [row[index] for row in self.rows]
            columns[name] = [_value(cell) for cell in cells]
            for part in ("low", "high", "reason"):
                values = [getattr(cell, part, None) for cell in cells]
                if any(value is not None and value != "" for value in values):
                    columns[f"{name} {part}"] = [None if v == "" else v for v in values]
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def csv(self) -> str:
        """CSV with full numbers; text that a spreadsheet would run is made plain."""
        stream = io.StringIO()
        records = self.records()
        names = list(records[0]) if records else self.cells()[0]
        writer = csv.DictWriter(stream, names, lineterminator="\n")
        writer.writeheader()
        for record in records:
            writer.writerow(
                {k: escape_formula(v) if isinstance(v, str) else v for k, v in record.items()}
            )
        return stream.getvalue()

    def to_pandas(self) -> pandas.DataFrame:
        import pandas

        return pandas.DataFrame(self.records())


def _written(cell: Cell, show: Show | None) -> str | Phrase:
    """A cell as people read it."""
    if isinstance(cell, str | Phrase):
        return cell
    if isinstance(cell, Estimate):
        number = _number(cell, show)
        return f"{number} ({cell.reason})" if cell.reason and cell.low is None else number
    return count(cell) if isinstance(cell, int) else (show or digits(3))(cell)


def _number(cell: Estimate, show: Show | None) -> str:
    """Without the reason of what is missing."""
    text = estimate(cell.value, cell.low, cell.high, cell.show or show or digits(3))
    return GAP if cell.value is None else f"{text} {cell.note}".rstrip()


def _value(cell: Cell) -> Any:
    if isinstance(cell, Estimate):
        return cell.value
    return _plain(cell, "en") if isinstance(cell, str | Phrase) else cell


def _plain(text: str | Phrase, lang: Lang) -> str:
    if isinstance(text, Phrase):
        return text.first(lang)
    return text.striptags() if isinstance(text, Markup) else text


def markdown_cell(text: str) -> str:
    """Text from outside in a cell of a Markdown table."""
    return re.sub(r"\s+", " ", text).replace("\\", "\\\\").replace("|", "\\|")


FORMULA_STARTS = "=+-@\t\r＝＋－＠"
"""First characters that spreadsheets may take for a formula (OWASP, CWE-1236)."""


def escape_formula(text: str) -> str:
    """Text that no spreadsheet runs: a leading apostrophe before a formula's first character."""
    return "'" + text if text[:1] and text[0] in FORMULA_STARTS else text


def latex_text(text: str) -> str:
    """Text from outside as LaTeX text, for pdflatex with T1 fonts and for xelatex.

    A leading bracket or star is braced: it would be an argument of the line break before it.
    """
    text = re.sub(r"\s+", " ", text)
    escaped = text.translate(_LATEX_SPECIAL)
    return f"{{{escaped[0]}}}{escaped[1:]}" if text[:1] in ("[", "*") else escaped


_LATEX_SPECIAL = str.maketrans(
    {
        **{character: f"\\{character}" for character in "&%$#_{}"},
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        '"': r"\textquotedbl{}",
        "\u2212": "$-$",
        "\u00d7": r"$\times$",
        "\u00b1": r"$\pm$",
        "\u2265": r"$\geq$",
        "\u2264": r"$\leq$",
        "\u2260": r"$\neq$",
        "\u03b1": r"$\alpha$",
        "\u03ba": r"$\kappa$",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "\\": r"\textbackslash{}",
    }
)
