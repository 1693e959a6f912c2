"""Train, validation and test by hash of the question id.

The split of a question depends on its id, the seed and the two shares only, so adding questions
moves none. The hash gives every id a place in [0, 1): test takes [0, test), validation
[1 - validation, 1), training the rest. Changing one share never moves a question from test to
validation or back.

Of fewer than 200 questions such a test split may well be empty: there the shares are counted out,
in the order of the same places.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Literal

from cbtqa.errors import ConfigError

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
FEW_QUESTIONS = 200
"""Below this a share of 5 % misses by half or more in one file of seven: shares are counted out."""


def split_of(item_id: str, *, seed: int = 0, validation: float = 0.05, test: float = 0.05) -> Split:
    """The split of a question, or of a cluster of near-duplicates by the id of its first question.

    Args:
        seed: another seed, another independent division.
        validation: expected share of the ids, 0 to 1.
        test: expected share of the ids, 0 to 1; the shares may add up to 1.

    Raises:
        ConfigError: a share is outside 0 to 1, or they add up to more than 1.
    """
    _check_shares(validation, test)
    place = place_of(item_id, seed=seed)
    if place < test:
        return "test"
    return "validation" if place >= 1 - validation else "train"


def split_few(
    sizes: Mapping[str, int], *, seed: int = 0, validation: float = 0.05, test: float = 0.05
) -> dict[str, Split]:
    """The split of each of few clusters of near-duplicates, so that each split gets its share.

    Test takes the lowest places, validation the highest, as many questions as their shares give
    when rounded, and at least one; one cluster is left for training.

    Args:
        sizes: the id of each cluster's first question, and how many questions the cluster has.

    Raises:
        ConfigError: as `split_of`.
    """
    _check_shares(validation, test)
    found: dict[str, Split] = dict.fromkeys(sizes, "train")
    order = sorted(sizes, key=lambda name: (place_of(name, seed=seed), name))
    n_questions = sum(sizes.values())
    shares: tuple[tuple[Split, float, list[str]], ...] = (
        ("test", test, order),
        ("validation", validation, order[::-1]),
    )
    for split, share, names in shares:
        n_wanted = max(1, math.floor(n_questions * share + 0.5)) if share else 0
        free = [name for name in names if found[name] == "train"]
        # a cluster larger than the share is taken only where there is no smaller one
        fitting = [name for name in free if sizes[name] <= n_wanted]
        if not fitting and n_wanted:
            fitting = sorted(free, key=lambda name: sizes[name])[:1]
            n_wanted = sum(sizes[name] for name in fitting if 2 * sizes[name] <= n_questions)
        for name in fitting:
            if sizes[name] <= n_wanted and sum(one == "train" for one in found.values()) > 1:
                found[name] = split
                n_wanted -= sizes[name]
    return found


def _check_shares(validation: float, test: float) -> None:
    if not (0 <= validation <= 1 and 0 <= test <= 1 and validation + test <= 1):
        shares = f"validation {validation}, test {test}"
        raise ConfigError(f"shares must lie in 0 to 1 and add up to at most 1: {shares}")


def place_of(item_id: str, *, seed: int = 0) -> float:
    """The place of an id in [0, 1), uniform over ids: 53 bits of BLAKE2b, exact in a float."""
    digest = hashlib.blake2b(f"{seed}\n{item_id}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / (1 << 53)
