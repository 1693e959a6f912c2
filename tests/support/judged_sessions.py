"""Invented sessions, and judges' replies about them."""

from __future__ import annotations

import json
import re
from typing import Any

from cbtqa.records import ItemRating, Provenance, Session, StopReason, Turn
from cbtqa.simulation.instruments import Instrument, load_instrument
from tests.support.endpoint import Seen

OPENING = "Shall we first agree on what we want to talk about today?"
ANSWER = "I would like to talk about the evenings, they are the worst."
CLOSING = "Then let us see what goes through your mind on such an evening."


def session(
    arm: str = "base",
    patient: str = "ana",
    *,
    number: int = 1,
    replicate: int = 1,
    turns: tuple[Turn, ...] | None = None,
    stop: StopReason = "ended",
    extra_words: int = 0,
) -> Session:
    """A short session that differs by arm, patient, number and replicate."""
    code = sum(map(ord, arm))  # tells arms apart without their name
    made = turns or (
        Turn(role="therapist", text=OPENING, reasoning="SECRET THOUGHT"),
        Turn(
            role="patient",
            text=f"{ANSWER} This is what {patient} says, time {number}{replicate} ({code}).",
        ),
        Turn(role="therapist", text=CLOSING + " word" * extra_words),
    )
    return Session(
        id=f"{arm}/{patient}/s{number}/r{replicate}",
        arm=arm,
        profile_id=patient,
        number=number,
        replicate=replicate,
        turns=made,
        stop_reason=stop,
        provenance=Provenance(model=f"model-of-{arm}", version="0"),
    )


def reply(
    instrument: str = "ctrs", value: int | None = 3, *, evidence: str = OPENING, **changed: Any
) -> str:
    """A reply with one value everywhere; `changed` gives an item another entry, or None to drop it."""
    entry = {"evidence": evidence, "reason": "seen once", "rating": value}
    made: dict[str, Any] = {"instrument": instrument}
    for item in load_instrument(instrument).items:
        made[item.id] = {**entry, **(changed.get(item.id) or {})}
    return json.dumps({name: one for name, one in made.items() if changed.get(name, 1) is not None})


def instrument_in(seen: Seen) -> str:
    """The instrument that a request asks about."""
    found = re.search(r"\(id: ([\w-]+)\)", seen.body["messages"][0]["content"])
    assert found is not None
    return found[1]


def ratings(
    one: Session, instrument: Instrument, values: int | dict[str, int | None], **more: Any
) -> list[ItemRating]:
    """Every item of a session rated, with one value or by item; None is an open item."""
    made = []
    for item in instrument.items:
        value = values.get(item.id, item.low) if isinstance(values, dict) else values
        reason = "open" if value is None else None
        made.append(
            ItemRating(
                session_id=one.id,
                instrument=instrument.id,
                item=item.id,
                value=value,
                unscored_reason=reason,
                **{"judge": "judge", **more},
            )
        )
    return made
