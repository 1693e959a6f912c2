"""METEOR for Chinese: nltk's formula on jieba words or on characters, without WordNet.

There is no official Chinese METEOR. This is what the field reports: the 2007 form with nltk's
greedy alignment, equal words first, then equal Porter stems (which only Latin words have). The
WordNet stage never meets a Chinese word and is left out. Identical texts of m words score
1 - 0.5 / m**3. Source: Lavie and Agarwal, WMT 2007; nltk 3.10 `meteor_score`.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from cbtqa.metrics.base import Floats, MeanMetric, divided
from cbtqa.metrics.text.segmentation import words_signature
from cbtqa.metrics.text.texts import Texts

ALPHA, BETA, GAMMA = 0.9, 3.0, 0.5  # Source: nltk's defaults


class Meteor(MeanMetric):
    """Mean over pairs; whitespace is no word, and case is folded."""

    def __init__(self, tokens: Literal["jieba", "char"] = "jieba") -> None:
        self.tokens = tokens
        self.name, self.label = f"meteor_{tokens}", f"METEOR {tokens}"

    def values(self, predictions: Texts, references: Texts) -> Floats:
        """METEOR of each pair; 0 when either text is empty."""
        if self.tokens == "jieba":
            ours, theirs = predictions.folded_words, references.folded_words
        else:
            ours, theirs = predictions.folded_characters, references.folded_characters
        matches, chunks = predictions.reading.engine.aligned_counts(
            ours[0], theirs[0], ours[1], theirs[1]
        )
        precision = divided(matches.astype(np.float64), ours[0].lengths)
        recall = divided(matches.astype(np.float64), theirs[0].lengths)
        mean = divided(precision * recall, ALPHA * precision + (1 - ALPHA) * recall)
        return (1 - GAMMA * divided(chunks.astype(np.float64), matches) ** BETA) * mean

    def own_fields(self) -> tuple[tuple[str, str], ...]:
        """Segmentation and the constants."""
        tokens = words_signature() if self.tokens == "jieba" else (("tok", "char"),)
        return (
            ("nrefs", "1"),
            ("case", "lower"),
            *tokens,
            ("spaces", "dropped"),
            ("stages", "exact+porter"),
            ("abg", f"{ALPHA}/{BETA}/{GAMMA}"),
            ("form", "nltk-3.10"),
            ("scale", self.unit),
        )
