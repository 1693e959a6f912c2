"""Scores as text: cells, Markdown and LaTeX, with the paper's rows beside ours."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

from cbtqa.files import parse_yaml
from cbtqa.metrics.registry import known_metrics
from cbtqa.records import MetricScore

DECIMALS = {"0-100": 2, "0-1": 4, "characters": 1, "ratio": 3}
Grid = list[list[str]]


@cache
def paper_table() -> dict[str, Any]:
    """The scores that the paper reports; see `paper_table.yaml`."""
    text = files(__package__).joinpath("paper_table.yaml").read_text(encoding="utf-8")
    table: dict[str, Any] = parse_yaml(text)
    return table


def number(value: float | None, unit: str) -> str:
    """A value at the precision of its unit; a dash for what is not scored."""
    return "-" if value is None else f"{value:.{DECIMALS.get(unit, 3)}f}"


def cell(score: MetricScore) -> str:
    """`29.60 [28.91, 30.30]`, and how many were scored when not all were."""
    text = number(score.value, score.unit)
    if score.low is not None:
        text += f" [{number(score.low, score.unit)}, {number(score.high, score.unit)}]"
    if score.value is not None and score.n_scored < score.n_total:
        text += f" ({score.n_scored}/{score.n_total})"
    return text


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


def score_grid(scores: Sequence[MetricScore]) -> tuple[list[str], Grid]:
    """One row a metric, one column a system: many metrics, few systems."""
    systems = list(dict.fromkeys(score.system for score in scores))
    by_key = {(score.metric, score.system): score for score in scores}
    heads = ["metric", *systems]
    rows = []
    for metric in dict.fromkeys(score.metric for score in scores):
        unit = by_key[metric, systems[0]].unit
        cells = [cell(by_key[metric, system]) for system in systems]
        rows.append([f"{label_of(metric)} ({unit})", *cells])
    return heads, rows


def paper_grid(
    scores: Sequence[MetricScore], left_out: Sequence[str] = ()
) -> tuple[list[str], Grid]:
    """The paper's rows, then ours brought to its scale where we have the metric.

    Args:
        left_out: systems that have no place beside the paper's, such as the anchors.
    """
    table = paper_table()
    columns = list(table["columns"])
    heads = ["system", *(f"{name} (0-1)" for name in table["columns"].values())]
    rows = [
        [f"{row['system']}, reported", *(number(row[column], "0-1") for column in columns)]
        for row in table["rows"]
    ]
    for system in dict.fromkeys(score.system for score in scores):
        mine = {score.metric: score for score in scores if score.system == system}
        values = [_unit_scale(mine.get(column)) for column in columns]
        if system not in left_out and any(value is not None for value in values):
            rows.append([system, *(number(value, "0-1") for value in values)])
    return heads, rows


def _unit_scale(score: MetricScore | None) -> float | None:
    if score is None or score.value is None:
        return None
    return score.value / 100 if score.unit == "0-100" else score.value


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A GitHub table; the first column left, the others right."""
    lines = [
        "| " + " | ".join(_escaped(head) for head in heads) + " |",
        "| --- |" + " ---: |" * (len(heads) - 1),
    ]
    lines += ["| " + " | ".join(_escaped(text) for text in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")


LATEX_SPECIAL = str.maketrans(
    {
        "&": r"\&",
        "%": r"\%",
        "$": r"\$",
        "#": r"\#",
        "_": r"\_",
        "{": r"\{",
        "}": r"\}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "\\": r"\textbackslash{}",
    }
)


def latex(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A `booktabs` tabular."""

    def line(cells: Sequence[str]) -> str:
        return " & ".join(text.translate(LATEX_SPECIAL) for text in cells) + r" \\"

    return "\n".join(
        [
            r"\begin{tabular}{l" + "r" * (len(heads) - 1) + "}",
            r"\toprule",
            line(heads),
            r"\midrule",
            *(line(row) for row in rows),
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )
