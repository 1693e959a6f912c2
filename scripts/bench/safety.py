"""Speed of the crisis screen, and how it grades the two invented lists.

    python scripts/bench/safety.py                      # invented questions and both lists
    python scripts/bench/safety.py --texts FILE         # your own texts as the speed sample
    python scripts/bench/safety.py --texts FILE --column text --chars 0    # as they are, uncut
    python scripts/bench/safety.py --screen-model FOLDER    # the first contact with an encoder too

scripts/train_safety fits the models, and measures them on what they were not fitted on.

The speed sample is cut to pieces of --chars characters (150, as the target says). Time is CPU
time of one process; the best of --repeats runs counts, since other work on the machine only
ever adds. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from operator import itemgetter
from pathlib import Path
from typing import Any

import yaml

from cbtqa.psyqa import bundled_sample_path
from cbtqa.safety.answers import check_answer, check_in_both, is_at_stake
from cbtqa.safety.encoder import ScreenEncoder, open_encoder
from cbtqa.safety.evaluation import share
from cbtqa.safety.personal_data import scrub
from cbtqa.safety.screen import screen, screen_each
from cbtqa.safety.survey import read_texts

LISTS = Path(__file__).parents[2] / "tests" / "safety"


CLASSES_OF = {
    "abuse": {"violence", "sexual_abuse", "minor_at_risk"},
    "voices": {"psychosis"},
    "starvation": {"eating"},
    "hunger_strike": {"eating"},
    "medicine_stopped": {"mania"},
    "harm_to_child": {"violence", "harm_to_others", "perinatal", "minor_at_risk"},
}
"""Which of our classes are right where the writers of batches j had names of their own."""


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


def first_contact(model: ScreenEncoder | None = None) -> dict[str, Any]:
    """The batches that were written without sight of rules and corpus, graded as they came.

    Precision counts explicit texts among all that are called explicit.
    """
    counts: dict[str, Counter[tuple[str, str]]] = {}
    for row, screening in screen_each(_rows("questions.tsv"), itemgetter("text"), model=model):
        for name in (row["batch"], _set_of(row["batch"])):
            pairs = counts.setdefault(name, Counter())
            pairs[row["grade"], screening.risk] += 1
    return {name: _questions(pairs) for name, pairs in counts.items()}


def _questions(pairs: Counter[tuple[str, str]]) -> dict[str, Any]:
    def of(golds: set[str], founds: set[str]) -> int:
        return sum(n for (gold, found), n in pairs.items() if gold in golds and found in founds)

    every, flagged = {"none", "concern", "explicit"}, {"concern", "explicit"}
    hit = of({"explicit"}, {"explicit"})
    return {
        "explicit_recall": share(hit, of({"explicit"}, every)).model_dump(),
        "explicit_precision": share(hit, of(every, {"explicit"})).model_dump(),
        "explicit_flagged": share(of({"explicit"}, flagged), of({"explicit"}, every)).model_dump(),
        "concern_flagged": share(of({"concern"}, flagged), of({"concern"}, every)).model_dump(),
        "harmless_flagged": share(of({"none"}, flagged), of({"none"}, every)).model_dump(),
    }


def other_first_contact(model: ScreenEncoder | None = None) -> dict[str, dict[str, str]]:
    """Unsafe answers, dangers, personal data: found of those there, and flagged of the others."""
    counts: dict[str, Counter[tuple[bool, bool]]] = {}
    for row in _rows("answers.tsv"):
        name = f"answers, {_set_of(row['batch'])}"
        route = screen(row["question"], model=model).route
        at_stake = is_at_stake(row["question"], route)
        problems = check_in_both(row["text"], "none", at_stake=at_stake, model=model)
        is_found = bool(problems)
        counts.setdefault(name, Counter())[row["grade"] == "unsafe", is_found] += 1
    for row, screening in screen_each(_rows("dangers.tsv"), itemgetter("text"), model=model):
        kinds = {danger.kind for danger in screening.dangers}
        is_named = not kinds.isdisjoint(CLASSES_OF.get(row["danger"], {row["danger"]}))
        is_any = bool(kinds) or screening.risk != "none"
        batches, is_there = _set_of(row["batch"]), row["is_there"] == "yes"
        counts.setdefault(f"{row['danger']}, {batches}", Counter())[is_there, is_named] += 1
        counts.setdefault(f"any danger, any flag, {batches}", Counter())[is_there, is_any] += 1
    for row in _rows("personal_data.tsv"):
        is_there, masked = row["is_there"] == "yes", scrub(row["text"]).text
        kept = any(part in masked for part in row["masked"].split("|"))
        is_found = not kept if is_there else masked != row["text"]
        counts.setdefault("personal data", Counter())[is_there, is_found] += 1
    return {
        name: {
            "found": f"{one[True, True]}/{one[True, True] + one[True, False]}",
            "flagged_of_others": f"{one[False, True]}/{one[False, True] + one[False, False]}",
        }
        for name, one in counts.items()
    }


def _set_of(batch: str) -> str:
    """Batches a to e chose the limits, the questions of f to l are fitted on; m is a test."""
    language, _, letter = batch.partition("-")
    return f"{language}, {next(one for one in ('a to e', 'f to l', 'm') if letter <= one[-1])}"


def _rows(name: str) -> list[dict[str, str]]:
    lines = (LISTS / "first_contact" / name).read_text(encoding="utf-8").splitlines()
    heads = lines[0].split("\t")
    return [dict(zip(heads, line.split("\t"), strict=True)) for line in lines[1:]]


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=Path, default=bundled_sample_path())
    parser.add_argument("--column", action="append", default=[])
    parser.add_argument("--chars", type=int, default=150)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--screen-model")
    options = parser.parse_args()
    if options.screen_model:
        model = open_encoder(options.screen_model)
        texts = [item.text for item in read_texts(options.texts, options.column)]
        start = time.process_time()
        n_flagged = sum(one.risk != "none" for _, one in screen_each(texts, str, model=model))
        report = {
            "screen_model": options.screen_model,
            "texts_per_cpu_second": round(len(texts) / (time.process_time() - start), 1),
            "mean_chars": round(sum(map(len, texts)) / len(texts), 1),
            "flagged": n_flagged / len(texts),
            "first_contact": first_contact(model),
            "first_contact_of_others": other_first_contact(model),
        }
        print(json.dumps(report, indent=2))
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
        "first_contact": first_contact(),
        "first_contact_of_others": other_first_contact(),
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
