"""Sample answers at each evaluation: the same questions each time, answered and scored.

Greedy and without sampling, so that a run's samples repeat and no random state is spent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from cbtqa.metrics.score_lists import score_lists
from cbtqa.records import MetricScore, Record
from cbtqa.tuning.chat_format import ChatFormat
from cbtqa.tuning.examples import Example
from cbtqa.tuning.settings import Mode
from cbtqa.tuning.targets import read_target

METRICS = ("chrf2", "bleu_zh")


class Sample(Record):
    """One line of `samples.jsonl`."""

    step: int
    id: str
    text: str
    """What the model wrote, headings included."""
    reference: str
    finish_reason: str
    """`stop`, or `length` when it was cut at the token limit."""


def answer_samples(
    model: Any,
    chat: ChatFormat,
    examples: Sequence[Example],
    *,
    step: int,
    max_new_tokens: int,
    stops: Sequence[int],
    autocast: Any,
) -> list[Sample]:
    """Answers each example's prompt; the model's mode is put back afterwards.

    Args:
        stops: tokens any of which ends an answer.
        autocast: a context for the forward passes, as in training.
    """
    was_training = model.training
    model.eval()
    samples = []
    with torch.no_grad(), autocast:
        for example in examples:
            ids = chat.prompt_ids([example.prompt])[0]
            made = _generate(model, ids, max_new_tokens, stops, chat.tokenizer.pad_token_id)
            is_ended = bool(made) and made[-1] in stops
            text = chat.tokenizer.decode(made, skip_special_tokens=True).strip()
            samples.append(
                Sample(
                    step=step,
                    id=example.id,
                    text=text,
                    reference=example.answer,
                    finish_reason="stop" if is_ended else "length",
                )
            )
    model.train(was_training)
    return samples


def _generate(
    model: Any, ids: list[int], max_new_tokens: int, stops: Sequence[int], pad: int | None
) -> list[int]:
    from transformers import GenerationConfig

    prompt = torch.tensor([ids], device=model.device)
    config = GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=list(stops),
        pad_token_id=pad if pad is not None else stops[0],
    )
    found = model.generate(
        input_ids=prompt, attention_mask=torch.ones_like(prompt), generation_config=config
    )
    made: list[int] = found[0, len(ids) :].tolist()
    return made


def score_samples(samples: Sequence[Sample], mode: Mode) -> list[MetricScore]:
    """chrF2 and BLEU of the answers, without headings or reasoning."""
    predictions = [read_target(mode, sample.text).text for sample in samples]
    references = [read_target(mode, sample.reference).text for sample in samples]
    return [score_lists(name, predictions, references) for name in METRICS]
