"""BERTScore with bert-score's numbers. Source: Zhang et al., ICLR 2020; bert-score 0.3.13.

The computation is our own: bert_score keeps every embedding of a call in memory (65 GB for 22,000
pairs of 500 characters) and fails on an empty text under transformers 5. The values are equal.
"""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cbtqa.errors import ConfigError, DataError
from cbtqa.files import open_text, sha256_of
from cbtqa.metrics.base import Floats
from cbtqa.metrics.neural.encoder import Encoder, ReadText, known_models
from cbtqa.metrics.neural.metric import PAIRS_PER_BLOCK, NeuralMetric
from cbtqa.metrics.neural.weights import NeuralSettings, require, versions, why_absent
from cbtqa.metrics.text.texts import Texts

MOST_UNKNOWN = 0.5
"""Share of unknown tokens from which a score says nothing about the texts."""
Part = Literal["f1", "p", "r"]
PARTS: tuple[Part, ...] = ("p", "r", "f1")


@dataclass(frozen=True, slots=True)
class _Embedded:
    """A text as it enters the matching."""

    read: ReadText
    embeddings: Any
    weights: Any
    """Of its tokens, with sum 1."""


Known = Mapping[str, _Embedded]


class BertScorer:
    """Scores pairs; loads the model when first needed and keeps the last references' embeddings."""

    def __init__(self, settings: NeuralSettings | None = None) -> None:
        self.settings = settings or NeuralSettings()
        self._references: dict[bool, tuple[tuple[str, ...], Known]] = {}
        self._pairs: dict[bool, tuple[Texts, Texts, Floats]] = {}

    @cached_property
    def encoder(self) -> Encoder:
        return Encoder(self.settings)

    @cached_property
    def baseline(self) -> tuple[Floats, str]:
        """Baseline P, R, F of the layer and the hash of their table; a ConfigError without one."""
        path = self.settings.bertscore_baseline
        if path is None:
            name = self.encoder.checkpoint.name.rpartition("/")[2]
            table = known_models().get(name, {}).get("baseline")
            if table is None:
                raise ConfigError(
                    f"no baseline to rescale {name} by is shipped",
                    hint="name its table with --bertscore-baseline FILE, or report bertscore",
                )
            path = Path(str(files("cbtqa.metrics") / "baselines" / table))
        return _read_baseline(path, self.encoder.layer), sha256_of(path)

    def idf_documents(self) -> list[str] | None:
        """The lines of the idf file, None without one; a DataError when it is empty."""
        path = self.settings.bertscore_idf
        if path is None:
            return None
        with open_text(path) as stream:
            documents = [line for line in stream.read().splitlines() if line.strip()]
        if not documents:
            raise DataError("holds no document", where=str(path))
        return documents

    @cached_property
    def _idf(self) -> dict[int, float] | None:
        """Weight of every token of the idf file, and under -1 that of tokens not in it."""
        documents = self.idf_documents()
        if documents is None:
            return None
        counts = Counter(token for read in self.encoder.read(documents) for token in set(read.ids))
        n = len(documents)
        weights = {token: math.log((n + 1) / (count + 1)) for token, count in counts.items()}
        return weights | {-1: math.log(n + 1)}

    def score(
        self, predictions: Sequence[str], references: Sequence[str], *, is_windowed: bool = False
    ) -> Floats:
        """Precision, recall and F1 of each pair and what was read, shape (pairs, 7).

        Columns: P, R, F1, prediction cut, reference cut, unknown tokens and tokens of the
        prediction. A pair with an empty text scores 0, as bert_score means it to; NaN where idf
        weighs every token with 0. A ConfigError when most tokens are unknown to the model.
        """
        rows = []
        for first in range(0, len(predictions), PAIRS_PER_BLOCK):
            block = slice(first, first + PAIRS_PER_BLOCK)
            rows.append(self._score_block(predictions[block], references[block], is_windowed))
        return np.concatenate(rows) if rows else np.empty((0, 7), np.float64)

    def of_texts(self, predictions: Texts, references: Texts, *, is_windowed: bool) -> Floats:
        """`score`, remembered for the last pair of sides, so that P, R and F1 cost one run."""
        last = self._pairs.get(is_windowed)
        if last is None or last[0] is not predictions or last[1] is not references:
            scored = self.score(predictions.texts, references.texts, is_windowed=is_windowed)
            last = self._pairs[is_windowed] = (predictions, references, scored)
        return last[2]

    def _known_references(self, texts: tuple[str, ...], is_windowed: bool) -> Known:
        if is_windowed not in self._references or self._references[is_windowed][0] != texts:
            self._references.pop(is_windowed, None)  # freed before the next ones are made
            self._references[is_windowed] = (texts, self._embedded(texts, is_windowed))
        return self._references[is_windowed][1]

    def _score_block(
        self, predictions: Sequence[str], references: Sequence[str], is_windowed: bool
    ) -> Floats:
        known = self._known_references(tuple(references), is_windowed)
        rows = np.zeros((len(predictions), 7), np.float64)
        # the longest first, so that pairs of like length are matched together
        order = sorted(range(len(predictions)), key=lambda place: -len(predictions[place]))
        size = self.settings.batch_size
        for first in range(0, len(order), size):
            places = order[first : first + size]
            new = [predictions[place] for place in places if predictions[place] not in known]
            batch = {**known, **self._embedded(new, is_windowed)}
            ours = [batch.get(predictions[place]) for place in places]
            theirs = [known.get(references[place]) for place in places]
            rows[places] = _match(ours, theirs)
        n_unknown, n_tokens = rows[:, 5].sum(), rows[:, 6].sum()
        if n_tokens and n_unknown / n_tokens > MOST_UNKNOWN:
            raise ConfigError(
                f"{self.encoder.checkpoint.name} does not know {n_unknown / n_tokens:.0%} of the "
                "tokens of the answers",
                hint="take a model with a Chinese vocabulary: --bertscore-model bert-base-chinese",
            )
        return rows

    def _embedded(self, texts: Sequence[str], is_windowed: bool) -> dict[str, _Embedded]:
        """Every distinct text that holds anything but whitespace."""
        torch = require("torch")
        distinct = list(dict.fromkeys(text for text in texts if text.strip()))
        if is_windowed:
            windowed = [self.encoder.read_windows(text) for text in distinct]
            reads, groups = [read for _, read in windowed], [ids for ids, _ in windowed]
        else:
            reads = self.encoder.read(distinct)
            groups = [[read.ids] for read in reads]
        flat = iter(self.encoder.embed([ids for group in groups for ids in group]))
        found = {}
        for text, read, group in zip(distinct, reads, groups, strict=True):
            parts = [next(flat) for _ in group]
            embeddings = parts[0] if len(parts) == 1 else torch.cat(parts)
            weights = self._weights([token for ids in group for token in ids])
            found[text] = _Embedded(read, embeddings, weights)
        return found

    def _weights(self, ids: Sequence[int]) -> Any:
        torch, idf = require("torch"), self._idf
        if idf is None:
            values = [float(token not in self.encoder.special) for token in ids]
        else:
            values = [idf.get(token, idf[-1]) for token in ids]
        weights = torch.tensor(values, device=self.encoder.device)
        return weights / weights.sum()


def _match(ours: Sequence[_Embedded | None], theirs: Sequence[_Embedded | None]) -> Floats:
    """The rows of one batch of pairs; None stands for an empty text."""
    rows = np.zeros((len(ours), 7), np.float64)
    pairs: list[tuple[int, _Embedded, _Embedded]] = []
    for row, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        if mine is not None:
            rows[row, 5:7] = mine.read.n_unknown, mine.read.n_tokens
        if mine is not None and other is not None:
            rows[row, 3:5] = mine.read.is_cut, other.read.is_cut
            pairs.append((row, mine, other))
    if pairs:
        precision, recall = _greedy([mine for _, mine, _ in pairs], [one for _, _, one in pairs])
        for (row, _, _), p, r in zip(pairs, precision, recall, strict=True):
            rows[row, :3] = p, r, 2 * p * r / (p + r) if p + r else 0.0
    return rows


def _greedy(
    ours: Sequence[_Embedded], theirs: Sequence[_Embedded]
) -> tuple[list[float], list[float]]:
    """Weighted means of each token's best cosine on the other side, both ways."""
    torch = require("torch")
    pad = partial(torch.nn.utils.rnn.pad_sequence, batch_first=True)
    with torch.inference_mode():
        first, second = pad([one.embeddings for one in ours]), pad([o.embeddings for o in theirs])
        cosines = torch.bmm(first, second.transpose(1, 2)).float()
        for number, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            cosines[number, len(one.embeddings) :, :] = -torch.inf
            cosines[number, :, len(other.embeddings) :] = -torch.inf
        precision = _weighted(torch, cosines.amax(2), pad([one.weights for one in ours]))
        recall = _weighted(torch, cosines.amax(1), pad([one.weights for one in theirs]))
    return precision, recall


def _weighted(torch: Any, best: Any, weights: Any) -> list[float]:
    """Sums over tokens; padding, whose best is minus infinity, counts nothing."""
    means: list[float] = (torch.where(best.isinf(), 0.0, best) * weights).sum(1).tolist()
    return means


def _read_baseline(path: Path, layer: int) -> Floats:
    with open_text(path) as stream:
        rows = list(csv.DictReader(stream))
    for row in rows:
        if set(row) < {"LAYER", "P", "R", "F"}:
            raise DataError("expected the columns LAYER, P, R, F", where=str(path))
        if row["LAYER"] == str(layer):
            return np.array([float(row[name]) for name in ("P", "R", "F")])
    raise DataError(f"has no row for layer {layer}", where=str(path))


class BertScore(NeuralMetric):
    """One of precision, recall and F1, raw or rescaled by the model's baseline."""

    def __init__(
        self,
        scorer: BertScorer,
        part: Part = "f1",
        *,
        is_rescaled: bool = False,
        is_windowed: bool = False,
    ) -> None:
        self.scorer, self.part = scorer, part
        self.is_rescaled, self.is_windowed = is_rescaled, is_windowed
        marks = ["" if part == "f1" else part, "rescaled" if is_rescaled else ""]
        marks = [mark for mark in (*marks, "windowed" if is_windowed else "") if mark]
        self.name = "_".join(["bertscore", *marks])
        self.label = " ".join(["BERTScore", *(mark.upper()[:1] + mark[1:] for mark in marks)])
        self.unit = "rescaled" if is_rescaled else "0-1"

    def why_absent(self) -> str | None:
        settings = self.scorer.settings
        name = Path(settings.bertscore_model).name
        is_known = settings.bertscore_baseline or "baseline" in known_models().get(name, {})
        if self.is_rescaled and not is_known:
            return f"no baseline to rescale {name} by is shipped; --bertscore-baseline FILE"
        return why_absent(settings.bertscore_model, self.name, ("torch",))

    def statistics(self, predictions: Texts, references: Texts) -> Floats:
        scored = self.scorer.of_texts(predictions, references, is_windowed=self.is_windowed)
        column = PARTS.index(self.part)
        values = scored[:, column].copy()
        if self.is_rescaled:
            baseline = self.scorer.baseline[0][column]
            values = (values - baseline) / (1 - baseline)
        is_scored = ~np.isnan(values)
        rows = np.column_stack([np.where(is_scored, values, 0.0), is_scored, scored[:, 3:7]])
        return rows.astype(np.float64)

    def own_fields(self) -> str:
        encoder, settings = self.scorer.encoder, self.scorer.settings
        idf = "no" if settings.bertscore_idf is None else sha256_of(settings.bertscore_idf)[:12]
        baseline = f"|baseline:{self.scorer.baseline[1][:12]}" if self.is_rescaled else ""
        return (
            f"part:{self.part}|model:{encoder.checkpoint.name}|weights:{encoder.sha256[:12]}"
            f"|vocab:{encoder.vocabulary_sha256()[:12]}|layer:{encoder.layer}|idf:{idf}"
            f"|max_length:{encoder.max_length}|long:{'windowed' if self.is_windowed else 'cut'}"
            f"|empty:0|dtype:{settings.dtype}{baseline}|like:bert-score-0.3.13"
            f"|{versions('torch', 'transformers')}"
        )
