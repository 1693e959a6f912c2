"""One part of a cluster's work: the engine of `batch`, fed and written by the driver.

What runs inside an actor, and what it says to the driver; see `cluster`. Nothing here knows Ray:
`Shard` is a class whose methods are called from elsewhere.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, NamedTuple, cast

from cbtqa.llm.batch import _Run
from cbtqa.llm.cost import Budget
from cbtqa.llm.journal import Entry, Journal, Standing, Totals
from cbtqa.llm.limits import GateClosedError, Limits
from cbtqa.records import Usage

GATHER_S = 0.03
"""Seconds in which rows are gathered before they are told."""


class Handed(NamedTuple):
    """An item and what the journal knows of it."""

    item: Any
    key: str
    standing: Standing | None
    paid: Entry | None


class Row(NamedTuple):
    """A row on its way to the journal."""

    number: int
    entry: Entry
    is_end: bool
    """True when it ends its item; else the item is asked again."""


class Counts(NamedTuple):
    """What one actor has sent and got so far."""

    n_requests: int = 0
    n_repeats: int = 0
    n_paid: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True)
class Report:
    """What an actor tells the driver."""

    rows: list[Row]
    metas: dict[str, str]
    counts: Counts
    in_flight: int
    limit: int
    oldest_s: float
    stop_reason: str | None
    has_ended: bool


class _RemoteJournal:
    """The part of `Journal` that the engine uses; rows are written by the driver."""

    def __init__(self, earlier: Totals, metas: dict[str, str]) -> None:
        self.rows: list[Row] = []
        self.new_metas: dict[str, str] = {}
        self.paid: dict[str, Entry] = {}
        self.waiting: dict[int, asyncio.Future[None]] = {}
        self.news = asyncio.Event()
        self._earlier, self._metas, self._numbers = earlier, metas, count()

    def totals(self) -> Totals:
        return self._earlier

    def meta(self, name: str) -> str | None:
        return self._metas.get(name)

    def set_meta(self, name: str, value: str) -> None:
        self.new_metas[name] = value

    def last_paid(self, key: str) -> Entry | None:
        return self.paid.pop(key, None)

    def put(self, entry: Entry, *, is_end: bool = False) -> asyncio.Future[None]:
        number = next(self._numbers)
        self.rows.append(Row(number, entry, is_end))
        self.waiting[number] = asyncio.get_running_loop().create_future()
        self.news.set()
        return self.waiting[number]


class _ShardRun(_Run[Any]):
    """The engine, fed by the driver."""

    def __init__(self, journal: _RemoteJournal, *parts: Any) -> None:
        task, endpoint, limits, budget, price = parts
        kept = cast(Journal, journal)
        super().__init__((), task, endpoint, kept, limits, budget, price, None, None)
        self.inbox: asyncio.Queue[Handed | None] = asyncio.Queue()
        self._remote = journal

    async def _feed(self) -> None:
        with suppress(GateClosedError):
            while (handed := await self.inbox.get()) is not None:
                await self._admit(handed.item, handed.key, handed.standing)

    async def _end(self, entry: Entry) -> None:
        await self._remote.put(entry, is_end=True)
        self._meter.ended(entry)

    def _stop(self, reason: str) -> None:
        super()._stop(reason)
        self.inbox.put_nowait(None)

    def stop(self, reason: str) -> None:
        """Sends nothing more; what is in flight may end."""
        self._stop(reason)

    def report(self, rows: list[Row], metas: dict[str, str], *, has_ended: bool) -> Report:
        """How the run is doing, with the rows to be written."""
        meter = self._meter
        now = meter.progress(int(self._gate.limit))
        counts = Counts(
            meter.n_requests,
            meter.n_repeats,
            meter.n_paid,
            meter.prompt_tokens,
            meter.completion_tokens,
        )
        reason = self._stop_reason
        return Report(
            rows, metas, counts, now.in_flight, now.limit, now.oldest_s, reason, has_ended
        )

    def conclude_shard(self) -> None:
        """Raises what broke the run, if anything did."""
        if self._fatal is not None:
            raise self._fatal


class Shard:
    """The actor: an engine on the actor's own event loop."""

    async def begin(self, earlier: Totals, metas: dict[str, str], *parts: Any) -> Report:
        # not in the constructor: Ray may store an actor's arguments, and the key is among these
        self._journal = _RemoteJournal(earlier, metas)
        self._run = _ShardRun(self._journal, *parts)
        self._work = asyncio.create_task(self._run.run())
        self._work.add_done_callback(lambda _: self._journal.news.set())
        await asyncio.sleep(0)
        return self._run.report([], {}, has_ended=False)

    async def exchange(
        self,
        handed: list[Handed],
        durable: list[int],
        stop_reason: str | None,
        is_over: bool,
        patience_s: float,
    ) -> Report:
        """Takes items and the numbers of rows now durable; tells rows to be written."""
        journal, run = self._journal, self._run
        for number in durable:
            waiting = journal.waiting.pop(number)
            if not waiting.done():
                waiting.set_result(None)
        for one in handed:
            if one.paid is not None:
                journal.paid[one.key] = one.paid
            run.inbox.put_nowait(one)
        if stop_reason is not None:
            run.stop(stop_reason)
        if is_over:
            run.inbox.put_nowait(None)
        with suppress(TimeoutError):
            await asyncio.wait_for(journal.news.wait(), patience_s)
            await asyncio.sleep(GATHER_S)
        rows, journal.rows = journal.rows, []
        metas, journal.new_metas = journal.new_metas, {}
        if not self._work.done():
            journal.news.clear()
        has_ended = self._work.done() and not rows and not journal.waiting
        return run.report(rows, metas, has_ended=has_ended)

    async def finish(self) -> None:
        """Raises what broke the run, if anything did."""
        await self._work
        self._run.conclude_shard()


# --- shares --------------------------------------------------------------------------------------


def shares(limits: Limits, n_actors: int) -> list[Limits]:
    """The limits in equal parts that add up to the whole, none of them empty."""
    whole = {name: getattr(limits, name) for name in ("in_flight", "rpm", "tpm")}
    parts = {name: most for name, most in whole.items() if most is not None}
    n = max(1, min(n_actors, *parts.values()))
    return [
        limits.model_copy(update={name: (most + i) // n for name, most in parts.items()})
        for i in range(n)
    ]


def share_of_budget(budget: Budget | None, spent: Usage, n: int) -> Budget | None:
    """What was spent before, and an n-th of what is left."""
    if budget is None:
        return None
    tokens, cost = budget.max_tokens, budget.max_cost
    if tokens is not None:
        before = spent.prompt_tokens + spent.completion_tokens
        tokens = before + (tokens - before) // n
    if cost is not None and budget.price is not None:
        before_cost = budget.price.of(spent)
        cost = before_cost + (cost - before_cost) / n
    return replace(budget, max_tokens=tokens, max_cost=cost)


def sum_of(one: Usage, other: Usage) -> Usage:
    return Usage(
        prompt_tokens=one.prompt_tokens + other.prompt_tokens,
        completion_tokens=one.completion_tokens + other.completion_tokens,
    )
