"""Scores checked in every run by the programs that define them: sacrebleu, jieba, bert-score.

Our own statistics give every score, interval and test; the programs recompute the scores of a
sample of the run's own pairs, and a difference is reported.
"""

from __future__ import annotations

import importlib.metadata
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest

import numpy as np

from cbtqa.errors import MissingExtraError
from cbtqa.metrics.base import Floats
from cbtqa.metrics.evaluation import SystemScores
from cbtqa.metrics.lexical import Bleu, Chrf, Meteor, Rouge, sacrebleu_version
from cbtqa.metrics.neural.bertscore import PARTS, BertScore, BertScorer
from cbtqa.metrics.neural.weights import quiet_transformers, require
from cbtqa.metrics.pairs import Predictions, References
from cbtqa.metrics.registry import AnyMetric
from cbtqa.metrics.text.segmentation import rust_segmenter
from cbtqa.records import Record

MOST_PAIRS, MOST_NEURAL_PAIRS = 100, 16
LARGEST_DIFFERENCE, LARGEST_NEURAL_DIFFERENCE = 1e-9, 1e-4
JIEBA_FROM_TEXTS = 6_000
"""Below, jieba's start (1.1 CPU s) would be more than a fifth of the run."""
BERT_SCORE_FAILS = (
    *(OSError, ValueError, KeyError, AssertionError, OverflowError, RuntimeError),
    *(AttributeError, TypeError),
)
"""No network, an unknown name, a tokenizer without a length, too little memory, an interface that
transformers no longer has."""


class PeerCheck(Record):
    """What came of recomputing scores by one program."""

    program: str
    """With its version."""
    metrics: tuple[str, ...]
    n_pairs: int = 0
    difference: float | None = None
    """The largest; None when the check could not run. Relative to the program's value for BLEU
    and chrF, absolute for BERTScore, the share of texts with other words for jieba."""
    limit: float = LARGEST_DIFFERENCE
    off: tuple[str, ...] = ()
    """Metrics beyond the limit."""
    reason: str | None = None
    """Why the check could not run."""

    @property
    def line(self) -> str:
        """For a reader of the scores."""
        if self.difference is None:
            return f"not checked against {self.program}: {self.reason}"
        return (
            f"checked against {self.program} on {self.n_pairs} pairs: "
            f"difference {self.difference:.1g}"
        )

    @property
    def warning(self) -> str | None:
        """What to say when a metric is beyond the limit."""
        if not self.off:
            return None
        names = ", ".join(self.off)
        return f"{names}: {self.program} computes other values, by up to {self.difference:.1g}"


def _unchecked(program: str, metrics: Sequence[AnyMetric], reason: str) -> PeerCheck:
    names = tuple(metric.name for metric in metrics)
    return PeerCheck(program=program, metrics=names, reason=reason)


@dataclass(frozen=True)
class _Sample:
    """Pairs of the run, and the statistics that every metric has of them."""

    predictions: list[str]
    references: list[list[str]]
    """All of each prediction."""
    matrices: dict[str, Floats]


def check_by_peers(
    references: References,
    systems: Sequence[Predictions],
    evaluated: Sequence[SystemScores],
    metrics: Sequence[AnyMetric],
) -> list[PeerCheck]:
    """One check a program that defines any of the metrics; pairs come evenly from all systems."""
    checks = []
    counted = [metric for metric in metrics if isinstance(metric, Bleu | Chrf)]
    # number of the system and of the reference
    pairs = [(n, row) for n, one in enumerate(evaluated) for row in one.rows.tolist()]
    sample = _sample(pairs, references, systems, evaluated, MOST_PAIRS)
    if counted and sample.predictions:
        checks.append(_by_sacrebleu(counted, sample))
    cut = [one for one in metrics if isinstance(one, Bleu | Meteor | Rouge)]
    cut = [one for one in cut if one.tokens == "jieba"]
    n_texts = len(references.ids) + sum(len(one.rows) for one in evaluated)
    if cut and sample.predictions and n_texts >= JIEBA_FROM_TEXTS:
        checks.append(_by_jieba(tuple(one.name for one in cut), sample))
    neural = [one for one in metrics if isinstance(one, BertScore) and not one.is_windowed]
    if neural:
        # bert-score ends on an empty text
        filled = [
            (n, row)
            for n, row in pairs
            if _text(references, row).strip() and _text(systems[n], row).strip()
        ]
        sample = _sample(filled, references, systems, evaluated, MOST_NEURAL_PAIRS)
        if sample.predictions:
            checks.append(_by_bert_score(neural, sample))
    return checks


def _sample(
    pairs: Sequence[tuple[int, int]],
    references: References,
    systems: Sequence[Predictions],
    evaluated: Sequence[SystemScores],
    size: int,
) -> _Sample:
    places = np.unique(np.linspace(0, max(len(pairs) - 1, 0), min(size, len(pairs))).astype(int))
    chosen = [pairs[place] for place in places.tolist()]
    rows = [int(np.searchsorted(evaluated[n].rows, row)) for n, row in chosen]
    names = evaluated[0].matrices if evaluated else {}
    return _Sample(
        [_text(systems[n], row) for n, row in chosen],
        [[item.text for item in references.groups[row]] for _, row in chosen],
        {
            name: np.array(
                [evaluated[n].matrices[name][row] for (n, _), row in zip(chosen, rows, strict=True)]
            )
            for name in names
        },
    )


def _text(side: Predictions | References, row: int) -> str:
    item = side.items[row]
    return item.text if item is not None else ""


def _checked(program: str, differences: dict[str, float], n_pairs: int, limit: float) -> PeerCheck:
    return PeerCheck(
        program=program,
        metrics=tuple(differences),
        n_pairs=n_pairs,
        difference=max(differences.values()),
        limit=limit,
        off=tuple(name for name, difference in differences.items() if not difference <= limit),
    )


def _by_sacrebleu(metrics: Sequence[Bleu | Chrf], sample: _Sample) -> PeerCheck:
    # for BLEU on words, sacrebleu counts the words that we cut
    try:
        from sacrebleu.metrics.bleu import BLEU
        from sacrebleu.metrics.chrf import CHRF
    except ImportError:
        return _unchecked("sacrebleu", metrics, str(MissingExtraError("sacrebleu", "metrics")))
    differences = {}
    for metric in metrics:
        # as sacrebleu takes them: the first of each prediction, then the second, None where none
        columns = [list(column) for column in zip_longest(*sample.references)]
        ours_read = sample.predictions
        if isinstance(metric, Chrf):
            program: BLEU | CHRF = CHRF()
        elif metric.tokens == "jieba":
            program = BLEU(tokenize="none", force=True)
            ours_read = list(map(_joined_words, ours_read))
            columns = [[text and _joined_words(text) for text in column] for column in columns]
        else:
            program = BLEU(tokenize=metric.tokens, force=True)
        theirs = program.corpus_score(ours_read, columns).score
        theirs *= 1.0 if metric.unit == "0-100" else 0.01
        ours = float(metric.from_sums(sample.matrices[metric.name].sum(0)))
        differences[metric.name] = abs(ours - theirs) / (abs(theirs) or 1.0)
    n_pairs = len(sample.predictions)
    return _checked(f"sacrebleu {sacrebleu_version()}", differences, n_pairs, LARGEST_DIFFERENCE)


def _joined_words(text: str) -> str:
    return " ".join(word for word in rust_segmenter().cut(text) if not word.isspace())


def _by_jieba(names: tuple[str, ...], sample: _Sample) -> PeerCheck:
    """The words of the sample by jieba itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # jieba's own source warns on import
        import jieba
    tokenizer = jieba.Tokenizer()
    # as its own start-up does, but without the cache file in the shared temporary folder
    tokenizer.FREQ, tokenizer.total = tokenizer.gen_pfdict(tokenizer.get_dict_file())
    tokenizer.initialized = True
    texts = [*sample.predictions, *chain.from_iterable(sample.references)]
    cut = rust_segmenter().cut
    n_other = sum(tokenizer.lcut(text) != cut(text) for text in texts)
    version = importlib.metadata.version("jieba")
    differences = dict.fromkeys(names, n_other / len(texts))
    return _checked(f"jieba {version}", differences, len(sample.predictions), LARGEST_DIFFERENCE)


def _by_bert_score(metrics: Sequence[BertScore], sample: _Sample) -> PeerCheck:
    """Pair by pair, by bert-score with the same model, layer, idf documents and baseline."""
    scorer = metrics[0].scorer
    if scorer.settings.dtype != "float32":
        reason = f"it computes in float32, the scores are in {scorer.settings.dtype}"
        return _unchecked("bert-score", metrics, reason)
    try:
        raw = _bert_scores(scorer, sample.predictions, sample.references)
    except MissingExtraError as error:
        return _unchecked("bert-score", metrics, str(error))
    except BERT_SCORE_FAILS as error:
        words = str(error).strip().partition("\n")[0]
        reason = f"{type(error).__name__}: {words}" if words else type(error).__name__
        return _unchecked("bert-score", metrics, reason)
    differences = {}
    for metric in metrics:
        column = PARTS.index(metric.part)
        theirs = raw[:, column]
        if metric.is_rescaled:
            baseline = scorer.baseline[0][column]
            theirs = (theirs - baseline) / (1 - baseline)
        ours = metric.per_pair(sample.matrices[metric.name])
        # a pair that we do not score, such as one whose tokens all weigh nothing, is no number
        is_scored = ~np.isnan(ours)
        off = np.abs(ours - theirs)[is_scored]
        differences[metric.name] = float(off.max(initial=0.0))
    program = f"bert-score {importlib.metadata.version('bert-score')}"
    n_pairs = len(sample.predictions)
    return _checked(program, differences, n_pairs, LARGEST_NEURAL_DIFFERENCE)


def _bert_scores(
    scorer: BertScorer, predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> Floats:
    """Precision, recall and F1 of each pair, shape (pairs, 3)."""
    encoder, documents = scorer.encoder, scorer.idf_documents()
    with warnings.catch_warnings(), quiet_transformers():
        warnings.simplefilter("ignore")
        program = require("bert_score").BERTScorer(
            model_type=encoder.checkpoint.given,
            num_layers=encoder.layer,
            device=encoder.device,
            nthreads=0,
            idf=documents is not None,
            idf_sents=documents,
        )
        found = program.score(
            list(predictions), list(references), batch_size=scorer.settings.batch_size
        )
    return np.stack([part.numpy() for part in found], axis=1).astype(np.float64)
