#!/usr/bin/env python3
"""BERTScore against bert_score on a random model of bert-base-chinese's size: CPU and memory.

    scripts/bench/bertscore.py                    # 12 pairs for speed, 2,000 for memory
    scripts/bench/bertscore.py --pairs 24 --memory-pairs 22000

Speed: both score the same pairs of 300 to 700 characters at layer 8 of 12, twice in turns; values
must be equal. The second system of ours reuses the references' embeddings. Memory: pairs stream
through in blocks at layer 0 (embeddings of the same size, without the layers' cost), and the
resident memory after each block is printed: it must not grow with their number.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))
from cbtqa.metrics.neural.bertscore import PAIRS_PER_BLOCK, BertScorer
from cbtqa.metrics.neural.weights import NeuralSettings

CHARACTERS = [chr(code) for code in range(0x4E00, 0x4E00 + 6_000)]
BATCH = 4
"""Small, so that few pairs make several batches; in real runs hundreds of pairs make many."""


def save_model(folder: Path, n_layers: int) -> None:
    """A random BertModel with bert-base-chinese's sizes."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizer

    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "。", "，", *CHARACTERS]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    torch.manual_seed(1)
    model = BertModel(BertConfig(vocab_size=21_128, num_hidden_layers=n_layers))
    model.save_pretrained(folder)
    BertTokenizer(vocab=vocabulary, model_max_length=512).save_pretrained(folder)


def texts(n: int, seed: int) -> list[str]:
    """Random texts of 300 to 700 characters."""
    draw = random.Random(seed)
    return ["".join(draw.choices(CHARACTERS, k=draw.randint(300, 700))) for _ in range(n)]


def cpu_s() -> float:
    """CPU seconds of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def resident_mb() -> float:
    """Resident memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def speed(folder: Path, n_pairs: int) -> None:
    """CPU seconds of both, in turns."""
    from bert_score import BERTScorer

    save_model(folder, 12)
    settings = NeuralSettings(
        bertscore_model=str(folder), bertscore_layer=8, device="cpu", batch_size=BATCH
    )
    references, first, second = (texts(n_pairs, seed) for seed in (1, 2, 3))
    upstream = BERTScorer(model_type=str(folder), num_layers=8, device="cpu")
    upstream_s: list[float] = []
    ours_s: list[float] = []
    kept_s: list[float] = []
    for _ in range(2):
        begin = cpu_s()
        theirs = upstream.score(first, references, batch_size=BATCH)
        upstream_s.append(cpu_s() - begin)
        scorer = BertScorer(settings)
        _ = scorer.encoder
        begin = cpu_s()
        ours = scorer.score(first, references)
        ours_s.append(cpu_s() - begin)
        begin = cpu_s()
        scorer.score(second, references)
        kept_s.append(cpu_s() - begin)
        values = np.stack([part.numpy() for part in theirs], axis=1)
        print(f"  largest difference {np.abs(values - ours[:, :3]).max():.1e}")
    best = min(upstream_s)
    print(f"bert_score            {best / n_pairs:8.2f} CPU s a pair")
    print(f"ours                  {min(ours_s) / n_pairs:8.2f}   ratio {best / min(ours_s):.2f}")
    print(f"ours, second system   {min(kept_s) / n_pairs:8.2f}   ratio {best / min(kept_s):.2f}")


def memory(folder: Path, n_pairs: int) -> None:
    """Resident memory block by block."""
    save_model(folder, 1)
    settings = NeuralSettings(
        bertscore_model=str(folder), bertscore_layer=0, device="cpu", batch_size=BATCH
    )
    scorer = BertScorer(settings)
    _ = scorer.encoder
    print(f"model loaded          {resident_mb():8.0f} MB")
    begin = time.perf_counter()
    for first in range(0, n_pairs, PAIRS_PER_BLOCK):
        n = min(PAIRS_PER_BLOCK, n_pairs - first)
        scorer.score(texts(n, 2 * first), texts(n, 2 * first + 1))
        print(f"{first + n:8,} pairs        {resident_mb():8.0f} MB")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    whole = n_pairs * 2 * 490 * 768 * 4 / 1e6
    print(f"peak                  {peak:8.0f} MB ({time.perf_counter() - begin:.0f} s)")
    print(f"all embeddings at once would be {whole:,.0f} MB")


def main() -> None:
    """Both measurements."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--memory-pairs", type=int, default=2_000)
    given = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        if given.memory_pairs:
            memory(Path(folder) / "memory", given.memory_pairs)
        if given.pairs:
            speed(Path(folder) / "speed", given.pairs)


def quiet() -> None:
    """Without transformers' bars."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()


if __name__ == "__main__":
    quiet()
    main()
