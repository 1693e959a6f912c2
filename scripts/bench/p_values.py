"""How often the paired tests of `cbtqa compare` call two equal systems different at p <= .05.

    python scripts/bench/p_values.py [--batches 40]

Each batch is 1,000 pairs of systems that share 999 draws; the share is printed with its standard
error over batches.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np

from cbtqa.statistics.resampling import (
    Floats,
    PConvention,
    bootstrap_p,
    bootstrap_sums,
    randomisation_p,
    swapped_sums,
)

N_PAIRS, N_TRIALS = 1_000, 999
SIZES = (9, 30, 54, 100, 200, 500)
Draw = Callable[[np.random.Generator, tuple[int, int]], Floats]


def five_differ(rng: np.random.Generator, shape: tuple[int, int]) -> Floats:
    """Five 0/1 answers differ, either way; all others are the same."""
    gaps = np.zeros(shape)
    gaps[:5] = rng.choice([-1.0, 1.0], size=(5, shape[1]))
    return gaps


DIFFERENCES: dict[str, Draw] = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "uniform": lambda rng, shape: rng.uniform(-1, 1, size=shape),
    "t(3)": lambda rng, shape: rng.standard_t(3, size=shape),
    "0/1, 10 % differ": lambda rng, shape: rng.choice(
        [-1.0, 0, 1], size=shape, p=[0.05, 0.9, 0.05]
    ),
    "0/1, five differ": five_differ,
}


def share_called_different(gaps: Floats, test: str, convention: PConvention, seed: int) -> float:
    """Of the pairs, one column each."""
    nothing = np.zeros_like(gaps)
    if test == "ar":
        first, second = swapped_sums(nothing, gaps, N_TRIALS, seed)
        p_of = randomisation_p
    else:
        first, second = np.zeros((N_TRIALS, N_PAIRS)), bootstrap_sums(gaps, N_TRIALS, seed)
        p_of = bootstrap_p
    rows = zip(first.T, second.T, gaps.sum(0).tolist(), strict=True)
    return float(np.mean([p_of(one, other, gap, convention) <= 0.05 for one, other, gap in rows]))


def main() -> None:
    """Prints one row a test, convention and kind of difference."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, default=40)
    n_batches = parser.parse_args().batches
    print("| test | differences | " + " | ".join(f"n = {n}" for n in SIZES) + " |")
    conventions: tuple[PConvention, ...] = ("ties", "sacrebleu")
    for test, convention in ((test, one) for test in ("ar", "bs") for one in conventions):
        for name, draw in DIFFERENCES.items():
            cells = []
            for n_items in SIZES:
                rng = np.random.default_rng(n_items)
                shares = [
                    share_called_different(draw(rng, (n_items, N_PAIRS)), test, convention, seed)
                    for seed in range(n_batches)
                ]
                error = np.std(shares) / np.sqrt(n_batches)
                cells.append(f"{np.mean(shares):.2%} ± {error:.2%}")
            print(f"| {test} p:{convention} | {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
