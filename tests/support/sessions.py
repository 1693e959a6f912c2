"""Small studies and sessions for the tests of `cbtqa.simulation`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cbtqa
from cbtqa.llm.limits import Limits
from cbtqa.records import Provenance, Session, Turn
from cbtqa.simulation.playing.players import RunLimits
from cbtqa.simulation.study import StudySettings, parse_study

QUICK = RunLimits(Limits(in_flight=64, waits=False, max_retries=1, gone_after_s=0.3))
"""Limits without waits."""


def study_of(**changes: Any) -> StudySettings:
    """A study of two scripted arms with two of the test patients."""
    plain: dict[str, Any] = {
        "id": "small",
        "approach": "cbt",
        "seed": 5,
        "arms": [
            {"name": "attentive", "therapist": {"scripted": "attentive"}},
            {"name": "lecturing", "therapist": {"scripted": "lecturing"}},
        ],
        "patients": {"ready": "test", "n": 2},
        "turns": {"min": 2, "max": 6},
    }
    return parse_study(plain | changes, "test")


def asked_study(url: str, **changes: Any) -> StudySettings:
    """A study of one arm whose therapist is asked at a loopback server."""
    arm = {"name": "asked", "therapist": {"endpoint": url, "model": "m", "max_tokens": 60}}
    plain: dict[str, Any] = {"arms": [arm], "patients": {"ready": "test", "n": 1}}
    return study_of(**(plain | changes))


def session_of(*said: str, **changes: Any) -> Session:
    """A session of these words, the patient first."""
    roles = ("patient", "therapist")
    plain: dict[str, Any] = {
        "id": "arm/p1/s1/r1",
        "arm": "arm",
        "profile_id": "p1",
        "turns": tuple(Turn(role=roles[n % 2], text=text) for n, text in enumerate(said)),
        "stop_reason": "ended",
        "provenance": Provenance(model="m", version=cbtqa.__version__),
    }
    return Session(**(plain | changes))


def bytes_of(folder: Path) -> bytes:
    """The sessions of a study folder as they lie on disk."""
    return (folder / "sessions.jsonl").read_bytes()
