"""The embedded judge: rules, no model, no network, the same ratings each time.

    RuleJudge(load_instrument("ctrs")).rate(ask)        # item -> Verdict

It counts cue words in the therapist's turns and understands nothing. Its ratings show that a study
runs; they say nothing about therapy, and every page that shows them says so.
"""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files
from typing import NamedTuple

from cbtqa.files import parse_yaml
from cbtqa.llm.chat import Fault
from cbtqa.metrics.judge.task import Verdict
from cbtqa.records import Reason
from cbtqa.simulation.instruments import Instrument
from cbtqa.simulation.judge_task import SessionAsk
from cbtqa.simulation.judged_text import is_quoted

RULES = "rules"
"""The judge's name wherever models have theirs."""
FIRST, EACH = 0.4, 0.2
"""Share of the scale for the first sentence with a cue, and for each further one that says
something else; assumed."""
_SENTENCE = re.compile(r"[^.!?\n]+[.!?]*")


class _Cues(NamedTuple):
    shared: dict[str, str]
    patterns: dict[str, re.Pattern[str]]


@cache
def _cues() -> _Cues:
    raw = parse_yaml((files(__package__) / "rule_judge.yaml").read_text(encoding="utf-8"))
    patterns = {
        item: re.compile("|".join(f"(?:{cue})" for cue in cues), re.IGNORECASE)
        for item, cues in raw["cues"].items()
    }
    return _Cues(raw["shared"], patterns)


class RuleJudge:
    """Rates one instrument by counting."""

    name = RULES

    def __init__(self, instrument: Instrument) -> None:
        self.instrument = instrument

    def rate(self, ask: SessionAsk) -> dict[str, Verdict]:
        """A verdict on every item; an item without cues is unscored, as in your own rubrics."""
        said = [turn.text.replace("’", "'") for turn in ask.turns if turn.role == "therapist"]
        return {
            item.id: self._rate(item.id, item.low, item.high, said, ask)
            for item in self.instrument.items
        }

    def _rate(self, item: str, low: int, high: int, said: list[str], ask: SessionAsk) -> Verdict:
        shared, patterns = _cues()
        pattern = patterns.get(item) or patterns.get(shared.get(item, ""))
        if pattern is None:
            return Verdict(None, Fault(Reason.BAD_RATING, f"the rules know no cues of '{item}'"))
        hits = [found for text in said if (found := _sentence_with(pattern, text))]
        hits = [hit for hit in hits if is_quoted(hit, ask.turns)]
        hits = list(dict.fromkeys(hits))  # a phrase said again and again counts once
        share = min(1.0, FIRST + EACH * (len(hits) - 1)) if hits else 0.0
        value = low + round((high - low) * share)
        return Verdict(value, evidence=hits[0] if hits else None)


def _sentence_with(pattern: re.Pattern[str], text: str) -> str | None:
    """The first sentence that shows a cue."""
    for sentence in _SENTENCE.findall(text):
        if pattern.search(sentence):
            return str(sentence).strip()
    return None
