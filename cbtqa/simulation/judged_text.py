"""What a judge reads of a session, whether it can be judged at all, and whether a quote is one.

shown = shown_turns(session)                      # reasoning removed
unfit_reason(session, limits)                     # `one_speaker: ...`, or None
is_quoted("let us set an agenda", shown)          # True when one turn says so
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from cbtqa.llm.cost import estimate_tokens
from cbtqa.metrics.judge.task import stands_in
from cbtqa.records import Session, Turn
from cbtqa.simulation.sessions import transcript_text

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
