"""The folder that `cbtqa score --out` leaves, and how `cbtqa compare` reads it back.

scores.json     every score with unit, interval, counts and signature
pairs.parquet   every pair of every system: texts, scores, additive statistics
scores.html     a page: intervals drawn, the worst, best and most different answers
scores.md, scores.tex, scores.csv, manifest.json (written last)
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from cbtqa.metrics.page import score_page
from cbtqa.metrics.pairs import Predictions, References
from cbtqa.metrics.scoring import Scored, ScoreReport, ScoreSettings
from cbtqa.metrics.tables import (
    beside_paper,
    beside_people,
    missing_scores,
    not_asked_for,
    score_table,
)
from cbtqa.metrics.text.texts import Item
from cbtqa.settings import Resolved

if TYPE_CHECKING:
    import pyarrow as pa

SCORES_NAME, PAIRS_NAME, PAGE_NAME = "scores.json", "pairs.parquet", "scores.html"
FILES = (SCORES_NAME, PAIRS_NAME, PAGE_NAME, "scores.md", "scores.tex", "scores.csv")
STATISTICS = ".statistics"
"""Suffix of the columns with additive statistics."""
OTHER_REFERENCES, ASKED = "other_references", "asked"
"""Columns with the further references, and with the question's own words; folders of earlier
versions have neither."""


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
    write_text(folder / PAGE_NAME, score_page(scored, resolved.values.lang))
    named = (*resolved.values.predictions, *resolved.values.ref)
    inputs = [file for path in named for file in _files_of(path)]
    write_manifest(
        folder,
        Manifest(
            kind="scores",
            packages=package_versions(),
            settings=describe_settings(resolved),
            inputs=tuple(map(describe_file, inputs)),
            counts={one.system: one.model_dump() for one in scored.report.systems},
            files=tuple(describe_file(folder / name, folder) for name in FILES),
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
        *(
            f"## {one.title_in()}\n\n{one.markdown()}"
            for one in beside_people(report.beside_people)
        ),
        *(
            f"- {line}.\n"
            for line in (
                *missing_scores(report.scores),
                *not_asked_for(report.scores),
                *report.notes,
            )
        ),
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
            (OTHER_REFERENCES, pa.list_(pa.string())),
            (ASKED, pa.string()),
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
            OTHER_REFERENCES: [item.text for item in references.groups[row][1:]],
            ASKED: references.asked[row] if references.asked else "",
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
        further = {OTHER_REFERENCES: ("list<element: string>",), ASKED: ("string",)}
        expect_columns(path, further)
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
                    others=_others(part),
                    asked=tuple(part[ASKED].to_pylist()) if ASKED in part.column_names else (),
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


def _others(pairs: pa.Table) -> tuple[tuple[Item, ...], ...]:
    """The further references of each row; nothing where no row has any."""
    if OTHER_REFERENCES not in pairs.column_names:
        return ()
    found = tuple(tuple(map(Item, texts)) for texts in pairs[OTHER_REFERENCES].to_pylist())
    return found if any(found) else ()


def _item(text: str | None) -> Item | None:
    return None if text is None else Item(text)
