"""Quality and speed of the distortion labellers on files that you have.

    python scripts/bench/distortions.py cogdis.tsv socialcd.tsv
    python scripts/bench/distortions.py cogdis.tsv --seeds 0 1 2

For each file: F1 of the light model by 5-fold cross-validation for each seed (calibration and
thresholds chosen inside the training folds), of its peers in scikit-learn on the same folds (TF-IDF
of characters with logistic regression, a linear SVM, NB-SVM; each type for itself, as they come),
F1 of the patterns alone, and texts per CPU second of model and patterns on one core. The texts go
nowhere but through memory.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.svm import LinearSVC

from cbtqa.distortions.evaluate import count_f1, evaluate
from cbtqa.distortions.importers import GoldSet, read_gold
from cbtqa.distortions.linear import LinearLabeller
from cbtqa.distortions.patterns import PatternLabeller
from cbtqa.distortions.training import (
    TrainingSettings,
    cross_validate,
    split_folds,
    train_linear,
)

N_TIMED = 20_000
Peer = Callable[[Any, Any, Any], Any]


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
            measure_peers(gold, chosen.folds, seed)
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


def measure_peers(gold: GoldSet, n_folds: int, seed: int) -> None:
    """One line for each: what a few lines of scikit-learn get on the same folds."""
    texts, truth = np.array(gold.texts, dtype=object), gold.matrix
    peers: dict[str, Peer] = {
        "TF-IDF LR": lambda rows, y, unseen: _fit_lr(rows, y).predict(unseen),
        "SVM": lambda rows, y, unseen: (
            LinearSVC(class_weight="balanced").fit(rows, y).predict(unseen)
        ),
        "NB-SVM": _predict_nb_svm,
    }
    given = {name: np.zeros(truth.shape, bool) for name in peers}
    for held_out in split_folds(len(texts), n_folds, seed):
        seen = np.setdiff1d(np.arange(len(texts)), held_out)
        counted = TfidfVectorizer(analyzer="char", ngram_range=(1, 4), min_df=2, sublinear_tf=True)
        rows, unseen = counted.fit_transform(texts[seen]), counted.transform(texts[held_out])
        for column in np.flatnonzero(truth[seen].any(axis=0)):
            for name, predict in peers.items():
                given[name][held_out, column] = predict(rows, truth[seen, column], unseen)
    for name, labels in given.items():
        by_type = [count_f1(truth[:, n], labels[:, n]).f1 or 0.0 for n in range(truth.shape[1])]
        micro, macro = count_f1(truth, labels).f1, sum(by_type) / len(by_type)
        print(f"{name}, {n_folds} folds, seed {seed}: micro F1 {micro:.4f}, macro F1 {macro:.4f}")


def _fit_lr(rows: Any, y: Any) -> Any:
    return LogisticRegression(C=10, class_weight="balanced", max_iter=500).fit(rows, y)


def _predict_nb_svm(rows: Any, y: Any, unseen: Any) -> Any:
    """Logistic regression on features scaled by naive Bayes log ratios (Wang and Manning 2012)."""
    ratio = np.log((rows[y].sum(axis=0) + 1) / (rows[y].sum() + 1))
    ratio = np.asarray(ratio - np.log((rows[~y].sum(axis=0) + 1) / (rows[~y].sum() + 1)))
    return _fit_lr(rows.multiply(ratio).tocsr(), y).predict(unseen.multiply(ratio).tocsr())


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
