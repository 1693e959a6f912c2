"""The zoo's results as a table of docs/backbones.md, and its place there."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

from tests.zoo.tiny import registered_types

RESULTS = Path(__file__).parent / "results.jsonl"
BEGIN, END = "<!-- zoo: written by scripts/make_zoo_table -->", "<!-- /zoo -->"
_WORDS = {"packed": "packed rows", "padded": "padded batches", "refused": "refused"}


def render_table() -> str:
    """Counts, and a line for each class that is not simply packed."""
    rows = [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()]
    counts = Counter(row["ending"] for row in rows)
    total = len(registered_types())
    lines = [
        f"Of {total} registered types {len(rows)} were run: "
        f"{counts['packed']} train on packed rows, {counts['padded']} on padded batches, "
        f"{counts['refused']} are refused, {counts['unexpected']} ended unexpectedly.",
        "",
        "| ends with | model types |",
        "| --- | --- |",
    ]
    groups: dict[str, list[str]] = {}
    for row in rows:
        reason = _reason(
            row["sentence"].removeprefix("tiny ").removeprefix(row["model_type"] + " ")
        )
        key = f"{_WORDS.get(row['ending'], row['ending'])}{': ' if reason else ''}{reason}"
        groups.setdefault(key, []).append(f"`{row['model_type']}`")
    lines += [f"| {key} | {', '.join(groups[key])} |" for key in sorted(groups)]
    whole = [f"`{row['model_type']}`" for row in rows if row["merges"]]
    if whole:
        lines += ["", f"Adapters that `cbtqa merge` refuses: {', '.join(whole)}."]
    late = [
        f"`{r['model_type']}`" for r in rows if r["ending"] == "padded" and r["predicts_packing"]
    ]
    if late:
        words = "Types of which the dry run foretells packed rows, and the trial finds out"
        lines += ["", f"{words}: {', '.join(late)}."]
    return "\n".join(lines)


def _reason(sentence: str) -> str:
    """What follows the model's name, without a bar that would end the cell."""
    plain = sentence.replace("|", "/")
    for mark in ("not packed rows: ", "cannot be tuned: "):
        plain = plain.rpartition(mark)[2]
    return re.sub(r"\s*\(.*\)$|: pip install .*$", "", plain)


def splice(text: str, table: str) -> str:
    """A page with the table between its marks."""
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n{table}\n{END}{rest.partition(END)[2]}"
