"""Token counts without the tokenizer: characters times a rate per kind of vocabulary.

For a dry run before anything is downloaded; whoever shows the numbers says that they are rough.
"""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np

from cbtqa.files import parse_yaml
from cbtqa.tuning.encoding import Document, EncodedSet, Item, nothing_left
from cbtqa.tuning.examples import Example, ExampleSet
from cbtqa.tuning.settings import FinetuneSettings

_HAN = re.compile(r"[\u3400-\u9fff\u3000-\u303f\uff00-\uffef\U00020000-\U0003ffff]")


@cache
def _rates() -> dict[str, Any]:
    text = (files("cbtqa.tuning") / "token_rates.yaml").read_text(encoding="utf-8")
    loaded: dict[str, Any] = parse_yaml(text)
    return loaded


def approximate_tokens(text: str, vocabulary: int) -> int:
    """About how many tokens a text takes.

    Args:
        vocabulary: rows of the model's embedding.
    """
    rate: dict[str, float] = next(
        row for row in _rates()["rates"] if vocabulary >= row["vocabulary"]
    )
    n_han = len(_HAN.findall(text))
    return round(n_han * rate["han"] + (len(text) - n_han) * rate["other"])


def approximate(found: ExampleSet, vocabulary: int, settings: FinetuneSettings) -> EncodedSet:
    """Items of about the right size and no content; too long ones are left out and counted.

    Raises:
        DataError: nothing is left.
    """
    encoded = EncodedSet(found.name, dropped=found.dropped.copy(), n_in=found.n_in)
    for example in found.examples:
        item = Item(example.id, _documents(example, vocabulary))
        if max(map(len, item.documents)) > settings.max_length:
            encoded.dropped["too_long"] += 1
        else:
            encoded.items.append(item)
            encoded.examples.append(example)
    if not encoded.items:
        raise nothing_left(encoded, settings)
    return encoded


def _documents(example: Example, vocabulary: int) -> tuple[Document, ...]:
    turns = (turn["content"] for turn in example.prompt)
    n_prompt = sum(approximate_tokens(text, vocabulary) for text in turns)
    n_prompt += _rates()["prompt_extra"]
    answers = [text for text in (example.answer, example.rejected) if text is not None]
    n_answers = [
        approximate_tokens(text, vocabulary) + _rates()["answer_extra"] for text in answers
    ]
    return tuple(Document(np.zeros(n_prompt + n, np.int32), n_prompt) for n in n_answers)
