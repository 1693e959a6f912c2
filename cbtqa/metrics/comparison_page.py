"""A comparison as tables and as a Markdown page with its examples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cbtqa.files import write_json, write_text
from cbtqa.metrics.comparison import Comparison, Example
from cbtqa.metrics.tables import Grid, label_of, latex, markdown, number

COMPARISON_NAME = "compare.json"


def comparison_grid(comparison: Comparison) -> tuple[list[str], Grid]:
    """One row a metric and pair of systems."""
    heads = ["metric", "baseline", "system", "difference [95 %]", "p", "p adjusted", "win rate"]
    rows = [
        [
            f"{label_of(one.metric)} ({one.unit})",
            f"{one.baseline} {number(one.baseline_value, one.unit)}",
            f"{one.system} {number(one.system_value, one.unit)}",
            f"{_signed(one.difference, one.unit)} "
            f"[{_signed(one.low, one.unit)}, {_signed(one.high, one.unit)}]",
            f"{one.p:.4f}",
            f"{one.p_adjusted:.4f}",
            f"{one.win_rate:.3f}",
        ]
        for one in comparison.pairs
    ]
    return heads, rows


def _signed(value: float, unit: str) -> str:
    text = number(value, unit)
    return text if text.startswith("-") else f"+{text}"


def write_comparison(folder: Path, comparison: Comparison) -> None:
    """`compare.json`, `compare.md` with the examples' text, and `compare.tex`."""
    heads, rows = comparison_grid(comparison)
    tests = sorted({one.test for one in comparison.pairs})
    parts = [
        f"# Comparison against {comparison.references}\n",
        markdown(heads, rows),
        f"Differences are system minus baseline. Tests: {', '.join(tests)}; p adjusted by Holm "
        "over the pairs of systems of a metric.\n",
        *(f"- Warning: {warning}\n" for warning in comparison.warnings),
        *_section("Where the system gains most", comparison.best),
        *_section("Where the system loses most", comparison.worst),
        "## Signatures\n",
        *(f"- `{one}`" for one in dict.fromkeys(pair.signature for pair in comparison.pairs)),
        "",
    ]
    write_text(folder / "compare.md", "\n".join(parts))
    write_text(folder / "compare.tex", latex(heads, rows))
    write_json(folder / COMPARISON_NAME, comparison)


def _section(title: str, examples: Sequence[Example]) -> list[str]:
    if not examples:
        return []
    lines = [f"## {title}\n"]
    for one in examples:
        lines += [
            f"### {one.id}: {one.system} against {one.baseline}, {one.metric} "
            f"{one.difference:+.4f}\n",
            _quoted("Reference", one.reference_text),
            _quoted(one.baseline, one.baseline_text),
            _quoted(one.system, one.system_text),
        ]
    return lines


def _quoted(name: str, text: str) -> str:
    return f"**{name}**\n\n" + "\n".join(f"> {line}" for line in text.splitlines() or [""]) + "\n"
