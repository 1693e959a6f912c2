"""One simulated figure: what is known, how often an interval holds it or a test is wrong."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

Generator = np.random.Generator
COVERAGE = (0.93, 0.97)
TYPE_I = (0.03, 0.07)
SEED = 1
Tier = Literal["suite", "bench"]


class Shown(NamedTuple):
    """A printed interval, and what is true."""

    value: float
    low: float
    high: float
    truth: float

    @property
    def holds(self) -> bool:
        return self.low <= self.truth <= self.high


def shown(value: float | None, low: float | None, high: float | None, truth: float) -> Shown | None:
    """None where no interval is printed."""
    if value is None or low is None or high is None:
        return None
    return Shown(value, low, high, truth)


Trial = Callable[[Generator], Shown | bool | None]
"""One simulated study: the interval, or whether the test rejects (an alarm fires) on what is equal;
None where nothing is printed."""


class Measured(NamedTuple):
    """What many trials gave."""

    rate: float
    """Share of the printed intervals that hold the truth, or of the tests that reject."""
    printed: float
    """Share of the trials that print something."""
    width: float
    """Mean width of the intervals by that of an interval which knows how much the value differs
    from one study to the next: 3.92 times the standard deviation of value less truth over the
    trials. Student's t on 3, 10 and 30 values has 1.95, 1.12 and 1.03. NaN for tests."""

    @property
    def error(self) -> float:
        """Standard error of the rate is this over the square root of the number printed."""
        return math.sqrt(max(self.rate * (1 - self.rate), 0.0))


@dataclass(frozen=True)
class Case:
    """A figure of the product under one known truth."""

    name: str
    """What is estimated, such as `rating mean, 5 raters of severity SD .4`."""
    room: str
    """The verb or module whose figure it is, such as `rate`."""
    trial: Trial
    n_trials: int
    """As many as the test suite runs."""
    allowed: tuple[float, float]
    """The rate: `COVERAGE` or `TYPE_I`, else `note` says why."""
    least_printed: float = 0.5
    """Share of the trials that must print something; 0 where the right thing is to print nothing."""
    note: str = ""
    widest: float = math.inf
    """The greatest `Measured.width`; every interval that may hold more often than `COVERAGE`
    says has one."""
    tier: Tier = "suite"
    """`bench`: run by scripts/bench/coverage.py alone."""

    @property
    def is_interval(self) -> bool:
        return self.allowed[0] > 0.5

    def run(self, n_trials: int | None = None) -> Measured:
        """NaN where nothing is printed."""
        seeds = np.random.SeedSequence(SEED).spawn(n_trials or self.n_trials)
        found = [self.trial(np.random.default_rng(seed)) for seed in seeds]
        printed = [one for one in found if one is not None]
        share = len(printed) / len(found)
        if not printed:
            return Measured(math.nan, share, math.nan)
        intervals = [one for one in printed if isinstance(one, Shown)]
        rate = float(np.mean([one.holds if isinstance(one, Shown) else one for one in printed]))
        return Measured(rate, share, _width(intervals))


def _width(intervals: list[Shown]) -> float:
    if not intervals:
        return math.nan
    off = float(np.std([one.value - one.truth for one in intervals]))
    width = float(np.mean([one.high - one.low for one in intervals]))
    return width / (2 * 1.959964 * off) if off > 0 else math.inf


def faults(case: Case, found: Measured) -> list[str]:
    """What is not as the case allows."""
    low, high = case.allowed
    said = []
    if found.printed < case.least_printed:
        said.append(f"printed in {found.printed:.2f} of the trials")
    if found.printed and not low <= found.rate <= high:
        said.append(f"rate {found.rate:.3f} outside {low}-{high}")
    if found.width > case.widest:
        said.append(f"{found.width:.2f} times as wide as need be, at most {case.widest}")
    return said
