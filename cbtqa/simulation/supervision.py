"""Supervisors and validators: a verdict on a draft before it is said.

A verdict that cannot be read is no acceptance: the turn is kept and marked `unsupervised`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cbtqa.llm.chat import Fault, Reply
from cbtqa.llm.journal import State
from cbtqa.llm.structured import parse_object
from cbtqa.prompts import fence, load_prompt
from cbtqa.records import Reason
from cbtqa.simulation.desk import Call, Desk, Voice
from cbtqa.simulation.draws import seed_of
from cbtqa.simulation.messages import wording
from cbtqa.simulation.scenes import Scene
from cbtqa.simulation.study import Player

APPROACHES = {
    "cbt": "cognitive behavioural therapy",
    "act": "acceptance and commitment therapy",
}
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
    desk: Desk, voice: Voice, player: Player, scene: Scene, reasoning: str | None, key: str
) -> Verdict | Fault:
    """What the supervisor (or the patient's validator) says of `scene.draft`.

    A fault is the endpoint's failure; the same question may be answered in a later run.
    """

    def fault_of(reply: Reply) -> Fault | None:
        found = read_verdict(reply)
        return found if isinstance(found, Fault) else None

    outcome = await desk.ask(
        Call(
            key_text=key,
            voice=voice,
            scene=scene,
            messages=_messages(scene, reasoning),
            sampling=player.sampling(seed_of(scene.seed, scene.part, scene.revision)),
            reads=fault_of,
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
