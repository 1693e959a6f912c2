"""People who label texts: the sample that they are given, and how far they agree."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from cbtqa.distortions.labelling import SourceText, read_texts
from cbtqa.distortions.patterns import PatternLabeller
from cbtqa.distortions.taxonomy import Taxonomy, load_taxonomy
from cbtqa.errors import DataError
from cbtqa.files import write_jsonl
from cbtqa.records import Record
from cbtqa.report.table import Table
from cbtqa.settings import Settings
from cbtqa.statistics.agreement import Coefficient, distance_alpha, krippendorff_alpha

Annotations = Mapping[str, Mapping[str, Set[str]]]
"""Rater to item to the types marked there; an item that a rater did not see is missing."""


class LabelAgreement(Record):
    raters: tuple[str, ...]
    n_items: int
    """Texts that two or more raters labelled."""
    any: Coefficient
    """Alpha of any distortion or none."""
    types: dict[str, Coefficient]
    """Alpha of each type, marked or not (nominal)."""
    masi: Coefficient
    """Alpha over whole sets of types with the MASI distance."""


def measure_agreement(
    taxonomy: Taxonomy,
    annotations: Annotations,
    documents: Mapping[str, str] | None = None,
) -> LabelAgreement:
    """Alpha with its 95 % interval for each type, any type, and the sets.

    Random are the texts, or the documents that they belong to, and the raters where there are
    three or more.

    Args:
        documents: what each item is a sentence of; None where each text stands for itself.
    """
    seen = Counter(item for marks in annotations.values() for item in marks)
    clusters = None if documents is None else [documents[item] for item in seen]

    def alpha(types: Set[str]) -> Coefficient:
        cells = [
            [float(not types.isdisjoint(marks[item])) if item in marks else None for item in seen]
            for marks in annotations.values()
        ]
        return krippendorff_alpha(cells, "nominal", clusters=clusters)

    return LabelAgreement(
        raters=tuple(annotations),
        n_items=sum(count > 1 for count in seen.values()),
        any=alpha(set(taxonomy.ids)),
        types={type_id: alpha({type_id}) for type_id in taxonomy.ids},
        masi=masi_alpha(annotations, documents),
    )


def masi_distance(first: Set[str], second: Set[str]) -> float:
    """1 - Jaccard x monotonicity, 0 to 1; two empty sets are the same.

    Source: Passonneau, Measuring Agreement on Set-valued Items, LREC 2006.
    """
    if first == second:
        return 0.0
    shared = first & second
    if not shared:
        return 1.0
    monotonicity = 2 / 3 if shared in (first, second) else 1 / 3
    return 1 - len(shared) / len(first | second) * monotonicity


def masi_alpha(annotations: Annotations, documents: Mapping[str, str] | None = None) -> Coefficient:
    """Krippendorff's alpha over sets of types, with the MASI distance (not squared)."""
    items = list(dict.fromkeys(item for marks in annotations.values() for item in marks))
    frequent = Counter(
        frozenset(marked) for marks in annotations.values() for marked in marks.values()
    )
    usual = max(frequent, key=lambda one: (frequent[one], sorted(one)), default=frozenset[str]())
    # in the order of their distance from the usual set, so that the last is the least usual
    sets = sorted(frequent, key=lambda one: (masi_distance(usual, one), sorted(one)))
    place = {one: float(number) for number, one in enumerate(sets)}
    cells = [
        [place[frozenset(marks[item])] if item in marks else None for item in items]
        for marks in annotations.values()
    ]
    distances = np.array([[masi_distance(one, other) for other in sets] for one in sets])

    clusters = None if documents is None else [documents[item] for item in items]
    return distance_alpha("alpha_masi", cells, distances, clusters=clusters)


class AnnotateSettings(Settings):
    """Settings of `cbtqa distortions annotate`."""

    input: Path
    """Questions or texts, as for `label`."""
    out: Path = Path("annotation")
    """Folder of the study; must be new."""
    n: int = Field(500, ge=1)
    """Texts to draw. Source: 500 in arXiv 2403.16008."""
    raters: int = Field(2, ge=1)
    """Annotators."""
    taxonomy: str = "burns-10"
    """Taxonomy to annotate in."""
    seed: int = 0
    """Seed of the draw."""
    encoding: str = "utf-8"
    """Encoding of a text file, such as gb18030."""


class DrawnSample(Record):
    path: Path
    n: int
    strata: dict[str, dict[Literal["texts", "drawn"], int]]

    def table(self) -> Table:
        rows = [(name, one["texts"], one["drawn"]) for name, one in self.strata.items()]
        return Table(["stratum", "texts", "drawn"], rows)

    def summary(self) -> dict[str, Any]:
        return {"sample": str(self.path), "n": self.n, "strata": self.strata}


def draw_for_annotation(settings: AnnotateSettings) -> DrawnSample:
    """Draws texts in proportion to the labels of the patterns, so that rare types are included.

    The stratum of a text is its rarest type by patterns, or `none`; every stratum that has texts
    gives at least one. Annotators do not see the stratum.
    """
    texts = list(read_texts(settings.input, settings.encoding))
    if not texts:
        raise DataError("holds no text", where=str(settings.input))
    strata = stratify(texts, load_taxonomy(settings.taxonomy))
    sizes = {name: len(members) for name, members in strata.items()}
    wanted = allot(sizes, min(settings.n, len(texts)))
    generator = random.Random(settings.seed)
    drawn = [text for name in strata for text in generator.sample(strata[name], wanted[name])]
    generator.shuffle(drawn)
    path = settings.out.with_name(f"{settings.out.name}.sample.jsonl")
    write_jsonl(path, ({"id": item.id, "question": item.text} for item in drawn))
    counts = {name: {"texts": len(strata[name]), "drawn": wanted[name]} for name in strata}
    return DrawnSample(path=path, n=len(drawn), strata=counts)


def stratify(texts: Sequence[SourceText], taxonomy: Taxonomy) -> dict[str, list[SourceText]]:
    """Texts by their rarest type according to the patterns; `none` for the rest; sorted."""
    labels = PatternLabeller(taxonomy).label_many(item.text for item in texts)
    types = [{label.id for label in row} for row in labels]
    frequency = Counter(itertools.chain.from_iterable(types))
    strata: dict[str, list[SourceText]] = {}
    for item, row in zip(texts, types, strict=True):
        rarest = min(row, key=lambda kind: (frequency[kind], kind), default="none")
        strata.setdefault(rarest, []).append(item)
    return dict(sorted(strata.items()))


def allot(sizes: Mapping[str, int], n: int) -> dict[str, int]:
    """How many to draw from each stratum: in proportion, at least one, none above its size.

    Largest remainders, ties by name. With fewer places than strata the largest strata get one.
    """
    if n < len(sizes):
        largest = sorted(sizes, key=lambda name: (-sizes[name], name))[:n]
        return {name: int(name in largest) for name in sizes}
    total = sum(sizes.values())
    shares = {name: n * size / total for name, size in sizes.items()}
    given = {name: max(1, int(share)) for name, share in shares.items()}
    by_remainder = sorted(sizes, key=lambda name: (int(shares[name]) - shares[name], name))
    while sum(given.values()) < n:
        for name in by_remainder:
            if sum(given.values()) < n and given[name] < sizes[name]:
                given[name] += 1
    while sum(given.values()) > n:
        given[max(given, key=lambda name: (given[name], name))] -= 1
    return given
