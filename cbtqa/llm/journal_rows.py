"""The rows of a journal: the states of a row, its columns, and the outcome rows add up to."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, NamedTuple

from cbtqa.errors import IncompleteRunError
from cbtqa.llm.chat import Fault, Reply
from cbtqa.records import Reason, Usage
from cbtqa.secrets import masked_value


class State(IntEnum):
    """What a row says about its item."""

    ACCEPTED = 0
    """The reply is the item's outcome."""
    FAULTY = 1
    """The reply was paid and rejected; the item may be asked again while attempts are left."""
    FINAL = 2
    """Rejected for good: the same request would be refused again."""
    ENDPOINT = 3
    """No reply; the endpoint failed. Sent again when the run is continued."""
    UNCHECKED = 4
    """The reply arrived but its check did not end. Checked again, not paid again."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One row: the n-th attempt (counted from 1) on one item."""

    key: str
    attempt: int
    state: State
    reply: Reply | None = None
    fault: Fault | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """The last word on one item."""

    key: str
    state: State
    reply: Reply | None
    fault: Fault | None
    n_attempts: int
    """Replies received."""
    usage: Usage
    """Of all attempts together."""

    @property
    def is_accepted(self) -> bool:
        """True when the reply is the item's outcome."""
        return self.state is State.ACCEPTED


class Standing(NamedTuple):
    """How far an item is: number and state of its last row."""

    attempt: int
    state: State

    def is_done(self, max_attempts: int) -> bool:
        """True when nothing is left to send for the item."""
        if self.state is State.FAULTY:
            return self.attempt >= max_attempts
        return self.state in (State.ACCEPTED, State.FINAL)


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over all rows of a journal, of this run and earlier ones."""

    n_replies: int
    usage: Usage
    faults: dict[Reason, int]
    """Rejected attempts, by reason; an item may count several times."""


SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE attempts (
    id INTEGER PRIMARY KEY, key TEXT NOT NULL, attempt INTEGER NOT NULL, state INTEGER NOT NULL,
    reason TEXT, detail TEXT, finish_reason TEXT, refusal TEXT, model TEXT, created_at TEXT,
    latency_s REAL, prompt_tokens INTEGER, completion_tokens INTEGER, reasoning TEXT, text TEXT,
    host TEXT
);
CREATE INDEX attempts_by_key ON attempts (key, attempt, state);
CREATE TABLE totals (
    state INTEGER NOT NULL, reason TEXT NOT NULL, n INTEGER NOT NULL,
    prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL,
    PRIMARY KEY (state, reason)
) WITHOUT ROWID;
"""
COLUMNS = (
    "key, attempt, state, reason, detail, finish_reason, refusal, model, created_at, latency_s, "
    "prompt_tokens, completion_tokens, reasoning, text, host"
)
INSERT = f"INSERT INTO attempts ({COLUMNS}) VALUES ({', '.join('?' * 15)})"
ADD_TOTAL = (
    "INSERT INTO totals VALUES (?, ?, ?, ?, ?) ON CONFLICT (state, reason) DO UPDATE SET "
    "n = n + excluded.n, prompt_tokens = prompt_tokens + excluded.prompt_tokens, "
    "completion_tokens = completion_tokens + excluded.completion_tokens"
)
ASKED_AGAIN = f"""
SELECT reason, count(*), sum(is_accepted) FROM (
    SELECT before.reason AS reason, max(later.state = {int(State.ACCEPTED)})
    AND max(later.state = {int(State.FAULTY)}) = 0 AS is_accepted
    FROM attempts AS later INDEXED BY attempts_by_key JOIN attempts AS before
    ON before.key = later.key AND before.attempt = later.attempt - 1
    AND before.state = {int(State.FAULTY)}
    WHERE later.attempt > 1 AND (substr(later.key, 1, length(?1)) = ?1) = ?2
    AND later.state IN ({int(State.ACCEPTED)}, {int(State.FAULTY)}, {int(State.FINAL)})
    GROUP BY later.key, later.attempt
) GROUP BY reason ORDER BY count(*) DESC, reason
"""
"""The index alone finds later attempts: the rows hold the texts and may be gigabytes. An attempt
that was accepted and then found faulty, by a guard, has both rows and was not accepted."""
FIRST_TRIES = f"""
SELECT count(*), sum(is_accepted) FROM (
    SELECT min(state) = {int(State.ACCEPTED)} AND max(state = {int(State.FAULTY)}) = 0
    AS is_accepted FROM attempts INDEXED BY attempts_by_key
    WHERE attempt = 1 AND (substr(key, 1, length(?1)) = ?1) = ?2
    AND state IN ({int(State.ACCEPTED)}, {int(State.FAULTY)}, {int(State.FINAL)})
    GROUP BY key
)
"""


def row_of(entry: Entry) -> tuple[Any, ...]:
    """The columns; no key of an endpoint is in them, wherever the text came from."""
    reply, fault = entry.reply, entry.fault
    head = (entry.key, entry.attempt, int(entry.state))
    why = (fault.reason.value, fault.detail) if fault else (None, None)
    if reply is None:
        return (*head, *masked_value(why), *[None] * 10)
    usage = reply.usage
    # not the item's own key: it is the caller's, and looked up by
    columns: tuple[Any, ...] = masked_value(
        (
            *(*why, reply.finish_reason, reply.refusal, reply.model, reply.created_at),
            *(reply.latency_s, usage.prompt_tokens, usage.completion_tokens),
            *(reply.reasoning, reply.text, reply.host or None),
        )
    )
    return head + columns


def outcome_of(rows: list[Any]) -> Outcome | None:
    """The outcome of an item's rows, oldest first; None while the last is unchecked."""
    last = entry_of(rows[-1])
    if last.state is State.UNCHECKED:
        return None
    usage = Usage(
        prompt_tokens=sum(row[10] or 0 for row in rows),
        completion_tokens=sum(row[11] or 0 for row in rows),
    )
    n_attempts = last.attempt if last.reply else last.attempt - 1
    fault = _with_attempts(last.fault, rows) if last.fault and last.reply else last.fault
    return Outcome(last.key, last.state, last.reply, fault, n_attempts, usage)


def _with_attempts(fault: Fault, rows: list[Any]) -> Fault:
    """The last fault with what happened to the attempts before, where there were any."""
    by_attempt = {row[1]: row[3] for row in rows if row[3] and row[13] is not None}
    reasons = list(by_attempt.values())
    if len(reasons) < 2:
        return fault
    told = f"all {len(reasons)} attempts"
    if len(set(reasons)) > 1:
        told = f"attempts: {', '.join(reasons)}"
    return Fault(fault.reason, f"{fault.detail} ({told})".strip())


def entry_of(row: Any) -> Entry:
    """The inverse of `row_of`."""
    fault = Fault(Reason(row[3]), row[4]) if row[3] else None
    if row[13] is None:
        return Entry(row[0], row[1], State(row[2]), None, fault)
    reply = Reply(
        text=row[13],
        finish_reason=row[5],
        refusal=row[6],
        reasoning=row[12],
        usage=Usage(prompt_tokens=row[10], completion_tokens=row[11]),
        model=row[7],
        created_at=row[8],
        latency_s=row[9],
        host=row[14] or "",
    )
    return Entry(row[0], row[1], State(row[2]), reply, fault)


class InFlight:
    """How many requests are paid for and not in the journal yet, in a file that outlives a kill.

    The number is written before a request is sent, unbuffered: what a killed process had written
    is in the system's hands. It is not durable over a power cut, for which each request would
    have to wait for the disk.
    """

    def __init__(self, journal: Path) -> None:
        """Reads what an earlier run left; `n_before` of its requests may be paid twice."""
        self._path = journal.with_name(f".{journal.name}.in-flight")
        self._unwritten: set[int] = set()
        self._noting = threading.Lock()
        self.n = 0
        """In flight now."""
        try:
            self.n_before = int(self._path.read_text(encoding="ascii") or 0)
        except (OSError, ValueError):
            self.n_before = 0
        self._file = self._path.open("wb", buffering=0)
        self._note(0)

    def _note(self, more: int) -> None:
        with self._noting:
            self.n += more
            self._file.seek(0)
            self._file.write(b"%09d" % self.n)

    def sent(self) -> None:
        """Notes a request that is about to be sent."""
        self._note(1)

    def failed(self) -> None:
        """Notes that a request has ended without a reply."""
        self._note(-1)

    def received(self, reply: Reply) -> None:
        """Notes the reply to a request; it counts as in flight until its row is durable."""
        self._unwritten.add(id(reply))

    def written(self, entries: Iterable[Entry]) -> None:
        """Notes durable rows, from whatever thread."""
        durable = self._unwritten.intersection(id(entry.reply) for entry in entries)
        self._unwritten -= durable
        self._note(-len(durable))

    def close(self) -> None:
        """Removes the file when nothing is in flight; what was dropped stays noted."""
        self._file.close()
        if self.n <= 0:
            self._path.unlink(missing_ok=True)


COMMIT_EVERY_S = 0.05
COMMIT_ROWS = 512
"""A commit does not wait for its 50 ms once so many rows have gathered."""


class GroupWriter:
    """Gathers rows from an event loop, which never waits for the disk, and commits on a thread."""

    def __init__(self, commit: Callable[[Sequence[Entry]], None]) -> None:
        self._commit = commit
        self._pending: list[tuple[Entry, asyncio.Future[None]]] = []
        self._swap = threading.Lock()
        self._wake, self._full = threading.Event(), threading.Event()
        self._is_stopping = False
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
        self._thread.start()

    def put(self, entry: Entry) -> asyncio.Future[None]:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        with self._swap:
            self._pending.append((entry, future))
        if not self._wake.is_set():
            self._wake.set()
        if len(self._pending) >= COMMIT_ROWS:
            self._full.set()
        return future

    def stop(self) -> None:
        self._is_stopping = True
        self._full.set()
        self._wake.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            self._wake.wait()
            self._full.wait(COMMIT_EVERY_S)
            # cleared before the swap: a row put after the swap sets them again
            self._wake.clear()
            self._full.clear()
            with self._swap:
                taken, self._pending = self._pending, []
            if taken:
                self._write(taken)
            if self._is_stopping and not self._pending:
                return

    def _write(self, taken: list[tuple[Entry, asyncio.Future[None]]]) -> None:
        failure: IncompleteRunError | None = IncompleteRunError("the journal's thread broke")
        try:
            self._commit([entry for entry, _ in taken])
            failure = None
        except IncompleteRunError as error:
            failure = error
        finally:
            by_loop: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
            for _, future in taken:
                by_loop.setdefault(future.get_loop(), []).append(future)
            for loop, futures in by_loop.items():
                with suppress(RuntimeError):  # the loop was closed: nobody waits any more
                    loop.call_soon_threadsafe(_settle, futures, failure)


def _settle(futures: list[asyncio.Future[None]], failure: IncompleteRunError | None) -> None:
    for future in futures:
        if future.done():
            continue
        if failure is None:
            future.set_result(None)
        else:
            future.set_exception(failure)
