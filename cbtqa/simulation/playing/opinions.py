"""Further models that read the sessions of a study: a screen on what patients say, a guard on all.

    opinions = session_opinions(settings, folder)
    sessions, counts = ask_opinions(sessions, opened, run)      # turns with further marks

They are asked once the sessions are played: the screen about each turn of a patient by itself, the
guard once about a whole session, whose turns it reads numbered. It names turns with the marks of
`simulation.marks`, where words alone do not find them. Turns are marked, never changed, and a
verdict takes no mark away.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from cbtqa.llm.batch import OnProgress
from cbtqa.llm.chat import Fault, Message
from cbtqa.llm.cost import Estimate, sum_estimates
from cbtqa.llm.runs import Run
from cbtqa.llm.second_opinion import (
    Exchange,
    OpenOpinions,
    OpinionCounts,
    Opinions,
    OpinionTask,
    entries_of,
    opinions_of,
)
from cbtqa.prompts import fence
from cbtqa.records import Reason, Session, Turn, TurnMark
from cbtqa.settings import Settings
from cbtqa.simulation.marks import HARMS
from cbtqa.simulation.playing.events import speaks_of_risk
from cbtqa.simulation.sessions import StudyFolder, numbered

TURN_WORDS = "I do not know what to say to that. " * 5
"""Of a turn that is not played yet, in a dry run; assumed."""


GUARDED: tuple[TurnMark, ...] = (
    *HARMS,
    *("wrong_speaker", "note_to_model", "narration", "speaker_name", "farewell_loop"),
)
"""The marks that a guard may give, the first five to a therapist's turn only."""
Verdict = tuple[tuple[int, TurnMark], ...]
"""Places of turns, from 0, with the mark that each deserves."""


class SessionGuardTask(OpinionTask[Verdict]):
    """Reads a whole session, its turns numbered from 1; names the faulty ones."""

    prompt = "session_guard"
    form_words = "Reply with the one JSON object of the shape given, filled in, and nothing else."
    properties: ClassVar[Mapping[str, Any]] = {
        "faults": {
            "turn": {"type": "integer"},
            "kind": {"type": "string", "enum": list(GUARDED)},
            "quote": {"type": "string"},
        },
    }

    def _messages(self, item: Exchange) -> Sequence[Message]:
        return self._prompt.render(transcript=fence(item.question))

    def _read(self, item: Exchange, found: Mapping[str, Any]) -> Verdict | Fault:
        entries = entries_of(found.get("faults"))
        if isinstance(entries, Fault):
            return entries
        speakers = item.answer.split()
        faults: dict[tuple[int, TurnMark], None] = {}
        for entry in entries:
            kind = next((one for one in GUARDED if one == entry.get("kind")), None)
            if kind is None:
                return Fault(Reason.BAD_LABEL, f"no kind of the list: {entry.get('kind')!r}")
            number = entry.get("turn")
            if not isinstance(number, int) or not 1 <= number <= len(speakers):
                return Fault(Reason.BAD_LABEL, f"no turn of the session: {number!r}")
            if kind in HARMS and speakers[number - 1] != "therapist":
                return Fault(Reason.BAD_LABEL, f"{kind} is the therapist's, turn {number} is not")
            faults[number - 1, kind] = None
        return tuple(faults)


def session_opinions(settings: Settings, folder: Path) -> Opinions:
    """The further models that the settings of a study name; raises as `opinions_of`."""
    return opinions_of(settings, folder, guard=SessionGuardTask)


def ask_opinions(
    sessions: Sequence[Session],
    opened: OpenOpinions,
    played: Run,
    spent: float = 0.0,
    on_progress: OnProgress | None = None,
) -> tuple[list[Session], dict[str, Any]]:
    """The sessions with the marks of both models, and what was asked, by role.

    Args:
        played: the run that played them, which spends of the same budget.
        spent: what it cost.

    Raises:
        EndpointError, IncompleteRunError: the asking stopped early; the same call continues.
    """
    counts: dict[str, OpinionCounts] = {one.by.role: OpinionCounts(one.by) for one in opened.each}
    for one in opened.each:
        items = [item for session in sessions for _, item in _asked(session, one.by.role)]
        others = (played, *(run for run in opened.runs if run is not one.run))
        how: dict[str, Any] = {"beside": others, "spent": spent, "on_progress": on_progress}
        one.ask(items, n_total=len(items), **how)
    marked = [_marked(session, opened, counts) for session in sessions]
    return marked, {one.by.role: counts[one.by.role].described(one.run) for one in opened.each}


def _asked(session: Session, role: str) -> Iterator[tuple[int, Exchange]]:
    """What a model is asked about, and its place in a session: not where nothing can be worse."""
    if role == "guard":
        speakers = " ".join(turn.role for turn in session.turns)
        yield 0, Exchange(session.id, numbered(session.turns), speakers)
        return
    for place, turn in enumerate(session.turns):
        if turn.role == "patient" and not speaks_of_risk(turn.text):
            yield place, Exchange(f"{session.id} {place}", turn.text)


def _marked(session: Session, opened: OpenOpinions, counts: Mapping[str, OpinionCounts]) -> Session:
    turns = list(session.turns)
    for place, item in _asked(session, "screen") if opened.screen else ():
        grades = opened.screen.verdict(item) if opened.screen else None
        names: tuple[str, ...] = ()
        if grades is not None and not isinstance(grades, Fault) and grades.route != "none":
            risk = [grades.risk] if grades.risk != "none" else []
            names = (*risk, *(danger.kind for danger in grades.dangers))
            turns[place] = _with_mark(turns[place], "risk")
        counts["screen"].add(grades, names)
    for _, item in _asked(session, "guard") if opened.guard else ():
        faults = opened.guard.verdict(item) if opened.guard else ()
        new = () if isinstance(faults, Fault) else faults
        new = tuple((place, mark) for place, mark in new if mark not in turns[place].marks)
        for place, mark in new:
            turns[place] = _with_mark(turns[place], mark)
        counts["guard"].add(faults, (mark for _, mark in new))
    if turns == list(session.turns):
        return session
    return session.model_copy(update={"turns": tuple(turns)})


def _with_mark(turn: Turn, mark: TurnMark) -> Turn:
    if mark in turn.marks:
        return turn
    return turn.model_copy(update={"marks": (*turn.marks, mark)})


def with_opinions(
    estimate: Estimate, opinions: Opinions, out: Path, n_sessions: int, most_turns: int
) -> Estimate:
    """A study's dry run with what the further models would be sent, every session at its most.

    Args:
        most_turns: of each side, in a session.
    """
    if not opinions.services:
        return estimate
    folder = StudyFolder(out)
    known = list(folder.read_sessions()) if folder.sessions_path.exists() else []
    parts = list(estimate.parts) or [estimate]
    for one in opinions.each:
        items = [item for session in known for _, item in _asked(session, one.role)]
        is_guard, n_left = one.role == "guard", n_sessions - len(known)
        text = TURN_WORDS * 2 * most_turns if is_guard else TURN_WORDS
        n_asks = n_left if is_guard else n_left * most_turns
        items += [Exchange(f"not played {n}", text) for n in range(n_asks)]
        parts.append(one.estimate(items, "sessions" if is_guard else "turns"))
    return sum_estimates(estimate.items, estimate.n_items, estimate.n_left_out, parts)
