"""Supervisors, validators, guards and summarisers: a verdict on a draft, the state after a session.

A verdict that cannot be read is no acceptance: the turn is kept and marked `unsupervised`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from cbtqa.errors import DataError
from cbtqa.files import parse_record
from cbtqa.llm.chat import Fault, Reply
from cbtqa.llm.structured import parse_object
from cbtqa.prompts import Prompt, fence
from cbtqa.records import Reason, Session, SessionState, Turn
from cbtqa.simulation.draws import seed_of
from cbtqa.simulation.marks import TurnFault
from cbtqa.simulation.playing.course import cbt_course
from cbtqa.simulation.playing.guard import SessionGuardTask, guard_turn_item, guard_values
from cbtqa.simulation.playing.messages import SessionView, TurnContext, object_schema, wording
from cbtqa.simulation.playing.players import Call, OpenPlayer, Players
from cbtqa.simulation.sessions import transcript_text

APPROACHES = {"cbt": "cognitive behavioural therapy", "act": "acceptance and commitment therapy"}
VERDICT_SCHEMA = object_schema(accepted={"type": "boolean"}, feedback={"type": "string"})
STATE_SCHEMA = object_schema(
    agenda={"type": "array", "items": {"type": "string"}},
    homework={"type": "array", "items": {"type": "string"}},
    conceptualisation={"type": "string"},
    mood={"type": ["integer", "null"], "minimum": 0, "maximum": 10},
    summary={"type": "string"},
)


@dataclass(frozen=True)
class Verdict:
    """What a supervisor finds of a draft."""

    is_accepted: bool
    feedback: str = ""
    """What has to change; empty when accepted, or when there is no readable verdict."""
    trouble: str = ""
    """Why there is no verdict."""


def read_verdict(reply: Reply) -> Verdict | Fault:
    """The verdict in a reply; a rejected draft without feedback is no verdict."""
    found = parse_object(reply.text, lambda value: "accepted" in value)
    if isinstance(found, Fault):
        return found
    accepted, feedback = found.get("accepted"), found.get("feedback") or ""
    if not isinstance(accepted, bool) or not isinstance(feedback, str):
        return Fault(Reason.NOT_JSON, "accepted has to be true or false, feedback a text")
    if not accepted and not feedback.strip():
        return Fault(Reason.NOT_JSON, "not accepted, but no feedback says why")
    return Verdict(accepted, "" if accepted else feedback.strip())


async def ask_verdict(
    players: Players, reader: OpenPlayer, context: TurnContext, reasoning: str | None
) -> Verdict | Fault:
    """The verdict of the supervisor (or the patient's validator) on `context.draft`.

    A fault is the endpoint's failure; the same question may be answered in a later run.
    """
    found, _ = await players.ask(
        Call(
            key=context.key,
            player=reader,
            context=context,
            messages=_messages(context, reasoning),
            seed=seed_of(context.seed, context.part, context.revision),
            read=read_verdict,
            json_schema=VERDICT_SCHEMA,
        )
    )
    if isinstance(found, Fault) and found.reason is not Reason.ENDPOINT:
        return Verdict(False, trouble=f"no verdict: {found.detail}")
    return found


def _messages(context: TurnContext, reasoning: str | None) -> list[dict[str, str]]:
    view, texts = context.view, wording()
    is_supervisor = context.part == "supervisor"
    criteria = texts["supervision"]["therapist" if is_supervisor else "patient"]
    shared: dict[str, Any] = {
        "shape": texts["shapes"]["verdict"],
        "transcript": fence(transcript_text(context.turns) or "(nothing yet)"),
        "draft": fence(context.draft),
        "criteria": "\n".join(f"- {one}" for one in criteria),
    }
    if is_supervisor:
        return view.shipped_prompt("session_supervisor").render(
            approach=APPROACHES[view.study.approach],
            reasoning=fence(reasoning or "(none)"),
            **shared,
        )
    return view.shipped_prompt("session_patient_check").render(
        narrative=view.profile.narrative, manner=view.profile.behaviour, **shared
    )


async def ask_guard(
    players: Players, guard: OpenPlayer, context: TurnContext, turn: Turn, *, is_open: bool
) -> tuple[TurnFault, ...] | Fault:
    """What the guard names in a new turn, `context.turns` being those before it; raises as
    `Players.ask`. A fault says why there is no verdict."""
    view, turns = context.view, (*context.turns, turn)
    key = view.key(f"guard_{turn.role}{context.turn}", context.revision)
    item = guard_turn_item(key, turns, view.study.sessions, view.number, is_open=is_open)
    task = SessionGuardTask(guard.settings.name)
    found, _ = await players.ask(
        Call(
            key=key,
            player=guard,
            context=replace(context, part="guard"),
            messages=view.guard_prompt.fill(guard_values(item)),
            seed=seed_of(context.seed, "guard", context.revision),
            read=partial(task.read, item),
            json_schema=task.request(item).json_schema,
        )
    )
    if isinstance(found, Fault):
        return found
    # a quote that holds its own marks would not be known as one
    words = (quote.replace("'", "’").replace('"', "") for quote in found.quotes)
    return tuple(
        TurnFault(mark, quote) for (_, mark), quote in zip(found.faults, words, strict=True)
    )


def fewest_summary_words(prompt: Prompt) -> int:
    """Words that a summary needs: version 1 asks for a number, later ones for what was said."""
    return cbt_course().summary_words if prompt.header.version == 1 else 1


def state_of(value: object, least: int) -> SessionState | Fault:
    """A checked state from decoded JSON; a summary of fewer than `least` words is a fault."""
    try:
        state = parse_record(SessionState, value, "state")
    except DataError as error:
        return Fault(Reason.NOT_JSON, str(error))
    n_words = len(state.summary.split())
    if n_words < least:
        return Fault(Reason.STEP_TOO_SHORT, f"the summary has {n_words} words, at least {least}")
    return state


def read_state(reply: Reply, least: int) -> SessionState | Fault:
    found = parse_object(reply.text, lambda value: "summary" in value)
    return found if isinstance(found, Fault) else state_of(found, least)


def describe_state(state: SessionState | None) -> str:
    """The state as a model is shown it."""
    if state is None:
        return "(none; this is the first session)"
    return state.model_dump_json(indent=1)


async def ask_state(
    players: Players, summariser: OpenPlayer, view: SessionView, session: Session
) -> SessionState | Fault:
    """What a played session hands over, or why there is nothing."""
    seed = seed_of(session.seed, "summariser")
    prompt = view.shipped_prompt("session_summary")
    offered = {
        "shape": str(wording()["shapes"]["state"]),
        "number": str(view.number),
        "phase": f" ({session.phase})" if session.phase else "",
        "previous": describe_state(view.state),
        "transcript": fence(transcript_text(session.turns)),
    }
    found, _ = await players.ask(
        Call(
            key=view.key("summary"),
            player=summariser,
            context=TurnContext("summariser", view, session.turns, seed, view.number),
            messages=prompt.fill(offered),
            seed=seed,
            read=partial(read_state, least=fewest_summary_words(prompt)),
            json_schema=STATE_SCHEMA,
        )
    )
    if isinstance(found, Fault):
        return Fault(found.reason, f"summariser: {found.detail}")
    return found
