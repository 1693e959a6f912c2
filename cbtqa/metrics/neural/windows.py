"""Cutting a long text into windows at the ends of sentences, on its tokens.

Works on tokens, so that what a window holds is what the model would have read of the whole.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise

ENDS, CLOSERS = frozenset("。！？!?…；;\n"), frozenset("”’」』）)】》\"'")
"""What ends a sentence, and what may still follow its end."""


def sentence_ends(tokens: Sequence[str]) -> list[int]:
    """Positions between tokens at which a sentence has just ended, ascending."""
    found = []
    for position in range(1, len(tokens)):
        if _is_closer(tokens[position]) or _is_end(tokens[position]):
            continue
        last = position - 1
        while last > 0 and _is_closer(tokens[last]):
            last -= 1
        if _is_end(tokens[last]):
            found.append(position)
    return found


def _is_end(token: str) -> bool:
    return token[-1:] in ENDS


def _is_closer(token: str) -> bool:
    return bool(token) and CLOSERS.issuperset(token)


def split_evenly(tokens: Sequence[str], n_windows: int) -> list[slice]:
    """So many windows of about equal length, cut at sentence ends where one is near.

    An end is near when it lies within half a window of the even cut; without one the cut is even.
    """
    ends, n = sentence_ends(tokens), len(tokens)
    cuts = [0]
    for number in range(1, n_windows):
        even = round(number * n / n_windows)
        low = max(cuts[-1] + 1, even - n // (2 * n_windows))
        place = bisect_left(ends, even)
        near = [end for end in ends[max(0, place - 1) : place + 1] if low <= end < n]
        near = [end for end in near if abs(end - even) <= n // (2 * n_windows)]
        cuts.append(min(near, key=lambda end: abs(end - even)) if near else max(even, cuts[-1]))
    cuts.append(n)
    return [slice(start, stop) for start, stop in pairwise(cuts)]


def windows_within(tokens: Sequence[str], limit: int) -> list[slice]:
    """The fewest even windows of at most `limit` tokens each; one window when all fits."""
    n_windows = max(1, -(-len(tokens) // limit))
    while True:
        windows = split_evenly(tokens, n_windows)
        if all(window.stop - window.start <= limit for window in windows):
            return windows
        n_windows += 1
