"""The exploratory part of an analysis as tables: for the page, the terminal and CSV files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cbtqa.report.page import Phrase, load_wording
from cbtqa.report.table import AnyColumn, Column, Estimate, Row, Table
from cbtqa.report.words import Show, digits, number, p_value, share, signed
from cbtqa.simulation.analysis.results import (
    AnalysisReport,
    Exploration,
    GroupedResult,
    InstrumentResult,
    PairWithin,
)
from cbtqa.simulation.analysis.tests_in_words import f_text, wald_text

WORDS = load_wording("cbtqa.simulation", "analysis.yaml")
CLEAR = 0.05
_SHOWS: dict[str, Show] = {
    **dict.fromkeys(("p", "p_adjusted"), p_value),
    "rate": share,
    "loss": digits(3),
    "difference": signed,
}


def _heads(*names: str) -> list[Column]:
    return [Column(WORDS[f"columns.{name}"], _SHOWS.get(name, number)) for name in names]


def _title(result: InstrumentResult) -> Phrase:
    return Phrase(zh=result.title_zh, en=result.title)


def wins_table(result: InstrumentResult) -> Table:
    """With how many patients the second arm of each pair is ahead of the first."""
    found = result.exploration.wins if result.exploration else ()
    rows: list[Row] = [
        (
            f"{one.second} > {one.first}",
            *(one.n, one.wins, one.losses),
            Estimate(one.rate, one.low, one.high, one.reason),
            *(one.p, one.p_adjusted),
        )
        for one in found
    ]
    heads = _heads("pair", "patients", "wins", "losses", "rate", "p", "p_adjusted")
    return Table(heads, rows, WORDS["captions.wins"].fill(instrument=_title(result)))


def attributes_table(result: InstrumentResult) -> Table:
    """Whether arms compare differently in groups of patients, an attribute a row."""
    found = result.exploration.groups if result.exploration else ()
    rows: list[Row] = []
    for one in found:
        is_tested = one.interaction.p is not None
        ratio = wald_text(one.published) if one.published and is_tested else None
        names = ", ".join((one.attribute, *one.same_as))
        pairs = [pair for group in one.groups for pair in group.pairs]
        rows.append((names, _sizes(one), f_text(one.interaction), ratio, _clear(pairs)))
    heads = _heads("attribute", "groups", "interaction", "ratio", "clear")
    return Table(heads, rows, WORDS["captions.attributes"].fill(instrument=_title(result)))


def _sizes(one: GroupedResult) -> str:
    """Such as `4 of 31 to 51`."""
    sizes = [group.n_patients for group in one.groups]
    return f"{len(sizes)} of {min(sizes)} to {max(sizes)}" if sizes else "0"


def _clear(pairs: Sequence[PairWithin]) -> str:
    """Such as `30 of 60`: pairs below .05 after Benjamini-Hochberg."""
    n_tested = sum(one.p_adjusted is not None for one in pairs)
    if not n_tested:
        return next((one.reason for one in pairs if one.reason), "not tested")
    return f"{_n_clear(pairs)} of {n_tested}"


def _n_clear(pairs: Sequence[PairWithin]) -> int | None:
    """None where none was tested."""
    tested = [one.p_adjusted for one in pairs if one.p_adjusted is not None]
    return sum(p < CLEAR for p in tested) if tested else None


def group_means(one: GroupedResult) -> Table:
    """Means of the arms in each group of patients."""
    arms = list(one.groups[0].means) if one.groups else []
    rows: list[Row] = [
        (
            *(group.level, group.n_patients, _n_clear(group.pairs)),
            *(group.means[arm] for arm in arms),
        )
        for group in one.groups
    ]
    heads: list[AnyColumn] = [Column(one.attribute), *_heads("patients", "clear")]
    heads += [Column(arm, number) for arm in arms]
    return Table(heads, rows, WORDS["captions.group_means"].fill(attribute=one.attribute))


def prediction_table(result: InstrumentResult) -> Table:
    """What the total is predicted from in patients that the model has not seen."""
    found = result.exploration.prediction if result.exploration else None
    rows = [
        (one.name, Estimate(one.loss, one.least, one.most))
        for one in (found.features if found else ())
    ]
    caption = WORDS["captions.prediction"].fill(
        instrument=_title(result),
        r2=number(found.r2 if found else None, 3),
        mae=number(found.mae if found else None),
    )
    return Table(_heads("feature", "loss"), rows, caption)


def _each(report: AnalysisReport) -> Iterator[tuple[str, Exploration]]:
    for result in report.instruments:
        if result.exploration is not None:
            yield result.instrument, result.exploration


def wins_file(report: AnalysisReport) -> Table:
    """Every pair of every headline total."""
    names = ("first", "second", "n", "wins", "losses", "rate", "low", "high", "p", "p_adjusted")
    rows: list[Row] = [
        (instrument, found.total, *(getattr(one, name) for name in (*names, "reason")))
        for instrument, found in _each(report)
        for one in found.wins
    ]
    return Table(["instrument", "total", *names, "reason"], rows)


def groups_file(report: AnalysisReport) -> Table:
    """Every pair within every group of patients."""
    names = ("first", "second", "n", "difference", "p", "p_adjusted", "effect", "reason")
    rows: list[Row] = [
        (
            *(instrument, found.total, divided.attribute, group.level),
            *(getattr(one, name) for name in names),
        )
        for instrument, found in _each(report)
        for divided in found.groups
        for group in divided.groups
        for one in group.pairs
    ]
    return Table(["instrument", "total", "attribute", "level", *names], rows)
