"""One metric on two lists of texts, without files: for notebooks and for `evaluate`.

score_lists("bleu_zh", ["我很好。"], ["我很好！"]).value
evaluate.load(EVALUATE_MODULE, "bleu_zh")
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files

import numpy as np

from cbtqa.errors import DataError
from cbtqa.metrics.base import Floats, Metric
from cbtqa.metrics.engines import engine_for
from cbtqa.metrics.neural.settings import NeuralSettings
from cbtqa.metrics.registry import metrics_named
from cbtqa.metrics.texts import Item, Reading, Texts
from cbtqa.records import MetricScore

EVALUATE_MODULE = str(files("cbtqa.metrics") / "for_evaluate.py")
"""Path of the module that `evaluate.load` takes; the metric's name is its second argument."""
PAIRS_PER_BLOCK = 4_000


def score_lists(
    metric: str,
    predictions: Sequence[str],
    references: Sequence[str],
    neural: NeuralSettings | None = None,
    system: str = "system",
) -> MetricScore:
    """The corpus score of one metric, the same number as `cbtqa score` gives.

    Args:
        neural: weights and device, for the metrics that need them.

    Raises:
        UsageError: no such metric, or a name that stands for several.
        DataError: lists of different length, or something in them that is no text.
    """
    chosen = metrics_named(metric, neural)
    if len(chosen) != 1:
        raise DataError(f"'{metric}' names {len(chosen)} metrics", hint="name one")
    one = chosen[0]
    _check(predictions, references)
    value, n_scored = np.nan, len(predictions)
    if isinstance(one, Metric):
        rows = _statistics(one, predictions, references)
        value, n_scored = float(one.from_sums(rows.sum(0))), one.n_scored(rows)
    else:
        collector = one.collector()
        side = _texts(predictions, Reading(engine_for(len(predictions))))
        collector.add(side, np.ones(len(predictions), np.bool_))
        whole = collector.score()
        value = np.nan if whole is None else whole
    is_scored = not np.isnan(value) and n_scored > 0
    return MetricScore(
        metric=one.name,
        system=system,
        value=value if is_scored else None,
        unit=one.unit,
        n_scored=n_scored if is_scored else 0,
        n_total=len(predictions),
        signature=str(one.signature().extended(n=len(predictions))),
        unscored_reason=None if is_scored else one.unscored_reason,
    )


def _check(predictions: Sequence[str], references: Sequence[str]) -> None:
    if len(predictions) != len(references):
        raise DataError(f"{len(predictions)} predictions and {len(references)} references")
    for name, texts in (("prediction", predictions), ("reference", references)):
        for number, text in enumerate(texts):
            if not isinstance(text, str):
                raise DataError(f"{name} {number} is no text but {type(text).__name__}")


def _texts(texts: Sequence[str], reading: Reading) -> Texts:
    return Texts([Item(text) for text in texts], reading)


def _statistics(metric: Metric, predictions: Sequence[str], references: Sequence[str]) -> Floats:
    reading = Reading(engine_for(2 * len(predictions)))
    size = metric.pairs_per_block or PAIRS_PER_BLOCK
    rows = [
        metric.statistics(
            _texts(predictions[first : first + size], reading),
            _texts(references[first : first + size], reading),
        )
        for first in range(0, len(predictions), size)
    ]
    return np.concatenate(rows) if rows else np.zeros((0, metric.n_columns))
