"""Labels beside people's (F1, shares, differences) and what share of texts truly has one."""

from __future__ import annotations

from functools import partial

import numpy as np
import numpy.typing as npt

from cbtqa.distortions.evaluate import EvaluationReport, SystemReport, evaluate
from cbtqa.distortions.importers import GoldItem, GoldSet
from cbtqa.distortions.taxonomy import load_taxonomy
from cbtqa.records import DistortionLabel
from tests.coverage.cases import COVERAGE, Case, Generator

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
BURNS = load_taxonomy("burns-10")
BINARY = load_taxonomy("binary")
FREQUENT_TO_RARE = np.array([0.3, 0.2, 0.15, 0.1, 0.1, 0.08, 0.05, 0.03, 0.02, 0.01])
LABELLERS = {
    # sensitivity and false alarms by type
    "fair": (np.full(10, 0.7), np.full(10, 0.05)),
    "worse on rare types": (
        np.array([0.95, 0.9, 0.8, 0.7, 0.6, 0.6, 0.5, 0.5, 0.4, 0.4]),
        0.4 * FREQUENT_TO_RARE,
    ),
    "nearly perfect": (np.full(10, 0.95), 0.05 * FREQUENT_TO_RARE),
}


def _draw(rng: Generator, shares: Floats, documents: list[int] | None) -> Bools:
    """Yes or no with each share; alike within documents."""
    from scipy.stats import norm

    n = len(shares)
    if documents is None:
        return rng.random(shares.shape) < shares
    common = rng.normal(size=(max(documents) + 1, 1))[documents]
    own = rng.normal(size=shares.shape)
    assert len(documents) == n
    drawn: Bools = (common + own) / np.sqrt(2) < norm.ppf(shares)
    return drawn


def _labels(given: Bools, ids: tuple[str, ...]) -> list[tuple[DistortionLabel, ...]]:
    known = {one: DistortionLabel(id=one, labeller="x") for one in ids}
    return [
        tuple(known[one] for one, is_given in zip(ids, row, strict=True) if is_given)
        for row in given
    ]


def _report(
    rng: Generator,
    n: int,
    labellers: dict[str, tuple[Floats, Floats]],
    shares: Floats,
    per_document: int = 1,
) -> EvaluationReport:
    """The product's report on texts drawn with these shares of types and these labellers."""
    taxonomy = BURNS if len(shares) > 1 else BINARY
    documents = (np.arange(n) // per_document).tolist() if per_document > 1 else None
    truth = _draw(rng, np.tile(shares, (n, 1)), documents)
    items = tuple(
        GoldItem(
            id=str(row),
            text=f"第{row}句",
            types=frozenset(np.array(taxonomy.ids)[kinds].tolist()),
            document=None if documents is None else str(documents[row]),
        )
        for row, kinds in enumerate(truth)
    )
    column = None if documents is None else "document"
    gold = GoldSet("invented", taxonomy, items, "ours", n, cluster_column=column)
    given = {
        name: _labels(_draw(rng, np.where(truth, right, false), documents), taxonomy.ids)
        for name, (right, false) in labellers.items()
    }
    return evaluate(gold, given, n_errors=0)


def _system(rng: Generator, n: int, labeller: str, per_document: int) -> SystemReport:
    labellers = {"x": LABELLERS[labeller]}
    return _report(rng, n, labellers, FREQUENT_TO_RARE, per_document).systems["x"]


def _f1_by_type(labeller: str) -> Floats:
    right, false = LABELLERS[labeller]
    hits = FREQUENT_TO_RARE * right
    found: Floats = 2 * hits / (FREQUENT_TO_RARE + hits + (1 - FREQUENT_TO_RARE) * false)
    return found


def _micro(labeller: str) -> float:
    right, false = LABELLERS[labeller]
    hits = float(FREQUENT_TO_RARE @ right)
    given = hits + float((1 - FREQUENT_TO_RARE) @ false)
    return 2 * hits / (given + float(FREQUENT_TO_RARE.sum()))


def _holds(low: float | None, truth: float, high: float | None) -> bool | None:
    return None if low is None or high is None else low <= truth <= high


def _of_type(rng: Generator, n: int, place: int, labeller: str, per_document: int) -> bool | None:
    found = _system(rng, n, labeller, per_document).types[BURNS.ids[place]]
    return _holds(found.low, _f1_by_type(labeller)[place], found.high)


def _of_micro(rng: Generator, n: int, labeller: str, per_document: int) -> bool | None:
    found = _system(rng, n, labeller, per_document).micro
    return _holds(found.low, _micro(labeller), found.high)


def _of_macro(rng: Generator, n: int, labeller: str, per_document: int) -> bool | None:
    """The mean is about the types that occur, as the report says."""
    found = _system(rng, n, labeller, per_document)
    occurs = [found.types[one].f1 is not None for one in BURNS.ids]
    truth = float(_f1_by_type(labeller)[occurs].mean())
    return _holds(found.macro_low, truth, found.macro_high)


def _of_difference(rng: Generator, n: int, figure: str, per_document: int) -> bool | None:
    names = ("fair", "worse on rare types")
    labellers = {name: LABELLERS[name] for name in names}
    report = _report(rng, n, labellers, FREQUENT_TO_RARE, per_document)
    (found,) = (one for one in report.differences if one.figure == figure)
    if figure == "micro":
        truth = _micro(names[0]) - _micro(names[1])
    else:
        occurs = [
            all(report.systems[name].types[one].f1 is not None for name in names)
            for one in BURNS.ids
        ]
        first, second = (_f1_by_type(name)[occurs] for name in names)
        truth = float((first - second).mean())
    return _holds(found.low, truth, found.high)


def _of_accuracy(rng: Generator, n: int, per_document: int) -> bool | None:
    """Of one decision with 30 % of texts distorted, sensitivity .8, specificity .9."""
    labeller = {"x": (np.array([0.8]), np.array([0.1]))}
    found = _report(rng, n, labeller, np.array([0.3]), per_document).systems["x"]
    assert found.accuracy_interval is not None
    return _holds(found.accuracy_interval.low, 0.87, found.accuracy_interval.high)


def _swap_rejects(rng: Generator, n: int, per_document: int) -> bool:
    """Two labellers of one quality, on one decision."""
    one = np.array([0.7]), np.array([0.2])
    report = _report(rng, n, {"a": one, "b": one}, np.array([0.4]), per_document)
    return report.comparisons[0].p <= 0.05


DESIGNS = ((30, 1), (100, 1), (500, 1), (100, 5), (500, 5))


def _design(n: int, per_document: int) -> str:
    return f"{n} texts" + (f" of {n // per_document} documents" if per_document > 1 else "")
