"""What a guard is asked about a session, and how its reply is read.

    items = guard_items("s1", session.turns, n_sessions=1)     # one, or parts of a long session
    SessionGuardTask("m").read(items[0], reply).faults         # ((11, "diagnosis"),)

The guard finds what words alone do not find: it reads the turns numbered and names the faulty ones
by the marks of `simulation.marks`. Marks of form (control tokens, lists, a cut) need no reader. A
session longer than `PART_TOKENS` is read in parts, each after some turns of the part before.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

from cbtqa.llm.chat import Fault, Message
from cbtqa.llm.cost import estimate_tokens
from cbtqa.llm.second_opinion import Exchange, OpinionTask, entries_of
from cbtqa.prompts import fence
from cbtqa.records import Reason, Turn, TurnMark
from cbtqa.simulation.marks import HARMS, LONGEST_SHOWN
from cbtqa.simulation.sessions import transcript_text

OF_THERAPIST: tuple[TurnMark, ...] = (*HARMS, "next_session")
"""The marks that a guard may give to a therapist's turn only."""
GUARDED: tuple[TurnMark, ...] = (
    *OF_THERAPIST,
    *("wrong_speaker", "note_to_model", "narration", "speaker_name", "wrong_language"),
    *("repeated", "early_farewell", "farewell_loop"),
)
"""All marks that a guard may give."""
PART_TOKENS = 6000
"""Of the turns in one request: with prompt and reply it fits a context of 16,384; assumed."""
SEEN_AGAIN = 12
"""Turns of the part before that a later part, or a new turn, is shown with; assumed."""
_NUMBER = re.compile(r"\s*(?:turn|no\.?|#|\[)?\s*(\d+)\s*\]?\s*", re.IGNORECASE)


class GuardVerdict(NamedTuple):
    """What a guard names of the turns that it was shown."""

    faults: tuple[tuple[int, TurnMark], ...]
    """Places of turns, from 0, with the mark that each deserves."""
    quotes: tuple[str, ...] = ()
    """Words that show each fault, in the same order; empty where the turns do not hold them."""
    unknown: tuple[str, ...] = ()
    """Kinds that it gave and that are none of the list."""


class SessionGuardTask(OpinionTask[GuardVerdict]):
    """Reads the turns of a session, numbered from 1; names the faulty ones."""

    prompt = "session_guard"
    max_tokens: ClassVar[int] = 6144
    form_words = "Reply with the one JSON object of the shape given, filled in, and nothing else."
    properties: ClassVar[Mapping[str, Any]] = {
        "faults": {
            "turn": {"type": "integer"},
            "quote": {"type": "string"},
            "kind": {"type": "string", "enum": list(GUARDED)},
        },
    }

    def _messages(self, item: Exchange) -> Sequence[Message]:
        return self._prompt.fill(guard_values(item))

    def _read(self, item: Exchange, found: Mapping[str, Any]) -> GuardVerdict | Fault:
        entries = entries_of(found.get("faults"))
        if isinstance(entries, Fault):
            return entries
        shown = json.loads(item.answer)
        start, first, speakers = shown["start"], shown["first"], shown["speakers"]
        faults: dict[tuple[int, TurnMark], str] = {}
        unknown: list[str] = []
        for entry in entries:
            number = _number_of(entry.get("turn"))
            if number is None or not start <= number < start + len(speakers):
                last = start + len(speakers) - 1
                detail = f"turn {entry.get('turn')!r} is none of {start} to {last}"
                return Fault(Reason.BAD_LABEL, detail)
            name = str(entry.get("kind")).strip().lower().replace("-", "_").replace(" ", "_")
            kind = next((one for one in GUARDED if one == name), None)
            if kind is None:
                unknown.append(name[:40])
                continue
            if kind in OF_THERAPIST and speakers[number - start] != "therapist":
                detail = f"{kind} is for turns of the therapist, and turn {number} is the patient's"
                return Fault(Reason.BAD_LABEL, detail)
            if number >= first:  # what is shown again was named in the part before
                words = str(entry.get("quote") or "").strip()[:LONGEST_SHOWN]
                faults.setdefault((number - 1, kind), words if words in item.question else "")
        return GuardVerdict(tuple(faults), tuple(faults.values()), tuple(unknown))


def guard_values(item: Exchange) -> dict[str, str]:
    """What fills the prompt."""
    return {"about": json.loads(item.answer)["about"], "transcript": fence(item.question)}


def _number_of(value: object) -> int | None:
    """A turn's number, also where it is written as `"12"`, `"[12]"` or `12.0`."""
    if isinstance(value, str):
        match = _NUMBER.fullmatch(value)
        return int(match[1]) if match else None
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def guard_items(
    name: str, turns: Sequence[Turn], n_sessions: int | None, number: int = 1
) -> list[Exchange]:
    """What a guard is asked about a session, in as many parts as its length needs.

    Args:
        n_sessions: of the course; None where it is not known.
        number: of the session in its course.
    """
    parts = list(_parts(turns))
    where = _where(n_sessions, number)
    items = []
    for place, (start, first, end) in enumerate(parts, 1):
        about = f"{where} It has {len(turns)} turns. "
        about += "All are shown." if len(parts) == 1 else _which(start, first, end)
        key = name if len(parts) == 1 else f"{name} part {place}"
        items.append(_item(key, turns[start:end], about, start + 1, first + 1))
    return items


def guard_turn_item(
    name: str, turns: Sequence[Turn], n_sessions: int, number: int, *, is_open: bool
) -> Exchange:
    """What a guard is asked about the last of these turns, which is new in a session.

    Args:
        is_open: the session goes on after it.
    """
    place = len(turns) - 1
    start = _start_of_context(list(map(_size_of, turns)), place)
    about = f"{_where(n_sessions, number)} It is being played. Turn {place + 1} is new: name its "
    about += "faults alone; the turns before it are there to be understood. "
    about += "The session goes on after it." if is_open else "The session may end with it."
    return _item(name, turns[start:], about, start + 1, place + 1)


def _where(n_sessions: int | None, number: int) -> str:
    if n_sessions is None:
        return "Whether other sessions follow is not known: leave next_session out."
    if n_sessions == 1:
        return "The session is single: there is no next one."
    last = ": there is no next one." if number >= n_sessions else ", and others follow."
    return f"The session is number {number} of a course of {n_sessions}{last}"


def _which(start: int, first: int, end: int) -> str:
    again = "" if first == start else f" Turns {start + 1} to {first} are there to be understood."
    return f"Shown are turns {start + 1} to {end}.{again} Name faults from turn {first + 1} on."


def _item(key: str, turns: Sequence[Turn], about: str, start: int, first: int) -> Exchange:
    """`start` and `first` are the numbers of the first turn shown, and of the first to be named."""
    lines = (f"[{place}] {_shown(turn)}" for place, turn in enumerate(turns, start))
    speakers = [turn.role for turn in turns]
    shown = {"about": about, "start": start, "first": first, "speakers": speakers}
    return Exchange(key, "\n".join(lines), json.dumps(shown))


def _shown(turn: Turn) -> str:
    """A turn with its later lines set in, so that no line of it passes for another turn."""
    return transcript_text([turn]).replace("\n", "\n    ")


def _parts(turns: Sequence[Turn]) -> Iterator[tuple[int, int, int]]:
    """Places `(first shown, first to be named, end)` of parts that cover all turns."""
    sizes = list(map(_size_of, turns))
    first = 0
    while first < len(turns):
        start = _start_of_context(sizes, first)
        end, size = first, sum(sizes[start:first])
        while end < len(turns) and (end == first or size + sizes[end] <= PART_TOKENS):
            size += sizes[end]
            end += 1
        yield start, first, end
        first = end


def _size_of(turn: Turn) -> int:
    return estimate_tokens(_shown(turn))


def _start_of_context(sizes: Sequence[int], first: int) -> int:
    """The first of the turns that are shown before `first`: fewer where they are long, so that
    there is room for new ones."""
    start = max(0, first - SEEN_AGAIN)
    while start < first and sum(sizes[start:first]) > PART_TOKENS // 3:
        start += 1
    return start
