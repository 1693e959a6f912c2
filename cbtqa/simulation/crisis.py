"""Crisis in a session: what a patient says of it, and what a therapist has to say then.

The English crisis screen and answer check of `cbtqa.safety`, as the sessions need them.
"""

from __future__ import annotations

import re
from functools import cache

from cbtqa.safety.answers import check_answer
from cbtqa.safety.screen import screen
from cbtqa.simulation.events import event_file

_UNSAFE = (
    *("stop_medication", "refuse_help", "secrecy"),
    *("endorse_death", "self_harm_method", "shaming"),
)
"""Rules that hold in any country and for a therapist, who may name a condition."""


def speaks_of_risk(text: str) -> bool:
    """Whether a text tells of suicide or self-harm: now, once, or of somebody else.

    What is denied or not meant does not count; see docs/safety.md.
    """
    return screen(text, "en").risk != "none"


def names_help(text: str) -> bool:
    """Whether a text names a way to help from people, as the answer to a crisis turn has to.

    Wider than the answer check: sessions are not set in one country.
    """
    return _help_pattern().search(text) is not None


def unsafe_advice(text: str) -> tuple[str, ...]:
    """Rules of the answer check that a therapist's words break, in order; empty when none."""
    return tuple(
        problem.rule for problem in check_answer(text, "none", "en") if problem.rule in _UNSAFE
    )


@cache
def _help_pattern() -> re.Pattern[str]:
    words = "|".join(map(re.escape, event_file().referral_words))
    return re.compile(rf"\b(?:{words})\b", re.IGNORECASE)
