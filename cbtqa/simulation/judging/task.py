"""What a judge is asked about one session on one instrument, and what its reply is worth.

    task = SessionJudgeTask(load_instrument("ctrs"), Sampling(temperature=0.7, seed=0), "qwen-plus")
    run_batch(asks, task, endpoint, journal, limits)
    list(read_ratings(asks, task, journal))

One call rates one session on one instrument: a form with two of them shows halo (paper 2:
r .875 between ACT-FM and TES from a single call). Repeats differ in seed and in the item they begin
with. Whatever is not a whole number on the item's scale with words of the transcript to rest on is
unscored with a reason.

A value outside the scale spoils the whole reply: a judge that gives 8 of 6 had another ladder in
mind, and its 5 means something else, too.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

from cbtqa.files import parse_yaml
from cbtqa.judging.answers import (
    CANNOT_JUDGE,
    JudgeAsking,
    JudgeCriterion,
    Verdict,
    ratings_schema,
    stands_in,
)
from cbtqa.llm.chat import ChatRequest, Fault, Reply, Sampling
from cbtqa.llm.cost import estimate_tokens
from cbtqa.llm.journal import Journal, Outcome
from cbtqa.llm.structured import parse_object
from cbtqa.prompts import fence, load_prompt
from cbtqa.records import ItemRating, Reason, Session, Turn
from cbtqa.simulation.instruments import Instrument
from cbtqa.simulation.sessions import transcript_text

NOT_APPLICABLE = frozenset(
    {"n/a", "na", "n.a.", "not applicable", "none", "null", "unable to rate"}
)
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


class SessionJudgeTask(JudgeAsking[SessionAsk]):
    """The engine's task: asks, checks, asks again, reads back."""

    def __init__(
        self,
        instrument: Instrument,
        sampling: Sampling,
        model: str,
        *,
        host: str = "",
        prompt: str = "judge_session",
    ) -> None:
        self.instrument, self.model, self.host = instrument, model, host
        self.prompt, self._sampling = load_prompt(prompt), sampling
        self._criteria = instrument.judge_criteria()

    def fingerprint(self) -> dict[str, str]:
        """Everything that can change a reply; sessions and repeats may grow."""
        return {
            "task": "judge_session",
            "model": self.model,
            "endpoint_host": self.host,
            "prompt": self.prompt.name,
            "prompt_sha256": self.prompt.sha256,
            "instrument": self.instrument.id,
            "instrument_sha256": self.instrument.rubric.sha256,
            "sampling": json.dumps(self._sampling.described(), sort_keys=True),
        }

    def key(self, ask: SessionAsk) -> str:
        """Text and repeat: two arms with the same session share their ratings."""
        digest = hashlib.blake2b(ask.text.encode("utf-8", "surrogatepass"), digest_size=16)
        return f"{digest.hexdigest()}:{ask.repeat}"

    def request(self, ask: SessionAsk) -> ChatRequest:
        """The question about one session."""
        rubric, criteria = self.instrument.rubric, self._turned(ask.repeat)
        messages = self.prompt.render(
            instrument=rubric.id,
            title=rubric.title.to("en"),
            guidelines=rubric.guidelines.to("en").strip(),
            items="\n".join(map(_described, criteria)),
            shape=_shape(rubric.id, criteria),
            transcript=fence(ask.text),
        )
        schema = _schema(rubric.id, criteria)
        return ChatRequest(
            messages, schema, schema_name="ratings", sampling=self._sampling_of(ask.repeat - 1)
        )

    def _turned(self, repeat: int) -> list[JudgeCriterion]:
        """The items, each repeat beginning with another one."""
        first = (repeat - 1) * max(1, len(self._criteria) // 3) % len(self._criteria)
        return self._criteria[first:] + self._criteria[:first]

    def read(self, ask: SessionAsk, reply: Reply) -> dict[str, Verdict] | Fault:
        """A verdict on every item, or what is wrong with the reply as a whole."""
        scales = self.instrument.scales
        found = parse_object(reply.text, fits=lambda value: any(name in value for name in scales))
        if isinstance(found, Fault):
            return found
        if fault := _fault_of_form(found, self.instrument):
            return fault
        return {
            item: _verdict(item, scale, found.get(item), ask.turns)
            for item, scale in scales.items()
        }


def _fault_of_form(found: Mapping[str, Any], instrument: Instrument) -> Fault | None:
    """What tells that the reply is about another form or on another ladder."""
    named = found.get(INSTRUMENT_KEY)
    if isinstance(named, str) and named.strip().lower() != instrument.id:
        return Fault(Reason.BAD_RATING, f"another instrument: '{named[:40]}'")
    for name, entry in found.items():
        if not isinstance(entry, Mapping) or "rating" not in entry:
            continue
        if name not in instrument.scales:
            return Fault(Reason.BAD_RATING, f"another instrument: '{name[:40]}' is no item")
        value, (low, high) = entry["rating"], instrument.scales[name]
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if is_number and not low <= value <= high:
            return Fault(
                Reason.BAD_RATING, f"out of range: '{name}' {value:g}, not {low} to {high}"
            )
    return None


def _verdict(item: str, scale: tuple[int, int], entry: object, turns: tuple[Turn, ...]) -> Verdict:
    if not isinstance(entry, Mapping) or "rating" not in entry:
        return Verdict(None, Fault(Reason.BAD_RATING, f"'{item}' has no rating"))
    value, note = entry["rating"], str(entry.get("reason") or "").strip()
    if value is None or (isinstance(value, str) and value.strip().lower() in NOT_APPLICABLE):
        return Verdict(None, note=note)
    if not isinstance(value, int) or isinstance(value, bool):
        found = json.dumps(value, ensure_ascii=False)[:40]
        return Verdict(None, Fault(Reason.BAD_RATING, f"'{item}': {found} is no whole number"))
    evidence = str(entry.get("evidence") or "").strip()
    if not evidence and value == scale[0]:
        return Verdict(value, note=note)
    if not is_quoted(evidence, turns):
        detail = f"'{item}': '{evidence[:80]}' does not stand in the transcript"
        return Verdict(None, Fault(Reason.EVIDENCE_NOT_FOUND, detail))
    return Verdict(value, evidence=evidence, note=note)


def _described(criterion: JudgeCriterion) -> str:
    anchors = "; ".join(f"{point} = {text}" for point, text in sorted(criterion.anchors.items()))
    scale = f"{criterion.low} to {criterion.high}"
    return f"- {criterion.id} ({criterion.name}), {scale}: {criterion.question} [{anchors}]"


def _shape(instrument: str, criteria: Iterable[JudgeCriterion]) -> str:
    entry = '{"evidence": "words of one turn", "reason": "one sentence", "rating": number or null}'
    items = ", ".join(f'"{criterion.id}": {entry}' for criterion in criteria)
    return f'{{"{INSTRUMENT_KEY}": "{instrument}", {items}}}'


def _schema(instrument: str, criteria: Iterable[JudgeCriterion]) -> dict[str, Any]:
    schema = ratings_schema(criteria)
    named = {INSTRUMENT_KEY: {"type": "string", "enum": [instrument]}}
    return {
        **schema,
        "properties": {**named, **schema["properties"]},
        "required": [INSTRUMENT_KEY, *schema["required"]],
    }


def read_ratings(
    asks: Iterable[SessionAsk], task: SessionJudgeTask, journal: Journal
) -> Iterator[ItemRating]:
    """Every item of every ask, in order; what was turned away carries its reason.

    Of a reply that was turned away for one item, the good ratings of the others are kept.
    """
    for ask in asks:
        verdicts = _verdicts(ask, task, journal.outcome(task.key(ask)))
        for item, verdict in verdicts.items():
            yield make_rating(ask, task.instrument.id, item, verdict, task.model)


def make_rating(
    ask: SessionAsk, instrument: str, item: str, verdict: Verdict, judge: str
) -> ItemRating:
    """The record of one verdict; a fault becomes `reason: detail`."""
    fault = verdict.fault
    reason = f"{fault.reason.value}: {fault.detail}" if fault else CANNOT_JUDGE
    return ItemRating(
        session_id=ask.session_id,
        instrument=instrument,
        item=item,
        value=verdict.value,
        unscored_reason=reason if verdict.value is None else None,
        evidence=verdict.evidence or None,
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


def _verdicts(
    ask: SessionAsk, task: SessionJudgeTask, outcome: Outcome | None
) -> dict[str, Verdict]:
    fault = outcome.fault if outcome else Fault(Reason.ENDPOINT, "no reply yet")
    gone = Verdict(None, fault or Fault(Reason.EMPTY, "the reply holds nothing"))
    whole = dict.fromkeys(task.instrument.scales, gone)
    if outcome is None or outcome.reply is None:
        return whole
    if fault and fault.reason not in (Reason.EVIDENCE_NOT_FOUND, Reason.BAD_RATING):
        return whole
    read = task.read(ask, outcome.reply)
    return whole if isinstance(read, Fault) else read


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
    return transcript_text(session.model_copy(update={"turns": shown_turns(session)}))


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
        all(stands_in(part, turn.text) for part in parts)
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
