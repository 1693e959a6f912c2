"""The same work on a Ray cluster: actors ask and check, the driver keeps the one journal.

    run_batch(items, task, endpoint, journal, limits, cluster=Cluster("local", n_actors=8))

The driver is the engine itself; an actor asks and checks an item on a line with a share of limits
and budget. So the journal has one writer, and a killed driver or actor loses only what was in
flight. A Ray Dataset is streamed through the driver: `map_batches` would repeat whole blocks after
a failure, replies paid for included, and wait for the slowest reply of each block.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, cast

from cbtqa.errors import ConfigError, IncompleteRunError, require
from cbtqa.llm.asking import USED_UP, answered_name, format_name
from cbtqa.llm.batch import Line, Question, Task, ask_all, run_anywhere
from cbtqa.llm.chat import Reply
from cbtqa.llm.cost import Budget
from cbtqa.llm.endpoint import Endpoint
from cbtqa.llm.journal import Entry, Journal, Standing, Totals
from cbtqa.llm.limits import GateClosedError, Limits
from cbtqa.llm.progress import Progress
from cbtqa.records import Usage

PATIENCE_S = 0.25
"""Seconds in which an actor waits for something to report."""
GATHER_S = 0.03
"""Seconds in which ended items are gathered before they are reported."""
KNOCK_S = 10.0
MOST_LOSSES = 8
"""Actors that may die in a row, without a reply kept between them, before the run stops."""


class Cluster(NamedTuple):
    """A Ray cluster."""

    address: str = "local"
    """Of the cluster; `local` starts Ray on this machine. A connection that the process already
    has is used as it is."""
    n_actors: int = 2
    """Lowered to `in_flight`, `rpm` and `tpm` where those are smaller."""


class Handed(NamedTuple):
    """An item, and what the journal knows of it."""

    item: Any
    key: str
    standing: Standing | None
    paid: Entry | None


class ItemReport(NamedTuple):
    """What an actor reports of one item."""

    key: str
    rows: list[Entry]
    """In the order in which they belong into the journal."""
    has_ended: bool
    """True when the last row ends the item."""
    error: BaseException | None
    """What breaks the whole run."""


class Report(NamedTuple):
    """What an actor reports to the driver."""

    reported: list[ItemReport]
    stop_reason: str | None
    """Why the actor asks no more."""
    stop_hint: str | None
    progress: Progress
    metas: dict[str, str]


class _NotNoted:
    """In place of `InFlight`: the driver notes what it has handed out."""

    n_before = 0

    def sent(self) -> None: ...

    def failed(self) -> None: ...

    def received(self, reply: Reply) -> None: ...


class _Rows:
    """The part of `Journal` that a line uses, in an actor: rows are kept for the driver."""

    def __init__(self, earlier: Totals, metas: dict[str, str]) -> None:
        self.rows: dict[str, list[Entry]] = {}
        self.paid: dict[str, Entry] = {}
        self.metas, self.in_flight = metas, _NotNoted()
        self.totals, self.meta, self.last_paid = lambda: earlier, metas.get, self.paid.get

    def set_meta(self, name: str, value: str) -> None:
        self.metas[name] = value

    def has_room(self) -> bool:
        return True  # the driver's disk is not this one

    def put(self, entry: Entry) -> asyncio.Future[None]:
        self.rows[entry.key].append(entry)
        kept: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        kept.set_result(None)  # durable is what the driver has committed
        return kept


class Shard:
    """The actor: a line of the engine on the actor's own event loop."""

    async def begin(
        self, earlier: Totals, metas: dict[str, str], task: Any, servers: Any, *parts: Any
    ) -> None:
        """Opens the line. Not the constructor: Ray may store its arguments, the key among them."""
        limits, budget = parts
        self._task, self._rows = task, _Rows(earlier, metas)
        self._reported: list[ItemReport] = []
        self._news, self._works = asyncio.Event(), set[asyncio.Task[None]]()
        self._line = Line(servers, cast(Journal, self._rows), limits, budget=budget)
        await self._line.__aenter__()

    async def exchange(self, handed: list[Handed]) -> Report:
        """Takes items, and reports those that have ended or were left."""
        for one in handed:
            work = asyncio.create_task(self._work(one))
            self._works.add(work)
            work.add_done_callback(self._works.discard)
        if not handed:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), PATIENCE_S)
                await asyncio.sleep(GATHER_S)
        self._news.clear()
        reported, self._reported = self._reported, []
        progress = self._line.meter.progress(sum(model.limit for model in self._line.models))
        why = self._line.stop_reason, self._line.stop_hint
        return Report(reported, *why, progress, dict(self._rows.metas))

    async def _work(self, handed: Handed) -> None:
        """Asks about an item until it has ended or the line stops."""
        journal, line, task = self._rows, self._line, self._task
        item, key, standing, paid = handed
        rows = journal.rows[key] = []
        if paid is not None:
            journal.paid[key] = paid

        async def work() -> Entry:  # a task that cannot even ask fails here, too
            return await line.work(Question.about(item, task, key), standing)

        done = asyncio.ensure_future(work())
        await asyncio.wait({done})
        del journal.rows[key]
        journal.paid.pop(key, None)
        error = done.exception()
        is_left = isinstance(error, GateClosedError)
        self._reported.append(ItemReport(key, rows, error is None, None if is_left else error))
        self._news.set()

    async def stop(self, reason: str) -> None:
        """Sends nothing more; what is in flight may end."""
        self._line.stop(reason)


@dataclass(eq=False)
class _Actor:
    """An actor with its share of the limits and the budget."""

    handle: Any
    limits: Limits
    budget: Budget | None
    outbox: list[Handed] = field(default_factory=list)
    waiting: dict[str, asyncio.Future[ItemReport | None]] = field(default_factory=dict)
    """Items handed to it and not ended, by key; None comes when it died."""
    has_work: asyncio.Event = field(default_factory=asyncio.Event)
    is_used_up: bool = False
    """Whether its share of the budget is spent."""
    progress: Progress = field(default_factory=Progress)
    reported_at: float = field(default_factory=time.monotonic)


def run_on_cluster(
    cluster: Cluster,
    line: Line,
    items: Iterable[Any] | Any,
    task: Task[Any],
    endpoints: Sequence[Endpoint],
) -> None:
    """Does what `batch.run_batch` does, in actors of a Ray cluster; raises what that raises.

    Args:
        task: picklable; the actors' machines have this package and the task's modules.
        endpoints: their addresses are resolved on the actors' machines.
    """
    driver = _Driver(line, task, endpoints)
    rows = items.iter_rows() if hasattr(items, "iter_rows") else items
    with _connected(cluster.address, cluster.n_actors):
        try:
            run_anywhere(driver.run(rows, cluster.n_actors))
        finally:
            driver.kill()


class _Driver:
    """Hands items to actors, writes what they report, replaces those that die."""

    def __init__(self, line: Line, task: Task[Any], endpoints: Sequence[Endpoint]) -> None:
        self._line, self._task, self._endpoints = line, task, tuple(endpoints)
        self._journal, self._limits = line.journal, line.limits
        self._earlier = line.journal.totals()
        self._actors: list[_Actor] = []
        self._gone: list[Progress] = []
        self._pumps: set[asyncio.Task[None]] = set()
        self._n_losses = 0
        line.on_stop, line.describe = self._stop_actors, self._progress

    async def run(self, items: Iterable[Any], n_actors: int) -> None:
        """Works everything off."""
        parts = shares(self._limits, n_actors)
        for part in parts:
            self._start(part, share_of_budget(self._line.budget, len(parts)))
        in_flight = self._limits.in_flight * len(self._endpoints)
        async with self._line:
            await ask_all(self._line, items, self._task, in_flight, self._work)

    def kill(self) -> None:
        """Ends the actors."""
        import ray

        for actor in self._actors:
            ray.kill(actor.handle)

    def _start(self, limits: Limits, budget: Budget | None) -> None:
        import ray

        # an actor waits more than it computes: it takes no CPU from Ray Data's own tasks
        kind = ray.remote(num_cpus=0, max_restarts=0, scheduling_strategy="SPREAD")(Shard)
        handle: Any = kind.remote()
        names = {name(one) for one in self._endpoints for name in (format_name, answered_name)}
        metas = {name: value for name in names if (value := self._journal.meta(name))}
        actor = _Actor(handle, limits, budget)
        self._actors.append(actor)
        parts = self._task, self._endpoints, limits, budget
        begun = handle.begin.remote(self._earlier, metas, *parts)
        self._pumps.add(asyncio.create_task(self._pump(actor, begun)))

    async def _pump(self, actor: _Actor, begun: Any) -> None:
        """One call to the actor after the other, each with all that waits: a call is dear."""
        import ray

        try:
            await begun
            while True:
                await actor.has_work.wait()
                handed, actor.outbox = actor.outbox, []
                self._hear(actor, await actor.handle.exchange.remote(handed))
        except ray.exceptions.RayActorError as error:
            self._lost(actor, error)
        except ray.exceptions.RayError as error:
            self._line.fail(error)
        finally:
            for waiter in actor.waiting.values():
                if not waiter.done():
                    waiter.set_result(None)

    def _hear(self, actor: _Actor, report: Report) -> None:
        actor.progress, actor.reported_at = report.progress, time.monotonic()
        self._count()
        for name, value in report.metas.items():
            if self._journal.meta(name) != value:
                self._journal.set_meta(name, value)
        if report.stop_reason == USED_UP:
            # the others go on with what it leaves, until theirs is used up too
            actor.is_used_up = True
        elif report.stop_reason is not None:
            self._line.stop(report.stop_reason, report.stop_hint)
        for reported in report.reported:
            self._n_losses = 0
            waiter = actor.waiting.pop(reported.key)
            if not waiter.done():
                waiter.set_result(reported)
        if not actor.waiting:
            actor.has_work.clear()

    async def _work(self, item: Any, key: str, standing: Standing | None) -> None:
        """Has one item worked off, by another actor when one dies or has spent its share."""
        self._journal.in_flight.sent()
        try:
            await self._work_off(item, key, standing)
        except asyncio.CancelledError:
            raise  # dropped, and maybe paid: it stays noted
        except BaseException:
            self._journal.in_flight.failed()
            raise
        self._journal.in_flight.failed()

    async def _work_off(self, item: Any, key: str, standing: Standing | None) -> None:
        paid = self._journal.last_paid(key) if standing else None
        while not self._line.is_stopping:
            able = [actor for actor in self._actors if not actor.is_used_up]
            if not able:
                self._line.stop(USED_UP)
                break
            actor = min(able, key=lambda one: len(one.waiting) / one.limits.in_flight)
            waiter = actor.waiting[key] = asyncio.get_running_loop().create_future()
            actor.outbox.append(Handed(item, key, standing, paid))
            actor.has_work.set()
            reported = await waiter
            if reported is None:
                continue
            for row in reported.rows[:-1] if reported.has_ended else reported.rows:
                self._line.keep(row)
            if reported.error is not None:
                raise reported.error
            if reported.has_ended:
                await self._line.end(reported.rows[-1])
                return
            if reported.rows:
                paid = reported.rows[-1]
                standing = Standing(paid.attempt, paid.state)
        raise GateClosedError

    def _lost(self, actor: _Actor, error: Exception) -> None:
        """Replaces a dead actor; what it had is asked again unless the journal holds it."""
        import ray

        ray.kill(actor.handle)  # unreachable is not dead: it must not go on asking
        self._actors.remove(actor)
        self._gone.append(actor.progress)
        self._n_losses += 1
        if self._n_losses > MOST_LOSSES:
            trouble = f"{self._n_losses} actors died in a row; the last: {error}"
            hint = "look at Ray's logs, then give the same command again"
            self._line.fail(IncompleteRunError(trouble, hint=hint))
        if not self._line.is_stopping:
            budget = replace(actor.budget) if actor.budget else None
            if budget is not None:
                budget.book(actor.progress.usage)
            self._start(actor.limits, budget)

    def _stop_actors(self) -> None:
        for actor in self._actors:
            actor.handle.stop.remote(self._line.stop_reason)

    def _count(self) -> None:
        parts, meter = [*self._gone, *(actor.progress for actor in self._actors)], self._line.meter
        for name in ("n_requests", "n_repeats", "n_paid"):
            setattr(meter, name, sum(getattr(part, name) for part in parts))
        meter.usage = sum((part.usage for part in parts), Usage())

    def _progress(self, plain: Progress) -> Progress:
        """The line's progress with what the actors are doing just now."""
        now, busy = time.monotonic(), [one for one in self._actors if one.progress.in_flight]
        return replace(
            plain,
            in_flight=sum(one.progress.in_flight for one in busy),
            limit=sum(one.progress.limit for one in self._actors),
            oldest_s=max(
                (one.progress.oldest_s + now - one.reported_at for one in busy), default=0.0
            ),
        )


def shares(limits: Limits, n_actors: int) -> list[Limits]:
    """The limits in equal parts that add up to the whole, none of them empty."""
    whole = {name: getattr(limits, name) for name in ("in_flight", "rpm", "tpm")}
    parts = {name: most for name, most in whole.items() if most is not None}
    n = max(1, min(n_actors, *parts.values()))
    return [
        limits.model_copy(update={name: (most + i) // n for name, most in parts.items()})
        for i in range(n)
    ]


def share_of_budget(budget: Budget | None, n: int) -> Budget | None:
    """What was spent before, and an n-th of what is left."""
    if budget is None:
        return None
    tokens, cost = budget.max_tokens, budget.max_cost
    if tokens is not None:
        tokens = budget.n_tokens + (tokens - budget.n_tokens) // n
    if cost is not None:
        cost = budget.cost + (cost - budget.cost) / n
    return replace(budget, max_tokens=tokens, max_cost=cost)


@contextmanager
def _connected(address: str, n_actors: int) -> Iterator[None]:
    """A connection to Ray, closed again when it was opened here."""
    ray = require("ray", "cluster")
    if ray.is_initialized():
        yield
        return
    # where people's troubles are the text, nothing is sent to others unasked
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    if address == "local":
        options |= {"num_cpus": max(n_actors, os.cpu_count() or 1), "include_dashboard": False}
    try:
        # Ray itself tries for minutes where nothing listens
        host, _, port = address.removeprefix("ray://").rpartition(":")
        if host and port.isdigit():
            socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK_S).close()
        ray.init(address, **options)
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"no Ray cluster at '{address}': {error}",
            hint="start one with `ray start --head`, or leave the address at 'local'",
        ) from None
    try:
        yield
    finally:
        ray.shutdown()
