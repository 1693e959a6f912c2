"""How well labels fit the gold: counts, F1 in its kinds, intervals, tests, calibration, errors.

    report = evaluate(gold, {"patterns": PatternLabeller(gold.taxonomy).label_many(gold.texts)})
    report.systems["patterns"].micro.f1

An F1 whose denominator is 0 (a type that neither gold nor labeller has) is None and stays out of
the macro mean. Intervals are percentiles of a bootstrap over texts; all systems see the same draws.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from math import comb
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import Field

from cbtqa.distortions.gold import GoldSet, type_matrix
from cbtqa.distortions.labellers import Labels
from cbtqa.records import Record
from cbtqa.statistics.resampling import bootstrap_sums, holm, percentile_interval

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
N_RESAMPLES = 1_000
PAPER_TABLE_3 = {"n": 500, "accuracy": 0.69, "recall": 0.93, "f1": 0.65}
"""The prompt's labels of arXiv 2403.16008 against people, any distortion or none; as published."""


class F1(Record):
    """Counts of one kind and what follows from them."""

    precision: float | None
    """None when nothing was given."""
    recall: float | None
    """None when the gold has none."""
    f1: float | None
    """None when neither has any."""
    low: float | None = None
    """Lower end of the 95 % interval of F1."""
    high: float | None = None
    support: int = Field(ge=0)
    """Times the gold has it."""
    n_given: int = Field(ge=0)


class Confusion(Record):
    """Texts where the gold has one type only and the labeller gave another one only."""

    gold: str
    given: str
    n: int


class CalibrationBin(Record):
    """Labels of similar confidence: how sure, and how often right."""

    low: float
    high: float
    n: int
    mean_confidence: float
    share_right: float


class InstructiveError(Record):
    """A confident mistake, or a miss."""

    where: str
    text: str
    kind: str
    """`given` in error or `missed`."""
    type: str
    confidence: float | None
    evidence: str | None


class SystemReport(Record):
    """One labeller against the gold."""

    binary: F1
    """Any distortion or none."""
    accuracy: float
    """Of the binary decision."""
    micro: F1
    macro_f1: float | None
    macro_low: float | None
    macro_high: float | None
    n_types_in_macro: int
    samples_f1: float
    """Mean over texts of F1 between gold and given types; 1 where both are empty."""
    subset_accuracy: float
    """Share of texts whose types are given exactly."""
    types: dict[str, F1]
    confusions: tuple[Confusion, ...]
    calibration: tuple[CalibrationBin, ...]
    calibration_error: float | None
    """Expected calibration error, 0 to 1; None when no label carries a confidence."""
    errors: tuple[InstructiveError, ...]


class McNemar(Record):
    """Two labellers on the same texts, on one decision."""

    first: str
    second: str
    decision: str
    """A type, or `any`."""
    only_first_right: int
    only_second_right: int
    p: float
    """Exact, two-sided."""
    p_holm: float
    """Adjusted over all comparisons of the report."""


class EvaluationReport(Record):
    """All labellers on one gold set."""

    data: str
    data_sha256: str
    taxonomy: str
    n_texts: int
    systems: dict[str, SystemReport]
    comparisons: tuple[McNemar, ...]
    paper: dict[str, float] = Field(default_factory=lambda: dict(PAPER_TABLE_3))


def evaluate(
    gold: GoldSet,
    given: Mapping[str, Sequence[Labels]],
    *,
    n_resamples: int = N_RESAMPLES,
    n_errors: int = 20,
    seed: int = 12345,
) -> EvaluationReport:
    """Scores each labeller's labels, one tuple per gold item, in the gold's taxonomy.

    Raises:
        ValueError: a labeller has not one entry per gold item.
    """
    truth = gold.matrix
    matrices = {}
    for name, labels in given.items():
        if len(labels) != len(gold.items):
            raise ValueError(f"{name}: {len(labels)} entries for {len(gold.items)} texts")
        matrices[name] = type_matrix(({label.id for label in row} for row in labels), gold.taxonomy)
    systems = {
        name: _system_report(gold, labels, truth, matrices[name], n_resamples, n_errors, seed)
        for name, labels in given.items()
    }
    return EvaluationReport(
        data=gold.name,
        data_sha256=gold.sha256,
        taxonomy=gold.taxonomy.id,
        n_texts=len(gold.items),
        systems=systems,
        comparisons=compare_pairs(truth, matrices, gold.taxonomy.ids),
    )


def any_type(matrix: Bools) -> Bools:
    """`(texts,)`: whether a text has any type."""
    return np.asarray(matrix.any(axis=1))


class _Additive(NamedTuple):
    """`(texts, columns)` sums from which every F1 follows: hits, given, gold; a block for each."""

    table: Floats
    n_types: int

    @classmethod
    def of(cls, truth: Bools, given: Bools) -> _Additive:
        any_truth, any_given = truth.any(1, keepdims=True), given.any(1, keepdims=True)
        truth_all, given_all = np.hstack([truth, any_truth]), np.hstack([given, any_given])
        blocks = [truth_all & given_all, given_all, truth_all]
        return cls(np.hstack(blocks).astype(np.float64), truth.shape[1])

    def f1(self, sums: Floats) -> Floats:
        """`(draws, types + 2)`: F1 of each type, of any, and micro; NaN where undefined."""
        hits, given, gold = np.split(np.atleast_2d(sums), 3, axis=1)
        n = self.n_types
        hits, given, gold = (
            np.hstack([part, part[:, :n].sum(1, keepdims=True)]) for part in (hits, given, gold)
        )
        total = given + gold
        return np.divide(2 * hits, total, out=np.full_like(total, np.nan), where=total > 0)


def _system_report(
    gold: GoldSet,
    labels: Sequence[Labels],
    truth: Bools,
    given: Bools,
    n_resamples: int,
    n_errors: int,
    seed: int,
) -> SystemReport:
    additive = _Additive.of(truth, given)
    draws = additive.f1(bootstrap_sums(additive.table, n_resamples, seed)) if n_resamples else None
    ids, n_types = gold.taxonomy.ids, truth.shape[1]
    any_truth, any_given = any_type(truth), any_type(given)

    def f1_of(column: int, of_truth: Bools, of_given: Bools) -> F1:
        interval = _interval(draws[:, column]) if draws is not None else (None, None)
        return count_f1(of_truth, of_given, interval)

    types = {
        type_id: f1_of(column, truth[:, column], given[:, column])
        for column, type_id in enumerate(ids)
    }
    values = [entry.f1 for entry in types.values() if entry.f1 is not None]
    macro_draws = None
    if draws is not None and values:
        with_values = draws[:, [c for c, t in enumerate(types.values()) if t.f1 is not None]]
        macro_draws = np.nan_to_num(with_values).mean(axis=1)
    macro_low, macro_high = (None, None) if macro_draws is None else _interval(macro_draws)
    both = (truth & given).sum(1)
    sizes = truth.sum(1) + given.sum(1)
    bins, calibration_error = calibrate(labels, [item.types for item in gold.items])
    return SystemReport(
        binary=f1_of(n_types, any_truth, any_given),
        accuracy=float((any_truth == any_given).mean()),
        micro=f1_of(n_types + 1, truth, given),
        macro_f1=float(np.mean(values)) if values else None,
        macro_low=macro_low,
        macro_high=macro_high,
        n_types_in_macro=len(values),
        samples_f1=float(np.where(sizes > 0, 2 * both / np.maximum(sizes, 1), 1.0).mean()),
        subset_accuracy=float((truth == given).all(1).mean()),
        types=types,
        confusions=confusion_pairs(truth, given, ids),
        calibration=bins,
        calibration_error=calibration_error,
        errors=instructive_errors(gold, labels, n_errors),
    )


def count_f1(
    truth: Bools, given: Bools, interval: tuple[float | None, float | None] = (None, None)
) -> F1:
    """Precision, recall and F1 of decisions of any shape."""
    hits, support, n_given = int((truth & given).sum()), int(truth.sum()), int(given.sum())
    return F1(
        precision=hits / n_given if n_given else None,
        recall=hits / support if support else None,
        f1=2 * hits / (n_given + support) if n_given + support else None,
        low=interval[0],
        high=interval[1],
        support=support,
        n_given=n_given,
    )


def _interval(draws: Floats) -> tuple[float | None, float | None]:
    defined = draws[~np.isnan(draws)]
    return percentile_interval(defined) if len(defined) else (None, None)


def confusion_pairs(truth: Bools, given: Bools, ids: Sequence[str]) -> tuple[Confusion, ...]:
    """For every text, each type only the gold has beside each type only the labeller gave."""
    missed, extra = (truth & ~given).astype(np.int64), (given & ~truth).astype(np.int64)
    table = missed.T @ extra
    pairs = [
        Confusion(gold=ids[row], given=ids[column], n=int(table[row, column]))
        for row, column in zip(*np.nonzero(table), strict=True)
    ]
    return tuple(sorted(pairs, key=lambda pair: -pair.n))


def calibrate(
    labels: Sequence[Labels], gold_types: Sequence[frozenset[str]], n_bins: int = 10
) -> tuple[tuple[CalibrationBin, ...], float | None]:
    """Reliability curve of the labels that were given, and the expected calibration error.

    Only given labels carry a confidence, so the curve says nothing of labels that were not given.
    Source: Guo et al., ICML 2017 (equal-width bins, weighted by their labels).
    """
    pairs = [
        (label.confidence, label.id in types)
        for row, types in zip(labels, gold_types, strict=True)
        for label in row
        if label.confidence is not None
    ]
    if not pairs:
        return (), None
    confidence = np.array([pair[0] for pair in pairs], np.float64)
    right = np.array([pair[1] for pair in pairs], np.float64)
    place = np.minimum((confidence * n_bins).astype(int), n_bins - 1)
    bins = []
    for number in np.unique(place):
        inside = place == number
        bins.append(
            CalibrationBin(
                low=number / n_bins,
                high=(number + 1) / n_bins,
                n=int(inside.sum()),
                mean_confidence=float(confidence[inside].mean()),
                share_right=float(right[inside].mean()),
            )
        )
    error = sum(entry.n * abs(entry.mean_confidence - entry.share_right) for entry in bins)
    return tuple(bins), float(error / len(pairs))


def instructive_errors(
    gold: GoldSet, labels: Sequence[Labels], n_errors: int
) -> tuple[InstructiveError, ...]:
    """The surest wrong labels, then misses in texts where nothing at all was given."""
    wrong, missed = [], []
    for item, row in zip(gold.items, labels, strict=True):
        wrong += [
            _error(item.where, item.text, "given", label.id, label.confidence, label.evidence)
            for label in row
            if label.id not in item.types
        ]
        if not row:
            missed += [
                _error(item.where, item.text, "missed", type_id, None, None)
                for type_id in sorted(item.types)
            ]
    wrong.sort(key=lambda error: -(error.confidence if error.confidence is not None else 1.0))
    n_wrong = max(n_errors - len(missed), (n_errors + 1) // 2)
    return tuple([*wrong[:n_wrong], *missed][:n_errors])


def _error(
    where: str, text: str, kind: str, type_id: str, confidence: float | None, evidence: str | None
) -> InstructiveError:
    return InstructiveError(
        where=where, text=text, kind=kind, type=type_id, confidence=confidence, evidence=evidence
    )


def compare_pairs(
    truth: Bools, matrices: Mapping[str, Bools], ids: Sequence[str]
) -> tuple[McNemar, ...]:
    """McNemar's exact test for every two labellers, on any distortion and on each type."""
    names = list(matrices)
    drafts = []
    for place, first in enumerate(names):
        for second in names[place + 1 :]:
            decisions: list[tuple[str, Bools, Bools, Bools]] = [
                (
                    "any",
                    any_type(truth),
                    any_type(matrices[first]),
                    any_type(matrices[second]),
                )
            ]
            if len(ids) > 1:
                decisions += [
                    (type_id, truth[:, c], matrices[first][:, c], matrices[second][:, c])
                    for c, type_id in enumerate(ids)
                ]
            for decision, gold, one, other in decisions:
                n_first = int(((one == gold) & (other != gold)).sum())
                n_second = int(((one != gold) & (other == gold)).sum())
                drafts.append((first, second, decision, n_first, n_second))
    p_values = [mcnemar_p(n_first, n_second) for *_, n_first, n_second in drafts]
    return tuple(
        McNemar(
            first=first,
            second=second,
            decision=decision,
            only_first_right=n_first,
            only_second_right=n_second,
            p=p,
            p_holm=adjusted,
        )
        for (first, second, decision, n_first, n_second), p, adjusted in zip(
            drafts, p_values, holm(p_values), strict=True
        )
    )


def mcnemar_p(only_first: int, only_second: int) -> float:
    """Exact two-sided p of McNemar's test: a binomial with one half on the texts that differ."""
    n, fewer = only_first + only_second, min(only_first, only_second)
    tail: int = sum(comb(n, k) for k in range(fewer + 1))
    return float(min(1.0, 2 * tail / 2**n))


def count_types(labels: Sequence[Labels]) -> dict[str, int]:
    """Texts in which each type was given, most frequent first."""
    counts = Counter(type_id for row in labels for type_id in {label.id for label in row})
    return dict(counts.most_common())
