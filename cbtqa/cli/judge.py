"""`cbtqa judge`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from cbtqa.cli.console import live_progress, print_json, print_table, say
from cbtqa.cli.options import AsJson, settings_flags
from cbtqa.judging.run import JudgeSettings
from cbtqa.settings import Resolved

if TYPE_CHECKING:
    from cbtqa.judging.answers import JudgeRubric
    from cbtqa.judging.report import JudgeReport
    from cbtqa.statistics.agreement import Coefficient

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
        [name.replace("n_", "").replace("_", " "), f"{value:,}"]
        for name, value in counted.items()
        if isinstance(value, int)
    ]
    print_table(f"Nothing sent; tokens by {counted['tokenizer']}", ["", "n"], rows)


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
