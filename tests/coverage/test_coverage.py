"""Every interval and p-value of the product holds its level where the truth is known.

Each module beside this one lists `CASES`; `scripts/bench/coverage.py` runs the same with more
trials and prints the table of docs/statistics.md.
"""

from __future__ import annotations

import pytest

from tests.coverage.all_cases import CASES
from tests.coverage.cases import Case


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.room}: {case.name}")
def test_it_holds_its_level(case: Case) -> None:
    rate, printed = case.run()
    assert printed >= case.least_printed, "too often nothing is printed"
    low, high = case.allowed
    assert not printed or low <= rate <= high, case.note
