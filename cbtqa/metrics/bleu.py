"""BLEU on Chinese units, with sacrebleu's values. Source: Papineni et al., ACL 2002.

The unit decides the number (5.3 to 53.6 on one and the same output), so each is its own metric:
`zh` is sacrebleu's tokenizer and the convention of WMT, `jieba` scores words, `char` characters.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from cbtqa.metrics.base import SACREBLEU_VERSION, Floats, Metric, divided
from cbtqa.metrics.text.segmentation import words_signature
from cbtqa.metrics.text.sequences import Sequences
from cbtqa.metrics.text.texts import Texts

MAX_ORDER = 4
Unit = Literal["zh", "jieba", "char"]


class Bleu(Metric):
    """Corpus BLEU with exponential smoothing; a single pair uses its effective order."""

    n_columns = 2 + 2 * MAX_ORDER

    def __init__(self, tokens: Unit = "zh", *, is_percent: bool = True) -> None:
        self.tokens = tokens
        self.name = f"bleu_{tokens}"
        self.label = f"BLEU {tokens}"
        self.unit = "0-100" if is_percent else "0-1"
        self._scale = 1.0 if is_percent else 0.01

    def _units(self, side: Texts) -> Sequences:
        if self.tokens == "zh":
            return side.zh
        return side.words if self.tokens == "jieba" else side.characters

    def statistics(self, predictions: Texts, references: Texts) -> Floats:
        """sacrebleu's columns: both lengths, shared n-grams of order 1-4, n-grams of order 1-4."""
        engine = predictions.reading.engine
        counts = engine.ngram_counts(self._units(predictions), self._units(references), MAX_ORDER)
        columns = [counts[:, :2], counts[:, 2::3], counts[:, 0::3]]
        return np.concatenate(columns, axis=1).astype(np.float64)

    def from_sums(self, sums: Floats) -> Floats:
        """Corpus BLEU (`eff:no`)."""
        return self._scale * bleu_from_sums(sums, is_effective_order=False)

    def per_pair(self, statistics: Floats) -> Floats:
        """BLEU of each pair on its own (`eff:yes`)."""
        return self._scale * bleu_from_sums(statistics, is_effective_order=True)

    def own_fields(self) -> tuple[tuple[str, str], ...]:
        """sacrebleu's signature, and the dictionary where words are the unit."""
        tokens = words_signature() if self.tokens == "jieba" else (("tok", self.tokens),)
        return (
            ("nrefs", "1"),
            ("case", "mixed"),
            ("eff", "no"),
            *tokens,
            ("smooth", "exp"),
            ("scale", self.unit),
            ("version", SACREBLEU_VERSION),
        )


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
