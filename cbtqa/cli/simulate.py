"""`cbtqa simulate`: simulated therapy sessions, from patients to training rows and studies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cbtqa.cli.console import print_json, print_table, say
from cbtqa.cli.options import AsJson, settings_flags
from cbtqa.cli.progress import live_progress
from cbtqa.cli.simulate_study import analyse, instruments, judge
from cbtqa.settings import Resolved
from cbtqa.simulation.run_settings import RunSettings

if TYPE_CHECKING:
    from cbtqa.simulation.estimate import StudyEstimate
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
    settings = resolved.values
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
            on_progress=progress.update,
        )
    _show_run(result, as_json)


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
