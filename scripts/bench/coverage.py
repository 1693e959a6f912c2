"""How often the product's intervals hold the truth and its tests reject it, by simulation.

    python scripts/bench/coverage.py [--trials 2000] [--only rate]
    python scripts/bench/coverage.py --trials 0        # as many as the test suite runs

Prints the table of docs/statistics.md: cases with what the tests allow. Of N trials a rate near
.95 is known to within 1.96 * sqrt(.0475 / N): .0096 at 2,000.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.coverage.all_cases import CASES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=2_000)
    parser.add_argument("--only", default="", help="cases whose room or name holds this word")
    asked = parser.parse_args()
    print("| figure | of | rate | printed | allowed | trials | s |\n|---|---|---|---|---|---|---|")
    for case in CASES:
        if asked.only not in f"{case.room} {case.name}":
            continue
        start = time.perf_counter()
        n_trials = asked.trials or case.n_trials
        rate, printed = case.run(n_trials)
        low, high = case.allowed
        print(
            f"| {case.name} | {case.room} | {rate:.3f} | {printed:.2f} | {low:.2f}-{high:.2f} | "
            f"{n_trials} | {time.perf_counter() - start:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
