"""Grades a text for suicide and self-harm and for eight other dangers, and says where.

    screening = screen("我 想 自*殺,药都買好了")
    screening.risk                        # "explicit"
    screening.hits[0].rule, .text         # "act.intent", "想 自*殺"
    screen("他昨晚又掐我脖子").dangers[0].kind      # "violence"

`explicit` is a present intent, plan, preparation, farewell, attempt or ongoing self-harm of the
writer's own; `concern` is a passive wish, hopelessness, a past attempt, another person at risk,
or something ambiguous. The rules decide first; a trained model that reads every sentence may raise
a grade, never lower it. Where an encoder (`encoder.open_encoder`) is handed in, both models are
weighed together. Hits that
do not count stay in `hits` with the reason as their outcome.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from itertools import islice
from typing import Literal, NamedTuple, TypeVar, get_args

import numpy as np

from cbtqa.files import shipped_yaml
from cbtqa.records import Danger, Risk, Tabular
from cbtqa.safety.encoder import Opinion, ScreenEncoder, Tuned
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
ItemT = TypeVar("ItemT")
READ_TOGETHER = 64
"""Texts that the encoder reads at a time, sorted by length."""

THRESHOLDS: Mapping[Language, tuple[float, float]] = {"zh": (0.30, 0.50), "en": (0.18, 0.35)}
"""Probability of a sentence from which the model grades it explicit, and a concern, in a text with
Chinese characters and in one without. Chosen on blind batches that the model was not fitted on:
lower ones find hardly more of the roundabout statements, and on real questions mostly ordinary
distress. The corpus holds as many harmless contrasts as dangers, so the model is seldom sure."""
SPOKEN = 0.95, 1.0
"""The same for a turn of a session, where the rules alone find a concern. The model has learned
whole questions: of ordinary short lines, such as "I can't do it", it is too sure."""
SPOKEN_TO_BOTH = 0.97, 1.0
SPOKEN_DANGER = 0.95
"""The same for both models weighed together, which find no concern in a turn, and for the encoder's
word on another danger: of 468 ordinary turns of patients two are above."""
DANGER, DANGER_WORDED, ACUTE = 0.30, 0.04, 0.40
"""Probability of a danger from which it is told; from which where a plain wording of it matches;
and share of the acute form from which it is acute. At these, a class is found in less than 1 % of
real counselling questions."""


@dataclass(frozen=True, slots=True)
class Hit:
    """One found place, counted or not."""

    rule: str
    """`family.case` of the rule file, or `model.explicit`, `model.concern`; `encoder.` in front
    where the encoder raised the grade."""
    risk: Risk
    """What this place alone is graded; none when it does not count."""
    start: int
    end: int
    """Span in code points of the text as given."""
    text: str
    """The text as given between start and end."""
    outcome: str = "stated"
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


def screen(
    text: str,
    language: ScreenLanguage = "auto",
    *,
    model: ScreenEncoder | None = None,
    is_spoken: bool = False,
) -> Screening:
    """The grades of any text, Chinese, English or mixed.

    Args:
        model: reads the text as well; the worse grade counts. For many texts see `screen_each`.
        is_spoken: it is a turn of a session: the model's finding counts from `SPOKEN` on.
    """
    if model is None:
        return _graded(text, language, is_spoken=is_spoken)
    ((_, screening),) = screen_each([text], str, language, model, is_spoken=is_spoken)
    return screening


def screen_each(
    items: Iterable[ItemT],
    text_of: Callable[[ItemT], str],
    language: ScreenLanguage = "auto",
    model: ScreenEncoder | None = None,
    *,
    is_spoken: bool = False,
) -> Iterator[tuple[ItemT, Screening]]:
    """Every item with the grades of its text, in order; the encoder reads a batch at a time."""
    if model is None:
        for item in items:
            yield item, _graded(text_of(item), language, is_spoken=is_spoken)
        return
    waiting = iter(items)
    while some := list(islice(waiting, READ_TOGETHER)):
        texts = [text_of(item) for item in some]
        for item, text, opinion in zip(some, texts, model.read(texts), strict=True):
            second = _Second(opinion, model.tuned) if opinion.windows else None
            yield item, _graded(text, language, is_spoken=is_spoken, second=second)


def worse_of_two(own: Screening, opinion: Screening) -> Screening:
    """The worse grade of each, with the places that led to it."""
    is_worse = _RANK[opinion.risk] > _RANK[own.risk]
    dangers = {one.kind: one for one in own.dangers}
    for danger in opinion.dangers:
        known = dangers.get(danger.kind, danger)
        dangers[danger.kind] = max(known, danger, key=_gravity)
    return replace(
        own,
        risk=opinion.risk if is_worse else own.risk,
        hits=(*own.hits, *opinion.hits) if is_worse else own.hits,
        dangers=tuple(dangers.values()),
    )


def _gravity(danger: FoundDanger) -> tuple[int, float]:
    return _RANK[danger.risk], danger.probability or 0


def _likeliest(danger: FoundDanger) -> float:
    return -(danger.probability or 0)


class _Second(NamedTuple):
    """What an encoder says of a text, and how it is weighed."""

    opinion: Opinion
    tuned: Tuned


def _graded(
    text: str, language: ScreenLanguage, *, is_spoken: bool = False, second: _Second | None = None
) -> Screening:
    reading = read_text(text, language, shipped_model("screen"))
    if not reading.windows:
        return Screening("none", ())
    limits = SPOKEN if is_spoken else thresholds_of(text)
    risk, hits = _weigh(text, reading, limits)
    dangers = _dangers(text, reading, (DANGER, DANGER_WORDED, ACUTE))
    own = Screening(risk, hits, dangers, _is_minor(fold(text)))
    return own if second is None else _with_encoder(text, reading, own, second, is_spoken)


def _with_encoder(
    text: str, reading: Reading, own: Screening, second: _Second, is_spoken: bool
) -> Screening:
    """The grades where an encoder has read the text as well.

    Of suicide and self-harm both models are weighed together; what the rules decide stays, but is a
    grade lower where the models find hardly any danger. Of the others the worse grade counts.
    """
    tuned, also = second.tuned, Reading([], *second.opinion, reading.worded)
    rules, hits = decided_by_rules(text, reading)
    built_in, encoder = _sentence_scores(reading, hits), _sentence_scores(also, ())
    language = language_of(text)
    explicit, flagged = tuned.weigh([one.max() for one in (*built_in, *encoder)], language)
    limits, danger_limits = tuned.limits[language], tuned.danger_limits
    if is_spoken:
        rules, hits, limits = own.risk, own.hits, SPOKEN_TO_BOTH
        danger_limits = SPOKEN_DANGER, SPOKEN_DANGER, danger_limits[2]
    elif flagged < HARDLY:
        hits = tuple(_a_grade_lower(hit) for hit in hits)
        rules = _worst(hits)
    risk = combine(rules, explicit, flagged, limits)
    if risk != rules and risk == own.risk:
        hits = (*hits, *(hit for hit in own.hits if hit.rule.startswith("model.")))
    elif risk != rules:
        stretch = _stretch(text, also, encoder[0] if risk == "explicit" else encoder[1])
        hits = (*hits, Hit(f"encoder.{risk}", risk, *stretch))
    found = Screening("none", (), _dangers(text, also, danger_limits))
    dangers = worse_of_two(own, found).dangers
    return replace(own, risk=risk, hits=hits, dangers=tuple(sorted(dangers, key=_likeliest)))


def _a_grade_lower(hit: Hit) -> Hit:
    if hit.risk == "none":
        return hit
    return replace(hit, risk="concern" if hit.risk == "explicit" else "none", outcome="outweighed")


def _worst(hits: Iterable[Hit]) -> Risk:
    return max((hit.risk for hit in hits), key=_RANK.__getitem__, default="none")


HARDLY = 0.10
"""Probability of any danger by both models below which a rule's grade is one lower. Of 46 real
sentences that the rules grade explicit 4 are below."""
HINTED, HINTED_FLAGGED = 0.10, 0.90
"""Probability of an explicit statement, or of any danger, from which a rule that does not decide
alone counts as explicit; it is a concern below both. Few plain statements are below, many titles,
topics and idioms."""


def decided_by_rules(text: str, reading: Reading) -> tuple[Risk, tuple[Hit, ...]]:
    """The grade that the rules give a text, hints weighed by the model, and all that they found."""
    hits = []
    for case, start, end in reading.found:
        hit = Hit(case.rule, case.risk, start, end, text[start:end], case.outcome)
        if case.is_hint and hit.risk == "explicit" and _is_doubted(reading, start):
            hit = replace(hit, risk="concern", outcome="ambiguous")
        hits.append(hit)
    return _worst(hits), tuple(hits)


def _is_doubted(reading: Reading, place: int) -> bool:
    """Whether the model sees neither an explicit statement in the windows that hold a place, nor
    is sure of a danger there."""
    holds = [one.start <= place < one.end for one in reading.windows]
    scores = reading.scores[0][holds]
    explicit, flagged = scores[:, 2].max(initial=0), (1 - scores[:, 0]).max(initial=0)
    return bool(explicit < HINTED and flagged < HINTED_FLAGGED)


_ACCIDENT, _TOLD = ".accident", "told_by_others"
DESPITE_RULE = 0.9
"""Probability of an explicit statement from which the model counts in a stretch that a rule knows
as an accident ("cut myself shaving") or as what others say ("they want me dead")."""


def _weigh(
    text: str, reading: Reading, limits: tuple[float, float]
) -> tuple[Risk, tuple[Hit, ...]]:
    rules, hits = decided_by_rules(text, reading)
    explicit, flagged = _sentence_scores(reading, hits)
    risk = combine(rules, float(explicit.max()), float(flagged.max()), limits)
    if risk != rules:
        stretch = _stretch(text, reading, explicit if risk == "explicit" else flagged)
        hits = (*hits, Hit(f"model.{risk}", risk, *stretch))
    return risk, hits


def _sentence_scores(reading: Reading, by_rules: tuple[Hit, ...]) -> tuple[Floats, Floats]:
    """Probability of explicit danger in each window, and of it or a concern."""
    scores = reading.scores[0]
    flagged, explicit = 1 - scores[:, 0], scores[:, 2].copy()
    for hit in by_rules:
        is_accident = _ACCIDENT in hit.rule
        if is_accident or hit.outcome == _TOLD:
            # the words are those of harm, so the model is sure of it too soon
            is_there = [one.start <= hit.start < one.end for one in reading.windows]
            doubtful = np.array(is_there) & (explicit < DESPITE_RULE)
            explicit[doubtful] = 0
            flagged[doubtful & is_accident] = 0
    return explicit, flagged


def _stretch(text: str, reading: Reading, scores: Floats) -> tuple[int, int, str]:
    start, end = trimmed(text, reading.windows[int(np.argmax(scores))])
    return start, end, text[start:end]


def _dangers(
    text: str, reading: Reading, limits: tuple[float, float, float]
) -> tuple[FoundDanger, ...]:
    danger, danger_worded, acute = limits
    found = []
    for kind, scores in zip(DANGERS, reading.scores[1:], strict=True):
        any_grade = 1 - scores[:, 0]
        place = int(np.argmax(any_grade))
        limit = danger_worded if kind in reading.worded else danger
        if any_grade[place] >= limit:
            is_acute = scores[place, 2] >= acute * any_grade[place]
            stretch = _stretch(text, reading, any_grade)
            probability = round(float(any_grade[place]), 3)
            risk: Risk = "explicit" if is_acute else "concern"
            found.append(FoundDanger(kind, risk, *stretch, probability))
    return tuple(sorted(found, key=_likeliest))


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
