"""Splits by hash: stable, independent, in proportion."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbtqa.errors import ConfigError
from cbtqa.splits import place_of, split_of

ids = st.text(min_size=1, max_size=30)
shares = st.tuples(st.floats(0, 0.5), st.floats(0, 0.5))


@pytest.mark.parametrize(
    ("seed", "item_id", "digest"),
    [
        # expected values: printf 'SEED\nID' | b2sum -l 64 (GNU coreutils 9)
        (0, "4394", "189382a73b8aecd0"),
        (0, "900001", "4f3455c55a421976"),
        (0, "q-0123456789abcdef", "4efbde8f57fb204f"),
        (0, "恋爱", "7fb3ed408f5c985d"),
        (7, "4394", "175afca9c7a6ad29"),
    ],
)
def test_a_place_is_the_blake2b_of_seed_and_id(seed: int, item_id: str, digest: str) -> None:
    assert place_of(item_id, seed=seed) == int(digest, 16) // 2**11 / 2**53


@given(ids, st.integers(0, 2**32))
def test_a_place_lies_in_the_half_open_unit_interval(item_id: str, seed: int) -> None:
    assert 0 <= place_of(item_id, seed=seed) < 1


@given(ids, shares)
def test_shares_of_zero_and_one_are_exact(item_id: str, pair: tuple[float, float]) -> None:
    assert split_of(item_id, validation=0, test=0) == "train"
    assert split_of(item_id, validation=0, test=1) == "test"
    assert split_of(item_id, validation=1, test=0) == "validation"
    assert split_of(item_id, validation=pair[0], test=0) != "test"
    assert split_of(item_id, validation=0, test=pair[1]) != "validation"


@given(ids, shares, st.floats(0, 0.5))
def test_another_share_never_swaps_test_and_validation(
    item_id: str, pair: tuple[float, float], other: float
) -> None:
    before = split_of(item_id, validation=pair[0], test=pair[1])
    after = split_of(item_id, validation=pair[0], test=other)
    assert {before, after} != {"test", "validation"}
    if before == "validation":
        assert after == "validation"


def test_shares_are_met_and_seeds_are_independent() -> None:
    names = [str(number) for number in range(20_000)]
    counts = Counter(split_of(name) for name in names)
    # 1,000 expected, standard deviation 31
    assert abs(counts["test"] - 1000) < 155 and abs(counts["validation"] - 1000) < 155
    in_test = {name for name in names if split_of(name) == "test"}
    both = sum(split_of(name, seed=1) == "test" for name in in_test)
    assert 10 < both < 100  # 50 expected when the seeds have nothing to do with each other


@pytest.mark.parametrize("pair", [(-0.1, 0), (0, 1.1), (0.6, 0.5), (float("nan"), 0)])
def test_impossible_shares_are_refused(pair: tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match="shares"):
        split_of("1", validation=pair[0], test=pair[1])
