"""The built-in players: seeded rules, no model, so that everything runs without key or network.

    scripted_reply("attentive", scene)      # Reply(model="scripted:attentive", ...)

Variants of the therapist differ in what they do and when they end, so that arms differ. What they
write is for trying things out and for tests; it is marked as no source of training data.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from importlib.resources import files
from typing import Any

from cbtqa.errors import ConfigError
from cbtqa.files import parse_yaml
from cbtqa.llm.chat import Reply
from cbtqa.records import Turn
from cbtqa.simulation.draws import Draw, seed_of
from cbtqa.simulation.playing.events import load_events, speaks_of_risk
from cbtqa.simulation.playing.messages import Scene, filled, turn_content

ECHO_WORDS = 9
DWELL_FROM = 6
"""Step of a plan at which a long session goes round the last four once more."""


@cache
def lines() -> Any:
    """The sentences of scripted.yaml."""
    text = files(__package__).joinpath("scripted.yaml").read_text(encoding="utf-8")
    return parse_yaml(text)


def scripted_reply(variant: str, scene: Scene, attempt: int = 1) -> Reply:
    """The rules' answer, the same for the same scene.

    Raises:
        ConfigError: no such variant of the therapist.
    """
    is_therapist = scene.part == "therapist"
    text = _therapist(variant, scene) if is_therapist else _PARTS[scene.part](scene)
    return Reply(text, finish_reason="stop", model=f"scripted:{variant}")


def facts_of(scene: Scene) -> dict[str, str]:
    """What this patient's story is about, also with a capital at the beginning."""
    profile = scene.casting.profile
    options = lines()["vignettes"]
    first = Draw("vignette", profile.id).number(0, len(options) - 1)
    # a course turns to another matter every third session
    facts = dict(options[(first + (scene.casting.number - 1) // 3) % len(options)])
    facts["name"] = profile.name
    return facts | {key.capitalize(): value[0].upper() + value[1:] for key, value in facts.items()}


def _one(options: Sequence[str], draw: Draw, facts: Mapping[str, str]) -> str:
    return filled(draw.one(options), **facts)


# --- the patient ---------------------------------------------------------------------------------

_TOPICS = (
    ("mood", "from 0 to 10", "sum up"),
    ("try", "step", "homework"),
    ("matter", "towards", "room for", "want to be"),
    ("doesn't fit", "leaves out", "fairer", "friend told"),
    ("mind", "say to yourself", "radio"),
    ("feel", "body", "notice", "shows up"),
    ("do then", "cost", "tried so far", "the way"),
    ("happened", "step by step", "came first", "tell me more"),
)
_ANSWERS = ("closing", "plan", "matters", "found", "thought", "feel", "avoid", "tell")


def patient_words(scene: Scene) -> str:
    """What the patient says next."""
    said = lines()["patient"]
    draw = Draw("patient", scene.seed, scene.revision)
    facts = facts_of(scene) | {"mood": str(draw.number(3, 7))}
    if scene.event is not None:
        event = load_events(scene.casting.study.events.set)[scene.event]
        if event.says:
            return draw.one(event.says)
    if not scene.turns:
        key = "opening_later" if scene.casting.state else "opening"
        return _one(said[key], draw, facts)
    heard = scene.turns[-1].text.lower()
    answer = next(
        (
            key
            for words, key in zip(_TOPICS, _ANSWERS, strict=True)
            if any(w in heard for w in words)
        ),
        "doubt",
    )
    if scene.turns[-1].text.count(" ") > 45 and draw.share() < 0.7:
        return str(draw.one(said["brief"]))  # nobody answers a lecture at length
    told = [_one(said[answer], draw, facts)]
    archetype = scene.casting.profile.archetype
    if archetype in said["manners"] and draw.share() < 0.5:
        told.append(draw.one(said["manners"][archetype]))
    elif answer != "doubt" and draw.share() < 0.25:
        told.append(draw.one(said["doubt"]))
    return " ".join(told)


# --- the therapist -------------------------------------------------------------------------------


def therapist_rules(variant: str) -> Mapping[str, Any]:
    """The rules of a therapist.

    Raises:
        ConfigError: no such variant.
    """
    variants: Mapping[str, Mapping[str, Any]] = lines()["therapist"]["variants"]
    if variant not in variants:
        known = ", ".join(variants)
        raise ConfigError(f"no scripted therapist '{variant}'", hint=f"there are: {known}")
    return variants[variant]


def _therapist(variant: str, scene: Scene) -> str:
    own, rules = lines()["therapist"], therapist_rules(variant)
    draw = Draw("therapist", variant, scene.seed)
    facts = facts_of(scene) | {"echo": echo_of(scene.turns)}
    reasoning = filled(rules["thinking"], **facts)
    text = _therapist_words(rules, own, scene, draw, facts)
    n_last = _last_turn(rules, scene)
    is_crisis = speaks_of_risk(scene.turns[-1].text)
    ends = scene.casting.study.end_token and scene.turn >= n_last and not is_crisis
    turn = Turn(role="therapist", text=text, reasoning=reasoning)
    return turn_content(turn, scene.casting.arm.reasoning, ends=ends)


def _last_turn(rules: Mapping[str, Any], scene: Scene) -> int:
    """The turn after which this therapist ends: drawn once for the whole session."""
    casting = scene.casting
    draw = Draw("end", casting.study.seed, casting.profile.id, casting.number, rules["about"])
    return draw.number(*rules["ends_after"])


def _therapist_words(
    rules: Mapping[str, Any],
    own: Mapping[str, Any],
    scene: Scene,
    draw: Draw,
    facts: dict[str, str],
) -> str:
    if speaks_of_risk(scene.turns[-1].text):
        return str(own["crisis"])
    if scene.revision:
        return _one(own["brief"], Draw("brief", scene.seed, scene.revision), facts)
    n_last = _last_turn(rules, scene)
    if scene.turn >= n_last and scene.casting.study.end_token:
        return str(rules["close"])
    n_turns = n_last - 1 if scene.casting.study.end_token else scene.casting.study.turns.max
    return step_words(rules, scene.turn, n_turns, draw, facts)


def step_words(
    rules: Mapping[str, Any], turn: int, n_turns: int, draw: Draw, facts: Mapping[str, str]
) -> str:
    """What a therapist of these rules says in its n-th turn (from 1) of so many."""
    steps = rules["steps"]
    if len(steps) < 6:
        # no plan: any step may come at any time
        return _one(steps[draw.number(0, len(steps) - 1)], draw, facts)
    return _one(steps[_place(turn - 1, len(steps), n_turns)], draw, facts)


def _place(number: int, n_steps: int, n_turns: int) -> int:
    """Where in the plan a turn (from 0) is: a short session leaves out, a long one dwells."""
    if n_turns <= n_steps:
        return min(number * (n_steps - 1) // max(1, n_turns - 1), n_steps - 1)
    n_more = n_turns - n_steps
    if number < DWELL_FROM:
        return number
    if number < DWELL_FROM + n_more:
        return DWELL_FROM - 1 - (number - DWELL_FROM) % 4
    return min(number - n_more, n_steps - 1)


def echo_of(turns: Sequence[Turn]) -> str:
    """A few words of what the patient said last."""
    text = turns[-1].text if turns else ""
    sentences = re.split(r"(?<=[.!?])\s+", text.strip())
    words = max(sentences, key=len).rstrip(".!?").split()
    return " ".join(words[:ECHO_WORDS])


# --- those who watch and write down --------------------------------------------------------------


def _supervisor(scene: Scene) -> str:
    rules = lines()["supervisor"]
    earlier = {turn.text for turn in scene.turns if turn.role == "therapist"}
    if len(scene.draft.split()) > rules["most_words"]:
        return _verdict(rules["too_long"])
    return _verdict(rules["repeats"] if scene.draft in earlier else "")


def _validator(scene: Scene) -> str:
    earlier = {turn.text for turn in scene.turns if turn.role == "patient"}
    return _verdict(lines()["validator"]["repeats"] if scene.draft in earlier else "")


def _verdict(complaint: str) -> str:
    return json.dumps({"accepted": not complaint, "feedback": complaint})


def _summariser(scene: Scene) -> str:
    return json.dumps(scripted_state(scene))


def scripted_state(scene: Scene) -> dict[str, Any]:
    """What the rules hand to the next session."""
    rules, facts = lines()["summariser"], facts_of(scene)
    moods = [re.search(r"\b(\d+) (?:out )?of ten\b", turn.text) for turn in scene.turns]
    named = [int(found[1]) for found in moods if found]
    agreed = any("homework" in turn.text or "step" in turn.text for turn in scene.turns)
    return {
        "agenda": [filled(item, **facts) for item in rules["agenda"]],
        "homework": [facts["step"]] if agreed else [],
        "conceptualisation": filled(rules["conceptualisation"], **facts),
        "mood": named[-1] if named else None,
        "summary": filled(rules["summary"], **facts),
    }


_PARTS: dict[str, Callable[[Scene], str]] = {
    "patient": patient_words,
    "supervisor": _supervisor,
    "validator": _validator,
    "summariser": _summariser,
}


# --- scripted writer -----------------------------------------------------------------------------
# The built-in writer of course sessions: both sides by the rules of `scripted`, as JSON.


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
        turns.append(
            Turn(
                role="therapist",
                text=_scripted_writer_therapist_words(variant, now, sum(exchanges)),
            )
        )
    written = turns[len(scene.turns) :]
    value: dict[str, object] = {
        "turns": [{"speaker": turn.role, "text": turn.text} for turn in written]
    }
    if scene.turn == len(exchanges):
        value["state"] = scripted_state(replace(scene, turns=tuple(turns)))
    return Reply(json.dumps(value), finish_reason="stop", model=f"scripted:{variant}")


def _scripted_writer_therapist_words(variant: str, scene: Scene, n_turns: int) -> str:
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
