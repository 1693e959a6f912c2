"""What one session of a course hands to the next: asked from a model, checked, typed.

found = read_state(reply)        # SessionState, or the Fault
"""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from cbtqa.llm.chat import Fault, Reply
from cbtqa.llm.structured import parse_object
from cbtqa.prompts import fence, load_prompt
from cbtqa.records import Reason, Session, SessionState
from cbtqa.simulation.course import cbt_course
from cbtqa.simulation.desk import Call, Desk, Voice
from cbtqa.simulation.draws import seed_of
from cbtqa.simulation.messages import Casting, wording
from cbtqa.simulation.scenes import Scene
from cbtqa.simulation.sessions import transcript_text
from cbtqa.simulation.study import Player

STATE_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "agenda": {"type": "array", "items": {"type": "string"}},
        "homework": {"type": "array", "items": {"type": "string"}},
        "conceptualisation": {"type": "string"},
        "mood": {"type": ["integer", "null"], "minimum": 0, "maximum": 10},
        "summary": {"type": "string"},
    },
    "required": ["agenda", "homework", "conceptualisation", "mood", "summary"],
    "additionalProperties": False,
}


def state_of(value: object) -> SessionState | Fault:
    """A checked state from decoded JSON; a short summary is a fault."""
    try:
        state = SessionState.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"]))
        return Fault(Reason.NOT_JSON, f"state: {field}: {first['msg']}")
    least, n_words = cbt_course().summary_words, len(state.summary.split())
    if n_words < least:
        return Fault(Reason.STEP_TOO_SHORT, f"the summary has {n_words} words, at least {least}")
    return state


def read_state(reply: Reply) -> SessionState | Fault:
    """The state in a reply."""
    found = parse_object(reply.text, lambda value: "summary" in value)
    return found if isinstance(found, Fault) else state_of(found)


def describe_state(state: SessionState | None) -> str:
    """The state as a model is shown it."""
    if state is None:
        return "(none; this is the first session)"
    return state.model_dump_json(indent=1)


async def ask_state(
    desk: Desk, voice: Voice, player: Player, casting: Casting, session: Session
) -> SessionState | Fault:
    """What a played session hands over, or why there is nothing.

    Raises:
        GateClosedError: the run is stopping.
    """

    def fault_of(reply: Reply) -> Fault | None:
        found = read_state(reply)
        return found if isinstance(found, Fault) else None

    scene = Scene(
        part="summariser",
        casting=casting,
        turns=session.turns,
        seed=seed_of(session.seed, "summariser"),
        turn=casting.number,
    )
    messages = load_prompt("session_summary").render(
        shape=wording()["shapes"]["state"],
        number=str(casting.number),
        phase=f" ({session.phase})" if session.phase else "",
        previous=describe_state(casting.state),
        transcript=fence(transcript_text(session)),
    )
    outcome = await desk.ask(
        Call(
            key_text=f"{session.id}|{casting.fingerprint}|summary|v0",
            voice=voice,
            scene=scene,
            messages=messages,
            sampling=player.sampling(scene.seed),
            reads=fault_of,
            json_schema=STATE_SCHEMA,
        )
    )
    if outcome.is_accepted and outcome.reply is not None:
        return read_state(outcome.reply)
    fault = outcome.fault or Fault(Reason.EMPTY, "no reply")
    return Fault(fault.reason, f"summariser: {fault.detail}")
