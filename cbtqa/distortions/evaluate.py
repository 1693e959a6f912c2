"""How well labels fit the gold: counts, F1 in its kinds, intervals, tests, calibration, errors.

An F1 whose denominator is 0 (a type that neither gold nor labeller has) is None and stays out of
the macro mean. Random in every interval and test are the texts, or the documents that they belong
to; the labellers and the gold are fixed. The intervals of F1 are in `f1`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from math import comb
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import Field

from cbtqa.distortions.f1 import (
    Bools,
    Counts,
    Floats,
    Ints,
    cluster_numbers,
    difference,
    macro_interval,
    sum_by_place,
)
from cbtqa.distortions.importers import GoldSet, type_matrix
from cbtqa.distortions.labellers import Labels
from cbtqa.files import parse_record, read_json
from cbtqa.papers import paper_table
from cbtqa.records import Record, Usage
from cbtqa.statistics.intervals import effective_size, mean_interval, share_interval
from cbtqa.statistics.resampling import DEFAULT_SEED, Interval, holm

CALIBRATION_DRAWS = 400


class F1(Record):
    precision: float | None
    """None when nothing was given."""
    precision_low: float | None = None
    """Lower end of the 95 % interval, Wilson's of the decisions given; None with precision, and
    where all are from one document."""
    precision_high: float | None = None
    recall: float | None
    """None when the gold has none."""
    recall_low: float | None = None
    recall_high: float | None = None
    f1: float | None
    """None when neither has any."""
    low: float | None = None
    """Lower end of the 95 % interval of F1."""
    high: float | None = None
    reason: str | None = None
    """Why F1 has no interval; None when it has one."""
    support: int = Field(ge=0)
    """Times the gold has it."""
    n_given: int = Field(ge=0)


class Share(Record):
    """A share of texts with its interval."""

    value: float
    low: float | None
    high: float | None
    reason: str | None
    """Why there is no interval."""
    n: int = Field(ge=0)
    """Texts that it is a share of."""
    n_effective: float = Field(ge=0)
    """Independent texts that these are worth, see `effective_size`."""


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


class AtLeast(Record):
    """Any distortion or none, where labels of less confidence are left out."""

    confidence: float
    any: F1


class SystemReport(Record):
    binary: F1
    """Any distortion or none."""
    accuracy: float
    """Of the binary decision."""
    accuracy_interval: Share | None = None
    """The same with its interval, None in reports of earlier versions; so are the next three."""
    sensitivity: Share | None = None
    """Of the texts with any distortion, the share that the labeller gives one; None without any."""
    specificity: Share | None = None
    """Of the texts without a distortion, the share that the labeller gives none."""
    subset_accuracy_interval: Share | None = None
    micro: F1
    macro_f1: float | None
    macro_low: float | None
    macro_high: float | None
    macro_reason: str | None = None
    """Why the macro mean has no interval."""
    n_types_in_macro: int
    samples_f1: float
    """Mean over texts of F1 between gold and given types; 1 where both are empty."""
    samples_low: float | None = None
    samples_high: float | None = None
    subset_accuracy: float
    """Share of texts whose types are given exactly."""
    types: dict[str, F1]
    confusions: tuple[Confusion, ...]
    calibration: tuple[CalibrationBin, ...]
    calibration_error: float | None
    """Expected calibration error, 0 to 1; None when no label carries a confidence."""
    calibration_error_if_perfect: float | None = None
    """What a perfectly calibrated labeller with these confidences gets on average: the error is
    above 0 by chance alone, the more so with few labels."""
    by_confidence: tuple[AtLeast, ...] = ()
    """For a threshold: what each would give. The best of them flatters on these very texts."""
    errors: tuple[InstructiveError, ...]


class AskedModel(Record):
    """The language model among the labellers, and what it cost."""

    model: str
    endpoint_host: str
    convention: str
    prompt: str
    """Id and version."""
    min_confidence: float
    n_requests: int
    """Of which earlier calls of the same command may have paid some."""
    n_rejected: int
    """Texts without valid labels after all attempts; they count as without a distortion."""
    usage: Usage
    """Of all paid replies, refused ones included."""
    cost: dict[str, Any] | None
    """Amount, currency and prices; None where no price is known."""


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


class F1Difference(Record):
    """F1 of the first labeller less that of the second, on the same texts and types."""

    first: str
    second: str
    figure: Literal["any", "micro", "macro"]
    value: float | None
    low: float | None
    high: float | None
    reason: str | None
    """Why there is no interval."""
    n_types: int
    """Types that have an F1 for both."""


def paper_evaluation() -> dict[str, float]:
    """The prompt's labels of arXiv 2403.16008 against people: `n` and the figures of Table 3."""
    return paper_table("cbt-llm", "distortions").known("prompt")


class EvaluationReport(Record):
    data: str
    """Short name of the source, such as `cogdis` or `plain`."""
    file: str | None = None
    """Name of the file of the gold; None in reports of earlier versions."""
    data_sha256: str
    taxonomy: str
    n_texts: int
    cluster_column: str | None = None
    """The column that names the documents of the texts; None where each text stands for itself."""
    n_clusters: int | None = None
    """Documents; None where each text stands for itself."""
    systems: dict[str, SystemReport]
    comparisons: tuple[McNemar, ...]
    differences: tuple[F1Difference, ...] = ()
    asked: AskedModel | None = None
    """What a language model among the labellers was asked; None without one."""
    paper: dict[str, float] = Field(default_factory=paper_evaluation)

    @property
    def all_distorted(self) -> bool:
        """Whether the gold of every text has a distortion: then only recall of any is measured."""
        return all(one.binary.support == self.n_texts for one in self.systems.values())


def read_evaluation(path: Path) -> EvaluationReport:
    """What `cbtqa distortions evaluate --out` or `--json` wrote; DataError for anything else."""
    return parse_record(EvaluationReport, read_json(path), str(path))


def evaluate(
    gold: GoldSet, given: Mapping[str, Sequence[Labels]], *, n_errors: int = 20
) -> EvaluationReport:
    """Scores each labeller's labels in the gold's taxonomy: one tuple per item, else ValueError."""
    truth = gold.matrix
    clusters = cluster_numbers(gold.clusters) if gold.clusters else None
    matrices = {}
    for name, labels in given.items():
        if len(labels) != len(gold.items):
            raise ValueError(f"{name}: {len(labels)} entries for {len(gold.items)} texts")
        types = ({label.id for label in row} for row in labels)
        matrices[name] = type_matrix(types, gold.taxonomy)
    counted = {name: _Counted.of(truth, matrix, clusters) for name, matrix in matrices.items()}
    return EvaluationReport(
        data=gold.name,
        data_sha256=gold.sha256,
        taxonomy=gold.taxonomy.id,
        n_texts=len(gold.items),
        cluster_column=gold.cluster_column,
        n_clusters=None if clusters is None else int(clusters.max()) + 1,
        systems={
            name: _system_report(gold, given[name], truth, matrices[name], counted[name], n_errors)
            for name in given
        },
        comparisons=compare_pairs(truth, matrices, gold.taxonomy.ids, clusters),
        differences=_differences(counted),
    )


class _Counted(NamedTuple):
    """One labeller's decisions beside the gold's."""

    any: Counts
    micro: Counts
    types: list[Counts]
    clusters: Ints | None

    @classmethod
    def of(cls, truth: Bools, given: Bools, clusters: Ints | None) -> _Counted:
        columns = zip(truth.T, given.T, strict=True)
        return cls(
            Counts.of(any_of(truth), any_of(given), clusters),
            Counts.of(truth, given, clusters),
            [Counts.of(one, other, clusters) for one, other in columns],
            clusters,
        )


def _system_report(
    gold: GoldSet,
    labels: Sequence[Labels],
    truth: Bools,
    given: Bools,
    counted: _Counted,
    n_errors: int,
) -> SystemReport:
    clusters = counted.clusters
    any_truth, any_given = any_of(truth), any_of(given)
    columns = zip(gold.taxonomy.ids, truth.T, given.T, counted.types, strict=True)
    types = {
        type_id: count_f1(of_truth, of_given, counts.interval(), clusters)
        for type_id, of_truth, of_given, counts in columns
    }
    values = [entry.f1 for entry in types.values() if entry.f1 is not None]
    macro = macro_interval(counted.types)
    both, sizes = (truth & given).sum(1), truth.sum(1) + given.sum(1)
    samples = np.where(sizes > 0, 2 * both / np.maximum(sizes, 1), 1.0)
    of_samples = mean_interval(
        samples, scale=(0, 1), clusters=None if clusters is None else clusters.tolist()
    )
    bins, calibration_error, if_perfect = calibrate(labels, [item.types for item in gold.items])
    accuracy = share_of(any_truth == any_given, np.ones_like(any_truth), clusters)
    exact = share_of(~any_of(truth != given), np.ones_like(any_truth), clusters)
    assert accuracy is not None and exact is not None, "a gold set has texts"
    return SystemReport(
        binary=count_f1(any_truth, any_given, counted.any.interval(), clusters),
        accuracy=accuracy.value,
        accuracy_interval=accuracy,
        sensitivity=share_of(any_given, any_truth, clusters),
        specificity=share_of(~any_given, ~any_truth, clusters),
        micro=count_f1(truth, given, counted.micro.interval(), clusters),
        macro_f1=float(np.mean(values)) if values else None,
        macro_low=macro.low,
        macro_high=macro.high,
        macro_reason=macro.reason,
        n_types_in_macro=len(values),
        samples_f1=float(samples.mean()),
        samples_low=of_samples.low,
        samples_high=of_samples.high,
        subset_accuracy=exact.value,
        subset_accuracy_interval=exact,
        types=types,
        confusions=confusion_pairs(truth, given, gold.taxonomy.ids),
        calibration=bins,
        calibration_error=calibration_error,
        calibration_error_if_perfect=if_perfect,
        by_confidence=by_confidence(any_truth, labels),
        errors=instructive_errors(gold, labels, n_errors),
    )


def by_confidence(any_truth: Bools, labels: Sequence[Labels]) -> tuple[AtLeast, ...]:
    """Any distortion at each tenth of least confidence at which something else is given."""
    given = [label.confidence for row in labels for label in row]
    if not given or None in given:
        return ()
    surest = np.array([max((label.confidence or 0 for label in row), default=-1) for row in labels])
    found: list[AtLeast] = []
    for tenth in range(10):
        any_given = surest >= tenth / 10
        if not found or found[-1].any.n_given > any_given.sum() > 0:
            found.append(AtLeast(confidence=tenth / 10, any=count_f1(any_truth, any_given)))
    return tuple(found) if len(found) > 1 else ()


def any_of(matrix: Bools) -> Bools:
    """Whether each row holds any."""
    return np.asarray(matrix.any(axis=1), np.bool_)


def count_f1(
    truth: Bools, given: Bools, interval: Interval | None = None, clusters: Ints | None = None
) -> F1:
    """Precision, recall and F1 of `(texts,)` or `(texts, types)`; without `interval` no ends."""
    hits, support, n_given = int((truth & given).sum()), int(truth.sum()), int(given.sum())
    precision, recall = share_of(truth, given, clusters), share_of(given, truth, clusters)
    ends: dict[str, float | None] = {}
    for name, one in (("precision", precision), ("recall", recall)):
        if one is not None and interval is not None:
            ends |= {f"{name}_low": one.low, f"{name}_high": one.high}
    interval = interval or Interval(None, None, "not measured", 0)
    return F1(
        precision=precision and precision.value,
        recall=recall and recall.value,
        **ends,
        f1=2 * hits / (n_given + support) if n_given + support else None,
        low=interval.low,
        high=interval.high,
        reason=interval.reason,
        support=support,
        n_given=n_given,
    )


def share_of(is_hit: Bools, is_counted: Bools, clusters: Ints | None) -> Share | None:
    """The share of hits among the texts (decisions) that count, None without any; Wilson's."""
    n = int(is_counted.sum())
    if not n:
        return None
    places = np.arange(len(is_hit)) if clusters is None else clusters
    hits, sizes = (
        sum_by_place(part.reshape(len(part), -1).sum(axis=1), places)
        for part in (is_hit & is_counted, is_counted)
    )
    value, worth = float(hits.sum()) / n, effective_size(hits, sizes)
    found = share_interval(value * worth, worth)
    reason = "all from one document" if not worth else found.reason
    known = {"low": found.low, "high": found.high, "reason": reason}
    return Share(value=value, n=n, n_effective=worth, **known)


def _differences(counted: Mapping[str, _Counted]) -> tuple[F1Difference, ...]:
    found = []
    for first, second in combinations(counted, 2):
        one, other = counted[first], counted[second]
        figures: dict[str, tuple[list[Counts], list[Counts]]] = {"any": ([one.any], [other.any])}
        if len(one.types) > 1:
            figures["micro"] = [one.micro], [other.micro]
            figures["macro"] = one.types, other.types
        for figure, (ours, theirs) in figures.items():
            value, interval = difference(ours, theirs)
            n_types = sum(1 for a, b in zip(ours, theirs, strict=True) if a.n_with and b.n_with)
            known = {"low": interval.low, "high": interval.high, "reason": interval.reason}
            names = {"first": first, "second": second, "figure": figure}
            found.append(F1Difference(**names, value=value, n_types=n_types, **known))
    return tuple(found)


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
) -> tuple[tuple[CalibrationBin, ...], float | None, float | None]:
    """Reliability curve of the labels that were given, the expected calibration error, and the
    error that a perfectly calibrated labeller gets with the same confidences.

    Only given labels have a confidence, so the curve does not cover labels that were not given.
    Source: Guo et al., ICML 2017 (equal-width bins, weighted by their labels); the error under
    perfect calibration: consistency resampling, Broecker and Smith 2007.
    """
    pairs = [
        (label.confidence, label.id in types)
        for row, types in zip(labels, gold_types, strict=True)
        for label in row
        if label.confidence is not None
    ]
    if not pairs:
        return (), None, None
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

    def error(are_right: Floats) -> float:
        return float(np.abs(np.bincount(place, confidence - are_right)).sum() / len(pairs))

    rng = np.random.default_rng(DEFAULT_SEED)
    drawn = [error(rng.random(len(pairs)) < confidence) for _ in range(CALIBRATION_DRAWS)]
    return tuple(bins), error(right), float(np.mean(drawn))


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
    truth: Bools,
    matrices: Mapping[str, Bools],
    ids: Sequence[str],
    clusters: Ints | None = None,
) -> tuple[McNemar, ...]:
    """McNemar's exact test for every two labellers, on any distortion and on each type.

    With documents the two labellers are swapped document by document, all its texts together.
    """
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
            ahead = one.astype(np.int64) - other
            drafts.append(
                McNemar(
                    first=first,
                    second=second,
                    decision=decision,
                    only_first_right=int((ahead > 0).sum()),
                    only_second_right=int((ahead < 0).sum()),
                    p=swap_p(ahead, clusters),
                    p_holm=1.0,
                )
            )
    adjusted = holm([draft.p for draft in drafts])
    return tuple(
        draft.model_copy(update={"p_holm": p}) for draft, p in zip(drafts, adjusted, strict=True)
    )


def swap_p(ahead: Ints, clusters: Ints | None = None) -> float:
    """Exact two-sided p under swaps of two labellers, cluster by cluster.

    With each text alone this is McNemar's exact test: a binomial with one half on the texts that
    differ.

    Args:
        ahead: 1 where only the first is right, -1 where only the second is, else 0; by text.
    """
    if clusters is not None:
        ahead = np.bincount(clusters, ahead).astype(np.int64)
    leads, observed = np.abs(ahead[ahead != 0]), abs(int(ahead.sum()))
    if not len(leads) or leads.max() == 1:
        n, fewer = len(leads), (len(leads) - observed) // 2
        tail: int = sum(comb(n, k) for k in range(fewer + 1))
        return float(min(1.0, 2 * tail / 2**n))
    reach = int(leads.sum())
    shares = np.zeros(2 * reach + 1)
    shares[reach] = 1.0
    for lead in leads.tolist():
        shares = (np.roll(shares, lead) + np.roll(shares, -lead)) / 2
    is_as_far = np.abs(np.arange(-reach, reach + 1)) >= observed
    return float(min(1.0, shares[is_as_far].sum()))
