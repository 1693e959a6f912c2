"""Speed of the crisis screen, and how it grades the two invented lists.

    python scripts/bench/safety.py                      # invented questions and both lists
    python scripts/bench/safety.py --texts FILE         # your own texts as the speed sample
    python scripts/bench/safety.py --texts FILE --column text --chars 0    # as they are, uncut
    python scripts/bench/safety.py --held-out           # the second stage, one batch kept out
    python scripts/bench/safety.py --train cbtqa/safety/second_stage.zh.json

The speed sample is cut to pieces of --chars characters (150, as the target says). Time is CPU
time of one process; the best of --repeats runs counts, since other work on the machine only
ever adds. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from scipy.sparse import csr_array

from cbtqa.distortions.linear import fit_logistic
from cbtqa.distortions.patterns import split_sentences
from cbtqa.psyqa import bundled_sample_path
from cbtqa.safety import screen as screen_module
from cbtqa.safety.answers import check_answer
from cbtqa.safety.evaluation import share
from cbtqa.safety.normalise import fold
from cbtqa.safety.personal_data import scrub
from cbtqa.safety.screen import EXPLICIT, LONGEST, SecondStage, read_grams, screen
from cbtqa.safety.survey import read_texts

PARTS = ("known", "held_out")
STRENGTH = 30.0
LISTS = Path(__file__).parents[2] / "tests" / "safety"


def speed_sample(path: Path, columns: list[str], n_chars: int) -> list[str]:
    """The file's texts, joined and cut into pieces of `n_chars`; 0 leaves them as they are."""
    texts = [item.text for item in read_texts(path, columns)]
    if not n_chars:
        return texts
    joined = "\n".join(texts)
    return [joined[i : i + n_chars] for i in range(0, len(joined) - n_chars + 1, n_chars)]


def per_second(work: Any, texts: list[str], n_repeats: int, min_calls: int = 2_000) -> float:
    """Calls per CPU second, best of the repeats."""
    rounds = max(1, min_calls // len(texts))
    work(texts[0])
    best = float("inf")
    for _ in range(n_repeats):
        start = time.process_time()
        for _ in range(rounds):
            for text in texts:
                work(text)
        best = min(best, time.process_time() - start)
    return rounds * len(texts) / best


def grade_lists(part: str) -> dict[str, Any]:
    """Recall and precision for explicit intent over one part of the lists."""
    explicit, negatives = (
        yaml.safe_load((LISTS / name).read_text(encoding="utf-8"))
        for name in ("explicit.zh.yaml", "hard_negatives.zh.yaml")
    )
    parts = ("known", "held_out") if part == "all" else (part,)
    found = [screen(t).risk for entry in explicit.values() for p in parts for t in entry[p]]
    others = [
        (entry["grade"], screen(t).risk)
        for entry in negatives.values()
        for p in parts
        for t in entry[p]
    ]
    n_hit, n_false = found.count("explicit"), sum(risk == "explicit" for _, risk in others)
    n_none = sum(grade == "none" for grade, _ in others)
    n_flagged = sum(grade == "none" and risk != "none" for grade, risk in others)
    return {
        "recall": share(n_hit, len(found)).model_dump(),
        "precision": share(n_hit, n_hit + n_false).model_dump(),
        "flagged_at_all": share(len(found) - found.count("none"), len(found)).model_dump(),
        "harmless_but_flagged": share(n_flagged, n_none).model_dump(),
    }


def grade_batches() -> dict[str, Any]:
    """Recall and precision of each batch that was written without sight of the rules."""
    batches = yaml.safe_load((LISTS / "blind.zh.yaml").read_text(encoding="utf-8"))
    report = {}
    for name, batch in batches.items():
        explicit, harmless = (
            [screen(t).risk == "explicit" for texts in batch[kind].values() for t in texts]
            for kind in ("explicit", "harmless")
        )
        n_hit = sum(explicit)
        report[name] = {
            "recall": share(n_hit, len(explicit)).model_dump(),
            "precision": share(n_hit, n_hit + sum(harmless)).model_dump(),
        }
    return report


def training_texts(without: str | None) -> tuple[list[str], list[bool]]:
    """Invented texts with whether they state intent: all lists, batches but one, and sentences of
    the bundled questions that the rules grade none."""
    explicit, negatives, batches = (
        yaml.safe_load((LISTS / name).read_text(encoding="utf-8"))
        for name in ("explicit.zh.yaml", "hard_negatives.zh.yaml", "blind.zh.yaml")
    )
    pairs = [(t, True) for entry in explicit.values() for p in PARTS for t in entry[p]]
    pairs += [(t, False) for entry in negatives.values() for p in PARTS for t in entry[p]]
    for name, batch in batches.items():
        if name != without:
            pairs += [(t, True) for texts in batch["explicit"].values() for t in texts]
            pairs += [(t, False) for texts in batch["harmless"].values() for t in texts]
    for row in json.loads(bundled_sample_path().read_text(encoding="utf-8")):
        answers = [answer["answer_text"] for answer in row["answers"]]
        for text in (row["question"], row["description"], *answers):
            sentences = [span.of(text) for span in split_sentences(text)]
            pairs += [(s, False) for s in sentences if _rules(s) == "none"]
    texts, labels = zip(*dict(pairs).items(), strict=True)
    return list(texts), list(labels)


def _rules(text: str) -> str:
    return screen(text, second_stage=False).risk


def _all_grams(plain: str) -> Iterator[str]:
    """Every n-gram of a text as `read_grams` gives it, as often as it occurs."""
    for n in range(1, LONGEST + 1):
        for start in range(len(plain) - n + 1):
            yield plain[start : start + n]


def train(texts: list[str], labels: list[bool]) -> tuple[dict[str, float], float]:
    """Weights of the n-grams that stand in two texts or more, and the bias."""
    read = [read_grams(fold(text)) for text in texts]
    counts = [Counter(_all_grams(plain)) for plain, _ in read]
    spread = Counter(gram for count in counts for gram in count)
    column_of = {g: n for n, g in enumerate(sorted(g for g, k in spread.items() if k > 1))}
    columns, values, starts = [], [], []
    for count, (_, scale) in zip(counts, read, strict=True):
        starts.append(len(columns))
        for gram, times in count.items():
            if gram in column_of:
                columns.append(column_of[gram])
                values.append(times * scale)
    starts.append(len(columns))
    shape = (len(texts), len(column_of))
    rows = csr_array((np.array(values), np.array(columns), np.array(starts)), shape=shape)
    fitted = fit_logistic(rows, np.array(labels), STRENGTH)
    weights = {g: round(float(fitted.weights[n]), 2) for g, n in column_of.items()}
    return {g: weight for g, weight in weights.items() if weight}, round(fitted.bias, 3)


def held_out() -> dict[str, Any]:
    """Each batch under a second stage that was trained without it: alone, rules alone, both.

    The rules have grown on batches A to C, not on D.
    """
    report = {}
    for name, batch in yaml.safe_load((LISTS / "blind.zh.yaml").read_text("utf-8")).items():
        stage = SecondStage(*train(*training_texts(without=name)))
        explicit, harmless = (
            [t for texts in batch[kind].values() for t in texts]
            for kind in ("explicit", "harmless")
        )
        screen_module.shipped_second_stage = lambda stage=stage: stage
        graders: dict[str, Any] = {
            "rules": lambda t: _rules(t) == "explicit",
            "second_stage_alone": lambda t, s=stage: s.probability(fold(t)) >= EXPLICIT,
            "both": lambda t: screen(t).risk == "explicit",
        }
        for grader, says in graders.items():
            n_hit, n_false = sum(map(says, explicit)), sum(map(says, harmless))
            report[f"{name}, {grader}"] = {
                "recall": share(n_hit, len(explicit)).model_dump(),
                "precision": share(n_hit, n_hit + n_false).model_dump(),
            }
    return report


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=Path, default=bundled_sample_path())
    parser.add_argument("--column", action="append", default=[])
    parser.add_argument("--chars", type=int, default=150)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--train", type=Path, help="train the second stage on all lists, write it")
    parser.add_argument("--held-out", action="store_true", help="the second stage without a batch")
    options = parser.parse_args()
    if options.train:
        weights, bias = train(*training_texts(without=None))
        entry = {"bias": bias, "weights": dict(sorted(weights.items()))}
        options.train.write_text(json.dumps(entry, ensure_ascii=False, indent=0) + "\n", "utf-8")
        return
    if options.held_out:
        print(json.dumps(held_out(), indent=2))
        return
    texts = speed_sample(options.texts, options.column, options.chars)
    flagged = sum(screen(text).risk != "none" for text in texts)
    speed = {
        "screen": per_second(screen, texts, options.repeats),
        "scrub": per_second(scrub, texts, options.repeats),
        "check_answer": per_second(lambda text: check_answer(text, "none"), texts, options.repeats),
    }
    report = {
        "n_pieces": len(texts),
        "mean_chars": round(sum(map(len, texts)) / len(texts), 1),
        "share_flagged": round(flagged / len(texts), 4),
        "per_cpu_second": {name: round(value) for name, value in speed.items()},
        "lists": {part: grade_lists(part) for part in ("known", "held_out", "all")},
        "blind_batches": grade_batches(),
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
