"""How well labels fit the gold: counts, F1 in its kinds, intervals, tests, calibration, errors.

An F1 whose denominator is 0 (a type that neither gold nor labeller has) is None and stays out of
the macro mean. Intervals are percentiles of a bootstrap over texts; all systems see the same draws.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from math import comb

import numpy as np
import numpy.typing as npt
from pydantic import Field

from cbtqa.distortions.importers import GoldSet, type_matrix
from cbtqa.distortions.labellers import Labels
from cbtqa.records import Record
from cbtqa.statistics.resampling import bootstrap_sums, holm, percentile_interval

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
PAPER_TABLE_3 = {"n": 500, "accuracy": 0.69, "recall": 0.93, "f1": 0.65}
"""The prompt's labels of arXiv 2403.16008 against people, any distortion or none; as published."""


class F1(Record):
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
    low: float
    high: float
    n: int
    mean_confidence: float
    share_right: float


class InstructiveError(Record):
    where: str
    text: str
    kind: str
    """`given` in error or `missed`."""
    type: str
    confidence: float | None = None
    evidence: str | None = None


class SystemReport(Record):
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
    n_resamples: int = 1_000,
    n_errors: int = 20,
    seed: int = 12345,
) -> EvaluationReport:
    """Scores each labeller's labels in the gold's taxonomy: one tuple per item, else ValueError."""
    truth = gold.matrix
    systems, matrices = {}, {}
    for name, labels in given.items():
        if len(labels) != len(gold.items):
            raise ValueError(f"{name}: {len(labels)} entries for {len(gold.items)} texts")
        matrix = type_matrix(({label.id for label in row} for row in labels), gold.taxonomy)
        draws = _f1_draws(truth, matrix, n_resamples, seed) if n_resamples else None
        matrices[name] = matrix
        systems[name] = _system_report(gold, labels, truth, matrix, draws, n_errors)
    return EvaluationReport(
        data=gold.name,
        data_sha256=gold.sha256,
        taxonomy=gold.taxonomy.id,
        n_texts=len(gold.items),
        systems=systems,
        comparisons=compare_pairs(truth, matrices, gold.taxonomy.ids),
    )


def _f1_draws(truth: Bools, given: Bools, n_resamples: int, seed: int) -> Floats:
    """`(draws, types + 2)`: F1 of each type, of any, and micro; NaN where undefined."""
    truth_all, given_all = (
        np.hstack([matrix, matrix.any(1, keepdims=True)]) for matrix in (truth, given)
    )
    # sums over texts of hits, given and gold, from which every F1 follows
    table = np.hstack([truth_all & given_all, given_all, truth_all]).astype(np.float64)
    sums = np.atleast_2d(bootstrap_sums(table, n_resamples, seed))
    hits, n_given, n_gold = (
        np.hstack([part, part[:, :-1].sum(1, keepdims=True)]) for part in np.split(sums, 3, axis=1)
    )
    total = n_given + n_gold
    f1: Floats = np.full_like(total, np.nan)
    np.divide(2 * hits, total, out=f1, where=total > 0)
    return f1


def _system_report(
    gold: GoldSet,
    labels: Sequence[Labels],
    truth: Bools,
    given: Bools,
    draws: Floats | None,
    n_errors: int,
) -> SystemReport:
    ids, n_types = gold.taxonomy.ids, truth.shape[1]
    any_truth, any_given = np.asarray(truth.any(axis=1)), np.asarray(given.any(axis=1))

    def f1_of(column: int, of_truth: Bools, of_given: Bools) -> F1:
        return count_f1(of_truth, of_given, _interval(draws, column))

    types = {
        type_id: f1_of(column, truth[:, column], given[:, column])
        for column, type_id in enumerate(ids)
    }
    defined = [column for column, entry in enumerate(types.values()) if entry.f1 is not None]
    values = [entry.f1 for entry in types.values() if entry.f1 is not None]
    macro_draws = None
    if draws is not None and values:
        macro_draws = np.nan_to_num(draws[:, defined]).mean(axis=1, keepdims=True)
    macro_low, macro_high = _interval(macro_draws, 0)
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


def _interval(draws: Floats | None, column: int) -> tuple[float | None, float | None]:
    if draws is None:
        return None, None
    defined = draws[~np.isnan(draws[:, column]), column]
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

    Only given labels have a confidence, so the curve does not cover labels that were not given.
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
    confidence, right = np.array(pairs, np.float64).T
    place = np.minimum((confidence * n_bins).astype(int), n_bins - 1)
    bins = [
        CalibrationBin(
            low=number / n_bins,
            high=(number + 1) / n_bins,
            n=int((place == number).sum()),
            mean_confidence=float(confidence[place == number].mean()),
            share_right=float(right[place == number].mean()),
        )
        for number in np.unique(place)
    ]
    error = sum(entry.n * abs(entry.mean_confidence - entry.share_right) for entry in bins)
    return tuple(bins), float(error / len(pairs))


def instructive_errors(
    gold: GoldSet, labels: Sequence[Labels], n_errors: int
) -> tuple[InstructiveError, ...]:
    """The surest wrong labels, then misses in texts where nothing at all was given."""
    wrong, missed = [], []
    for item, row in zip(gold.items, labels, strict=True):
        place = {"where": item.where, "text": item.text}
        for label in row:
            if label.id not in item.types:
                found = {"confidence": label.confidence, "evidence": label.evidence}
                wrong.append(InstructiveError(**place, kind="given", type=label.id, **found))
        if not row:
            missed += [
                InstructiveError(**place, kind="missed", type=one) for one in sorted(item.types)
            ]
    wrong.sort(key=lambda error: -(error.confidence if error.confidence is not None else 1.0))
    n_wrong = max(n_errors - len(missed), (n_errors + 1) // 2)
    return tuple([*wrong[:n_wrong], *missed][:n_errors])


def compare_pairs(
    truth: Bools, matrices: Mapping[str, Bools], ids: Sequence[str]
) -> tuple[McNemar, ...]:
    """McNemar's exact test for every two labellers, on any distortion and on each type."""
    decisions = ("any", *(ids if len(ids) > 1 else ()))
    gold, *given = (
        np.hstack([matrix.any(axis=1, keepdims=True), matrix])
        for matrix in (truth, *matrices.values())
    )
    is_right = {name: matrix == gold for name, matrix in zip(matrices, given, strict=True)}
    drafts = []
    for first, second in combinations(matrices, 2):
        for column, decision in enumerate(decisions):
            one, other = is_right[first][:, column], is_right[second][:, column]
            n_first, n_second = int((one & ~other).sum()), int((other & ~one).sum())
            drafts.append(
                McNemar(
                    first=first,
                    second=second,
                    decision=decision,
                    only_first_right=n_first,
                    only_second_right=n_second,
                    p=mcnemar_p(n_first, n_second),
                    p_holm=1.0,
                )
            )
    adjusted = holm([draft.p for draft in drafts])
    return tuple(
        draft.model_copy(update={"p_holm": p}) for draft, p in zip(drafts, adjusted, strict=True)
    )


def mcnemar_p(only_first: int, only_second: int) -> float:
    """Exact two-sided p of McNemar's test: a binomial with one half on the texts that differ."""
    n, fewer = only_first + only_second, min(only_first, only_second)
    tail: int = sum(comb(n, k) for k in range(fewer + 1))
    return float(min(1.0, 2 * tail / 2**n))
