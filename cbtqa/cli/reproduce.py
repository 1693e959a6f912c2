"""`cbtqa reproduce` and `cbtqa report`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cbtqa.cli.console import live_progress, print_json, say, show, show_table
from cbtqa.cli.dry_run import DryRun
from cbtqa.cli.options import AsJson, settings_flags
from cbtqa.report.table import Cell, Column, Table
from cbtqa.report.words import GAP, digits, money
from cbtqa.reproduce.stages import FORMATS, ReportSettings, ReproduceSettings
from cbtqa.settings import Resolved

if TYPE_CHECKING:
    from cbtqa.reproduce.pipeline import StageState
    from cbtqa.reproduce.stages import Plan

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
    from cbtqa.reproduce.pipeline import chosen_stages, make_plan, stages_of

    plan = make_plan(resolved.values)
    stages = stages_of(plan)
    chosen = chosen_stages(stages, only or (), from_)
    if not dry_run:
        _run(plan, stages, chosen, is_quiet=as_json)
        if not only or "report" in only:
            _report(plan)
    _show_states(plan, stages if dry_run else chosen, stages, is_dry=dry_run, as_json=as_json)


def _run(plan: Plan, stages: Sequence[Any], chosen: Sequence[Any], *, is_quiet: bool) -> None:
    from cbtqa.reproduce.pipeline import reproduce as run_stages
    from cbtqa.reproduce.stages import Watch

    def on_state(state: StageState, n: int, n_all: int) -> None:
        more = f" ({state.why})" if state.state == "skipped" else ""
        say(f"[{n}/{n_all}] {state.stage}: {state.state}{more}")

    with live_progress() as progress:
        run_stages(plan, stages, chosen, Watch(progress.update, progress.stage), on_state)


def _report(plan: Plan) -> None:
    from cbtqa.reproduce.report import write_report

    for path in write_report(ReportSettings(runs=(plan.root,), format_=FORMATS)):
        say(f"report: {path}")


def _show_states(
    plan: Plan, asked: Sequence[Any], stages: Sequence[Any], *, is_dry: bool, as_json: bool
) -> None:
    from cbtqa.reproduce.pipeline import states

    names = {one.name for one in asked}
    found = [one for one in states(plan, stages, with_cost=is_dry) if is_dry or one.stage in names]
    if as_json:
        rows = [one.model_dump(mode="json") for one in found]
        place = {"folder": str(plan.root), "recipe": plan.recipe.id, "smoke": plan.settings.smoke}
        print_json({**place, "dry_run": is_dry, "card": plan.card, "stages": rows})
        return
    if not is_dry:
        rows_of = [(one.stage, one.state, one.why or "") for one in found]
        show_table(Table(["stage", "state", ""], rows_of, str(plan.root)))
        return
    costs = [(one.stage, one.state, *_cost(one)) for one in found]
    heads: list[Any] = ["stage", "state", "requests", "price", Column("hours", digits(1))]
    title = f"dry run: nothing was sent, nothing was trained; hours on one {plan.card}"
    show_table(Table(heads, costs, title))
    why: dict[str, list[str]] = {}
    for one in found:
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

    for path in write_report(resolved.values):
        say(f"written: {path}")
