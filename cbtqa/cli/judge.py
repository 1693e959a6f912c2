"""`cbtqa judge`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cbtqa.cli.console import live_progress, print_json, say, show_table
from cbtqa.cli.dry_run import DryRun, print_estimate
from cbtqa.cli.options import AsJson, settings_flags
from cbtqa.judging.run import JudgeSettings
from cbtqa.settings import Resolved

if TYPE_CHECKING:
    from cbtqa.judging.report import JudgeReport


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
    print_json(report) if as_json else _show(report)
    say(f"ratings and report in {resolved.values.out}")


def _show(report: JudgeReport) -> None:
    from cbtqa.judging.report import report_tables

    for table in report_tables(report):
        show_table(table)
    for alarm in report.alarms:
        say(f"warning: {alarm}")
    for signature in dict.fromkeys(score.signature for score in report.scores):
        say(signature)
