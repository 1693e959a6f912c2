"""How many edited copies of a file's questions are found as near-duplicates, and how many others.

    python scripts/bench/near_duplicates.py FILE [--column question=text] [--cosine 0.4]
        [--texts 22000] [--copies 200] [--show 30]

First the file as it is: questions that are joined, the largest cluster, and with --show the texts
that are joined, to be read: which of them are the same question is for a person to say. Then, for
each kind of copy, copies of questions drawn with seed 0 are added to the file, and those are
counted that end in the cluster of their original. --texts fills the file up with invented ones, put
together from words that follow each other in it and from words of jieba's list, each as often as it
is used, so that time, memory and chance likeness are those of a large file.
"""

from __future__ import annotations

import argparse
import random
import resource
import sys
import time
from collections import defaultdict
from itertools import accumulate
from pathlib import Path

import jieba
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from cbtqa.dataset.near_duplicates import Clusters, Texts, plain_text
from cbtqa.psyqa import SourceItem, parse_columns, read_questions
from tests.support.edited_copies import SYNONYMS, kinds


def clusters_of(texts: list[str], cosine: float) -> Clusters:
    compared = Texts()
    compared.add(map(plain_text, texts))
    return compared.clusters(cosine)


def invented(texts: list[str], n: int) -> list[str]:
    """Texts of the same lengths: words as they follow each other in the file, others in between."""
    jieba.setLogLevel("ERROR")
    jieba.initialize()
    draw, after = random.Random(0), defaultdict(list)
    for text in texts:
        words = jieba.lcut(text)
        for first, second in zip(words, words[1:], strict=False):
            after[first].append(second)
    others = [word for word, count in jieba.dt.FREQ.items() if count and len(word) < 4]
    weights = list(accumulate(jieba.dt.FREQ[word] for word in others))
    made = []
    for _ in range(n):
        length, text, word = len(draw.choice(texts)), "", ""
        while len(text) < length:
            known = after.get(word) if draw.random() < 0.7 else None
            word = draw.choice(known) if known else draw.choices(others, cum_weights=weights)[0]
            text += word
        made.append(text)
    return made


def share_of_synonyms(texts: list[str]) -> float:
    """Characters of the words that have a synonym in the table, as a share of all."""
    plain = [plain_text(text) for text in texts]
    kept = "".join(plain)
    for word in sorted(SYNONYMS, key=len, reverse=True):
        kept = kept.replace(word, "")
    return 1 - len(kept) / sum(map(len, plain))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--column", action="append", default=[])
    parser.add_argument("--cosine", type=float, default=0.4)
    parser.add_argument("--texts", type=int, default=0)
    parser.add_argument("--copies", type=int, default=200)
    parser.add_argument("--show", type=int, default=0)
    asked = parser.parse_args()
    entries = read_questions(asked.file, columns=parse_columns(tuple(asked.column)))
    texts = [e.question.source_text for e in entries if isinstance(e, SourceItem)]
    lengths = [len(plain_text(text)) for text in texts]
    print(f"{len(texts):,} questions, {np.median(lengths):.0f} characters (median)")
    texts += invented(texts, max(0, asked.texts - len(texts)))
    start = time.process_time()
    found = clusters_of(texts, asked.cosine)
    sizes = np.bincount(found.first)
    print(
        f"as they are, {len(texts):,} texts: {found.n_joined:,} joined an earlier one "
        f"({found.n_joined / len(texts):.2%}), largest cluster {found.largest:,}, pairs apart "
        f"{found.n_apart:,}; {time.process_time() - start:.1f} CPU s, peak "
        f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB"
    )
    for name in np.flatnonzero(sizes > 1)[: asked.show]:
        print("-", *(texts[k].replace("\n", " ")[:90] for k in np.flatnonzero(found.first == name)))
        print()
    n_real = len(lengths)
    chosen = random.Random(0).sample(range(n_real), min(n_real, asked.copies))
    print(
        f"words with a synonym: {share_of_synonyms([texts[k] for k in chosen]):.0%} of characters"
    )
    print(f"| copies of {len(chosen)} questions | joined | largest cluster |\n|---|---|---|")
    for kind, change in kinds("".join(map(plain_text, texts[:n_real]))).items():
        draw = random.Random(1)
        copies = [change(texts[k], draw) for k in chosen]
        first = clusters_of(texts + copies, asked.cosine).first
        is_joined = first[len(texts) :] == first[chosen]
        print(f"| {kind} | {is_joined.mean():.3f} | {np.bincount(first).max()} |", flush=True)


if __name__ == "__main__":
    main()
