"""Train, validation and test by hash of the question id.

The split of a question depends on its id, the seed and the two shares only, so adding questions
moves none. The hash gives every id a place in [0, 1): test takes [0, test), validation
[1 - validation, 1), training the rest. Changing one share never moves a question from test to
validation or back.
"""

from __future__ import annotations

import hashlib
from typing import Literal

from cbtqa.errors import ConfigError

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


def split_of(item_id: str, *, seed: int = 0, validation: float = 0.05, test: float = 0.05) -> Split:
    """The split of a question, or of a cluster of near-duplicates by the id of its first question.

    Args:
        seed: another seed, another independent division.
        validation: expected share of the ids, 0 to 1.
        test: expected share of the ids, 0 to 1; the shares may add up to 1.

    Raises:
        ConfigError: a share is outside 0 to 1, or they add up to more than 1.
    """
    if not (0 <= validation <= 1 and 0 <= test <= 1 and validation + test <= 1):
        shares = f"validation {validation}, test {test}"
        raise ConfigError(f"shares must lie in 0 to 1 and add up to at most 1: {shares}")
    place = place_of(item_id, seed=seed)
    if place < test:
        return "test"
    return "validation" if place >= 1 - validation else "train"


def place_of(item_id: str, *, seed: int = 0) -> float:
    """The place of an id in [0, 1), uniform over ids: 53 bits of BLAKE2b, exact in a float."""
    digest = hashlib.blake2b(f"{seed}\n{item_id}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / (1 << 53)
