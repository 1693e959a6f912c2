"""The libraries of the `train` extra, imported when first needed."""

from __future__ import annotations

import importlib
from typing import Any

from cbtqa.errors import MissingExtraError

EXTRA = "train"


def require(module: str, extra: str = EXTRA) -> Any:
    """A module of an optional library; Any because torch's and transformers' types are partial.

    Raises:
        MissingExtraError: it is not installed; names the extra.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or module, extra) from None
