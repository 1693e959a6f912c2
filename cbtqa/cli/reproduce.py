"""`cbtqa reproduce` and `cbtqa report`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from cbtqa.cli.console import live_progress, print_json, say, show, show_table
from cbtqa.cli.dry_run import DryRun
from cbtqa.cli.options import AsJson, settings_flags
from cbtqa.report.table import Cell, Column, Table
from cbtqa.report.words import GAP, digits, money
from cbtqa.reproduce.stages import ReportSettings, ReproduceSettings
from cbtqa.settings import Resolved

if TYPE_CHECKING:
    from cbtqa.reproduce.experiment import Reproduced
    from cbtqa.reproduce.pipeline import StageState

Only = Annotated[
    list[str] | None,
    typer.Option(
        "--only", metavar="STAGE", help="Only this stage, such as score or finetune:qwen; repeated."
    ),
]
From = Annotated[
    str | None,
    typer.Option("--from", metavar="STAGE", help="Begin at this stage; those before it are done."),
]


@settings_flags(ReproduceSettings, positional="recipe")
def reproduce(
    resolved: Resolved[ReproduceSettings],
    only: Only = None,
    from_: From = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Run one experiment from end to end: data, tuning, answers, scores, ratings, one report.

    Recipes: cbt-llm, cbtqa-modern, tahir-cbt, tahir-act, or a YAML file. Every stage is the verb of
    its name; what is done is not done again, and the same command continues after an interruption.

    [bold]Examples[/bold]

    cbtqa reproduce cbt-llm --smoke

    cbtqa reproduce cbt-llm --data PsyQA_full.json --dry-run

    cbtqa reproduce cbt-llm --data PsyQA_full.json --set build.endpoint=vllm
    --set build.model=Qwen3-32B --out runs/cbt-llm

    cbtqa reproduce cbt-llm --from score
    """
    from cbtqa.reproduce.experiment import run_experiment
    from cbtqa.reproduce.stages import Watch

    with live_progress() as progress:
        done = run_experiment(
            resolved.values,
            only or (),
            from_,
            dry_run=dry_run,
            watch=Watch(progress.update, progress.stage),
            on_state=_say_state,
        )
    for path in done.report.files if done.report else ():
        say(f"report: {path}")
    if as_json:
        print_json(done.to_dict())
    elif dry_run:
        _show_costs(done)
    else:
        rows = [(one.stage, one.state, one.why or "") for one in done.stages]
        show_table(Table(["stage", "state", ""], rows, str(done.folder)))


def _say_state(state: StageState, n: int, n_all: int) -> None:
    more = f" ({state.why})" if state.state == "skipped" else ""
    say(f"[{n}/{n_all}] {state.stage}: {state.state}{more}")


def _show_costs(done: Reproduced) -> None:
    costs = [(one.stage, one.state, *_cost(one)) for one in done.stages]
    heads: list[Any] = ["stage", "state", "requests", "price", Column("hours", digits(1))]
    title = f"dry run: nothing was sent, nothing was trained; hours on one {done.card}"
    show_table(Table(heads, costs, title))
    why: dict[str, list[str]] = {}
    for one in done.stages:
        waits = "waits " if one.state == "waiting" else ""
        why.setdefault(waits + (one.why or one.cost.note), []).append(one.stage)
    for reason, stages_of_it in why.items():
        if reason:
            show(f"{', '.join(stages_of_it)}: {reason}", indent=2)


def _cost(one: StageState) -> tuple[Cell, ...]:
    if one.state in ("done", "skipped"):
        return "", "", ""
    cost = one.cost
    price = "unknown" if cost.money is None else money(cost.money or None, cost.currency)
    return cost.n_requests, price if price != GAP else "", cost.card_hours or None


@settings_flags(ReportSettings, positional="runs")
def report(resolved: Resolved[ReportSettings]) -> None:
    """Write one page of one or several experiments: our tables beside the paper's, with intervals.

    Example: cbtqa report runs/cbt-llm runs/modern --out runs/report
    """
    from cbtqa.reproduce.report import write_report

    for path in write_report(resolved.values).files:
        say(f"written: {path}")
