"""From texts to numbers: statistics of every system and metric, scores with intervals.

Pairs are read in blocks, so that memory never holds the tokens of the whole corpus.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cbtqa.errors import DataError
from cbtqa.metrics.base import CorpusMetric, Floats, Metric, Signature
from cbtqa.metrics.neural.weights import NeuralSettings
from cbtqa.metrics.pairs import Predictions, References
from cbtqa.metrics.registry import metrics_named
from cbtqa.metrics.text.texts import Ints, Item, Reading, Texts
from cbtqa.records import MetricScore
from cbtqa.statistics.intervals import jackknife_interval, ratio_interval
from cbtqa.statistics.resampling import Interval, bootstrap_sums, defined_interval, sum_by_cluster

PAIRS_PER_BLOCK = 500
CEILING, FLOOR = "references", "shuffled references"
"""Names of the two anchor rows: each reference against itself, and against another's."""
LEFT_OUT = "references, leave-one-out"
"""Name of the row that holds each of several references against the others."""
NOTHING = Item("")
NO_INTERVAL = Interval(None, None, None, 0)
"""Of a score of nothing, and where none was asked for."""
IntervalKind = Literal["t", "percentile"]
"""`t`: Student's, by the jackknife. `percentile`: the bootstrap's, as sacrebleu's."""
OnBlock = Callable[[int, int], None]
"""Called with the answers compared so far and their number."""


@dataclass(frozen=True)
class SystemScores:
    """One system's statistics, from which every score, interval and test follows."""

    system: str
    rows: Ints
    """Numbers of the references that have an answer, ascending."""
    matrices: dict[str, Floats]
    """Metric name to statistics, one row an answer."""
    whole: dict[str, float | None]
    """Scores of the metrics that do not add up over pairs."""
    why_unscored: dict[str, str]
    """The reason when a metric applies to none of the pairs."""
    is_left_out: bool = False
    """Whether each reference was left out in turn; statistics are then means in the question."""


def evaluate(
    references: References,
    systems: Sequence[Predictions],
    metrics: Sequence[Metric | CorpusMetric],
    on_block: OnBlock = lambda n_done, n_total: None,
) -> list[SystemScores]:
    """Statistics of every system; a pair without a text on either side is left out."""
    reading = Reading()
    additive = [metric for metric in metrics if isinstance(metric, Metric)]
    collecting = [metric for metric in metrics if isinstance(metric, CorpusMetric)]
    collectors = [[metric.collector() for metric in collecting] for _ in systems]
    parts: list[list[list[Floats]]] = [[[] for _ in additive] for _ in systems]
    size = min([PAIRS_PER_BLOCK, *(m.pairs_per_block for m in additive if m.pairs_per_block)])
    size = max(1, size // max(references.n_texts, default=1))
    n_done, n_total = 0, len(references.ids) * len(systems)
    for first in range(0, len(references.ids), size):
        block = slice(first, first + size)
        theirs = Texts([item or NOTHING for item in references.items[block]], reading)
        groups = references.groups[block] if references.others else ()
        every = Texts([item for group in groups for item in group], reading)
        starts = starts_of(groups)
        for number, system in enumerate(systems):
            ours = Texts([item or NOTHING for item in system.items[block]], reading)
            is_scored = both_answered(system.items, references.items)[block]
            repeated = Texts(
                [item for item, group in zip(ours.items, groups, strict=False) for _ in group],
                reading,
            )
            for metric, part in zip(additive, parts[number], strict=True):
                if groups and metric.reads_reference:
                    rows = metric.best_statistics(repeated, every, starts)
                else:
                    rows = metric.statistics(ours, theirs)
                part.append(rows[is_scored])
            for collector in collectors[number]:
                collector.add(ours, is_scored)
            n_done += len(ours)
            on_block(n_done, n_total)
    return [
        SystemScores(
            system.system,
            np.flatnonzero(both_answered(system.items, references.items)),
            {m.name: np.concatenate(p) for m, p in zip(additive, parts[number], strict=True)},
            {m.name: c.score() for m, c in zip(collecting, collectors[number], strict=True)},
            {m.name: m.why_unscored(system.items, references.items) for m in additive},
        )
        for number, system in enumerate(systems)
    ]


def leave_one_out(
    references: References,
    metrics: Sequence[Metric | CorpusMetric],
    system: Predictions | None = None,
    on_block: OnBlock = lambda n_done, n_total: None,
) -> SystemScores | None:
    """What people score on questions with several references, or a system on the same footing.

    Each reference of a question is left out in turn. Without a system it is taken for the answer
    and compared with the rest: the ceiling that people set. With one, its answer is compared with
    the rest: against all of them it would have one reference more than people, and so score higher
    than an equal person. The statistics are averaged in the question, so that each question counts
    once however many references it has. None where no question has two.
    """
    rows = [
        row
        for row, n in enumerate(references.n_texts)
        if n > 1 and (system is None or system.items[row] is not None)
    ]
    if not rows:
        return None
    groups = [references.groups[row] for row in rows]
    taken = [
        (row, group, place)
        for row, group in zip(rows, groups, strict=True)
        for place in range(len(group))
    ]
    rest = [group[:place] + group[place + 1 :] for _, group, place in taken]
    ids = tuple(str(number) for number in range(len(taken)))
    others = References(
        references.name,
        ids,
        ids,
        tuple(group[0] for group in rest),
        others=tuple(group[1:] for group in rest),
    )
    items = tuple(system.items[row] if system else group[place] for row, group, place in taken)
    name = system.system if system else LEFT_OUT
    additive = [metric for metric in metrics if isinstance(metric, Metric)]
    (found,) = evaluate(others, [Predictions(name, items, {})], additive, on_block)
    starts, sizes = starts_of(groups), np.array([len(group) for group in groups])
    whole = [metric for metric in metrics if isinstance(metric, CorpusMetric)]
    return SystemScores(
        name,
        np.array(rows),
        {
            name: np.add.reduceat(matrix, starts, axis=0) / sizes[:, None]
            for name, matrix in found.matrices.items()
        },
        {metric.name: None for metric in whole},
        found.why_unscored
        | {m.name: f"the row `{CEILING}` holds it" for m in whole if m.is_computed},
        is_left_out=True,
    )


def starts_of(groups: Sequence[Sequence[object]]) -> Ints:
    """Place of each group's first member where the groups lie end to end."""
    sizes = np.array([len(group) for group in groups], np.int64)
    return np.cumsum(sizes) - sizes


def both_answered(ours: Sequence[Item | None], theirs: Sequence[Item | None]) -> NDArray[np.bool_]:
    """Which pairs have a text on both sides, shape (pairs,)."""
    pairs = zip(ours, theirs, strict=True)
    return np.array([one is not None and other is not None for one, other in pairs], np.bool_)


def anchors(references: References, seed: int) -> list[Predictions]:
    """The ceiling and the floor, which gives each question another one's answer, as two systems."""
    n = len(references.items)
    order = np.random.default_rng(seed).permutation(n)
    # turning a random cycle by one place leaves no reference at its own question
    other = np.empty(n, np.int64)
    other[order] = np.roll(order, 1)
    shuffled = tuple(references.items[index] for index in other.tolist())
    return [Predictions(CEILING, references.items, {}), Predictions(FLOOR, shuffled, {})]


@dataclass(frozen=True)
class Resampling:
    """How intervals are made."""

    n_trials: int
    """Of the percentile interval; 0 for no interval of either kind."""
    seed: int
    kind: IntervalKind = "t"


def scores_of(
    evaluated: Sequence[SystemScores],
    metrics: Sequence[Metric | CorpusMetric],
    references: References,
    resampling: Resampling,
) -> list[MetricScore]:
    """One score per system and metric, with its interval and its signature."""
    scores = []
    for system in evaluated:
        intervals = _intervals(system, metrics, references, resampling)
        for metric in metrics:
            signature = str(_full_signature(metric, references, system, resampling))
            if isinstance(metric, Metric):
                matrix = system.matrices[metric.name]
                value: float | None = float(metric.from_sums(matrix.sum(0)))
                n_scored, reason = metric.n_scored(matrix), system.why_unscored[metric.name]
            else:
                value, n_scored = system.whole[metric.name], len(system.rows)
                reason = system.why_unscored.get(metric.name, metric.unscored_reason)
            counts = (n_scored, len(references.ids))
            interval = intervals.get(metric.name, NO_INTERVAL)
            if isinstance(metric, CorpusMetric) and resampling.n_trials:
                interval = Interval(None, None, metric.interval_reason, 0)
            scores.append(_score(metric, system.system, value, counts, signature, reason, interval))
    return scores


def _score(
    metric: Metric | CorpusMetric,
    system: str,
    value: float | None,
    counts: tuple[int, int],
    signature: str,
    reason: str,
    interval: Interval = NO_INTERVAL,
) -> MetricScore:
    """The record of a score; `counts` are the pairs scored and all pairs."""
    n_scored, n_total = counts
    is_scored = value is not None and not np.isnan(value) and n_scored > 0
    interval = interval if is_scored else NO_INTERVAL
    return MetricScore(
        metric=metric.name,
        system=system,
        value=value if is_scored else None,
        low=interval.low,
        high=interval.high,
        unit=metric.unit,
        n_scored=n_scored if is_scored else 0,
        n_total=n_total,
        signature=signature,
        unscored_reason=None if is_scored else reason,
        interval_reason=interval.reason,
        n_left_out=interval.n_left_out,
    )


def _intervals(
    system: SystemScores,
    metrics: Sequence[Metric | CorpusMetric],
    references: References,
    resampling: Resampling,
) -> dict[str, Interval]:
    """Intervals of the additive metrics; those by percentiles are all from the same draws."""
    additive = [metric for metric in metrics if isinstance(metric, Metric)]
    if not additive or not len(system.rows) or not resampling.n_trials:
        return {}
    questions = [references.clusters[row] for row in system.rows.tolist()]
    # the last columns count what each metric scored of a question
    is_scored = [metric.is_scored(system.matrices[metric.name]) for metric in additive]
    parts = [system.matrices[metric.name] for metric in additive]
    joined = np.concatenate([*parts, np.stack(is_scored, axis=1)], axis=1)
    if len(set(questions)) < len(questions):
        joined = sum_by_cluster(joined, questions)
    sizes = joined[:, -len(additive) :].T
    sums = np.empty((0, 0))
    if resampling.kind == "percentile":
        sums = bootstrap_sums(joined[:, : -len(additive)], resampling.n_trials, resampling.seed)
    found: dict[str, Interval] = {}
    column = 0
    for metric, counts in zip(additive, sizes, strict=True):
        columns = slice(column, column + metric.n_columns)
        column += metric.n_columns
        if resampling.kind == "percentile":
            n_scored = int(np.count_nonzero(counts))
            found[metric.name] = defined_interval(metric.from_sums(sums[:, columns]), n_scored)
        else:
            found[metric.name] = score_interval(metric, joined[:, columns], counts)
    return found


def score_interval(metric: Metric, rows: Floats, sizes: Floats) -> Interval:
    """The t interval of a score; questions are drawn, each with all of its answers.

    Args:
        rows: statistics, one row a question.
        sizes: answers that the metric scores, by question.
    """
    rows = rows[sizes > 0]
    if share := metric.as_share(rows):
        return ratio_interval(*share, scale=metric.ends, word="question")
    total = rows.sum(0)
    score, left_out = float(metric.from_sums(total)), metric.from_sums(total - rows)
    return jackknife_interval(score, left_out, rows[:, metric.weight_column], scale=metric.ends)


def _full_signature(
    metric: Metric | CorpusMetric,
    references: References,
    system: SystemScores,
    resampling: Resampling,
) -> Signature:
    """The metric's own signature, what it was applied to, and how its interval was drawn."""
    n_clusters = len({references.clusters[row] for row in system.rows.tolist()})
    sizes = references.n_texts
    if system.is_left_out:
        sizes = [n - 1 for n in sizes if n > 1]
    fields: dict[str, object] = {
        **n_references_field(sizes),
        "n": len(system.rows),
        "refs": references.sha256[:12],
    }
    if n_clusters != len(system.rows):
        fields["clusters"] = n_clusters
    if system.is_left_out:
        fields["left_out"] = 1
    if isinstance(metric, Metric) and resampling.n_trials:
        is_drawn = resampling.kind == "percentile"
        drawn = {"bs": resampling.n_trials, "seed": resampling.seed}
        fields |= drawn if is_drawn else {"ci": resampling.kind}
    return metric.signature().extended(**fields)


def n_references_field(sizes: Iterable[int]) -> dict[str, object]:
    """For the signature: how many references each prediction has, where any has several."""
    found = set(sizes) - {0}
    if found <= {1}:
        return {}
    return {"nrefs": "var" if len(found) > 1 else found.pop()}


EVALUATE_MODULE = str(files("cbtqa.metrics") / "for_evaluate.py")
"""Path of the module that `evaluate.load` takes; the metric's name is its second argument."""
PAIRS_PER_LIST_BLOCK = 4_000


def score_lists(
    metric: str,
    predictions: Sequence[str],
    references: Sequence[str] | Sequence[Sequence[str]],
    neural: NeuralSettings | None = None,
    system: str = "system",
) -> MetricScore:
    """The corpus score of one metric, the same number as `cbtqa score` gives.

    Args:
        references: a text for each prediction, or a list of texts.
        neural: weights and device, for the metrics that need them.

    Raises:
        UsageError: no such metric, or a name that stands for several.
        DataError: lists of different length, or something in them that is no text.
    """
    chosen = metrics_named(metric, neural)
    if len(chosen) != 1:
        raise DataError(f"'{metric}' names {len(chosen)} metrics", hint="name one")
    one = chosen[0]
    groups = _groups(predictions, references)
    n = len(predictions)
    value: float | None
    if isinstance(one, Metric):
        rows = _statistics(one, predictions, groups)
        value, n_scored = float(one.from_sums(rows.sum(0))), one.n_scored(rows)
    else:
        collector = one.collector()
        collector.add(Texts(list(map(Item, predictions)), Reading()), np.ones(n, np.bool_))
        value, n_scored = collector.score(), n
    signature = str(one.signature().extended(**n_references_field(map(len, groups)), n=n))
    return _score(one, system, value, (n_scored, n), signature, one.unscored_reason)


def _groups(
    predictions: Sequence[str], references: Sequence[str] | Sequence[Sequence[str]]
) -> list[Sequence[str]]:
    """The references of each prediction."""
    if len(predictions) != len(references):
        raise DataError(f"{len(predictions)} predictions and {len(references)} references")
    groups: list[Sequence[str]] = [
        group if isinstance(group, list | tuple) else (group,) for group in references
    ]
    for number, (prediction, group) in enumerate(zip(predictions, groups, strict=True)):
        if not group:
            raise DataError(f"reference {number} is an empty list")
        for name, text in (("prediction", prediction), *(("reference", one) for one in group)):
            if not isinstance(text, str):
                raise DataError(f"{name} {number} is no text but {type(text).__name__}")
    return groups


def _statistics(
    metric: Metric, predictions: Sequence[str], groups: Sequence[Sequence[str]]
) -> Floats:
    reading = Reading()
    most = max(map(len, groups), default=1)
    size = max(1, (metric.pairs_per_block or PAIRS_PER_LIST_BLOCK) // most)
    rows = [np.zeros((0, metric.n_columns))]
    for first in range(0, len(groups), size):
        block = list(
            zip(predictions[first : first + size], groups[first : first + size], strict=True)
        )
        ours = Texts([Item(text) for text, group in block for _ in group], reading)
        theirs = Texts([Item(text) for _, group in block for text in group], reading)
        if most == 1:
            rows.append(metric.statistics(ours, theirs))
        else:
            starts = starts_of([group for _, group in block])
            rows.append(metric.best_statistics(ours, theirs, starts))
    return np.concatenate(rows)
