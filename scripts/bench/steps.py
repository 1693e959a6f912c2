"""CBT steps in text, on replies written without sight of the step model (docs/metrics.md).

    python scripts/bench/steps.py [replies.jsonl]

Replies as in tests/golden/step_replies.jsonl (the default): `kind` and labelled `sentences`.
`shuffled` are the whole ones with their steps in random order.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import numpy as np

from cbtqa.metrics.step_model import LABELS, shipped_model
from cbtqa.metrics.structure import order_of, share_in_order
from cbtqa.records import STEP_NAMES

GOLDEN = Path(__file__).resolve().parents[2] / "tests/golden/step_replies.jsonl"


def text_of(reply: dict) -> str:
    return "".join(text for _, text in reply["sentences"])


def in_random_order(reply: dict, rng: random.Random) -> dict:
    by_step: dict[str, list] = {}
    for pair in reply["sentences"]:
        by_step.setdefault(pair[0], []).append(pair)
    names = list(by_step)
    while list(by_step) == names:
        rng.shuffle(names)
    return {"sentences": [pair for name in names for pair in by_step[name]]}


def without(reply: dict, label: str) -> dict:
    return {"sentences": [pair for pair in reply["sentences"] if pair[0] != label]}


def score(replies: list[dict]) -> tuple[float, float]:
    steps = [share_in_order(text_of(one), shipped_model()) for one in replies]
    return float(np.mean(steps)), float(np.mean([share == 1 for share in steps]))


def main() -> None:
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else GOLDEN
    replies = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    kinds: dict[str, list[dict]] = {}
    for one in replies:
        kinds.setdefault(one["kind"].partition("_")[0], []).append(one)
    whole, rng = kinds["five"], random.Random(1)
    kinds["shuffled"] = [in_random_order(one, rng) for one in whole]
    print("| kind | n | steps | complete |\n|---|---|---|---|")
    for kind, own in sorted(kinds.items(), key=lambda entry: -score(entry[1])[0]):
        steps, complete = score(own)
        print(f"| {kind} | {len(own)} | {steps:.2f} | {complete:.2f} |")
    dropped = [
        STEP_NAMES[LABELS.index(one["kind"].partition("_")[2])]
        not in order_of(text_of(one), shipped_model())[0]
        for one in kinds.get("dropped", [])
    ]
    taken = [
        name not in order_of(text_of(without(one, label)), shipped_model())[0]
        for one in whole
        for label, name in zip(LABELS, STEP_NAMES, strict=False)
    ]
    print(f"left out by the writer, found missing: {sum(dropped)} of {len(dropped)}")
    print(f"taken out of whole replies, found missing: {sum(taken)} of {len(taken)}")


if __name__ == "__main__":
    main()
