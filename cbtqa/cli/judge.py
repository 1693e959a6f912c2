"""`cbtqa judge`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cbtqa.cli.console import live_progress, print_json, print_table, say
from cbtqa.cli.dry_run import DryRun, print_estimate
from cbtqa.cli.options import AsJson, settings_flags
from cbtqa.judging.run import JudgeSettings
from cbtqa.settings import Resolved

if TYPE_CHECKING:
    from cbtqa.judging.report import JudgeReport
    from cbtqa.statistics.agreement import Coefficient


@settings_flags(JudgeSettings, positional="predictions")
def judge(
    resolved: Resolved[JudgeSettings], dry_run: DryRun = False, as_json: AsJson = False
) -> None:
    """Let a language model rate answers on the rubric people use, and check it against people.

    Each answer is rated alone, several times, without its system's name. Give --human, or the
    means stay a model's opinion. The same command continues a run that was interrupted.

    [bold]Example[/bold]

    cbtqa judge tuned.jsonl base.jsonl --questions PsyQA_full.json --endpoint vllm
    --model Qwen3-32B --human study/report/ratings.jsonl --out runs/judge
    """
    from cbtqa.judging.run import estimate_judge
    from cbtqa.judging.run import judge as run_judge

    if dry_run:
        print_estimate(estimate_judge(resolved), as_json)
        return
    with live_progress() as progress:
        report = run_judge(resolved, progress.update)
    print_json(report.model_dump(mode="json")) if as_json else _show(report)
    say(f"ratings and report in {resolved.values.out}")


def _show(report: JudgeReport) -> None:
    corrected = {(one.system, one.criterion): one for one in report.corrections}
    rows = []
    for score in report.scores:
        found = corrected.get((score.system, score.metric.removeprefix("judge_")))
        rows.append(
            [
                f"{score.system}, {score.metric.removeprefix('judge_')} ({score.unit})",
                _interval(score.value, score.low, score.high),
                f"{found.human_mean:.2f} (n {found.corrected.n_human})" if found else "-",
                _interval(found.corrected.value, found.corrected.low, found.corrected.high)
                if found
                else "-",
                f"{score.n_scored:,}/{score.n_total:,}",
            ]
        )
    columns = ["", "judge", "people", "corrected", "scored"]
    print_table(
        f"Rated by {report.judge} on {report.rubric}, {report.n_repeats} times", columns, rows
    )
    _show_agreement(report)
    for alarm in report.alarms:
        say(f"warning: {alarm}")
    for signature in dict.fromkeys(score.signature for score in report.scores):
        say(signature)


def _show_agreement(report: JudgeReport) -> None:
    rows = []
    for found in report.agreement:
        groups = (("judge-people", found.judge_human), ("people", found.human_human))
        for who, coefficients in groups:
            rows += [
                [f"{found.criterion}, {who}: {one.name}", *_cells(one)] for one in coefficients
            ]
        if found.bias is not None:
            rows.append([f"{found.criterion}, judge less people", f"{found.bias:+.2f}", "", ""])
    rows += [
        [f"{one.criterion}, judge with itself: {one.alpha.name}", *_cells(one.alpha)]
        for one in report.consistency
    ]
    print_table("Agreement", ["", "value", "95 % interval", "n"], rows)


def _cells(one: Coefficient) -> list[str]:
    value = f"{one.value:.3f}" if one.value is not None else f"undefined ({one.reason})"
    interval = "" if one.low is None else f"{one.low:.3f} to {one.high:.3f}"
    return [value, interval, f"{one.n_items:,}"]


def _interval(value: float | None, low: float | None, high: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if low is None else f"{value:.2f} [{low:.2f}, {high:.2f}]"
