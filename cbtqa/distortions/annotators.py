"""Agreement of people who labelled the same texts: Krippendorff's alpha by type, and over sets.

agreement = measure_agreement(taxonomy, {"R1": {"1": {"labeling"}}, "R2": {"1": {"labeling"}}})
agreement.types["labeling"].value
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Set
from itertools import combinations

from cbtqa.distortions.taxonomy import Taxonomy
from cbtqa.records import Record
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
