"""Every interval and p-value of the product holds its level where the truth is known.

Each module beside this one lists `CASES`; `scripts/bench/coverage.py` runs the same and more, with
more trials, and writes the table of docs/statistics.md.
"""

from __future__ import annotations

import math

import pytest

from tests.coverage.all_cases import CASES
from tests.coverage.cases import COVERAGE, TYPE_I, Case, faults

SUITE = [case for case in CASES if case.tier == "suite"]


@pytest.mark.parametrize("case", SUITE, ids=lambda case: f"{case.room}: {case.name}")
def test_it_holds_its_level(case: Case) -> None:
    assert not faults(case, case.run())


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.room}: {case.name}")
def test_a_band_other_than_nominal_says_why_and_no_interval_may_be_as_wide_as_it_likes(
    case: Case,
) -> None:
    low, high = case.allowed
    nominal_low, nominal_high = COVERAGE if case.is_interval else TYPE_I
    if low < nominal_low or high > nominal_high:
        assert case.note
    if case.is_interval and high > nominal_high and case.least_printed:
        assert math.isfinite(case.widest), "more often right than it says: how wide is it?"


def test_every_figure_has_a_name_of_its_own() -> None:
    assert len({(case.room, case.name) for case in CASES}) == len(CASES)
