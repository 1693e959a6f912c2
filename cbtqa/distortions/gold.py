"""Texts with the distortions that people marked in them, to train and to evaluate labellers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cbtqa.distortions.taxonomy import Taxonomy
from cbtqa.records import NonEmptyText, Record


class GoldItem(Record):
    id: NonEmptyText
    text: NonEmptyText
    types: frozenset[str]
    """Ids of the taxonomy; empty when no distortion was found."""
    where: str = ""
    """`file:line` it comes from."""


@dataclass(frozen=True)
class GoldSet:
    name: str
    """Short name of the source, such as `cogdis`."""
    taxonomy: Taxonomy
    items: tuple[GoldItem, ...]
    licence: str
    n_rows: int
    """Rows read, duplicates included."""
    n_duplicates: int = 0
    """Rows left out because an earlier row has the same text and the same types."""
    n_contradictions: int = 0
    """Rows left out because an earlier row has the same text and other types."""

    @property
    def texts(self) -> list[str]:
        return [item.text for item in self.items]

    @property
    def matrix(self) -> npt.NDArray[np.bool_]:
        return type_matrix((item.types for item in self.items), self.taxonomy)

    @property
    def sha256(self) -> str:
        digest = hashlib.sha256(self.taxonomy.id.encode())
        for item in self.items:
            line = f"\n{item.text}\t{','.join(sorted(item.types))}"
            digest.update(line.encode("utf-8", "replace"))
        return digest.hexdigest()


def type_matrix(type_sets: Iterable[Iterable[str]], taxonomy: Taxonomy) -> npt.NDArray[np.bool_]:
    """`(items, types)`: which types each item has, in the taxonomy's order."""
    place = {type_id: column for column, type_id in enumerate(taxonomy.ids)}
    rows = [[place[type_id] for type_id in types] for types in type_sets]
    matrix = np.zeros((len(rows), len(place)), bool)
    for row, columns in zip(matrix, rows, strict=True):
        row[columns] = True
    return matrix
