"""Tokens of sacrebleu's `zh` tokenizer as symbols, without rewriting the texts.

Every character that sacrebleu counts as Chinese is a token; the runs between them go through the
rules of `mteval-v13a` (punctuation split off, but `3.5`, `3,000` and `GPT-4` stay whole).
Source: sacrebleu 2.6.0, `tokenizer_zh.py` and `tokenizer_re.py`; equality is tested.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cbtqa.metrics.sequences import (
    IS_WHITESPACE,
    LAST_CODE_POINT,
    Ints,
    Sequences,
    Vocabulary,
    code_points,
)

CHINESE_RANGES = (
    (0x3400, 0x4DB5),
    (0x4E00, 0x9FBB),
    (0xF900, 0xFA2D),
    (0xFA30, 0xFA6A),
    (0xFA70, 0xFAD9),
    # sacrebleu writes Extension B with four hexadecimal digits and a stray fifth, which makes it
    # these two ranges: curly quotes, dashes, arrows are "Chinese", Extension B is not
    (0x2001, 0x2A6D),
    (0x2F81, 0x2FA1),
    (0xFF00, 0xFFEF),
    (0x2E80, 0x2EFF),
    (0x3000, 0x303F),
    (0x31C0, 0x31EF),
    (0x2F00, 0x2FDF),
    (0x2FF0, 0x2FFF),
    (0x3100, 0x312F),
    (0x31A0, 0x31BF),
    (0xFE10, 0xFE1F),
    (0xFE30, 0xFE4F),
    (0x2600, 0x26FF),
    (0x2700, 0x27BF),
    (0x3200, 0x32FF),
    (0x3300, 0x33FF),
)
RUN_RULES = (
    # punctuation stands alone, except `.`, `,`, `-` and the apostrophe; the space is in the class
    (re.compile(r"([ !\"#$%&()*+/:;<=>?@\[\\\]^_`{|}~])"), r" \1 "),
    # a point or comma stands alone unless between digits
    (re.compile(r"([^0-9])([.,])"), r"\1 \2 "),
    (re.compile(r"([.,])([^0-9])"), r" \1 \2"),
    # a hyphen after a digit stands alone
    (re.compile(r"([0-9])(-)"), r"\1 \2 "),
)
MEMO_SIZE = 1 << 16


def _is_chinese() -> NDArray[np.bool_]:
    table = np.zeros(LAST_CODE_POINT + 1, np.bool_)
    for first, last in CHINESE_RANGES:
        table[first : last + 1] = True
    return table


IS_CHINESE = _is_chinese()


class ZhTokens:
    """Turns texts into `zh` symbols; keeps the numbers of the tokens it has seen."""

    def __init__(self) -> None:
        self._runs = Vocabulary()
        self._memo: dict[str, list[int]] = {}

    def sequences(self, texts: Sequence[str], points: Sequences) -> Sequences:
        """One symbol a token: a Chinese character's code point, else a number above them all.

        Args:
            points: the texts' code points.
        """
        stripped = [text.strip() for text in texts]
        if stripped != texts:
            texts, points = stripped, code_points(stripped)
        codes, offsets = points.symbols, points.offsets
        is_chinese = IS_CHINESE[codes]
        starts, stops = _runs(~is_chinese, offsets)
        counts = (is_chinese & ~IS_WHITESPACE[codes]).astype(np.int64)
        tokens = self._run_tokens("".join(texts), starts, stops, offsets)
        run_lengths = np.array([len(run) for run in tokens], np.int64)
        counts[starts] = run_lengths
        ends = np.zeros(len(codes) + 1, np.int64)
        np.cumsum(counts, out=ends[1:])
        symbols = np.empty(int(ends[-1]), np.int64)
        single = np.flatnonzero(is_chinese & (counts == 1))
        symbols[ends[single]] = codes[single]
        flat = np.array([number for run in tokens for number in run], np.int64)
        before = np.cumsum(run_lengths) - run_lengths
        symbols[np.repeat(ends[starts] - before, run_lengths) + np.arange(len(flat))] = flat
        return Sequences(symbols, ends[offsets])

    def _run_tokens(self, joined: str, starts: Ints, stops: Ints, edges: Ints) -> list[list[int]]:
        is_edge = np.zeros(len(joined) + 1, np.bool_)
        is_edge[edges] = True
        tokens = []
        for start, stop, is_first, is_last in zip(
            starts.tolist(),
            stops.tolist(),
            is_edge[starts].tolist(),
            is_edge[stops].tolist(),
            strict=True,
        ):
            # a Chinese neighbour has spaces round it; the edge of a text has not
            run = f"{'' if is_first else ' '}{joined[start:stop]}{'' if is_last else ' '}"
            known = self._memo.get(run)
            if known is None:
                known = self._memo[run] = self._tokens(run)
                if len(self._memo) > MEMO_SIZE:
                    self._memo.clear()
            tokens.append(known)
        return tokens

    def _tokens(self, run: str) -> list[int]:
        for rule, replacement in RUN_RULES:
            run = rule.sub(replacement, run)
        return [LAST_CODE_POINT + 1 + self._runs[token] for token in run.split()]


def _runs(inside: NDArray[np.bool_], offsets: Ints) -> tuple[Ints, Ints]:
    """Starts and stops of the longest stretches of True that cross no text's edge."""
    edge = np.zeros(len(inside) + 1, np.bool_)
    edge[offsets] = True
    before = np.concatenate([[False], inside[:-1]])
    after = np.concatenate([inside[1:], [False]])
    starts = np.flatnonzero(inside & (~before | edge[:-1]))
    stops = np.flatnonzero(inside & (~after | edge[1:])) + 1
    return starts, stops
