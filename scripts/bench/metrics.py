"""What scoring costs, ours against jieba + sacrebleu + nltk, at identical values.

    python scripts/bench/metrics.py --pairs 2000
    python scripts/bench/metrics.py --pairs 22000 --only ours
    python scripts/bench/metrics.py --pairs 22000            # the full job; the usual chain is slow

The job: two systems, BLEU on sacrebleu's zh tokens and on jieba words, chrF2, METEOR on jieba
words, 95 % intervals, paired bootstrap (1,000) and approximate randomisation (10,000).
Texts are synthetic: words drawn from jieba's dictionary by frequency, some Latin and digits,
about 500 characters; a system shares about a third of its clauses with the reference.
Each chain runs in a process of its own, so that peak memory is its own, and on one thread, so
that a processor second is work and not waiting for another thread. Needs nltk.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import random
import resource
import sys
import time
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

CLAUSE_ENDS = ["，", "，", "，", "。", "。", "？", "！", "；"]
FOREIGN = ["20", "59.5", "OK", "GPT-4", "3,000", "100%", "T恤", "stress", "2.", "e.g."]


def make_texts(n_pairs: int, seed: int = 7) -> tuple[list[str], list[str], list[str]]:
    """References and two systems."""
    from cbtqa.metrics.text.segmentation import jieba_tables

    rng = random.Random(seed)
    counts = sorted(jieba_tables().counts.items(), key=lambda item: -item[1])[:20_000]
    words = [word for word, _ in counts]
    masses = list(accumulate(count for _, count in counts))

    def clause() -> list[str]:
        drawn = rng.choices(words, cum_weights=masses, k=rng.randrange(3, 10))
        if rng.random() < 0.05:
            drawn[rng.randrange(len(drawn))] = rng.choice(FOREIGN)
        return [*drawn, rng.choice(CLAUSE_ENDS)]

    def reference() -> list[list[str]]:
        target, parts, size = min(800, max(300, rng.gauss(500, 110))), [], 0
        while size < target:
            parts.append(clause())
            size += sum(map(len, parts[-1]))
        return parts

    def system(parts: list[list[str]], kept: float) -> str:
        out = []
        for part in parts:
            chance = rng.random()
            if chance < kept:
                out.append(part)
            elif chance < kept + 0.25:
                swapped = [
                    rng.choices(words, cum_weights=masses)[0] if rng.random() < 0.35 else w
                    for w in part[:-1]
                ]
                out.append([*swapped, part[-1]])
            else:
                out.append(clause())
        return "".join(word for part in out for word in part)

    references, first, second = [], [], []
    for _ in range(n_pairs):
        parts = reference()
        references.append("".join(word for part in parts for word in part))
        first.append(system(parts, 0.12))
        second.append(system(parts, 0.10))
    return references, first, second


def cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


class Clock:
    """CPU seconds by step."""

    def __init__(self) -> None:
        self.steps: dict[str, float] = {}
        self._last = cpu_s()

    def __call__(self, step: str) -> None:
        now = cpu_s()
        self.steps[step] = self.steps.get(step, 0.0) + now - self._last
        self._last = now


def run_ours(folder: Path) -> dict[str, object]:
    """Our chain, from texts in memory to every score, interval and p-value."""
    texts = json.loads((folder / "texts.json").read_text(encoding="utf-8"))
    clock = Clock()
    from cbtqa.metrics.comparison import CompareSettings, compare_pairs
    from cbtqa.metrics.contenders import Contender
    from cbtqa.metrics.evaluation import evaluate, scores_of
    from cbtqa.metrics.pairs import Predictions, References
    from cbtqa.metrics.registry import metrics_named
    from cbtqa.metrics.text.segmentation import jieba_tables, rust_segmenter
    from cbtqa.metrics.text.texts import Item

    rust_segmenter().cut("开始")
    jieba_tables()
    items = {name: tuple(map(Item, texts[name])) for name in texts}
    ids = tuple(map(str, range(len(items["ref"]))))
    references = References("synthetic", ids, ids, items["ref"])
    systems = [Predictions(name, items[name], {}) for name in ("a", "b")]
    metrics = metrics_named("lexical")
    clock("load")
    evaluated = evaluate(references, systems, metrics)
    clock("statistics")
    # sacrebleu's p, for the peers' is compared with it
    settings = CompareSettings(p_convention="sacrebleu")
    values = scores_of(evaluated, metrics, references, settings.resampling)
    pair = tuple(
        Contender(
            *(answers, scores, references),
            {one.metric: one for one in values if one.system == answers.system},
        )
        for answers, scores in zip(systems, evaluated, strict=True)
    )
    clock("scores and intervals")
    p = {}
    for test in ("bs", "ar"):
        chosen = settings.model_copy(update={"test": test})
        tested = compare_pairs(metrics, [pair], chosen)  # type: ignore[arg-type,list-item]
        p |= {f"{one.metric} {test}": one.p for one in tested}
        clock(f"paired {test}")
    return {
        "scores": {f"{one.system} {one.metric}": one.value for one in values},
        "p": p,
        "steps": clock.steps,
    }


def run_peers(folder: Path) -> dict[str, object]:
    """jieba, sacrebleu and nltk doing the same."""
    texts = json.loads((folder / "texts.json").read_text(encoding="utf-8"))
    clock = Clock()
    import jieba
    import numpy as np
    from nltk.translate.meteor_score import meteor_score
    from sacrebleu.metrics import BLEU, CHRF

    class NoWordNet:
        @staticmethod
        def synsets(_word: str) -> list[str]:
            return []

    jieba.setLogLevel(logging.ERROR)
    jieba.initialize()
    clock("load")
    words = {
        name: [[w for w in jieba.lcut(t) if not w.isspace()] for t in texts[name]] for name in texts
    }
    joined = {name: [" ".join(text) for text in words[name]] for name in words}
    clock("jieba")
    scores: dict[str, float] = {}
    for name in ("a", "b"):
        pairs = zip(words["ref"], words[name], strict=True)
        values = [meteor_score([r], h, wordnet=NoWordNet()) for r, h in pairs]  # type: ignore[arg-type]
        scores[f"{name} meteor_jieba"] = float(np.mean(values))
    clock("METEOR")
    p: dict[str, float] = {}
    chains = (
        ({"bleu_zh": kept(BLEU(tokenize="zh")), "chrf2": kept(CHRF())}, texts),
        ({"bleu_jieba": kept(BLEU(tokenize="none", force=True))}, joined),
    )
    for test in ("bs", "ar"):
        for metrics, sides in chains:
            for name, (first, second) in _paired(metrics, sides, test).items():
                scores |= {f"a {name}": first.score, f"b {name}": second.score}
                p[f"{name} {test}"] = second.p_value
        clock(f"BLEU, chrF{' and' if test == 'bs' else ':'} paired {test}")
    return {"scores": scores, "p": p, "steps": clock.steps}


def kept(metric: Any) -> Any:
    """The metric with its statistics kept from one test to the next, which is not sacrebleu's way.

    It spares the usual chain from computing them twice.
    """
    compute, known = metric._extract_corpus_statistics, {}

    def extract(hypotheses: list[str], references: Any) -> Any:
        if id(hypotheses) not in known:
            known[id(hypotheses)] = compute(hypotheses, references)
        return known[id(hypotheses)]

    metric._extract_corpus_statistics = extract
    return metric


def _paired(metrics: dict[str, Any], sides: dict[str, list[str]], test: str) -> Any:
    """sacrebleu's test of b against a, by our metrics' names."""
    from sacrebleu.significance import PairedTest

    systems = [("a", sides["a"]), ("b", sides["b"])]
    _, found = PairedTest(systems, metrics, [sides["ref"]], test_type=test)()
    values = [results for name, results in found.items() if name != "System"]
    return dict(zip(metrics, values, strict=True))


def _child(which: str, folder: Path) -> None:
    found = run_peers(folder) if which == "peers" else run_ours(folder)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    used = sum(found["steps"].values())  # type: ignore[attr-defined]
    (folder / f"{which}.json").write_text(json.dumps({**found, "cpu_s": used, "peak_gb": peak}))


def measure(which: str, folder: Path) -> dict[str, Any]:
    """Runs one chain in its own process and prints its steps."""
    process = multiprocessing.get_context("spawn").Process(target=_child, args=(which, folder))
    began = time.perf_counter()
    process.start()
    process.join()
    if process.exitcode:
        sys.exit(f"{which} failed")
    found: dict[str, Any] = json.loads((folder / f"{which}.json").read_text())
    print(
        f"{which}: {found['cpu_s']:.2f} CPU s, peak {found['peak_gb']:.2f} GB, "
        f"wall {time.perf_counter() - began:.1f} s"
    )
    for step, seconds in found["steps"].items():
        print(f"    {step:34s} {seconds:8.2f}", flush=True)
    return found


def main() -> None:
    """Parses the command line and runs the chains asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=2000)
    parser.add_argument("--only", choices=("ours", "peers"))
    chosen = parser.parse_args()
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    with TemporaryDirectory() as name:
        folder = Path(name)
        sides = dict(zip(("ref", "a", "b"), make_texts(chosen.pairs), strict=True))
        (folder / "texts.json").write_text(json.dumps(sides, ensure_ascii=False), encoding="utf-8")
        ours = measure("ours", folder) if chosen.only != "peers" else None
        peers = measure("peers", folder) if chosen.only != "ours" else None
    if ours and peers:
        for kind in ("scores", "p"):
            off = max(abs(ours[kind][key] - value) for key, value in peers[kind].items())
            print(f"largest difference in {kind} {off:.2e}")
        # programs and dictionaries are loaded once, however many pairs there are
        by_pair = [found["cpu_s"] - found["steps"]["load"] for found in (peers, ours)]
        print(f"ratio of CPU seconds {peers['cpu_s'] / ours['cpu_s']:.1f}", end=", ")
        print(f"without the step `load` {by_pair[0] / by_pair[1]:.1f}")


if __name__ == "__main__":
    main()
