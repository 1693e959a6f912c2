"""The neural metrics by name, sharing one loaded model a kind."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from cbtqa.metrics.neural.bertscore import BertScore, BertScorer
from cbtqa.metrics.neural.bleurt import Bleurt, BleurtScorer
from cbtqa.metrics.neural.metric import NeuralMetric
from cbtqa.metrics.neural.settings import NeuralSettings


def neural_metrics(settings: NeuralSettings | None = None) -> dict[str, Callable[[], NeuralMetric]]:
    """Factories by name; nothing is loaded before the first score."""
    bertscore, bleurt = BertScorer(settings), BleurtScorer(settings)
    made: list[Callable[[], NeuralMetric]] = [
        partial(BertScore, bertscore),
        partial(BertScore, bertscore, "p"),
        partial(BertScore, bertscore, "r"),
        partial(BertScore, bertscore, is_rescaled=True),
        partial(BertScore, bertscore, is_windowed=True),
        partial(Bleurt, bleurt),
        partial(Bleurt, bleurt, is_windowed=True),
    ]
    return {make().name: make for make in made}
