"""Which questions are near-duplicates of one another: the same one copied, edited or reworded.

Compared are the letters and digits of title and description, in simplified characters of plain
width. Two texts are as alike as the cosine of their sets of character pairs, each pair weighted by
its rarity in the file (log(1 + texts / texts with it)): an edit of 8 % of the characters leaves
about 0.8, other questions on the same topic have less than 0.3, and a phrase that hundreds of
questions begin or end with counts little. A text that lies wholly in another one, such as a title
without its description, is alike too.

Pairs to compare are those that share rare runs of three characters: of each text the rarest that
another text has too. All steps see the texts in the order of their digests, so the clusters depend
on the texts alone and not on their order in the file.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from cbtqa.files import shipped_yaml
from cbtqa.safety.normalise import fold

Ints: TypeAlias = npt.NDArray[np.int64]
Words: TypeAlias = npt.NDArray[np.uint64]
Floats: TypeAlias = npt.NDArray[np.float64]

SURE = 0.8
"""Pairs at least this alike, also without weights, are joined whatever the size of their cluster."""
SHORT, LONG = 10, 40
"""Characters of the shorter text: from `SHORT` to `LONG` the cosine asked for falls."""
MORE_IF_SHORT = 1 / 3
"""Of the way from the cosine asked for to 1 that a text of `SHORT` characters has to go further."""
CONTAINED = 0.9
"""Share of its weight that a text has in another one to lie in it."""
CONTAINED_CHARS = 15
"""Shorter texts lie in others by chance: `I cannot sleep`."""
LARGEST_SHARE, LARGEST_LEAST = 0.01, 20
"""Pairs less alike than `SURE` join at most this share of the texts, or this many."""

_N_RARE = 16
"""Rare runs of each text by which others are found."""
_N_NEXT = 6
"""Texts compared with each one among those of a run: a run that more have joins a chain."""
_CHUNK = 1_000_000
"""Characters looked at at a time."""
_PAIRS = 4_000_000
"""Pairs counted at a time."""
_NOT_TEXT = re.compile(r"[\W_]+")
_ODD = np.uint64(0x9E3779B97F4A7C15)


METHOD = "rare 3-grams, then the cosine of 2-grams weighted by rarity"


@dataclass(frozen=True)
class Clusters:
    """Questions that belong together."""

    first: Ints
    """For every question, in order, the index of its cluster's first question."""
    n_apart: int = 0
    """Pairs that are alike but stay apart: their cluster would have become too large."""

    @property
    def n_joined(self) -> int:
        """Questions that joined the cluster of an earlier one."""
        return int((self.first != np.arange(len(self.first))).sum())

    def describe(self, threshold: float) -> dict[str, Any]:
        """How the clusters were found, for the manifest."""
        return {
            "method": METHOD,
            "cosine": threshold,
            "cosine_of_short": round(_asked(threshold, np.array([SHORT]))[0], 4),
            "contained": CONTAINED,
            "sure": SURE,
            "largest_cluster": self.largest,
            "n_pairs_apart": self.n_apart,
        }

    @property
    def largest(self) -> int:
        """Questions in the largest cluster."""
        return int(np.bincount(self.first).max(initial=0))


@cache
def _simplified() -> dict[int, str]:
    pairs: str = shipped_yaml(__package__, "simplified.yaml")["pairs"]
    return {ord(pair[0]): pair[1] for pair in pairs.split()}


def plain_text(text: str) -> str:
    """What is compared of a text: letters and digits, simplified, of plain width and in lower case.

    A text without any, such as `？`, is compared as it is.
    """
    return _NOT_TEXT.sub("", fold(text).translate(_simplified())) or text


class Texts:
    """Texts as they are compared, packed: two bytes a character and 24 a text."""

    def __init__(self) -> None:
        self._blocks: list[npt.NDArray[np.uint16]] = []
        self._lengths: list[int] = []
        self._digests: list[int] = []

    def add(self, plain: Iterable[str]) -> None:
        """Adds what `plain_text` gave."""
        codes = [text.encode("utf-16-le", "surrogatepass") for text in plain]
        self._blocks.append(np.frombuffer(b"".join(codes), dtype=np.uint16))
        for code in codes:
            self._lengths.append(len(code) // 2)
            digest = hashlib.blake2b(code, digest_size=8).digest()
            self._digests.append(int.from_bytes(digest, "big"))

    def clusters(self, threshold: float) -> Clusters:
        """The clusters of all texts added.

        Args:
            threshold: the least cosine of texts of `LONG` characters and more; 1 joins only texts
                that are equal as they are compared.
        """
        digests = np.array(self._digests, dtype=np.uint64)
        distinct, first, place = np.unique(digests, return_index=True, return_inverse=True)
        lengths = np.array(self._lengths, dtype=np.int64)
        chars = np.concatenate([np.zeros(0, np.uint16), *self._blocks])
        found = _Distinct(chars, (np.cumsum(lengths) - lengths)[first], lengths[first], distinct)
        labels, n_apart = found.joined(threshold) if threshold < 1 else (place[first], 0)
        label_of = labels[place]
        named = np.full(len(first), len(place), dtype=np.int64)
        np.minimum.at(named, label_of, np.arange(len(place)))
        return Clusters(named[label_of], n_apart)


class _Distinct:
    """Different texts, in the order of their digests."""

    def __init__(
        self, chars: npt.NDArray[np.uint16], starts: Ints, lengths: Ints, digests: Words
    ) -> None:
        self.chars, self.starts, self.lengths, self.digests = chars, starts, lengths, digests
        ends = np.cumsum(lengths)
        cuts = np.searchsorted(ends, np.arange(_CHUNK, ends[-1] if len(ends) else 0, _CHUNK))
        self.chunks = np.unique(np.concatenate([[0], cuts, [len(lengths)]]))
        self.pair_counts = self._counts(2)

    def joined(self, threshold: float) -> tuple[Ints, int]:
        """The cluster of each text, and how many pairs stay apart for the size of theirs."""
        edges = [np.zeros((0, 3))]
        edges += [self._likeness(pairs, threshold) for pairs in self._candidates()]
        return _join(np.concatenate(edges), len(self.lengths))

    # --- runs of characters --------------------------------------------------------------------

    def _runs(self, texts: Ints, n: int) -> tuple[Ints, Words]:
        """The different runs of `n` characters of some texts: whose (by place), and which."""
        counts = np.maximum(self.lengths[texts] - n + 1, 0)
        owners = np.repeat(np.arange(len(texts), dtype=np.uint64), counts)
        at = _spread(self.starts[texts], counts)
        keys = np.zeros(len(at), dtype=np.uint64)
        for step in range(n):
            keys = (keys << np.uint64(16)) | self.chars[at + step]
        # at most 2**16 texts, runs of at most three characters: both fit in 64 bits
        packed = np.sort((owners << np.uint64(48)) | keys)
        packed = packed[np.append(True, packed[1:] != packed[:-1])[: len(packed)]]
        return (packed >> np.uint64(48)).astype(np.int64), packed & np.uint64(2**48 - 1)

    def _blocks(self) -> Iterator[Ints]:
        for start, end in zip(self.chunks[:-1], self.chunks[1:], strict=True):
            for low in range(start, end, 65_536):
                yield np.arange(low, min(end, low + 65_536))

    def _counts(self, n: int) -> npt.NDArray[np.uint32]:
        """In how many texts a run occurs, by the hash of the run."""
        n_bits = int(np.clip(np.ceil(np.log2(4 * self.lengths.sum() + 1)), 10, 9 * n))
        counts = np.zeros(1 << n_bits, dtype=np.uint32)
        for texts in self._blocks():
            slots, times = np.unique(_slots(self._runs(texts, n)[1], counts), return_counts=True)
            counts[slots] += times.astype(np.uint32)
        return counts

    # --- pairs to compare ----------------------------------------------------------------------

    def _candidates(self) -> Iterator[Words]:
        """Pairs that share rare runs, each once; packed, first text in the upper half."""
        keys, texts = self._rare_runs()
        # a common run joins a chain in one of four orders: copies of a text that stands there often
        # meet the same ones in several runs, and others too
        order = np.lexsort((_mixed(self.digests[texts] ^ (keys & np.uint64(3))), keys))
        keys, texts = keys[order], texts[order]
        del order
        steps = range(1, _N_NEXT + 1)
        n_pairs = sum(int((keys[step:] == keys[:-step]).sum()) for step in steps)
        n_parts = n_pairs // _PAIRS + 1
        for part in range(n_parts):
            found = [np.zeros(0, np.uint64)]
            for step in steps:
                at = np.flatnonzero(keys[step:] == keys[:-step])
                one, other = texts[at], texts[at + step]
                low = np.minimum(one, other).astype(np.uint64)
                mine = low % np.uint64(n_parts) == part
                high = np.maximum(one, other).astype(np.uint64)
                found.append((low[mine] << np.uint64(32)) | high[mine])
            pairs, times = np.unique(np.concatenate(found), return_counts=True)
            one, other = _unpacked(pairs)
            is_short = np.minimum(self.lengths[one], self.lengths[other]) <= LONG
            yield pairs[(times > 1) | is_short]

    def _rare_runs(self) -> tuple[Words, Ints]:
        """Of each text the rarest runs of three characters that another text has too."""
        counts = self._counts(3)
        all_keys, all_texts = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
        for texts in self._blocks():
            owners, keys = self._runs(texts, 3)
            times = counts[_slots(keys, counts)]
            owners, keys, times = owners[times > 1], keys[times > 1], times[times > 1]
            # by text, then how many have the run, then the run's hash: one number each
            rarity = np.minimum(times, 65_535).astype(np.uint64) << np.uint64(32)
            by = (owners.astype(np.uint64) << np.uint64(48)) | rarity
            keys = keys[np.argsort(by | (_mixed(keys) >> np.uint64(32)), kind="stable")]
            rank = np.arange(len(owners)) - np.searchsorted(owners, owners)
            all_keys.append(keys[rank < _N_RARE])
            all_texts.append(texts[owners[rank < _N_RARE]])
        return np.concatenate(all_keys), np.concatenate(all_texts)

    # --- how alike -----------------------------------------------------------------------------

    def _likeness(self, pairs: Words, threshold: float) -> Floats:
        """The pairs that are alike: first text, second text, how alike."""
        found = [np.zeros((0, 3))]
        one, other = _unpacked(pairs)
        cost = np.cumsum(self.lengths[one] + self.lengths[other] + 32)  # so < 2**16 texts at a time
        cuts = np.searchsorted(cost, np.arange(0, cost[-1] if len(cost) else 0, _CHUNK))
        bounds = np.unique(np.concatenate([cuts, [len(pairs)]]))
        for start, end in zip(bounds[:-1], bounds[1:], strict=True):
            found.append(self._likeness_of_few(one[start:end], other[start:end], threshold))
        return np.concatenate(found)

    def _likeness_of_few(self, one: Ints, other: Ints, threshold: float) -> Floats:
        texts = np.unique(np.concatenate([one, other]))
        owners, keys = self._runs(texts, 2)
        n_with = np.maximum(self.pair_counts[_slots(keys, self.pair_counts)], 1)
        weights = np.log1p(len(self.lengths) / n_with) ** 2
        norms = np.bincount(owners, weights, minlength=len(texts))
        counts = np.bincount(owners, minlength=len(texts))
        starts = np.cumsum(counts) - counts
        packed = (owners.astype(np.uint64) << np.uint64(48)) | keys
        a, b = np.searchsorted(texts, one), np.searchsorted(texts, other)
        a, b = np.where(counts[a] <= counts[b], a, b), np.where(counts[a] <= counts[b], b, a)
        # each run of the shorter text is looked up among those of the longer one
        at = _spread(starts[a], counts[a])
        of = np.repeat(np.arange(len(a)), counts[a])
        wanted = (b[of].astype(np.uint64) << np.uint64(48)) | keys[at]
        place = np.minimum(np.searchsorted(packed, wanted), max(0, len(packed) - 1))
        is_shared = packed[place] == wanted if len(packed) else np.zeros(0, bool)
        shared = np.bincount(of, weights[at] * is_shared, minlength=len(a))
        weighted = shared / np.maximum(np.sqrt(norms[a] * norms[b]), 1e-9)
        n_shared = np.bincount(of, is_shared, minlength=len(a))
        plain = n_shared / np.maximum(np.sqrt(counts[a] * counts[b]), 1)
        shorter = np.minimum(self.lengths[one], self.lengths[other])
        contained = shared / np.maximum(np.minimum(norms[a], norms[b]), 1e-9)
        # where most of a file is one text with other numbers in it, that text has little weight
        is_plainly_alike = plain >= _asked(max(SURE, threshold), shorter)
        is_part = (contained >= CONTAINED) & (shorter >= CONTAINED_CHARS)
        is_alike = (weighted >= _asked(threshold, shorter)) | is_plainly_alike | is_part
        likeness = np.where(is_plainly_alike, np.maximum(weighted, plain), weighted)
        return np.column_stack([one, other, likeness])[is_alike]


def _asked(threshold: float, lengths: Ints) -> Floats:
    """The least cosine of a pair, by the characters of the shorter text."""
    shortness = np.clip((LONG - lengths) / (LONG - SHORT), 0, 1)
    asked: Floats = threshold + (1 - threshold) * MORE_IF_SHORT * shortness
    return asked


def _join(edges: Floats, n: int) -> tuple[Ints, int]:
    """Joins the most alike first; below `SURE` only while the cluster stays small.

    Without that limit a chain of texts, each a little like the next, would join everything. What
    is joined for sure counts as one text, so a question that stands there a hundred times with
    another number still meets its edited copies.
    """
    parent, size = list(range(n)), [1] * n
    largest = max(LARGEST_LEAST, int(LARGEST_SHARE * n))
    n_apart = 0

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    # rounded: the last digits of a cosine are the processor's
    order = np.lexsort((edges[:, 1], edges[:, 0], -edges[:, 2].round(6)))
    for one, other, cosine in edges[order].tolist():
        a, b = root(int(one)), root(int(other))
        if a == b:
            continue
        if cosine < SURE and size[a] + size[b] > largest:
            n_apart += 1
            continue
        parent[max(a, b)] = min(a, b)
        size[min(a, b)] = 1 if cosine >= SURE else size[a] + size[b]
    return np.array([root(index) for index in range(len(parent))], dtype=np.int64), n_apart


def _spread(starts: Ints, counts: Ints) -> Ints:
    """The numbers `start, start + 1, ...` of every start, as many as its count, in a row."""
    before = np.cumsum(counts) - counts
    return np.repeat(starts - before, counts) + np.arange(int(counts.sum()))


def _mixed(keys: Words) -> Words:
    mixed = keys * _ODD
    return (mixed ^ (mixed >> np.uint64(29))) * _ODD


def _slots(keys: Words, table: npt.NDArray[np.uint32]) -> Ints:
    return (_mixed(keys) >> np.uint64(65 - len(table).bit_length())).astype(np.int64)


def _unpacked(pairs: Words) -> tuple[Ints, Ints]:
    one = (pairs >> np.uint64(32)).astype(np.int64)
    return one, (pairs & np.uint64(2**32 - 1)).astype(np.int64)
