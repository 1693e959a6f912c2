"""Commits rows in groups, on a thread, for an event loop that must not wait for the disk."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress

from cbtqa.errors import IncompleteRunError
from cbtqa.llm.journal_rows import Entry

COMMIT_EVERY_S = 0.05
COMMIT_ROWS = 512
"""A commit does not wait for its 50 ms once so many rows have gathered."""


class GroupWriter:
    """Gathers rows from an event loop and commits them on a thread."""

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
