"""From questions to scores: build, convert, finetune, generate, score, for the paper's backbones.

Tiny random weights in each architecture's own layout; Baichuan and first-generation Qwen start as
their published checkpoints look. An answer is learnt by heart, so that the scores say whether
all the parts agree on one prompt, one end of turn and one set of weights.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from cbtqa.cli.main import _run
from tests.support.original_checkpoints import save_original
from tests.support.program import run_cbtqa
from tests.support.tiny_models import tiny_model

pytestmark = pytest.mark.slow
CHAT_FORMATS = {
    "baichuan": "cbt-llm-card",
    "qwen": "chatml",
    "llama-chinese": "llama-chinese",
    "alpaca-chinese": "llama2",
}
"""Of each backbone by name; by their vocabulary the tiny ones are not recognised."""
LEARN = (
    *("--allow-template", "--limit", "1", "--batch-size", "1", "--max-steps", "110"),
    *("--learning-rate", "2e-2", "--rank", "24", "--alpha", "48", "--log-steps", "30"),
    *("--eval-steps", "1000", "--n-samples", "0"),
)
ANSWER = ("--split", "train", "--limit", "1", "--max-new-tokens", "1000")
SCORE = ("--split", "train", "--metrics", "chrf2,bleu_zh", "--bootstrap", "0")


def _program(*words: str | Path) -> None:
    assert _run(list(map(str, words)), is_debug=True) == 0


@pytest.fixture(scope="module", autouse=True)
def _torch() -> None:
    pytest.importorskip("torch")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built") / "dataset"
    _program("build-dataset", "--out", folder)
    return folder


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints as published in 2023, converted."""
    folder = tmp_path_factory.mktemp("bases")
    for kind, name in (("baichuan", "Baichuan-7B"), ("qwen", "Qwen-7B")):
        save_original(folder / name, kind)  # type: ignore[arg-type]
        config = json.loads((folder / name / "config.json").read_text())
        config |= {"max_position_embeddings": 2048}  # our text is many tokens of theirs
        config |= {"seq_length": 2048} if kind == "qwen" else {}
        (folder / name / "config.json").write_text(json.dumps(config))
        _program("convert", folder / name, "--out", folder / kind)
    return {kind: folder / kind for kind in ("baichuan", "qwen")}


def _native_llama(folder: Path, tokenizer_from: Path) -> Path:
    """A Llama checkpoint as `save_pretrained` leaves it, with a sentencepiece tokenizer."""
    vocab = json.loads((tokenizer_from / "config.json").read_text())["vocab_size"]
    sizes = {"hidden_size": 48, "num_key_value_heads": 4, "initializer_range": 0.2}
    tiny_model("llama", vocab_size=vocab, **sizes, bos_token_id=1).save_pretrained(folder)
    for path in tokenizer_from.glob("token*"):
        shutil.copy(path, folder / path.name)
    return folder


@pytest.mark.parametrize("backbone", CHAT_FORMATS)
def test_a_backbone_of_the_paper_learns_answers_and_is_scored(
    backbone: str, dataset: Path, converted: dict[str, Path], tmp_path: Path
) -> None:
    base = converted.get(backbone) or _native_llama(tmp_path / backbone, converted["baichuan"])
    chat = ("--chat-format", CHAT_FORMATS[backbone])
    tuned, answers, scores = (tmp_path / name for name in ("tuned", "answers", "scores"))
    words = ("finetune", dataset, "--backbone", base, "--out", tuned, *chat, *LEARN)
    if backbone == "baichuan":  # once as a user would, as processes of their own
        run_cbtqa(*words, cwd=tmp_path, as_process=True)
    else:
        _program(*words)
    words = ("generate", dataset, "--adapter", tuned, "--base", base, "--out", answers, *ANSWER)
    _program(*words)
    told = json.loads((answers / "manifest.json").read_text())["counts"]
    assert (told["n_in"], told["n_out"]) == (1, 1), told
    _program("score", answers / "answers.jsonl", "--ref", dataset, "--out", scores, *SCORE)
    found = _scores(scores, answers)
    assert found["chrf2"] > 95 and found["bleu_zh"] > 95


def _scores(folder: Path, answers: Path) -> dict[str, float]:
    report: dict[str, Any] = json.loads((folder / "scores.json").read_text())
    anchors = {row["system"] for row in report["systems"] if row["is_anchor"]}
    return {row["metric"]: row["value"] for row in report["scores"] if row["system"] not in anchors}
