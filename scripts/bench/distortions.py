"""Quality and speed of the distortion labellers on files that you have.

    python scripts/bench/distortions.py cogdis.tsv socialcd.tsv
    python scripts/bench/distortions.py cogdis.tsv --seeds 0 1 2
    python scripts/bench/distortions.py trained-on.tsv --test kept-apart.tsv

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
from cbtqa.records import DistortionLabel

N_TIMED = 20_000
Peer = Callable[[Any, Any, Any], Any]


def main() -> None:
    """Prints the figures of every file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="+", type=Path)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--test", type=Path, help="measure once on this file, trained on the data")
    parser.add_argument("--no-invented", action="store_true", help="without the invented texts")
    parser.add_argument("--no-rules", action="store_true", help="without rules as features")
    chosen = parser.parse_args()
    for path in chosen.data:
        gold = read_gold(path)
        print(f"\n{path.name}: {len(gold.items):,} texts, {gold.taxonomy.id}")
        kinds = {"rules": not chosen.no_rules, "invented": not chosen.no_invented}
        if chosen.test:
            measure_once(gold, read_gold(chosen.test), TrainingSettings(**kinds))
            continue
        for seed in chosen.seeds:
            settings = TrainingSettings(seed=seed, **kinds)
            measure_light_model(gold, settings, chosen.folds)
            measure_peers(gold, chosen.folds, seed)
        measure_patterns(gold)
        time_labellers(gold)


def measure_once(gold: GoldSet, test: GoldSet, settings: TrainingSettings) -> None:
    """A line for the light model and for each peer, with intervals over the test's texts."""
    model = LinearLabeller(train_linear(gold.texts, gold.matrix, gold.taxonomy, settings))
    ids, labels = gold.taxonomy.ids, {"light": model.label_many(test.texts)}
    for name, given in predict_peers(gold.texts, gold.matrix, test.texts).items():
        labels[name] = [
            tuple(DistortionLabel(id=ids[n], labeller=name) for n in np.flatnonzero(r))
            for r in given
        ]
    for name, one in evaluate(test, labels, n_errors=0).systems.items():
        print(
            f"{name}, on {len(test.items)} texts: any F1 {one.binary.f1:.4f} "
            f"({one.binary.low:.3f} to {one.binary.high:.3f}), micro {one.micro.f1:.4f} "
            f"({one.micro.low:.3f} to {one.micro.high:.3f}), macro {one.macro_f1:.4f}"
        )


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
    texts, truth = gold.texts, gold.matrix
    given = {name: np.zeros(truth.shape, bool) for name in PEERS}
    for held_out in split_folds(len(texts), n_folds, seed):
        seen = np.setdiff1d(np.arange(len(texts)), held_out)
        rest = [texts[row] for row in held_out]
        for name, labels in predict_peers([texts[row] for row in seen], truth[seen], rest).items():
            given[name][held_out] = labels
    for name, labels in given.items():
        by_type = [count_f1(truth[:, n], labels[:, n]).f1 or 0.0 for n in range(truth.shape[1])]
        micro, macro = count_f1(truth, labels).f1, sum(by_type) / len(by_type)
        print(f"{name}, {n_folds} folds, seed {seed}: micro F1 {micro:.4f}, macro F1 {macro:.4f}")


def predict_peers(texts: list[str], truth: Any, unseen: list[str]) -> dict[str, Any]:
    """Labels of unseen texts, `(texts, types)`, by each peer."""
    counted = TfidfVectorizer(analyzer="char", ngram_range=(1, 4), min_df=2, sublinear_tf=True)
    rows, others = counted.fit_transform(texts), counted.transform(unseen)
    given = {name: np.zeros((len(unseen), truth.shape[1]), bool) for name in PEERS}
    for column in np.flatnonzero(truth.any(axis=0)):
        for name, predict in PEERS.items():
            given[name][:, column] = predict(rows, truth[:, column], others)
    return given


def _fit_lr(rows: Any, y: Any) -> Any:
    return LogisticRegression(C=10, class_weight="balanced", max_iter=500).fit(rows, y)


def _predict_nb_svm(rows: Any, y: Any, unseen: Any) -> Any:
    """Logistic regression on features scaled by naive Bayes log ratios (Wang and Manning 2012)."""
    ratio = np.log((rows[y].sum(axis=0) + 1) / (rows[y].sum() + 1))
    ratio = np.asarray(ratio - np.log((rows[~y].sum(axis=0) + 1) / (rows[~y].sum() + 1)))
    return _fit_lr(rows.multiply(ratio).tocsr(), y).predict(unseen.multiply(ratio).tocsr())


PEERS: dict[str, Peer] = {
    "TF-IDF LR": lambda rows, y, unseen: _fit_lr(rows, y).predict(unseen),
    "SVM": lambda rows, y, unseen: LinearSVC(class_weight="balanced").fit(rows, y).predict(unseen),
    "NB-SVM": _predict_nb_svm,
}


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
