"""Predictions held out by patient: what is there is found, what is not gains nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cbtqa.statistics.importance import permutation_importance

Floats = np.ndarray[Any, Any]


def study(seed: int, by_age: float = 0.0) -> tuple[Floats, dict[str, Floats], list[str]]:
    """40 patients with three arms; the third is better, age may tell."""
    rng = np.random.default_rng(seed)
    age, noise = rng.normal(size=40), rng.normal(size=(40, 1))
    y = rng.normal(size=(40, 3)) + np.array([0, 0, 2.0]) + by_age * age[:, None] + noise
    columns = {
        "arm": np.tile(np.eye(3)[:, 1:], (40, 1)),
        "age": np.repeat(age[:, None], 3, axis=0),
        "town": np.repeat(rng.integers(0, 2, size=(40, 8)).astype(float), 3, axis=0),
    }
    return y.ravel(), columns, [f"p{i}" for i in range(40) for _ in range(3)]


def test_features_that_tell_come_first_and_the_share_is_that_of_unseen_patients() -> None:
    found = permutation_importance(*study(1, by_age=1.5))
    assert [one.name for one in found.features][:2] == ["age", "arm"]
    town = next(one for one in found.features if one.name == "town")
    assert abs(town.loss) < 0.05
    assert all(one.least <= one.loss <= one.most for one in found.features)
    # age and arm make 3.1 of the variance of 5.1
    assert 0.45 < found.r2 < 0.72
    assert (found.n, found.n_groups) == (120, 40)
    again = permutation_importance(*study(1, by_age=1.5))
    assert again == found


def test_where_only_chance_is_to_be_learnt_nothing_is_gained() -> None:
    shares = []
    for seed in range(20):
        y, columns, groups = study(seed)
        y = np.random.default_rng(seed).normal(size=len(y)) + np.repeat(
            np.random.default_rng(seed + 99).normal(size=40), 3
        )
        shares.append(permutation_importance(y, columns, groups).r2)
    assert np.mean(shares) < 0.0


def test_too_few_patients_and_an_outcome_without_variation_are_refused() -> None:
    y, columns, groups = study(2)
    few = {name: own[:27] for name, own in columns.items()}
    with pytest.raises(ValueError, match="9 groups, fewer than 10"):
        permutation_importance(y[:27], few, groups[:27])
    with pytest.raises(ValueError, match="does not vary"):
        permutation_importance(np.ones(120), columns, groups)
