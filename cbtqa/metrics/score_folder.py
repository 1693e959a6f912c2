"""The folder that `cbtqa score --out` leaves, and how `cbtqa compare` reads it back.

scores.json     every score with unit, interval, counts and signature
pairs.parquet   every pair of every system: texts, scores, additive statistics
scores.md, scores.tex, manifest.json (written last)
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cbtqa.errors import DataError, UsageError
from cbtqa.files import ParquetRows, parse_record, read_json, write_json, write_text
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
from cbtqa.metrics.evaluation import SystemScores
from cbtqa.metrics.pairs import Predictions, References
from cbtqa.metrics.scoring import Scored, ScoreReport, ScoreSettings
from cbtqa.metrics.tables import (
    latex,
    markdown,
    missing_scores,
    paper_grid,
    paper_table,
    score_grid,
)
from cbtqa.metrics.texts import Item
from cbtqa.settings import Resolved

if TYPE_CHECKING:
    import pyarrow as pa

SCORES_NAME, PAIRS_NAME = "scores.json", "pairs.parquet"
STATISTICS = ".statistics"
"""Suffix of the columns with additive statistics."""


def refuse_existing(folder: Path, marker: str = MANIFEST_NAME) -> None:
    """Stops before work is done that could not be written.

    Raises:
        UsageError: the folder holds a finished run.
    """
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
    heads, rows = score_grid(scored.report.scores)
    write_text(folder / "scores.md", _page(scored, markdown(heads, rows)))
    write_text(folder / "scores.tex", latex(heads, rows))
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
                for name in (SCORES_NAME, PAIRS_NAME, "scores.md", "scores.tex")
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
    parts = [
        f"# Scores against {report.references}\n",
        table,
        "Values with 95 % percentile bootstrap intervals over questions.\n",
        *(f"- {line}.\n" for line in (*missing_scores(report.scores), *report.notes)),
        *(f"- Warning: {warning}\n" for warning in report.warnings),
        f"## Beside {paper_table()['source']}\n",
        markdown(*paper_grid(report.scores, anchors)),
        "The paper's segmentation, BLEU form and test set are not known; its references are a "
        "language model's answers.\n",
        "## Signatures\n",
        *(f"- `{signature}`" for signature in signatures),
        "",
    ]
    return "\n".join(parts)


def _write_pairs(path: Path, scored: Scored) -> None:
    additive = [metric for metric in scored.metrics if isinstance(metric, Metric)]
    with ParquetRows(path, _pair_schema(additive)) as rows:
        for system, evaluated in zip(scored.predictions, scored.evaluated, strict=True):
            for row in _pair_rows(scored.references, system, evaluated, additive):
                rows.add(row)


def _pair_schema(metrics: list[Metric]) -> pa.Schema:
    import pyarrow as pa

    return pa.schema(
        [
            ("system", pa.string()),
            ("id", pa.string()),
            ("question", pa.string()),
            ("prediction", pa.string()),
            ("reference", pa.string()),
            *((metric.name, pa.float64()) for metric in metrics),
            *((metric.name + STATISTICS, pa.list_(pa.float64())) for metric in metrics),
        ]
    )


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
            "prediction": None if ours is None else ours.text,
            "reference": None if theirs is None else theirs.text,
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
        """Reads the folder.

        Raises:
            DataError: not a folder of `cbtqa score`.
            IncompleteRunError: the run that made it did not finish.
        """
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
        import pyarrow.parquet as pq

        table = pq.read_table(path)
        names = [name for name in table.column_names if name.endswith(STATISTICS)]
        for system in dict.fromkeys(table["system"].to_pylist()):
            part = table.filter(pc.equal(table["system"], system))
            if not self.predictions:
                self.references = References(
                    self.report.references,
                    tuple(part["id"].to_pylist()),
                    tuple(part["question"].to_pylist()),
                    tuple(_item(text) for text in part["reference"].to_pylist()),
                )
            items = tuple(_item(text) for text in part["prediction"].to_pylist())
            self.predictions.append(Predictions(system, items, {}))
            statistics = {name: part[name].to_pylist() for name in names}
            rows = np.array(
                [
                    row
                    for row, (ours, theirs) in enumerate(
                        zip(items, self.references.items, strict=True)
                    )
                    if ours is not None and theirs is not None
                ],
                np.int64,
            )
            matrices = {
                name.removesuffix(STATISTICS): np.array(
                    [values[row] for row in rows.tolist()], np.float64
                )
                for name, values in statistics.items()
            }
            self.evaluated.append(SystemScores(system, rows, matrices, {}, {}))


def _item(text: str | None) -> Item | None:
    return None if text is None else Item(text)
