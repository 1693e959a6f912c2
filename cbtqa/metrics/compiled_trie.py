"""jieba's dictionary as a trie in flat arrays, for compiled code.

A word's characters lead from node to node; a node that ends a word carries its weight.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from cbtqa.metrics.compiled import compiled
from cbtqa.metrics.text.segmentation import JiebaTables
from cbtqa.metrics.text.sequences import code_points

Array = Any
"""A numpy array inside compiled code, whose types numba infers."""
PLANE = 0x10000
"""Blocks lie in the basic plane, so tables by character end there."""
CHARACTER_BITS, NODE_BITS = 16, 22
STEP_BITS = NODE_BITS + 2
IS_WORD, LEADS_ON = 1, 2
"""Lowest bits of a step: its node ends a word; longer words go through it."""


class Trie(NamedTuple):
    """Words by their characters.

    A step is a node's number with two bits behind it that spare most looks into memory.
    """

    entries: Array
    """A hash table; an entry packs node, character and the step to the child into 64 bits."""
    roots: Array
    """Step of each first character; 0 for none."""
    weights: Array
    """Of each node that ends a word; nodes of frequent words stand together in front."""
    unknown: float


@compiled
def _slot(entries: Array, key: Array) -> Array:
    """Where the entry of the key is, or where it would go."""
    mask = np.uint64(entries.shape[0] - 1)
    place = ((key * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(32)) & mask
    while entries[place] != 0 and entries[place] >> np.uint64(STEP_BITS) != key:
        place = (place + np.uint64(1)) & mask
    return place


@compiled
def _key(node: Array, character: Array) -> Array:
    return (np.uint64(node) << np.uint64(CHARACTER_BITS)) | np.uint64(character)


@compiled
def child(entries: Array, node: Array, character: Array) -> Array:
    """The step to the child; 0 for none."""
    entry = entries[_slot(entries, _key(node, character))]
    return np.int64(entry & np.uint64((1 << STEP_BITS) - 1))


@compiled
def _build(codes: Array, offsets: Array, weights: Array, capacity: int) -> Array:
    entries = np.zeros(capacity, np.uint64)
    roots = np.zeros(PLANE, np.int32)
    of_node = np.zeros(codes.shape[0] + 1)
    marks = np.zeros(codes.shape[0] + 1, np.uint8)
    n_nodes = 1
    for word in range(weights.shape[0]):
        start = offsets[word]
        if roots[codes[start]] == 0:
            roots[codes[start]] = n_nodes << 2
            n_nodes += 1
        node = roots[codes[start]] >> 2
        for index in range(start + 1, offsets[word + 1]):
            marks[node] |= LEADS_ON
            key = _key(node, codes[index])
            place = _slot(entries, key)
            if entries[place] == 0:
                entries[place] = (key << np.uint64(STEP_BITS)) | np.uint64(n_nodes << 2)
                n_nodes += 1
            node = np.int64(entries[place] & np.uint64((1 << STEP_BITS) - 1)) >> 2
        marks[node] |= IS_WORD
        of_node[node] = weights[word]
    for character in range(PLANE):
        roots[character] |= marks[roots[character] >> 2]
    for place in range(capacity):
        node = np.int64(entries[place] & np.uint64((1 << STEP_BITS) - 1)) >> 2
        entries[place] |= np.uint64(marks[node])
    return entries, roots, of_node[:n_nodes].copy()


def make_trie(tables: JiebaTables) -> Trie:
    """The trie of a dictionary."""
    # a character beyond the basic plane stands in no block, so its words are never met
    words = [word for word in tables.log_weights if ord(max(word)) < PLANE]
    words.sort(key=tables.log_weights.__getitem__, reverse=True)
    points = code_points(words)
    assert len(points.symbols) < 1 << NODE_BITS
    weights = np.array([tables.log_weights[word] for word in words])
    capacity = 1 << (2 * len(points.symbols)).bit_length()  # at most half full
    entries, roots, of_node = _build(points.symbols, points.offsets, weights, capacity)
    return Trie(entries, roots, of_node, tables.unknown)
