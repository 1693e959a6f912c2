"""What the three papers print: `papers.yaml`, the only place where their figures stand.

    paper_table("cbt-llm", "scores").value("CBT-LLM (Baichuan-7B)", "bleu_jieba")

A cell that is not known to us is None, and says so wherever it is shown.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Literal

from pydantic import model_validator

from cbtqa.files import shipped_yaml
from cbtqa.records import NonEmptyText, Record

Source = Literal["summary", "second-hand", "repository", "card"]
Standing = Literal["raw", "derived", "beside"]
UNKNOWN = "not known to us"


class PaperCell(Record):
    """One printed figure."""

    printed: NonEmptyText
    """As it is printed, with its digits."""
    source: Source
    standing: Standing
    """Whether it comes out of raw data (raw), follows from other cells (derived), or neither."""

    @property
    def value(self) -> float:
        return float(self.printed)

    def is_reproduced(self, value: float) -> bool:
        """Whether a value is the printed one, rounded to the digits that are printed."""
        plain, exponent, _ = self.printed.partition("e")
        form = f".{len(plain.partition('.')[2])}{'e' if exponent else 'f'}"
        return format(value, form) == format(self.value, form)


class PaperTable(Record):
    """One table; a None cell is not known to us."""

    name: NonEmptyText
    source: Source
    standing: Standing
    columns: dict[str, str]
    """Column to its head."""
    rows: dict[str, dict[str, PaperCell | None]]
    rubric: str | None = None
    """The rubric of ours that has these columns as criteria."""
    note: str = ""

    @model_validator(mode="before")
    @classmethod
    def _cells_from_text(cls, table: dict[str, Any]) -> dict[str, Any]:
        shared = {"source": table["source"], "standing": table["standing"]}
        rows = {
            row: {name: _cell(cell, shared) for name, cell in cells.items()}
            for row, cells in table["rows"].items()
        }
        return {**table, "rows": rows}

    @model_validator(mode="after")
    def _rows_fit(self) -> PaperTable:
        for name, row in self.rows.items():
            if list(row) != list(self.columns):
                raise ValueError(f"{self.name}: {name} has not the columns of its table")
        return self

    def value(self, row: str, column: str = "value") -> float | None:
        """A figure, or None where it is not known to us."""
        cell = self.rows[row][column]
        return cell.value if cell else None

    def known(self, row: str) -> dict[str, float]:
        """The figures of a row that are known, by column."""
        return {name: cell.value for name, cell in self.rows[row].items() if cell}


def _cell(cell: Any, shared: dict[str, Any]) -> dict[str, Any] | None:
    if cell is None:
        return None
    return {**shared, **(cell if isinstance(cell, dict) else {"printed": cell})}


class Paper(Record):
    """One paper and the tables of it that are known."""

    citation: NonEmptyText
    arxiv: NonEmptyText
    tables: dict[str, PaperTable]


@cache
def papers() -> dict[str, Paper]:
    """The three papers by name."""
    table = shipped_yaml("cbtqa", "papers.yaml")
    return {name: Paper.model_validate(paper) for name, paper in table.items()}


def paper_table(paper: str, table: str) -> PaperTable:
    """One table of one paper."""
    return papers()[paper].tables[table]


def source_of(paper: str, table: str) -> str:
    """How a table is cited: `arXiv 2403.16008, Table 4`."""
    return f"arXiv {papers()[paper].arxiv}, {paper_table(paper, table).name}"
