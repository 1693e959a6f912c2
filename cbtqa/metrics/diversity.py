"""How template-like a system writes: distinct n-grams, self-BLEU, repeated openings and frames.

Fine-tuned models copy the frame of their training answers. None of these looks at a reference.
Distinct n-grams and frames are of characters, so that `cbtqa stats` needs no dictionary of words.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cbtqa.metrics.base import Collector, CorpusMetric, Floats
from cbtqa.metrics.lexical import MAX_ORDER, bleu_from_sums
from cbtqa.metrics.text.counts import numbers_of
from cbtqa.metrics.text.segmentation import words_signature
from cbtqa.metrics.text.texts import IS_WHITESPACE, Ints, Sequences, Texts, code_points

SELF_BLEU_SAMPLE = 1_000  # Source: Zhu et al., Texygen, SIGIR 2018, samples likewise
SELF_BLEU_SEED = 12345
OPENING_CHARACTERS = 8
"""Two or three words: long enough to be a formula, short enough to catch its variants."""
FRAME_CHARACTERS = 12
"""A clause: people who answer different questions hardly ever share one (docs/log.md)."""


class Distinct(CorpusMetric):
    """Distinct character n-grams by all of them, over all answers; whitespace is dropped.

    The measure of Li et al., NAACL 2016, on characters in place of words. Falls with the number
    of texts: compare systems on the same questions only.
    """

    is_higher_better = True

    def __init__(self, order: int) -> None:
        self.order = order
        self.name, self.label = f"distinct_{order}", f"distinct-{order}"

    def collector(self) -> Collector:
        return _DistinctGrams(self.order)

    def own_fields(self) -> str:
        return f"order:{self.order}|unit:characters|spaces:dropped"


class _DistinctGrams(Collector):
    def __init__(self, order: int) -> None:
        self._order = order
        self._total = 0
        self._grams: Ints = np.empty(0, np.int64)

    def add(self, predictions: Texts, is_scored: NDArray[np.bool_]) -> None:
        self.add_characters(predictions.characters, is_scored)

    def add_characters(self, characters: Sequences, is_scored: NDArray[np.bool_]) -> None:
        text = np.repeat(np.arange(len(characters)), characters.lengths)
        grams = symbols = characters.symbols
        if self._order > 1:
            grams = symbols[:-1] << 31 | symbols[1:]
        starts = len(grams)
        inside = is_scored[text[:starts]] & (text[:starts] == text[self._order - 1 :])
        self._total += int(inside.sum())
        self._grams = np.union1d(self._grams, grams[inside])

    def score(self) -> float | None:
        return len(self._grams) / self._total if self._total else None


def distinct_share(texts: Sequence[str], order: int = 2) -> float | None:
    """The metric `distinct_<order>` of these texts; None when none has so many characters."""
    grams = _DistinctGrams(order)
    grams.add_characters(_characters(texts), np.ones(len(texts), np.bool_))
    return grams.score()


def _characters(texts: Sequence[str]) -> Sequences:
    points = code_points(texts)
    return points.kept(~IS_WHITESPACE[points.symbols])


def repeated_share(texts: Sequence[str], size: int = FRAME_CHARACTERS) -> float | None:
    """Share of all characters that lie in a run of `size` characters which another text has too.

    Sees a template whose slots are filled: its frame repeats, whatever its opening. Whitespace is
    dropped. Rises with the number of texts: only samples of one size compare. None for fewer than
    two texts with a character in them.
    """
    characters = _characters([text for text in texts if text.strip()])
    n_texts, n_characters = len(characters), len(characters.symbols)
    if n_texts < 2:
        return None
    if n_characters < size:
        return 0.0
    text_of = np.repeat(np.arange(n_texts), characters.lengths)
    # runs of 1, 2, 4 ... characters as numbers; the last step lets its two halves overlap
    runs, length = characters.symbols, 1
    while length < size:
        step = min(length, size - length)
        runs = numbers_of(runs[:-step] << 32 | runs[step:])
        length += step
    starts = np.flatnonzero(text_of[: len(runs)] == text_of[size - 1 :])
    owned = np.unique(runs[starts] * n_texts + text_of[starts])
    n_owners = np.bincount(owned // n_texts, minlength=n_characters)
    shared = starts[n_owners[runs[starts]] > 1]
    edges = np.zeros(n_characters + 1, np.int64)
    edges[shared] += 1
    edges[shared + size] -= 1
    return float((np.cumsum(edges)[:-1] > 0).mean())


class OpeningRepetition(CorpusMetric):
    """Share of answers whose first eight characters also open another answer."""

    is_higher_better = False

    def __init__(self) -> None:
        self.name, self.label = "opening_repetition", "repeated openings"

    def collector(self) -> Collector:
        return _Openings()

    def own_fields(self) -> str:
        return f"characters:{OPENING_CHARACTERS}|spaces:dropped"


class _Openings(Collector):
    def __init__(self) -> None:
        self._counts: dict[str, int] = {}

    def add(self, predictions: Texts, is_scored: NDArray[np.bool_]) -> None:
        for text, counts in zip(predictions.texts, is_scored.tolist(), strict=True):
            opening = "".join(text.split())[:OPENING_CHARACTERS]
            if counts and opening:
                self._counts[opening] = self._counts.get(opening, 0) + 1

    def score(self) -> float | None:
        total = sum(self._counts.values())
        return sum(n for n in self._counts.values() if n > 1) / total if total else None


class SelfBleu(CorpusMetric):
    """Mean BLEU of each answer against all the others of a sample; high means alike."""

    unit = "0-100"
    is_higher_better = False

    def __init__(self, n_sampled: int = SELF_BLEU_SAMPLE, seed: int = SELF_BLEU_SEED) -> None:
        self.n_sampled, self.seed = n_sampled, seed
        self.name, self.label = "self_bleu", "self-BLEU"

    def collector(self) -> Collector:
        return _Sample(self.n_sampled, self.seed)

    def own_fields(self) -> str:
        return (
            f"nrefs:rest|eff:yes|{words_signature()}|smooth:exp|sample:{self.n_sampled}"
            f"|sample_seed:{self.seed}"
        )


class _Sample(Collector):
    """A uniform sample of the texts seen so far (reservoir sampling)."""

    def __init__(self, size: int, seed: int) -> None:
        self._size, self._seen = size, 0
        self._rng = np.random.default_rng(seed)
        self._kept: list[list[int]] = []

    def add(self, predictions: Texts, is_scored: NDArray[np.bool_]) -> None:
        words = predictions.words.rows()
        for index in np.flatnonzero(is_scored).tolist():
            self._seen += 1
            if len(self._kept) < self._size:
                self._kept.append(words[index])
            elif (place := int(self._rng.integers(self._seen))) < self._size:
                self._kept[place] = words[index]

    def score(self) -> float | None:
        texts = [text for text in self._kept if text]
        return float(self_bleu(texts).mean()) if len(texts) > 1 else None


def self_bleu(texts: list[list[int]]) -> Floats:
    """BLEU (0-100, effective order) of each text against all the others, shape (texts,)."""
    # one pass: the highest count among the others is the highest of all or, for its owner, the next
    lengths = np.array([len(text) for text in texts], np.int64)
    sums = np.zeros((len(texts), 2 + 2 * MAX_ORDER), np.float64)
    sums[:, 0] = lengths
    for index, length in enumerate(lengths):
        others = np.delete(lengths, index)
        distance = np.abs(others - length)
        sums[index, 1] = others[distance == distance.min()].min()  # the shorter of equally close
    words = np.array([word for text in texts for word in text], np.int64)
    text_of = np.repeat(np.arange(len(texts)), lengths)
    grams = numbers_of(words)
    first = grams
    for order in range(1, MAX_ORDER + 1):
        if order > 1:
            goes_on = text_of[: len(grams) - 1] == text_of[order - 1 :]
            longer = grams[:-1] << 32 | first[order - 1 :]
            # a gram that would run into the next text is no gram; its number is its own place
            grams = np.where(goes_on, numbers_of(longer), -1)
        owners = text_of[: len(grams)][grams >= 0]
        sums[:, 1 + order] = _shared_with_others(grams[grams >= 0], owners, len(texts))
        sums[:, 1 + MAX_ORDER + order] = np.maximum(lengths - order + 1, 0)
    return bleu_from_sums(sums, is_effective_order=True)


def _shared_with_others(grams: Ints, owners: Ints, n_texts: int) -> Floats:
    """How many grams of each text another text has too, each as often as the other at most."""
    pairs, counts = np.unique(grams * n_texts + owners, return_counts=True)
    gram, owner = np.divmod(pairs, n_texts)
    order = np.lexsort((-counts, gram))
    gram, owner, counts = gram[order], owner[order], counts[order]
    is_top = np.diff(gram, prepend=-1) != 0
    top = np.maximum.accumulate(np.where(is_top, np.arange(len(gram)), 0))
    has_second = np.append(~is_top[1:], False)[top]
    second = np.where(has_second, counts[np.minimum(top + 1, len(counts) - 1)], 0)
    among_others = np.where(is_top, second, counts[top])
    shared = np.minimum(counts, among_others).astype(np.float64)
    return np.bincount(owner, weights=shared, minlength=n_texts).astype(np.float64)
