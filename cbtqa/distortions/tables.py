"""Results as table rows and summaries, for the command line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cbtqa.distortions.annotators import LabelAgreement
from cbtqa.distortions.evaluate import F1, EvaluationReport, SystemReport
from cbtqa.distortions.studies import TrainedReport
from cbtqa.distortions.taxonomy import Taxonomy, load_taxonomy, shipped_taxonomies
from cbtqa.statistics.agreement import Coefficient

Table = tuple[str, list[str], list[list[str]]]
"""Title, columns, rows."""


def rows_of_types(summary: Mapping[str, Any]) -> list[list[str]]:
    """Types with their rows, and how many rows have none."""
    rows = [[type_id, f"{count:,}"] for type_id, count in summary["types"].items()]
    return [*rows, ["(none)", f"{summary['n_rows'] - summary['n_labelled']:,}"]]


def rows_of_training(report: TrainedReport) -> list[list[str]]:
    """Types, then any distortion, micro and macro."""
    rows = [_f1_row(type_id, entry) for type_id, entry in report.types.items()]
    if report.binary and report.micro and len(report.types) > 1:
        rows.append(_f1_row("any distortion", report.binary))
        rows.append(_f1_row("micro", report.micro))
        rows.append(["macro", "", "", "", _figure(report.macro_f1)])
    return rows


def rows_of_evaluation(report: EvaluationReport) -> list[Table]:
    """Tables of a report: any distortion beside the paper, then each labeller, then tests."""
    tables = [_table_of_any(report)]
    for name, system in report.systems.items():
        tables += _tables_of_system(name, system)
    comparisons = [
        [
            entry.decision,
            entry.first,
            entry.second,
            f"{entry.only_first_right} / {entry.only_second_right}",
            f"{entry.p_holm:.4f}",
        ]
        for entry in report.comparisons
    ]
    if comparisons:
        columns = ["decision", "first", "second", "only one right", "p (Holm)"]
        tables.append(("McNemar's exact test", columns, comparisons))
    return tables


def _table_of_any(report: EvaluationReport) -> Table:
    columns = ["labeller", "accuracy", "precision", "recall", "F1", "95 % interval"]
    rows = [
        [
            name,
            _figure(system.accuracy),
            *_f1_row("", system.binary)[2:],
            _range(system.binary.low, system.binary.high),
        ]
        for name, system in report.systems.items()
    ]
    paper = report.paper
    rows.append(
        [
            "arXiv 2403.16008, Table 3",
            _figure(paper["accuracy"]),
            "-",
            _figure(paper["recall"]),
            _figure(paper["f1"]),
            f"n = {paper['n']:.0f}, other texts",
        ]
    )
    return f"Any distortion, {report.n_texts:,} texts", columns, rows


def _tables_of_system(name: str, system: SystemReport) -> list[Table]:
    body = [
        [*_f1_row(type_id, entry), _range(entry.low, entry.high)]
        for type_id, entry in system.types.items()
    ]
    body.append([*_f1_row("micro", system.micro), _range(system.micro.low, system.micro.high)])
    macro = ["", "", "", _figure(system.macro_f1), _range(system.macro_low, system.macro_high)]
    body.append([f"macro of {system.n_types_in_macro}", *macro])
    body.append(["samples", "", "", "", _figure(system.samples_f1), ""])
    body.append(["exactly right", "", "", "", _figure(system.subset_accuracy), ""])
    columns = ["type", "texts", "precision", "recall", "F1", "95 % interval"]
    tables: list[Table] = [(name, columns, body)]
    pairs = [[pair.gold, pair.given, str(pair.n)] for pair in system.confusions[:8]]
    if pairs:
        tables.append((f"{name}: missed and given instead", ["gold", "given", "n"], pairs))
    bins = [
        [
            f"{entry.low:.1f}-{entry.high:.1f}",
            str(entry.n),
            _figure(entry.mean_confidence),
            _figure(entry.share_right),
        ]
        for entry in system.calibration
    ]
    if bins:
        title = f"{name}: reliability (expected error {_figure(system.calibration_error)})"
        tables.append((title, ["confidence", "labels", "mean", "right"], bins))
    errors = [
        [error.kind, error.type, _figure(error.confidence), error.where, error.text]
        for error in system.errors
    ]
    if errors:
        columns = ["what", "type", "confidence", "where", "text"]
        tables.append((f"{name}: instructive errors", columns, errors))
    return tables


def rows_of_agreement(agreement: LabelAgreement) -> list[list[str]]:
    """Alpha of each type, of any, and over the sets."""
    entries: list[tuple[str, Coefficient]] = [
        *agreement.types.items(),
        ("any distortion", agreement.any),
        ("sets (MASI)", agreement.masi),
    ]
    return [
        [
            name,
            entry.reason or _figure(entry.value),
            _range(entry.low, entry.high),
            str(entry.n_items),
        ]
        for name, entry in entries
    ]


def rows_of_taxonomies() -> list[list[str]]:
    """The shipped taxonomies."""
    loaded = [load_taxonomy(name) for name in shipped_taxonomies()]
    return [[entry.id, str(len(entry.types)), entry.title, entry.citation] for entry in loaded]


def rows_of_taxonomy(taxonomy: Taxonomy) -> list[list[str]]:
    """The types of one taxonomy."""
    return [
        [
            entry.id,
            f"{entry.zh} / {entry.en}",
            entry.definition_en or entry.definition,
            entry.example,
        ]
        for entry in taxonomy.types
    ]


def _f1_row(name: str, entry: F1) -> list[str]:
    figures = [_figure(entry.precision), _figure(entry.recall), _figure(entry.f1)]
    return [name, str(entry.support), *figures]


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _range(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{low:.3f} to {high:.3f}"
