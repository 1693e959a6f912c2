"""`cbtqa simulate`: simulated therapy sessions, from patients to training rows and studies."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cbtqa.cli import simulate_study
from cbtqa.cli.console import out, print_json, print_table, say
from cbtqa.cli.options import AsJson, settings_flags
from cbtqa.cli.progress import live_progress
from cbtqa.cli.simulate_study import analyse, instruments, judge
from cbtqa.settings import Resolved
from cbtqa.simulation.export import ExportSettings
from cbtqa.simulation.patients import PatientSettings
from cbtqa.simulation.run_settings import CorpusSettings, RunSettings
from cbtqa.splits import SPLITS

if TYPE_CHECKING:
    from cbtqa.simulation.estimate import StudyEstimate
    from cbtqa.simulation.lint import LintReport
    from cbtqa.simulation.run import RunResult

app = typer.Typer(
    name="simulate",
    no_args_is_help=True,
    help="Multi-turn English therapy sessions between models: simulated, for research only, never "
    "for treating anyone. Start with: [bold]cbtqa simulate run[/bold]",
)
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Count calls, tokens and price by model; send nothing.")
]
Update = Annotated[
    bool,
    typer.Option(
        "--update", help="Play anew the sessions that the folder holds with other settings."
    ),
]


@app.command("profiles")
@settings_flags(PatientSettings, positional="source")
def profiles(resolved: Resolved[PatientSettings], as_json: AsJson = False) -> None:
    """Draw simulated patients by seed, or check a file of your own; nobody in them is real.

    Example: cbtqa simulate profiles act --n 150 --seed 7 --out patients.yaml
    """
    from cbtqa.simulation.patients import make_patients

    with live_progress() as progress:
        made = make_patients(resolved.values, on_progress=progress.update)
    if as_json:
        print_json({"profiles": [profile.model_dump(mode="json") for profile in made]})
        return
    rows = [[one.id, one.name, one.archetype or "-", _short(one.narrative)] for one in made]
    print_table(f"{len(made)} simulated patients", ["id", "name", "kind", "story"], rows)
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

    Example: cbtqa simulate corpus recipes/tahir-cbt-corpus.yaml --out runs/cbt-corpus --dry-run
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

    Without arguments: a small study between built-in players, offline, into ./cbtqa-study.

    Example: cbtqa simulate run recipes/tahir-act.yaml --patients 5 --dry-run
    """
    _play(resolved.values, dry_run, update, as_json)


@app.command("export")
@settings_flags(ExportSettings, positional="sessions")
def export(resolved: Resolved[ExportSettings], as_json: AsJson = False) -> None:
    """Turn sessions into rows for `cbtqa finetune`: SFT and ORPO, split by patient, form as served.

    Example: cbtqa simulate export cbtqa-corpus --reasoning plain --out rows
    """
    from cbtqa.simulation.export import export_sessions

    with live_progress() as progress:
        made = export_sessions(resolved, on_progress=progress.update)
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


@app.command("lint")
def lint(
    path: Annotated[
        Path,
        typer.Argument(help="Study file, study folder, export folder, or file of transcripts."),
    ] = Path("cbtqa-study"),
    against: Annotated[
        Path | None,
        typer.Option(
            "--against", help="For an export: study file whose patients must not be in training."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Name all in which arms differ besides the factor; audit endings, lengths, splits, speakers.

    Exit code 4 when anything worse than a note was found.

    Example: cbtqa simulate lint recipes/tahir-act-as-published.yaml
    """
    from cbtqa.simulation.lint import lint as check

    report = check(path, against=against)
    if as_json:
        print_json({**report.model_dump(mode="json"), "is_clean": report.is_clean})
    else:
        _show_lint(report)
    if not report.is_clean:
        raise typer.Exit(4)


app.command("judge")(simulate_study.judge)
app.command("analyse")(simulate_study.analyse)
app.command("instruments")(simulate_study.instruments)


def _play(settings: RunSettings, dry_run: bool, update: bool, as_json: bool) -> None:
    study = settings.declared()
    if dry_run:
        from cbtqa.simulation.estimate import estimate_study

        estimated = estimate_study(study, settings.out)
        print_json(estimated.model_dump(mode="json")) if as_json else _show_estimate(estimated)
        return
    from cbtqa.simulation.run import run_study

    with live_progress() as progress:
        result = run_study(
            study,
            settings.out,
            limits=settings.limits(),
            update=update,
            is_acknowledged=settings.acknowledge_disclosure,
            on_progress=progress.update,
        )
    _show_run(result, as_json)


def _short(text: str, most: int = 60) -> str:
    return text if len(text) <= most else text[: most - 3].rstrip() + "..."


def _show_lint(report: LintReport) -> None:
    if report.arms:
        rows = [
            [
                arm,
                str(one.n_sessions),
                "-" if one.early_share is None else f"{one.early_share:.0%}",
                "-" if one.therapist_turns is None else f"{one.therapist_turns:.1f}",
                "-" if one.words_per_turn is None else f"{one.words_per_turn:.1f}",
                ", ".join(f"{reason} {n}" for reason, n in one.stops.items()) or "-",
            ]
            for arm, one in report.arms.items()
        ]
        columns = ["arm", "sessions", "early ends", "turns", "words a turn", "endings"]
        print_table("endings and lengths", columns, rows)
    if report.factor:
        say(f"meant to differ: {', '.join(report.factor)}")
    for finding in report.findings:
        out.print(f"{finding.severity}: {finding.message}", markup=False, soft_wrap=True)
    if report.is_clean:
        say(f"{report.kind}: nothing worse than a note")


def _show_estimate(estimated: StudyEstimate) -> None:
    rows = [
        [
            one.model,
            f"{one.n_calls:,}",
            f"{one.prompt_tokens:,}",
            f"{one.completion_tokens:,}",
            "unknown" if one.cost is None else f"{one.cost:,.2f} {one.currency}".strip(),
        ]
        for one in estimated.players
    ]
    columns = ["model", "calls at most", "prompt tokens", "completion tokens", "price"]
    print_table("dry run: nothing was sent", columns, rows)
    total = "unknown" if estimated.cost is None else f"{estimated.cost:,.2f}"
    say(
        f"{estimated.n_sessions:,} sessions, {estimated.n_calls:,} calls at most, "
        f"{estimated.n_done:,} of them in the journal already; price {total}"
    )
    say("every session counted to its most turns; lengths of replies assumed (docs/simulation.md)")


def _show_run(result: RunResult, as_json: bool) -> None:
    counts = result.counts
    if as_json:
        told = {"folder": str(result.folder.path), "was_complete": result.was_complete}
        usage = result.manifest.usage.model_dump() if result.manifest.usage else None
        print_json({**told, "counts": counts, "usage": usage, "cost": result.manifest.cost})
        return
    if result.was_complete:
        say(f"{result.folder.path} was complete already; nothing was asked")
    reasons = sorted({reason for stops in counts["stops"].values() for reason in stops})
    rows = [
        [arm, *(str(stops.get(reason, 0)) for reason in reasons)]
        for arm, stops in counts["stops"].items()
    ]
    title = f"{counts['n_sessions']} simulated sessions by how they ended"
    print_table(title, ["arm", *reasons], rows)
    say(f"sessions: {result.folder.sessions_path}")
    say(f"next:     cbtqa simulate lint {result.folder.path}")
    say(result.manifest.acknowledgements["notice"])


app.command("judge")(judge)
app.command("analyse")(analyse)
app.command("instruments")(instruments)
