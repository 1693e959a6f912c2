"""The page's section on agreement: judges with themselves, each other and people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import median

from cbtqa.report.page import Block, Cell, Section, Table, Text
from cbtqa.report.wording import Phrase, load_wording, same
from cbtqa.simulation.agreement import TOTAL
from cbtqa.simulation.results import AgreementRow, AnalysisReport
from cbtqa.statistics.agreement import Coefficient

WORDS = load_wording("cbtqa.simulation", "analysis.yaml")
NAMES = {"icc_A_1": "icc_a", "icc_C_1": "icc_c", "mean_kappa_quadratic": "kappa"}


def agreement_section(report: AnalysisReport) -> Iterator[Section]:
    """The section, where there are ratings to compare or it must be said that there are not."""
    if not any(one.judges for one in report.instruments):
        return
    blocks: list[Block] = []
    if report.agreement:
        blocks.append(_totals_table(report.agreement))
        blocks.append(_items_table(report.agreement))
        blocks.append(Text(WORDS["notes.agreement"], is_note=True))
    else:
        blocks.append(Text(WORDS["notes.no_agreement"]))
    if report.halo:
        blocks.append(_halo_table(report))
    if report.corrected:
        blocks.append(_corrected_table(report))
    yield Section(WORDS["sections.agreement"], tuple(blocks), "agreement")


def _totals_table(rows: Sequence[AgreementRow]) -> Table:
    names = ("total", "n", "icc_a", "icc_c", "alpha", "bias")
    body: list[list[Cell]] = []
    for row in rows:
        if not row.item.startswith(TOTAL):
            continue
        found = {_short(one.name): one for one in row.coefficients}
        body.append(
            [
                _named(f"{row.instrument} {row.item.removeprefix(TOTAL)}", row.kind, row.who),
                str(found["icc_a"].n_items),
                *(_shown(found[name]) for name in ("icc_a", "icc_c", "alpha")),
                "-" if row.bias is None else f"{row.bias:+.2f}",
            ]
        )
    columns = [WORDS[f"columns.{name}"] for name in names]
    return Table(columns, body, caption=WORDS["captions.agreement"])


def _items_table(rows: Sequence[AgreementRow]) -> Table:
    groups: dict[tuple[str, str, str], list[AgreementRow]] = {}
    for row in rows:
        if not row.item.startswith(TOTAL):
            groups.setdefault((row.instrument, row.kind, row.who), []).append(row)
    body: list[list[Cell]] = []
    for (instrument, kind, who), members in groups.items():
        cells: list[Cell] = [_named(instrument, kind, who), str(len(members))]
        for name in ("icc_a", "alpha", "kappa"):
            values = [
                one.value
                for row in members
                for one in row.coefficients
                if _short(one.name) == name and one.value is not None
            ]
            cells.append(
                f"{median(values):.2f} ({min(values):.2f}–{max(values):.2f})" if values else "-"
            )
        body.append(cells)
    names = ("where", "items", "icc_a", "alpha", "kappa")
    columns = [WORDS[f"columns.{name}"] for name in names]
    return Table(columns, body, caption=WORDS["captions.items"])


def _named(what: str, kind: str, who: str) -> Phrase:
    """Such as `ctrs total: gemma with people`."""
    return WORDS[f"kinds.{kind}"].fill(what=what, who=who)


def _short(name: str) -> str:
    return NAMES.get(name, "alpha")


def _shown(one: Coefficient) -> str:
    if one.value is None:
        return "-"
    text = f"{one.value:.3f}"
    return text if one.low is None else f"{text} [{one.low:.2f}, {one.high:.2f}]"


def _halo_table(report: AnalysisReport) -> Table:
    body: list[list[Cell]] = [
        [
            f"{one.first}, {one.second}",
            str(one.n),
            f"{one.r:+.2f}",
            f"{one.low:+.2f} to {one.high:+.2f}",
        ]
        for one in report.halo
    ]
    columns = [WORDS["columns.where"], WORDS["columns.n"], WORDS["columns.r"], same("95 %")]
    return Table(columns, body, caption=WORDS["captions.halo"])


def _corrected_table(report: AnalysisReport) -> Table:
    names = ("total", "judge", "arm", "judge_mean", "human_mean", "corrected", "n")
    body: list[list[Cell]] = [
        [
            f"{one.instrument} {one.total}",
            one.judge,
            one.arm,
            f"{one.judge_mean:.2f}",
            f"{one.human_mean:.2f}",
            f"{one.corrected.value:.2f} [{one.corrected.low:.2f}, {one.corrected.high:.2f}]",
            f"{one.corrected.n_human} + {one.corrected.n_judge_only}",
        ]
        for one in report.corrected
    ]
    columns = [WORDS[f"columns.{name}"] for name in names]
    return Table(columns, body, n_text=3, caption=WORDS["captions.corrected"])
