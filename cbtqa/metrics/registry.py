"""Every metric by name, the presets, and the conventions we refuse.

To add a metric: a subclass of `Metric` (or `CorpusMetric`), one line here, one section in
`docs/metrics.md`. A metric with heavy dependencies imports them inside its own file's
functions, and its factory here imports that file.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from importlib.resources import files
from typing import Literal, get_args

from cbtqa.errors import UsageError
from cbtqa.metrics.answers import DistortionAgreement, HelpRoute, Length, LengthRatio
from cbtqa.metrics.base import CorpusMetric, Metric
from cbtqa.metrics.diversity import Distinct, OpeningRepetition, SelfBleu
from cbtqa.metrics.lexical import Bleu, Chrf, Meteor, Rouge, Unit
from cbtqa.metrics.neural.bertscore import BertScore, BertScorer
from cbtqa.metrics.neural.bleurt import Bleurt, BleurtScorer
from cbtqa.metrics.neural.metric import NeuralMetric
from cbtqa.metrics.neural.weights import NeuralSettings
from cbtqa.metrics.structure import StepsInOrder, StepsInRecord, StructureComplete
from cbtqa.plain_values import parse_yaml

AnyMetric = Metric | CorpusMetric
Factory = Callable[[], AnyMetric]
WORDS_OR_CHARACTERS: tuple[Literal["jieba", "char"], ...] = ("jieba", "char")
ROUGE_KINDS: tuple[Literal["1", "2", "l"], ...] = ("1", "2", "l")
METRICS: dict[str, Factory] = {
    **{f"bleu_{tokens}": partial(Bleu, tokens) for tokens in get_args(Unit)},
    "chrf2": Chrf,
    **{f"meteor_{tokens}": partial(Meteor, tokens) for tokens in WORDS_OR_CHARACTERS},
    **{
        f"rouge_{kind}_{tokens}": partial(Rouge, kind, tokens)
        for tokens in WORDS_OR_CHARACTERS
        for kind in ROUGE_KINDS
    },
    "cbt_record": StepsInRecord,
    "cbt_steps": StepsInOrder,
    "cbt_complete": StructureComplete,
    "distortion_micro_f1": partial(DistortionAgreement, "micro"),
    "help_route": HelpRoute,
    "length": Length,
    "length_ratio": LengthRatio,
    "distinct_1": partial(Distinct, 1),
    "distinct_2": partial(Distinct, 2),
    "self_bleu": SelfBleu,
    "opening_repetition": OpeningRepetition,
}
PAPER_SCALE: dict[str, Factory] = {
    "bleu_jieba": partial(Bleu, "jieba", is_percent=False),
    "chrf2": partial(Chrf, is_percent=False),
}
"""The paper's scale is 0-1; its segmentation is not known, words are the likelier reading."""
ALIASES = {"chrf": "chrf2"}
"""As the field and the paper write them."""


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


PRESETS: dict[str, tuple[str, ...]] = {
    "default": (
        *("bleu_zh", "bleu_jieba", "chrf2", "meteor_jieba", "rouge_l_jieba", "rouge_l_char"),
        *("cbt_record", "cbt_steps", "cbt_complete", "distortion_micro_f1", "help_route"),
        *("length", "length_ratio", "distinct_1", "distinct_2", "self_bleu", "opening_repetition"),
    ),
    "lexical": ("bleu_zh", "bleu_jieba", "chrf2", "meteor_jieba"),
    "paper": ("bleu_jieba", "meteor_jieba", "chrf2", "bleurt", "bertscore"),
    "all": (*METRICS, *neural_metrics()),
}
"""Neural metrics of `paper` and `all` are scored where their libraries and weights are there."""


def known_metrics(neural: NeuralSettings | None = None) -> dict[str, Factory]:
    """Every metric by name; the neural ones share one model, loaded at the first score."""
    return {**METRICS, **neural_metrics(neural)}


@cache
def refused_conventions() -> dict[str, str]:
    """Names of conventions that mislead on Chinese, each with the reason and what to use."""
    text = files(__package__).joinpath("refused.yaml").read_text(encoding="utf-8")
    return {str(name): str(reason) for name, reason in parse_yaml(text).items()}


def metrics_named(words: str, neural: NeuralSettings | None = None) -> list[AnyMetric]:
    """Metrics of a comma-separated list of names and presets, or a UsageError."""
    chosen: dict[str, Factory] = {}
    known = known_metrics(neural)
    named = [ALIASES.get(word, word) for word in (part.strip() for part in words.split(","))]
    for word in named:
        if word in PRESETS:
            scale = PAPER_SCALE if word == "paper" else {}
            chosen.update({name: scale.get(name, known[name]) for name in PRESETS[word]})
        elif word in known:
            chosen[word] = known[word]
        elif word.lower() in refused_conventions():
            raise UsageError(f"'{word}' is refused: {refused_conventions()[word.lower()]}")
        else:
            raise UsageError(
                f"no metric '{word}'",
                hint=f"presets: {', '.join(PRESETS)}; metrics: {', '.join(known)}",
            )
    metrics = [make() for make in chosen.values()]
    for one in metrics:
        if isinstance(one, NeuralMetric):
            one.is_optional = one.name not in named
    return metrics


def additive_metric(name: str, unit: str) -> Metric | None:
    """The metric behind a stored score, on its scale, or a UsageError; None when not additive."""
    for factories in (known_metrics(), PAPER_SCALE):
        if name in factories and (metric := factories[name]()).unit == unit:
            return metric if isinstance(metric, Metric) else None
    raise UsageError(f"the stored metric '{name}' ({unit}) is not known to this version")
