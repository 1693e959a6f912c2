"""Many requests to one endpoint: bounded, resumed from the journal, streaming, with progress.

    summary = run_batch(questions, task, endpoint, journal, Limits(in_flight=256))
    for key, outcome in journal.outcomes(keys): ...

A task says what is asked about an item and what is wrong with a reply; the engine does the rest.
Every item that was sent ends in the journal as an accepted reply or as a fault with a reason;
nothing an endpoint does to one item stops the others. What stops a run (the budget, Ctrl-C, an
endpoint that is gone, a refused key, a full disk) lets the requests in flight end and keeps their
replies: the same call continues.
"""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Callable, Coroutine, Iterable
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Protocol, TypeVar

from cbtqa.errors import EndpointError, IncompleteRunError, RateLimitError
from cbtqa.llm.chat import ChatRequest, Fault, Reply, fault_of_reply
from cbtqa.llm.cost import Budget, Price, estimate_tokens
from cbtqa.llm.endpoint import Endpoint, ResponseFormat
from cbtqa.llm.journal import Entry, Journal, Standing, State, blocks_of
from cbtqa.llm.ladder import FormatLadder
from cbtqa.llm.limits import Gate, GateClosedError, Limits, backoff_s
from cbtqa.llm.progress import BatchSummary, Meter, Progress
from cbtqa.llm.protocol import RequestRefusedError, request_body
from cbtqa.llm.transport import open_transport
from cbtqa.records import Reason, Usage

ItemT = TypeVar("ItemT")
ItemT_contra = TypeVar("ItemT_contra", contravariant=True)
FEED_BLOCK = 64
PROGRESS_EVERY_S = 0.5
MOST_RATE_LIMITED = 50
"""Times that one request may be told "too many" before it is given up."""


class Task(Protocol[ItemT_contra]):
    """What is asked about an item, and what is wrong with a reply."""

    def key(self, item: ItemT_contra) -> str:
        """The item's id in the journal; unique in a run."""
        ...

    def request(self, item: ItemT_contra) -> ChatRequest:
        """The first question about an item."""
        ...

    def check(self, item: ItemT_contra, reply: Reply) -> Fault | None:
        """What is wrong with a reply that holds text, or None when it is good."""
        ...

    def ask_again(self, item: ItemT_contra, reply: Reply, fault: Fault) -> ChatRequest | None:
        """The question with the fault named, or None to leave it at that.

        `fault` is what `check` found, or REFUSAL, EMPTY or CUT found by the engine.
        """
        ...


class BatchStoppedError(IncompleteRunError):
    """The run ended before its items did; `summary` says how far it came."""

    def __init__(self, message: str, summary: BatchSummary, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint or "give the same command again to continue")
        self.summary = summary


def run_batch(
    items: Iterable[ItemT],
    task: Task[ItemT],
    endpoint: Endpoint,
    journal: Journal,
    limits: Limits,
    *,
    budget: Budget | None = None,
    price: Price | None = None,
    n_total: int | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> BatchSummary:
    """Asks about every item that the journal does not hold yet, and returns when all have ended.

    Items are drawn as places come free, so memory does not grow with their number. An item whose
    key is already in work is passed over and counted as a duplicate.

    Args:
        price: for the cost shown in progress and summary; the budget's own when left out.
        n_total: number of items when known, for the time left.
        on_progress: called twice a second on the event loop, and once at the end.

    Raises:
        BatchStoppedError: the budget is used up, the endpoint is gone or asks for a long wait, or
            SIGTERM came.
        EndpointAuthError, EndpointError: the endpoint refuses every request.
        IncompleteRunError: the journal cannot be written.
        KeyboardInterrupt: Ctrl-C; what was in flight was kept.
    """
    run = _Run(items, task, endpoint, journal, limits, budget, price, n_total, on_progress)
    return _run_anywhere(run.run())


def _run_anywhere(work: Coroutine[Any, Any, BatchSummary]) -> BatchSummary:
    """`asyncio.run`, also from inside a notebook, where a loop is running already."""
    if not _has_running_loop():
        return asyncio.run(work)
    results: list[BatchSummary | BaseException] = []

    def target() -> None:
        try:
            results.append(asyncio.run(work))
        except BaseException as error:  # noqa: BLE001 - handed to the caller's thread and raised
            results.append(error)

    thread = threading.Thread(target=target)
    thread.start()
    thread.join()
    if isinstance(results[0], BaseException):
        raise results[0]
    return results[0]


def _has_running_loop() -> bool:
    with suppress(RuntimeError):
        asyncio.get_running_loop()
        return True
    return False


class _ItemFailedError(Exception):
    """The endpoint gave no reply to one item."""

    def __init__(self, state: State, fault: Fault) -> None:
        super().__init__(fault.detail)
        self.state, self.fault = state, fault


@dataclass
class _Tries:
    """How often one request was sent, and in which format."""

    started_at: float = field(default_factory=time.monotonic)
    floor: ResponseFormat = "json_schema"
    """The highest rung left to this request."""
    rung: ResponseFormat = "json_schema"
    """The rung it was sent on last."""
    n_sent: int = 0
    n_failed: int = 0
    n_limited: int = 0


class _Run(Generic[ItemT]):
    """One call of `run_batch`."""

    def __init__(
        self,
        items: Iterable[ItemT],
        task: Task[ItemT],
        endpoint: Endpoint,
        journal: Journal,
        limits: Limits,
        budget: Budget | None,
        price: Price | None,
        n_total: int | None,
        on_progress: Callable[[Progress], None] | None,
    ) -> None:
        self._items, self._task, self._endpoint = items, task, endpoint
        self._journal, self._limits, self._on_progress = journal, limits, on_progress
        self._budget = replace(budget, spent=journal.totals().usage) if budget else None
        self._meter = Meter(n_total, price or (budget.price if budget else None))
        self._live: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._stop_reason: str | None = None
        self._fatal: BaseException | None = None
        self._is_interrupted = False
        self._ladder_name = f"format:{endpoint.host}:{endpoint.model}"
        self._ladder = FormatLadder(endpoint.format, proved=journal.meta(self._ladder_name))

    async def run(self) -> BatchSummary:
        limits = self._limits
        self._gate = Gate(limits)
        # room for items that wait for their retry or for the disk, beside those in flight
        self._room = asyncio.Semaphore(2 * limits.in_flight + 64)
        self._idle = asyncio.Event()
        ticker = asyncio.create_task(self._tick()) if self._on_progress else None
        try:
            with self._signals():
                async with open_transport(self._endpoint, limits.in_flight) as self._transport:
                    await self._feed()
                    await self._drain()
        finally:
            if ticker:
                ticker.cancel()
                with suppress(asyncio.CancelledError):
                    await ticker
                self._report()
        return self._conclude()

    def _conclude(self) -> BatchSummary:
        summary = self._meter.summary(self._stop_reason)
        if self._is_interrupted:
            raise KeyboardInterrupt
        if self._fatal is not None:
            raise self._fatal
        if self._stop_reason is not None:
            raise BatchStoppedError(self._stop_reason, summary)
        return summary

    # --- feeding ---------------------------------------------------------------------------------

    async def _feed(self) -> None:
        try:
            for block in blocks_of(self._items, FEED_BLOCK):
                # a key in work has no standing yet; looked up in the same breath, so that none can
                # leave the one and not yet stand in the other
                keys = [self._task.key(item) for item in block]
                taken = self._live.intersection(keys)
                standings = self._journal.standings(keys)
                for item, key in zip(block, keys, strict=True):
                    if key in taken:
                        self._meter.n_duplicates += 1
                        continue
                    taken.add(key)
                    await self._admit(item, key, standings.get(key))
                await asyncio.sleep(0)
        except GateClosedError:
            return
        except BaseException:
            self._stop("the items could not be read to their end")
            await self._drain()
            raise

    async def _admit(self, item: ItemT, key: str, standing: Standing | None) -> None:
        if standing is not None and standing.is_done(self._limits.max_attempts):
            self._meter.n_skipped += 1
            return
        await self._room.acquire()
        if self._gate.closed.is_set():
            raise GateClosedError
        self._live.add(key)
        self._idle.clear()
        work = asyncio.create_task(self._work(item, key, standing))
        self._tasks.add(work)
        work.add_done_callback(self._ended)

    def _ended(self, work: asyncio.Task[None]) -> None:
        self._tasks.discard(work)
        self._room.release()
        if not self._tasks:
            self._idle.set()
        if work.cancelled():
            return
        error = work.exception()
        if error is not None:
            self._fail(error)

    async def _drain(self) -> None:
        """Lets what is in flight end; after a stop, for the grace at most."""
        if not self._tasks:
            return
        idle = asyncio.create_task(self._idle.wait())
        closed = asyncio.create_task(self._gate.closed.wait())
        await asyncio.wait({idle, closed}, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.wait({idle}, timeout=self._limits.grace_s)
        for waiter in (idle, closed, *self._tasks):
            waiter.cancel()
        await asyncio.gather(idle, closed, *self._tasks, return_exceptions=True)

    # --- one item --------------------------------------------------------------------------------

    async def _work(self, item: ItemT, key: str, standing: Standing | None) -> None:
        try:
            await self._work_through(item, key, standing)
        except (GateClosedError, asyncio.CancelledError) as left:
            self._meter.n_unfinished += 1
            if isinstance(left, asyncio.CancelledError):
                raise
        finally:
            self._live.discard(key)

    async def _work_through(self, item: ItemT, key: str, standing: Standing | None) -> None:
        entry = self._journal.last_paid(key) if standing else None
        if entry is None:
            attempt, request, reply = 1, self._task.request(item), None
        elif entry.state is State.UNCHECKED:
            attempt, request, reply = entry.attempt, None, entry.reply
        else:
            assert entry.reply is not None and entry.fault is not None
            request = self._task.ask_again(item, entry.reply, entry.fault)
            attempt, reply = entry.attempt + 1, None
            if request is None:
                await self._end(Entry(key, entry.attempt, State.FINAL, None, entry.fault))
                return
        while True:
            if reply is None:
                assert request is not None
                try:
                    reply = await self._ask(request, attempt)
                except _ItemFailedError as failed:
                    await self._end(Entry(key, attempt, failed.state, None, failed.fault))
                    return
            entry, request = self._judge(item, key, attempt, reply)
            if request is None:
                await self._end(entry)
                return
            self._meter.turned_away(entry)
            self._journal.put(entry).add_done_callback(self._kept)
            attempt, reply = attempt + 1, None

    def _judge(
        self, item: ItemT, key: str, attempt: int, reply: Reply
    ) -> tuple[Entry, ChatRequest | None]:
        """The row that a reply becomes, and the next question when there is to be one."""
        try:
            fault = fault_of_reply(reply) or self._task.check(item, reply)
            if fault is None:
                return Entry(key, attempt, State.ACCEPTED, reply), None
            again = None
            if fault.reason is not Reason.CONTENT_FILTER and attempt < self._limits.max_attempts:
                again = self._task.ask_again(item, reply, fault)
        except BaseException:
            # paid for and not judged: a mistake in the task must not cost the reply
            self._journal.put(Entry(key, attempt, State.UNCHECKED, reply))
            raise
        ends_here = again is None and attempt < self._limits.max_attempts
        is_final = ends_here or fault.reason is Reason.CONTENT_FILTER
        state = State.FINAL if is_final else State.FAULTY
        return Entry(key, attempt, state, reply, fault), again

    async def _end(self, entry: Entry) -> None:
        await self._journal.put(entry)
        self._meter.ended(entry)

    def _kept(self, written: asyncio.Future[None]) -> None:
        if not written.cancelled() and (error := written.exception()) is not None:
            self._fail(error)

    # --- one request -----------------------------------------------------------------------------

    async def _ask(self, request: ChatRequest, attempt: int) -> Reply:
        """A reply, after as many repeats as the limits allow.

        Raises:
            _ItemFailedError: the endpoint refuses this request, or failed on it too often.
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
                    raise _ItemFailedError(State.FINAL, error.fault) from None
                tries.floor = lower
            except EndpointError as error:
                if not error.is_retryable:
                    raise
                await self._back_off(error, tries)
            else:
                if request.json_schema and self._ladder.answered(tries.rung):
                    self._journal.set_meta(self._ladder_name, tries.rung)
                return reply

    async def _send(self, request: ChatRequest, attempt: int, tries: _Tries) -> Reply:
        booked = self._book(request)
        n_booked = booked.prompt_tokens + booked.completion_tokens
        await self._gate.enter(n_booked, is_retry=attempt > 1 or tries.n_sent > 0)
        try:
            self._check_budget(booked)
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
                self._gate.failed(error, sent_at)
                raise
            finally:
                self._meter.returned(sent_at, booked)
        finally:
            self._gate.leave()
        usage = received.reply.usage
        self._gate.answered()
        self._gate.heed(received.headers, usage.prompt_tokens + usage.completion_tokens - n_booked)
        self._meter.paid(usage)
        if self._budget:
            self._budget.spent = _sum_of(self._budget.spent, usage)
        return received.reply

    def _book(self, request: ChatRequest) -> Usage:
        """Tokens that a request will probably use; nothing when nobody counts them."""
        if self._budget is None and self._limits.tpm is None:
            return _NOTHING
        n_in = sum(estimate_tokens(message["content"]) for message in request.messages)
        most = request.sampling.max_tokens or 1000
        n_out = min(most, self._meter.mean_completion_tokens or most)
        return Usage(prompt_tokens=n_in, completion_tokens=round(n_out))

    def _check_budget(self, booked: Usage) -> None:
        if self._budget and self._budget.is_used_up(_sum_of(self._meter.reserved, booked)):
            self._stop("the budget is used up")
            raise GateClosedError

    async def _back_off(self, error: EndpointError, tries: _Tries) -> None:
        """Waits before the next try; a suspected outage does not use up an item's tries."""
        wait_asked = error.retry_after_s if isinstance(error, RateLimitError) else None
        if self._gate.is_gone(error):
            self._stop(f"the endpoint is gone: {error}")
            raise GateClosedError
        if wait_asked is not None and wait_asked > max(self._limits.retry_for_s, 60):
            self._stop(f"the endpoint asks to wait {wait_asked:.0f} s: {error}")
            raise GateClosedError
        if isinstance(error, RateLimitError):
            tries.n_limited += 1
        elif not self._gate.is_suspect:
            tries.n_failed += 1
        waited = time.monotonic() - tries.started_at
        is_late = waited > self._limits.retry_for_s and not self._gate.is_suspect
        too_often = tries.n_failed > self._limits.max_retries or tries.n_limited > MOST_RATE_LIMITED
        if too_often or is_late:
            n_tries = tries.n_failed + tries.n_limited
            detail = f"given up after {n_tries} failures in {waited:.0f} s; the last: {error}"
            raise _ItemFailedError(State.ENDPOINT, Fault(Reason.ENDPOINT, detail))
        await self._gate.sleep(
            0 if wait_asked else backoff_s(max(1, tries.n_failed + tries.n_limited))
        )

    # --- stopping --------------------------------------------------------------------------------

    def _stop(self, reason: str) -> None:
        if self._stop_reason is None:
            self._stop_reason = reason
        self._gate.close()

    def _fail(self, error: BaseException) -> None:
        if self._fatal is None:
            self._fatal = error
        self._stop(str(error))

    @contextmanager
    def _signals(self) -> Any:
        """The first Ctrl-C (or SIGTERM) stops sending, the second drops what is in flight."""
        loop = asyncio.get_running_loop()
        caught = []
        for number in (signal.SIGINT, signal.SIGTERM):
            # not on Windows, and not outside the main thread: there Ctrl-C cancels at once
            with suppress(NotImplementedError, RuntimeError, ValueError):
                loop.add_signal_handler(number, self._interrupt, number)
                caught.append(number)
        try:
            yield
        finally:
            for number in caught:
                loop.remove_signal_handler(number)

    def _interrupt(self, number: int) -> None:
        if self._gate.closed.is_set():
            for work in self._tasks:
                work.cancel()
        self._is_interrupted |= number == signal.SIGINT
        self._stop(f"stopped by {signal.Signals(number).name}")

    # --- telling ---------------------------------------------------------------------------------

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(PROGRESS_EVERY_S)
            self._report()

    def _report(self) -> None:
        if self._on_progress:
            self._on_progress(self._meter.progress(int(self._gate.limit)))


_NOTHING = Usage()


def _sum_of(one: Usage, other: Usage) -> Usage:
    return Usage(
        prompt_tokens=one.prompt_tokens + other.prompt_tokens,
        completion_tokens=one.completion_tokens + other.completion_tokens,
    )
