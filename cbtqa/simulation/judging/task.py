"""What a judge is asked about one session on one instrument, and what its reply is worth.

    task = SessionJudge(load_instrument("ctrs"), Sampling(temperature=0.7, seed=0), "qwen-plus")
    ratings = [make_rating(ask, "ctrs", item, verdict, task.model)
               for ask, item, verdict in rate(run, asks, task)]

One call rates one session on one instrument: a form with two of them shows halo (paper 2:
r .875 between ACT-FM and TES from a single call). How a judge is asked, checked and asked again
is `judging.asking`'s matter; here is what is about sessions.

A value outside the scale rejects the whole reply: a judge that gives 8 of 6 had another ladder in
mind, and its 5 means something else, too.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

from cbtqa.judging.asking import JudgeTask, Verdict, is_quote_of, ratings_schema
from cbtqa.llm.chat import Fault, Sampling
from cbtqa.llm.cost import estimate_tokens
from cbtqa.prompts import fence
from cbtqa.ratings.rubric import Criterion
from cbtqa.records import ItemRating, Reason, Session, Turn
from cbtqa.simulation.instruments import Instrument
from cbtqa.simulation.sessions import transcript_text
from cbtqa.simulation.study import shipped_yaml

INSTRUMENT_KEY = "instrument"


@dataclass(frozen=True)
class SessionAsk:
    """One session to be rated once."""

    session_id: str
    """For reading back only: never sent."""
    text: str
    turns: tuple[Turn, ...]
    repeat: int
    """From 1."""

    @classmethod
    def of(cls, session: Session, repeat: int) -> SessionAsk:
        """The ask about a session, reasoning removed."""
        return cls(session.id, shown_text(session), shown_turns(session), repeat)


class SessionJudge(JudgeTask[SessionAsk]):
    """Rates one session on one instrument, in English."""

    task, form = "judge_session", "instrument"

    def __init__(
        self,
        instrument: Instrument,
        sampling: Sampling,
        model: str,
        *,
        host: str = "",
        prompt: str = "judge_session",
    ) -> None:
        super().__init__(instrument.rubric, instrument.id, sampling, model, host, prompt)

    def key(self, ask: SessionAsk) -> str:
        """Text and repeat: two arms with the same session share their ratings."""
        digest = hashlib.blake2b(ask.text.encode("utf-8", "surrogatepass"), digest_size=16)
        return f"{digest.hexdigest()}:{ask.repeat}"

    def turn(self, ask: SessionAsk) -> tuple[int, int]:
        """Each repeat begins a third of the form further on."""
        n_before = ask.repeat - 1
        return n_before, n_before * max(1, len(self.criteria) // 3)

    def holes(self, ask: SessionAsk, criteria: Sequence[Criterion]) -> dict[str, str]:
        """Form and transcript."""
        entry = (
            '{"evidence": "words of one turn", "reason": "one sentence", "rating": number or null}'
        )
        items = ", ".join(f'"{one.id}": {entry}' for one in criteria)
        return {
            "instrument": self.form_id,
            "title": self.rubric.title.to("en"),
            "guidelines": self.rubric.guidelines.to("en").strip(),
            "items": "\n".join(map(_described, criteria)),
            "shape": f'{{"{INSTRUMENT_KEY}": "{self.form_id}", {items}}}',
            "transcript": fence(ask.text),
        }

    def schema(self, criteria: Sequence[Criterion]) -> dict[str, Any]:
        """The instrument's name before its items."""
        schema = ratings_schema(criteria)
        named = {INSTRUMENT_KEY: {"type": "string", "enum": [self.form_id]}}
        return {
            **schema,
            "properties": {**named, **schema["properties"]},
            "required": [INSTRUMENT_KEY, *schema["required"]],
        }

    def fault_of_form(self, found: Mapping[str, Any]) -> Fault | None:
        """What tells that the reply is about another form or on another ladder."""
        named = found.get(INSTRUMENT_KEY)
        if isinstance(named, str) and named.strip().lower() != self.form_id:
            return Fault(Reason.BAD_RATING, f"another instrument: '{named[:40]}'")
        known = {criterion.id: criterion for criterion in self.criteria}
        for name, entry in found.items():
            if not isinstance(entry, Mapping) or "rating" not in entry:
                continue
            if name not in known:
                return Fault(Reason.BAD_RATING, f"another instrument: '{name[:40]}' is no item")
            value, low, high = entry["rating"], known[name].low, known[name].high
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if is_number and not low <= value <= high:
                detail = f"out of range: '{name}' {value:g}, not {low} to {high}"
                return Fault(Reason.BAD_RATING, detail)
        return None

    def rests_on(self, ask: SessionAsk, criterion: Criterion, value: int, evidence: str) -> bool:
        """Words of one turn; the lowest point may rest on nothing, for nothing can be quoted."""
        return (not evidence and value == criterion.low) or is_quoted(evidence, ask.turns)


def _described(criterion: Criterion) -> str:
    points = sorted(criterion.anchors.items())
    anchors = "; ".join(f"{point} = {words.to('en')}" for point, words in points)
    scale = f"{criterion.low} to {criterion.high}"
    name, question = criterion.name.to("en"), criterion.question.to("en")
    return f"- {criterion.id} ({name}), {scale}: {question} [{anchors}]"


def make_rating(
    ask: SessionAsk, instrument: str, item: str, verdict: Verdict, judge: str
) -> ItemRating:
    """The record of one verdict; a fault becomes `reason: detail`."""
    return ItemRating(
        session_id=ask.session_id,
        instrument=instrument,
        item=item,
        value=verdict.value,
        unscored_reason=verdict.reason(in_full=True),
        evidence=verdict.evidence,
        judge=judge,
        repeat=ask.repeat,
    )


def unfit_ratings(
    session: Session, instrument: Instrument, reason: str, judge: str, n_repeats: int
) -> Iterator[ItemRating]:
    """Every item of a session that was not sent, with the reason."""
    for repeat in range(1, n_repeats + 1):
        for item in instrument.items:
            yield ItemRating(
                session_id=session.id,
                instrument=instrument.id,
                item=item.id,
                value=None,
                unscored_reason=reason,
                judge=judge,
                repeat=repeat,
            )


# --- judged text ---------------------------------------------------------------------------------
# What a judge reads of a session, whether it can be judged at all, and whether a quote is one.
#
# shown = shown_turns(session) # reasoning removed unfit_reason(session, limits) # `one_speaker:
# ...`, or None is_quoted("let us set an agenda", shown) # True when one turn says so

FEWEST_WORDS = 3
"""A quote of fewer words stands in nearly every session; a shorter turn may be quoted whole."""
_THOUGHT = re.compile(r"<(think|thinking|reasoning)>.*?(</\1>|\Z)", re.DOTALL | re.IGNORECASE)
_LABEL = re.compile(r"^\W*(?:therapist|patient|client)\s*:\s*", re.IGNORECASE)
_GAP = re.compile(r"\s*(?:\[?(?:\.\.\.|…)\]?)\s*")


@dataclass(frozen=True)
class JudgeLimits:
    """What a judge is still given to read."""

    max_turns: int = 250
    """Utterances of both sides; the longest published simulations have some 120."""
    max_tokens: int = 24_000
    """Estimated tokens of the transcript."""


def shown_turns(session: Session) -> tuple[Turn, ...]:
    """The turns as judges and raters see them; a turn of nothing but reasoning is left out."""
    turns = ((turn, _THOUGHT.sub("", turn.text).strip()) for turn in session.turns)
    return tuple(Turn(role=turn.role, text=text) for turn, text in turns if text)


def shown_text(session: Session) -> str:
    """The transcript, a line a turn, without reasoning and without a word on the arm."""
    return transcript_text(shown_turns(session))


def unfit_reason(session: Session, limits: JudgeLimits) -> str | None:
    """Why a session is not sent to a judge, or None when it is."""
    turns = shown_turns(session)
    roles = {turn.role for turn in turns}
    if not turns:
        return "no_turns: nobody speaks"
    if len(roles) == 1:
        return f"one_speaker: only the {roles.pop()} speaks"
    if len(turns) > limits.max_turns:
        return f"too_many_turns: {len(turns)}, the limit is {limits.max_turns}"
    n_tokens = estimate_tokens(shown_text(session))
    if n_tokens > limits.max_tokens:
        return f"over_context: about {n_tokens} tokens, the limit is {limits.max_tokens}"
    return None


def is_quoted(evidence: str, turns: tuple[Turn, ...]) -> bool:
    """True when the words are quoted from one turn.

    Case, widths, punctuation and a speaker's label before them do not count, and parts may be left
    out where the quote says so with an ellipsis: models do all that when they quote.
    """
    parts = [part for part in _GAP.split(_LABEL.sub("", evidence)) if part.strip()]
    n_words = sum(len(re.findall(r"\w+", part)) for part in parts)
    return any(
        all(is_quote_of(part, turn.text) for part in parts)
        and (n_words >= min(FEWEST_WORDS, len(re.findall(r"\w+", turn.text))) or _is_unspaced(turn))
        for turn in turns
        if parts
    )


def _is_unspaced(turn: Turn) -> bool:
    """True for text in a script without blanks, where words cannot be counted."""
    return any("\u4e00" <= letter <= "\u9fff" for letter in turn.text)


# --- rule judge ----------------------------------------------------------------------------------
# The embedded judge: rules, no model, no network, the same ratings each time.
#
#     RuleJudge(load_instrument("ctrs")).rate(ask)        # item -> Verdict
#
# It counts cue words in the therapist's turns and understands nothing. Its ratings show that a
# study runs; they say nothing about therapy, and every page that shows them says so.

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
    raw = shipped_yaml("rule_judge.yaml")
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
