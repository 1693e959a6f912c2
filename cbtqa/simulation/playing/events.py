"""Mid-session events: which turn of which patient gets a note, the same in every arm.

plan_events(study.events, seed=7, profile_id="test-ines", number=1, replicate=1)
{9: "tiredness", 14: "bad_message"}
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache, lru_cache
from pathlib import Path

from cbtqa.errors import ConfigError
from cbtqa.files import parse_record, read_yaml
from cbtqa.records import NonEmptyText, Record
from cbtqa.safety.answers import HARMS, check_in_both, is_at_stake
from cbtqa.safety.screen import screen
from cbtqa.simulation.draws import Draw
from cbtqa.simulation.study import Events, shipped_yaml


class Event(Record):
    note: NonEmptyText
    """Shown to the patient; the therapist never sees it."""
    says: tuple[NonEmptyText, ...] = ()
    """Lines of the scripted patient."""
    is_crisis: bool = False
    """The therapist's next turn has to name a way to help from people."""


class EventFile(Record):
    sets: dict[str, tuple[str, ...]]
    events: dict[str, Event]
    referral_words: tuple[str, ...]


@cache
def event_file() -> EventFile:
    return EventFile.model_validate(shipped_yaml("events.yaml"))


@cache
def load_events(name: str) -> Mapping[str, Event]:
    """The events of a shipped set, or of a YAML file of your own (`events:` id to event).

    Raises:
        ConfigError: no such set.
        DataError: the file is not what it should be.
    """
    shipped = event_file()
    if name in shipped.sets:
        return {event: shipped.events[event] for event in shipped.sets[name]}
    if not name.endswith((".yaml", ".yml")):
        known = ", ".join(shipped.sets)
        raise ConfigError(f"no event set '{name}'", hint=f"shipped: {known}; or a YAML file")
    value = read_yaml(Path(name))
    own = value if isinstance(value, dict) else {}
    made = {"sets": {}, "referral_words": shipped.referral_words, **own}
    return parse_record(EventFile, made, name).events


def plan_events(
    settings: Events, *, seed: int, profile_id: str, number: int, replicate: int, arm: str = ""
) -> dict[int, str]:
    """Patient turn (from 1) to event id.

    Args:
        arm: enters the draw only where the study has `drawn: per_arm`.
    """
    if settings.probability == 0:
        return {}
    whose = (arm,) if settings.drawn == "per_arm" else ()
    ids = sorted(load_events(settings.set))
    planned: dict[int, str] = {}
    for turn in range(settings.first, settings.last + 1):
        # a draw of its own for every turn: a wider range moves no event
        draw = Draw("event", seed, profile_id, number, replicate, turn, *whose)
        is_full = settings.most is not None and len(planned) >= settings.most
        if draw.share() < settings.probability and not is_full:
            planned[turn] = draw.one(ids)
    return planned


_UNSAFE = {
    *("stop_medication", "refuse_help", "secrecy"),
    *("endorse_death", "self_harm_method", "shaming"),
    *HARMS,
} - {"diagnosis", "claimed_licence"}
"""Rules and classes of the answer check that hold in any country and for a therapist, who has a
licence and may speak of a diagnosis."""


@lru_cache(maxsize=1 << 14)
def speaks_of_risk(text: str) -> bool:
    """Whether a text speaks of suicide or self-harm: now, once, or of somebody else.

    What is denied or not meant does not count; see docs/safety.md. Graded once for a text: a turn
    is looked at when it is answered, when it is read and when it is checked, and lines of the
    built-in players come back.
    """
    return screen(text, is_spoken=True).risk != "none"


def names_help(text: str) -> bool:
    """Whether a text names a way to help from people, as the answer to a crisis turn has to.

    Wider than the answer check: sessions are not set in one country.
    """
    return _help_pattern().search(text) is not None


@lru_cache(maxsize=1 << 14)
def unsafe_advice(text: str, before: str = "") -> tuple[str, ...]:
    """Rules of the answer check that a therapist's words break, in order; empty when none.

    Args:
        before: what the patient said just before.
    """
    at_stake = is_at_stake(before, screen(before).route) if before else False
    problems = check_in_both(text, "none", at_stake=at_stake)
    return tuple(problem.rule for problem in problems if problem.rule in _UNSAFE)


@cache
def _help_pattern() -> re.Pattern[str]:
    words = "|".join(map(re.escape, event_file().referral_words))
    return re.compile(rf"\b(?:{words})\b", re.IGNORECASE)
