"""Agreement of people who labelled the same texts: Krippendorff's alpha by type, and over sets.

agreement = measure_agreement(taxonomy, {"R1": {"1": {"labeling"}}, "R2": {"1": {"labeling"}}})
agreement.types["labeling"].value
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from itertools import combinations
from pathlib import Path
from typing import Any

from pydantic import Field

from cbtqa.distortions.evaluate import count_types
from cbtqa.distortions.labelling import SourceText, read_texts
from cbtqa.distortions.patterns import PatternLabeller
from cbtqa.distortions.taxonomy import Taxonomy, load_taxonomy
from cbtqa.files import write_jsonl
from cbtqa.records import Record
from cbtqa.report.table import Table
from cbtqa.settings import Settings
from cbtqa.statistics.agreement import Coefficient, krippendorff_alpha

Annotations = Mapping[str, Mapping[str, Set[str]]]
"""Rater to item to the types marked there; an item that a rater did not see is missing."""


class LabelAgreement(Record):
    """How far raters agree about distortions."""

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
    taxonomy: Taxonomy, annotations: Annotations, *, n_resamples: int = 1_000, seed: int = 0
) -> LabelAgreement:
    """Alpha with its 95 % interval (bootstrap over texts) for each type, any type, and the sets."""
    raters = tuple(annotations)
    items = list(dict.fromkeys(item for marks in annotations.values() for item in marks))
    seen = Counter(item for marks in annotations.values() for item in marks)

    def alpha(is_marked: Mapping[str, Mapping[str, bool]]) -> Coefficient:
        cells = [
            [float(marks[item]) if item in marks else None for item in items]
            for marks in is_marked.values()
        ]
        return krippendorff_alpha(cells, "nominal", n_resamples=n_resamples, seed=seed)

    types = {
        type_id: alpha(
            {
                rater: {item: type_id in marked for item, marked in marks.items()}
                for rater, marks in annotations.items()
            }
        )
        for type_id in taxonomy.ids
    }
    return LabelAgreement(
        raters=raters,
        n_items=sum(count > 1 for count in seen.values()),
        any=alpha(
            {
                rater: {item: bool(marked) for item, marked in marks.items()}
                for rater, marks in annotations.items()
            }
        ),
        types=types,
        masi=masi_alpha(annotations),
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


def masi_alpha(annotations: Annotations) -> Coefficient:
    """Krippendorff's alpha over sets of types, with the MASI distance (not squared)."""
    by_item: dict[str, list[frozenset[str]]] = {}
    for marks in annotations.values():
        for item, marked in marks.items():
            by_item.setdefault(item, []).append(frozenset(marked))
    pairable = [sets for sets in by_item.values() if len(sets) > 1]
    totals = Counter(marked for sets in pairable for marked in sets)
    n = totals.total()
    observed = sum(
        2 * sum(masi_distance(*pair) for pair in combinations(sets, 2)) / (len(sets) - 1)
        for sets in pairable
    )
    expected = sum(
        2 * totals[one] * totals[other] * masi_distance(one, other)
        for one, other in combinations(totals, 2)
    )
    if not expected:
        reason = "no item was labelled by two raters" if not n else "no variation"
        return Coefficient(
            name="alpha_masi", value=None, n_items=len(pairable), n_ratings=n, reason=reason
        )
    return Coefficient(
        name="alpha_masi",
        value=1 - (n - 1) * observed / expected,
        n_items=len(pairable),
        n_ratings=n,
    )


# --- sampling ------------------------------------------------------------------------------------
# Draws texts for annotation: seeded, and stratified so that rare types come along.


class AnnotateSettings(Settings):
    """What `cbtqa distortions annotate` can be told."""

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
    """Texts drawn for annotation, on disk."""

    path: Path
    n: int
    strata: dict[str, tuple[int, int]]
    """Stratum to texts there and texts drawn."""

    def table(self) -> Table:
        """Texts there and drawn by stratum."""
        rows = [(name, there, drawn) for name, (there, drawn) in self.strata.items()]
        return Table(["stratum", "texts", "drawn"], rows)

    def summary(self) -> dict[str, Any]:
        """For `--json`."""
        strata = {name: {"texts": there, "drawn": n} for name, (there, n) in self.strata.items()}
        return {"sample": str(self.path), "n": self.n, "strata": strata}


def draw_for_annotation(settings: AnnotateSettings) -> DrawnSample:
    """Draws texts in proportion to what the patterns say of them, so that rare types come along.

    The stratum of a text is its rarest type by patterns, or `none`; every stratum that has texts
    gives at least one. Annotators do not see the stratum.
    """
    texts = list(read_texts(settings.input, settings.encoding))
    strata = stratify(texts, load_taxonomy(settings.taxonomy))
    wanted = allot(
        {name: len(members) for name, members in strata.items()}, min(settings.n, len(texts))
    )
    generator = random.Random(settings.seed)
    drawn = [text for name in strata for text in generator.sample(strata[name], wanted[name])]
    generator.shuffle(drawn)
    path = settings.out.with_name(f"{settings.out.name}.sample.jsonl")
    write_jsonl(path, ({"id": item.id, "question": item.text} for item in drawn))
    return DrawnSample(
        path=path,
        n=len(drawn),
        strata={name: (len(strata[name]), wanted[name]) for name in strata},
    )


def stratify(texts: Sequence[SourceText], taxonomy: Taxonomy) -> dict[str, list[SourceText]]:
    """Texts by their rarest type according to the patterns; `none` for the rest; sorted."""
    labels = PatternLabeller(taxonomy).label_many(item.text for item in texts)
    frequency = count_types(labels)
    strata: dict[str, list[SourceText]] = {}
    for item, row in zip(texts, labels, strict=True):
        rarest = min(
            (label.id for label in row), key=lambda kind: (frequency[kind], kind), default="none"
        )
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
