"""One request until it has its reply: server, format, budget, sending, repeats. See `batch`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol
from urllib.parse import urlsplit

from cbtqa.errors import EndpointError, EndpointTimeoutError, RateLimitError
from cbtqa.llm.chat import ChatRequest, Fault, Reply
from cbtqa.llm.cost import Budget, Price, estimate_prompt, estimate_tokens
from cbtqa.llm.endpoint import Endpoint, ResponseFormat
from cbtqa.llm.journal import Journal, State
from cbtqa.llm.limits import (
    MOST_TIMEOUT_S,
    Gate,
    GateClosedError,
    Limits,
    Queue,
    backoff_s,
    longest_look_s,
)
from cbtqa.llm.progress import Meter
from cbtqa.llm.protocol import EventStreamError, RequestRefusedError, request_body
from cbtqa.llm.transport import Received, Transport, open_transport
from cbtqa.records import Reason, Usage

MOST_RATE_LIMITED = 50
"""Times that one request may be answered "too many" before it is given up."""
REFUSED_FIRST = 8
"""Requests refused before the model has answered any: from so many on, it refuses them all."""
REFUSED_IN_A_ROW = 100
"""The same for a model that has answered before; assumed."""
MEND_AND_ASK = (
    "mend what it names (such as with --extra, --max-tokens, --model or the server's own "
    "settings); then the same command asks again"
)
FREE_SPACE = "free some disk space, then give the same command again"
BUDGET_LOOK_S = 0.05
UNKNOWN_TOKENS = 1000
"""Booked for a reply of which neither the limit nor an example is known."""
USED_UP = "the budget is used up"
NOTHING = Usage()


class ItemFailedError(Exception):
    """The endpoint gave no reply to one item."""

    def __init__(self, state: State, fault: Fault) -> None:
        super().__init__(fault.detail)
        self.state, self.fault = state, fault


class StopRun(Protocol):
    """Ends the run: nothing more is sent."""

    def __call__(self, reason: str, hint: str | None = None) -> None: ...


@dataclass(frozen=True, eq=False)
class _Server:
    """One of the interchangeable servers."""

    endpoint: Endpoint
    transport: Transport
    gate: Gate
    ladder: FormatLadder


@dataclass
class _Tries:
    """How often one request was sent, and where and in which format it was sent last."""

    server: _Server
    rung: ResponseFormat = "json_schema"
    floors: dict[_Server, ResponseFormat] = field(default_factory=dict)
    """The highest rung left to this request, where a server refused a higher one."""
    guessed: set[_Server] = field(default_factory=set)
    """Where lower rungs were tried after a failure that may have meant the format."""
    failed_at: Gate | None = None
    """Where it failed last: another server that is up takes it, so that no request uses up its
    tries at a server that has died and is not known for it yet."""
    failing_since: float | None = None
    """Monotonic time of the first failure; what came before was waiting for its turn."""
    n_sent: int = 0
    n_failed: int = 0
    n_limited: int = 0
    n_timeouts: int = 0
    took_s: float = 0.0
    """Seconds until the last failure."""


class Model:
    """One model at one or several interchangeable servers, asked within the limits of one run."""

    def __init__(
        self,
        limits: Limits,
        meter: Meter,
        budget: Budget | None,
        price: Price | None,
        stop: StopRun,
    ) -> None:
        self.price, self.spent = price, NOTHING
        self._limits, self._meter, self._budget, self._stop = limits, meter, budget, stop
        self._queue = Queue(limits)
        self._servers: list[_Server] = []
        self._n_asking = self._n_refused = 0
        self._has_answered = False
        self._last_refusal = self._waits_for = ""
        self._refused: list[asyncio.Future[None]] = []
        """Requests refused while the model has not answered any: they wait for its first answer."""

    async def open(
        self, endpoints: Sequence[Endpoint], journal: Journal, stack: AsyncExitStack
    ) -> None:
        """Opens the connections to every server; `stack` closes them."""
        for endpoint in endpoints:
            transport = open_transport(endpoint, self._limits.in_flight * len(endpoints))
            await stack.enter_async_context(transport)
            gate, ladder = Gate(self._limits, self._queue), FormatLadder(endpoint, journal)
            self._servers.append(_Server(endpoint, transport, gate, ladder))
        self._in_flight = journal.in_flight
        self._journal, names = journal, [answered_name(endpoint) for endpoint in endpoints]
        self._has_answered = any(journal.meta(name) for name in names)

    @property
    def limit(self) -> int:
        """How many requests may be in flight just now."""
        return sum(int(server.gate.limit) for server in self._servers)

    def close(self) -> None:
        """Sends nothing more; what is in flight goes on."""
        for server in self._servers:
            server.gate.close()
        self._release(GateClosedError())

    async def answer(self, request: ChatRequest, attempt: int) -> Reply:
        """A reply, after as many repeats as the limits allow.

        Raises:
            ItemFailedError: the endpoint refuses this request, or failed on it too often.
            EndpointError: it refuses all requests.
            GateClosedError: the run is stopping.
        """
        self._n_asking += 1
        try:
            return await self._answer(request, attempt)
        finally:
            self._n_asking -= 1
            self._look_at_refusals()

    async def _answer(self, request: ChatRequest, attempt: int) -> Reply:
        tries = _Tries(self._servers[0])
        while True:
            try:
                reply = await self._send(request, attempt, tries)
            except EndpointError as error:
                # its frames hold the whole answer, up to megabytes, while this request waits
                error.__traceback__ = error.__context__ = None
                if request.json_schema is not None and _stepped_down(tries, error):
                    continue
                if isinstance(error, RequestRefusedError):
                    if error.reason is Reason.BAD_REQUEST:
                        await self._doubt(error, tries.server.endpoint)
                    raise ItemFailedError(State.FINAL, error.fault) from None
                is_stream = isinstance(error, EventStreamError)
                if not error.is_retryable or (is_stream and not tries.server.gate.has_answered):
                    raise
                await self._back_off(error, tries)
            else:
                if request.json_schema is not None:
                    is_guess = tries.server in tries.guessed and tries.server in tries.floors
                    tries.server.ladder.answered(tries.rung, is_guess=is_guess)
                return reply

    async def _doubt(self, error: RequestRefusedError, endpoint: Endpoint) -> None:
        """Returns once the refusal is known to concern this one request.

        Raises:
            GateClosedError: it concerns all of them, and the run was stopped for it.
        """
        self._n_refused += 1
        self._last_refusal = f"{endpoint.host} {error}"
        if self._has_answered:
            if self._n_refused >= REFUSED_IN_A_ROW:
                self._stop(
                    f"the last {self._n_refused} requests were all refused. {self._last_refusal}",
                    "mend what it names, then give the same command with --retry "
                    "rejected=bad_request; without it, only the others are asked",
                )
            return
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._refused.append(waiting)
        self._look_at_refusals()
        await waiting

    def _look_at_refusals(self) -> None:
        """Stops the run when the first requests were refused alike, or nothing else is asked."""
        n = len(self._refused)
        if not n or not (n >= REFUSED_FIRST or n >= self._n_asking):
            return
        requests = "the first request was" if n == 1 else f"the first {n} requests were all"
        self._stop(
            f"{requests} refused, and nothing is rejected for it. {self._last_refusal}",
            MEND_AND_ASK,
        )

    def _release(self, error: GateClosedError | None = None) -> None:
        waiting, self._refused = self._refused, []
        for one in waiting:
            if not one.done():
                one.set_exception(error) if error else one.set_result(None)

    def _has_replied(self, server: _Server) -> None:
        """Notes a reply: what was refused before it was refused for its own sake."""
        self._n_refused = 0
        if self._waits_for and self._meter.note == self._waits_for:
            self._meter.note = self._waits_for = ""
        if not self._has_answered:
            self._has_answered = True
            self._journal.set_meta(answered_name(server.endpoint), "yes")
            self._release()

    async def _send(self, request: ChatRequest, attempt: int, tries: _Tries) -> Reply:
        # 0 when nobody counts tokens
        estimate = estimate_prompt(request) if self._budget or self._limits.tpm else 0
        paced = self._book(estimate, request).n_tokens
        door, is_retry = self._servers[0].gate, attempt > 1 or tries.n_sent > 0
        gate = await door.enter(paced, is_retry=is_retry, avoid=tries.failed_at)
        server = next(one for one in self._servers if one.gate is gate)
        tries.server = server
        try:
            booked = await self._keep_budget(estimate, request)
            # chosen only now: while this request waited, others may have found the right rung
            tries.rung = server.ladder.lower_of(tries.floors.get(server, "json_schema"))
            body = request_body(request, server.endpoint, tries.rung, attempt)
            if not self._journal.has_room():
                self._stop("the disk is nearly full: nothing more is sent", FREE_SPACE)
                raise GateClosedError
            sent_at = self._meter.sent(is_repeat=tries.n_sent > 0)
            tries.n_sent += 1
            self._in_flight.sent()
            try:
                received = await self._post(body, server, tries)
            except RequestRefusedError:
                self._in_flight.failed()
                gate.answered()
                raise
            except EndpointError:
                self._in_flight.failed()
                tries.took_s = time.monotonic() - sent_at
                gate.stop_climbing()
                raise
            finally:
                self._meter.returned(sent_at)
                if self._budget:
                    self._budget.book(booked, self.price, sign=-1)
        finally:
            gate.leave()
        gate.answered(received.reply.latency_s)
        self._has_replied(server)
        gate.heed(received.headers, received.reply.usage.n_tokens - paced)
        self._pay(received.reply, estimate)
        reply = replace(received.reply, host=server.endpoint.host)
        self._in_flight.received(reply)
        return reply

    async def _post(self, body: dict[str, Any], server: _Server, tries: _Tries) -> Received:
        began = time.monotonic()
        try:
            with server.gate.time_limit(tries.n_timeouts) as deadline:
                async with deadline:
                    # the gate's limit grows while the request waits; the transport's cannot
                    most = max(MOST_TIMEOUT_S, self._limits.timeout_s) + 60
                    return await server.transport.send(body, most)
        except TimeoutError:
            tries.n_timeouts += 1
            waited = time.monotonic() - began
            raise EndpointTimeoutError(f"no whole answer within {waited:.3g} s") from None

    def _pay(self, reply: Reply, estimate: int) -> None:
        self._meter.paid(reply.usage, estimate)
        spent = reply.usage
        if self._budget:
            # a server that counts nothing must not make the budget endless
            text = reply.text + (reply.reasoning or "")
            guess = Usage(prompt_tokens=estimate, completion_tokens=estimate_tokens(text))
            spent = spent if spent.n_tokens else guess
            self._budget.book(spent, self.price)
        self.spent += spent

    def _book(self, estimate: int, request: ChatRequest) -> Usage:
        return probable_usage(request, estimate, self._meter) if estimate else NOTHING

    async def _keep_budget(self, estimate: int, request: ChatRequest) -> Usage:
        """Books a request on the budget; waits while what is in flight may use it up.

        Raises:
            GateClosedError: the budget is used up, and the run has been stopped for it.
        """
        while True:
            booked = self._book(estimate, request)
            budget = self._budget
            if budget is None:
                return booked
            if not budget.is_used_up(booked, self.price):
                break
            if not self._meter.n_in_flight:
                if self._meter.mean_completion_tokens is None and not budget.is_used_up(NOTHING):
                    break  # the first reply of all shows what replies cost
                self._stop(USED_UP)
                raise GateClosedError
            await self._servers[0].gate.sleep(BUDGET_LOOK_S)
        budget.book(booked, self.price)
        return booked

    async def _back_off(self, error: EndpointError, tries: _Tries) -> None:
        """Waits before the next try; a suspected outage does not use up an item's tries."""
        gate, host = tries.server.gate, tries.server.endpoint.host
        wait_asked = error.retry_after_s if isinstance(error, RateLimitError) else None
        # only here: a failure over the response format is not one of the server's
        gate.failed(error, tries.took_s)
        tries.failed_at = None if isinstance(error, RateLimitError) else gate
        if gate.is_gone(error, tries.took_s):
            if isinstance(error, RateLimitError):
                self._stop(f"{host} takes no requests: {error}")
                raise GateClosedError
            if not any(server.gate.has_answered for server in self._servers):
                kind = "answer" if isinstance(error, EndpointTimeoutError) else "usable answer"
                said = f"no {kind} from {host}"
                if error.status is not None:
                    said = f"{host} fails at every request"
                raise EndpointError(
                    f"{said}: {error}",
                    hint=error.hint or "the server answers; its own log says what is wrong",
                )
            self._stop(f"the endpoint is gone: {error}")
            raise GateClosedError
        if gate.is_out and not gate.has_alternative:
            self._meter.note = self._waits_for = f"waiting for {host}: {error}"
        if gate.has_alternative and gate.is_suspect:
            place = tries.server.endpoint.base_url
            self._meter.note = f"{place} did not answer ({error}); the other servers went on"
            return  # another server takes the request at once
        if wait_asked is not None and wait_asked > max(self._limits.retry_for_s, 60):
            if gate.has_alternative:
                return
            self._stop(f"the endpoint asks to wait {wait_asked:.0f} s: {error}")
            raise GateClosedError
        if not gate.is_out:
            tries.n_limited += isinstance(error, RateLimitError)
            tries.n_failed += not isinstance(error, RateLimitError)
        tries.failing_since = tries.failing_since or time.monotonic()
        waited = time.monotonic() - tries.failing_since
        is_late = waited > self._limits.retry_for_s and not gate.is_out
        too_often = tries.n_failed > self._limits.max_retries or tries.n_limited > MOST_RATE_LIMITED
        if too_often or is_late:
            n_tries = tries.n_failed + tries.n_limited
            detail = f"given up after {n_tries} failures in {waited:.0f} s; the last: {error}"
            raise ItemFailedError(State.ENDPOINT, Fault(Reason.ENDPOINT, detail))
        wait_s = min(backoff_s(max(1, tries.n_failed + tries.n_limited)), longest_look_s(error))
        await gate.sleep(0 if wait_asked else wait_s)


def _stepped_down(tries: _Tries, error: EndpointError) -> bool:
    """True when the request is to be sent again at once, a rung lower; notes that rung.

    A server that fails over a format without a word about it looks like one that fails over
    everything. So the rungs are tried once; where plain text fails too, it was not the format, and
    the next try is the request as it was.
    """
    server = tries.server
    lower = server.ladder.below(tries.rung, error)
    if not isinstance(error, RequestRefusedError):
        if lower is None or (server in tries.guessed and server not in tries.floors):
            if server in tries.guessed:
                tries.floors.pop(server, None)
            return False
        tries.guessed.add(server)
    if lower is not None:
        tries.floors[server] = lower
    return lower is not None


def probable_usage(request: ChatRequest, estimate: int, meter: Meter) -> Usage:
    """What a request will probably use, by the replies so far; `estimate`: of its prompt."""
    most = request.sampling.max_tokens or UNKNOWN_TOKENS
    n_out = min(most, meter.mean_completion_tokens or most)
    return Usage(
        prompt_tokens=round(estimate * meter.prompt_factor), completion_tokens=round(n_out)
    )


RUNGS: tuple[ResponseFormat, ...] = ("json_schema", "json_object", "text")
MAYBE_FORMAT = (404, 405, 500, 501)
"""Statuses of failures by which servers without a response format have answered, beside refusals.
Source: ggml-org/llama.cpp#27279 (500)."""


class FormatLadder:
    """Which response format an endpoint takes: down the rungs when it refuses, then remembered.

    A refusal (400), a missing page (404) or a failure (500, 501) may mean the format or the request
    itself: the request is tried one rung lower, and the ladder moves only when that helps or the
    server's words name the format. Hundreds of requests share a ladder: a rung once answered stays,
    whatever the order of answers.
    """

    def __init__(self, endpoint: Endpoint, journal: Journal) -> None:
        """Begins where an earlier run of the journal ended."""
        self._remember = partial(journal.set_meta, format_name(endpoint))
        proved = journal.meta(format_name(endpoint))
        known = next((rung for rung in RUNGS if rung == proved), None)
        self.rung: ResponseFormat = known or endpoint.format
        self.is_proved = known is not None
        self._n_guesses = 0

    def lower_of(self, floor: ResponseFormat) -> ResponseFormat:
        """The rung to send a request on that may stand no higher than `floor`."""
        return RUNGS[max(RUNGS.index(floor), RUNGS.index(self.rung))]

    def answered(self, rung: ResponseFormat, *, is_guess: bool = False) -> None:
        """Notes that a request on this rung was answered.

        Args:
            is_guess: it was sent on this rung after a failure that said nothing about the format.
                One such answer may be chance, the second moves the ladder.
        """
        if self.is_proved and RUNGS.index(rung) >= RUNGS.index(self.rung):
            return
        self._n_guesses += is_guess
        if is_guess and self._n_guesses < 2:
            return
        self.rung, self.is_proved = rung, True
        self._remember(rung)

    def below(self, rung: ResponseFormat, error: EndpointError) -> ResponseFormat | None:
        """The rung to try this request on after a failure, or None when the format is not it."""
        place = RUNGS.index(rung)
        refused = isinstance(error, RequestRefusedError) and error.reason is Reason.BAD_REQUEST
        if rung == "text" or not (refused or error.status in MAYBE_FORMAT):
            return None
        names_format = isinstance(error, RequestRefusedError) and error.names_format
        if self.is_proved and place >= RUNGS.index(self.rung) and not names_format:
            return None
        lower = RUNGS[place + 1]
        if names_format and not self.is_proved:
            self.rung = RUNGS[max(place + 1, RUNGS.index(self.rung))]
        return lower


def answered_name(endpoint: Endpoint) -> str:
    """Under which name a journal keeps that a server and model have answered a request."""
    return f"answered:{endpoint.host}:{endpoint.model}"


def format_name(endpoint: Endpoint) -> str:
    """Under which name a journal keeps the rung that a server and model answer."""
    return f"format:{urlsplit(endpoint.base_url).netloc or endpoint.host}:{endpoint.model}"
