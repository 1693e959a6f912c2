"""From questions to scores: build, finetune, generate, score, for the paper's backbones.

Tiny random weights in each architecture's own layout; those of 2023 lie on a Hub as
they were published, and a name is all that is given. An answer is learnt by heart, so that the scores say whether
all the parts agree on one prompt, one end of turn and one set of weights.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cbtqa.cli.main import _run
from cbtqa.tuning.loading import choose_backbone
from tests.hub.runs import edit_rows
from tests.support.hub import StandInHub
from tests.support.original_checkpoints import Kind
from tests.support.program import run_cbtqa
from tests.support.published import published
from tests.support.tiny_models import tiny_model

pytestmark = pytest.mark.slow
PUBLISHED: dict[str, Kind] = {
    "baichuan": "baichuan",
    "qwen": "qwen",
    "baichuan2": "baichuan2",
    "cbt-llm": "baichuan",
}
"""Backbones that only a conversion makes readable, with the layout that they were published in."""
IN_PARTS = "cbt-llm"
"""The one whose weights lie in several files: trained and asked, not until it knows an answer."""
NATIVE = {"llama-chinese": "llama-chinese", "alpaca-chinese": "llama2"}
"""Of each backbone by name its chat format; by their vocabulary the tiny ones are not recognised."""
LEARN = (
    *("--allow-template", "--limit", "1", "--batch-size", "1"),
    *("--learning-rate", "2e-2", "--rank", "24", "--alpha", "48", "--log-steps", "30"),
    *("--eval-steps", "1000", "--n-samples", "0"),
)
STEPS = (
    *("validation_and_empathy", "key_thought", "challenge_or_reflection"),
    *("strategy_or_insight", "encouragement_and_foresight"),
)
N_LEARNT = 40
"""Characters of the answer that is learnt: the time that it takes grows with them."""
LEARNT = ("--max-steps", "110")
ANSWER = ("--split", "train", "--limit", "1")
WHOLE = ("--max-new-tokens", "1000")
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
    edit_rows(folder, _shorten)
    return folder


def _shorten(row: dict[str, Any]) -> None:
    """The end of the answer, without the steps that it was made of."""
    row["answer"] = row["answer"][-N_LEARNT:].strip()
    row |= {name: None for name in row if name in STEPS}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandInHub]:
    """A Hub on loopback with four checkpoints as they were published, and empty caches."""
    with published(tmp_path_factory.mktemp("hub"), PUBLISHED, in_parts=(IN_PARTS,)) as server:
        yield server


def _native_llama(folder: Path, tokenizer_from: Path) -> Path:
    """A Llama checkpoint as `save_pretrained` leaves it, with a sentencepiece tokenizer."""
    vocab = json.loads((tokenizer_from / "config.json").read_text())["vocab_size"]
    sizes = {"hidden_size": 48, "num_key_value_heads": 4, "initializer_range": 0.2}
    tiny_model("llama", vocab_size=vocab, **sizes, bos_token_id=1).save_pretrained(folder)
    for path in tokenizer_from.glob("token*"):
        shutil.copy(path, folder / path.name)
    return folder


@pytest.mark.parametrize("backbone", [*(name for name in PUBLISHED if name != IN_PARTS), *NATIVE])
def test_a_backbone_learns_answers_by_its_name_alone_and_is_scored(
    backbone: str, dataset: Path, hub: StandInHub, tmp_path: Path
) -> None:
    base: str | Path = backbone
    chat: tuple[str, ...] = ()
    if backbone in NATIVE:
        copy = choose_backbone("baichuan").path
        assert copy is not None
        base, chat = _native_llama(tmp_path / backbone, copy), ("--chat-format", NATIVE[backbone])
    tuned, answers, scores = (tmp_path / name for name in ("tuned", "answers", "scores"))
    words = ("finetune", dataset, "--backbone", base, "--out", tuned, *chat, *LEARN, *LEARNT)
    if backbone == "baichuan":  # once as a user would, as processes of their own
        told = run_cbtqa(*words, cwd=tmp_path, as_process=True).stderr
        assert "converting baichuan-inc/Baichuan-7B: once" in told
    else:
        _program(*words)
    at = () if backbone in PUBLISHED else ("--base", base)
    n_downloads = sum(request.path.endswith(".bin") for request in hub.requests)
    _program("generate", dataset, "--adapter", tuned, *at, "--out", answers, *ANSWER, *WHOLE)
    assert sum(request.path.endswith(".bin") for request in hub.requests) == n_downloads
    counts = json.loads((answers / "manifest.json").read_text())["counts"]
    assert (counts["n_in"], counts["n_out"]) == (1, 1), counts
    _program("score", answers / "answers.jsonl", "--ref", dataset, "--out", scores, *SCORE)
    found = _scores(scores, answers)
    assert found["chrf2"] > 95 and found["bleu_zh"] > 95


def test_weights_in_several_files_are_converted_trained_and_asked_by_their_name(
    dataset: Path, hub: StandInHub, tmp_path: Path
) -> None:
    words = ("finetune", dataset, "--backbone", IN_PARTS, "--out", tmp_path / "tuned", *LEARN)
    _program(*words, "--max-steps", "2")
    n_downloads = sum(request.path.endswith(".bin") for request in hub.requests)
    assert n_downloads >= 2
    words = ("generate", dataset, "--adapter", tmp_path / "tuned", "--out", tmp_path / "answers")
    few = (*ANSWER, "--max-new-tokens", "8")
    assert _run(list(map(str, (*words, *few))), is_debug=True) in (0, 6)  # 6: cut off
    assert sum(request.path.endswith(".bin") for request in hub.requests) == n_downloads
    counts = json.loads((tmp_path / "answers" / "manifest.json").read_text())["counts"]
    assert counts["n_in"] == counts["n_out"] + counts["n_rejected"] == 1


def _scores(folder: Path, answers: Path) -> dict[str, float]:
    report: dict[str, Any] = json.loads((folder / "scores.json").read_text())
    anchors = {row["system"] for row in report["systems"] if row["is_anchor"]}
    return {row["metric"]: row["value"] for row in report["scores"] if row["system"] not in anchors}
