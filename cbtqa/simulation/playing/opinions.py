"""Further models that read the sessions of a study: a screen on what patients say, a guard on all.

    opinions = session_opinions(settings, folder)
    sessions, counts = ask_opinions(sessions, opened, [run], n_sessions=1)      # further marks

They are asked once the sessions are played: the screen about each turn of a patient by itself, the
guard about whole sessions (`guard`). Turns are marked, never changed, and a verdict takes no mark
away.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cbtqa.errors import UsageError
from cbtqa.llm.batch import OnProgress
from cbtqa.llm.chat import Fault
from cbtqa.llm.cost import Estimate, sum_estimates
from cbtqa.llm.runs import Run
from cbtqa.llm.second_opinion import (
    REPLY_LIMIT,
    Exchange,
    OpenOpinions,
    OpinionCounts,
    Opinions,
    opinions_of,
)
from cbtqa.records import Session, Turn, TurnMark
from cbtqa.settings import Settings
from cbtqa.simulation.playing.events import speaks_of_risk
from cbtqa.simulation.playing.guard import GuardVerdict, SessionGuardTask, guard_items
from cbtqa.simulation.sessions import StudyFolder
from cbtqa.simulation.study import Player, StudySettings

TURN_WORDS = "I do not know what to say to that. " * 5
"""Of a turn that is not played yet, in a dry run; assumed."""


def session_opinions(settings: Settings, folder: Path, stem: str = "") -> Opinions:
    """The further models that settings name; raises as `opinions_of`."""
    return opinions_of(settings, folder, stem, guard=SessionGuardTask)


def guard_of_turns(settings: Any, study: StudySettings) -> Player:
    """The guard that the settings of a run name, as one of the players.

    Raises:
        UsageError: no guard is named, or no session is played turn by turn.
    """
    endpoint, model = settings.guard_endpoint, settings.guard_model
    if not (endpoint and model):
        raise UsageError("--guard-turns needs --guard-endpoint and --guard-model")
    if study.written:
        problem = "is written whole; the guard reads its sessions once they are there"
        raise UsageError(f"--guard-turns: {study.id} {problem}", hint="leave it out")
    # the flags about prices are for the model that they stand beside
    is_same = model == settings.model
    names = ("price_in", "price_out")
    prices = {name: getattr(settings, name) if is_same else None for name in names}
    return Player(endpoint=endpoint, model=model, temperature=0, max_tokens=REPLY_LIMIT, **prices)


def ask_opinions(
    sessions: Sequence[Session],
    opened: OpenOpinions,
    beside: Sequence[Run] = (),
    spent: float = 0.0,
    on_progress: OnProgress | None = None,
    *,
    n_sessions: int | None,
) -> tuple[list[Session], dict[str, Any]]:
    """The sessions with the marks of both models, and what was asked, by role.

    Args:
        beside: the run that played them, where it spends of the same budget.
        spent: what it cost.
        n_sessions: of a course; None where it is not known.

    Raises:
        EndpointError, IncompleteRunError: the asking stopped early; the same call continues.
    """
    counts: dict[str, OpinionCounts] = {one.by.role: OpinionCounts(one.by) for one in opened.each}
    for one in opened.each:
        items = [
            item for session in sessions for _, item in _asked(session, one.by.role, n_sessions)
        ]
        others = (*beside, *(run for run in opened.runs if run is not one.run))
        how: dict[str, Any] = {"beside": others, "spent": spent, "on_progress": on_progress}
        one.ask(items, n_total=len(items), **how)
    told: dict[str, Any] = {"unread_ids": [], "unknown_kinds": Counter()}
    marked = [_marked(session, opened, counts, n_sessions, told) for session in sessions]
    described: dict[str, Any]
    described = {one.by.role: counts[one.by.role].described(one.run) for one in opened.each}
    if "guard" in described:
        kinds = dict(told["unknown_kinds"].most_common())
        described["guard"] |= {"unread_ids": told["unread_ids"], "unknown_kinds": kinds}
    return marked, described


def estimate_opinions(
    sessions: Sequence[Session], opinions: Opinions, n_sessions: int | None
) -> Estimate:
    """What would still be sent to the further models about sessions that are there."""
    parts = []
    for one in opinions.each:
        items = [item for session in sessions for _, item in _asked(session, one.role, n_sessions)]
        parts.append(one.estimate(items, "sessions" if one.role == "guard" else "turns"))
    return sum_estimates("sessions", len(sessions), 0, parts)


def _asked(session: Session, role: str, n_sessions: int | None) -> Iterator[tuple[int, Exchange]]:
    """What a model is asked about, and its place in a session: not where nothing can be worse."""
    if role == "guard":
        items = guard_items(session.id, session.turns, n_sessions, session.number)
        yield from enumerate(items)
        return
    for place, turn in enumerate(session.turns):
        if turn.role == "patient" and not speaks_of_risk(turn.text):
            yield place, Exchange(f"{session.id} {place}", turn.text)


def _marked(
    session: Session,
    opened: OpenOpinions,
    counts: Mapping[str, OpinionCounts],
    n_sessions: int | None,
    told: Mapping[str, Any],
) -> Session:
    turns = list(session.turns)
    for place, item in _asked(session, "screen", n_sessions) if opened.screen else ():
        grades = opened.screen.verdict(item) if opened.screen else None
        names: tuple[str, ...] = ()
        if grades is not None and not isinstance(grades, Fault) and grades.route != "none":
            risk = [grades.risk] if grades.risk != "none" else []
            names = (*risk, *(danger.kind for danger in grades.dangers))
            turns[place] = _with_mark(turns[place], "risk")
        counts["screen"].add(grades, names)
    if opened.guard and turns:
        parts = [opened.guard.verdict(item) for _, item in _asked(session, "guard", n_sessions)]
        read: list[GuardVerdict] = [one for one in parts if not isinstance(one, Fault)]
        new = [
            found for one in read for found in one.faults if found[1] not in turns[found[0]].marks
        ]
        for place, mark in new:
            turns[place] = _with_mark(turns[place], mark)
        # a session is read when all its parts are
        missing = next((one for one in parts if isinstance(one, Fault)), None)
        counts["guard"].add(missing or read, (mark for _, mark in new))
        told["unread_ids"].extend([session.id] if missing else [])
        told["unknown_kinds"].update(kind for one in read for kind in one.unknown)
    if turns == list(session.turns):
        return session
    return session.model_copy(update={"turns": tuple(turns)})


def _with_mark(turn: Turn, mark: TurnMark) -> Turn:
    if mark in turn.marks:
        return turn
    return turn.model_copy(update={"marks": (*turn.marks, mark)})


def with_opinions(
    estimate: Estimate,
    opinions: Opinions,
    out: Path,
    n_all: int,
    most_turns: int,
    n_sessions: int,
) -> Estimate:
    """A study's dry run with what the further models would be sent, every session at its most.

    Args:
        n_all: sessions of the study.
        most_turns: of each side, in a session.
    """
    if not opinions.services:
        return estimate
    folder = StudyFolder(out)
    known = list(folder.read_sessions()) if folder.sessions_path.exists() else []
    parts = list(estimate.parts) or [estimate]
    roles = ("patient", "therapist")
    turns = [Turn(role=roles[n % 2], text=TURN_WORDS) for n in range(2 * most_turns)]
    for one in opinions.each:
        items = [item for session in known for _, item in _asked(session, one.role, n_sessions)]
        for n in range(n_all - len(known)):
            if one.role == "guard":
                items += guard_items(f"not played {n}", turns, n_sessions)
            else:
                items += [Exchange(f"not played {n} {k}", TURN_WORDS) for k in range(most_turns)]
        parts.append(one.estimate(items, "sessions" if one.role == "guard" else "turns"))
    return sum_estimates(estimate.items, estimate.n_items, estimate.n_left_out, parts)
