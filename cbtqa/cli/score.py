"""`cbtqa score` and `cbtqa compare`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from cbtqa.cli.console import live_progress, print_json, say, show_table
from cbtqa.cli.options import AsJson, Newest, settings_flags
from cbtqa.manifest import now, refuse_empty
from cbtqa.metrics.comparison import CompareSettings, Comparison
from cbtqa.metrics.scoring import Scored, ScoreSettings, bring_references
from cbtqa.report.table import Table
from cbtqa.report.words import signed
from cbtqa.settings import Resolved

Signatures = Annotated[
    bool,
    typer.Option(
        "--signatures", help="Also print every setting able to change a score, metric by metric."
    ),
]


NO_SCORE = "each score's reason is above: mend what it names, then score again"


def _bring_references(values: Mapping[str, Any]) -> bool:
    return bring_references(
        values["predictions"], values.get("encoding", "utf-8"), values.get("ref_column")
    )


@settings_flags(
    ScoreSettings,
    positional="predictions",
    newest={
        "predictions": Newest("answers"),
        "ref": Newest("dataset", is_needless=_bring_references),
    },
)
def score(
    resolved: Resolved[ScoreSettings], signatures: Signatures = False, as_json: AsJson = False
) -> None:
    """Score predictions against references with Chinese metrics, several systems side by side.

    Every number comes with its unit, 95 % interval and counts; its signature is in scores.md.

    [bold]Examples[/bold]

    cbtqa score

    cbtqa score baichuan.jsonl qwen.jsonl --ref cbtqa-dataset --out runs/scores

    cbtqa score baichuan.jsonl --ref answers.csv --ref-column reply --metrics paper

    cbtqa score generated_predictions.jsonl

    cbtqa score hyp.txt --ref ref.txt
    """
    from cbtqa.metrics import scoring
    from cbtqa.metrics.score_folder import refuse_existing, write_folder

    started, out = now(), resolved.values.out
    if out is not None:
        refuse_existing(out)
    with live_progress() as progress:
        scored = scoring.score(resolved.values, progress.count)
    if out is not None:
        write_folder(out, scored, resolved, started)
        say(f"written to {out}")
    print_json(scored.report) if as_json else _show(scored, signatures)
    anchors = {one.system for one in scored.report.systems if one.is_anchor}
    scores = [one for one in scored.report.scores if one.system not in anchors]
    n_scored = sum(one.value is not None for one in scores)
    refuse_empty(n_scored, len(scores), "scores has a value", {}, kept=out, hint=NO_SCORE)


def _show(scored: Scored, with_signatures: bool) -> None:
    from cbtqa.metrics.tables import (
        beside_paper,
        beside_people,
        missing_scores,
        not_asked_for,
        score_table,
    )

    report, scores = scored.report, scored.report.scores
    anchors = [one.system for one in report.systems if one.is_anchor]
    show_table(score_table(scores), f"{report.references}: {report.n_references} pairs")
    for table in (*beside_people(report.beside_people), beside_paper(scores, anchors)):
        show_table(table)
    columns = ["n_rows", "n_missing", "n_none", "n_empty", "n_identical", "n_repeated"]
    columns += ["n_cut", "n_machine"]
    systems = [one for one in report.systems if not one.is_anchor]
    rows = [[one.system, *(getattr(one, column) for column in columns)] for one in systems]
    show_table(Table(["system", *(column[2:] for column in columns)], rows, "Counts"))
    if with_signatures:
        for signature in dict.fromkeys(score.signature for score in scores):
            say(signature)
    for line in (*missing_scores(scores), *not_asked_for(scores), *report.notes):
        say(line)
    for warning in report.warnings:
        say(f"warning: {warning}")


@settings_flags(CompareSettings, positional="predictions")
def compare(resolved: Resolved[CompareSettings], as_json: AsJson = False) -> None:
    """Test whether systems differ: differences with intervals, adjusted p, win rates, examples.

    Takes files of predictions with --ref, or folders made by cbtqa score --out.

    [bold]Examples[/bold]

    cbtqa compare base.jsonl tuned.jsonl --ref cbtqa-dataset --baseline base --out runs/compare

    cbtqa compare runs/scores
    """
    from cbtqa.metrics import comparison
    from cbtqa.metrics.comparison import COMPARISON_NAME, write_comparison
    from cbtqa.metrics.score_folder import refuse_existing

    out = resolved.values.out
    if out is not None:
        refuse_existing(out, COMPARISON_NAME)
    with live_progress() as progress:
        found = comparison.compare(resolved.values, progress.count)
    if out is not None:
        write_comparison(out, found, resolved.values.lang)
        say(f"written to {out}")
    print_json(found) if as_json else _show_comparison(found)


def _show_comparison(found: Comparison) -> None:
    from cbtqa.metrics.comparison import missing_figures, pair_tables, tests_made
    from cbtqa.metrics.tables import label_of

    for table in pair_tables(found):
        show_table(table, f"{table.title}, against {found.references}")
    say(tests_made(found))
    say(found.grouping.line)
    for line in missing_figures(found):
        say(line)
    for one in found.best[:3]:
        by = f"{label_of(one.metric)} {signed(one.difference, 4)}"
        say(f"{one.system} gains most over {one.baseline} at {one.id}: {by}")
    for one in found.worst[:3]:
        by = f"{label_of(one.metric)} {signed(one.difference, 4)}"
        say(f"{one.system} loses most to {one.baseline} at {one.id}: {by}")
    for warning in found.warnings:
        say(f"warning: {warning}")
