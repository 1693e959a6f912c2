"""BLEU, chrF, METEOR and ROUGE on Chinese units, with the values of the programs that define them.

The unit decides the number: BLEU runs from 5.3 to 53.6 on the same output. So each unit is a metric
of its own: `zh` is sacrebleu's tokenizer and WMT's convention, `jieba` words, `char` characters.
"""

from __future__ import annotations

import importlib.metadata
from collections import Counter
from functools import cache
from typing import Literal

import numpy as np

from cbtqa.metrics.base import Floats, MeanMetric, Metric, divided
from cbtqa.metrics.text.counts import aligned_counts, common_lengths, ngram_counts
from cbtqa.metrics.text.segmentation import words_signature
from cbtqa.metrics.text.texts import Ints, Sequences, Texts


@cache
def sacrebleu_version() -> str:
    """The sacrebleu that is installed, which defines BLEU and chrF; `none` where there is none.

    Scores during training do not need it.
    """
    try:
        return importlib.metadata.version("sacrebleu")
    except importlib.metadata.PackageNotFoundError:
        return "none"


MAX_ORDER = 4
Unit = Literal["zh", "jieba", "char"]


class Bleu(Metric):
    """Corpus BLEU with exponential smoothing; a single pair uses its effective order.

    Source: Papineni et al., ACL 2002, in sacrebleu's form.
    """

    n_columns = 2 + 2 * MAX_ORDER

    def __init__(self, tokens: Unit = "zh", *, is_percent: bool = True) -> None:
        self.tokens = tokens
        self.name = f"bleu_{tokens}"
        self.label = f"BLEU {tokens}"
        self.unit = "0-100" if is_percent else "0-1"
        self._scale = 1.0 if is_percent else 0.01

    def units(self, side: Texts) -> Sequences:
        if self.tokens == "zh":
            return side.zh
        return side.words if self.tokens == "jieba" else side.characters

    def statistics(self, predictions: Texts, references: Texts) -> Floats:
        """sacrebleu's columns: both lengths, shared n-grams of order 1-4, n-grams of order 1-4."""
        counts = ngram_counts(self.units(predictions), self.units(references), MAX_ORDER)
        columns = [counts[:, :2], counts[:, 2::3], counts[:, 0::3]]
        return np.concatenate(columns, axis=1).astype(np.float64)

    def best_statistics(self, predictions: Texts, references: Texts, starts: Ints) -> Floats:
        """Against several references: the closest length, and a gram's highest count in any.

        In plain Python, for it counts grams of groups of texts; those of a text once.
        """
        grams = cache(_grams)
        ours, theirs = (
            list(map(tuple, self.units(one).rows())) for one in (predictions, references)
        )
        ends = np.append(starts[1:], len(theirs))
        rows = np.zeros((len(starts), self.n_columns), np.float64)
        for row, first, end in zip(rows, starts.tolist(), ends.tolist(), strict=True):
            mine, others = ours[first], theirs[first:end]
            lengths = [len(other) for other in others]
            row[:2] = len(mine), min(lengths, key=lambda n: (abs(n - len(mine)), n))
            for order in range(1, MAX_ORDER + 1):
                known: Counter[tuple[int, ...]] = Counter()
                for other in others:
                    known |= grams(other, order)
                row[1 + order] = (grams(mine, order) & known).total()
                row[1 + MAX_ORDER + order] = max(len(mine) - order + 1, 0)
        return rows

    def from_sums(self, sums: Floats) -> Floats:
        return self._scale * bleu_from_sums(sums, is_effective_order=False)

    def per_pair(self, statistics: Floats) -> Floats:
        return self._scale * bleu_from_sums(statistics, is_effective_order=True)

    def own_fields(self) -> str:
        return (
            f"nrefs:1|case:mixed|eff:no|{_tokens(self.tokens)}|smooth:exp|scale:{self.unit}"
            f"|version:{sacrebleu_version()}"
        )


def _tokens(tokens: Unit) -> str:
    return words_signature() if tokens == "jieba" else f"tok:{tokens}"


def _grams(symbols: tuple[int, ...], order: int) -> Counter[tuple[int, ...]]:
    return Counter(zip(*(symbols[place:] for place in range(order)), strict=False))


def bleu_from_sums(sums: Floats, *, is_effective_order: bool) -> Floats:
    """BLEU on the 0-100 scale from `Bleu.statistics`, summed or per pair.

    An order without any match gets half the precision of the order before it would have had
    (`exp` smoothing); no match at all is 0.
    """
    lengths, matched = sums[..., :2], sums[..., 2 : 2 + MAX_ORDER]
    total = sums[..., 2 + MAX_ORDER :]
    # once an order has no grams, sacrebleu stops: higher orders have none either
    exists = total > 0
    halvings = np.cumsum((matched == 0) & exists, axis=-1)
    smoothed = divided(np.full_like(total, 100.0), np.exp2(halvings) * total)
    precision = np.where(matched > 0, divided(100.0 * matched, total), smoothed)
    with np.errstate(divide="ignore"):
        logs = np.log(precision.astype(np.float64))
    if is_effective_order:
        n_orders = np.maximum(exists.sum(-1), 1)
        mean = np.where(exists, logs, 0.0).sum(-1) / n_orders
    else:
        # sacrebleu's logarithm of zero, for a corpus too short to hold any 4-gram
        mean = np.where(exists, logs, -9999999999.0).sum(-1) / MAX_ORDER
    ours, theirs = lengths[..., 0].astype(np.float64), lengths[..., 1].astype(np.float64)
    ratio = divided(theirs, ours)
    brevity = np.where(ours < theirs, np.where(ours > 0, np.exp(1 - ratio), 0.0), 1.0)
    return np.where(matched.any(-1), brevity * np.exp(mean), 0.0)


CHARACTER_ORDER = 6  # Source: Popović 2015, and sacrebleu's default
CHRF_BETA = 2  # Source: Popović, WMT 2016


class Chrf(Metric):
    """F-score over character n-grams of order 1-6, recall weighted four times.

    No tokenizer, so no segmentation can change it. chrF++ is not offered: its words are stretches
    between spaces, which Chinese has none of. Source: Popović, WMT 2015, in sacrebleu's form.
    """

    n_columns = 3 * CHARACTER_ORDER

    def __init__(self, *, is_percent: bool = True) -> None:
        self.name, self.label = "chrf2", "chrF2"
        self.unit = "0-100" if is_percent else "0-1"
        self._scale = 1.0 if is_percent else 0.01

    def statistics(self, predictions: Texts, references: Texts) -> Floats:
        """`[prediction, reference, shared]` per order."""
        counts = ngram_counts(predictions.characters, references.characters, CHARACTER_ORDER)
        # sacrebleu counts no grams of an order that the reference does not reach
        counts[:, 0::3][counts[:, 1::3] == 0] = 0
        return counts.astype(np.float64)

    def from_sums(self, sums: Floats) -> Floats:
        return self._scale * chrf_from_sums(sums)

    def own_fields(self) -> str:
        return (
            f"nrefs:1|case:mixed|eff:yes|nc:{CHARACTER_ORDER}|nw:0|space:no|scale:{self.unit}"
            f"|version:{sacrebleu_version()}"
        )


def chrf_from_sums(sums: Floats) -> Floats:
    """chrF2 on the 0-100 scale from `Chrf.statistics`, summed or per pair."""
    ours, theirs, shared = sums[..., 0::3], sums[..., 1::3], sums[..., 2::3]
    exists = (ours > 0) & (theirs > 0)
    n_orders = exists.sum(-1).astype(sums.dtype)
    precision = divided(np.where(exists, divided(shared, ours), 0).sum(-1), n_orders)
    recall = divided(np.where(exists, divided(shared, theirs), 0).sum(-1), n_orders)
    factor = CHRF_BETA**2
    return 100 * divided((1 + factor) * precision * recall, factor * precision + recall)


ALPHA, BETA, GAMMA = 0.9, 3.0, 0.5  # Source: nltk's defaults


class Meteor(MeanMetric):
    """nltk's METEOR without WordNet, the mean over pairs; case is folded.

    There is no official Chinese METEOR. This is what the field reports: the 2007 form with nltk's
    greedy alignment, equal words first, then equal Porter stems (which only Latin words have). The
    WordNet stage never meets a Chinese word and is left out. Identical texts of m words score
    1 - 0.5 / m**3. Source: Lavie and Agarwal, WMT 2007; nltk 3.10 `meteor_score`.
    """

    def __init__(self, tokens: Literal["jieba", "char"] = "jieba") -> None:
        self.tokens = tokens
        self.name, self.label = f"meteor_{tokens}", f"METEOR {tokens}"

    def values(self, predictions: Texts, references: Texts) -> Floats:
        """METEOR of each pair; 0 when either text is empty."""
        if self.tokens == "jieba":
            ours, theirs = predictions.folded_words, references.folded_words
        else:
            ours, theirs = predictions.folded_characters, references.folded_characters
        matches, chunks = aligned_counts(ours[0], theirs[0], ours[1], theirs[1])
        precision = divided(matches.astype(np.float64), ours[0].lengths)
        recall = divided(matches.astype(np.float64), theirs[0].lengths)
        mean = divided(precision * recall, ALPHA * precision + (1 - ALPHA) * recall)
        return (1 - GAMMA * divided(chunks.astype(np.float64), matches) ** BETA) * mean

    def own_fields(self) -> str:
        return (
            f"nrefs:1|case:lower|{_tokens(self.tokens)}|spaces:dropped|stages:exact+porter"
            f"|abg:{ALPHA}/{BETA}/{GAMMA}|form:nltk-3.10|scale:{self.unit}"
        )


class Rouge(MeanMetric):
    """ROUGE-1, ROUGE-2 or ROUGE-L as an F-score, the mean over pairs.

    The values are those of `rouge_score` given Chinese tokens; its own tokenizer keeps only Latin
    letters and digits, so that a shared number scores 1.0 and Chinese text nothing. Source: Lin,
    2004.
    """

    def __init__(
        self, kind: Literal["1", "2", "l"], tokens: Literal["jieba", "char"] = "jieba"
    ) -> None:
        self.kind, self.tokens = kind, tokens
        self.name = f"rouge_{kind}_{tokens}"
        self.label = f"ROUGE-{kind.upper()} {tokens}"

    def values(self, predictions: Texts, references: Texts) -> Floats:
        """F of each pair; 0 when either text is empty."""
        if self.tokens == "jieba":
            ours, theirs = predictions.words, references.words
        else:
            ours, theirs = predictions.characters, references.characters
        if self.kind == "l":
            n_ours, n_theirs = ours.lengths, theirs.lengths
            shared = common_lengths(ours, theirs)
        else:
            order = int(self.kind)
            counts = ngram_counts(ours, theirs, order)
            n_ours, n_theirs, shared = counts[:, -3], counts[:, -2], counts[:, -1]
        precision = divided(shared.astype(np.float64), n_ours)
        recall = divided(shared.astype(np.float64), n_theirs)
        return divided(2 * precision * recall, precision + recall)

    def own_fields(self) -> str:
        return (
            f"nrefs:1|case:mixed|{_tokens(self.tokens)}|spaces:dropped|stem:no|measure:f1"
            f"|form:rouge_score-0.1.2|scale:{self.unit}"
        )
