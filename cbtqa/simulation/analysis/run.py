"""The folder an analysis leaves: page, figures as JSON and CSV, methods, manifest."""

from __future__ import annotations

from pathlib import Path

from cbtqa.errors import DataError, UsageError
from cbtqa.files import write_json, write_text
from cbtqa.manifest import MANIFEST_NAME, describe_file, new_manifest, now, write_manifest
from cbtqa.report.table import Table
from cbtqa.settings import Resolved
from cbtqa.simulation.analysis.analyse import Material, analyse
from cbtqa.simulation.analysis.page import analysis_page, methods_text
from cbtqa.simulation.analysis.results import AnalysisReport
from cbtqa.simulation.analysis.settings import AnalysisSettings

ANALYSIS = "analysis"
PAGE_NAME, JSON_NAME = "report.html", "analysis.json"
SCORES_NAME, CONTRASTS_NAME, METHODS_NAME = "scores.csv", "contrasts.csv", "methods.md"


def run_analysis(resolved: Resolved[AnalysisSettings]) -> tuple[AnalysisReport, Path]:
    """Analyses and writes the folder; gives the report and where it lies.

    Raises:
        DataError: there is no such source.
        UsageError: a table without `out`; else what `analysis.analyse` raises.
    """
    started, settings = now(), resolved.values
    if not settings.source.exists():
        raise DataError(
            "no such study or table", where=str(settings.source), hint="cbtqa simulate run"
        )
    out = settings.out or (settings.source / ANALYSIS if settings.source.is_dir() else None)
    if out is None:
        raise UsageError("where to? a table wants --out", hint="add --out FOLDER")
    report, material = analyse(resolved)
    (out / MANIFEST_NAME).unlink(missing_ok=True)
    methods = methods_text(report, settings)
    write_json(out / JSON_NAME, report)
    write_text(out / SCORES_NAME, _score_table(material).csv())
    write_text(out / CONTRASTS_NAME, _contrast_table(report).csv())
    write_text(out / METHODS_NAME, f"{methods.en}\n\n{methods.zh}\n")
    write_text(out / PAGE_NAME, analysis_page(report, methods, settings.lang))
    names = (JSON_NAME, SCORES_NAME, CONTRASTS_NAME, METHODS_NAME, PAGE_NAME)
    manifest = new_manifest(
        "session-analysis",
        resolved,
        started,
        inputs=tuple(
            describe_file(path) for path in (settings.source, *settings.human) if path.is_file()
        ),
        counts={"n_sessions": report.n_sessions, "n_alarms": len(report.alarms)},
        files=tuple(describe_file(out / name, out) for name in names),
    )
    write_manifest(out, manifest)
    return report, out


def _score_table(material: Material) -> Table:
    heads = ("session", "arm", "patient", "number", "instrument", "total", "value")
    rows = [
        (
            *(row.session_id, row.arm, row.patient, row.number, one.instrument, one.total),
            *(one.value, one.low, one.high),
        )
        for scored in material.scored
        for row in scored.rows
        for one in row.totals
    ]
    return Table([*heads, "low", "high"], rows)


def _contrast_table(report: AnalysisReport) -> Table:
    heads = ("instrument", "total", "first", "second", "difference", "se", "z", "p", "p_adjusted")
    rows = [
        (
            *(result.instrument, outcome.total, one.first, one.second, one.difference, one.se),
            *(one.z, one.p, one.p_adjusted, one.low, one.high, one.d),
        )
        for result in report.instruments
        for outcome in result.outcomes
        for one in outcome.contrasts
    ]
    return Table([*heads, "low", "high", "d"], rows)
