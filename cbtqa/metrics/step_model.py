"""The shipped step model: which of the five CBT steps, or none, each sentence of an answer does.

A linear model over the characters, pairs and triples of a sentence, of the sentence before it and
of the one after, fitted by `scripts/train_step_model` on `step_corpus.jsonl`: invented answers of
many styles, whole ones and ones that lack steps, each sentence with its step; every whole answer is
there five times more, each time without one of its steps.

    shipped_model().probabilities(["你辛苦了。", "今晚先睡一觉。"])   # (2, 6)
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbtqa.records import STEP_NAMES
from cbtqa.statistics.softmax import fit_softmax, softmax

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
N_CLASSES = len(STEP_NAMES) + 1
"""The steps in order, then `other`."""
BUCKET_BITS = 14
ORDERS = (1.0, 1.0, 0.7)
"""Weight of characters, pairs and triples; each kind is scaled to length 1 on its own."""
NEIGHBOUR = 0.4
"""Weight of a sentence's neighbours; chosen by cross-validation, as the orders' weights."""
_PLACES = 3  # the sentence itself, the one before, the one after
_START, _END = 2, 3
_PRIME, _SPREAD = np.uint64(1_000_003), np.uint64(0x9E3779B97F4A7C15)
CORPUS_NAME, MODEL_NAME = "step_corpus.jsonl", "step_model.npz"
LABELS = ("validation", "thought", "challenge", "strategy", "foresight", "other")
"""As the corpus has them."""


class SentenceGrams:
    """The n-grams of an answer's sentences: bucket, weight, and which sentence each is in."""

    def __init__(self, sentences: Sequence[str]) -> None:
        bare = ["".join(one.split()) for one in sentences]
        text = "".join(f"{chr(_START)}{one}{chr(_END)}" for one in bare)
        codes = np.frombuffer(text.encode("utf-32-le", "replace"), np.uint32).astype(np.uint64)
        of = np.repeat(np.arange(len(bare)), [len(one) + 2 for one in bare])
        buckets, weights, owners = [], [], []
        hashed = codes
        for n, weight in enumerate(ORDERS, start=1):
            if n > 1:
                hashed = (hashed[:-1] * _PRIME) ^ codes[n - 1 :]
            inside = of[: len(hashed)] == of[n - 1 :]
            spread = (hashed[inside] * _SPREAD + np.uint64(n)) >> np.uint64(64 - BUCKET_BITS)
            owner = of[: len(hashed)][inside]
            size = np.bincount(owner, minlength=len(bare))
            buckets.append(spread.astype(np.int64))
            weights.append(weight / np.sqrt(size[owner]))
            owners.append(owner)
        self.n_sentences = len(bare)
        self.buckets: Ints = np.concatenate(buckets)
        self.weights: Floats = np.concatenate(weights)
        self.owners: Ints = np.concatenate(owners)


class ShippedModel:
    """Weights `(3 places * buckets + 2, 6)`; the last rows stand for the answer's two ends."""

    def __init__(self, weights: Floats, bias: Floats, corpus_sha256: str) -> None:
        self._grams = np.ascontiguousarray(
            weights[:-2].reshape(_PLACES, 1 << BUCKET_BITS, N_CLASSES).transpose(1, 0, 2)
        ).reshape(1 << BUCKET_BITS, _PLACES * N_CLASSES)
        self._ends, self._bias = weights[-2:], bias
        self.corpus_sha256 = corpus_sha256
        digest = hashlib.sha256(weights.tobytes() + bias.tobytes()).hexdigest()
        self.name = f"shipped-{digest[:8]}"

    def probabilities(self, sentences: Sequence[str]) -> Floats:
        """Shape (sentences, 6): the five steps in order, then none of them; rows add up to 1."""
        grams = SentenceGrams(sentences)
        added = self._grams[grams.buckets] * grams.weights[:, None]
        sums = np.zeros((grams.n_sentences, _PLACES * N_CLASSES))
        np.add.at(sums, grams.owners, added)
        own, before, after = np.split(sums, _PLACES, axis=1)
        score = own + self._bias
        score[1:] += NEIGHBOUR * before[:-1]
        score[:-1] += NEIGHBOUR * after[1:]
        score[0] += self._ends[0]
        score[-1] += self._ends[1]
        return softmax(score)


@cache
def shipped_model() -> ShippedModel:
    """The model of this version, read once."""
    data = files(__package__).joinpath(MODEL_NAME).read_bytes()
    with np.load(io.BytesIO(data)) as arrays:
        weights, bias = (arrays[name].astype(np.float64) for name in ("weights", "bias"))
        return ShippedModel(weights, bias, str(arrays["corpus_sha256"]))


# --- fitting --------------------------------------------------------------------------------------

LabelledReply = list[tuple[int, str]]
"""A reply's sentences with their classes."""
RIDGE = 30.0
"""Variance of the weights' normal prior. 10 was best by cross-validation on the first 200 replies;
on replies that are in no fold (tests/golden, answers to the build prompt) 30 found more steps."""


def read_corpus(text: str, split: Callable[[str], list[str]]) -> list[LabelledReply]:
    """The replies of a corpus file; what `split` takes apart keeps the label of its whole."""
    replies = []
    for line in text.splitlines():
        entry = json.loads(line)
        pairs = [
            (LABELS.index(label), part) for label, one in entry["sentences"] for part in split(one)
        ]
        replies.append(pairs)
    return replies


def with_dropped_steps(replies: Iterable[LabelledReply]) -> list[LabelledReply]:
    """The replies, and every whole one again without each of its steps."""
    found = []
    for reply in replies:
        found.append(reply)
        if set(range(len(STEP_NAMES))) <= {step for step, _ in reply}:
            for left_out in range(len(STEP_NAMES)):
                found.append([pair for pair in reply if pair[0] != left_out])
    return found


def fit(replies: Sequence[LabelledReply], sparse: Any, minimize: Any) -> tuple[Floats, Floats]:
    """Weights and bias by penalised multinomial likelihood; `scipy.sparse`, `scipy.optimize`'s."""
    rows, columns, values, truth = [], [], [], []
    size, first = 1 << BUCKET_BITS, 0
    for reply in replies:
        grams = SentenceGrams([text for _, text in reply])
        for place, shift in enumerate((0, 1, -1)):
            row = grams.owners + shift
            kept = (row >= 0) & (row < len(reply))
            rows.append(first + row[kept])
            columns.append(place * size + grams.buckets[kept])
            values.append(grams.weights[kept] * (NEIGHBOUR if shift else 1.0))
        rows.append(np.array([first, first + len(reply) - 1]))
        columns.append(np.array([_PLACES * size, _PLACES * size + 1]))
        values.append(np.ones(2))
        truth += [step for step, _ in reply]
        first += len(reply)
    shape = (first, _PLACES * size + 2)
    cells = (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns)))
    x = sparse.csr_matrix(cells, shape=shape)
    used = np.unique(x.indices)
    prior = {"ridge": RIDGE, "max_steps": 200, "minimize": minimize}
    fitted = fit_softmax(x[:, used], np.array(truth), N_CLASSES, **prior)
    weights = np.zeros((shape[1], N_CLASSES))
    weights[used] = fitted[:-1]
    return weights, fitted[-1]
