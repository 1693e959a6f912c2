"""`cbtqa build-dataset`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from cbtqa.cli.console import live_progress, print_json, say, show_table
from cbtqa.cli.dry_run import DryRun, print_estimate, say_opinions
from cbtqa.cli.options import AsJson, settings_flags
from cbtqa.dataset.settings import BuildSettings
from cbtqa.errors import UsageError
from cbtqa.report.table import Cell, Table
from cbtqa.settings import Resolved

if TYPE_CHECKING:
    from cbtqa.manifest import FolderResult

Fork = Annotated[
    bool,
    typer.Option(
        "--fork",
        help="Prompt, model or sampling differ from the journal in --out: leave that one as it is "
        "and use one of its own beside it.",
    ),
]
Update = Annotated[
    bool,
    typer.Option(
        "--update",
        help="Write a finished folder again from its paid replies; ask only what is new or "
        "failed at the endpoint.",
    ),
]
Preview = Annotated[
    int | None,
    typer.Option(
        "--preview",
        min=1,
        metavar="N",
        help="Answer N questions only and show them on a page, through several --prompt or --model "
        "side by side. The journal in --out keeps the replies: the whole run pays for none again.",
    ),
]
PreviewSeed = Annotated[
    int, typer.Option("--preview-seed", help="Another seed shows other questions.")
]


@settings_flags(BuildSettings, positional="input", several=("prompt", "model"))
def build_dataset(
    variants: Sequence[Resolved[BuildSettings]],
    dry_run: DryRun = False,
    preview: Preview = None,
    preview_seed: PreviewSeed = 0,
    fork: Fork = False,
    update: Update = False,
    as_json: AsJson = False,
) -> None:
    """Build a Chinese CBT QA dataset from PsyQA questions.

    Without arguments: the bundled sample, answered by the embedded template teacher, into
    ./cbtqa-dataset. The same command continues a run that was interrupted.

    [bold]Examples[/bold]

    cbtqa build-dataset

    cbtqa build-dataset PsyQA_full.json --endpoint vllm --model Qwen3-32B --out runs/psyqa

    cbtqa build-dataset PsyQA_full.json --endpoint vllm --model Qwen3-32B --out runs/psyqa
    --preview 5 --prompt cbt_answer --prompt mine.md
    """
    if preview is not None:
        _preview(variants, preview, preview_seed, dry_run, as_json)
        return
    if len(variants) > 1:
        raise UsageError("several --prompt or --model are compared with --preview N; a run has one")
    (resolved,) = variants
    if dry_run:
        from cbtqa.dataset.run import estimate_build

        print_estimate(estimate_build(resolved), as_json)
        return
    from cbtqa.dataset.run import build_dataset as build

    with live_progress() as progress:
        result = build(
            resolved,
            fork=fork,
            update=update,
            on_progress=progress.update,
            on_stage=progress.stage,
        )
    print_json(result.to_dict()) if as_json else _show_result(resolved.values, result)


def _preview(
    variants: Sequence[Resolved[BuildSettings]], n: int, seed: int, dry_run: bool, as_json: bool
) -> None:
    from cbtqa.dataset.preview import estimate_preview, preview_build

    if dry_run:
        print_estimate(estimate_preview(variants, n, seed), as_json)
        return
    with live_progress() as progress:
        found = preview_build(
            variants, n, seed, on_progress=progress.update, on_stage=progress.stage
        )
    if as_json:
        print_json(found)
        return
    for table in found.tables():
        show_table(table)
    if found.left_out:
        told = ", ".join(f"{reason} {count}" for reason, count in found.left_out.items())
        say(f"rows of the input left out: {told}; the whole run lists them in rejects.jsonl")
    say(f"page: {found.page}")
    say("the whole run, the same command without --preview, pays for none of these replies again:")
    for one in found.variants:
        more = ", with --fork" if one.wants_fork else ""
        say(f"  {one.name}: {one.journal}{more}")


def _show_result(settings: BuildSettings, result: FolderResult) -> None:
    from cbtqa.dataset.report.measures import reply_rows, reply_tables

    counts = result.manifest.counts
    if result.was_complete:
        say(f"{result.folder} is complete already; nothing was done (--update writes it again)")
    rows: list[list[Cell]] = [["questions in", counts["n_in"]], ["answers out", counts["n_out"]]]
    rows += [[f"  {name}", n] for name, n in counts["splits"].items()]
    rows += [["rejected", counts["n_rejected"]]]
    rows += [[f"  {reason}", n] for reason, n in counts["rejected"].items()]
    rows += reply_rows(result.manifest)
    show_table(Table(["", "n"], rows, str(result.folder)))
    for table in reply_tables(counts):
        show_table(table)
    for name, share in (("validation", settings.validation), ("test", settings.test)):
        if share and name not in counts["splits"]:
            say(f"no question is in {name}: too few, or too alike, for a share of {share:.0%}")
    if found := counts.get("question_labels"):
        n, n_failed = found["n_read"] + found["n_failed"], found["n_failed"]
        say(f"labels: {found['n_read']} of {n} questions read by the model, with evidence")
        say(
            f"answers that name other types than the labels kept: {found['n_differ']}; "
            f"labels dropped, beyond the most of a question: {found['n_dropped']}"
        )
        if n_failed:
            why = ", ".join(f"{reason} {k}" for reason, k in found["failed"].items())
            say(
                f"labelling failed for {n_failed} ({why}): they have the types that their answers "
                "name; --retry rejected asks again"
            )
    say_opinions(counts.get("second_opinion", {}))
    say(f"report:  {result.folder / 'report.html'}")
    say(f"load it: datasets.load_dataset('{result.folder}')")
    if settings.is_offline:
        say("written by the template teacher (rules, no model): to try things out, not to train on")
        say("real data: cbtqa build-dataset PsyQA_full.json --endpoint URL --model NAME --out DIR")
