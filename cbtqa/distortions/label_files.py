"""Rows of labelled texts, and how they are written: JSONL, Parquet, CSV, TSV.

write_labels(Path("labels.parquet"), rows)
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import Field

from cbtqa.errors import DataError
from cbtqa.files import ParquetRows, replacing, write_jsonl
from cbtqa.records import DistortionLabel, NonEmptyText, Record


class LabelledText(Record):
    """One text with its labels: a row of the result."""

    id: NonEmptyText
    level: Literal["document", "sentence"]
    part: int = Field(ge=0)
    text: NonEmptyText
    labels: tuple[DistortionLabel, ...]


def write_labels(path: Path, rows: Iterable[LabelledText]) -> None:
    """Writes rows as the suffix says; CSV and TSV get one column `types` and the labels as JSON.

    Raises:
        DataError: an unknown suffix.
    """
    suffix = path.suffix.lower()
    if suffix in (".jsonl", ".ndjson"):
        write_jsonl(path, rows)
    elif suffix == ".parquet":
        _write_parquet(path, rows)
    elif suffix in (".csv", ".tsv"):
        with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as out:
            writer = csv.writer(out, delimiter="\t" if suffix == ".tsv" else ",")
            writer.writerow(["id", "level", "part", "text", "types", "labels"])
            for row in rows:
                labels = [label.model_dump() for label in row.labels]
                types = ";".join(label.id for label in row.labels)
                cells = [row.id, row.level, row.part, row.text, types]
                writer.writerow([*cells, json.dumps(labels, ensure_ascii=False)])
    else:
        raise DataError(
            f"do not know the format '{suffix}'",
            where=str(path),
            hint="use .jsonl, .parquet, .csv or .tsv",
        )


def _write_parquet(path: Path, rows: Iterable[LabelledText]) -> None:
    import pyarrow as pa

    label = pa.struct(
        [
            ("id", pa.string()),
            ("evidence", pa.string()),
            ("labeller", pa.string()),
            ("confidence", pa.float64()),
        ]
    )
    schema = pa.schema(
        [
            ("id", pa.string()),
            ("level", pa.string()),
            ("part", pa.int32()),
            ("text", pa.string()),
            ("labels", pa.list_(label)),
        ]
    )
    with ParquetRows(path, schema) as parquet:
        for row in rows:
            parquet.add(row.model_dump())
