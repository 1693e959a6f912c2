"""Which entries a report shows, and how the evidence of their labels is marked in the text.

The choice depends on ids and a seed alone: of a random pool the entries are taken that add most
that was not seen yet (types, risk, split, length), so that a report does not flatter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from cbtqa.dataset.likeness import sample_key

POOL_SIZE = 400
Row = Mapping[str, Any]


def choose_examples(folder: Path, n: int = 10, seed: int = 0) -> list[tuple[str, dict[str, Any]]]:
    """`(split, row)` of up to `n` varied entries of a dataset folder, the same for the same seed.

    Only ids are read in full; rows are read for the pool.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.dataset as ds

    pool: list[tuple[str, dict[str, Any]]] = []
    paths = sorted((folder / "data").glob("*.parquet"))
    keyed = [
        (sample_key(item_id, f"examples {seed}"), item_id)
        for path in paths
        for item_id in ds.dataset(path).to_table(columns=["id"])["id"].to_pylist()
    ]
    wanted = pa.array([item_id for _, item_id in sorted(keyed)[:POOL_SIZE]], pa.string())
    for path in paths:
        found = ds.dataset(path).to_table(filter=pc.field("id").isin(wanted))
        pool += [(path.name.split("-")[0], row) for row in found.to_pylist()]
    pool.sort(key=lambda entry: (sample_key(entry[1]["id"], f"examples {seed}"), entry[1]["id"]))
    return _most_varied(pool, n)


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
