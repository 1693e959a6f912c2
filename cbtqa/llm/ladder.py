"""Which response format a server takes: down the ladder when it refuses, remembered for the run.

    json_schema -> json_object -> text

A refusal with status 400 may mean the format or the request itself. The request is tried one rung
lower; only when that helps, or the refusal names the format, does the ladder itself move.
Hundreds of requests share one ladder: whatever order their answers come in, a rung that was
answered once stays, and a rung never answered is left once a lower one is.
"""

from __future__ import annotations

from collections.abc import Callable

from cbtqa.llm.endpoint import ResponseFormat
from cbtqa.llm.protocol import RequestRefusedError
from cbtqa.records import Reason

RUNGS: tuple[ResponseFormat, ...] = ("json_schema", "json_object", "text")


class FormatLadder:
    """The rung in use at one endpoint and model."""

    def __init__(
        self,
        start: ResponseFormat,
        *,
        proved: str | None = None,
        remember: Callable[[str], None] | None = None,
    ) -> None:
        """Args:
        proved: the rung that an earlier run of the same journal found to be answered.
        remember: told the rung whenever a better one is found to be answered.
        """
        known = next((rung for rung in RUNGS if rung == proved), None)
        self.rung: ResponseFormat = known or start
        self.is_proved = known is not None
        self._remember = remember

    def lower_of(self, floor: ResponseFormat) -> ResponseFormat:
        """The rung to send a request on that may stand no higher than `floor`."""
        return RUNGS[max(RUNGS.index(floor), RUNGS.index(self.rung))]

    def answered(self, rung: ResponseFormat) -> None:
        """Notes that a request on this rung was answered."""
        if self.is_proved and RUNGS.index(rung) >= RUNGS.index(self.rung):
            return
        self.rung, self.is_proved = rung, True
        if self._remember:
            self._remember(rung)

    def below(self, rung: ResponseFormat, error: RequestRefusedError) -> ResponseFormat | None:
        """The rung to try this request on after a refusal, or None when it is refused for good."""
        place = RUNGS.index(rung)
        if error.reason is not Reason.BAD_REQUEST or rung == "text":
            return None
        if self.is_proved and place >= RUNGS.index(self.rung) and not error.names_format:
            return None
        lower = RUNGS[place + 1]
        if error.names_format and not self.is_proved:
            self.rung = RUNGS[max(place + 1, RUNGS.index(self.rung))]
        return lower
