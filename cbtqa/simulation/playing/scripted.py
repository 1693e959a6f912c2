"""The built-in players: seeded rules, no model, so that everything runs without key or network.

    scripted_reply("attentive", context)      # Reply(model="scripted:attentive", ...)

Variants of the therapist differ in what they do and when they end, so that arms differ. What they
write is for trying things out and for tests; it is marked as no source of training data.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from cbtqa.errors import ConfigError
from cbtqa.llm.chat import Reply
from cbtqa.records import Turn
from cbtqa.simulation.draws import Draw, seed_of
from cbtqa.simulation.playing.events import load_events, speaks_of_risk
from cbtqa.simulation.playing.messages import TurnContext, filled, turn_content
from cbtqa.simulation.study import shipped_yaml

ECHO_WORDS = 9
DWELL_FROM = 6
"""Step of a plan at which a long session goes round the last four once more."""


@cache
def lines() -> Any:
    return shipped_yaml("scripted.yaml")


def scripted_reply(variant: str, context: TurnContext) -> Reply:
    """The rules' answer, the same for the same context.

    Raises:
        ConfigError: no such variant of the therapist.
    """
    if context.part in ("therapist", "course_part"):
        write = _therapist if context.part == "therapist" else _course_part
        text = write(variant, context)
    else:
        text = _PARTS[context.part](context)
    return Reply(text, finish_reason="stop", model=f"scripted:{variant}")


def facts_of(context: TurnContext) -> dict[str, str]:
    """What this patient's story is about, also with a capital at the beginning."""
    profile = context.view.profile
    options = lines()["vignettes"]
    first = Draw("vignette", profile.id).number(0, len(options) - 1)
    # a course turns to another matter every third session
    facts = dict(options[(first + (context.view.number - 1) // 3) % len(options)])
    facts["name"] = profile.name
    return facts | {key.capitalize(): value[0].upper() + value[1:] for key, value in facts.items()}


def _one(options: Sequence[str], draw: Draw, facts: Mapping[str, str]) -> str:
    return filled(draw.one(options), **facts)


def patient_words(context: TurnContext) -> str:
    said = lines()["patient"]
    draw = Draw("patient", context.seed, context.revision)
    facts = facts_of(context) | {"mood": str(draw.number(3, 7))}
    if context.event is not None:
        event = load_events(context.view.study.events.set)[context.event]
        if event.says:
            return draw.one(event.says)
    if not context.turns:
        key = "opening_later" if context.view.state else "opening"
        return _one(said[key], draw, facts)
    heard = context.turns[-1].text.lower()
    topics = said["topics"].items()
    answer = next((key for key, words in topics if any(one in heard for one in words)), "doubt")
    if context.turns[-1].text.count(" ") > 45 and draw.share() < 0.7:
        return str(draw.one(said["brief"]))  # nobody answers a lecture at length
    sentences = [_one(said[answer], draw, facts)]
    archetype = context.view.profile.archetype
    if archetype in said["manners"] and draw.share() < 0.5:
        sentences.append(draw.one(said["manners"][archetype]))
    elif answer != "doubt" and draw.share() < 0.25:
        sentences.append(draw.one(said["doubt"]))
    return " ".join(sentences)


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


def _therapist(variant: str, context: TurnContext) -> str:
    own, rules = lines()["therapist"], therapist_rules(variant)
    view, study = context.view, context.view.study
    draw = Draw("therapist", variant, context.seed)
    facts = facts_of(context) | {"echo": echo_of(context.turns)}
    # the turn after which this therapist ends: drawn once for the whole session
    last = Draw("end", study.seed, view.profile.id, view.number, rules["about"])
    n_last = last.number(*rules["ends_after"])
    is_over = study.end_token and context.turn >= n_last
    is_crisis = speaks_of_risk(context.turns[-1].text)
    if is_crisis:
        text = str(own["crisis"])
    elif context.revision:
        text = _one(own["brief"], Draw("brief", context.seed, context.revision), facts)
    elif is_over:
        text = str(rules["close"])
    else:
        n_turns = n_last - 1 if study.end_token else study.turns.max
        text = step_words(rules, context.turn, n_turns, draw, facts)
    turn = Turn(role="therapist", text=text, reasoning=filled(rules["thinking"], **facts))
    return turn_content(turn, view.arm.reasoning, ends=is_over and not is_crisis)


def step_words(
    rules: Mapping[str, Any], turn: int, n_turns: int, draw: Draw, facts: Mapping[str, str]
) -> str:
    """The words of a therapist of these rules in its n-th turn (from 1) of so many."""
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


def _supervisor(context: TurnContext) -> str:
    rules, role = lines()[context.part], "patient" if context.part == "validator" else "therapist"
    complaint = ""
    if len(context.draft.split()) > rules.get("most_words", math.inf):
        complaint = rules["too_long"]
    elif any(turn.role == role and turn.text == context.draft for turn in context.turns):
        complaint = rules["repeats"]
    return json.dumps({"accepted": not complaint, "feedback": complaint})


def scripted_state(context: TurnContext) -> dict[str, Any]:
    """What the rules hand to the next session."""
    rules, facts = lines()["summariser"], facts_of(context)
    moods = [re.search(r"\b(\d+) (?:out )?of ten\b", turn.text) for turn in context.turns]
    named = [int(found[1]) for found in moods if found]
    agreed = any("homework" in turn.text or "step" in turn.text for turn in context.turns)
    return {
        "agenda": [filled(item, **facts) for item in rules["agenda"]],
        "homework": [facts["step"]] if agreed else [],
        "conceptualisation": filled(rules["conceptualisation"], **facts),
        "mood": named[-1] if named else None,
        "summary": filled(rules["summary"], **facts),
    }


_PARTS: dict[str, Callable[[TurnContext], str]] = {
    "patient": patient_words,
    "supervisor": _supervisor,
    "validator": _supervisor,
    "summariser": lambda context: json.dumps(scripted_state(context)),
}


def _course_part(variant: str, context: TurnContext) -> str:
    """One part (`context.turn`, from 1) of a session, both sides, as JSON."""
    exchanges = lines()["writer"]["exchanges"]
    n_before = sum(exchanges[: context.turn - 1])
    turns = list(context.turns)
    for number in range(n_before + 1, n_before + exchanges[context.turn - 1] + 1):
        seed = seed_of(context.seed, number)
        now = replace(context, part="patient", turns=tuple(turns), seed=seed, turn=number)
        turns.append(Turn(role="patient", text=patient_words(now)))
        now = replace(now, part="therapist", turns=tuple(turns))
        words = _written_words(variant, now, sum(exchanges))
        turns.append(Turn(role="therapist", text=words))
    written = turns[len(context.turns) :]
    value: dict[str, object] = {
        "turns": [{"speaker": turn.role, "text": turn.text} for turn in written]
    }
    if context.turn == len(exchanges):
        value["state"] = scripted_state(replace(context, turns=tuple(turns)))
    return json.dumps(value)


def _written_words(variant: str, context: TurnContext, n_turns: int) -> str:
    rules, own = therapist_rules(variant), lines()["writer"]
    facts = facts_of(context) | {"echo": echo_of(context.turns)}
    if context.turn == 1:
        return filled(own["statement"], **facts)
    if context.turn == n_turns:
        return str(rules["close"])
    if context.turn == n_turns - 1:
        return str(own["ask_mood"])
    draw = Draw("writer", variant, context.seed)
    return step_words(rules, context.turn, n_turns - 1, draw, facts)
