"""Supervisors and validators: a verdict on a draft before it is said.

A verdict that cannot be read is no acceptance: the turn is kept and marked `unsupervised`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from cbtqa.llm.chat import Fault, Reply
from cbtqa.llm.journal import State
from cbtqa.llm.structured import parse_object
from cbtqa.prompts import fence, load_prompt
from cbtqa.records import Reason, Session, SessionState
from cbtqa.simulation.draws import seed_of
from cbtqa.simulation.playing.course import cbt_course
from cbtqa.simulation.playing.messages import Casting, Scene, wording
from cbtqa.simulation.playing.players import Call, OpenPlayer, Players
from cbtqa.simulation.sessions import transcript_text
from cbtqa.simulation.study import Player

APPROACHES = {"cbt": "cognitive behavioural therapy", "act": "acceptance and commitment therapy"}
VERDICT_SCHEMA = {
    "type": "object",
    "properties": {"accepted": {"type": "boolean"}, "feedback": {"type": "string"}},
    "required": ["accepted", "feedback"],
    "additionalProperties": False,
}


@dataclass(frozen=True)
class Verdict:
    """What a supervisor says of a draft."""

    is_accepted: bool
    feedback: str = ""
    """What has to change; empty when accepted, or when there is no readable verdict."""
    trouble: str = ""
    """Why there is no verdict."""


def read_verdict(reply: Reply) -> Verdict | Fault:
    """The verdict in a reply; a turned-away draft without feedback is no verdict."""
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
    players: Players,
    supervisor: OpenPlayer,
    player: Player,
    scene: Scene,
    reasoning: str | None,
    key: str,
) -> Verdict | Fault:
    """What the supervisor (or the patient's validator) says of `scene.draft`.

    A fault is the endpoint's failure; the same question may be answered in a later run.
    """

    def fault_of(reply: Reply) -> Fault | None:
        found = read_verdict(reply)
        return found if isinstance(found, Fault) else None

    outcome = await players.ask(
        Call(
            key=key,
            player=supervisor,
            scene=scene,
            messages=_messages(scene, reasoning),
            sampling=player.sampling(seed_of(scene.seed, scene.part, scene.revision)),
            check=fault_of,
            json_schema=VERDICT_SCHEMA,
        )
    )
    if outcome.is_accepted and outcome.reply is not None:
        found = read_verdict(outcome.reply)
        if isinstance(found, Verdict):
            return found
    detail = outcome.fault.detail if outcome.fault else "no reply"
    if outcome.state is State.ENDPOINT:
        return Fault(Reason.ENDPOINT, detail)
    return Verdict(False, trouble=f"no verdict: {detail}")


def _messages(scene: Scene, reasoning: str | None) -> list[dict[str, str]]:
    casting, texts = scene.casting, wording()
    said = "\n".join(f"{turn.role.capitalize()}: {turn.text}" for turn in scene.turns)
    shared: dict[str, Any] = {
        "shape": texts["shapes"]["verdict"],
        "transcript": fence(said or "(nothing yet)"),
        "draft": fence(scene.draft),
    }
    if scene.part == "supervisor":
        return load_prompt("session_supervisor").render(
            approach=APPROACHES[casting.study.approach],
            criteria="\n".join(f"- {one}" for one in texts["supervision"]["therapist"]),
            reasoning=fence(reasoning or "(none)"),
            **shared,
        )
    return load_prompt("session_patient_check").render(
        criteria="\n".join(f"- {one}" for one in texts["supervision"]["patient"]),
        narrative=casting.profile.narrative,
        manner=casting.profile.behaviour,
        **shared,
    )


# --- carrying ------------------------------------------------------------------------------------
# What one session of a course hands to the next: asked from a model, checked, typed.
#
# found = read_state(reply) # SessionState, or the Fault

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
    players: Players, summariser: OpenPlayer, player: Player, casting: Casting, session: Session
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
    outcome = await players.ask(
        Call(
            key=f"{session.id}|{casting.fingerprint}|summary|v0",
            player=summariser,
            scene=scene,
            messages=messages,
            sampling=player.sampling(scene.seed),
            check=fault_of,
            json_schema=STATE_SCHEMA,
        )
    )
    if outcome.is_accepted and outcome.reply is not None:
        return read_state(outcome.reply)
    fault = outcome.fault or Fault(Reason.EMPTY, "no reply")
    return Fault(fault.reason, f"summariser: {fault.detail}")
