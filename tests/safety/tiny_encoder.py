"""A random encoder of two layers, fitted in a second to call one invented phrase a danger."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cbtqa.safety import encoder as module
from cbtqa.safety.encoder import AnswerHead, Encoder, ScreenEncoder, Tuned, probe_of
from scripts import encoder_fit as fitting

DANGER = "纸鹤都放飞了"
"""Means nothing: rules and built-in model grade it none, the tuned encoder explicit."""
HARMLESS = ("纸鹤还在桌上", "今天下雨了", "同事都放假了", "我把桌子收好了", "风筝还在天上")
N_GROUPS = 9
WEIGHING = np.array([[1.0, 0.5, 0, 1.5, 0], [1, 0, 0.5, 0, 1.5]])
"""Both models count, the encoder more."""
OF_ANSWERS = dict.fromkeys(("zh", "en"), np.array([1.0, 0.5, 1.5]))


def save_encoder(folder: Path, seed: int = 3) -> Path:
    """A BertModel of random weights with a vocabulary of characters."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = [*marks, *sorted(set(module.PROBE + DANGER + "".join(HARMLESS) + "。，我不想"))]
    torch.manual_seed(seed)
    config = transformers.BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=40,
    )
    model = transformers.BertModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0)  # the usual start is so small that all vectors are nearly the same
    model.save_pretrained(folder)
    vocabulary = {token: place for place, token in enumerate(words)}
    transformers.BertTokenizerFast(vocab=vocabulary, model_max_length=40).save_pretrained(folder)
    return folder


def tune(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Fits on the encoder of a folder and writes what is fitted beside it; gives the losses."""
    monkeypatch.setattr(fitting, "STEP_TEXTS", 8)
    monkeypatch.setattr(fitting, "WARM_STEPS", 5)
    encoder = Encoder(str(folder))
    texts = [f"{HARMLESS[n % 5]}。{HARMLESS[n % 3]}。" for n in range(15)]
    texts += [f"{DANGER}。{one}。" for one in HARMLESS]
    texts += [f"{one}。{DANGER}。" for one in HARMLESS]
    lessons = []
    for number, text in enumerate(texts):
        sentences = text.replace("。", " ").split()
        place = sentences.index(DANGER) if DANGER in text else None
        few = range(len(sentences)) if place is None else [place]
        classes = (0 if place is None else 2, *[0] * (N_GROUPS - 1))
        lessons.append(fitting.Lesson(number, few, classes, ("tiny", str(number // 2))))
    losses: list[float] = []
    fit = fitting.Fit(encoder, texts, N_GROUPS, layers=(1, 2), n_frozen=1)
    fit.learn(lessons, 40, on_step=lambda step, of, loss: losses.append(loss))
    tuned = Tuned(
        base=encoder.name,
        limits={"zh": (0.5, 0.5), "en": (0.5, 0.5)},
        danger_limits=(0.5, 0.5, 0.5),
        weighing=dict.fromkeys(("zh", "en"), WEIGHING),
        answers=fitting.unfitted_head(len(fit.mean)),
        corpus_sha256="0" * 64,
        probe=probe_of(encoder, (1, 2)),
        **fit.fitted(),
    )
    monkeypatch.setattr(fitting, "HEAD_EPOCHS", 60)
    monkeypatch.setattr(fitting, "HEAD_STEP", 8)
    means = np.vstack(
        [one.means for one in ScreenEncoder(Encoder(str(folder)), tuned).means(texts)]
    )
    said = [one for text in texts for one in text.split("。") if one]
    head = fitting.fit_answer_head(
        tuned.deviations(means), [int(one == DANGER) for one in said], 13
    )
    answers = AnswerHead(**head, weighing=OF_ANSWERS)
    replace(tuned, answers=answers).save(folder / module.TUNED_NAME)
    return losses
