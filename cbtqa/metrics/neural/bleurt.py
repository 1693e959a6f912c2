"""BLEURT on BLEURT-20 checkpoints: a number that a model learned from people's ratings.

Reference and candidate share 512 pieces, so answers of 300 to 800 characters are cut; `bleurt` cuts
as the original does and says how often, `bleurt_windowed` reads everything. Scores of two
checkpoints are not comparable: name and hash stand in the signature.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from cbtqa.metrics.base import Floats
from cbtqa.metrics.neural.bleurt_model import BleurtModel, PieceText, cut_pair
from cbtqa.metrics.neural.metric import NeuralMetric
from cbtqa.metrics.neural.settings import NeuralSettings
from cbtqa.metrics.neural.weights import versions
from cbtqa.metrics.neural.windows import split_evenly
from cbtqa.metrics.texts import Texts

N_SPECIAL = 3
"""[CLS] before the reference, [SEP] after it and after the candidate."""
IdPair = tuple[list[int], list[int]]


class BleurtScorer:
    """Scores pairs; loads the checkpoint when first needed."""

    def __init__(self, settings: NeuralSettings | None = None) -> None:
        self.settings = settings or NeuralSettings()

    @cached_property
    def model(self) -> BleurtModel:
        """The checkpoint; see `BleurtModel` for what may be wrong with it."""
        return BleurtModel(self.settings)

    def score(
        self, predictions: Sequence[str], references: Sequence[str], *, is_windowed: bool = False
    ) -> Floats:
        """Score of each pair and what was read, shape (pairs, 5).

        Columns: score, prediction cut, reference cut, unknown pieces and pieces of the prediction.
        A pair with a text of whitespace only scores 0.
        """
        rows = np.zeros((len(predictions), 5), np.float64)
        parts: list[tuple[int, float, IdPair]] = []
        limit = self.model.max_length - N_SPECIAL
        for row, (ours, theirs) in enumerate(zip(predictions, references, strict=True)):
            mine, other = self.model.pieces.read(ours), self.model.pieces.read(theirs)
            rows[row, 3:] = mine.n_unknown, len(mine.ids)
            if not ours.strip() or not theirs.strip():
                continue
            if is_windowed:
                windows = windowed_pairs(other, mine, limit)
                total = sum(len(candidate) for _, candidate in windows)
                parts += [(row, len(pair[1]) / total, pair) for pair in windows]
            else:
                kept = cut_pair(len(other.ids), len(mine.ids), limit)
                rows[row, 1:3] = kept[1] < len(mine.ids), kept[0] < len(other.ids)
                parts.append((row, 1.0, (other.ids[: kept[0]], mine.ids[: kept[1]])))
        for (row, weight, _), score in zip(
            parts, self._scores([pair for _, _, pair in parts]), strict=True
        ):
            rows[row, 0] += weight * score
        return rows

    def _scores(self, pairs: Sequence[IdPair]) -> list[float]:
        """The model's number for each pair; pairs of like length share a batch."""
        scores, size = [0.0] * len(pairs), self.settings.batch_size
        order = sorted(range(len(pairs)), key=lambda place: -sum(map(len, pairs[place])))
        for first in range(0, len(order), size):
            places = order[first : first + size]
            found = self.model.score([pairs[place] for place in places])
            for place, score in zip(places, found, strict=True):
                scores[place] = score
        return scores


def windowed_pairs(reference: PieceText, candidate: PieceText, limit: int) -> list[IdPair]:
    """Both texts in equally many windows, the fewest of which every pair fits the model.

    A candidate of fewer pieces than windows leaves some empty; these say nothing and are dropped.
    """
    n = max(1, -(-(len(reference.ids) + len(candidate.ids)) // limit))
    while True:
        cuts = (split_evenly(reference.pieces, n), split_evenly(candidate.pieces, n))
        pairs = [(reference.ids[a], candidate.ids[b]) for a, b in zip(*cuts, strict=True)]
        if all(len(one) + len(other) <= limit for one, other in pairs):
            return [pair for pair in pairs if pair[1]]
        n += 1


class Bleurt(NeuralMetric):
    """Mean BLEURT of all pairs."""

    unit = "about 0-1"

    def __init__(self, scorer: BleurtScorer, *, is_windowed: bool = False) -> None:
        self.scorer, self.is_windowed = scorer, is_windowed
        self.name = "bleurt_windowed" if is_windowed else "bleurt"
        self.label = "BLEURT windowed" if is_windowed else "BLEURT"

    def statistics(self, predictions: Texts, references: Texts) -> Floats:
        """The columns of `neural.metric`."""
        scored = self.scorer.score(
            predictions.texts, references.texts, is_windowed=self.is_windowed
        )
        return np.insert(scored, 1, 1.0, axis=1)

    def own_fields(self) -> tuple[tuple[str, str], ...]:
        """Checkpoint, pieces, length, activation, precision, libraries."""
        model = self.scorer.model
        return (
            ("checkpoint", model.checkpoint.name),
            ("weights", model.sha256[:12]),
            ("pieces", model.pieces.sha256()[:12]),
            ("max_length", str(model.max_length)),
            ("long", "windowed" if self.is_windowed else "cut"),
            ("empty", "0"),
            ("act", str(model.config.get("hidden_act", "gelu"))),
            ("dtype", self.scorer.settings.dtype),
            *versions("torch", "transformers", "sentencepiece"),
        )
