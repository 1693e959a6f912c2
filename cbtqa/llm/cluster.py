"""The same work on a Ray cluster: the engine of `batch` in several actors, one journal.

    summary = run_cluster(items, task, endpoint, journal, Limits(in_flight=2048), n_actors=8)
    summary = run_cluster(ray.data.read_parquet("s3://..."), task, ...)       # a task over its rows

Each actor runs the engine with its share of the limits. The driver draws the items, hands them
out, writes what comes back into its journal and only then says so; an item counts after that. So
the journal has one writer, and a killed driver or actor loses no more than what was in flight.

A Ray Dataset is read and prepared by Ray Data and streamed through the driver. The asking itself
is not a `map_batches`: that repeats whole blocks after a failure, replies paid for included, and
waits for the slowest reply of each block. Replies are longer than questions and have to reach the
journal anyway, so handing out items from the same place costs little.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import count, islice
from types import FrameType
from typing import Any, TypeVar

from cbtqa.errors import ConfigError, IncompleteRunError, MissingExtraError
from cbtqa.llm.batch import PROGRESS_EVERY_S, BatchStoppedError, Task
from cbtqa.llm.cost import Budget, Price
from cbtqa.llm.endpoint import Endpoint
from cbtqa.llm.journal import Journal
from cbtqa.llm.limits import Limits
from cbtqa.llm.progress import BatchSummary, Meter, Progress
from cbtqa.llm.shard import Counts, Handed, Report, Shard, share_of_budget, shares, sum_of
from cbtqa.records import Usage

ItemT = TypeVar("ItemT")
PATIENCE_S = 0.25
"""Seconds in which an actor waits for something to tell."""
KNOCK_S = 10.0
MOST_LOSSES = 8
"""Actors that may die in a row, without a reply kept between them, before the run stops."""
USED_UP = "the budget is used up"
"""As `asking` says it: the one stop that ends an actor and not the run."""


@dataclass
class _Slot:
    """A share of the limits, and the actor that has it just now."""

    limits: Limits
    budget: Budget | None
    number: int = 0
    """Of the actor; a new one for every actor."""
    actor: Any = None
    live: dict[str, Any] = field(default_factory=dict)
    """Items handed to the actor and not ended, by key."""
    durable: list[int] = field(default_factory=list)
    spent: Usage = field(default_factory=Usage)


def run_cluster(
    items: Iterable[ItemT] | Any,
    task: Task[ItemT],
    endpoint: Endpoint,
    journal: Journal,
    limits: Limits,
    *,
    address: str = "local",
    n_actors: int = 2,
    budget: Budget | None = None,
    price: Price | None = None,
    n_total: int | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> BatchSummary:
    """Does what `batch.run_batch` does, in actors of a Ray cluster.

    The limits hold for all actors together: each gets an equal share. An actor that dies is
    replaced, and its items are handed out again.

    Args:
        items: an iterable, or a Ray Dataset; then an item is a row, a dict.
        task: picklable; the actors' machines have this package and the task's modules.
        endpoint: its address is resolved on the actors' machines.
        address: of the cluster; `local` starts Ray on this machine. A connection that the process
            already has is used as it is.
        n_actors: lowered to `limits.in_flight`, `rpm` and `tpm` where those are smaller.
        budget: kept to within one reply or so an actor.

    Raises:
        MissingExtraError: Ray is not installed.
        ConfigError: no cluster at this address.
        IncompleteRunError: actors keep dying; or as `run_batch`, like all else.
    """
    with _connected(address, n_actors):
        driver = _Driver(items, task, endpoint, journal, limits, n_actors, budget, price, n_total)
        return driver.run(on_progress)


class _Driver:
    """Draws items, hands them out, writes rows, replaces actors; one call of `run_cluster`."""

    def __init__(
        self,
        items: Any,
        task: Any,
        endpoint: Endpoint,
        journal: Journal,
        limits: Limits,
        n_actors: int,
        budget: Budget | None,
        price: Price | None,
        n_total: int | None,
    ) -> None:
        self._task, self._endpoint, self._journal, self._limits = task, endpoint, journal, limits
        self._price = price or (budget.price if budget else None)
        self._earlier = journal.totals()
        self._meter = Meter(n_total, self._price, self._earlier)
        self._items = iter(items.iter_rows() if hasattr(items, "iter_rows") else items)
        self._is_dry = False
        self._again: deque[Any] = deque()
        self._live: set[str] = set()
        parts = shares(limits, n_actors)
        budget = share_of_budget(budget, self._earlier.usage, len(parts))
        self._slots = [_Slot(part, budget) for part in parts]
        self._pending: dict[Any, _Slot] = {}
        self._heard: deque[tuple[_Slot, Report]] = deque()
        self._told: dict[int, Report] = {}
        self._numbers = count(1)
        self._n_losses = self._n_signals = 0
        self._stop_reason: str | None = None
        self._fatal: BaseException | None = None
        self._is_interrupted = self._is_used_up = False

    def run(self, on_progress: Callable[[Progress], None] | None) -> BatchSummary:
        """Works everything off, then tells the summary or raises what stopped the run."""
        import ray

        try:
            with self._signals():
                for slot in self._slots:
                    self._start(slot)
                try:
                    self._work_off(on_progress)
                except BaseException:
                    # the items or the task broke: what is in flight is paid for and ends first
                    self._stop("the items could not be read to their end")
                    self._work_off(on_progress)
                    raise
        finally:
            for slot in self._slots:
                if slot.actor is not None:
                    ray.kill(slot.actor)
            if on_progress:
                on_progress(self._progress())
        return self._conclude()

    def _work_off(self, on_progress: Callable[[Progress], None] | None) -> None:
        told_at = 0.0
        while (self._pending or self._heard) and self._n_signals < 2:
            self._turn()
            if on_progress and time.monotonic() - told_at > PROGRESS_EVERY_S:
                told_at = time.monotonic()
                on_progress(self._progress())
        if self._is_used_up and (self._again or not self._is_dry):
            self._stop(USED_UP)

    def _turn(self) -> None:
        """Hears the actors that have something to tell, commits it all at once, answers them."""
        import ray

        refs = list(self._pending)
        if refs:
            ray.wait(refs, num_returns=1, timeout=PATIENCE_S)
        reports = []
        for ref in ray.wait(refs, num_returns=len(refs), timeout=0)[0] if refs else ():
            slot = self._pending.pop(ref)
            try:
                reports.append((slot, ray.get(ref)))
            except ray.exceptions.RayActorError as error:
                self._lost(slot, error)
        self._record(reports)
        self._heard.extend(reports)
        while self._heard:
            self._answer(*self._heard[0])
            self._heard.popleft()

    # --- actors ----------------------------------------------------------------------------------

    def _start(self, slot: _Slot) -> None:
        import ray

        # an engine waits more than it computes: it takes no CPU from Ray Data's own tasks
        kind = ray.remote(num_cpus=0, max_restarts=0, scheduling_strategy="SPREAD")(Shard)
        slot.actor, slot.number = kind.remote(), next(self._numbers)
        slot.durable, slot.live = [], {}
        format_name = f"format:{self._endpoint.host}:{self._endpoint.model}"
        proved = self._journal.meta(format_name)
        earlier = replace(self._earlier, usage=sum_of(self._earlier.usage, slot.spent))
        parts = (self._task, self._endpoint, slot.limits, slot.budget, self._price)
        metas = {format_name: proved} if proved else {}
        self._pending[slot.actor.begin.remote(earlier, metas, *parts)] = slot

    def _answer(self, slot: _Slot, report: Report) -> None:
        if report.stop_reason and report.stop_reason != USED_UP:
            self._stop(report.stop_reason)
        if report.has_ended:
            self._ended(slot, report.stop_reason)
            return
        handed = self._hand(slot)
        is_over = self._is_dry and not self._again and not self._live
        patience = 0.0 if handed else PATIENCE_S
        answer = (handed, slot.durable, self._stop_reason, is_over, patience)
        slot.durable = []
        self._pending[slot.actor.exchange.remote(*answer)] = slot

    def _ended(self, slot: _Slot, reason: str | None) -> None:
        import ray

        try:
            ray.get(slot.actor.finish.remote())
        except ray.exceptions.RayTaskError as error:
            self._fatal = self._fatal or (error.cause if error.cause is not None else error)
            self._stop(str(self._fatal))
        except ray.exceptions.RayActorError as error:
            self._lost(slot, error)
        if reason == USED_UP:
            # the others go on with what it leaves, until theirs is used up too
            self._is_used_up = True
            self._give_back(slot)

    def _lost(self, slot: _Slot, error: Exception) -> None:
        """Replaces a dead actor; what it had is asked again unless it stands in the journal."""
        import ray

        ray.kill(slot.actor)  # unreachable is not dead: it must not go on asking
        self._give_back(slot)
        self._n_losses += 1
        if self._n_losses > MOST_LOSSES:
            self._fatal = self._fatal or IncompleteRunError(
                f"{self._n_losses} actors died in a row; the last: {error}",
                hint="look at Ray's logs, then give the same command again",
            )
            self._stop("actors keep dying")
        if self._stop_reason is None:
            self._start(slot)

    def _give_back(self, slot: _Slot) -> None:
        self._again.extend(slot.live.values())
        self._live.difference_update(slot.live)
        slot.live = {}

    # --- items -----------------------------------------------------------------------------------

    def _hand(self, slot: _Slot) -> list[Handed]:
        """As many items as the actor has room for, and what the journal knows of them."""
        room = 2 * slot.limits.in_flight + 64 - len(slot.live)
        # in helpings, so that the first actor does not take the whole of a small run
        room = min(room, max(16, slot.limits.in_flight))
        handed: list[Handed] = []
        while len(handed) < room and self._stop_reason is None:
            block = self._draw(room - len(handed))
            if not block:
                break
            keys = [self._task.key(item) for item in block]
            standings = self._journal.standings(keys)
            for item, key in zip(block, keys, strict=True):
                standing = standings.get(key)
                if key in self._live:
                    self._meter.n_duplicates += 1
                elif standing is not None and standing.is_done(self._limits.max_attempts):
                    self._meter.n_skipped += 1
                else:
                    self._live.add(key)
                    slot.live[key] = item
                    paid = self._journal.last_paid(key) if standing else None
                    handed.append(Handed(item, key, standing, paid))
        return handed

    def _draw(self, n: int) -> list[Any]:
        again = [self._again.popleft() for _ in range(min(n, len(self._again)))]
        if again or self._is_dry:
            return again
        block = list(islice(self._items, n))
        self._is_dry = not block
        return block

    # --- the journal -----------------------------------------------------------------------------

    def _record(self, reports: list[tuple[_Slot, Report]]) -> None:
        self._journal.record(row.entry for _, report in reports for row in report.rows)
        for slot, report in reports:
            self._told[slot.number] = report
            for name, value in report.metas.items():
                self._journal.set_meta(name, value)
            for row in report.rows:
                self._n_losses = 0
                slot.durable.append(row.number)
                if row.entry.reply is not None:
                    slot.spent = sum_of(slot.spent, row.entry.reply.usage)
                if row.is_end:
                    self._meter.ended(row.entry)
                    self._live.discard(row.entry.key)
                    slot.live.pop(row.entry.key, None)
                else:
                    self._meter.turned_away(row.entry)

    # --- stopping and telling --------------------------------------------------------------------

    def _stop(self, reason: str) -> None:
        self._stop_reason = self._stop_reason or reason

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """The first Ctrl-C (or SIGTERM) stops sending, the second drops what is in flight."""

        def note(number: int, frame: FrameType | None) -> None:
            self._n_signals += 1
            self._is_interrupted |= number == signal.SIGINT
            self._stop(f"stopped by {signal.Signals(number).name}")

        before = {}
        for number in (signal.SIGINT, signal.SIGTERM):
            with suppress(ValueError):  # not in the main thread: there Ctrl-C is another's matter
                before[number] = signal.signal(number, note)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _count(self) -> None:
        counts = [report.counts for report in self._told.values()]
        total = Counts(*map(sum, zip(*counts, strict=True))) if counts else Counts()
        for name, value in total._asdict().items():
            setattr(self._meter, name, value)
        self._meter.n_unfinished = len(self._live) + len(self._again)

    def _progress(self) -> Progress:
        self._count()
        now = [self._told[slot.number] for slot in self._slots if slot.number in self._told]
        return replace(
            self._meter.progress(sum(report.limit for report in now)),
            in_flight=sum(report.in_flight for report in now),
            oldest_s=max((report.oldest_s for report in now), default=0.0),
        )

    def _conclude(self) -> BatchSummary:
        self._count()
        summary = self._meter.summary(self._stop_reason)
        if self._is_interrupted:
            raise KeyboardInterrupt
        if self._fatal is not None:
            raise self._fatal
        if self._stop_reason is not None:
            raise BatchStoppedError(self._stop_reason, summary)
        return summary


@contextmanager
def _connected(address: str, n_actors: int) -> Iterator[None]:
    """A connection to Ray, closed again when it was opened here."""
    try:
        import ray
    except ImportError:
        raise MissingExtraError("ray", "cluster") from None
    if ray.is_initialized():
        yield
        return
    # where people's troubles are the text, nothing is told to others unasked
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    if address == "local":
        options |= {"num_cpus": max(n_actors, os.cpu_count() or 1), "include_dashboard": False}
    try:
        _knock(address)
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


def _knock(address: str) -> None:
    """Raises OSError when nothing listens at `host:port`; Ray itself tries for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK_S).close()
