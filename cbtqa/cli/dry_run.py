"""What every verb that asks a model prints alike: the dry run, and what further models said."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cbtqa.cli.console import print_json, say, show_table
from cbtqa.report.table import Cell, Table
from cbtqa.report.words import money, seconds

if TYPE_CHECKING:
    from cbtqa.llm.cost import Estimate

DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Count requests, tokens, price and time; send nothing. Needs no key.",
        rich_help_panel="Endpoint",
    ),
]
BOUNDS = {"in_flight": "10 s a reply, assumed", "batch-api": "the Batch API's window"}


def print_estimate(estimate: Estimate, as_json: bool) -> None:
    """Requests, tokens, price and time of what was not sent."""
    if as_json:
        print_json(estimate)
        return
    if len(estimate.parts) > 1:
        columns = ["", "requests", "in the journal", "prompt tokens", "reply tokens", "price"]
        parts = [(part.name, *_cells(part)) for part in estimate.parts]
        show_table(Table([*columns, "time"], parts, "by part"))
    n_requests, n_done, n_prompt, n_completion, price, time = _cells(estimate)
    as_of = f", prices of {estimate.price_as_of}" if estimate.price_as_of else ""
    bound = BOUNDS.get(estimate.bound_by, estimate.bound_by)
    rows: list[tuple[str, Cell]] = [
        (estimate.items, estimate.n_items),
        ("left out before asking", estimate.n_left_out),
        ("answered in the journal already", n_done),
        ("requests", n_requests),
        ("prompt tokens", n_prompt),
        ("reply tokens", n_completion),
        (f"price{as_of}", price),
        (f"time, bound by {bound}" if bound else "time", time),
    ]
    show_table(Table(["", ""], rows, "dry run: nothing was sent"))
    if estimate.counted_by:
        say(f"prompt tokens: {estimate.counted_by}; replies: {estimate.length_from}")


def _cells(one: Estimate) -> tuple[Cell, ...]:
    # a local endpoint has no price, which is no price of 0.00
    cost = one.cost if one.cost or one.currency else None
    price = "unknown" if one.cost is None else money(cost, one.currency)
    counts = (one.n_requests, one.n_done, one.prompt_tokens, one.completion_tokens)
    return (*counts, price, seconds(one.seconds))


def say_opinions(described: Mapping[str, Mapping[str, Any]]) -> None:
    """What further models changed, and where they gave no verdict.

    Args:
        described: by role, as `OpinionCounts.described` gives it.
    """
    for role, one in described.items():
        found = ", ".join(f"{name} {n}" for name, n in one["found"].items())
        found = f" ({found})" if found else ""
        changed, read = one["n_changed"], one["n_read"]
        did = "graded worse" if role == "screen" else "found unsafe"
        told = f"{did} {changed:,} of {read:,}{found}"
        if "unread_ids" in one:  # it read sessions
            told = f"marked further turns in {changed:,} of {read:,} sessions{found}"
        say(f"{role}, {one['model']} at {one['endpoint_host']}: {told}")
        if one["n_unread"]:
            why = ", ".join(f"{reason} {n}" for reason, n in one["unread"].items())
            alone = "the built-in checks alone decide these"
            say(f"warning: no verdict of the {role} on {one['n_unread']:,} ({why}): {alone}")
        if unknown := one.get("unknown_kinds"):
            kinds = ", ".join(f"{kind} {n}" for kind, n in unknown.items())
            say(f"warning: the {role} gave kinds that are none, left out: {kinds}")
