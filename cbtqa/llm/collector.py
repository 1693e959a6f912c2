"""Python's garbage collector during long runs."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def rare_collections() -> Iterator[None]:
    """Makes the garbage collector rare, and has it pass over everything that exists already.

    A full collection walks all that is alive and finds nothing: at 4,096 requests in flight that
    was a third of the CPU (0.56 against 0.40 s per 1,000 replies).
    """
    before = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()
