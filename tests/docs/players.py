"""What the scripted endpoint answers to any request that a page makes: by the form it asks for."""

from __future__ import annotations

import json
import re
from typing import Any

from tests.support.answers import good_answer, mark_of, steps
from tests.support.endpoint import Answer, Seen, ok
from tests.support.judged_sessions import instrument_in

WHEN = ("on Monday", "at lunch", "late at night", "on the bus", "after the call", "at the desk")
WHAT = (
    *("The floor creaked", "The room went quiet", "Nobody asked how it went"),
    *("A friend sent a photo", "The kettle was still warm", "The letter stayed closed"),
)
THEN = (
    *("and the stairs seemed long", "so the car stayed there", "while the radio played"),
    *("and the whole week felt longer", "which surprised both of us", "before anyone arrived"),
)


def any_reply(seen: Seen) -> Answer:
    """A good reply: an answer, ratings with a quotation from what is rated, or a turn of a session."""
    form = seen.body.get("response_format") or {}
    fields = list(form.get("json_schema", {}).get("schema", {}).get("properties", {}))
    if "validation_and_empathy" in fields:
        return ok(good_answer(seen))
    if fields:
        return ok(json.dumps(_ratings(seen, fields), ensure_ascii=False))
    asked = str(seen.body["messages"][-1]["content"])
    if re.search("[一-鿿]", asked):
        values = steps(mark_of(seen), with_help=True)
        return ok("\n\n".join(value for value in values.values() if isinstance(value, str)))
    n_said = sum(message["role"] != "system" for message in seen.body["messages"])
    is_closing = n_said > 16 and "end_session" in str(seen.body["messages"][0]["content"])
    when, what, then = WHEN[n_said % 6], WHAT[n_said // 6 % 6], THEN[n_said * 5 // 7 % 6]
    return ok(f"What {when}? {what}, {then}." + (" <end_session/>" if is_closing else ""))


def _ratings(seen: Seen, fields: list[str]) -> dict[str, Any]:
    if "instrument" in fields:
        said = re.search(r"What [a-z ]+\? [A-Z][a-z ]+", seen.user_text)  # as in a turn below
        made: dict[str, Any] = {"instrument": instrument_in(seen)}
    else:
        said = re.search(r"(?s)[^\n]{8}", re.findall(r"<<<\n(.*?)\n>>>", seen.user_text, re.S)[-1])
        made = {}
    assert said is not None
    entry = {"evidence": said[0], "reason": "seen once", "rating": 1}
    return made | {name: entry for name in fields if name != "instrument"}
