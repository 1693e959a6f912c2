"""Which entries a report shows, and how the evidence of their labels is marked in the text.

The choice depends on ids and a seed alone: of a random pool the entries are taken that add most
that was not seen yet (types, risk, split, length), so that a report does not flatter.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from cbtqa.dataset.likeness import sample_key
from cbtqa.dataset.stats import COLUMNS

POOL_SIZE = 400
Row = Mapping[str, Any]


def choose_examples(folder: Path, n: int = 10, seed: int = 0) -> list[tuple[str, dict[str, Any]]]:
    """`(split, row)` of up to `n` varied entries of a dataset folder, the same for the same seed.

    Memory holds one row group at a time, whatever the size of the dataset.
    """
    import pyarrow.parquet as pq

    paths = sorted((folder / "data").glob("*.parquet"))
    wanted = sorted(heapq.nsmallest(POOL_SIZE, _places(paths, seed)), key=lambda place: place[2:])
    pool: dict[str, tuple[str, dict[str, Any]]] = {}
    for (which, group), places in groupby(wanted, key=lambda place: place[2:4]):
        with pq.ParquetFile(paths[which]) as parquet:
            table = parquet.read_row_group(group, columns=list(COLUMNS))
        split = paths[which].name.split("-")[0]
        for row in table.take([place[4] for place in places]).to_pylist():
            pool[row["id"]] = (split, row)
    return _most_varied([pool[item_id] for _, item_id, *_ in sorted(wanted)], n)


def _places(paths: Sequence[Path], seed: int) -> Iterator[tuple[int, str, int, int, int]]:
    """Hash, id, file, row group and row of every entry."""
    import pyarrow.parquet as pq

    for which, path in enumerate(paths):
        with pq.ParquetFile(path) as parquet:
            for group in range(parquet.num_row_groups):
                ids = parquet.read_row_group(group, columns=["id"])["id"].to_pylist()
                for row, item_id in enumerate(ids):
                    key = sample_key(item_id, f"examples {seed}")
                    yield key, item_id, which, group, row


def _most_varied(
    pool: Sequence[tuple[str, dict[str, Any]]], n: int
) -> list[tuple[str, dict[str, Any]]]:
    """Takes, again and again, the first entry with the most features seen least often so far."""
    left = list(pool)
    chosen: list[tuple[str, dict[str, Any]]] = []
    seen: dict[str, int] = {}
    while left and len(chosen) < n:
        split, row = max(
            left, key=lambda entry: sum(1 / (1 + seen.get(f, 0)) ** 2 for f in _features(*entry))
        )
        left.remove((split, row))
        chosen.append((split, row))
        for feature in _features(split, row):
            seen[feature] = seen.get(feature, 0) + 1
    return chosen


def _features(split: str, row: Row) -> list[str]:
    """What an entry shows; about as many for every entry, so that no kind wins by its number."""
    labels = sorted({label["id"] for label in row["distortions"]})
    length = min(len(row["description"]) // 100, 4)
    return [
        f"label {labels[0] if labels else 'none'}",
        f"n_labels {len(labels)}",
        f"risk {row['risk']}",
        f"split {split}",
        f"length {length}",
        *(f"topic {word}" for word in row["keywords"][:1]),
    ]


def mark_evidence(text: str, quotes: Sequence[tuple[str, int]]) -> Markup:
    """The text with quoted spans marked and numbered; everything else escaped.

    Args:
        quotes: `(verbatim span, number)`; a span is marked where it first occurs. Overlapping
            spans become one mark with both numbers.
    """
    spans: list[tuple[int, int, list[int]]] = []
    for quote, number in sorted(quotes, key=lambda item: (text.find(item[0]), -len(item[0]))):
        start = text.find(quote) if quote else -1
        if start < 0:
            continue
        end = start + len(quote)
        if spans and start < spans[-1][1]:
            first, last, numbers = spans[-1]
            spans[-1] = (first, max(last, end), sorted({*numbers, number}))
        else:
            spans.append((start, end, [number]))
    parts, position = [], 0
    for start, end, numbers in spans:
        parts.append(escape(text[position:start]))
        tag = Markup("<sup>{}</sup>").format(",".join(map(str, numbers)))
        parts.append(Markup("<mark>{}{}</mark>").format(text[start:end], tag))
        position = end
    parts.append(escape(text[position:]))
    return Markup("").join(parts)
