"""Who may write a journal: one process at a time, and never over a network drive."""

from __future__ import annotations

import re
import sqlite3
import sys
from pathlib import Path

from cbtqa.errors import ConfigError

NETWORK_FILE_SYSTEMS = re.compile(
    r"nfs\d*|cifs|smb\w*|afs|ncpfs|ceph|lustre|beegfs|gpfs|glusterfs|orangefs|ocfs2|gfs2|davfs\d*"
    r"|fuse\.(sshfs|s3fs|rclone|gcsfuse|goofys|blobfuse2?|glusterfs|ceph|juicefs|mfs|vmhgfs-fuse)"
)
"""File systems without the shared memory or the locks that SQLite's WAL needs."""


class WriterLock:
    """Holds `<journal>.lock` until `release` or the end of the process, however it ends.

    The lock is SQLite's own exclusive lock on an empty database: the operating system drops it
    with the process, so a lock left by a dead process is no obstacle, and it works alike on
    Linux, macOS and Windows.
    """

    def __init__(self, journal: Path) -> None:
        """Raises ConfigError when another process, or another `Journal`, holds the lock."""
        path = journal.with_name(journal.name + ".lock")
        self._db = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
        try:
            self._db.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError as error:
            self._db.close()
            if "locked" not in str(error):
                raise ConfigError(f"{path} cannot be locked: {error}") from None
            raise ConfigError(
                f"{journal} is being written by {_writer_of(journal)}",
                hint="wait for it to end, or give another output",
            ) from None

    def release(self) -> None:
        """Lets the next writer in."""
        self._db.close()


def _writer_of(journal: Path) -> str:
    """`process N`, as the writer left it in the journal; WAL lets us read beside it."""
    try:
        db = sqlite3.connect(f"{journal.absolute().as_uri()}?mode=ro", uri=True)
        try:
            (pid,) = db.execute("SELECT value FROM meta WHERE name = 'writer_pid'").fetchone()
        finally:
            db.close()
    except (sqlite3.Error, TypeError):
        return "another process"
    return f"process {pid}"


def refuse_network_drive(folder: Path, mounts: str | None = None) -> None:
    """Raises ConfigError when the folder lies on a network file system.

    Known from /proc/mounts (Linux) and from `\\\\server` paths (Windows). Elsewhere nothing is
    refused here; a drive without shared memory then fails when the journal is opened.

    Args:
        mounts: text in the form of /proc/mounts, to be read instead of it.
    """
    resolved = folder.resolve()
    if sys.platform == "win32":
        kind = "a network share" if str(resolved).startswith("\\\\") else ""
    else:
        kind = _file_system_of(resolved, mounts)
        kind = kind if NETWORK_FILE_SYSTEMS.fullmatch(kind) else ""
    if kind:
        raise ConfigError(
            f"{folder} lies on a network drive ({kind}); a journal there could be damaged",
            hint="choose an output folder on a local disk and copy the result afterwards",
        )


def _file_system_of(resolved: Path, mounts: str | None) -> str:
    if mounts is None:
        table = Path("/proc/mounts")
        mounts = table.read_text(encoding="utf-8", errors="replace") if table.exists() else ""
    best, kind = -1, ""
    for line in mounts.splitlines():
        words = line.split()
        if len(words) < 3:
            continue
        point = Path(re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), words[1]))
        # of two mounts on one point the later hides the earlier
        if resolved.is_relative_to(point) and len(point.parts) >= best:
            best, kind = len(point.parts), words[2]
    return kind
