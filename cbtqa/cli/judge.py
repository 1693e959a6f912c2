"""`cbtqa judge`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from cbtqa.cli.console import live_progress, print_json, say, show_table
from cbtqa.cli.options import AsJson, settings_flags
from cbtqa.judging.run import JudgeSettings
from cbtqa.report.table import Table
from cbtqa.settings import Resolved

if TYPE_CHECKING:
    from cbtqa.judging.answers import JudgeRubric
    from cbtqa.judging.report import JudgeReport

DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Count answers, requests and tokens; send nothing.")
]


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
    from cbtqa.judging.run import estimate
    from cbtqa.judging.run import judge as run_judge

    rubric = judge_rubric(resolved.values.rubric)
    if dry_run:
        counted = estimate(resolved, rubric).model_dump(mode="json")
        print_json(counted) if as_json else _show_estimate(counted)
        return
    with live_progress() as progress:
        report = run_judge(resolved, rubric, progress.update)
    print_json(report.model_dump(mode="json")) if as_json else _show(report)
    say(f"ratings and report in {resolved.values.out}")


def judge_rubric(name: str) -> JudgeRubric:
    """The scales of a rubric for answers, in Chinese."""
    from cbtqa.errors import UsageError
    from cbtqa.judging.answers import JudgeCriterion, JudgeRubric
    from cbtqa.ratings.rubric import load_rubric

    rubric = load_rubric(name)
    scales = [criterion for criterion in rubric.criteria if criterion.kind == "scale"]
    if rubric.shows != "answer" or not scales:
        raise UsageError(f"the rubric {rubric.id} has no scale for answers", hint="cbt-llm has")
    return JudgeRubric(
        id=f"{rubric.id}.v{rubric.version}",
        sha256=rubric.sha256,
        criteria=tuple(
            JudgeCriterion(
                id=criterion.id,
                name=criterion.name.to("zh"),
                question=criterion.question.to("zh"),
                low=criterion.low,
                high=criterion.high,
                anchors={point: words.to("zh") for point, words in criterion.anchors.items()},
            )
            for criterion in scales
        ),
    )


def _show_estimate(counted: dict[str, Any]) -> None:
    rows = [
        (name.replace("n_", "").replace("_", " "), value)
        for name, value in counted.items()
        if isinstance(value, int)
    ]
    show_table(Table(["", "n"], rows, f"Nothing sent; tokens by {counted['tokenizer']}"))


def _show(report: JudgeReport) -> None:
    from cbtqa.judging.report import agreement_table, score_table

    show_table(score_table(report))
    show_table(agreement_table(report))
    for alarm in report.alarms:
        say(f"warning: {alarm}")
    for signature in dict.fromkeys(score.signature for score in report.scores):
        say(signature)
