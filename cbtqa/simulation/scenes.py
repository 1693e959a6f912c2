"""The moment of a session at which a player is asked: what the built-in rules answer from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cbtqa.records import Turn
from cbtqa.simulation.messages import Casting

Part = Literal["therapist", "patient", "supervisor", "validator", "summariser", "course_part"]


@dataclass(frozen=True)
class Scene:
    """Who is asked for what, and when."""

    part: Part
    casting: Casting
    turns: tuple[Turn, ...]
    seed: int
    """Of this very question, without the arm."""
    turn: int = 1
    """Counts the turns of this role, from 1; the part of a written session, from 1."""
    event: str | None = None
    draft: str = ""
    """What a supervisor or validator is to judge."""
    revision: int = 0
    """How often this turn was turned away before."""
