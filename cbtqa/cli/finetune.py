"""`cbtqa finetune`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from cbtqa.cli.console import print_json, print_table, say
from cbtqa.cli.options import AsJson, settings_flags
from cbtqa.errors import UsageError
from cbtqa.settings import Resolved
from cbtqa.tuning.settings import FinetuneSettings

if TYPE_CHECKING:
    from cbtqa.tuning.train import FinetuneResult

DryRunFlag = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Work out tokens, memory, arithmetic and time on named cards; train nothing.",
    ),
]
Cards = Annotated[
    int, typer.Option("--cards", min=1, help="With --dry-run: so many cards share each step.")
]


@settings_flags(FinetuneSettings, positional="data")
def finetune(
    resolved: Resolved[FinetuneSettings],
    dry_run: DryRunFlag = False,
    cards: Cards = 1,
    as_json: AsJson = False,
) -> None:
    """Tune a backbone on a built dataset, or on rows of a file, with LoRA.

    Flags win over the preset. The same command continues a run that was interrupted. Several
    cards: torchrun --nproc_per_node 4 -m cbtqa finetune ...

    [bold]Examples[/bold]

    cbtqa finetune runs/psyqa --backbone qwen2.5 --dry-run --cards 4

    cbtqa finetune runs/psyqa --backbone baichuan-7b-llama --preset paper --out runs/paper

    cbtqa finetune pairs.jsonl --backbone llama-3.2-3b --preset tahir-act-orpo
    """
    if dry_run:
        from cbtqa.cli.dry_run_page import show_dry_run
        from cbtqa.tuning.dry_run import dry_run as work_out

        found = work_out(resolved, n_processes=cards)
        print_json(found.model_dump(mode="json")) if as_json else show_dry_run(found)
        return
    if cards > 1:
        raise UsageError(
            "--cards goes with --dry-run",
            hint=f"to train on {cards}: torchrun --nproc_per_node {cards} -m cbtqa finetune ...",
        )
    from cbtqa.tuning.train import finetune as train

    result = train(resolved, on_stage=say_first, on_line=_say_line)
    if result.is_first_process:
        print_json(_summary(result)) if as_json else _show(result)


def say_first(words: str) -> None:
    """Talk of the first of several processes."""
    import os

    if os.environ.get("RANK", "0") == "0":
        say(words)


def _say_line(line: dict[str, float]) -> None:
    parts = [f"step {line['step']:,.0f}", f"epoch {line['epoch']:.2f}"]
    for key, form in LINE_FORMS.items():
        if key in line:
            parts.append(form.format(line[key]))
    say(" | ".join(parts))


LINE_FORMS = {
    "loss": "loss {:.4f}",
    "eval_loss": "validation loss {:.4f}",
    "preferred": "preferred {:.0%}",
    "eval_preferred": "preferred {:.0%}",
    "sample_chrf2": "samples: chrF2 {:.1f}",
    "sample_bleu_zh": "BLEU {:.1f}",
    "grad_norm": "gradient {:.2f}",
    "learning_rate": "lr {:.2e}",
    "tokens_per_s": "{:,.0f} tokens/s",
    "tflops_per_s": "{:.3g} TFLOP/s",
    "mfu": "MFU {:.1%}",
    "peak_gib": "peak {:.1f} GiB",
}
"""What a log line shows, in this order."""


def _summary(result: FinetuneResult) -> dict[str, Any]:
    return {
        "folder": str(result.folder),
        "was_complete": result.was_complete,
        "counts": result.manifest.counts,
    }


def _show(result: FinetuneResult) -> None:
    counts = result.manifest.counts
    if result.was_complete:
        say(f"{result.folder} is complete already; nothing was done")
    rows = [["backbone", counts["base"]["name"]]]
    for split in ("train", "validation"):
        if split in counts:
            told = counts[split]
            rows.append([split, f"{told['n_items']:,} examples, {told['n_tokens']:,} tokens"])
            rows += [[f"  left out: {why}", f"{n:,}"] for why, n in told["dropped"].items()]
    rows.append(["steps", f"{counts['n_steps']:,} of {counts['n_steps_planned']:,}"])
    rows.append(["trainable parameters", f"{counts['n_trainable']:,}"])
    rows.append(["loss", f"{_number(counts['first_loss'])} to {_number(counts['last_loss'])}"])
    if counts["eval_loss"] is not None:
        where = f" (step {counts['best_step']:,})"
        rows.append(["best validation loss", _number(counts["eval_loss"]) + where])
    print_table(f"{result.folder}", ["", ""], rows)
    for note in counts["notes"]:
        say(note)
    for what, name in (("loss curve", "loss.svg"), ("samples", "samples.jsonl")):
        if (result.folder / name).exists():
            say(f"{what}: {result.folder / name}")
    say(f"next: cbtqa generate DATASET --adapter {result.folder}; cbtqa merge {result.folder}")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
