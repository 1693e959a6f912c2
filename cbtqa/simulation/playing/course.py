"""The plan of a course of sessions: which phase a session belongs to, and what may not be said.

course = cbt_course()
course.phase_of(5).id          # initial
course.is_closing("See you next week.")
"""

from __future__ import annotations

import re
from functools import cache

from pydantic import Field

from cbtqa.errors import ConfigError
from cbtqa.records import NonEmptyText, Record
from cbtqa.simulation.study import shipped_yaml

_FLAGS = re.IGNORECASE | re.MULTILINE


class Phase(Record):
    """A run of sessions with one kind of work."""

    id: NonEmptyText
    first: int = Field(ge=1)
    last: int = Field(ge=1)
    goals: NonEmptyText


class Part(Record):
    """One of the calls in which a session is written."""

    id: NonEmptyText
    closes: bool
    """True for the part that may close the session and hands over the state."""
    asks: NonEmptyText
    must_mention: tuple[str, ...] = ()


class Course(Record):
    id: NonEmptyText
    phases: tuple[Phase, ...]
    scripts: dict[int, str]
    """Session number to its own script, where it has one."""
    parts: tuple[Part, ...]
    closing_phrases: tuple[str, ...]
    forbidden: dict[str, str]
    """Regular expressions that no spoken text may match."""
    summary_words: int
    """Fewest words of a summary."""

    @property
    def n_sessions(self) -> int:
        return self.phases[-1].last

    def phase_of(self, number: int) -> Phase:
        """The phase of a session.

        Raises:
            ConfigError: the course has fewer sessions.
        """
        for phase in self.phases:
            if phase.first <= number <= phase.last:
                return phase
        raise ConfigError(f"course {self.id} has {self.n_sessions} sessions, not {number}")

    def is_closing(self, text: str) -> bool:
        """Whether a text takes leave, given with every sentence on a line of its own."""
        return any(re.search(one, text, _FLAGS) for one in self.closing_phrases)


@cache
def cbt_course() -> Course:
    return Course.model_validate(shipped_yaml("course.cbt.yaml"))
