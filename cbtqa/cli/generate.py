"""`cbtqa generate`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cbtqa.cli.console import live_progress, print_json, say, show_table
from cbtqa.cli.dry_run import DryRun, print_estimate, say_opinions
from cbtqa.cli.options import AsJson, Newest, settings_flags
from cbtqa.report.table import Table
from cbtqa.settings import Resolved
from cbtqa.tuning.answering.settings import GenerateSettings

if TYPE_CHECKING:
    from cbtqa.tuning.answering.generate import GenerateResult


@settings_flags(
    GenerateSettings,
    positional="data",
    newest={"data": Newest("dataset"), "adapter": Newest("adapter", unless=("model", "endpoint"))},
)
def generate(
    resolved: Resolved[GenerateSettings], dry_run: DryRun = False, as_json: AsJson = False
) -> None:
    """Let a tuned model, any model or an endpoint answer a dataset's questions.

    The answers are what cbtqa score takes. The same command continues a run that was interrupted;
    empty, cut and leaking answers are counted, not scored.

    [bold]Examples[/bold]

    cbtqa generate

    cbtqa generate runs/psyqa --adapter runs/tuned --out runs/answers

    cbtqa generate runs/psyqa --model merged --limit 100 --out runs/try

    cbtqa generate runs/psyqa --endpoint vllm --model tuned --out runs/answers
    """
    if dry_run:
        from cbtqa.tuning.answering.generate import estimate_answers

        print_estimate(estimate_answers(resolved), as_json)
        return
    from cbtqa.tuning.answering.generate import generate as answer

    with live_progress() as progress:
        result = answer(resolved, on_progress=progress.update, on_stage=progress.stage)
    print_json(result.to_dict()) if as_json else _show(resolved.values, result)


def _show(settings: GenerateSettings, result: GenerateResult) -> None:
    counts, usage = result.manifest.counts, result.manifest.usage
    rows = [["questions", counts["n_in"]], ["answers", counts["n_out"]]]
    if counts["mode"] == "steps":
        rows.append(["  with all five steps", counts["n_with_steps"]])
    rows.append(["rejected", counts["n_rejected"]])
    rows += [[f"  {reason}", n] for reason, n in counts["rejected"].items()]
    safety = counts["safety"]
    rows.append(["answers with unsafe advice", safety["n_unsafe"]])
    both = {"by the checks": safety["n_by_problem"], "guard": safety["n_by_problem_of_guard"]}
    rows += [[f"  {name}, {who}", n] for who, found in both.items() for name, n in found.items()]
    if usage:
        rows.append(["tokens written", usage.completion_tokens])
    show_table(Table(["", "n"], rows, f"{counts['system']}: {result.folder}"))
    say_opinions(safety["second_opinion"])
    if settings.data is not None and settings.data.is_dir():
        more = "" if settings.split == "test" else f" --split {settings.split}"
        say(f"next: cbtqa score {result.folder / 'answers.jsonl'} --ref {settings.data}{more}")
