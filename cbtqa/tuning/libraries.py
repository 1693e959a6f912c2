"""Libraries of the `train` extra, imported when first needed; files that come with the package."""

from __future__ import annotations

import errno
from functools import cache, partial
from importlib.resources import files
from typing import Any

from cbtqa import errors
from cbtqa.plain_values import parse_yaml

require = partial(errors.require, extra="train")


def require_training(*more: str) -> None:
    """Imports what training needs, silences transformers; raises MissingExtraError without it."""
    for module in ("torch", "transformers", "peft", *more):
        require(module)
    logging = require("transformers").logging
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def shipped_yaml(name: str) -> str:
    """The text of a file that comes with this package."""
    return (files("cbtqa.tuning") / name).read_text(encoding="utf-8")


@cache
def read_table(name: str) -> Any:
    """The values of a YAML file that comes with this package."""
    return parse_yaml(shipped_yaml(name))


def shipped(folder: str, ending: str) -> list[str]:
    """Names, without their ending, of the files in a folder of this package."""
    names = (entry.name for entry in (files("cbtqa.tuning") / folder).iterdir())
    return sorted(name.removesuffix(ending) for name in names if name.endswith(ending))


def first_line(error: Exception) -> str:
    """The first line of an error's message."""
    return str(error).strip().partition("\n")[0]


FAULTS = (
    *(ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, NameError),
    *(OSError, RuntimeError, TypeError, ValueError),
)
"""What the code of a model may raise on inputs that it was not written for. A probe that ends so
has found out that the model is not fit for the probed way; it never ends the run."""


_DISK = ("no space left", "storagefull", "disk quota exceeded", "file too large")
_MEMORY = ("out of memory", "not enough memory", "can't allocate memory")
_WRITER = ("pytorchstreamwriter failed", "unexpected pos")
"""torch.save on a full disk: its writer hides the cause."""


def is_disk_full(error: BaseException) -> bool:
    """True when a write failed for want of room, however the library words it."""
    codes = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    words = str(error).casefold()
    is_known = isinstance(error, OSError) and error.errno in codes
    return is_known or any(part in words for part in (*_DISK, *_WRITER))


def is_out_of_memory(error: BaseException) -> bool:
    """True when the device, or the machine, had no memory left."""
    words = str(error).casefold()
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(part in words for part in _MEMORY)
    )
