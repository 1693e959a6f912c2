"""Grades a text for suicide and self-harm, and says by which rule and which span.

    screening = screen("我 想 自*殺,药都買好了")
    screening.risk                        # "explicit"
    screening.hits[0].rule, .text         # "act.intent", "想 自*殺"

`explicit` is a present intent, plan, preparation, farewell, attempt or ongoing self-harm of the
writer's own; `concern` is a passive wish, hopelessness, a past attempt, another person at risk,
or something ambiguous. Hits that do not count stay in `hits` with the reason as their outcome.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from operator import itemgetter
from typing import Any

import ahocorasick

from cbtqa.records import Risk, Tabular
from cbtqa.safety.matching import find
from cbtqa.safety.normalise import Language, fold, squeeze
from cbtqa.safety.rules import load_rules

_RANK: dict[Risk, int] = {"none": 0, "concern": 1, "explicit": 2}


@dataclass(frozen=True, slots=True)
class Hit:
    """One found place, counted or not."""

    rule: str
    """`family.case` of the rule file."""
    risk: Risk
    """What this place alone is graded; none when it does not count."""
    start: int
    end: int
    """Span in code points of the text as given."""
    text: str
    """The text as given between start and end."""
    outcome: str
    """`stated` when it counts unchanged, else why it is lowered or dropped: `negated`,
    `third_person`, `idiom`, `quotation`, `past`, `fiction`, `topic`, `hypothetical`..."""


@dataclass(frozen=True, slots=True)
class Screening(Tabular):
    """The grade of a text: the highest of its hits."""

    risk: Risk
    hits: tuple[Hit, ...]


_NOTHING = Screening("none", ())
_OPEN = frozenset({"incidental", "stated", "ambiguous", "passive"})
"""Outcomes after which the second stage may look: no rule gave a reason to lower the place."""
_WEAK = frozenset({"trip_other", "tool_other", "over", "initials"})
"""Cases that call a place idiom only because its company is missing."""


def screen(text: str, language: Language = "zh", *, second_stage: bool = True) -> Screening:
    """The grade of any text; `second_stage` lets the trained model add to the rules (Chinese)."""
    folded = fold(text)
    found = find(load_rules(language), text, folded)
    if not found:
        return _NOTHING
    hits = tuple(
        Hit(case.rule, case.risk, start, end, text[start:end], case.outcome)
        for case, start, end in found
    )
    risk: Risk = max((hit.risk for hit in hits), key=_RANK.__getitem__)
    if second_stage and language == "zh" and risk != "explicit":
        further = _look_again(text, folded, hits)
        if further is not None and _RANK[further.risk] > _RANK[risk]:
            return Screening(further.risk, (*hits, further))
    return Screening(risk, hits)


def _look_again(text: str, folded: str, hits: tuple[Hit, ...]) -> Hit | None:
    """Of sentences with nothing but open hits the likeliest, if the trained model raises it."""
    is_open = {
        hit.start: hit.outcome in _OPEN or hit.rule.partition(".")[2] in _WEAK for hit in hits
    }
    if not any(is_open.values()):
        return None
    units: dict[tuple[int, int], bool] = {}
    for place, may_look in is_open.items():
        unit = unit_round(text, place)
        units[unit] = units.get(unit, True) and may_look
    judged = [
        (shipped_second_stage().probability(folded[start:end]), start, end)
        for (start, end), may_look in units.items()
        if may_look
    ]
    probability, start, end = max(judged, default=(0.0, 0, 0))
    if probability < CONCERN:
        return None
    risk: Risk = "explicit" if probability >= EXPLICIT else "concern"
    return Hit(f"second_stage.{risk}", risk, start, end, text[start:end], "stated")


# --- second stage --------------------------------------------------------------------------------
# A linear model on character n-grams, trained on invented texts (`scripts/bench/safety.py
# --train`). It only grades sentences in which a rule's word occurs and none of the rules' reasons
# (negation, another person, fiction...) holds: alone it takes ordinary distress for intent.

MODEL_NAME = "second_stage.zh.json"
LONGEST = 3
"""Characters of the longest n-gram."""
EXPLICIT, CONCERN = 0.8, 0.6
"""Probabilities from which a sentence is graded so. Lower ones find a little more on held-out
batches, and on real questions mostly distress."""
_SHORT, _REACH = 80, 40
"""A text up to `_SHORT` characters is read whole, of a longer one the sentence, at most `_REACH`
characters to either side."""
_WEIGHT = itemgetter(1)
_SMOOTHING = 8
_MARKS = "。！？!?\n"
_END = re.compile(f"[{_MARKS}]")


def read_grams(folded: str) -> tuple[str, float]:
    """The squeezed text whose n-grams count, and the scale of each by its length."""
    plain = f"^{squeeze(folded, 'zh', keep_pauses=True)}$"
    return plain, 1 / math.sqrt(len(plain) + _SMOOTHING)


def unit_round(text: str, place: int) -> tuple[int, int]:
    """The span that is graded for a place: the whole of a short text, else its sentence."""
    if len(text) <= _SHORT:
        return 0, len(text)
    floor = max(0, place - _REACH)
    start = max(floor, *(text.rfind(mark, floor, place) + 1 for mark in _MARKS))
    found = _END.search(text, place, place + _REACH)
    return start, found.end() if found else min(len(text), place + _REACH)


class SecondStage:
    """A weight for each n-gram, and a bias; other n-grams weigh nothing."""

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
    entry = json.loads(files(__package__).joinpath(MODEL_NAME).read_text(encoding="utf-8"))
    return SecondStage(entry["weights"], entry["bias"])
