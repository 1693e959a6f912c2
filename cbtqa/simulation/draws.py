"""Randomness that depends on names alone: never on order, machine, process or time.

draw = Draw("event", 7, "test-ines", 1, 1)
draw.share()                       # in [0, 1)
draw.pick(["a", "b", "c"], 2)      # two of them, in drawn order
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

ValueT = TypeVar("ValueT")


def seed_of(*names: object) -> int:
    """A seed in [0, 2**31), which every endpoint accepts, from names in their order."""
    return _hash_of(names) >> 33


def _hash_of(names: Sequence[object]) -> int:
    text = "\n".join(map(str, names))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


class Draw:
    """A generator seeded by names.

    Only doubles are drawn from it: PCG64's stream is fixed, while NumPy reserves the right to
    change how its other draws use the stream.
    """

    def __init__(self, *names: object) -> None:
        self._generator = np.random.Generator(np.random.PCG64(_hash_of(names)))

    def share(self) -> float:
        """Uniform in [0, 1)."""
        return float(self._generator.random())

    def number(self, low: int, high: int) -> int:
        """A whole number, both ends included."""
        return low + int(self.share() * (high - low + 1))

    def one(self, options: Sequence[ValueT]) -> ValueT:
        return options[self.number(0, len(options) - 1)]

    def pick(self, options: Sequence[ValueT], n: int) -> list[ValueT]:
        """`n` different places of the options, or all when there are fewer."""
        order = np.argsort(self._generator.random(len(options)), kind="stable")
        return [options[int(place)] for place in order[:n]]
