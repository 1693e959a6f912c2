"""ROUGE-1, ROUGE-2 and ROUGE-L as F-scores on jieba words or on characters.

The values are those of `rouge_score` given Chinese tokens; its own tokenizer keeps only Latin
letters and digits, so that a shared number scores 1.0 and Chinese text nothing. Source: Lin, 2004.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from cbtqa.metrics.base import Floats, MeanMetric, divided
from cbtqa.metrics.text.segmentation import words_signature
from cbtqa.metrics.text.texts import Texts


class Rouge(MeanMetric):
    """Mean over pairs of one of the three."""

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
        engine = predictions.reading.engine
        if self.kind == "l":
            n_ours, n_theirs = ours.lengths, theirs.lengths
            shared = engine.common_lengths(ours, theirs)
        else:
            order = int(self.kind)
            counts = engine.ngram_counts(ours, theirs, order)
            n_ours, n_theirs, shared = counts[:, -3], counts[:, -2], counts[:, -1]
        precision = divided(shared.astype(np.float64), n_ours)
        recall = divided(shared.astype(np.float64), n_theirs)
        return divided(2 * precision * recall, precision + recall)

    def own_fields(self) -> tuple[tuple[str, str], ...]:
        """Segmentation and the kind of average."""
        tokens = words_signature() if self.tokens == "jieba" else (("tok", "char"),)
        return (
            ("nrefs", "1"),
            ("case", "mixed"),
            *tokens,
            ("spaces", "dropped"),
            ("stem", "no"),
            ("measure", "f1"),
            ("form", "rouge_score-0.1.2"),
            ("scale", self.unit),
        )
