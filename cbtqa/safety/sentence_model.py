"""The trained part of the screen and of the answer check: a linear model over every sentence.

A sentence is read as tokens: a Chinese character, an English word, a number, a mark. Their runs of
one to four, pairs with a gap, the beginnings of long words, and what the rule files found there
are hashed into one table of weights, for Chinese and English together, so that a text may change
its language within a sentence. `scripts/train_safety` fits the table on `data/safety`.

    scores = shipped_model("screen").scores(read_windows(fold("药都买好了。明天见。"), ()))
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from hashlib import blake2b
from importlib.resources import files
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cbtqa.safety.matching import Found
from cbtqa.statistics.softmax import fit_softmax, softmax

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
BUCKET_BITS = 18
LONGEST = 4
ORDER_WEIGHTS = (0.8, 1.0, 0.9, 0.5)
"""Weight of single tokens, pairs, triples and fours; each kind is scaled by its number."""
GAP_WEIGHT, STEM_WEIGHT, RULE_WEIGHT = 0.5, 0.5, 0.6
STEM = 5
"""Characters of an English word that stand for its inflected forms."""
MOST_TOKENS = 60
"""Tokens of the longest stretch that is graded as one."""
SHORTEST_CLAUSE = 5
"""Tokens of the shortest clause that teaches anything."""
_PRIME, _SPREAD = np.uint64(1_000_003), np.uint64(0x9E3779B97F4A7C15)
_TOKEN = re.compile(r"[a-z]+(?:'[a-z]+)?|[0-9]+|[^\sa-z0-9\u200b-\u200f\ufe0f*_~`^|\\#·•●○]")
_SENTENCE = re.compile(r"[^。!?\n]*[。!?\n]+[\"”』)]*|[^。!?\n]+")
_CLAUSE = re.compile(r"[^,;，、 ]*[,;，、 ]+|[^,;，、 ]+$")
_PAUSE = frozenset("。.!;,:、…~—-\"“”()《》「」'")


MOST_KNOWN = 20_000
"""Windows whose sums are kept."""


class Window(NamedTuple):
    """A stretch of a text that is graded by itself."""

    start: int
    end: int
    codes: tuple[int, ...]
    """Its tokens, with one for its beginning and one for its end."""
    stems: tuple[int, ...]
    rules: tuple[int, ...]

    def with_rules(self, names: Iterable[str]) -> Window:
        """The window with further names among what rules say of it."""
        return self._replace(rules=(*self.rules, *(_code(f"D:{name}") for name in names)))


@lru_cache(maxsize=1 << 17)
def _code(token: str) -> int:
    return int.from_bytes(blake2b(token.encode("utf-8", "replace"), digest_size=8).digest(), "big")


@lru_cache(maxsize=1 << 14)
def _codes(folded: str) -> tuple[list[int], list[int]]:
    codes, stems = [], []
    for token in _TOKEN.findall(folded):
        if len(token) == 1:
            codes.append(_code("," if token in _PAUSE else "0" if token.isdigit() else token))
        elif token[0].isdigit():
            codes.append(_code("0"))
        else:
            codes.append(_code(token))
            if len(token) > STEM:
                stems.append(_code(f"~{token[:STEM]}"))
    return codes, stems


def read_windows(folded: str, found: Sequence[Found]) -> list[Window]:
    """Every sentence, and what short neighbours say together.

    A sentence of more than `MOST_TOKENS` is taken apart at its commas: the weights were fitted on
    stretches of that length, and what common words weigh adds up in a longer one.

    Args:
        folded: the text as `normalise.fold` gives it.
        found: what the rule files found in it; may be empty.
    """
    spans: list[tuple[int, int]] = []
    read: list[tuple[list[int], list[int]]] = []
    for match in _SENTENCE.finditer(folded):
        codes = _codes(match[0])
        if len(codes[0]) <= MOST_TOKENS:
            if codes[0]:
                spans.append(match.span())
                read.append(codes)
            continue
        for start, end in _pieces(match[0], match.start()):
            codes = _codes(folded[start:end])
            if codes[0]:
                spans.append((start, end))
                read.append(codes)
    windows = [_window(read[n], *span, found) for n, span in enumerate(spans)]
    reached = 0
    for first in range(len(spans)):
        joined, stems = [*read[first][0]], [*read[first][1]]
        last = first + 1
        while last < len(spans) and len(joined) + len(read[last][0]) <= MOST_TOKENS:
            joined += read[last][0]
            stems += read[last][1]
            last += 1
        if last > max(reached, first + 1):
            windows.append(_window((joined, stems), spans[first][0], spans[last - 1][1], found))
            reached = last
    return windows


def read_clauses(folded: str) -> list[Window]:
    """Each clause of a sentence that has several, and each two neighbours, for fitting."""
    windows = []
    for sentence in _SENTENCE.finditer(folded):
        spans = [match.span() for match in _CLAUSE.finditer(sentence[0])]
        pairs = [(first[0], last[1]) for first, last in pairwise(spans)]
        for start, end in [*spans, *pairs] if len(spans) > 2 else spans * (len(spans) == 2):
            start, end = start + sentence.start(), end + sentence.start()
            codes = _codes(folded[start:end])
            if len(codes[0]) >= SHORTEST_CLAUSE:
                windows.append(_window(codes, start, end, ()))
    return windows


def _pieces(sentence: str, offset: int) -> list[tuple[int, int]]:
    """A long sentence cut at commas into pieces of at most about `MOST_TOKENS` characters."""
    pieces, start, end = [], 0, 0
    for match in _CLAUSE.finditer(sentence):
        if match.end() - start > MOST_TOKENS and end > start:
            pieces.append((offset + start, offset + end))
            start = end
        end = match.end()
    return [*pieces, (offset + start, offset + len(sentence))]


def _window(
    codes: tuple[list[int], list[int]], start: int, end: int, found: Sequence[Found]
) -> Window:
    rules = tuple(_code(name) for name in _names(found, start, end)) if found else ()
    return Window(start, end, (_START, *codes[0], _END), tuple(codes[1]), rules)


def trimmed(text: str, window: Window) -> tuple[int, int]:
    """A window's span without the blanks at its ends."""
    span = text[window.start : window.end]
    start = window.start + len(span) - len(span.lstrip())
    return start, window.end - len(span) + len(span.rstrip())


_START, _END = _code("\2"), _code("\3")


def _names(found: Sequence[Found], start: int, end: int) -> set[str]:
    """What the rules say of a stretch: grade, grade with its reason, family with its grade."""
    names = set()
    for place in found:
        if place.start >= start and place.end <= end:
            case = place.case
            family = case.rule.partition(".")[0]
            names |= {f"R:{case.risk}", f"R:{case.risk}:{case.outcome}", f"R:{family}:{case.risk}"}
    return names


class Features:
    """The hashed features of windows: bucket, value, and the window of each."""

    def __init__(self, windows: Sequence[Window]) -> None:
        lengths = np.array([len(window.codes) for window in windows])
        codes = np.array([code for window in windows for code in window.codes], np.uint64)
        owner = np.repeat(np.arange(len(windows)), lengths)
        self.n_windows = len(windows)
        parts: list[tuple[NDArray[np.uint64], Ints, float, int]] = []
        inner = (codes != np.uint64(_START)) & (codes != np.uint64(_END))
        parts.append((codes[inner], owner[inner], ORDER_WEIGHTS[0], 1))
        hashed = codes
        for n in range(2, LONGEST + 1):
            hashed = (hashed[:-1] * _PRIME) ^ codes[n - 1 :]
            inside = owner[: len(hashed)] == owner[n - 1 :]
            parts.append((hashed[inside], owner[: len(hashed)][inside], ORDER_WEIGHTS[n - 1], n))
        inside = owner[:-2] == owner[2:]
        gaps = (codes[:-2] * _PRIME) ^ codes[2:]
        parts.append((gaps[inside], owner[:-2][inside], GAP_WEIGHT, LONGEST + 1))
        for name, weight, order in (("stems", STEM_WEIGHT, 6), ("rules", RULE_WEIGHT, 7)):
            few = [(code, n) for n, one in enumerate(windows) for code in getattr(one, name)]
            if few:
                some, owners = zip(*few, strict=True)
                parts.append((np.array(some, np.uint64), np.array(owners), weight, order))
        shift = np.uint64(64 - BUCKET_BITS)
        buckets, values, owners_ = [], [], []
        for keys, of, weight, order in parts:
            buckets.append((((keys + np.uint64(order)) * _SPREAD) >> shift).astype(np.int64))
            size = (
                np.bincount(of, minlength=self.n_windows) if order < 7 else np.ones(self.n_windows)
            )
            values.append(weight / np.sqrt(size[of]))
            owners_.append(of)
        self.buckets: Ints = np.concatenate(buckets)
        self.values: Floats = np.concatenate(values)
        self.owners: Ints = np.concatenate(owners_)


@dataclass(frozen=True)
class SentenceModel:
    """Weights of the buckets for groups of classes; within a group they compete."""

    groups: tuple[tuple[str, ...], ...]
    """Names of the classes, a group each; the first of a group is the harmless one."""
    rows: Ints
    """`(2 ** BUCKET_BITS,)`: the row of a bucket's weights; 0 for a bucket without any."""
    weights: NDArray[np.int8]
    """`(rows, classes)`, in steps of `scale`; row 0 is zero."""
    scale: NDArray[np.float32]
    """`(classes,)`."""
    bias: Floats
    known: dict[tuple[object, ...], Floats] = field(default_factory=dict, compare=False)
    """Sums of windows met before: sentences repeat, within a template's answers above all."""

    def _sums(self, windows: Sequence[Window]) -> Floats:
        """Shape (windows, classes)."""
        features = Features(windows)
        # added up in place of a product of matrices: that is shared out among threads, and they
        # wait for each other longer than so small a product takes
        order = np.argsort(features.owners, kind="stable")
        begins = np.searchsorted(features.owners[order], np.arange(features.n_windows))
        values = features.values[order, np.newaxis].astype(np.float32)
        weights = self.weights[self.rows[features.buckets[order]]]
        sums: Floats = np.add.reduceat(values * weights, begins) * self.scale + self.bias
        return sums

    def scores(self, windows: Sequence[Window]) -> list[Floats]:
        """For each group the probabilities, shape (windows, classes of the group)."""
        keys = [window[2:] for window in windows]
        if len(self.known) > MOST_KNOWN:
            self.known.clear()
        new = {
            key: window for key, window in zip(keys, windows, strict=True) if key not in self.known
        }
        if new:
            self.known.update(zip(new, self._sums(list(new.values())), strict=True))
        sums = np.array([self.known[key] for key in keys])
        found, first = [], 0
        for group in self.groups:
            found.append(softmax(sums[:, first : first + len(group)]))
            first += len(group)
        return found


@cache
def shipped_model(name: str) -> SentenceModel:
    """`screen` or `answers`, read once."""
    data = files(__package__).joinpath(f"{name}_model.npz").read_bytes()
    with np.load(io.BytesIO(data)) as arrays:
        return model_of(arrays)


def model_of(arrays: Mapping[str, Any]) -> SentenceModel:
    """The model of the arrays that `fit` gives, or of a file that holds them."""
    rows = np.zeros(1 << BUCKET_BITS, np.int64)
    rows[arrays["buckets"]] = np.arange(1, len(arrays["buckets"]) + 1)
    weights = arrays["weights"]
    return SentenceModel(
        groups=tuple(tuple(str(group).split()) for group in arrays["groups"]),
        rows=rows,
        weights=np.vstack([np.zeros((1, weights.shape[1]), np.int8), weights]),
        scale=arrays["scale"],
        bias=arrays["bias"].astype(np.float64),
    )


# --- fitting --------------------------------------------------------------------------------------

RIDGE, RIDGE_OF_FEW = 30.0, 3.0
"""Variance of the weights' normal prior; chosen on batches left out, among 3, 10, 30 and 100. The
second holds for a group whose classes but the first are rare."""
FEW = 0.05
"""Share of the windows below which the classes of a group are rare; they weigh `RAISED` times."""
RAISED = 8.0
MAX_STEPS = 60
LEAST = 3
"""A bucket that stands in fewer windows gets no weight."""
_STEPS = 127


class Example(NamedTuple):
    """A window with its class in each group; None where it says nothing of a group."""

    window: Window
    classes: tuple[int | None, ...]
    weight: float = 1.0


def fit(
    examples: Sequence[Example], groups: Sequence[Sequence[str]], sparse: Any, minimize: Any
) -> dict[str, Any]:
    """The arrays of a model file; `scipy.sparse` and `scipy.optimize.minimize` are handed in."""
    features = Features([example.window for example in examples])
    cells = (features.values, (features.owners, features.buckets))
    x = sparse.csr_matrix(cells, shape=(len(examples), 1 << BUCKET_BITS))
    spread = np.bincount(x.indices, minlength=1 << BUCKET_BITS)
    used = np.flatnonzero(spread >= LEAST)
    x = x[:, used].tocsr()
    weight = np.array([example.weight for example in examples])
    found = []
    for place, group in enumerate(groups):
        told = [n for n, one in enumerate(examples) if one.classes[place] is not None]
        truth = np.array([examples[n].classes[place] for n in told])
        weights, ridge = weight[told], RIDGE
        if np.mean(truth > 0) < FEW:
            weights, ridge = np.where(truth > 0, RAISED * weights, weights), RIDGE_OF_FEW
        prior = {"ridge": ridge, "max_steps": MAX_STEPS, "minimize": minimize}
        found.append(fit_softmax(x[told], truth, len(group), weight=weights, **prior))
    table = np.hstack([one[:-1] for one in found])
    scale = np.abs(table).max(axis=0) / _STEPS
    steps = np.round(table / scale).astype(np.int8)
    kept = np.abs(steps).max(axis=1) > 0
    return {
        "buckets": used[kept].astype(np.int32),
        "weights": steps[kept],
        "scale": scale.astype(np.float32),
        "bias": np.concatenate([one[-1] for one in found]).astype(np.float32),
        "groups": np.array([" ".join(group) for group in groups]),
    }
