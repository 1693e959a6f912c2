"""chrF2 on raw characters, with sacrebleu's values. Source: Popović, WMT 2015.

No tokenizer, so no segmentation can change it. chrF++ is not offered: its words are stretches
between spaces, which Chinese has none of.
"""

from __future__ import annotations

import numpy as np

from cbtqa.metrics.base import SACREBLEU_VERSION, Floats, Metric, divided
from cbtqa.metrics.text.texts import Texts

CHARACTER_ORDER = 6  # Source: Popović 2015, and sacrebleu's default
BETA = 2  # Source: Popović, WMT 2016


class Chrf(Metric):
    """F-score over character n-grams of order 1-6, recall weighted four times."""

    n_columns = 3 * CHARACTER_ORDER

    def __init__(self, *, is_percent: bool = True) -> None:
        self.name, self.label = "chrf2", "chrF2"
        self.unit = "0-100" if is_percent else "0-1"
        self._scale = 1.0 if is_percent else 0.01

    def statistics(self, predictions: Texts, references: Texts) -> Floats:
        """`[prediction, reference, shared]` per order."""
        engine = predictions.reading.engine
        counts = engine.ngram_counts(predictions.characters, references.characters, CHARACTER_ORDER)
        # sacrebleu counts no grams of an order that the reference does not reach
        counts[:, 0::3][counts[:, 1::3] == 0] = 0
        return counts.astype(np.float64)

    def from_sums(self, sums: Floats) -> Floats:
        """chrF2 of a corpus, or of each pair."""
        return self._scale * chrf_from_sums(sums)

    def own_fields(self) -> tuple[tuple[str, str], ...]:
        """sacrebleu's signature."""
        return (
            ("nrefs", "1"),
            ("case", "mixed"),
            ("eff", "yes"),
            ("nc", str(CHARACTER_ORDER)),
            ("nw", "0"),
            ("space", "no"),
            ("scale", self.unit),
            ("version", SACREBLEU_VERSION),
        )


def chrf_from_sums(sums: Floats) -> Floats:
    """chrF2 on the 0-100 scale from `Chrf.statistics`, summed or per pair."""
    ours, theirs, shared = sums[..., 0::3], sums[..., 1::3], sums[..., 2::3]
    exists = (ours > 0) & (theirs > 0)
    n_orders = exists.sum(-1).astype(sums.dtype)
    precision = divided(np.where(exists, divided(shared, ours), 0).sum(-1), n_orders)
    recall = divided(np.where(exists, divided(shared, theirs), 0).sum(-1), n_orders)
    factor = BETA**2
    return 100 * divided((1 + factor) * precision * recall, factor * precision + recall)
