"""Further models that read the sessions of a study: a screen on what patients say, a guard on what
therapists answer.

    mark_sessions(sessions, opened, counts)      # turns marked `risk` and `unsafe`

They are asked once the sessions are played; each turn is asked about by itself, with what was said
just before it. Turns are marked, never changed, and a verdict takes no mark away.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cbtqa.llm.batch import OnProgress
from cbtqa.llm.chat import Fault
from cbtqa.llm.cost import Estimate, sum_estimates
from cbtqa.llm.runs import Run
from cbtqa.llm.second_opinion import Exchange, OpenOpinions, OpinionCounts, Opinions
from cbtqa.records import Session, Turn, TurnMark
from cbtqa.simulation.playing.events import speaks_of_risk
from cbtqa.simulation.sessions import StudyFolder

TURN_WORDS = "I do not know what to say to that. " * 5
"""Of a turn that is not played yet, in a dry run; assumed."""


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
    """Place and text of the turns that a model is asked about: not where nothing can be worse."""
    for place, turn in enumerate(session.turns):
        before = session.turns[place - 1].text if place else ""
        key = f"{session.id} {place}"
        if role == "guard" and turn.role == "therapist":
            yield place, Exchange(key, before, turn.text)
        elif role == "screen" and turn.role == "patient" and not speaks_of_risk(turn.text):
            yield place, Exchange(key, turn.text)


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
    for place, item in _asked(session, "guard") if opened.guard else ():
        problems = opened.guard.verdict(item) if opened.guard else None
        names = ()
        if problems is not None and not isinstance(problems, Fault) and problems:
            names = tuple(problem.rule for problem in problems)
            turns[place] = _with_mark(turns[place], "unsafe")
        counts["guard"].add(problems, names)
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
        for n in range((n_sessions - len(known)) * most_turns):
            answer = TURN_WORDS if one.role == "guard" else ""
            items.append(Exchange(f"not played {n}", TURN_WORDS, answer))
        parts.append(one.estimate(items, "turns"))
    return sum_estimates(estimate.items, estimate.n_items, estimate.n_left_out, parts)
