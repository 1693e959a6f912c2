"""How good the labels are, from what `cbtqa distortions evaluate --json` printed.

Only figures are read: that report also quotes texts that were labelled wrongly.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from cbtqa.distortions.evaluate import F1, EvaluationReport
from cbtqa.files import parse_record, read_json


class QualityRow(NamedTuple):
    """One labeller against people, as cells of a table."""

    labeller: str
    precision: str
    recall: str
    f1: str
    accuracy: str
    micro_f1: str


class LabelQuality(NamedTuple):
    """What was measured on which texts."""

    data: str
    n_texts: int
    taxonomy: str
    rows: tuple[QualityRow, ...]


def read_label_quality(path: Path | None) -> LabelQuality | None:
    """The figures of the report; None without one.

    Raises:
        DataError: not such a report.
    """
    if path is None:
        return None
    report = parse_record(EvaluationReport, read_json(path), str(path))
    rows = tuple(
        QualityRow(
            labeller=name,
            precision=_figure(system.binary.precision),
            recall=_figure(system.binary.recall),
            f1=_f1(system.binary),
            accuracy=_figure(system.accuracy),
            micro_f1=_f1(system.micro),
        )
        for name, system in report.systems.items()
    )
    return LabelQuality(Path(report.data).name, report.n_texts, report.taxonomy, rows)


def _f1(found: F1) -> str:
    if found.f1 is None or found.low is None or found.high is None:
        return _figure(found.f1)
    return f"{found.f1:.3f} [{found.low:.3f}, {found.high:.3f}]"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
