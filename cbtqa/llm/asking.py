"""One request until it has its reply: format, budget, gate, sending, repeats. See `batch`."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from cbtqa.errors import EndpointError, RateLimitError
from cbtqa.llm.chat import ChatRequest, Fault, Reply
from cbtqa.llm.cost import Budget, estimate_tokens
from cbtqa.llm.endpoint import Endpoint, ResponseFormat
from cbtqa.llm.journal import State
from cbtqa.llm.limits import Gate, GateClosedError, Limits, backoff_s
from cbtqa.llm.progress import Meter
from cbtqa.llm.protocol import RequestRefusedError, request_body
from cbtqa.llm.transport import Transport
from cbtqa.records import Reason, Usage

MOST_RATE_LIMITED = 50
"""Times that one request may be told "too many" before it is given up."""
BUDGET_LOOK_S = 0.05
UNKNOWN_TOKENS = 1000
"""Booked for a reply of which neither the limit nor an example is known."""
NOTHING = Usage()


class ItemFailedError(Exception):
    """The endpoint gave no reply to one item."""

    def __init__(self, state: State, fault: Fault) -> None:
        super().__init__(fault.detail)
        self.state, self.fault = state, fault


@dataclass
class _Tries:
    """How often one request was sent, and in which format."""

    failing_since: float | None = None
    """Monotonic time of the first failure; what came before was waiting for its turn."""
    floor: ResponseFormat = "json_schema"
    """The highest rung left to this request."""
    rung: ResponseFormat = "json_schema"
    """The rung it was sent on last."""
    n_sent: int = 0
    n_failed: int = 0
    n_limited: int = 0


class Asker:
    """Asks one endpoint within the limits of one run."""

    def __init__(
        self,
        endpoint: Endpoint,
        transport: Transport,
        gate: Gate,
        limits: Limits,
        meter: Meter,
        budget: Budget | None,
        ladder: FormatLadder,
        stop: Callable[[str], None],
    ) -> None:
        """Args:
        stop: ends the run for the reason given, and closes the gate.
        """
        self._endpoint, self._transport, self._gate = endpoint, transport, gate
        self._limits, self._meter, self._budget = limits, meter, budget
        self._ladder, self._stop = ladder, stop

    async def ask(self, request: ChatRequest, attempt: int) -> Reply:
        """A reply, after as many repeats as the limits allow.

        Raises:
            ItemFailedError: the endpoint refuses this request, or failed on it too often.
            EndpointError: it refuses all requests.
            GateClosedError: the run is stopping.
        """
        tries = _Tries()
        while True:
            try:
                reply = await self._send(request, attempt, tries)
            except RequestRefusedError as error:
                lower = self._ladder.below(tries.rung, error) if request.json_schema else None
                if lower is None:
                    raise ItemFailedError(State.FINAL, error.fault) from None
                tries.floor = lower
            except EndpointError as error:
                if not error.is_retryable:
                    raise
                await self._back_off(error, tries)
            else:
                if request.json_schema:
                    self._ladder.answered(tries.rung)
                return reply

    async def _send(self, request: ChatRequest, attempt: int, tries: _Tries) -> Reply:
        estimate = self._estimate(request)
        paced = _total(self._book(estimate, request))
        await self._gate.enter(paced, is_retry=attempt > 1 or tries.n_sent > 0)
        try:
            booked = await self._keep_budget(estimate, request)
            # chosen only now: while this request waited, others may have found the right rung
            tries.rung = self._ladder.lower_of(tries.floor)
            body = request_body(request, self._endpoint, tries.rung, attempt)
            sent_at = self._meter.sent(booked, is_repeat=tries.n_sent > 0)
            tries.n_sent += 1
            try:
                received = await self._transport.send(body, self._limits.timeout_s)
            except RequestRefusedError:
                self._gate.answered()
                raise
            except EndpointError as error:
                self._gate.failed(error)
                raise
            finally:
                self._meter.returned(sent_at, booked)
        finally:
            self._gate.leave()
        usage = received.reply.usage
        self._gate.answered()
        self._gate.heed(received.headers, _total(usage) - paced)
        self._meter.paid(usage, estimate)
        if self._budget:
            # a server that counts nothing must not make the budget endless
            text = received.reply.text + (received.reply.reasoning or "")
            guess = Usage(prompt_tokens=estimate, completion_tokens=estimate_tokens(text))
            spent = usage if _total(usage) else guess
            self._budget.spent = _sum_of(self._budget.spent, spent)
        return received.reply

    def _estimate(self, request: ChatRequest) -> int:
        """Tokens of the prompt; 0 when nobody counts them."""
        if self._budget is None and self._limits.tpm is None:
            return 0
        return sum(estimate_tokens(message["content"]) for message in request.messages)

    def _book(self, estimate: int, request: ChatRequest) -> Usage:
        """What a request will probably use, going by the replies so far."""
        if not estimate:
            return NOTHING
        most = request.sampling.max_tokens or UNKNOWN_TOKENS
        n_out = min(most, self._meter.mean_completion_tokens or most)
        n_in = estimate * self._meter.prompt_factor
        return Usage(prompt_tokens=round(n_in), completion_tokens=round(n_out))

    async def _keep_budget(self, estimate: int, request: ChatRequest) -> Usage:
        """Books a request on the budget; waits while what is in flight may use it up.

        Raises:
            GateClosedError: the budget is used up, and the run has been stopped for it.
        """
        while True:
            booked = self._book(estimate, request)
            if self._budget is None or not self._budget.is_used_up(
                _sum_of(self._meter.reserved, booked)
            ):
                return booked
            if not self._meter.n_in_flight:
                if self._meter.mean_completion_tokens is None and not self._budget.is_used_up(
                    NOTHING
                ):
                    return booked  # the first reply of all tells what replies cost
                self._stop("the budget is used up")
                raise GateClosedError
            await self._gate.sleep(BUDGET_LOOK_S)

    async def _back_off(self, error: EndpointError, tries: _Tries) -> None:
        """Waits before the next try; a suspected outage does not use up an item's tries."""
        wait_asked = error.retry_after_s if isinstance(error, RateLimitError) else None
        if self._gate.is_gone(error):
            if not self._gate.has_answered and not isinstance(error, RateLimitError):
                raise EndpointError(
                    f"no answer from {self._endpoint.host}: {error}",
                    hint="is the server running, and is --endpoint right?",
                )
            self._stop(f"the endpoint is gone: {error}")
            raise GateClosedError
        if wait_asked is not None and wait_asked > max(self._limits.retry_for_s, 60):
            self._stop(f"the endpoint asks to wait {wait_asked:.0f} s: {error}")
            raise GateClosedError
        if isinstance(error, RateLimitError):
            tries.n_limited += 1
        elif not self._gate.is_suspect:
            tries.n_failed += 1
        tries.failing_since = tries.failing_since or time.monotonic()
        waited = time.monotonic() - tries.failing_since
        is_late = waited > self._limits.retry_for_s and not self._gate.is_suspect
        too_often = tries.n_failed > self._limits.max_retries or tries.n_limited > MOST_RATE_LIMITED
        if too_often or is_late:
            n_tries = tries.n_failed + tries.n_limited
            detail = f"given up after {n_tries} failures in {waited:.0f} s; the last: {error}"
            raise ItemFailedError(State.ENDPOINT, Fault(Reason.ENDPOINT, detail))
        await self._gate.sleep(
            0 if wait_asked else backoff_s(max(1, tries.n_failed + tries.n_limited))
        )


def _total(usage: Usage) -> int:
    return usage.prompt_tokens + usage.completion_tokens


def _sum_of(one: Usage, other: Usage) -> Usage:
    return Usage(
        prompt_tokens=one.prompt_tokens + other.prompt_tokens,
        completion_tokens=one.completion_tokens + other.completion_tokens,
    )


# --- ladder --------------------------------------------------------------------------------------
# Which response format a server takes: down the ladder when it refuses, remembered for the run.
#
#     json_schema -> json_object -> text
#
# A refusal with status 400 may mean the format or the request itself. The request is tried one
# rung lower; only when that helps, or the refusal names the format, does the ladder itself move.
# Hundreds of requests share one ladder: whatever order their answers come in, a rung that was
# answered once stays, and a rung never answered is left once a lower one is.

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
