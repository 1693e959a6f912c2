"""The folder that `cbtqa score --out` leaves, and how `cbtqa compare` reads it back.

scores.json     every score with unit, interval, counts and signature
pairs.parquet   every pair of every system: texts, scores, additive statistics
scores.md, scores.tex, scores.csv, manifest.json (written last)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cbtqa.errors import DataError, UsageError
from cbtqa.files import (
    ParquetRows,
    expect_columns,
    parquet_table,
    parse_record,
    read_json,
    write_json,
    write_text,
)
from cbtqa.manifest import (
    MANIFEST_NAME,
    Manifest,
    describe_file,
    describe_settings,
    now,
    package_versions,
    read_manifest,
    write_manifest,
)
from cbtqa.metrics.base import Metric
from cbtqa.metrics.evaluation import SystemScores, both_answered
from cbtqa.metrics.pairs import Predictions, References
from cbtqa.metrics.registry import known_metrics
from cbtqa.metrics.scoring import Scored, ScoreReport, ScoreSettings
from cbtqa.metrics.text.texts import Item
from cbtqa.papers import paper_table, source_of
from cbtqa.records import MetricScore
from cbtqa.report.table import Cell, Column, Estimate, Table
from cbtqa.report.words import digits
from cbtqa.settings import Resolved

SCORES_NAME, PAIRS_NAME = "scores.json", "pairs.parquet"
STATISTICS = ".statistics"
"""Suffix of the columns with additive statistics."""


def refuse_existing(folder: Path, marker: str = MANIFEST_NAME) -> None:
    """Raises a UsageError before work is done when the folder holds a finished run."""
    if (folder / marker).exists():
        raise UsageError(
            f"{folder} already holds the results of a run",
            hint="name another folder with --out, or remove this one",
        )


def write_folder(
    folder: Path, scored: Scored, resolved: Resolved[ScoreSettings], started: str
) -> None:
    """Writes all files of a run, the manifest last."""
    _write_pairs(folder / PAIRS_NAME, scored)
    write_json(folder / SCORES_NAME, scored.report)
    table = score_table(scored.report.scores)
    write_text(folder / "scores.md", _page(scored, table.markdown()))
    write_text(folder / "scores.tex", table.latex())
    write_text(folder / "scores.csv", table.csv())
    named = [path for path in (*resolved.values.predictions, resolved.values.ref) if path]
    inputs = [file for path in named for file in _files_of(path)]
    write_manifest(
        folder,
        Manifest(
            kind="scores",
            packages=package_versions(),
            settings=describe_settings(resolved),
            inputs=tuple(map(describe_file, inputs)),
            counts={one.system: one.model_dump() for one in scored.report.systems},
            files=tuple(
                describe_file(folder / name, folder)
                for name in (SCORES_NAME, PAIRS_NAME, "scores.md", "scores.tex", "scores.csv")
            ),
            started_at=started,
            finished_at=now(),
        ),
    )


def _files_of(path: Path) -> list[Path]:
    """A file, or the files with rows in a folder."""
    if path.is_file():
        return [path]
    return sorted(file for file in path.rglob("*") if file.suffix in (".parquet", ".arrow"))


def _page(scored: Scored, table: str) -> str:
    report = scored.report
    anchors = [one.system for one in report.systems if one.is_anchor]
    signatures = dict.fromkeys(score.signature for score in report.scores)
    paper = beside_paper(report.scores, anchors)
    parts = [
        f"# Scores against {report.references}\n",
        table,
        "Values with 95 % intervals.\n",
        *(f"- {line}.\n" for line in (*missing_scores(report.scores), *report.notes)),
        *(f"- Warning: {warning}\n" for warning in report.warnings),
        f"## {paper.title}\n",
        paper.markdown(),
        "The paper's segmentation, BLEU form and test set are not known; its references are a "
        "language model's answers.\n",
        "## Signatures\n",
        *(f"- `{signature}`" for signature in signatures),
        "",
    ]
    return "\n".join(parts)


def _write_pairs(path: Path, scored: Scored) -> None:
    import pyarrow as pa

    additive = [metric for metric in scored.metrics if isinstance(metric, Metric)]
    names = ("system", "id", "question", "prediction", "reference")
    schema = pa.schema(
        [
            *((name, pa.string()) for name in names),
            *((metric.name, pa.float64()) for metric in additive),
            *((metric.name + STATISTICS, pa.list_(pa.float64())) for metric in additive),
        ]
    )
    with ParquetRows(path, schema) as rows:
        for system, evaluated in zip(scored.predictions, scored.evaluated, strict=True):
            for row in _pair_rows(scored.references, system, evaluated, additive):
                rows.add(row)


def _pair_rows(
    references: References, system: Predictions, evaluated: SystemScores, metrics: list[Metric]
) -> Iterator[dict[str, Any]]:
    """One row a reference, also for those without an answer (their scores are null)."""
    place = {row: index for index, row in enumerate(evaluated.rows.tolist())}
    per_pair = {metric.name: metric.per_pair(evaluated.matrices[metric.name]) for metric in metrics}
    for row, question_id in enumerate(references.ids):
        ours, theirs = system.items[row], references.items[row]
        values: dict[str, Any] = {
            "system": system.system,
            "id": question_id,
            "question": references.clusters[row],
            "prediction": ours and ours.text,
            "reference": theirs and theirs.text,
        }
        index = place.get(row)
        if index is not None:
            for name, scores in per_pair.items():
                value = float(scores[index])
                values[name] = None if np.isnan(value) else value
                values[name + STATISTICS] = evaluated.matrices[name][index].tolist()
        yield values


class StoredScores:
    """What an earlier run left: its report, references, answers and statistics."""

    def __init__(self, folder: Path) -> None:
        """Reads the folder; a DataError or IncompleteRunError when it is no finished run."""
        manifest = read_manifest(folder)
        if manifest.kind != "scores":
            raise DataError(f"holds a {manifest.kind}, not scores", where=str(folder))
        place = str(folder / SCORES_NAME)
        self.report = parse_record(ScoreReport, read_json(folder / SCORES_NAME), place)
        self.predictions: list[Predictions] = []
        self.evaluated: list[SystemScores] = []
        self._read_pairs(folder / PAIRS_NAME)

    def _read_pairs(self, path: Path) -> None:
        import pyarrow.compute as pc

        texts = ("system", "id", "question", "prediction", "reference")
        expect_columns(path, dict.fromkeys(texts, ("string",)))
        table = parquet_table(path)
        names = [name for name in table.column_names if name.endswith(STATISTICS)]
        expect_columns(path, dict.fromkeys(names, ("list<element: double>",)))
        if missing := set(texts) - set(table.column_names):
            raise DataError(f"no column {', '.join(sorted(missing))}", where=str(path))
        for system in dict.fromkeys(table["system"].to_pylist()):
            part = table.filter(pc.equal(table["system"], system))
            if not self.predictions:
                self.references = References(
                    self.report.references,
                    tuple(part["id"].to_pylist()),
                    tuple(part["question"].to_pylist()),
                    tuple(_item(text) for text in part["reference"].to_pylist()),
                    grouping=self.report.grouping,
                )
            items = tuple(_item(text) for text in part["prediction"].to_pylist())
            self.predictions.append(Predictions(system, items, {}))
            rows = np.flatnonzero(both_answered(items, self.references.items))
            answered = part.take(rows)
            matrices = {
                name.removesuffix(STATISTICS): np.array(answered[name].to_pylist(), np.float64)
                for name in names
            }
            self.evaluated.append(SystemScores(system, rows, matrices, {}, {}))


def _item(text: str | None) -> Item | None:
    return None if text is None else Item(text)


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
    return Table(["metric", *systems], rows)


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
    return Table(["system", *heads], rows, f"Beside {source_of('cbt-llm', 'scores')}")


def _unit_scale(score: MetricScore | None) -> float | None:
    if score is None or score.value is None:
        return None
    return score.value / 100 if score.unit == "0-100" else score.value
