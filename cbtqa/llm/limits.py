"""How fast, how often and how long: the gate that every request passes.

The gate holds the number of requests in flight (a few at first, more while the server answers,
fewer when it answers "too many"), paces them to requests and tokens a minute, waits when the
server's headers ask for it, gives a slow server the time that its answers need, backs off from one
that fails, and notices when it is gone.

Servers that answer for one another have a gate each and share a `Queue`: who waits takes the first
free place at any of them. So `in_flight` holds per server, `rpm` and `tpm` hold for all together.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import ClassVar

from pydantic import Field, field_validator

from cbtqa.errors import EndpointError, NotListeningError, RateLimitError
from cbtqa.llm.protocol import duration_s
from cbtqa.records import Reason
from cbtqa.settings import Settings

BACKOFF_FIRST_S, BACKOFF_MOST_S = 0.5, 60.0
CREEP_ROUNDS = 32
"""Rounds of replies in which the number in flight climbs from nothing to its maximum."""
FIRST_IN_FLIGHT, CLIMB_S, BLIND_IN_FLIGHT = 8, 0.1, 128
"""A server begins with so many requests at a time, doubled every tenth of a second up to the last
number while nothing has come back, good or bad: a server that refuses or fails does so at once."""
CLIMB_BY = 3
"""Added at the start for every quick answer: four times as many in flight each round."""
QUICK_TIMES, FIRST_ANSWERS = 3.0, 8
"""An answer is quick within so many times the mean of the first ones; else it waited in a queue."""
CROWDED_SHARE = 0.25
"""Share of "too many" in a round from which on the number in flight only creeps."""
GONE_FAILURES = 8
"""Failures in a row from which the endpoint is suspected to be gone, at least."""
SLOW_TIMES, MOST_TIMEOUT_S = 3.0, 3600.0
"""A request may take so many times what the longest answer took; assumed."""
BUSY_FOR_S, LIMITED_FOR_S = 1800.0, 300.0
"""Patience with a server that only says it is busy or still loading (503, 529), or that these are
too many requests (429; also a gateway's 502 and 504); assumed."""
BUSY_LOOK_S = 15.0
"""Longest wait between two tries at such a server."""
REST_S = 10.0
"""Seconds between two tries at a server that fails while another answers; assumed."""
BURST_S = 1.0
"""Requests of so many seconds may go out at once under a per-minute limit."""


class RateSettings(Settings):
    """The limits that every verb offers as flags."""

    panel: ClassVar[str] = "Endpoint"
    in_flight: int = Field(64, ge=1, le=16384)
    """Most requests at a time, at each server."""
    rpm: int | None = Field(None, ge=1)
    """Requests a minute, at most."""
    tpm: int | None = Field(None, ge=1)
    """Tokens a minute, at most."""
    max_attempts: int = Field(3, ge=1, le=20)
    """Replies asked for in one place, faulty ones included."""
    retry: tuple[str, ...] = ()
    """Ask again, with fresh attempts, what was rejected: `rejected` for all of it, or
    `rejected=REASON` as rejects.jsonl names it. May be repeated."""

    @field_validator("retry", mode="before")
    @classmethod
    def _retry_is_a_list(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @field_validator("retry")
    @classmethod
    def _names_reasons(cls, words: tuple[str, ...]) -> tuple[str, ...]:
        reasons = [reason.value for reason in Reason]
        for word in words:
            what, equals, reason = word.partition("=")
            if what != "rejected" or (equals and reason not in reasons):
                known = ", ".join(reasons)
                raise ValueError(f"'{word}' is not rejected or rejected=REASON, one of {known}")
        return words

    def retries(self, reason: Reason) -> bool:
        """True when `retry` names rejections for this reason."""
        return not {"rejected", f"rejected={reason.value}"}.isdisjoint(self.retry)


class Limits(RateSettings):
    """Limits of one run."""

    timeout_s: float = Field(120, gt=0)
    """Seconds to wait for one whole answer; more once answers are seen to take long."""
    max_retries: int = Field(6, ge=0)
    """Most repeats of one request that failed."""
    retry_for_s: float = Field(300, ge=0)
    """Seconds after which a repeat is given up."""
    gone_after_s: float = Field(60, ge=0)
    """Seconds of nothing but failures after which the run stops."""
    grace_s: float = Field(60, ge=0)
    """Seconds that requests in flight get to end after Ctrl-C."""
    waits: bool = True
    """False removes every wait; for tests."""


NEVER_THERE_S = 8.0
"""Patience with an endpoint that has not answered once in this run: most likely a wrong address."""
NOT_LISTENING_S = 1.0
"""The same where this machine itself refuses the connection."""
NOT_LISTENING_LOOK_S = 0.5
"""Until such a server is looked for again."""


class Pace:
    """Spreads a number per minute over the minute, with a burst of one second's worth."""

    def __init__(self, per_minute: float) -> None:
        self._rate = per_minute / 60
        self._due = 0.0

    def reserve(self, amount: float, now: float) -> float:
        """Books an amount; gives the seconds to wait before using it."""
        self._due = max(self._due, now - BURST_S)
        wait = self._due - now
        self._due += amount / self._rate
        return max(0.0, wait)

    def correct(self, difference: float) -> None:
        """Adds what was used beyond the amount booked; negative gives back."""
        self._due += difference / self._rate


class GateClosedError(Exception):
    """The run is stopping; nothing more is sent."""


Place = tuple[asyncio.Future["Gate"], "Gate | None"]
"""A request that waits for a place, and the gate that it avoids."""


class Queue:
    """What the gates of interchangeable servers share: who waits, the pace, the end of the run."""

    def __init__(self, limits: Limits) -> None:
        self.closed = asyncio.Event()
        self.gates: list[Gate] = []
        self.has_begun = False
        self.fresh: deque[Place] = deque()
        self.again: deque[Place] = deque()
        self.requests = Pace(limits.rpm) if limits.rpm else None
        self.tokens = Pace(limits.tpm) if limits.tpm else None

    def freest(self, avoid: Gate | None = None) -> Gate | None:
        """The gate of which the smallest part is taken, or None; one that is held only if all are,
        and the one to avoid only where there is no other.

        Not the one with the most free places: that grows with every answer, so the first server
        to answer would get all of a run that needs few places.
        """
        gates = self.gates
        if len(gates) > 1:
            now = time.monotonic()
            gates = [gate for gate in gates if gate.hold_until <= now] or gates
            gates = [gate for gate in gates if gate is not avoid] or gates
        free = [gate for gate in gates if gate.in_flight < int(gate.limit)]
        return min(free, key=lambda gate: gate.in_flight / gate.limit, default=None)

    def wake(self) -> None:
        """Gives free places to those who wait, retries first."""
        elsewhere: list[Place] = []  # they wait for another gate than the one with room
        while (self.again or self.fresh) and (gate := self.freest()) is not None:
            place, avoid = (self.again or self.fresh).popleft()
            if place.done():
                continue
            if gate is avoid and (gate := self.freest(avoid)) is None:
                elsewhere.append((place, avoid))
            else:
                gate.in_flight += 1
                place.set_result(gate)
        self.again.extendleft(reversed(elsewhere))


class Gate:
    """The one place where requests to a server wait before they are sent."""

    def __init__(self, limits: Limits, queue: Queue | None = None) -> None:
        self.limit: float = min(FIRST_IN_FLIGHT, limits.in_flight)
        """How many may be in flight just now; at most `limits.in_flight`."""
        self.in_flight = 0
        """Requests between `enter` and `leave`."""
        self.queue = queue or Queue(limits)
        self.queue.gates.append(self)
        self.closed = self.queue.closed
        self.hold_until = 0.0
        """Monotonic time before which nothing is sent."""
        self._limits = limits
        self._n_outcomes = self._n_limited = 0
        self._failures = self._n_busy = self._n_holds = 0
        self._failing_since = self._busy_since = 0.0
        self._limit_before_outage: float | None = None
        self.has_answered = False
        self._is_starting, self._is_untouched = True, True
        self._first_answers_s: list[float] = []
        self._longest_s = 0.0
        self._deadlines: dict[asyncio.Timeout, tuple[float, float]] = {}

    def begin(self) -> None:
        """Doubles the number in flight every tenth of a second until something comes back."""
        most = min(BLIND_IN_FLIGHT, self._limits.in_flight)
        if self._is_untouched and self.limit < most and not self.closed.is_set():
            asyncio.get_running_loop().call_later(CLIMB_S, self._climb, most)

    def stop_climbing(self) -> None:
        """Something came back: only answers raise the number in flight from now on."""
        self._is_untouched = False

    def _climb(self, most: int) -> None:
        if self._is_untouched and not self.closed.is_set():
            self.limit = min(most, self.limit * 2)
            self.queue.wake()
            self.begin()

    async def enter(
        self, tokens: float = 0, *, is_retry: bool = False, avoid: Gate | None = None
    ) -> Gate:
        """The gate of a server with a free place, after pace and hold; retries come first.

        Args:
            avoid: where this request has just failed: another server that is up takes it.

        Raises:
            GateClosedError: the run is stopping.
        """
        if self.closed.is_set():
            raise GateClosedError
        queue = self.queue
        if not queue.has_begun:
            queue.has_begun = True
            for one in queue.gates:
                one.begin()
        gate = None if queue.fresh or queue.again else queue.freest(avoid)
        if gate is None:
            gate = await self._wait_in(queue.again if is_retry else queue.fresh, avoid)
        else:
            gate.in_flight += 1
        return await gate._keep_pace(tokens)

    async def _wait_in(self, line: deque[Place], avoid: Gate | None) -> Gate:
        place: asyncio.Future[Gate] = asyncio.get_running_loop().create_future()
        line.append((place, avoid))
        try:
            return await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled() and place.exception() is None:
                place.result().leave()  # given in the moment in which the taker left
            raise

    async def _keep_pace(self, tokens: float) -> Gate:
        """Waits with a place in hand; gives the gate of that place, another one after a hold."""
        gate, queue = self, self.queue
        if not self._limits.waits:
            return gate
        try:
            now = time.monotonic()
            wait = queue.requests.reserve(1, now) if queue.requests else 0.0
            if queue.tokens:
                wait = max(wait, queue.tokens.reserve(tokens, now))
            if wait > 0:
                await gate.sleep(wait)
            while (wait := gate.hold_until - time.monotonic()) > 0:
                other = queue.freest()
                if other is not None and other.hold_until < gate.hold_until:
                    gate.in_flight, other.in_flight = gate.in_flight - 1, other.in_flight + 1
                    gate = other
                else:
                    # another server may have a free place long before this one may be asked again
                    most = BACKOFF_FIRST_S if gate.has_alternative else wait
                    # spread over a tenth more, so that a crowd does not start in one instant
                    await gate.sleep(min(wait, most) * random.uniform(1.0, 1.1))
            if self.closed.is_set():
                raise GateClosedError
        except BaseException:
            gate.leave()
            raise
        return gate

    async def sleep(self, seconds: float) -> None:
        """Sleeps; raises GateClosedError when the gate closes meanwhile."""
        if not self._limits.waits:
            seconds = 0
        try:
            await asyncio.wait_for(self.closed.wait(), seconds)
        except TimeoutError:
            return
        raise GateClosedError

    def leave(self) -> None:
        """Frees a place."""
        self.in_flight -= 1
        self.queue.wake()

    def close(self) -> None:
        """Rejects everybody who waits or comes later; what is in flight goes on."""
        self.closed.set()
        for line in (self.queue.again, self.queue.fresh):
            while line:
                place, _ = line.popleft()
                if not place.done():
                    place.set_exception(GateClosedError())

    def answered(self, latency_s: float | None = None) -> None:
        """Notes an answer and how long it took, or a refusal of one request (None)."""
        if self._n_busy and not self.has_answered:  # it was starting, and so does the run
            self._is_starting = True
            self.limit = max(self.limit, min(FIRST_IN_FLIGHT, self._limits.in_flight))
        self._failures = self._n_busy = self._n_holds = 0
        self._is_untouched = False
        self._n_outcomes += 1
        if self._limit_before_outage is not None:
            self.limit = max(1.0, self._limit_before_outage / 2)
            self._limit_before_outage = None
        self.has_answered = True
        if latency_s is None:
            return  # it shows that somebody is there, not how much work is done at a time
        self._measure(latency_s)
        most = self._limits.in_flight
        if self.limit < most:
            is_climbing = self._is_starting and self._is_quick(latency_s)
            more = CLIMB_BY if is_climbing else max(1.0, most / CREEP_ROUNDS) / self.limit
            self.limit = min(most, self.limit + more)
            self.queue.wake()

    def _is_quick(self, latency_s: float) -> bool:
        """False for an answer that waited in the server's queue: more in flight bring nothing."""
        first = self._first_answers_s
        if len(first) < FIRST_ANSWERS:
            first.append(latency_s)
        return latency_s <= QUICK_TIMES * sum(first) / len(first)

    def _measure(self, latency_s: float) -> None:
        """Gives everything in flight more time when an answer took longer than any before."""
        if latency_s <= 1.1 * self._longest_s:
            return
        self._longest_s = latency_s
        for deadline, (sent_at, times) in self._deadlines.items():
            due, limit_s = deadline.when(), self._time_limit_s(times)
            if not deadline.expired() and due is not None and sent_at + limit_s > due:
                deadline.reschedule(sent_at + limit_s)

    def _time_limit_s(self, times: float) -> float:
        least = self._limits.timeout_s
        wanted = max(least, SLOW_TIMES * self._longest_s) * times
        return min(wanted, max(least, MOST_TIMEOUT_S))

    @contextmanager
    def time_limit(self, n_before: int = 0) -> Iterator[asyncio.Timeout]:
        """The time that a request may take: grows while it waits, doubled for each time that it
        was too short before."""
        now, times = asyncio.get_running_loop().time(), 2.0 ** min(n_before, 10)
        deadline = asyncio.timeout_at(now + self._time_limit_s(times))
        self._deadlines[deadline] = now, times
        try:
            yield deadline
        finally:
            del self._deadlines[deadline]

    def _lower_limit(self) -> None:
        """Lowers the number in flight once a round, by half the share of "too many" in it.

        Halving at every one would let a few chance refusals decide the speed.
        Source: M. Alizadeh et al., "Data Center TCP", SIGCOMM 2010, section 3.
        """
        self._n_outcomes += 1
        self._n_limited += 1
        if self._n_outcomes >= int(self.limit):
            share = self._n_limited / self._n_outcomes
            self._is_starting &= share < CROWDED_SHARE
            self.limit = max(1.0, self.limit * (1 - share / 2))
            self._n_outcomes = self._n_limited = 0

    def heed(self, headers: Mapping[str, str], tokens_beyond: float) -> None:
        """Heeds the limits named in a reply's headers, and tokens used beyond those booked."""
        if self.queue.tokens and tokens_beyond:
            self.queue.tokens.correct(tokens_beyond)
        for kind in ("requests", "tokens"):
            if headers.get(f"x-ratelimit-remaining-{kind}") == "0":
                wait = duration_s(headers.get(f"x-ratelimit-reset-{kind}", ""))
                self.hold(min(wait or 0.0, BACKOFF_MOST_S))

    def failed(self, error: EndpointError, took_s: float = 0.0) -> None:
        """Notes a failure after so many seconds; lowers the number in flight."""
        now = time.monotonic()
        self._is_untouched = False
        if isinstance(error, RateLimitError):
            # it is there, and says so: not one of the failures in a row
            self._busy_since = self._busy_since if self._n_busy else now
            self._n_busy += 1
            if error.retry_after_s:
                self.hold(error.retry_after_s)
            self._lower_limit()
        else:
            self._failing_since = self._failing_since if self._failures else now
            self._failures += 1
            if self.is_suspect and self.limit > 1:
                self._limit_before_outage, self.limit = self.limit, 1.0
        if self.has_alternative and self.is_suspect:
            self.hold(REST_S)
        elif self.is_out and self.hold_until <= now:
            most = BUSY_LOOK_S if isinstance(error, RateLimitError) else longest_look_s(error)
            self.hold(min(most, BACKOFF_FIRST_S * 2**self._n_holds))
            self._n_holds = min(self._n_holds + 1, 30)

    def hold(self, seconds: float) -> None:
        """Sends nothing more for so many seconds."""
        self.hold_until = max(self.hold_until, time.monotonic() + seconds)

    @property
    def has_alternative(self) -> bool:
        """True when another server answers."""
        return any(not gate.is_out for gate in self.queue.gates if gate is not self)

    @property
    def is_suspect(self) -> bool:
        """True when so many requests failed in a row that the endpoint may be gone."""
        return self._failures >= self._few

    @property
    def is_out(self) -> bool:
        """True when it answers nothing just now, be it gone or busy: no item is to blame."""
        return self.is_suspect or self._n_busy >= self._few

    @property
    def _few(self) -> int:
        few = GONE_FAILURES if not self.has_answered else self._limits.in_flight // 4
        return max(GONE_FAILURES, few)

    def is_gone(self, error: EndpointError, took_s: float = 0.0) -> bool:
        """True when nothing but failures, `error` the last, came too long and no other answers.

        A server that takes long to fail gets longer: it was there all the time.
        """
        is_refused = isinstance(error, NotListeningError) and not self.has_answered
        if not (self.is_out or is_refused) or self.has_alternative:
            return False
        if not self._limits.waits:
            return True
        now, limits = time.monotonic(), self._limits
        if isinstance(error, RateLimitError):
            is_loading = error.status in (503, 529)
            return now - self._busy_since >= (BUSY_FOR_S if is_loading else LIMITED_FOR_S)
        patience = limits.gone_after_s
        if error.status in (502, 504):  # a gateway before a server that is starting
            patience = max(patience, LIMITED_FOR_S)
        elif not self.has_answered and took_s < limits.timeout_s:
            patience = min(patience, NOT_LISTENING_S if is_refused else NEVER_THERE_S)
        patience = max(patience, 3 * min(took_s, limits.timeout_s))
        return now - self._failing_since >= patience


def longest_look_s(error: EndpointError) -> float:
    """Most seconds until a server is looked for again that failed like this."""
    return NOT_LISTENING_LOOK_S if isinstance(error, NotListeningError) else BACKOFF_MOST_S


def backoff_s(n_failures: int) -> float:
    """Seconds before the next try: full jitter over a doubling span.

    Source: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
    """
    span = min(BACKOFF_MOST_S, BACKOFF_FIRST_S * 2 ** min(n_failures - 1, 30))
    return random.uniform(0, span)
