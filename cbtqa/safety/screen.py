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
from cbtqa.safety.normalise import Language, fold
from cbtqa.safety.rules import load_rules
from cbtqa.safety.second_stage import CONCERN, EXPLICIT, shipped_second_stage, unit_round

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
_OPEN = frozenset({"incidental", "stated", "ambiguous", "passive"})
"""Outcomes after which the second stage may look: no rule gave a reason to lower the place."""
_WEAK = frozenset({"trip_other", "tool_other", "over", "initials"})
"""Cases that call a place idiom only because its company is missing."""


def screen(text: str, language: Language = "zh", *, second_stage: bool = True) -> Screening:
    """Grades one text; nothing in it is too odd to grade, an empty text is `none`.

    Args:
        second_stage: let the trained model look at what the rules left open (Chinese only).
    """
    folded = fold(text)
    found = find(load_rules(language), text, folded)
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
