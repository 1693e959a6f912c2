"""How a run is doing: counters kept while it runs, reported as `Progress` and `BatchSummary`."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

from cbtqa.llm.cost import Price
from cbtqa.llm.journal import Entry, Totals
from cbtqa.records import Reason, Usage

RATE_WINDOW_S = 60.0
"""How far back a rate looks, at least."""


@dataclass(frozen=True)
class Progress:
    """A moment of a run; items, requests and tokens of this run alone."""

    n_total: int | None = None
    """Items in all, or None when nobody knows."""
    n_skipped: int = 0
    """Items that the journal held already."""
    n_accepted: int = 0
    n_rejected: int = 0
    rejected: dict[Reason, int] = field(default_factory=dict)
    n_requests: int = 0
    n_repeats: int = 0
    """Requests sent again because the endpoint failed."""
    n_paid: int = 0
    """Replies received."""
    in_flight: int = 0
    limit: int = 0
    """How many may be in flight just now."""
    usage: Usage = field(default_factory=Usage)
    cost: float | None = None
    """In the price's currency; None without a price."""
    currency: str | None = None
    elapsed_s: float = 0.0
    rate_per_s: float = 0.0
    """Items ended per second, see `RecentRate`."""
    eta_s: float | None = None
    """Time left at that rate, never less than the replies still to come take; None without one."""
    oldest_s: float = 0.0
    """Age of the oldest request in flight: large at the end, it is a straggler."""
    note: str = ""
    """What the run waits for, or which server it goes on without; mostly empty."""
    notices: tuple[str, ...] = ()
    """What is to be said once, in the order in which it came up."""
    unit: str = ""
    """What is counted, in the plural, where it is no item of a file: `steps`."""

    @property
    def n_done(self) -> int:
        """Items that need nothing more, earlier runs included."""
        return self.n_skipped + self.n_accepted + self.n_rejected


def counted(n_done: int, n_total: int, elapsed_s: float) -> Progress:
    """A moment of work without requests, such as scoring."""
    rate = n_done / elapsed_s if elapsed_s > 0 else 0.0
    left = (n_total - n_done) / rate if rate else None
    return Progress(
        n_total=n_total,
        n_accepted=n_done,
        elapsed_s=elapsed_s,
        rate_per_s=rate,
        eta_s=left,
    )


@dataclass(frozen=True)
class BatchSummary(Progress):
    """How a run ended. Counts items of this run; the journal's outcomes hold all."""

    n_duplicates: int = 0
    n_unfinished: int = 0
    """Begun and left without an outcome because the run stopped."""
    stopped: str | None = None
    """Why the run ended early, or None when every item has an outcome."""


class RecentRate:
    """How fast items end: over the last minute, not from the start.

    Where a round of what is in flight takes longer, such as sessions or the answers of a slow
    server, over that round: a minute of it would hold none of its ends, or all.
    """

    def __init__(self, n_ended: int = 0) -> None:
        self._ends: deque[tuple[float, int]] = deque([(time.monotonic(), n_ended)])

    def per_s(self, n_ended: int, n_in_flight: int) -> float:
        """Items ended per second, with so many ended by now; 0 before the first."""
        now, ends = time.monotonic(), self._ends
        if n_ended != ends[-1][1]:
            ends.append((now, n_ended))  # a window begins where items ended, not in a pause
        least = max(1, n_in_flight)
        while len(ends) > 1 and _is_past(ends[1], now, n_ended - least):
            ends.popleft()
        then, before = ends[0]
        return (n_ended - before) / (now - then) if now > then else 0.0


def _is_past(end: tuple[float, int], now: float, most: int) -> bool:
    return now - end[0] >= RATE_WINDOW_S and end[1] <= most


class StepCounter:
    """The progress of a work in this process whose steps are known beforehand, such as training.

    counter = StepCounter(on_progress, n_steps, "steps", n_before=resumed)
    counter.step(note="loss 1.2345")
    """

    def __init__(
        self,
        on_progress: Callable[[Progress], None] | None,
        n_total: int,
        unit: str,
        *,
        n_before: int = 0,
    ) -> None:
        self._on_progress, self._n_total, self._unit = on_progress, n_total, unit
        self._n_before, self._n_done, self._rate = n_before, 0, RecentRate()
        self._started = time.monotonic()

    def step(self, note: str = "") -> None:
        """One more step is done."""
        self._n_done += 1
        rate = self._rate.per_s(self._n_done, 0)
        left = self._n_total - self._n_before - self._n_done
        if self._on_progress is not None:
            self._on_progress(
                Progress(
                    n_total=self._n_total,
                    n_skipped=self._n_before,
                    n_accepted=self._n_done,
                    elapsed_s=time.monotonic() - self._started,
                    rate_per_s=rate,
                    eta_s=max(0, left) / rate if rate else None,
                    note=note,
                    unit=self._unit,
                )
            )


REPLIES_IN_MEAN = 50


@dataclass
class Meter:
    """The counters of a run."""

    n_total: int | None
    price: Price | None
    earlier: Totals
    """What the journal held when the run began."""
    n_skipped: int = 0
    n_duplicates: int = 0
    n_accepted: int = 0
    n_unfinished: int = 0
    rejected: Counter[Reason] = field(default_factory=Counter)
    n_requests: int = 0
    n_repeats: int = 0
    n_paid: int = 0
    usage: Usage = field(default_factory=Usage)
    estimated_prompt: int = 0
    note: str = ""
    notices: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self._started = time.monotonic()
        self._in_flight: dict[float, None] = {}
        self._rate = RecentRate()
        self._n_returned, self._reply_s = 0, 0.0

    def sent(self, *, is_repeat: bool) -> float:
        """Notes a request; gives its monotonic time, unique among those in flight."""
        self.n_requests += 1
        self.n_repeats += is_repeat
        now = time.monotonic()
        while now in self._in_flight:
            now += 1e-7
        self._in_flight[now] = None
        return now

    def returned(self, sent_at: float) -> None:
        """Notes that a request is no longer in flight."""
        del self._in_flight[sent_at]
        self._n_returned += 1
        took_s = time.monotonic() - sent_at
        self._reply_s += (took_s - self._reply_s) / min(self._n_returned, REPLIES_IN_MEAN)

    def paid(self, usage: Usage, estimate: int) -> None:
        """Notes the tokens of a reply, and how many its prompt was thought to have."""
        self.estimated_prompt += estimate
        self.n_paid += 1
        self.usage += usage

    def ended(self, entry: Entry) -> None:
        """Notes the end of an item."""
        if entry.fault is None:
            self.n_accepted += 1
        else:
            self.rejected[entry.fault.reason] += 1

    @property
    def n_in_flight(self) -> int:
        """Requests sent and not yet answered."""
        return len(self._in_flight)

    @property
    def mean_completion_tokens(self) -> float | None:
        """Mean length of the replies in the journal, or None before the first."""
        n_paid = self.n_paid + self.earlier.n_replies
        n_tokens = self.usage.completion_tokens + self.earlier.usage.completion_tokens
        return n_tokens / n_paid if n_paid else None

    @property
    def prompt_factor(self) -> float:
        """How many times longer prompts are than estimated; at least 1."""
        return max(1.0, self.usage.prompt_tokens / (self.estimated_prompt or float("inf")))

    def progress(self, limit: int) -> Progress:
        """The counters as they are."""
        now, n_in_flight = time.monotonic(), len(self._in_flight)
        n_ended = self.n_accepted + self.rejected.total()
        rate = self._rate.per_s(n_ended, n_in_flight)
        left = None if self.n_total is None else self.n_total - self.n_skipped - n_ended
        eta_s = None
        if left is not None and rate > 0:
            # what is not sent yet takes a whole reply, else the last sent is the last to come
            since = now - next(reversed(self._in_flight)) if 0 < left <= n_in_flight else 0.0
            eta_s = max(left / rate, self._reply_s - since) if left > 0 else 0.0
        shared = {one.name for one in fields(Progress)} & {one.name for one in fields(self)}
        known = {name: getattr(self, name) for name in shared} | {"rejected": dict(self.rejected)}
        return Progress(
            **known,
            n_rejected=self.rejected.total(),
            in_flight=n_in_flight,
            limit=limit,
            cost=self.price.of(self.usage) if self.price else None,
            currency=self.price.currency if self.price else None,
            elapsed_s=now - self._started,
            rate_per_s=rate,
            eta_s=eta_s,
            oldest_s=now - next(iter(self._in_flight), now),
        )

    def summary(self, stopped: str | None) -> BatchSummary:
        """The counters at the end."""
        own: dict[str, Any] = {"n_duplicates": self.n_duplicates, "n_unfinished": self.n_unfinished}
        return BatchSummary(**vars(self.progress(0)), **own, stopped=stopped)
