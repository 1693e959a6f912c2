"""How many texts of a file fall under each fault of `cbtqa.text_faults`, and how long it takes.

    python scripts/bench/text_faults.py answers.jsonl --column answer
    python scripts/bench/text_faults.py PsyQA_full.json --answers      # against their own questions
    python scripts/bench/text_faults.py --loops 200                    # what a tiny model loops on

Texts that people wrote should fall under none: a threshold at which more than 0.5 % do is too low.
`--loops` lets an untrained model of two layers write greedily, which soon goes in circles. Prints
one JSON object; no text is shown but with `--show`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from cbtqa.psyqa import SourceItem, read_questions
from cbtqa.safety.survey import read_texts
from cbtqa.text_faults import (
    TextFault,
    find_broken_text,
    find_empty_words,
    find_foreign_text,
    find_machine_text,
)

LEAST_PARAGRAPH = 30
"""Characters; a shorter line of a letter is no part of its own."""


def faults_of(question: str, text: str) -> list[TextFault]:
    parts = [line for line in text.splitlines() if len(line) >= LEAST_PARAGRAPH] or [text]
    found = (
        find_machine_text(text),
        find_broken_text(text),
        find_empty_words(parts, question),
        find_foreign_text(text),
    )
    return [fault for fault in found if fault]


def answers_of(path: Path) -> Iterator[tuple[str, str]]:
    for item in read_questions(path, with_answers=True):
        if isinstance(item, SourceItem):
            yield from ((item.question.source_text, answer.text) for answer in item.answers)


def loops(n: int) -> Iterator[tuple[str, str]]:
    import torch

    sys.path.insert(0, str(Path(__file__).parents[2]))
    from cbtqa.tuning.backbones import load_backbones
    from cbtqa.tuning.weights.tiny import VOCAB
    from tests.support.tiny_backbones import tiny_random_model

    torch.set_num_threads(1)
    model = tiny_random_model(load_backbones()["qwen2.5"])
    letters = [chr(0x4E00 + 7 * place) for place in range(VOCAB)]
    start = torch.randint(0, VOCAB, (n, 8), generator=torch.manual_seed(0))
    words = {"attention_mask": torch.ones_like(start), "pad_token_id": 0, "eos_token_id": None}
    made = model.generate(start, max_new_tokens=300, do_sample=False, **words)
    yield from (("", "".join(letters[token] for token in row)) for row in made[:, 8:].tolist())


def measure(pairs: Iterable[tuple[str, str]], show: bool) -> dict[str, object]:
    counts: Counter[str] = Counter()
    n, n_faulty, began = 0, 0, time.process_time()
    for question, text in pairs:
        faults = faults_of(question, text)
        n, n_faulty = n + 1, n_faulty + bool(faults)
        counts.update({fault.kind for fault in faults})
        if show:
            print(*(f"{fault.kind}: {fault.found}" for fault in faults), sep="\n", file=sys.stderr)
    seconds = time.process_time() - began
    shares = {kind: f"{count} ({count / n:.2%})" for kind, count in counts.most_common()}
    return {"n_texts": n, "n_faulty": n_faulty, "by_kind": shares, "ms_each": 1000 * seconds / n}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, nargs="?")
    parser.add_argument("--column", help="column of the texts")
    parser.add_argument("--answers", action="store_true", help="the file is PsyQA's")
    parser.add_argument("--loops", type=int, default=0, help="so many texts of a tiny model")
    parser.add_argument("--show", action="store_true", help="what was found, on stderr")
    given = parser.parse_args()
    if given.loops:
        pairs: Iterable[tuple[str, str]] = list(loops(given.loops))
    elif given.answers:
        pairs = answers_of(given.file)
    else:
        pairs = (
            ("", one.text) for one in read_texts(given.file, [given.column] if given.column else [])
        )
    print(json.dumps(measure(pairs, given.show), ensure_ascii=False, indent=2))


if __name__ == "__main__":
    main()
