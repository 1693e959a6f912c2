"""A comparison as tables and as a Markdown page with its examples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from cbtqa.files import write_json, write_text
from cbtqa.metrics.comparison import Comparison, Example, PairComparison
from cbtqa.metrics.tables import Grid, Missing, explained, label_of, latex, markdown, number

COMPARISON_NAME = "compare.json"


class PairTable(NamedTuple):
    """Two systems on every metric."""

    title: str
    heads: list[str]
    rows: Grid


def pair_tables(comparison: Comparison) -> list[PairTable]:
    """One table a pair of systems, one row a metric."""
    by_pair: dict[tuple[str, str], Grid] = {}
    for one in comparison.pairs:
        by_pair.setdefault((one.baseline, one.system), []).append(
            [
                f"{label_of(one.metric)} ({one.unit})",
                number(one.baseline_value, one.unit),
                number(one.system_value, one.unit),
                _difference(one),
                "-" if one.p is None else f"{one.p:.4f}",
                "-" if one.p_adjusted is None else f"{one.p_adjusted:.4f}",
                _win_rate(one),
            ]
        )
    return [
        PairTable(
            f"{system} minus {baseline}",
            ["metric", baseline, system, "difference [95 %]", "p", "p adjusted", "win rate"],
            rows,
        )
        for (baseline, system), rows in by_pair.items()
    ]


def _difference(one: PairComparison) -> str:
    if one.difference is None:
        return "-"
    text = _signed(one.difference, one.unit)
    if one.low is None or one.high is None:
        return text
    return f"{text} [{_signed(one.low, one.unit)}, {_signed(one.high, one.unit)}]"


def _win_rate(one: PairComparison) -> str:
    if one.win_rate is None:
        return "-"
    return f"{one.win_rate:.3f}" + (f" ({one.n}/{one.n_total})" if one.n < one.n_total else "")


def _signed(value: float, unit: str) -> str:
    text = number(value, unit)
    return text if text.startswith("-") else f"+{text}"


def missing_figures(comparison: Comparison) -> list[str]:
    """Why values, intervals or p-values are a dash."""

    def missing(one: PairComparison) -> Iterator[tuple[str, str]]:
        if one.unscored_reason:
            yield "not compared", one.unscored_reason
        elif one.interval_reason and one.interval_reason == one.p_reason:
            yield "no interval and no test", one.interval_reason
        else:
            yield from (("no interval", one.interval_reason),) if one.interval_reason else ()
            yield from (("no test", one.p_reason),) if one.p_reason else ()

    return explained(
        Missing(what, one.metric, f"{one.system} and {one.baseline}", reason)
        for one in comparison.pairs
        for what, reason in missing(one)
    )


def tests_made(comparison: Comparison) -> str:
    """Which tests, and what p adjusted is adjusted for."""
    names = sorted({one.test for one in comparison.pairs if one.p is not None})
    if not names:
        return "nothing was tested"
    n_tests = sum(one.p is not None for one in comparison.pairs)
    return (
        f"tests: {', '.join(names)}; p adjusted by Holm over the whole table, metrics times pairs "
        f"of systems ({n_tests})"
    )


def write_comparison(folder: Path, comparison: Comparison) -> None:
    """`compare.json`, `compare.md` with the examples' text, and `compare.tex`."""
    tables = pair_tables(comparison)
    parts = [
        f"# Comparison against {comparison.references}\n",
        *(f"## {one.title}\n\n{markdown(one.heads, one.rows)}" for one in tables),
        "A question counts where the metric applies to it in both systems; n/all in brackets where "
        f"that is not all of them. What was tested: {tests_made(comparison)}.\n",
        *(f"- {line}.\n" for line in missing_figures(comparison)),
        *(f"- Warning: {warning}\n" for warning in comparison.warnings),
        *_section("Where the system gains most", comparison.best),
        *_section("Where the system loses most", comparison.worst),
        "## Signatures\n",
        *(f"- `{one}`" for one in dict.fromkeys(pair.signature for pair in comparison.pairs)),
        "",
    ]
    write_text(folder / "compare.md", "\n".join(parts))
    tabulars = (f"% {one.title}\n{latex(one.heads, one.rows)}" for one in tables)
    write_text(folder / "compare.tex", "\n".join(tabulars))
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
