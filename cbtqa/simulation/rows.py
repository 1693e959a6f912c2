"""Training rows from sessions: the prompt of each row is the therapist's view at serve time.

    for row in therapist_rows(session, casting): row.prompt, row.completion

`Casting.therapist_messages` renders both a live session and a training row, so that a tuned model
is asked in the form in which it learned.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from cbtqa.llm.chat import Message
from cbtqa.records import Session, Turn, TurnMark
from cbtqa.simulation.messages import Casting, turn_content

UNFIT_MARKS: frozenset[TurnMark] = frozenset(
    ("not_accepted", "unsupervised", "cut", "cut_at_label")
)
"""Turns with one of these are no example to learn from."""
CLOSED: frozenset[str] = frozenset(("ended", "written"))
"""Stop reasons after which the last therapist turn carries the end token."""


@dataclass(frozen=True)
class TherapistRow:
    """One therapist turn to learn, with what the therapist saw before it."""

    session: Session
    turn: int
    """Counts therapist turns, from 1."""
    casting: Casting
    history: tuple[Turn, ...]
    prompt: tuple[Message, ...]
    completion: str

    def meta(self) -> dict[str, Any]:
        """What stands beside the row, never inside it."""
        return {
            "session_id": self.session.id,
            "profile_id": self.session.profile_id,
            "arm": self.session.arm,
            "number": self.session.number,
            "turn": self.turn,
        }


def therapist_rows(
    session: Session, casting: Casting, dropped: Counter[str], *, keeps_marked: bool = False
) -> Iterator[TherapistRow]:
    """The rows of one session; what becomes none is counted under its reason.

    Args:
        casting: the views at serve time, with the state that this session began with.
    """
    opens_rightly = bool(session.turns) and session.turns[0].role == "patient"
    if has_adjacent_speakers(session.turns) or not opens_rightly:
        dropped["turns_do_not_alternate"] += session.n_therapist_turns
        return
    number = 0
    for place, turn in enumerate(session.turns):
        if turn.role != "therapist":
            continue
        number += 1
        history = session.turns[:place]
        reason = None if keeps_marked else _unfit(turn, casting)
        view = casting.fitting(casting.therapist_messages(history))
        if view is None:
            reason = "over_the_context"
        if reason is not None or view is None:
            dropped[reason or ""] += 1
            continue
        is_last = place == len(session.turns) - 1
        ends = casting.study.end_token and is_last and session.stop_reason in CLOSED
        completion = turn_content(turn, casting.arm.reasoning, ends=ends)
        yield TherapistRow(session, number, casting, history, tuple(view), completion)


def _unfit(turn: Turn, casting: Casting) -> str | None:
    marks = sorted(UNFIT_MARKS.intersection(turn.marks))
    if marks:
        return f"marked_{marks[0]}"
    if casting.arm.reasoning == "cot" and not turn.reasoning:
        return "no_reasoning"
    return None


def has_adjacent_speakers(turns: Sequence[Turn]) -> bool:
    """Whether one side speaks twice in a row."""
    return any(one.role == other.role for one, other in pairwise(turns))


def session_messages(session: Session, casting: Casting) -> list[Message]:
    """A whole session as one list of messages, for trainers that learn from all turns at once."""
    messages = casting.therapist_messages(session.turns)
    if session.turns and session.turns[-1].role == "patient":
        messages = messages[:-1]
    return messages
