"""Work on blocks by one process per processor; the results are in order and always the same."""

from __future__ import annotations

import gc
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack
from multiprocessing import get_context, parent_process
from typing import Any, TypeVar

BLOCKS_ALONE = 4
"""So many blocks are worked on here before other processes are worth their start."""

PieceT = TypeVar("PieceT")
DoneT = TypeVar("DoneT")


def map_blocks(
    make_worker: Callable[..., Callable[[list[PieceT]], DoneT]],
    arguments: tuple[Any, ...],
    blocks: Iterable[list[PieceT]],
) -> Iterator[DoneT]:
    """The worker's result for each block, in order.

    Args:
        make_worker: an importable function; called with `arguments` once in every process.
        blocks: read a few ahead of the results.
    """
    n_workers = os.cpu_count() or 1
    pending: deque[Future[DoneT]] = deque()
    worker = None
    with ExitStack() as stack:
        pool: ProcessPoolExecutor | None = None
        for number, block in enumerate(blocks):
            if number < BLOCKS_ALONE or n_workers == 1:
                worker = worker or make_worker(*arguments)
                yield worker(block)
                continue
            if pool is None:
                pool = ProcessPoolExecutor(
                    n_workers,
                    mp_context=get_context("spawn"),
                    initializer=_start,
                    initargs=(make_worker, arguments),
                )
                stack.callback(pool.shutdown, cancel_futures=True)
            pending.append(pool.submit(_work, block))
            while len(pending) > 2 * n_workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


_worker: Callable[[list[Any]], Any] | None = None


def _start(make_worker: Callable[..., Callable[[list[Any]], Any]], arguments: Any) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _worker = make_worker(*arguments)
    gc.freeze()  # its rules stay: collections need not walk them again and again


def _end_with_parent() -> None:
    """A worker would wait for ever for blocks from a parent that was killed."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(block: list[Any]) -> Any:
    assert _worker is not None, "a worker process begins with _start"
    return _worker(block)
