"""`cbtqa data`: look at question files before building from them."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from cbtqa.cli.console import print_json, show, show_table
from cbtqa.cli.help import CommandGroup
from cbtqa.cli.options import AsJson, ScreenModel
from cbtqa.errors import DataError
from cbtqa.psyqa import MAX_CHARS, DataReport, bundled_sample_path, check_file, parse_columns
from cbtqa.psyqa.report import Fault
from cbtqa.records import Question
from cbtqa.report.table import AnyColumn, Column, Table
from cbtqa.report.words import general
from cbtqa.safety.encoder import ScreenEncoder, open_encoder
from cbtqa.safety.screen import screen_each

app = CommandGroup(help="Look at question files before building from them.")


@app.callback()
def _group() -> None:
    pass  # keeps `check` a subcommand while it is the only one


@app.command()
def check(
    file: Annotated[
        Path | None,
        typer.Argument(
            help="PsyQA's JSON, or JSONL, CSV, TSV, Parquet; without it, the bundled sample."
        ),
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(
            "--column",
            help="FIELD=COLUMN, where names differ: question=title, question=info.title.",
        ),
    ] = None,
    first_turn: Annotated[
        bool,
        typer.Option(
            "--first-turn",
            help="The file holds conversations: what the client says first is the question.",
        ),
    ] = False,
    encoding: Annotated[str, typer.Option(help="Of a text file, such as gb18030.")] = "utf-8",
    max_chars: Annotated[int, typer.Option(help="Longest text accepted.")] = MAX_CHARS,
    screen_model: ScreenModel = None,
    as_json: AsJson = False,
) -> None:
    """What is in a file of questions, and which rows would be rejected, and why.

    Example: cbtqa data check PsyQA_full.json

    Exits with 4 when the file holds no usable question.
    """
    path = file or bundled_sample_path()
    columns = parse_columns(column or [])
    report = check_file(
        path,
        encoding=encoding,
        columns=columns,
        first_turn=first_turn,
        max_chars=max_chars,
        grade=partial(_grade, model=open_encoder(screen_model)),
    )
    print_json(report) if as_json else _print_report(report)
    if not report.n_usable:
        raise DataError(
            "no usable question in the file",
            where=str(path),
            hint="see what is wrong with the rows above; --column FIELD=COLUMN names a column",
        )


def _grade(questions: list[Question], model: ScreenEncoder | None) -> list[str]:
    screened = screen_each(questions, lambda question: question.source_text, model=model)
    return [screening.risk for _, screening in screened]


def _print_report(report: DataReport) -> None:
    for line in _headline(report):
        show(line)
    if report.n_usable:
        spreads = {**report.lengths, "answers each": report.answers_per_question}
        rows = [
            (name, one.n, one.min, one.median, one.mean, one.p95, one.max)
            for name, one in spreads.items()
        ]
        means = (Column(name, general) for name in ("median", "mean", "p95"))
        heads: list[AnyColumn] = ["characters", "n", "min", *means, "max"]
        show_table(Table(heads, rows, "Lengths"))
    for title, counts in (
        (f"Keywords ({report.n_distinct_keywords:,} distinct)", report.top_keywords),
        (f"Strategies in {report.n_labelled_answers:,} labelled answers", report.strategies),
        ("Risk by the crisis screen", report.risk or {}),
    ):
        if counts:
            shares = "  ".join(f"{name} {n:,}" for name, n in counts.items())
            show(f"\n{title}")
            show(shares, indent=2)
    for reason, fault in report.rejected.items():
        _print_fault(f"Rejected rows: {reason}", fault)
    if report.rejected_answers:
        _print_fault("Rejected answers (their questions stay)", report.rejected_answers)


def _headline(report: DataReport) -> list[str]:
    mark = ", with a byte-order mark" if report.has_bom else ""
    n_rejected = report.n_rows - report.n_usable - report.n_further
    further = f"{report.n_further:,} of earlier questions + " if report.n_further else ""
    lines = [
        f"{report.file}: {report.format}, {report.encoding}{mark}, {report.n_bytes:,} bytes",
        f"{report.n_rows:,} rows = {report.n_usable:,} usable + {further}{n_rejected:,} rejected",
        "columns: " + ", ".join(f"{field} from '{name}'" for field, name in report.columns.items()),
    ]
    notes = {
        "not read: " + ", ".join(report.unused_columns): bool(report.unused_columns),
        "no id column: ids are made from the content": report.makes_ids,
        f"{report.n_without_description:,} without description": report.n_without_description,
        f"{report.n_without_keywords:,} without keywords": report.n_without_keywords,
        f"{report.n_cleaned:,} freed of control or invisible characters": report.n_cleaned,
        f"{report.n_replacement:,} hold U+FFFD, traces of a wrong decoding": report.n_replacement,
        f"{report.n_hardly_chinese:,} hold hardly any Chinese": report.n_hardly_chinese,
        f"{report.n_entities:,} hold HTML entities such as &nbsp;, which stay": report.n_entities,
        f"{report.n_rounded_ids:,} ids are zeros after their 15th digit, as a spreadsheet writes "
        "long numbers: different questions may have lost their own": report.n_rounded_ids
        and report.n_rounded_ids == report.n_long_ids,
    }
    if report.id_range:
        low, high = report.id_range
        lines.append(f"ids: whole numbers, {low} to {high}")
    return lines + [note for note, holds in notes.items() if holds]


def _print_fault(title: str, fault: Fault) -> None:
    show(f"\n{title}: {fault.n:,}")
    for example in fault.examples:
        show(example, indent=2)
    if fault.n > len(fault.examples):
        show(f"... and {fault.n - len(fault.examples):,} more", indent=2)
