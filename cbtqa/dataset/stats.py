"""What a dataset holds, counted in one pass and in memory that does not grow with it.

Lengths are in characters (code points), their quantiles exact: they come from a histogram of
lengths (see `lengths`). Signs of a template are measured on a sample (see `likeness`).

    statistics = folder_statistics(Path("cbtqa-dataset"))
    statistics.share_distorted, statistics.lengths["answer"].median
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib.resources import files
from itertools import combinations
from pathlib import Path
from typing import Any

from pydantic import Field

from cbtqa.dataset.lengths import LengthSummary, summarise_lengths
from cbtqa.dataset.likeness import AnswerSample, TemplateLikeness
from cbtqa.dataset.rows import SPLITS
from cbtqa.errors import DataError
from cbtqa.files import parse_yaml
from cbtqa.records import STEP_NAMES, Record

TEXT_COLUMNS = ("question", "description", "answer", *STEP_NAMES)
COLUMNS = (
    *("id", *TEXT_COLUMNS, "keywords", "distortions", "risk", "system", "model", "endpoint_host"),
    *("is_training_source", "prompt_tokens", "completion_tokens"),
)
"""The columns that are read; the others do not enter the statistics."""
TOP_KEYWORDS = 20
KEYWORDS_HELD = 100_000
"""Distinct keywords counted exactly; beyond this the once-seen are forgotten now and then."""


class LabelCount(Record):
    """How often one distortion type occurs."""

    id: str
    n_entries: int
    """Entries with at least one label of this type."""
    share_of_entries: float
    share_of_distorted: float
    n_with_evidence: int
    """Entries where at least one of these labels quotes its evidence."""


class LabelPair(Record):
    """Two types that occur in the same entry."""

    first: str
    second: str
    n: int


class DatasetStatistics(Record):
    """What a dataset holds."""

    n_entries: int
    splits: dict[str, int]
    n_distorted: int
    share_distorted: float | None
    """None for an empty dataset."""
    labels: tuple[LabelCount, ...]
    """Most frequent first."""
    labels_per_entry: dict[int, int]
    """Number of distinct types in an entry to the number of such entries."""
    label_pairs: tuple[LabelPair, ...]
    lengths: dict[str, LengthSummary]
    """By column; a column that is null in every row is absent."""
    risk: dict[str, int]
    keywords: tuple[tuple[str, int], ...]
    systems: dict[str, int]
    models: dict[str, int]
    hosts: dict[str, int]
    """Host names of the endpoints that answered; empty when none was asked."""
    n_training_source: int
    n_with_steps: int
    prompt_tokens: int | None
    """None when no row holds a count."""
    completion_tokens: int | None
    likeness: TemplateLikeness


class PaperFacts(Record):
    """What the paper says of its dataset; None where we do not know the figure."""

    citation: str
    n_entries: int
    n_distorted: int
    share_distorted: float
    labels: dict[str, float]
    """Share among the entries with a distortion, by type."""
    lengths: dict[str, float | None] = Field(default_factory=dict)
    note: str


@cache
def paper_facts() -> PaperFacts:
    """Table 1 of arXiv 2403.16008, as far as it is known."""
    text = files("cbtqa.dataset").joinpath("table1.yaml").read_text(encoding="utf-8")
    return PaperFacts.model_validate(parse_yaml(text))


def read_splits(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every row of a dataset folder with its split, split by split; only `COLUMNS` are read.

    Raises:
        DataError: not a dataset folder, or a Parquet file is damaged or lacks a column. A dataset
            of which everything was rejected has no rows and is no error.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    paths = sorted((folder / "data").glob("*.parquet"), key=_split_order)
    if not paths and not (folder / "rejects.jsonl").exists():
        raise DataError("no dataset folder: no .parquet file under data/", where=str(folder))
    for path in paths:
        split = path.name.split("-")[0]
        try:
            with pq.ParquetFile(path) as parquet:
                missing = set(COLUMNS) - set(parquet.schema_arrow.names)
                if missing:
                    raise DataError(f"no column {', '.join(sorted(missing))}", where=str(path))
                for batch in parquet.iter_batches(batch_size=1024, columns=list(COLUMNS)):
                    yield from ((split, row) for row in batch.to_pylist())
        except pa.ArrowInvalid as error:
            raise DataError(f"not Parquet: {error}", where=str(path)) from None


def _split_order(path: Path) -> tuple[int, str]:
    split = path.name.split("-")[0]
    return (SPLITS.index(split) if split in SPLITS else len(SPLITS), path.name)


def folder_statistics(folder: Path) -> DatasetStatistics:
    """Statistics of a dataset folder, whether or not its manifest is written yet."""
    return dataset_statistics(read_splits(folder))


def dataset_statistics(rows: Iterable[tuple[str, Mapping[str, Any]]]) -> DatasetStatistics:
    """Statistics of `(split, row)` pairs; a row holds at least `COLUMNS`."""
    tally = StatisticsTally()
    for split, row in rows:
        tally.add(split, row)
    return tally.result()


class StatisticsTally:
    """Counts rows as they pass; `result` may be asked at any time."""

    def __init__(self) -> None:
        self._counts: dict[str, Counter[Any]] = {
            name: Counter()
            for name in (
                "split",
                "risk",
                "system",
                "model",
                "host",
                "label",
                "evidence",
                "n_labels",
            )
        }
        self._pairs: Counter[tuple[str, str]] = Counter()
        self._lengths: dict[str, Counter[int]] = {name: Counter() for name in TEXT_COLUMNS}
        self._keywords: Counter[str] = Counter()
        self._tokens: dict[str, int | None] = {"prompt_tokens": None, "completion_tokens": None}
        self._n_training_source = self._n_with_steps = 0
        self._sample = AnswerSample()

    def add(self, split: str, row: Mapping[str, Any]) -> None:
        """Counts one row."""
        for name, value in (("split", split), *((n, row[n]) for n in ("risk", "system", "model"))):
            self._counts[name][value] += 1
        if row["endpoint_host"] is not None:
            self._counts["host"][row["endpoint_host"]] += 1
        for name in TEXT_COLUMNS:
            if row[name] is not None:
                self._lengths[name][len(row[name])] += 1
        self._n_with_steps += row[STEP_NAMES[0]] is not None
        self._n_training_source += bool(row["is_training_source"])
        for name in self._tokens:
            if row[name] is not None:
                self._tokens[name] = (self._tokens[name] or 0) + row[name]
        self._add_labels(row["distortions"] or ())
        self._keywords.update(row["keywords"] or ())
        if len(self._keywords) > KEYWORDS_HELD:
            self._keywords = Counter({key: n for key, n in self._keywords.items() if n > 1})
        self._sample.offer(row)

    def _add_labels(self, labels: Iterable[Mapping[str, Any]]) -> None:
        found = sorted({label["id"] for label in labels})
        self._counts["label"].update(found)
        self._counts["evidence"].update({label["id"] for label in labels if label["evidence"]})
        self._counts["n_labels"][len(found)] += 1
        self._pairs.update(combinations(found, 2))

    def result(self) -> DatasetStatistics:
        """The statistics of what was added so far."""
        counts = self._counts
        n_entries = counts["split"].total()
        n_distorted = n_entries - counts["n_labels"][0]
        return DatasetStatistics(
            n_entries=n_entries,
            splits=dict(counts["split"]),
            n_distorted=n_distorted,
            share_distorted=n_distorted / n_entries if n_entries else None,
            labels=tuple(
                LabelCount(
                    id=label,
                    n_entries=n,
                    share_of_entries=n / n_entries,
                    share_of_distorted=n / n_distorted,
                    n_with_evidence=counts["evidence"][label],
                )
                for label, n in _ranked(counts["label"])
            ),
            labels_per_entry={k: n for k, n in sorted(counts["n_labels"].items()) if n},
            label_pairs=tuple(
                LabelPair(first=first, second=second, n=n)
                for (first, second), n in _ranked(self._pairs)
            ),
            lengths={
                name: summarise_lengths(found) for name, found in self._lengths.items() if found
            },
            risk=dict(_ranked(counts["risk"])),
            keywords=tuple(_ranked(self._keywords)[:TOP_KEYWORDS]),
            systems=dict(_ranked(counts["system"])),
            models=dict(_ranked(counts["model"])),
            hosts=dict(_ranked(counts["host"])),
            n_training_source=self._n_training_source,
            n_with_steps=self._n_with_steps,
            prompt_tokens=self._tokens["prompt_tokens"],
            completion_tokens=self._tokens["completion_tokens"],
            likeness=self._sample.likeness(),
        )


def _ranked(counts: Counter[Any]) -> list[tuple[Any, int]]:
    """Entries by falling count, ties by key, so that the order of rows does not matter."""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))
