"""Scores as tables: labels, decimals, what a dash stands for, and ours beside the paper's.

score_table(report.scores), beside_paper(report.scores)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from cbtqa.metrics.registry import known_metrics
from cbtqa.papers import paper_table, source_of
from cbtqa.records import MetricScore
from cbtqa.report.page import Phrase
from cbtqa.report.table import Cell, Column, Estimate, Table
from cbtqa.report.words import digits

SYSTEM, METRIC = Phrase(zh="系统", en="system"), Phrase(zh="指标", en="metric")


_DECIMALS = {"0-100": 2, "0-1": 4, "characters": 1, "ratio": 3}


def decimals(unit: str) -> int:
    """Decimals that a value of this unit is written with."""
    return _DECIMALS.get(unit, 3)


def estimate_of(score: MetricScore) -> Estimate:
    """The score with its interval, and how many were scored when not all were."""
    is_part = score.value is not None and score.n_scored < score.n_total
    return Estimate(
        *(score.value, score.low, score.high),
        note=f"({score.n_scored}/{score.n_total})" if is_part else "",
        show=digits(decimals(score.unit)),
    )


def label_of(metric: str) -> str:
    """The head of a metric's column."""
    known = known_metrics()
    return known[metric]().label if metric in known else metric


class Missing(NamedTuple):
    """A figure that is not there."""

    what: str
    """Such as `no interval`."""
    metric: str
    whose: str
    """The system, or both systems."""
    reason: str


def explained(missing: Iterable[Missing]) -> list[str]:
    """One line for every reason: what is missing, of which metrics and systems."""
    by_reason: dict[tuple[str, str], dict[str, list[str]]] = {}
    for one in missing:
        systems = by_reason.setdefault((one.what, one.reason), {})
        systems.setdefault(label_of(one.metric), []).append(one.whose)
    lines = []
    for (what, reason), systems in by_reason.items():
        metrics: dict[str, list[str]] = {}
        for label, names in systems.items():
            metrics.setdefault(", ".join(names), []).append(label)
        parts = "; ".join(f"{', '.join(labels)} of {names}" for names, labels in metrics.items())
        lines.append(f"{what}: {parts} ({reason})")
    return lines


def missing_scores(scores: Sequence[MetricScore]) -> list[str]:
    """Why scores or their intervals are a dash."""
    reasons = [("not scored", one, one.unscored_reason) for one in scores]
    reasons += [("no interval", one, one.interval_reason) for one in scores]
    return explained(
        Missing(what, one.metric, one.system, reason) for what, one, reason in reasons if reason
    )


def score_table(scores: Sequence[MetricScore]) -> Table:
    """One row a metric, one column a system: many metrics, few systems."""
    systems = list(dict.fromkeys(score.system for score in scores))
    by_key = {(score.metric, score.system): score for score in scores}
    rows: list[list[Cell]] = []
    for metric in dict.fromkeys(score.metric for score in scores):
        unit = by_key[metric, systems[0]].unit
        cells = (estimate_of(by_key[metric, system]) for system in systems)
        rows.append([f"{label_of(metric)} ({unit})", *cells])
    return Table([METRIC, *systems], rows)


BESIDE_PEOPLE = Phrase(
    zh="与写参考回答的人相比：轮流去掉一个参考回答，所有人和系统一样",
    en="Beside the authors of the references: each reference left out in turn, for all alike",
)


def beside_people(scores: Sequence[MetricScore]) -> list[Table]:
    """People and systems on the same footing, of a report's `beside_people`; none without any."""
    if not scores:
        return []
    table = score_table(scores)
    return [Table(table.columns, table.rows, BESIDE_PEOPLE)]


def beside_paper(scores: Sequence[MetricScore], left_out: Sequence[str] = ()) -> Table:
    """The paper's rows, then ours brought to its scale where we have the metric.

    Args:
        left_out: systems that have no place beside the paper's, such as the anchors.
    """
    table = paper_table("cbt-llm", "scores")
    rows: list[list[Cell]] = [
        [f"{system}, reported", *(table.value(system, column) for column in table.columns)]
        for system in table.rows
        if table.known(system)
    ]
    for system in dict.fromkeys(score.system for score in scores):
        mine = {score.metric: score for score in scores if score.system == system}
        values = [_unit_scale(mine.get(column)) for column in table.columns]
        if system not in left_out and any(value is not None for value in values):
            rows.append([system, *values])
    heads = [Column(f"{name} (0-1)", digits(4)) for name in table.columns.values()]
    return Table([SYSTEM, *heads], rows, f"Beside {source_of('cbt-llm', 'scores')}")


def _unit_scale(score: MetricScore | None) -> float | None:
    if score is None or score.value is None:
        return None
    return score.value / 100 if score.unit == "0-100" else score.value


def not_asked_for(scores: Sequence[MetricScore]) -> list[str]:
    """Which columns of the paper's table are empty because their metrics were not named."""
    asked = {score.metric for score in scores}
    columns = paper_table("cbt-llm", "scores").columns
    missing = [name for metric, name in columns.items() if metric not in asked]
    if not missing:
        return []
    return [f"{', '.join(missing)} beside the paper's: not asked for; --metrics paper gives them"]
