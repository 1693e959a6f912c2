"""One decorator: a function compiled by numba (extra `fast`), cached on disk beside the package.

Compiling everything takes some ten seconds once per machine; `engines.engine_for` sees to it
that a small job never pays for that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])


def compiled(function: FunctionT) -> FunctionT:
    """The function as machine code that releases the interpreter lock."""
    made: Any = numba.njit(cache=True, nogil=True)(function)
    return cast(FunctionT, made)
