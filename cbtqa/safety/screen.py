"""Grades a text for suicide and self-harm, and says by which rule and which span.

    screening = screen("我 想 自*殺,药都買好了")
    screening.risk                        # "explicit"
    screening.hits[0].rule, .text         # "act.intent", "想 自*殺"

`explicit` is a present intent, plan, preparation, farewell, attempt or ongoing self-harm of the
writer's own; `concern` is a passive wish, hopelessness, a past attempt, another person at risk,
or something ambiguous. Hits that do not count stay in `hits` with the reason as their outcome.
"""

from __future__ import annotations

from dataclasses import dataclass

from cbtqa.records import Risk
from cbtqa.safety.matching import find
from cbtqa.safety.normalise import Language
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
    """`stated` when it counts at face value, else why it is lowered or dropped: `negated`,
    `third_person`, `idiom`, `quotation`, `past`, `fiction`, `topic`, `hypothetical`..."""


@dataclass(frozen=True, slots=True)
class Screening:
    """The grade of a text: the highest of its hits."""

    risk: Risk
    hits: tuple[Hit, ...]


_NOTHING = Screening("none", ())


def screen(text: str, language: Language = "zh") -> Screening:
    """Grades one text; nothing in it is too odd to grade, an empty text is `none`."""
    found = find(load_rules(language), text)
    if not found:
        return _NOTHING
    hits = tuple(
        Hit(
            place.case.rule,
            place.case.risk,
            place.start,
            place.end,
            text[place.start : place.end],
            place.case.outcome,
        )
        for place in found
    )
    return Screening(max((hit.risk for hit in hits), key=_RANK.__getitem__), hits)
