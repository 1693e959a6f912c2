"""One request until it has its reply: server, format, budget, sending, repeats. See `batch`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from urllib.parse import urlsplit

from cbtqa.errors import EndpointError, EndpointTimeoutError, RateLimitError
from cbtqa.llm.chat import ChatRequest, Fault, Reply
from cbtqa.llm.cost import Budget, Price, estimate_prompt, estimate_tokens
from cbtqa.llm.endpoint import Endpoint, ResponseFormat
from cbtqa.llm.journal import Journal, State
from cbtqa.llm.limits import Gate, GateClosedError, Limits, Queue, backoff_s
from cbtqa.llm.progress import Meter
from cbtqa.llm.protocol import EventStreamError, RequestRefusedError, request_body
from cbtqa.llm.transport import Transport, open_transport
from cbtqa.records import Reason, Usage

MOST_RATE_LIMITED = 50
"""Times that one request may be answered "too many" before it is given up."""
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
    failing_since: float | None = None
    """Monotonic time of the first failure; what came before was waiting for its turn."""
    n_sent: int = 0
    n_failed: int = 0
    n_limited: int = 0


class Model:
    """One model at one or several interchangeable servers, asked within the limits of one run."""

    def __init__(
        self,
        limits: Limits,
        meter: Meter,
        budget: Budget | None,
        price: Price | None,
        stop: Callable[[str], None],
    ) -> None:
        self.price, self.spent = price, NOTHING
        self._limits, self._meter, self._budget, self._stop = limits, meter, budget, stop
        self._queue = Queue(limits)
        self._servers: list[_Server] = []

    async def open(
        self, endpoints: Sequence[Endpoint], journal: Journal, stack: AsyncExitStack
    ) -> None:
        """Opens the connections to every server; `stack` closes them."""
        for endpoint in endpoints:
            transport = open_transport(endpoint, self._limits.in_flight * len(endpoints))
            await stack.enter_async_context(transport)
            gate, ladder = Gate(self._limits, self._queue), FormatLadder(endpoint, journal)
            self._servers.append(_Server(endpoint, transport, gate, ladder))

    @property
    def limit(self) -> int:
        """How many requests may be in flight just now."""
        return sum(int(server.gate.limit) for server in self._servers)

    def close(self) -> None:
        """Sends nothing more; what is in flight goes on."""
        for server in self._servers:
            server.gate.close()

    async def answer(self, request: ChatRequest, attempt: int) -> Reply:
        """A reply, after as many repeats as the limits allow.

        Raises:
            ItemFailedError: the endpoint refuses this request, or failed on it too often.
            EndpointError: it refuses all requests.
            GateClosedError: the run is stopping.
        """
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

    async def _send(self, request: ChatRequest, attempt: int, tries: _Tries) -> Reply:
        # 0 when nobody counts tokens
        estimate = estimate_prompt(request) if self._budget or self._limits.tpm else 0
        paced = self._book(estimate, request).n_tokens
        door, is_retry = self._servers[0].gate, attempt > 1 or tries.n_sent > 0
        gate = await door.enter(paced, is_retry=is_retry)
        server = next(one for one in self._servers if one.gate is gate)
        tries.server = server
        try:
            booked = await self._keep_budget(estimate, request)
            # chosen only now: while this request waited, others may have found the right rung
            tries.rung = server.ladder.lower_of(tries.floors.get(server, "json_schema"))
            body = request_body(request, server.endpoint, tries.rung, attempt)
            sent_at = self._meter.sent(is_repeat=tries.n_sent > 0)
            tries.n_sent += 1
            try:
                received = await server.transport.send(body, self._limits.timeout_s)
            except RequestRefusedError:
                gate.answered()
                raise
            except EndpointError as error:
                gate.failed(error)
                raise
            finally:
                self._meter.returned(sent_at)
                if self._budget:
                    self._budget.book(booked, self.price, sign=-1)
        finally:
            gate.leave()
        gate.answered()
        gate.heed(received.headers, received.reply.usage.n_tokens - paced)
        self._pay(received.reply, estimate)
        return replace(received.reply, host=server.endpoint.host)

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
        if gate.is_gone(error):
            has_answered = any(server.gate.has_answered for server in self._servers)
            if not has_answered and not isinstance(error, RateLimitError):
                kind = "answer" if isinstance(error, EndpointTimeoutError) else "usable answer"
                raise EndpointError(
                    f"no {kind} from {host}: {error}",
                    hint=error.hint or "the server answers; its own log says what is wrong",
                )
            self._stop(f"the endpoint is gone: {error}")
            raise GateClosedError
        if gate.has_alternative and gate.is_suspect:
            place = tries.server.endpoint.base_url
            self._meter.note = f"{place} did not answer ({error}); the other servers went on"
            return  # another server takes the request at once
        if wait_asked is not None and wait_asked > max(self._limits.retry_for_s, 60):
            if gate.has_alternative:
                return
            self._stop(f"the endpoint asks to wait {wait_asked:.0f} s: {error}")
            raise GateClosedError
        if isinstance(error, RateLimitError):
            tries.n_limited += 1
        elif not gate.is_suspect:
            tries.n_failed += 1
        tries.failing_since = tries.failing_since or time.monotonic()
        waited = time.monotonic() - tries.failing_since
        is_late = waited > self._limits.retry_for_s and not gate.is_suspect
        too_often = tries.n_failed > self._limits.max_retries or tries.n_limited > MOST_RATE_LIMITED
        if too_often or is_late:
            n_tries = tries.n_failed + tries.n_limited
            detail = f"given up after {n_tries} failures in {waited:.0f} s; the last: {error}"
            raise ItemFailedError(State.ENDPOINT, Fault(Reason.ENDPOINT, detail))
        await gate.sleep(0 if wait_asked else backoff_s(max(1, tries.n_failed + tries.n_limited)))


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


def format_name(endpoint: Endpoint) -> str:
    """Under which name a journal keeps the rung that a server and model answer."""
    return f"format:{urlsplit(endpoint.base_url).netloc or endpoint.host}:{endpoint.model}"
