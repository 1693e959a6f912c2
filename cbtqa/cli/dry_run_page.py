"""A training run's dry run on the terminal: `show_dry_run(found)`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from cbtqa.cli.console import out, print_table, say
from cbtqa.cli.progress import describe_seconds

if TYPE_CHECKING:
    from cbtqa.tuning.dry_run_report import CardEstimate, DryRun

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
