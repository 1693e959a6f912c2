"""The real vocabulary of the first Qwen, converted, against Qwen3's own tokenizer."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from cbtqa.files import parse_record, read_json
from cbtqa.tuning.weights.convert import RECORD_NAME, ConversionRecord, convert
from cbtqa.tuning.weights.tokenizers import probe_texts
from tests.support.original_checkpoints import SENTENCES, save_original
from tests.weights.conftest import ROOT, Figure

pytestmark = [pytest.mark.weights, pytest.mark.timeout(1800)]
N_RANKS = 151_643


def _texts() -> list[str]:
    """The probes, the bundled sample, and pieces of it mixed with odd letters."""
    rows = json.loads((ROOT / "data" / "psyqa" / "sample.json").read_text(encoding="utf-8"))
    sample = [row[name] for row in rows for name in ("question", "description") if row[name]]
    chance = random.Random(0)
    odd = [
        " ",
        "  ",
        "\n\n",
        "\r\n",
        "\t",
        "　",
        "😀",
        "👩‍👩‍👧",
        "é",
        "e\u0301",
        "１",
        "42",
        "龘",
        "don't",
    ]
    mixed = []
    for _ in range(1000):
        parts = []
        for _ in range(chance.randint(1, 6)):
            text = chance.choice(sample)
            start = chance.randrange(len(text))
            parts += [text[start : start + chance.randint(1, 15)], chance.choice(odd)]
        mixed.append("".join(parts))
    return [*probe_texts(), *SENTENCES, *sample, *mixed]


def test_the_real_qwen_vocabulary_converts_to_the_ids_of_qwen3s_own_tokenizer(
    qwen_ranks: Path, qwen3_json: Path, tmp_path: Path, figure: Figure
) -> None:
    """Qwen3 kept the vocabulary of 2023; its specials are others, so no text here holds one."""
    import tokenizers
    import transformers

    save_original(tmp_path / "source", "qwen", layers=1, form="safetensors")
    (tmp_path / "source" / "qwen.tiktoken").write_bytes(qwen_ranks.read_bytes())
    _resize(tmp_path / "source", rows=N_RANKS + 293)
    convert(tmp_path / "source", tmp_path / "out")
    facts = parse_record(
        ConversionRecord, read_json(tmp_path / "out" / RECORD_NAME), "record"
    ).tokenizer
    assert facts.n_texts_compared >= len(probe_texts())
    ours = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    theirs = tokenizers.Tokenizer.from_file(str(qwen3_json))
    texts = [text for text in _texts() if "<|" not in text]
    assert len(texts) > 1_100
    differ = [
        text
        for text in texts
        if ours(text, add_special_tokens=False)["input_ids"] != theirs.encode(text).ids
    ]
    assert not differ, differ[:3]
    figure(f"Qwen's vocabulary: of {len(texts):,} texts 0 differ from Qwen3's tokenizer.json")


def _resize(folder: Path, rows: int) -> None:
    """The tiny checkpoint with an embedding and a head of so many rows."""
    import torch
    from safetensors.torch import load_file, save_file

    config = json.loads((folder / "config.json").read_text())
    tensors = load_file(folder / "model.safetensors")
    for name in ("transformer.wte.weight", "lm_head.weight"):
        tensors[name] = torch.randn(rows, config["hidden_size"])
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": rows}))
