"""Sessions of a course written by one model: four calls a session, each checked before it counts.

    session = await write_session(casting, 1, therapist, players)
    session.stop_reason     # written; or why it was given up, with the parts there are

A part that breaks a rule is asked for again with the rule named. The last part hands over the
state of the course as typed fields, so that nothing has to be found in a text later.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from cbtqa.llm.chat import Fault, Message, Reply
from cbtqa.llm.journal import Outcome, State
from cbtqa.llm.structured import parse_object
from cbtqa.prompts import fence, load_prompt
from cbtqa.records import Reason, Session, SessionState, StopReason, Turn
from cbtqa.simulation.draws import seed_of
from cbtqa.simulation.playing.course import Course, Part, cbt_course
from cbtqa.simulation.playing.events import names_help, speaks_of_risk
from cbtqa.simulation.playing.messages import Casting, Scene, wording
from cbtqa.simulation.playing.players import Call, OpenPlayer, Players
from cbtqa.simulation.playing.session import provenance_of, session_seed
from cbtqa.simulation.playing.supervision import STATE_SCHEMA, describe_state, state_of
from cbtqa.simulation.sessions import session_id

FEWEST_TURNS = 4
Role = Literal["patient", "therapist"]
_TURNS_SCHEMA: dict[str, Any] = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {
            "speaker": {"type": "string", "enum": ["patient", "therapist"]},
            "text": {"type": "string"},
        },
        "required": ["speaker", "text"],
        "additionalProperties": False,
    },
}


def _schema(**fields: Mapping[str, Any]) -> dict[str, Any]:
    required = list(fields)
    shape: dict[str, Any] = {"type": "object", "properties": fields, "required": required}
    return shape | {"additionalProperties": False}


PART_SCHEMA = _schema(turns=_TURNS_SCHEMA)
LAST_PART_SCHEMA = _schema(turns=_TURNS_SCHEMA, state=STATE_SCHEMA)


@dataclass(frozen=True)
class WrittenPart:
    """A part that passed its checks."""

    turns: tuple[Turn, ...]
    state: SessionState | None


async def write_session(
    casting: Casting, replicate: int, writer: OpenPlayer, players: Players
) -> Session:
    """Writes one session of the course.

    Raises:
        GateClosedError: the run is stopping.
    """
    course, seed = cbt_course(), session_seed(casting, replicate)
    identity = session_id(casting.arm.name, casting.profile.id, casting.number, replicate)
    turns: list[Turn] = []
    outcomes: list[Outcome] = []
    state: SessionState | None = None
    stop: tuple[StopReason, str] = ("written", "")
    for place, part in enumerate(course.parts, 1):
        key = f"{identity}|{casting.fingerprint}|part{place}|v0"
        scene = Scene("course_part", casting, tuple(turns), seed_of(seed, "part", place), place)
        outcome = await players.ask(_call(key, scene, writer, part, course))
        outcomes.append(outcome)
        written = _written(outcome, part, course, turns)
        if isinstance(written, Fault):
            is_endpoint = outcome.state is State.ENDPOINT
            stop = ("endpoint" if is_endpoint else "no_answer", f"{part.id}: {written.detail}")
            break
        turns += written.turns
        state = written.state
    prompt = load_prompt("course_part")
    return Session(
        id=identity,
        arm=casting.arm.name,
        profile_id=casting.profile.id,
        number=casting.number,
        replicate=replicate,
        phase=course.phase_of(casting.number).id,
        turns=tuple(turns),
        stop_reason=stop[0],
        stop_detail=stop[1],
        seed=seed,
        state=state,
        provenance=provenance_of(casting.arm.therapist, prompt, seed, outcomes),
    )


def _call(key: str, scene: Scene, writer: OpenPlayer, part: Part, course: Course) -> Call:
    def fault_of(reply: Reply) -> Fault | None:
        found = read_part(reply, part, course, scene.turns)
        return found if isinstance(found, Fault) else None

    return Call(
        key=key,
        player=writer,
        scene=scene,
        messages=_messages(scene, part, course),
        sampling=scene.casting.arm.therapist.sampling(scene.seed),
        check=fault_of,
        json_schema=LAST_PART_SCHEMA if part.closes else PART_SCHEMA,
    )


def _messages(scene: Scene, part: Part, course: Course) -> Sequence[Message]:
    casting, shapes = scene.casting, wording()["shapes"]
    phase = course.phase_of(casting.number)
    said = "\n".join(f"{turn.role.capitalize()}: {turn.text}" for turn in scene.turns)
    return load_prompt("course_part").render(
        name=casting.profile.name,
        narrative=casting.profile.narrative,
        manner=casting.profile.behaviour,
        phase=f"session {casting.number} of {course.n_sessions}, {phase.id}",
        goals=f"What belongs to this phase: {phase.goals}.",
        script=course.scripts.get(casting.number, ""),
        part=part.asks,
        next_speaker=next_speaker(scene.turns),
        shape=shapes["turns_and_state" if part.closes else "turns"],
        state=describe_state(casting.state),
        so_far=fence(said or "(nothing yet)"),
    )


def next_speaker(turns: Sequence[Turn]) -> Role:
    """Who speaks after these turns; the patient opens every session."""
    return "therapist" if turns and turns[-1].role == "patient" else "patient"


# --- checks --------------------------------------------------------------------------------------


def read_part(
    reply: Reply, part: Part, course: Course, before: Sequence[Turn]
) -> WrittenPart | Fault:
    """The turns of a part, or the first rule that it breaks."""
    found = parse_object(reply.text, lambda value: "turns" in value)
    if isinstance(found, Fault):
        return found
    turns = _turns(found.get("turns"), next_speaker(before))
    if isinstance(turns, Fault):
        return turns
    fault = _spoken_fault(turns, part, course)
    if fault is not None:
        return fault
    if not part.closes:
        return WrittenPart(turns, None)
    state = state_of(found.get("state"))
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


def _spoken_fault(turns: Sequence[Turn], part: Part, course: Course) -> Fault | None:
    for number, turn in enumerate(turns, 1):
        for name, pattern in course.forbidden.items():
            if re.search(pattern, turn.text, re.IGNORECASE | re.MULTILINE):
                return Fault(Reason.HEADINGS, f"turn {number} holds {name.replace('_', ' ')}")
        if not part.closes and course.is_closing(turn.text):
            return Fault(Reason.BAD_LABEL, f"turn {number} takes leave before the last part")
        answer = turns[number].text if number < len(turns) else ""
        is_risk = turn.role == "patient" and speaks_of_risk(turn.text)
        if is_risk and not names_help(answer):
            return Fault(Reason.UNSAFE, f"turn {number} speaks of risk and no help is named after")
    said = " ".join(turn.text.lower() for turn in turns)
    missing = [word for word in part.must_mention if word not in said]
    if missing:
        return Fault(Reason.MISSING_STEP, f"the word '{missing[0]}' has to be said in this part")
    return None


def _written(
    outcome: Outcome, part: Part, course: Course, before: Sequence[Turn]
) -> WrittenPart | Fault:
    if outcome.is_accepted and outcome.reply is not None:
        return read_part(outcome.reply, part, course, before)
    return outcome.fault or Fault(Reason.EMPTY, "no reply")
