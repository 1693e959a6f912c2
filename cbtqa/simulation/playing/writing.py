"""Sessions of a course written by one model: four calls a session, each checked before it counts.

    session = await write_session(view, therapist, players)
    session.stop_reason     # written; or why it was given up, with the parts there are

A part that breaks a rule is asked for again with the rule named. A part that is whole but still
says what no turn should say (`cbtqa.simulation.marks`) is then kept, and its turns are marked. The
last part hands over the state of the course as typed fields, so that nothing has to be found in a
text later.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from cbtqa.llm.chat import Fault, Message, Reply
from cbtqa.llm.journal import Outcome
from cbtqa.llm.structured import parse_object
from cbtqa.prompts import Prompt, fence
from cbtqa.records import Reason, Session, SessionState, StopReason, Turn
from cbtqa.simulation.draws import seed_of
from cbtqa.simulation.marks import (
    HARMS,
    faults_of_last,
    forbidden_in,
    speaks_of_danger,
    takes_leave,
)
from cbtqa.simulation.playing.course import Course, Part, cbt_course
from cbtqa.simulation.playing.events import names_help
from cbtqa.simulation.playing.messages import (
    SessionView,
    TurnContext,
    fault_of_words,
    object_schema,
    wording,
)
from cbtqa.simulation.playing.players import Call, OpenPlayer, Players
from cbtqa.simulation.playing.session import Role, provenance_of
from cbtqa.simulation.playing.supervision import (
    STATE_SCHEMA,
    describe_state,
    fewest_summary_words,
    state_of,
)
from cbtqa.simulation.sessions import transcript_text

FEWEST_TURNS = 4
_TURN_SCHEMA = object_schema(
    speaker={"type": "string", "enum": ["patient", "therapist"]}, text={"type": "string"}
)
_TURNS_SCHEMA: dict[str, Any] = {"type": "array", "items": _TURN_SCHEMA}
PART_SCHEMA = object_schema(turns=_TURNS_SCHEMA)
LAST_PART_SCHEMA = object_schema(turns=_TURNS_SCHEMA, state=STATE_SCHEMA)


@dataclass(frozen=True)
class WrittenPart:
    """A part that passed its checks."""

    turns: tuple[Turn, ...]
    state: SessionState | None


async def write_session(view: SessionView, writer: OpenPlayer, players: Players) -> Session:
    course, prompt = cbt_course(), view.shipped_prompt("course_part")
    turns: list[Turn] = []
    outcomes: list[Outcome] = []
    state: SessionState | None = None
    stop: tuple[StopReason, str] = ("written", "")
    for place, part in enumerate(course.parts, 1):
        seed = seed_of(view.seed, "part", place)
        context = TurnContext("course_part", view, tuple(turns), seed, place)
        read = partial(read_part, part=part, course=course, before=context.turns, prompt=prompt)
        written, outcome = await players.ask(
            Call(
                key=view.key(f"part{place}"),
                player=writer,
                context=context,
                messages=_messages(context, part, course, prompt),
                seed=seed,
                read=read,
                json_schema=LAST_PART_SCHEMA if part.closes else PART_SCHEMA,
            )
        )
        outcomes.append(outcome)
        if isinstance(written, Fault) and outcome.reply is not None:
            written = read(outcome.reply, keeps_faults=True)
        if isinstance(written, Fault):
            is_endpoint = written.reason is Reason.ENDPOINT
            stop = ("endpoint" if is_endpoint else "no_answer", f"{part.id}: {written.detail}")
            break
        turns += written.turns
        state = written.state
    provenance = provenance_of(view.arm.therapist, prompt, view.seed, outcomes)
    return view.session(turns, stop, provenance, state=state)


def _messages(
    context: TurnContext, part: Part, course: Course, prompt: Prompt
) -> Sequence[Message]:
    view, shapes = context.view, wording()["shapes"]
    phase = course.phase_of(view.number)
    offered = {
        "name": view.profile.name,
        "narrative": view.profile.narrative,
        "manner": view.profile.behaviour,
        "phase": f"session {view.number} of {course.n_sessions}, {phase.id}",
        "goals": f"What belongs to this phase: {phase.goals}.",
        "script": course.scripts.get(view.number, ""),
        # later versions tell of all parts, so that each knows what the others are for
        "part": part.asks if prompt.header.version == 1 else f"the part `{part.id}`",
        "next_speaker": next_speaker(context.turns),
        "shape": shapes["turns_and_state" if part.closes else "turns"],
        "state": describe_state(view.state),
        "so_far": fence(transcript_text(context.turns) or "(nothing yet)"),
    }
    return prompt.fill(offered)


def next_speaker(turns: Sequence[Turn]) -> Role:
    """Who speaks after these turns; the patient opens every session."""
    return "therapist" if turns and turns[-1].role == "patient" else "patient"


def read_part(
    reply: Reply,
    part: Part,
    course: Course,
    before: Sequence[Turn],
    prompt: Prompt,
    *,
    keeps_faults: bool = False,
) -> WrittenPart | Fault:
    """The turns of a part, or the first rule that it breaks.

    Args:
        keeps_faults: what is said is not looked at; the session's marks tell of it.
    """
    found = parse_object(reply.text, lambda value: "turns" in value)
    if isinstance(found, Fault):
        return found
    turns = _turns(found.get("turns"), next_speaker(before))
    if isinstance(turns, Fault):
        return turns
    # only version 1 asks for set words
    must_mention = part.must_mention if prompt.header.version == 1 else ()
    fault = _no_words(turns) or _missing_word(turns, must_mention)
    if fault is None and not keeps_faults:
        fault = _spoken_fault(turns, part, before)
    if fault is not None:
        return fault
    if not part.closes:
        return WrittenPart(turns, None)
    state = state_of(found.get("state"), fewest_summary_words(prompt))
    return state if isinstance(state, Fault) else WrittenPart(turns, state)


def _turns(rows: object, expected: Role) -> tuple[Turn, ...] | Fault:
    if not isinstance(rows, list) or len(rows) < FEWEST_TURNS:
        return Fault(Reason.MISSING_STEP, f"turns has to be a list of {FEWEST_TURNS} or more")
    turns: list[Turn] = []
    for number, row in enumerate(rows, 1):
        speaker = row.get("speaker") if isinstance(row, dict) else None
        text = row.get("text") if isinstance(row, dict) else None
        if not isinstance(text, str) or not text.strip():
            return Fault(Reason.MISSING_STEP, f"turn {number} has no text")
        if speaker != expected:
            return Fault(
                Reason.MISSING_STEP,
                f"turn {number} is the {speaker}'s, but the {expected} is to speak there",
            )
        turns.append(Turn(role=expected, text=text.strip()))
        expected = next_speaker(turns)
    if turns[-1].role != "therapist":
        return Fault(Reason.MISSING_STEP, "the last turn of a part is the therapist's")
    return tuple(turns)


def _no_words(turns: Sequence[Turn]) -> Fault | None:
    """Why a turn can be nobody's."""
    for number, turn in enumerate(turns, 1):
        if fault := fault_of_words(turn.text):
            return Fault(fault.reason, f"turn {number}: {fault.detail}")
    return None


def _missing_word(turns: Sequence[Turn], must_mention: Sequence[str]) -> Fault | None:
    said = " ".join(turn.text.lower() for turn in turns)
    missing = [word for word in must_mention if word not in said]
    if missing:
        return Fault(Reason.MISSING_STEP, f"the word '{missing[0]}' has to be said in this part")
    return None


def _spoken_fault(turns: Sequence[Turn], part: Part, before: Sequence[Turn]) -> Fault | None:
    """The first thing that a turn of a part should not say."""
    said = [*before, *turns]
    for number, place in enumerate(range(len(before), len(said)), 1):
        turn = said[place]
        for kind, _ in forbidden_in(turn.text):
            return Fault(Reason.HEADINGS, f"turn {number} holds {kind.replace('_', ' ')}")
        if not part.closes and takes_leave(turn.text):
            return Fault(Reason.STYLE, f"turn {number} takes leave before the last part")
        is_risk = turn.role == "patient" and speaks_of_danger(turn.text)
        answers = said[place + 1 : place + 2]
        if is_risk and not any(names_help(answer.text) for answer in answers):
            return Fault(Reason.UNSAFE, f"turn {number} speaks of risk and no help is named after")
        for found in faults_of_last(said[: place + 1]):
            reason = Reason.UNSAFE if found.mark in HARMS else Reason.STYLE
            return Fault(reason, f"turn {number}: {found}")
    return None
