"""Tokens that the tokenizer has and the embedding has not: named before they are looked up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from cbtqa.errors import ConfigError, IncompleteRunError
from cbtqa.records import Question
from cbtqa.settings import resolve
from cbtqa.tuning.answering.chat import ChatSettings, open_speaker
from cbtqa.tuning.answering.generate import generate
from cbtqa.tuning.answering.settings import GenerateSettings
from cbtqa.tuning.settings import FinetuneSettings
from cbtqa.tuning.training.dry_run import dry_run
from cbtqa.tuning.training.finetune import finetune
from tests.support.tiny_models import write_rows, write_tiny_model

ADDED = "正念呼吸"
WORDS = f"'{ADDED}' the number .* the model's embedding has"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A model whose tokenizer got a word more than the embedding has rows."""
    folder = write_tiny_model(tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = json.loads((folder / "config.json").read_text())["vocab_size"]
    tokenizer.add_tokens([f"占位{k}" for k in range(rows - len(tokenizer))] + [ADDED])
    tokenizer.save_pretrained(folder)
    return folder


def _flags(base: Path, data: Path, out: Path, **more: Any) -> Any:
    words = {"data": data, "backbone": str(base), "out": out, "max_steps": 1, "batch_size": 4}
    words |= {"rank": 2, "n_samples": 0, "precision": "fp32"}
    return resolve(FinetuneSettings, flags=words | more)


def _rows(path: Path, question: str) -> Path:
    row = {"prompt": question, "completion": "先慢慢呼气，再想想这句话是谁说的。"}
    path.write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def test_dry_run_and_training_name_the_token_and_write_nothing(base: Path, tmp_path: Path) -> None:
    data = _rows(tmp_path / "rows.jsonl", f"{ADDED}有用吗？")
    for run in (dry_run, finetune):
        with pytest.raises(ConfigError, match=WORDS):
            run(_flags(base, data, tmp_path / "run"))
    assert not (tmp_path / "run" / "adapter_model.safetensors").exists()


def test_generate_and_chat_name_the_token(base: Path, tmp_path: Path) -> None:
    asked = _rows(tmp_path / "asked.jsonl", f"{ADDED}有用吗？")
    words = {"data": asked, "model": str(base), "out": tmp_path / "answers", "device": "cpu"}
    with pytest.raises(ConfigError, match=WORDS):
        generate(resolve(GenerateSettings, flags=words))
    speaker = open_speaker(ChatSettings(model=str(base), device="cpu"))
    with pytest.raises(ConfigError, match=WORDS):
        speaker.answer(Question(id="q", question=f"{ADDED}有用吗？"), "none")


def test_texts_without_that_token_are_trained_on_and_answered(base: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "rows.jsonl", 4)
    assert finetune(_flags(base, data, tmp_path / "run")).manifest.counts["first_loss"] > 0


def test_padding_without_a_row_is_replaced_in_training_and_answering(
    base: Path, tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.pad_token = ADDED
    tokenizer.save_pretrained(base)
    data = write_rows(tmp_path / "rows.jsonl", 6)
    result = finetune(_flags(base, data, tmp_path / "run", packing=False, batch_size=6))
    assert any(f"no row for '{ADDED}'" in note for note in result.manifest.counts["notes"])
    words = {"data": data, "model": str(base), "out": tmp_path / "answers", "device": "cpu"}
    words |= {"max_new_tokens": 4}
    with pytest.raises(IncompleteRunError, match="has an answer"):  # four tokens are none
        generate(resolve(GenerateSettings, flags=words))
    assert (tmp_path / "answers" / "rejects.jsonl").is_file()
