"""Grades a text for suicide and self-harm and for eight other dangers, and says where.

    screening = screen("我 想 自*殺,药都買好了")
    screening.risk                        # "explicit"
    screening.hits[0].rule, .text         # "act.intent", "想 自*殺"
    screen("他昨晚又掐我脖子").dangers[0].kind      # "violence"

`explicit` is a present intent, plan, preparation, farewell, attempt or ongoing self-harm of the
writer's own; `concern` is a passive wish, hopelessness, a past attempt, another person at risk,
or something ambiguous. The rules decide first; a trained model that reads every sentence may raise
a grade, never lower it. Hits that do not count stay in `hits` with the reason as their outcome.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal, NamedTuple, get_args

import numpy as np

from cbtqa.files import shipped_yaml
from cbtqa.records import Danger, Risk, Tabular
from cbtqa.safety.matching import Found, find
from cbtqa.safety.normalise import Language, fold, language_of
from cbtqa.safety.rules import load_rules
from cbtqa.safety.sentence_model import (
    Floats,
    SentenceModel,
    Window,
    read_windows,
    shipped_model,
    trimmed,
)

ScreenLanguage = Literal["auto", "zh", "en"]
"""Whose rules read a text: `auto` both."""
_RANK: dict[Risk, int] = {"none": 0, "concern": 1, "explicit": 2}
DANGERS: tuple[Danger, ...] = get_args(Danger)

THRESHOLDS: Mapping[Language, tuple[float, float]] = {"zh": (0.65, 0.60), "en": (0.50, 0.50)}
"""Probability of a sentence from which the model grades it explicit, and a concern, in a text with
Chinese characters and in one without. Lower ones find more of the roundabout statements, and on
real questions mostly ordinary distress."""
SPOKEN = 0.90, 0.95
"""The same for a turn of a session. The model has learned whole questions: of ordinary short lines,
such as "It began on Monday", it is too sure at lower ones."""
DANGER, DANGER_WORDED, ACUTE = 0.30, 0.04, 0.40
"""Probability of a danger from which it is told; from which where a plain wording of it matches;
and share of the acute form from which it is acute. At these, a class is found in less than 1 % of
real counselling questions."""


@dataclass(frozen=True, slots=True)
class Hit:
    """One found place, counted or not."""

    rule: str
    """`family.case` of the rule file, or `model.explicit` and `model.concern`."""
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
class FoundDanger:
    """A danger beside suicide and self-harm."""

    kind: Danger
    risk: Risk
    """`explicit` when it is acute, else `concern`."""
    start: int
    end: int
    text: str
    """The stretch that speaks of it most."""
    probability: float | None
    """None where an endpoint's model says so, which gives none."""


@dataclass(frozen=True, slots=True)
class Screening(Tabular):
    """The grades of a text."""

    risk: Risk
    """Of suicide and self-harm."""
    hits: tuple[Hit, ...]
    dangers: tuple[FoundDanger, ...] = ()
    """The likeliest first."""
    is_minor: bool = False
    """Whether the writer says to be under 18, or at a school for those who are."""

    @property
    def route(self) -> Risk:
        """The help that an answer has to name, as the `risk` of `check_answer`."""
        if "explicit" in (self.risk, *(danger.risk for danger in self.dangers)):
            return "explicit"
        return "concern" if self.risk == "concern" or self.dangers else "none"


class Reading(NamedTuple):
    """What rules and model say of a text, before they are weighed."""

    found: list[Found]
    windows: list[Window]
    scores: list[Floats]
    """A group's probabilities for each window: suicide, then the dangers in order."""
    worded: frozenset[Danger]
    """Dangers of which a plain wording stands in the text."""


def read_text(text: str, language: ScreenLanguage, model: SentenceModel) -> Reading:
    """Rules and model over a text."""
    folded = fold(text)
    found = find_rules(text, folded, language)
    worded = worded_dangers(folded)
    windows = with_worded(folded, read_windows(folded, found), worded)
    return Reading(found, windows, model.scores(windows) if windows else [], worded)


def find_rules(text: str, folded: str, language: ScreenLanguage) -> list[Found]:
    """What the rules of one or both languages find."""
    languages: tuple[Language, ...] = ("zh", "en") if language == "auto" else (language,)
    return [place for one in languages for place in find(load_rules(one), text, folded)]


def with_worded(
    folded: str, windows: list[Window], worded: frozenset[Danger] = frozenset(DANGERS)
) -> list[Window]:
    """The windows with the plain wordings of dangers among their rules.

    Args:
        worded: the dangers that are worded somewhere in the text.
    """
    if not worded:
        return windows
    return [one.with_rules(worded_dangers(folded[one.start : one.end], worded)) for one in windows]


def thresholds_of(text: str) -> tuple[float, float]:
    """From which probability a sentence is explicit, and a concern, in the language of a text."""
    return THRESHOLDS[language_of(text)]


def combine(rules: Risk, explicit: float, flagged: float, limits: tuple[float, float]) -> Risk:
    """The grade from the rules' one and the highest probabilities of a text's windows.

    Args:
        explicit: of explicit danger.
        flagged: of explicit danger or a concern.
        limits: from which a sentence is explicit, and a concern.
    """
    model: Risk = "explicit" if explicit >= limits[0] else "none"
    if model == "none" and flagged >= limits[1]:
        model = "concern"
    return max(rules, model, key=_RANK.__getitem__)


def screen(text: str, language: ScreenLanguage = "auto", *, is_spoken: bool = False) -> Screening:
    """The grades of any text, Chinese, English or mixed.

    Args:
        is_spoken: it is a turn of a session: the model's finding counts from `SPOKEN` on.
    """
    reading = read_text(text, language, shipped_model("screen"))
    if not reading.windows:
        return Screening("none", ())
    risk, hits = _weigh(text, reading, SPOKEN if is_spoken else thresholds_of(text))
    return Screening(risk, hits, _dangers(text, reading), _is_minor(fold(text)))


def _by_rules(text: str, found: list[Found]) -> tuple[Risk, tuple[Hit, ...]]:
    hits = tuple(
        Hit(case.rule, case.risk, start, end, text[start:end], case.outcome)
        for case, start, end in found
    )
    risk: Risk = max((hit.risk for hit in hits), key=_RANK.__getitem__, default="none")
    return risk, hits


def _weigh(
    text: str, reading: Reading, limits: tuple[float, float]
) -> tuple[Risk, tuple[Hit, ...]]:
    rules, by_rules = _by_rules(text, reading.found)
    hits = list(by_rules)
    scores = reading.scores[0]
    flagged, explicit = 1 - scores[:, 0], scores[:, 2]
    risk = combine(rules, float(explicit.max()), float(flagged.max()), limits)
    if risk != rules:
        stretch = _stretch(text, reading, explicit if risk == "explicit" else flagged)
        hits.append(Hit(f"model.{risk}", risk, *stretch, "stated"))
    return risk, tuple(hits)


def _stretch(text: str, reading: Reading, scores: Floats) -> tuple[int, int, str]:
    start, end = trimmed(text, reading.windows[int(np.argmax(scores))])
    return start, end, text[start:end]


def _dangers(text: str, reading: Reading) -> tuple[FoundDanger, ...]:
    found = []
    for kind, scores in zip(DANGERS, reading.scores[1:], strict=True):
        any_grade = 1 - scores[:, 0]
        place = int(np.argmax(any_grade))
        limit = DANGER_WORDED if kind in reading.worded else DANGER
        if any_grade[place] >= limit:
            is_acute = scores[place, 2] >= ACUTE * any_grade[place]
            stretch = _stretch(text, reading, any_grade)
            probability = round(float(any_grade[place]), 3)
            risk: Risk = "explicit" if is_acute else "concern"
            found.append(FoundDanger(kind, risk, *stretch, probability))
    return tuple(sorted(found, key=lambda one: -(one.probability or 0)))


def worded_dangers(folded: str, of: frozenset[Danger] = frozenset(DANGERS)) -> frozenset[Danger]:
    """Dangers of which a plain wording matches; no more than a hint."""
    words = _danger_words()
    return frozenset(kind for kind in of if words[kind].search(folded))


@cache
def _danger_words() -> dict[Danger, re.Pattern[str]]:
    entry = shipped_yaml(__package__, "rules/dangers.yaml")
    return {kind: re.compile("|".join(entry[kind])) for kind in DANGERS}


def _is_minor(folded: str) -> bool:
    return bool(_minor_words()[0].search(folded)) and not _minor_words()[1].search(folded)


@cache
def _minor_words() -> tuple[re.Pattern[str], re.Pattern[str]]:
    entry = shipped_yaml(__package__, "rules/minors.yaml")
    return re.compile("|".join(entry["minor"])), re.compile("|".join(entry["grown"]))
