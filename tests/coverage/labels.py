"""Labels beside people's (F1, shares, differences) and what share of texts truly has one."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import numpy.typing as npt

from cbtqa.distortions.annotators import masi_alpha, masi_distance
from cbtqa.distortions.evaluate import EvaluationReport, SystemReport, evaluate
from cbtqa.distortions.importers import GoldItem, GoldSet
from cbtqa.distortions.prevalence import labelled_share
from cbtqa.distortions.taxonomy import load_taxonomy
from cbtqa.records import DistortionLabel
from tests.coverage.cases import COVERAGE, Case, Generator, Shown, Tier, shown

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


REPORTS: dict[tuple[int, int, int], EvaluationReport] = {}
"""By trial, texts and texts a document: every figure of one trial is of the same report."""


def _common_report(rng: Generator, n: int, per_document: int) -> EvaluationReport:
    state: int = rng.bit_generator.state["state"]["state"]
    key = state, n, per_document
    if key not in REPORTS:
        REPORTS[key] = _report(rng, n, LABELLERS, FREQUENT_TO_RARE, per_document)
    return REPORTS[key]


def _system(rng: Generator, n: int, labeller: str, per_document: int) -> SystemReport:
    return _common_report(rng, n, per_document).systems[labeller]


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


def _of_type(rng: Generator, n: int, place: int, labeller: str, per_document: int) -> Shown | None:
    found = _system(rng, n, labeller, per_document).types[BURNS.ids[place]]
    return shown(found.f1, found.low, found.high, float(_f1_by_type(labeller)[place]))


def _of_precision(rng: Generator, n: int, place: int, per_document: int) -> Shown | None:
    found = _system(rng, n, "fair", per_document).types[BURNS.ids[place]]
    share = FREQUENT_TO_RARE[place]
    truth = float(0.7 * share / (0.7 * share + 0.05 * (1 - share)))
    return shown(found.precision, found.precision_low, found.precision_high, truth)


def _of_micro(rng: Generator, n: int, labeller: str, per_document: int) -> Shown | None:
    found = _system(rng, n, labeller, per_document).micro
    return shown(found.f1, found.low, found.high, _micro(labeller))


def _of_macro(rng: Generator, n: int, labeller: str, per_document: int) -> Shown | None:
    """The mean is about the types that occur, as the report says."""
    found = _system(rng, n, labeller, per_document)
    occurs = [found.types[one].f1 is not None for one in BURNS.ids]
    truth = float(_f1_by_type(labeller)[occurs].mean())
    return shown(found.macro_f1, found.macro_low, found.macro_high, truth)


def _of_difference(rng: Generator, n: int, figure: str, per_document: int) -> Shown | None:
    names = ("fair", "worse on rare types")
    report = _common_report(rng, n, per_document)
    (found,) = (
        one for one in report.differences if (one.first, one.second, one.figure) == (*names, figure)
    )
    if figure == "micro":
        truth = _micro(names[0]) - _micro(names[1])
    else:
        occurs = [
            all(report.systems[name].types[one].f1 is not None for name in names)
            for one in BURNS.ids
        ]
        first, second = (_f1_by_type(name)[occurs] for name in names)
        truth = float((first - second).mean())
    return shown(found.value, found.low, found.high, truth)


def _of_accuracy(rng: Generator, n: int, per_document: int) -> Shown | None:
    """Of one decision with 30 % of texts distorted, sensitivity .8, specificity .9."""
    labeller = {"x": (np.array([0.8]), np.array([0.1]))}
    found = _report(rng, n, labeller, np.array([0.3]), per_document).systems["x"]
    assert found.accuracy_interval is not None
    return shown(found.accuracy, found.accuracy_interval.low, found.accuracy_interval.high, 0.87)


def _swap_rejects(rng: Generator, n: int, per_document: int) -> bool:
    """Two labellers of one quality, on one decision."""
    one = np.array([0.7]), np.array([0.2])
    report = _report(rng, n, {"a": one, "b": one}, np.array([0.4]), per_document)
    return report.comparisons[0].p <= 0.05


def _true_share(
    rng: Generator, n_evaluated: int, n: int, share: float, right: float, none: float
) -> Shown | None:
    """A labeller evaluated on some texts, and the labelled share of others."""
    labeller = {"x": (np.array([right]), np.array([1 - none]))}
    evaluation = _report(rng, n_evaluated, labeller, np.array([share]))
    labelled = int(rng.binomial(n, share * right + (1 - share) * (1 - none)))
    found = labelled_share(n, labelled, {"x": labelled}, evaluation).corrected
    return None if found is None else Shown(found.value, found.low, found.high, share)


SETS = tuple(frozenset(kinds) for kinds in ((), ("a",), ("b",), ("a", "b")))
OF_TEXTS = np.array([0.55, 0.2, 0.15, 0.1])
"""How many texts truly have each set."""
MARKED = np.array(
    [
        [np.prod([0.8 if (k in one) == (k in marked) else 0.2 for k in "ab"]) for marked in SETS]
        for one in SETS
    ]
)
"""What an annotator who errs in a fifth of the types marks, by true set."""


def _masi(rng: Generator, n: int) -> Shown | None:
    """Two annotators of whole sets of types."""
    truth = rng.choice(len(SETS), n, p=OF_TEXTS)
    annotations = {
        name: {
            str(item): SETS[rng.choice(len(SETS), p=MARKED[one])] for item, one in enumerate(truth)
        }
        for name in ("anna", "ben")
    }
    pairs, margins = MARKED.T @ (OF_TEXTS[:, None] * MARKED), OF_TEXTS @ MARKED
    distances = np.array([[masi_distance(one, other) for other in SETS] for one in SETS])
    alpha = 1 - (pairs * distances).sum() / (margins @ distances @ margins)
    found = masi_alpha(annotations)
    return shown(found.value, found.low, found.high, float(alpha))


DESIGNS: dict[tuple[int, int], Tier] = {
    (30, 1): "suite",
    (100, 1): "suite",
    (500, 1): "bench",
    (100, 5): "bench",
}
"""Texts and texts a document."""
Told = tuple[tuple[float, float], float, str]
"""What is allowed, the greatest width, and why it is not nominal."""
NOMINAL: Told = (COVERAGE, math.inf, "")
FEW: Told = ((COVERAGE[0], 1.0), 1.7, "few texts have the type: errs on the wide side")
MACRO: Told = ((COVERAGE[0], 1.0), 2.2, "joins exact ends of few texts: errs on the wide side")


def _design(n: int, per_document: int) -> str:
    return f"{n} texts" + (f" of {n // per_document} documents" if per_document > 1 else "")


def _case(
    what: str, trial: Callable[..., Shown | None], n: int, per_document: int, told: Told
) -> Case:
    allowed, widest, note = FEW if told is NOMINAL and n == 30 else told
    if per_document > 1:
        allowed, widest, note = (0.9, 1.0), 2.2, "twenty documents: .92 to .99 by figure"
    return Case(
        f"{what}, {_design(n, per_document)}",
        "distortions evaluate",
        partial(trial, n=n, per_document=per_document),
        300,
        allowed,
        # a type in 3 % of 30 texts is rarely in four of them
        least_printed=0.0 if n == 30 else 0.3,
        note=note,
        widest=widest,
        tier=DESIGNS[n, per_document],
    )


F1_CASES = [
    _case(what, trial, n, per_document, told)
    for n, per_document in DESIGNS
    for what, trial, told in (
        ("F1 of a type in 30 % of texts", partial(_of_type, place=0, labeller="fair"), NOMINAL),
        ("F1 of a type in 10 % of texts", partial(_of_type, place=3, labeller="fair"), FEW),
        ("F1 of a type in 3 %", partial(_of_type, place=7, labeller="worse on rare types"), FEW),
        ("precision of a type in 30 % of texts", partial(_of_precision, place=0), FEW),
        ("precision of a type in 10 % of texts", partial(_of_precision, place=3), FEW),
        ("micro F1", partial(_of_micro, labeller="fair"), NOMINAL),
        ("micro F1, nearly perfect", partial(_of_micro, labeller="nearly perfect"), FEW),
        ("macro F1", partial(_of_macro, labeller="fair"), MACRO),
        (
            "macro F1, worse on rare types",
            partial(_of_macro, labeller="worse on rare types"),
            MACRO,
        ),
        ("macro F1, nearly perfect", partial(_of_macro, labeller="nearly perfect"), MACRO),
        ("difference of micro F1", partial(_of_difference, figure="micro"), NOMINAL),
        ("difference of macro F1", partial(_of_difference, figure="macro"), MACRO),
    )
]
EXACT: Told = ((0.0, 0.06), math.inf, "exact: below its level where few texts differ")
SHARE: Told = (
    (COVERAGE[0], 1.0),
    1.6,
    "errs on the wide side where few evaluated texts have a distortion",
)
ERRORS = {
    # sensitivity, specificity, true share, what is allowed
    "as in the paper": (0.93, 0.58, 0.25, NOMINAL),
    "of patterns": (0.5, 0.93, 0.3, NOMINAL),
    "nearly perfect, rare": (0.95, 0.99, 0.03, SHARE),
    "hardly above chance": (0.65, 0.5, 0.3, SHARE),
}

CASES = [
    *F1_CASES,
    *(
        Case(
            f"MASI alpha of two annotators, {n} texts",
            "distortions agree",
            partial(_masi, n=n),
            1_000,
            COVERAGE,
            tier="bench",
        )
        for n in (30, 100)
    ),
    *(
        Case(
            f"accuracy, {_design(n, per_document)}",
            "distortions evaluate",
            partial(_of_accuracy, n=n, per_document=per_document),
            1_000,
            COVERAGE,
            tier="bench",
        )
        for n, per_document in ((30, 1), (100, 5))
    ),
    *(
        Case(
            f"two labellers alike, McNemar, {_design(n, per_document)}",
            "distortions evaluate",
            partial(_swap_rejects, n=n, per_document=per_document),
            600,
            EXACT[0],
            note=EXACT[2],
            tier="bench",
        )
        for n, per_document in ((30, 1), (100, 5))
    ),
    *(
        Case(
            f"true share by a labeller {name}, evaluated on {n_evaluated} texts",
            "stats",
            partial(
                _true_share, n_evaluated=n_evaluated, n=1_000, share=share, right=right, none=none
            ),
            400,
            told[0],
            # where chance is not ruled out, or hardly any evaluated text has a distortion
            least_printed=0.0 if name == "hardly above chance" else 0.2,
            note=told[2],
            widest=told[1],
            tier="suite" if told is NOMINAL and n_evaluated == 100 else "bench",
        )
        for name, (right, none, share, told) in ERRORS.items()
        for n_evaluated in (100, 300)
        if (name, n_evaluated) != ("hardly above chance", 300)
    ),
]
