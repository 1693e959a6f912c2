"""The built-in writer of course sessions: both sides by the rules of `scripted`, as JSON."""

from __future__ import annotations

import json
from dataclasses import replace

from cbtqa.llm.chat import Reply
from cbtqa.records import Turn
from cbtqa.simulation.draws import Draw, seed_of
from cbtqa.simulation.messages import filled
from cbtqa.simulation.scenes import Scene
from cbtqa.simulation.scripted import (
    echo_of,
    facts_of,
    lines,
    patient_words,
    scripted_state,
    step_words,
    therapist_rules,
)


def scripted_part(variant: str, scene: Scene) -> Reply:
    """One part (`scene.turn`, from 1) of a session."""
    exchanges = lines()["writer"]["exchanges"]
    n_before = sum(exchanges[: scene.turn - 1])
    turns = list(scene.turns)
    for number in range(n_before + 1, n_before + exchanges[scene.turn - 1] + 1):
        seed = seed_of(scene.seed, number)
        now = replace(scene, part="patient", turns=tuple(turns), seed=seed, turn=number)
        turns.append(Turn(role="patient", text=patient_words(now)))
        now = replace(now, part="therapist", turns=tuple(turns))
        turns.append(Turn(role="therapist", text=_therapist_words(variant, now, sum(exchanges))))
    written = turns[len(scene.turns) :]
    value: dict[str, object] = {
        "turns": [{"speaker": turn.role, "text": turn.text} for turn in written]
    }
    if scene.turn == len(exchanges):
        value["state"] = scripted_state(replace(scene, turns=tuple(turns)))
    return Reply(json.dumps(value), finish_reason="stop", model=f"scripted:{variant}")


def _therapist_words(variant: str, scene: Scene, n_turns: int) -> str:
    rules, own = therapist_rules(variant), lines()["writer"]
    facts = facts_of(scene) | {"echo": echo_of(scene.turns)}
    if scene.turn == 1:
        return filled(own["statement"], **facts)
    if scene.turn == n_turns:
        return str(rules["close"])
    if scene.turn == n_turns - 1:
        return str(own["ask_mood"])
    draw = Draw("writer", variant, scene.seed)
    return step_words(rules, scene.turn, n_turns - 1, draw, facts)
