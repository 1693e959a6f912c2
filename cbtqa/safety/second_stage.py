"""The trained second stage: hears roundabout intent where the rules only met everyday words.

A linear model on character n-grams, learned from the invented lists under `tests/safety` and from
the bundled invented questions (`scripts/bench/safety.py --train`). It is asked only about a
sentence in which a rule's word occurs and none of the rules' reasons (negation, another person,
fiction, news...) holds. On its own it would see intent in ordinary distress, see docs/safety.md.

    shipped_second_stage().probability("我给自己定了期限,除夕之前走,药够了")
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from operator import itemgetter
from typing import Any

import ahocorasick

from cbtqa.safety.normalise import squeeze

MODEL_NAME = "second_stage.zh.json"
LONGEST = 3
"""Characters of the longest n-gram."""
EXPLICIT, CONCERN = 0.8, 0.6
"""Probabilities from which a sentence is graded so. Lower ones were looked at too: on batches A to
D, each held out of training, they find a little more, and on real questions mostly distress."""
_SHORT = 80
"""A text up to this length is read whole; of a longer one only the sentence..."""
_REACH = 40
"""...and of that so many characters to either side."""
_WEIGHT = itemgetter(1)
_SMOOTHING = 8
_MARKS = "。！？!?\n"
_END = re.compile(f"[{_MARKS}]")


def read_grams(folded: str) -> tuple[str, float]:
    """A folded text as its n-grams are read, and the scale that its length gives each of them."""
    plain = f"^{squeeze(folded, 'zh', keep_pauses=True)}$"
    return plain, 1 / math.sqrt(len(plain) + _SMOOTHING)


def all_grams(plain: str) -> Iterator[str]:
    """Every n-gram of a text as `read_grams` gives it, as often as it occurs."""
    for n in range(1, LONGEST + 1):
        for start in range(len(plain) - n + 1):
            yield plain[start : start + n]


def unit_round(text: str, place: int) -> tuple[int, int]:
    """The stretch that is judged for a place: the whole of a short text, else its sentence."""
    if len(text) <= _SHORT:
        return 0, len(text)
    floor = max(0, place - _REACH)
    start = max(floor, *(text.rfind(mark, floor, place) + 1 for mark in _MARKS))
    found = _END.search(text, place, place + _REACH)
    return start, found.end() if found else min(len(text), place + _REACH)


class SecondStage:
    """A weight for each n-gram, and a bias.

    Args:
        weights: n-gram to weight; n-grams that are not in it weigh nothing.
    """

    def __init__(self, weights: Mapping[str, float], bias: float) -> None:
        self._automaton: Any = ahocorasick.Automaton()
        for gram, weight in weights.items():
            self._automaton.add_word(gram, weight)
        self._automaton.make_automaton()
        self._bias = bias

    def probability(self, folded: str) -> float:
        """How likely a sentence, as `normalise.fold` gives it, states the writer's own intent."""
        plain, scale = read_grams(folded)
        total = sum(map(_WEIGHT, self._automaton.iter(plain)))
        return 1 / (1 + math.exp(-max(-50.0, min(50.0, total * scale + self._bias))))


@cache
def shipped_second_stage() -> SecondStage:
    """The model of the package."""
    text = files(__package__).joinpath(MODEL_NAME).read_text(encoding="utf-8")
    entry = json.loads(text)
    return SecondStage(entry["weights"], entry["bias"])
