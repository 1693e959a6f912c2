"""`cbtqa simulate judge`, `analyse` and `instruments`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cbtqa.cli.console import print_json, print_table, say
from cbtqa.cli.options import AsJson, settings_flags
from cbtqa.cli.progress import live_progress
from cbtqa.settings import Resolved
from cbtqa.simulation.analysis_settings import AnalysisSettings
from cbtqa.simulation.judge_settings import SessionJudgeSettings

if TYPE_CHECKING:
    from cbtqa.simulation.instruments import Instrument
    from cbtqa.simulation.judging import JudgedForm, JudgePlan
    from cbtqa.simulation.results import AnalysisReport, OutcomeResult

DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Count sessions, requests, tokens, cost; send nothing.")
]


@settings_flags(SessionJudgeSettings, positional="sessions")
def judge(
    resolved: Resolved[SessionJudgeSettings], dry_run: DryRun = False, as_json: AsJson = False
) -> None:
    """Rate sessions on CTRS, ACT-FM, TES: one instrument a call, blind to the arm, quotes checked.

    Without a judge named here or in the study, built-in rules rate (no model, for trying out).
    What cannot be rated is unscored with a reason. The same command continues after an
    interruption; another --model adds a judge.

    Example: cbtqa simulate judge cbtqa-study --instrument ctrs --endpoint vllm --model Qwen3-32B
    """
    from cbtqa.simulation.judging import judge_sessions, plan_judging

    if dry_run:
        plans = plan_judging(resolved)
        told = {"plans": [plan.model_dump(mode="json") for plan in plans]}
        print_json(told) if as_json else _show_plans(plans)
        return
    with live_progress() as progress:
        forms = judge_sessions(resolved, progress.update, progress.stage)
    told = {"judged": [form.model_dump(mode="json") for form in forms]}
    print_json(told) if as_json else _show_forms(forms, resolved.values.sessions)


@settings_flags(AnalysisSettings, positional="source")
def analyse(resolved: Resolved[AnalysisSettings], as_json: AsJson = False) -> None:
    """Compare arms: mixed models, contrasts, audits of endings and length, agreement, alarms.

    SOURCE is a judged study, or a table with one row per session (CSV, TSV, JSONL, Parquet).

    Example: cbtqa simulate analyse cbtqa-study --human ratings.jsonl

    Of a table, with a model of its factors: cbtqa simulate analyse scores.csv --instrument
    ctrs-ladder --arm-factors model,variant --terms "model,variant,z(session)" --out analysis
    """
    from cbtqa.simulation.analysis_files import PAGE_NAME, run_analysis

    report, out = run_analysis(resolved)
    print_json(report.model_dump(mode="json")) if as_json else _show_report(report)
    say(f"page: {out / PAGE_NAME}")


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
        _show_instruments(found)


# --- tables --------------------------------------------------------------------------------------


def _show_plans(plans: list[JudgePlan]) -> None:
    rows = [
        [
            f"{plan.judge}, {plan.instrument}",
            f"{plan.n_sessions - plan.n_unfit:,} of {plan.n_sessions:,}",
            f"{plan.n_requests:,}",
            f"{plan.n_done:,}",
            f"{plan.prompt_tokens:,}",
            f"{plan.completion_tokens:,}",
            "-" if plan.cost is None else f"{plan.cost:.2f} {plan.currency or ''}".strip(),
        ]
        for plan in plans
    ]
    columns = ["", "sessions", "requests", "done", "prompt tokens", "reply tokens", "cost"]
    print_table("Nothing sent", columns, rows)


def _show_forms(forms: list[JudgedForm], source: Path) -> None:
    rows = [
        [
            f"{form.judge}, {form.instrument}",
            f"{form.n_sessions:,}",
            str(form.n_repeats),
            f"{form.n_scored:,} of {form.n_ratings:,}",
            ", ".join(f"{reason} {n}" for reason, n in form.unscored.items()) or "-",
        ]
        for form in forms
    ]
    columns = ["judge, instrument", "sessions", "repeats", "items scored", "unscored"]
    print_table("Rated", columns, rows)
    if any(form.judge == "rules" for form in forms):
        say("warning: built-in rules count words; they are no model and nothing to be believed")
    say(f"next: cbtqa simulate analyse {source}")


def _show_report(report: AnalysisReport) -> None:
    for result in report.instruments:
        for outcome in result.outcomes:
            _show_outcome(outcome)
        if result.regression is not None:
            fit = result.regression.fit
            rows = [
                [
                    e.name,
                    f"{e.estimate:.3f}",
                    f"{e.se:.3f}",
                    f"{e.low:.2f} to {e.high:.2f}",
                    _p(e.p),
                ]
                for e in fit.effects
            ]
            columns = ["effect", "estimate", "SE", "95 % interval", "p"]
            print_table(result.regression.formula, columns, rows)
            aic = "" if fit.aic is None else f", AIC {fit.aic:.1f}"
            say(f"n {fit.n}{aic}; {fit.engine}")
    for row in report.endings:
        if row.n_early:
            say(f"stopped early: {row.arm} {row.n_early} of {row.n}")
    for alarm in report.alarms:
        where = f"{alarm.instrument}: " if alarm.instrument else ""
        say(f"alarm ({alarm.kind.replace('_', ' ')}): {where}{alarm.text}")


def _show_outcome(outcome: OutcomeResult) -> None:
    rows = [
        [
            one.arm,
            str(one.n),
            "-" if one.mean is None else f"{one.mean:.2f}",
            "-" if one.sd is None else f"{one.sd:.2f}",
            "-" if one.low is None else f"{one.low:.2f} to {one.high:.2f}",
            str(one.n_missing),
        ]
        for one in outcome.arms
    ]
    columns = ["arm", "n", "mean", "SD", "95 % interval", "missing"]
    title = f"{outcome.instrument} {outcome.total} ({outcome.low:g}-{outcome.high:g})"
    print_table(title, columns, rows)
    if outcome.omnibus is not None and outcome.fit is not None:
        test = outcome.omnibus
        clear = [one for one in outcome.contrasts if one.p_adjusted < 0.05]
        say(
            f"arms differ: chi2({test.df}) = {test.chi2:.2f}, p {_p(test.p)}; "
            f"{len(clear)} of {len(outcome.contrasts)} pairs at adjusted p < .05; "
            f"{outcome.fit.engine}"
        )
    elif outcome.no_fit_reason:
        say(f"no model: {outcome.no_fit_reason}")


def _p(value: float) -> str:
    return "< .001" if value < 0.001 else f"{value:.3f}"


def _show_instruments(found: list[Instrument]) -> None:
    rows = [
        [
            one.id,
            one.scale,
            ", ".join(f"{total.total} {total.low:g}-{total.high:g}" for total in one.totals({})),
            one.rubric.title.to("en"),
        ]
        for one in found
    ]
    print_table("Instruments for sessions", ["id", "items", "totals", "title"], rows)


def _show_instrument(one: Instrument) -> None:
    rows = [
        [item.id, item.section or "", f"{item.low}-{item.high}", item.question.to("en")]
        for item in one.items
    ]
    print_table(one.rubric.title.to("en"), ["item", "group", "range", "asks"], rows)
    for total in one.totals({}):
        say(f"total: {total.total} {total.low:g}-{total.high:g}")
    say(one.rubric.source)


def _described(one: Instrument) -> dict[str, Any]:
    return {
        "id": one.id,
        "title": one.rubric.title.to("en"),
        "source": one.rubric.source,
        "wording": one.wording,
        "items": [
            {
                "id": item.id,
                "group": item.section,
                "low": item.low,
                "high": item.high,
                "asks": item.question.to("en"),
            }
            for item in one.items
        ],
        "totals": [
            {"id": total.total, "low": total.low, "high": total.high} for total in one.totals({})
        ],
    }
