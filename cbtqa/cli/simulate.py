"""`cbtqa simulate`: simulated therapy sessions, from patients to training rows and studies."""

from __future__ import annotations

import shlex
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cbtqa.cli.console import give, live_progress, print_json, print_table, say, show, show_table
from cbtqa.cli.dry_run import DryRun, print_estimate, say_opinions
from cbtqa.cli.help import CommandGroup
from cbtqa.cli.options import AsJson, Newest, settings_flags
from cbtqa.manifest import FolderResult
from cbtqa.report.table import AnyColumn, Column, Table
from cbtqa.report.words import digits, share
from cbtqa.settings import Resolved
from cbtqa.simulation.analysis.settings import AnalysisSettings
from cbtqa.simulation.export import ExportSettings
from cbtqa.simulation.judging.run import SessionJudgeSettings
from cbtqa.simulation.lint import LintSettings
from cbtqa.simulation.patients import PatientSettings
from cbtqa.simulation.playing.run import CorpusSettings, RunSettings
from cbtqa.splits import SPLITS

if TYPE_CHECKING:
    from cbtqa.simulation.analysis.results import AnalysisReport, InstrumentResult
    from cbtqa.simulation.export import Exported
    from cbtqa.simulation.instruments import Instrument
    from cbtqa.simulation.judging.run import JudgedForm
    from cbtqa.simulation.lint import LintReport

app = CommandGroup(
    name="simulate",
    help="Multi-turn English therapy sessions between models: simulated, for research only, never "
    "for treating anyone. Start with: [bold]cbtqa simulate run[/bold]",
)
Update = Annotated[
    bool,
    typer.Option(
        "--update", help="Play anew the sessions that the folder holds with other settings."
    ),
]


@app.command("profiles")
@settings_flags(PatientSettings, positional="source")
def profiles(
    resolved: Resolved[PatientSettings], dry_run: DryRun = False, as_json: AsJson = False
) -> None:
    """Draw simulated patients by seed, or check a file of your own; nobody in them is real.

    Example: cbtqa simulate profiles act --n 150 --seed 7 --out patients.yaml
    """
    from cbtqa.simulation.patients import estimate_stories, make_patients

    if dry_run:
        print_estimate(estimate_stories(resolved.values), as_json)
        return
    with live_progress() as progress:
        made = make_patients(resolved.values, on_progress=progress.update)
    rows = [(one.id, one.name, one.archetype, one.narrative) for one in made]
    table = Table(["id", "name", "kind", "story"], rows, f"{len(made)} simulated patients")
    give(as_json, {"profiles": [profile.model_dump(mode="json") for profile in made]}, table)
    if resolved.values.out:
        say(f"written to {resolved.values.out}; in a study: patients: {{file: ...}}")


@app.command("corpus")
@settings_flags(CorpusSettings, positional="study")
def corpus(
    resolved: Resolved[CorpusSettings],
    dry_run: DryRun = False,
    update: Update = False,
    as_json: AsJson = False,
) -> None:
    """Make transcripts to learn from: written courses of CBT, or supervised sessions of ACT.

    Without arguments: three courses of twenty sessions by built-in rules, offline.

    Example: cbtqa simulate corpus tahir-cbt-corpus --out runs/cbt-corpus --dry-run
    """
    _play(resolved.values, dry_run, update, as_json)


@app.command("run")
@settings_flags(RunSettings, positional="study")
def run(
    resolved: Resolved[RunSettings],
    dry_run: DryRun = False,
    update: Update = False,
    as_json: AsJson = False,
) -> None:
    """Play every arm of a study with the same patients, seeds and events; resume where it stopped.

    Without arguments: a small study between built-in players, offline, into ./cbtqa-study. With
    --endpoint and --model alone: six sessions in which that model plays both sides.

    Example: cbtqa simulate run tahir-act --patients 5 --dry-run
    """
    _play(resolved.values, dry_run, update, as_json)


@app.command("export")
@settings_flags(ExportSettings, positional="sessions", newest={"sessions": Newest("study")})
def export(
    resolved: Resolved[ExportSettings], dry_run: DryRun = False, as_json: AsJson = False
) -> None:
    """Turn sessions into rows for `cbtqa finetune`: SFT and ORPO, split by patient, form as served.

    With --format inspect judged sessions become logs for `inspect view`, one an arm.

    [bold]Examples[/bold]

    cbtqa simulate export cbtqa-corpus --reasoning plain --out rows

    cbtqa simulate export cbtqa-study --format inspect --out logs
    """
    from cbtqa.simulation.export import estimate_export, export_sessions
    from cbtqa.simulation.inspect_logs import export_logs

    if dry_run:
        print_estimate(estimate_export(resolved.values), as_json)
        return
    if resolved.values.format == "inspect":
        _show_logs(export_logs(resolved), as_json)
        return
    with live_progress() as progress:
        made = export_sessions(resolved, on_progress=progress.update)
    _show_export(made, as_json)


def _show_export(made: Exported, as_json: bool) -> None:
    for warning in made.warnings:
        say(f"warning: {warning}")
    counts = made.manifest.counts
    if as_json:
        print_json({"folder": str(made.folder), "counts": counts, "warnings": made.warnings})
        return
    kinds = [kind for kind in ("sft", "orpo", "messages") if kind in counts]
    rows = [[kind, *(f"{counts[kind][split]:,}" for split in SPLITS)] for kind in kinds]
    print_table(f"{made.folder}: rows, split by {counts['split_by']}", ["", *SPLITS], rows)
    for reason, n in counts["dropped"].items():
        say(f"left out: {reason} {n:,}")
    say(f"for TRL {counts['trl']['range']}; next: cbtqa simulate lint {made.folder}")


def _show_logs(made: FolderResult, as_json: bool) -> None:
    counts = made.manifest.counts
    if as_json:
        print_json(made.to_dict())
        return
    print_table(f"{made.folder}: logs for Inspect", ["arm", "log"], counts["logs"].items())
    say(f"{counts['n_judged']:,} of {counts['n_sessions']:,} sessions are judged")
    say(f"scorers: {', '.join(counts['scorers'])}")
    for judge in counts["unfinished"]:
        say(f"warning: {judge} has not ended and is left out")
    say(f"open them: inspect view --log-dir {shlex.quote(str(made.folder))}")


@app.command("lint")
@settings_flags(LintSettings, positional="path", newest={"path": Newest("study")})
def lint(
    resolved: Resolved[LintSettings], dry_run: DryRun = False, as_json: AsJson = False
) -> None:
    """Name all in which arms differ besides the factor; audit endings, lengths, splits, speakers.

    Exit code 4 when anything worse than a note was found.

    Example: cbtqa simulate lint tahir-act-as-published

    With a model that reads finished sessions as well: cbtqa simulate lint sessions.jsonl
    --guard-endpoint vllm --guard-model Qwen3-32B --out marked.jsonl
    """
    from cbtqa.simulation.lint import estimate_lint, lint_as_set

    settings = resolved.values
    if dry_run:
        print_estimate(estimate_lint(settings), as_json)
        return
    with live_progress() as progress:
        report = lint_as_set(settings, progress.update)
    found = {**report.model_dump(mode="json"), "is_clean": report.is_clean}
    print_json(found) if as_json else _show_lint(report)
    if settings.out is not None and not as_json:
        say(f"written to {settings.out}")
    if not report.is_clean:
        raise typer.Exit(4)


@app.command("judge")
@settings_flags(SessionJudgeSettings, positional="sessions", newest={"sessions": Newest("study")})
def judge(
    resolved: Resolved[SessionJudgeSettings], dry_run: DryRun = False, as_json: AsJson = False
) -> None:
    """Rate sessions on CTRS, ACT-FM, TES: one instrument a call, blind to the arm, quotes checked.

    Without a judge named here or in the study, built-in rules rate (no model, for trying out).
    What cannot be rated is unscored with a reason. The same command continues after an
    interruption; another --model adds a judge.

    Example: cbtqa simulate judge cbtqa-study --instrument ctrs --endpoint vllm --model Qwen3-32B
    """
    from cbtqa.simulation.judging.run import estimate_judging, judge_sessions

    if dry_run:
        print_estimate(estimate_judging(resolved), as_json)
        return
    with live_progress() as progress:
        forms = judge_sessions(resolved, progress.update, progress.stage)
    found = {"judged": [form.model_dump(mode="json") for form in forms]}
    print_json(found) if as_json else _show_forms(forms, resolved.values)


@app.command("analyse")
@settings_flags(AnalysisSettings, positional="source", newest={"source": Newest("study")})
def analyse(resolved: Resolved[AnalysisSettings], as_json: AsJson = False) -> None:
    """Compare arms: mixed models, contrasts, audits of endings and length, agreement, alarms.

    SOURCE is a judged study, or a table with one row per session (CSV, TSV, JSONL, Parquet).

    Example: cbtqa simulate analyse cbtqa-study --human ratings.jsonl

    Of a table, its instruments, columns and factors found by their names: cbtqa simulate analyse
    scores.csv --patients profiles.json --by archetype_name --out analysis
    """
    from cbtqa.simulation.analysis.run import PAGE_NAME, run_analysis

    report, out = run_analysis(resolved)
    print_json(report) if as_json else _show_report(report)
    if out is not None:
        say(f"page: {out / PAGE_NAME}")
    elif not as_json:
        say("no folder was written; --out FOLDER writes the page, its figures and the CSV files")


@app.command("instruments")
def instruments(
    instrument: Annotated[
        str | None, typer.Argument(help="Show this one: an id, or the path of your rubric.")
    ] = None,
    wording: Annotated[
        Path | None, typer.Option("--wording", help="File with the exact words of the form.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the instruments for sessions, or show one with its items, ranges and totals.

    Example: cbtqa simulate instruments act-fm
    """
    from cbtqa.simulation.instruments import load_instrument, shipped_instruments

    names = [instrument] if instrument else shipped_instruments()
    found = [load_instrument(name, wording) for name in names]
    if as_json:
        print_json({"instruments": [_described(one) for one in found]})
    elif instrument:
        _show_instrument(found[0])
    else:
        rows = [
            (one.id, one.scale, ", ".join(_totals(one)), one.rubric.title.to("en")) for one in found
        ]
        show_table(Table(["id", "items", "totals", "title"], rows, "Instruments for sessions"))


def _show_forms(forms: list[JudgedForm], settings: SessionJudgeSettings) -> None:
    rows = [
        (
            *(f"{form.judge}, {form.instrument}", form.n_sessions, form.n_repeats),
            f"{form.n_scored:,} of {form.n_ratings:,}",
            ", ".join(f"{reason} {n}" for reason, n in form.unscored.items()) or None,
        )
        for form in forms
    ]
    columns = ["judge, instrument", "sessions", "repeats", "items scored", "unscored"]
    show_table(Table(columns, rows, "Rated"))
    for form in forms:
        if form.n_asked_again:
            say(
                f"{form.judge}, {form.instrument}: {form.n_asked_again:,} items were asked about "
                "once more, by themselves, with their fault named; "
                f"{form.n_mended:,} of them are scored since"
            )
    if any(form.judge == "rules" for form in forms):
        say("warning: built-in rules count words; they are no model and nothing to be believed")
    given = ["cbtqa", "simulate", "analyse", str(settings.sessions)]
    if settings.out:
        given += ["--judged", str(settings.out)]
    if not settings.sessions.is_dir():
        given += ["--out", "analysis"]
    say(f"next: {shlex.join(given)}")


def _show_report(report: AnalysisReport) -> None:
    from cbtqa.simulation.analysis.page import (
        missing_table,
        outcome_table,
        reasons_of_means,
        regression_table,
    )
    from cbtqa.simulation.analysis.tests_in_words import clear_pairs, f_text, wald_text

    for what in report.reading:
        say(f"read as {what}")
    for result in report.instruments:
        for outcome in result.outcomes:
            show_table(outcome_table(result, outcome))
            for what in reasons_of_means(outcome):
                say(f"no interval of the mean of {what}")
            found, published = outcome.comparison, outcome.published
            if found.reason is not None:
                say(f"arms are not tested: {found.reason}")
            else:
                say(f"arms, patients random: {f_text(found.test)}; {clear_pairs(found.contrasts)}")
            if published.omnibus is not None and found.reason is None:
                pairs = f"{wald_text(published.omnibus)}; {clear_pairs(published.contrasts)}"
                say(f"as published, without patient by arm (p too small): {pairs}")
        if result.missing:
            show_table(missing_table(result))
        if result.regression is not None:
            show_table(regression_table(result.regression))
            for reason in dict.fromkeys(one.reason for one in result.regression.effects):
                if reason is not None:
                    say(f"no interval and no p: {reason}")
            for test in result.regression.tests:
                say(f"{test.name}: {f_text(test)}")
        _show_exploration(result)
    for row in report.endings:
        if row.n_early:
            say(f"stopped early: {row.arm} {row.n_early} of {row.n}")
    for marked in report.marks:
        where = f"{marked.n_turns} of {marked.of_turns} turns in {marked.n_sessions} sessions"
        say(f"marked {marked.mark.replace('_', ' ')}: {marked.arm} {where}")
    for alarm in report.alarms:
        where = f"{alarm.instrument}: " if alarm.instrument else ""
        say(f"alarm ({alarm.kind.replace('_', ' ')}): {where}{alarm.text}")


def _show_exploration(result: InstrumentResult) -> None:
    from cbtqa.simulation.analysis.group_tables import attributes_table, prediction_table

    found = result.exploration
    if found is None:
        return
    tested = [one for one in found.wins if one.p_adjusted is not None]
    if tested:
        n = sum((one.p_adjusted or 0) < 0.05 for one in tested)
        how, fewest = "sign test, Holm p < 0.05", min(one.n for one in tested)
        if 2 * 0.5**fewest > 0.05:
            how += f"; of {fewest} patients no p is below {2 * 0.5**fewest:g}"
        say(f"win rates: {n} of {len(tested)} pairs with one arm ahead ({how})")
    if found.groups:
        show_table(attributes_table(result))
    if found.prediction is not None:
        show_table(prediction_table(result))
    elif found.no_prediction_reason is not None:
        say(f"nothing is predicted from the patients: {found.no_prediction_reason}")


def _show_instrument(one: Instrument) -> None:
    rows = [
        [item.id, item.section or "", f"{item.low}-{item.high}", item.question.to("en")]
        for item in one.items
    ]
    show_table(Table(["item", "group", "range", "asks"], rows, one.rubric.title.to("en")))
    for total in _totals(one):
        say(f"total: {total}")
    say(one.rubric.source)


def _totals(one: Instrument) -> list[str]:
    return [f"{total.total} {total.low:g}-{total.high:g}" for total in one.totals({})]


def _described(one: Instrument) -> dict[str, Any]:
    items = [
        {"id": item.id, "group": item.section, "low": item.low, "high": item.high}
        | {"asks": item.question.to("en")}
        for item in one.items
    ]
    totals = [{"id": each.total, "low": each.low, "high": each.high} for each in one.totals({})]
    words = {"title": one.rubric.title.to("en"), "source": one.rubric.source}
    return {"id": one.id, **words, "wording": one.wording, "items": items, "totals": totals}


def _play(settings: RunSettings, dry_run: bool, update: bool, as_json: bool) -> None:
    from cbtqa.simulation.playing.opinions import session_opinions

    study = settings.declared()
    if dry_run:
        from cbtqa.simulation.playing.estimate import estimate_study
        from cbtqa.simulation.playing.opinions import with_opinions

        limits = settings.run_limits.engine
        estimate = estimate_study(study, settings.out, limits)
        opinions = session_opinions(settings, settings.out)
        sizes = estimate.n_items, study.turns.max, study.sessions
        found = with_opinions(estimate, opinions, settings.out, *sizes)
        print_estimate(found, as_json)
        return
    from cbtqa.simulation.playing.run import run_study

    opinions = session_opinions(settings, settings.out)
    with live_progress() as progress:
        result = run_study(
            study,
            settings.out,
            limits=settings.run_limits,
            update=update,
            is_acknowledged=settings.acknowledge_disclosure,
            opinions=opinions,
            screen_model=settings.screen_model,
            on_progress=progress.update,
        )
    counts = result.counts
    if as_json:
        made = FolderResult(result.folder.path, result.manifest, result.was_complete)
        print_json({**made.to_dict(), "counts": counts})
        return
    if result.was_complete:
        second = "the further models alone were asked" if opinions.services else "nothing was asked"
        say(f"{result.folder.path} was complete already; {second}")
    reasons = sorted({reason for stops in counts["stops"].values() for reason in stops})
    stopped = counts["stops"].items()
    rows = [(arm, *(stops.get(reason, 0) for reason in reasons)) for arm, stops in stopped]
    title = f"{counts['n_sessions']} simulated sessions by how they ended"
    show_table(Table(["arm", *reasons], rows, title))
    say_opinions(counts.get("second_opinion", {}))
    say(f"sessions: {result.folder.sessions_path}")
    say(f"next:     cbtqa simulate lint {result.folder.path}")
    say(result.manifest.acknowledgements["notice"])


def _show_lint(report: LintReport) -> None:
    if report.arms:
        rows = [
            (
                *(arm, one.n_sessions, one.early_share, one.therapist_turns, one.words_per_turn),
                ", ".join(f"{reason} {n}" for reason, n in one.stops.items()) or None,
            )
            for arm, one in report.arms.items()
        ]
        early = Column("early ends", partial(share, digits=0))
        lengths = (Column(name, digits(1)) for name in ("turns", "words a turn"))
        columns: list[AnyColumn] = ["arm", "sessions", early, *lengths, "endings"]
        show_table(Table(columns, rows, "endings and lengths"))
    if report.factor:
        say(f"meant to differ: {', '.join(report.factor)}")
    for finding in report.findings:
        show(f"{finding.severity}: {finding.message}")
    say_opinions(report.second_opinion)
    if report.is_clean:
        say(f"{report.kind}: nothing worse than a note")
