"""The analysis as one self-contained page: alarms and audits first, scores after them."""

from __future__ import annotations

from collections.abc import Iterator

import cbtqa
from cbtqa.report.page import (
    Block,
    Cell,
    Fact,
    Facts,
    Notice,
    Page,
    Section,
    Table,
    Text,
)
from cbtqa.report.wording import Lang, Phrase, load_wording, same
from cbtqa.simulation.analysis_agreement_page import agreement_section
from cbtqa.simulation.analysis_instrument_page import instrument_section, overview_section
from cbtqa.simulation.length_audit import POOLED, WITHIN
from cbtqa.simulation.results import AnalysisReport

WORDS = load_wording("cbtqa.simulation", "analysis.yaml")


def make_page(report: AnalysisReport, methods: Phrase, lang: Lang) -> Page:
    """The page of one analysis."""
    values = {"n": report.n_sessions, "arms": len(report.arms), "patients": report.n_patients}
    sections = [
        _alarm_section(report),
        *_endings_section(report),
        overview_section(report, lang),
        *(instrument_section(report, one, lang) for one in report.instruments),
        *agreement_section(report),
        Section(WORDS["sections.methods"], (Text(methods),), "methods"),
    ]
    return Page(
        title=same(report.title),
        kicker=WORDS["page.kicker"],
        lede=WORDS["page.lede"].fill(**values),
        sections=tuple(sections),
        opening=tuple(_opening(report)),
        footer=WORDS["page.footer"].fill(version=cbtqa.__version__),
        lang=lang,
    )


def _opening(report: AnalysisReport) -> Iterator[Block]:
    facts = [
        Fact(f"{report.n_sessions:,}", WORDS["facts.sessions"]),
        Fact(str(len(report.arms)), WORDS["facts.arms"]),
        Fact(f"{report.n_patients:,}", WORDS["facts.patients"]),
        Fact(str(len(report.alarms)), WORDS["facts.alarms"]),
    ]
    yield Facts(tuple(facts))
    if report.is_rules:
        yield Notice(WORDS["rules.title"], (WORDS["rules.text"],))


def _alarm_section(report: AnalysisReport) -> Section:
    if not report.alarms:
        return Section(WORDS["sections.alarms"], (Text(WORDS["none"]),), "alarms")
    columns = [WORDS["columns.alarm"], WORDS["columns.what"]]
    rows: list[list[Cell]] = [
        [
            WORDS[f"alarm_kinds.{one.kind}"],
            f"{one.instrument}: {one.text}" if one.instrument else one.text,
        ]
        for one in report.alarms
    ]
    return Section(WORDS["sections.alarms"], (Table(columns, rows, n_text=2),), "alarms")


def _endings_section(report: AnalysisReport) -> Iterator[Section]:
    blocks: list[Block] = []
    if report.endings:
        reasons = list(dict.fromkeys(r for row in report.endings for r in row.counts))
        columns = [WORDS["columns.arm"], WORDS["columns.n"], *map(same, reasons)]
        columns.append(WORDS["columns.early"])
        rows: list[list[Cell]] = [
            [
                row.arm,
                str(row.n),
                *(str(row.counts.get(reason, 0)) for reason in reasons),
                f"{row.n_early / row.n:.0%}" if row.n else "-",
            ]
            for row in report.endings
        ]
        blocks.append(Table(columns, rows, caption=WORDS["captions.endings"]))
    if report.lengths:
        names = ("arm", "n", "turns", "words", "per_turn", "short")
        length_rows: list[list[Cell]] = [
            [
                row.arm,
                str(row.n),
                _number(row.turns, 1),
                _number(row.words, 0),
                _number(row.words_per_turn, 1),
                "-" if row.n_short is None else str(row.n_short),
            ]
            for row in report.lengths
        ]
        columns = [WORDS[f"columns.{name}"] for name in names]
        blocks.append(Table(columns, length_rows, caption=WORDS["captions.lengths"]))
    if report.correlations:
        columns = [WORDS[f"columns.{name}"] for name in ("total", "scope", "n", "r", "interval")]
        follows: list[list[Cell]] = [
            [
                f"{one.instrument} {one.total}",
                one.scope,
                str(one.n),
                f"{one.r:+.2f}",
                f"{one.low:+.2f} to {one.high:+.2f}",
            ]
            for one in report.correlations
            if one.scope in (POOLED, WITHIN)
        ]
        columns[-1] = same("95 %")
        blocks.append(Table(columns, follows, n_text=2, caption=WORDS["captions.follows"]))
    if blocks:
        yield Section(WORDS["sections.endings"], tuple(blocks), "endings")


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"
