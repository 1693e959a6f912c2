"""Quality and speed of the distortion labellers on files that you have.

    python scripts/bench/distortions.py cogdis.tsv socialcd.tsv
    python scripts/bench/distortions.py cogdis.tsv --seeds 0 1 2

For each file: F1 of the light model by 5-fold cross-validation for each seed (calibration and
thresholds chosen inside the training folds), F1 of the patterns alone, and texts per CPU second of
both on one core. The texts go nowhere but through memory.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from cbtqa.distortions.evaluate import count_f1, evaluate
from cbtqa.distortions.importers import GoldSet, read_gold
from cbtqa.distortions.linear import LinearLabeller
from cbtqa.distortions.patterns import PatternLabeller
from cbtqa.distortions.training import (
    TrainingSettings,
    cross_validate,
    train_linear,
)

N_TIMED = 20_000


def main() -> None:
    """Prints the figures of every file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="+", type=Path)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--no-rules", action="store_true", help="without rules as features")
    chosen = parser.parse_args()
    for path in chosen.data:
        gold = read_gold(path)
        print(f"\n{path.name}: {len(gold.items):,} texts, {gold.taxonomy.id}")
        for seed in chosen.seeds:
            settings = TrainingSettings(seed=seed, rules=not chosen.no_rules)
            measure_light_model(gold, settings, chosen.folds)
        measure_patterns(gold)
        time_labellers(gold)


def measure_light_model(gold: GoldSet, settings: TrainingSettings, n_folds: int) -> None:
    """One line: micro, macro and every type's F1."""
    started = time.process_time()
    outcome = cross_validate(gold.texts, gold.matrix, gold.taxonomy, settings, n_folds=n_folds)
    given, truth = outcome > 0, gold.matrix
    by_type = [count_f1(truth[:, n], given[:, n]).f1 or 0.0 for n in range(truth.shape[1])]
    figures = " ".join(f"{value:.2f}" for value in by_type)
    print(
        f"light, {n_folds} folds, seed {settings.seed}: micro F1 {count_f1(truth, given).f1:.4f}, "
        f"macro F1 {sum(by_type) / len(by_type):.4f} [{figures}] "
        f"({time.process_time() - started:.0f} CPU s)"
    )


def measure_patterns(gold: GoldSet) -> None:
    """The patterns alone, which learned nothing from the file."""
    labels = PatternLabeller(gold.taxonomy).label_many(gold.texts)
    system = evaluate(gold, {"patterns": labels}, n_errors=0).systems["patterns"]
    print(
        f"patterns: any distortion F1 {system.binary.f1:.4f} "
        f"({system.binary.low:.3f} to {system.binary.high:.3f}), "
        f"micro {system.micro.f1:.4f}, macro {system.macro_f1:.4f}"
    )


def time_labellers(gold: GoldSet) -> None:
    """Texts per CPU second, labels and evidence included."""
    texts = (gold.texts * (N_TIMED // len(gold.items) + 1))[:N_TIMED]
    length = sum(map(len, texts)) / len(texts)
    light = LinearLabeller(train_linear(gold.texts, gold.matrix, gold.taxonomy))
    patterns = PatternLabeller(gold.taxonomy)
    labellers: dict[str, Callable[[], object]] = {
        "light": lambda: light.label_many(texts),
        "patterns": lambda: patterns.label_many(texts),
    }
    for name, work in labellers.items():
        started = time.process_time()
        work()
        rate = len(texts) / (time.process_time() - started)
        print(f"{name}: {rate:,.0f} texts per CPU s (mean {length:.0f} characters)")


if __name__ == "__main__":
    main()
