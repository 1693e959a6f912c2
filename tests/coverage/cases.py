"""One simulated figure: what is known, how often an interval holds it or a test is wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Generator = np.random.Generator
Trial = Callable[[Generator], bool | None]
"""One simulated study: True where the interval holds the truth (coverage) or the test rejects it
(type I); None where nothing is printed."""
COVERAGE = (0.93, 0.97)
TYPE_I = (0.03, 0.07)
SEED = 1


@dataclass(frozen=True)
class Case:
    """A figure of the product under one known truth."""

    name: str
    """What is estimated, such as `rating mean, 5 raters of severity SD .4`."""
    room: str
    """The verb or module whose figure it is, such as `rate`."""
    trial: Trial
    n_trials: int
    """In the test suite; the bench runs more."""
    allowed: tuple[float, float]
    """The rate of True among the trials that print something: `COVERAGE`, `TYPE_I`, or wider with
    a reason in `note`."""
    least_printed: float = 0.5
    """Share of the trials that must print something; 0 where the right thing is to print nothing."""
    note: str = ""

    def run(self, n_trials: int | None = None) -> tuple[float, float]:
        """The rate among printed trials and the share that is printed; NaN where none is."""
        seeds = np.random.SeedSequence(SEED).spawn(n_trials or self.n_trials)
        found = [self.trial(np.random.default_rng(seed)) for seed in seeds]
        printed = [one for one in found if one is not None]
        rate = float(np.mean(printed)) if printed else float("nan")
        return rate, len(printed) / len(found)
