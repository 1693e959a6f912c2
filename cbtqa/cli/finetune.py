"""`cbtqa finetune`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from cbtqa.cli.console import describe_seconds, out, print_json, print_table, say
from cbtqa.cli.options import AsJson, Newest, settings_flags
from cbtqa.errors import UsageError
from cbtqa.settings import Resolved
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

    cbtqa finetune --backbone baichuan-7b-llama

    cbtqa finetune runs/psyqa --backbone qwen2.5 --dry-run --cards 4

    cbtqa finetune runs/psyqa --backbone baichuan-7b-llama --preset paper --out runs/paper

    cbtqa finetune pairs.jsonl --backbone llama-3.2-3b --preset tahir-act-orpo
    """
    if dry_run:
        from cbtqa.tuning.training.dry_run import dry_run as work_out

        found = work_out(resolved, n_processes=cards)
        print_json(found.model_dump(mode="json")) if as_json else show_dry_run(found)
        return
    if cards > 1:
        raise UsageError(
            "--cards goes with --dry-run",
            hint=f"to train on {cards}: torchrun --nproc_per_node {cards} -m cbtqa finetune ...",
        )
    from cbtqa.tuning.training.finetune import finetune as train

    result = train(resolved, on_stage=say_first, on_line=_say_line)
    if result.is_first_process:
        print_json(result.to_dict()) if as_json else _show(result)


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
    say(f"next: cbtqa generate --adapter {result.folder}; cbtqa merge {result.folder}")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


# --- dry run page --------------------------------------------------------------------------------
# A training run's dry run on the terminal: `show_dry_run(found)`.

GIB, MIB = 2**30, 2**20
LEARNT, PROMPT = "bold green", "dim"
SHOWN_CHARS = 600
"""Of each stretch of the example: a terminal is no place for whole answers."""


def show_dry_run(found: DryRun) -> None:
    """Prints tables and the example; notes go to stderr."""
    print_table("Settings", ["", "value", "from"], _settings(found))
    print_table(f"Data, tokens by {found.tokens_by}", _COLUMNS, _data(found))
    print_table("Run", ["", ""], _run(found))
    _show_memory(found)
    rows = [_card(found, one) for one in found.cards]
    print_table("Cards", ["", "has GiB", "needs GiB", "recomputes", "time"], rows)
    shares = sorted({one.assumed_share for one in found.cards})
    say(
        "times: at an assumed "
        + " to ".join(f"{share:.0%}" for share in (shares[0], shares[-1]))
        + " of a card's data-sheet throughput, by card (cards.yaml); not measured"
    )
    _show_example(found)
    for note in found.notes:
        say(f"note: {note}")


_COLUMNS = ["", "items", "left out", "tokens", "learnt", "p5", "p50", "p95", "max"]


def _settings(found: DryRun) -> list[list[str]]:
    return [
        [name, "" if entry.value is None else str(entry.value), entry.origin]
        for name, entry in found.settings.items()
    ]


def _data(found: DryRun) -> list[list[str]]:
    rows = []
    for name, counts in found.data.items():
        spread = counts["tokens"]
        figures = (counts["n_items"], counts["n_dropped"], counts["n_tokens"])
        spreads = (spread[key] for key in ("p5", "p50", "p95", "max"))
        rows.append(
            [name, *(f"{n:,}" for n in (*figures, counts["n_learnt_tokens"]))]
            + [f"{n:,.0f}" for n in spreads]
        )
        rows += [
            [f"  {reason}", "", f"{n:,}", *[""] * 6] for reason, n in counts["dropped"].items()
        ]
    return rows


def _run(found: DryRun) -> list[list[str]]:
    layout = found.layout
    share = found.n_trainable / found.n_parameters
    return [
        ["backbone", f"{found.backbone} ({found.licence})"],
        ["parameters", f"{found.n_parameters:,}"],
        ["trained", f"{found.n_trainable:,} ({share:.2%})"],
        ["optimiser steps", f"{layout.n_steps:,}"],
        ["micro-batches per step", f"{layout.n_micro_batches:.1f}"],
        ["tokens per micro-batch", f"{layout.mean_tokens:,.0f} (at most {layout.most_tokens:,})"],
        ["of the token budget used", f"{layout.fill:.1%}"],
        ["padding", f"{layout.padding:.1%}"],
        ["tokens in all", f"{found.total_tokens:,}"],
        ["GFLOP per token", f"{found.flops_per_token / 1e9:.1f}"],
        ["activations per token", f"{found.bytes_per_token / MIB:.2f} MiB"],
        ["  recomputed", f"{found.checkpointed_bytes_per_token / MIB:.2f} MiB"],
    ]


def _show_memory(found: DryRun) -> None:
    parts = [name for name in type(found.memory["plain"]).model_fields if name != "total"]
    rows = [
        [
            f"{name} (assumed)" if name == "overhead" else name,
            *(f"{getattr(memory, name) / GIB:.2f}" for memory in found.memory.values()),
        ]
        for name in [*parts, "total"]
    ]
    cards = f"each of {found.n_processes} cards" if found.n_processes > 1 else "one card"
    print_table(f"GiB on {cards}, counted", ["", "as it is", "recomputing"], rows)


def _card(found: DryRun, one: CardEstimate) -> list[str]:
    time = "does not fit"
    if one.seconds is not None:
        time = describe_seconds(one.seconds)
    elif one.n_fsdp_cards:
        time += f"; FSDP on {one.n_fsdp_cards}"
    recomputes = "yes" if one.checkpointing else "no"
    return [
        one.card,
        f"{one.memory_bytes / GIB:.1f}",
        f"{one.needed_bytes / GIB:.1f}",
        recomputes,
        time,
    ]


def _show_example(found: DryRun) -> None:
    text = Text("\nThe first example; ", style="bold")
    text.append("green is learnt", style=LEARNT).append(", the rest is only read\n")
    for piece in found.example:
        text.append(_shortened(piece.text), style=LEARNT if piece.is_learnt else PROMPT)
    out.print(text)


def _shortened(text: str) -> str:
    if len(text) <= SHOWN_CHARS:
        return text
    half = SHOWN_CHARS // 2
    return f"{text[:half]} […{len(text) - 2 * half:,} characters…] {text[-half:]}"
