"""Paths that are read and written: what the system says about them, in sentences.

A file written through `replacing` is either the old one or the whole new one, never a part, and
readable by its owner only. What is in the files is the business of `files`.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path

from cbtqa.errors import CbtqaError, DataError, IncompleteRunError, UsageError


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turns what the system says about a file while it is read into sentences.

    Raises:
        DataError: missing, not allowed, a folder, a loop of links, or nothing that ends: a named
            pipe or a device, which could be waited for without end.
    """
    try:
        mode = _stat(path).st_mode
        if stat.S_ISREG(mode):
            yield
            return
    except OSError as error:
        raise DataError(_said(error), where=str(path)) from None
    kind = next((name for is_kind, name in _KINDS if is_kind(mode)), "no ordinary file")
    hint = None if stat.S_ISDIR(mode) else "write what comes out of it to a file first"
    raise DataError(f"is {kind}, not a file", where=str(path), hint=hint)


def _stat(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except ValueError as error:  # a zero byte, or half a character
        raise DataError(f"cannot be the name of a file: {error}", where=repr(str(path))) from None


_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
_SAID = {
    errno.ENOENT: "no such file",
    errno.ENOTDIR: "no such file: a part of the path is no folder",
    errno.EISDIR: "is a folder, not a file",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.ELOOP: "a symbolic link that leads back to itself",
    errno.ENAMETOOLONG: "the name is too long",
    errno.ENOSPC: "no space left on the disk",
    errno.EDQUOT: "the quota of the disk is used up",
    errno.EFBIG: "the file may not become as large as that",
    errno.EROFS: "the disk is read-only",
}


def _said(error: OSError) -> str:
    return _SAID.get(error.errno or 0) or str(error.strerror or error)


def is_folder(path: Path) -> bool:
    """Whether a folder is there; False too for what cannot be asked, which opening it will say."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def real_path(path: Path) -> Path:
    """The path without links, absolute; `Path.resolve` raises where links lead to themselves."""
    return Path(os.path.realpath(path))


def make_folder(path: Path, mode: int = 0o777) -> Path:
    """Makes a folder with all above it, if it is not there.

    Raises:
        UsageError: it cannot be made there; says why.
    """
    try:
        path.mkdir(mode, parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise unwritable(path, error) from None
    return path


def unwritable(path: Path, error: OSError | ValueError) -> CbtqaError:
    """The error of a path that cannot be written: the words of the command, or a full disk."""
    if not isinstance(error, OSError):
        return UsageError(f"{str(path)!r} cannot be the name of a file: {error}")
    if error.errno in _FULL:
        hint = "make room, then run the same command again"
        return IncompleteRunError(f"{path} cannot be written: {_said(error)}", hint=hint)
    is_folder = error.errno in (errno.EEXIST, errno.ENOTDIR)
    why = "a file is where a folder should be" if is_folder else _said(error)
    return UsageError(f"{path} cannot be written: {why}", hint="name another place")


def system_error(error: OSError) -> CbtqaError:
    """What the system refused, where no reader or writer has said it better."""
    path = Path(str(error.filename or "a file"))
    if error.errno in _FULL:
        return unwritable(path, error)
    return DataError(_said(error), where=str(path))


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def replacing(path: Path, *, is_shared: bool = False) -> Iterator[Path]:
    """A temporary path beside `path`; on leaving without error it takes `path`'s place, durably.

    What is written is for its owner only: texts of help seekers, and what is made of them.

    Args:
        is_shared: for everybody to read, such as the weights that another user's server loads.

    Raises:
        UsageError: nothing can be written there.
        IncompleteRunError: the disk is full; nothing is left behind.
    """
    make_folder(path.parent)
    if "\0" in path.name:
        raise unwritable(path, ValueError("embedded null byte"))
    try:
        handle, name = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.name[:60]}.", suffix=".part"
        )
    except OSError as error:
        raise unwritable(path, error) from None
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        if is_shared:
            with suppress(OSError):  # a network share may have rights of its own
                temporary.chmod(0o644)
        else:
            keep_private(temporary)
        temporary.replace(path)
    except OSError as error:
        # the body may have met other files, of which it says more itself
        if error.errno in _FULL or error.filename in (name, str(path)):
            raise unwritable(path, error) from None
        raise
    finally:
        temporary.unlink(missing_ok=True)


def keep_private(path: Path) -> None:
    """Makes a file or folder readable by its owner only, and says so where a drive cannot."""
    try:
        path.chmod(0o700 if path.is_dir() else 0o600)
    except OSError as error:
        if path.stat().st_mode & 0o077:
            logging.getLogger("cbtqa").warning(
                "others may be able to read %s: its drive lets no rights be set (%s)",
                *(path, error.strerror),
            )


def refuse_existing(path: Path, *, overwrite: bool) -> None:
    """Refuses a file that is there already, unless its owner said `--overwrite`.

    Raises:
        UsageError: the file is there.
    """
    if not overwrite and os.path.lexists(path):
        raise UsageError(f"{path} exists already", hint="name another --out, or add --overwrite")


def remove_leftovers(folder: Path, name: str = "") -> None:
    """Removes what a killed `replacing` left, of files whose names begin so.

    The caller must hold a lock on them.
    """
    for path in folder.glob(f".{escape(name)}*.part"):
        path.unlink(missing_ok=True)
