"""`cbtqa finetune`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cbtqa.cli.console import live_progress, print_json, say, show, show_content, show_table
from cbtqa.cli.language import told
from cbtqa.cli.options import AsJson, Newest, settings_flags
from cbtqa.errors import UsageError
from cbtqa.report.table import Cell, Column, Table
from cbtqa.report.words import count, count_of, digits, number, seconds, share, size
from cbtqa.settings import Resolved
from cbtqa.tuning.libraries import require_training
from cbtqa.tuning.settings import FinetuneSettings

if TYPE_CHECKING:
    from cbtqa.tuning.training.dry_run import CardEstimate, DryRun
    from cbtqa.tuning.training.finetune import FinetuneResult


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


@settings_flags(FinetuneSettings, positional="data", newest={"data": Newest("dataset")})
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

    cbtqa finetune --backbone baichuan

    cbtqa finetune runs/psyqa --backbone qwen2.5 --dry-run --cards 4

    cbtqa finetune runs/psyqa --backbone baichuan --preset paper --out runs/paper

    cbtqa finetune pairs.jsonl --backbone llama-3.2-3b --preset tahir-act-orpo
    """
    if dry_run:
        require_training()
        from cbtqa.tuning.training.dry_run import dry_run as work_out

        found = work_out(resolved, n_processes=cards)
        print_json(found) if as_json else show_dry_run(found)
        return
    if cards > 1:
        raise UsageError(
            "--cards goes with --dry-run",
            hint=f"to train on {cards}: torchrun --nproc_per_node {cards} -m cbtqa finetune ...",
        )
    from cbtqa.tuning.training.finetune import finetune as train

    with live_progress() as progress:
        shown = progress.update
        result = train(resolved, on_stage=say_first, on_line=_say_validation, on_progress=shown)
    if result.is_first_process:
        print_json(result.to_dict()) if as_json else _show(result)


def say_first(words: str) -> None:
    """Talk of the first of several processes."""
    import os

    if os.environ.get("RANK", "0") == "0":
        say(words)


def _say_validation(line: dict[str, float]) -> None:
    """A line of an evaluation; the loss of training is in the progress, and in log.jsonl."""
    if "eval_loss" not in line:
        return
    say(" | ".join(form.format(line[key]) for key, form in LINE_FORMS.items() if key in line))


LINE_FORMS = {
    "step": "step {:,.0f}",
    "epoch": "epoch {:.2f}",
    "eval_loss": "validation loss {:.4f}",
    "eval_preferred": "preferred {:.0%}",
    "sample_chrf2": "samples: chrF2 {:.1f}",
    "sample_bleu_zh": "BLEU {:.1f}",
}
"""What the line of an evaluation shows, in this order."""


def _show(result: FinetuneResult) -> None:
    counts = result.manifest.counts
    if result.was_complete:
        say(f"{result.folder} is complete already; nothing was done")
    rows: list[tuple[Cell, Cell]] = [("backbone", counts["base"]["name"])]
    for split in ("train", "validation"):
        if split in counts:
            figures = counts[split]
            rows.append((split, f"{figures['n_items']:,} examples, {figures['n_tokens']:,} tokens"))
            rows += [(f"  left out: {why}", n) for why, n in figures["dropped"].items()]
    rows.append(("steps", f"{counts['n_steps']:,} of {counts['n_steps_planned']:,}"))
    rows.append(("trainable parameters", counts["n_trainable"]))
    losses = (number(counts[name], 4) for name in ("first_loss", "last_loss"))
    rows.append(("loss", " to ".join(losses)))
    if counts["eval_loss"] is not None:
        where = f"{number(counts['eval_loss'], 4)} (step {counts['best_step']:,})"
        rows.append(("best validation loss", where))
    show_table(Table(["", ""], rows, str(result.folder)))
    for note in counts["notes"]:
        say(note)
    for what, name in (("loss curve", "loss.svg"), ("samples", "samples.jsonl")):
        if (result.folder / name).exists():
            say(f"{what}: {result.folder / name}")
    say(f"next: cbtqa generate --adapter {result.folder}; cbtqa merge {result.folder}")


GIB = 2**30
LEARNT, PROMPT = "bold green", "dim"


def show_dry_run(found: DryRun) -> None:
    """Prints the answer, then its details: tables and the example; notes go to stderr."""
    for line in answer_of(found):
        show(line, style="bold")
    show_table(_cards(found))
    show_table(_memory(found))
    show_table(Table(["", ""], _run(found), "Run"))
    show_table(_data(found))
    settings = [
        (name, "" if entry.value is None else str(entry.value), entry.origin)
        for name, entry in found.settings.items()
    ]
    show_table(Table(["", "value", "from"], settings, "Settings"))
    shares = sorted({one.assumed_share for one in found.cards})
    say(
        "times: at an assumed "
        + " to ".join(share(of_card, 0) for of_card in (shares[0], shares[-1]))
        + " of a card's data-sheet throughput, by card (cards.yaml); not measured"
    )
    if found.cpu is not None:
        say(
            f"this CPU: at {share(found.cpu.share, 0)} of the {number(found.cpu.gflops, 0)} "
            "GFLOP/s that a matrix product reached just now; evaluations come on top"
        )
    from rich.text import Text

    text = Text(f"\n{told('The first example; ')}", style="bold")
    text.append(told("green is learnt"), style=LEARNT)
    text.append(told(", the rest is only read") + "\n")
    for piece in found.example:
        text.append(piece.text, style=LEARNT if piece.is_learnt else PROMPT)
    show_content(text)
    for note in found.notes:
        say(f"note: {note}")


def answer_of(found: DryRun) -> list[str]:
    """Whether the run fits, on what, and how long it takes: a sentence for the CPU, one for cards.

    Sizes and times are estimates, see the tables that follow.
    """
    lines = []
    if (cpu := found.cpu) is not None:
        needs = f"needs {cpu.memory.total / GIB:.1f} of {cpu.memory_bytes / GIB:.1f} GiB"
        time = f", about {seconds(cpu.seconds)}" if cpu.fits else ""
        lines.append(f"This CPU: {'fits' if cpu.fits else 'does not fit'} ({needs}){time}.")
    whose = f"{found.n_processes} cards" if found.n_processes > 1 else "One card"
    fitting = [one for one in found.cards if one.seconds is not None]
    if fitting:
        least = min(fitting, key=lambda one: (one.memory_bytes, one.seconds or 0.0))
        fastest = min(fitting, key=lambda one: one.seconds or 0.0)
        told = f"{whose}: fits from {least.card} on (needs {least.needed_bytes / GIB:.1f} of "
        told += f"{least.memory_bytes / GIB:.1f} GiB), about {_time(least)} there"
        told += f", {_time(fastest)} on {fastest.card}" if fastest is not least else ""
        told += f"; {len(fitting)} of {len(found.cards)} kinds are large enough"
    elif divided := [one for one in found.cards if one.n_fsdp_cards is not None]:
        fewest = min(divided, key=lambda one: (one.n_fsdp_cards or 0, one.memory_bytes))
        told = f"{whose}: fits on no kind; divided by FSDP it fits on {fewest.n_fsdp_cards} x "
        told += fewest.card
    else:
        least_bytes = min(one.needed_bytes for one in found.cards)
        told = f"{whose}: fits on no kind (needs {least_bytes / GIB:.1f} GiB and more); try "
        told += "--method qlora, --gradient-checkpointing on or a smaller backbone"
    rough = "; token counts are approximate" if found.tokens_by == "approximation" else ""
    return [*lines, f"{told}{rough}."]


def _data(found: DryRun) -> Table:
    rows: list[tuple[Cell, ...]] = []
    spreads = ("p5", "p50", "p95", "max")
    for name, counts in found.data.items():
        figures = (counts[key] for key in ("n_items", "n_dropped", "n_tokens", "n_learnt_tokens"))
        rows.append((name, *figures, *(round(counts["tokens"][key]) for key in spreads)))
        rows += [(f"  {reason}", "", n, *[""] * 6) for reason, n in counts["dropped"].items()]
    heads = ["", "items", "left out", "tokens", "learnt", *spreads]
    return Table(heads, rows, f"Data, tokens by {found.tokens_by}")


def _run(found: DryRun) -> list[tuple[Cell, Cell]]:
    layout = found.layout
    per_batch = f"{count(layout.mean_tokens)} (at most {count(layout.most_tokens)})"
    return [
        ("backbone", f"{found.backbone} ({found.licence})"),
        ("parameters", found.n_parameters),
        ("trained", count_of(found.n_trainable, found.n_parameters, 2)),
        ("optimiser steps", layout.n_steps),
        ("micro-batches per step", number(layout.n_micro_batches, 1)),
        ("tokens per micro-batch", per_batch),
        ("of the token budget used", share(layout.fill)),
        ("padding", share(layout.padding)),
        ("tokens in all", found.total_tokens),
        ("GFLOP per token", number(found.flops_per_token / 1e9, 1)),
        ("activations per token", size(found.bytes_per_token)),
        ("  recomputed", size(found.checkpointed_bytes_per_token)),
    ]


def _memory(found: DryRun) -> Table:
    parts = [name for name in type(found.memory["plain"]).model_fields if name != "total"]
    rows: list[tuple[Cell, ...]] = []
    for name in [*parts, "total"]:
        sizes = (getattr(memory, name) / GIB for memory in found.memory.values())
        rows.append((f"{name} (assumed)" if name == "overhead" else name, *sizes))
    cards = f"each of {found.n_processes} cards" if found.n_processes > 1 else "one card"
    heads = (Column(name, number) for name in ("as it is", "recomputing"))
    return Table(["", *heads], rows, f"GiB on {cards}, {found.memory_by}")


def _cards(found: DryRun) -> Table:
    rows: list[tuple[Cell, ...]] = []
    if (cpu := found.cpu) is not None:
        sizes = cpu.memory_bytes / GIB, cpu.memory.total / GIB
        time = seconds(cpu.seconds) if cpu.fits else "does not fit"
        rows.append((f"this CPU, {cpu.precision}", *sizes, _yes(cpu.checkpointing), time))
    for one in found.cards:
        sizes = one.memory_bytes / GIB, one.needed_bytes / GIB
        rows.append((one.card, *sizes, _yes(one.checkpointing), _time(one)))
    heads = (Column(name, digits(1)) for name in ("has GiB", "needs GiB"))
    return Table(["", *heads, "recomputes", "time"], rows, "Cards")


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _time(one: CardEstimate) -> str:
    if one.seconds is not None:
        return seconds(one.seconds)
    return "does not fit" + (f"; FSDP on {one.n_fsdp_cards}" if one.n_fsdp_cards else "")
