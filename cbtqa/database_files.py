"""SQLite files on any drive: who may use one, and how it is opened.

    file = DatabaseFile(folder / "journal.sqlite")
    db = file.connect()
    file.check()                  # before each commit: is the file still ours?
    file.release()

On a local disk: WAL, several connections and processes. WAL needs memory that all processes share
and locks that hold, so on every other drive (NFS, Lustre, GPFS, BeeGFS, SMB, FUSE, or what we do
not know) one process at a time has the file: by a lock file with a heartbeat, one connection, and
a rollback journal. No lock of the file system is asked for there: Lustre without `-o flock` refuses
them, and NFS may keep a dead machine's for ever.

Source: sqlite.org/wal.html ("does not work over a network filesystem"; section 8), and
sqlite.org/howtocorrupt.html, section 2.1; O_EXCL is atomic from NFS version 3 on (RFC 1813, 3.3.8).
"""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlencode

from cbtqa.errors import CbtqaError, ConfigError, DataError, IncompleteRunError

LOCAL_FILE_SYSTEMS = frozenset(
    (
        *("ext2", "ext3", "ext4", "xfs", "btrfs", "bcachefs", "zfs", "f2fs", "jfs", "reiserfs"),
        *("nilfs2", "tmpfs", "ramfs", "overlay", "ntfs", "ntfs3", "fuseblk", "vfat", "exfat"),
        *("apfs", "hfs", "ufs", "fixed", "removable", "ramdisk"),
    )
)
"""Where shared memory and locks hold; every other kind takes the way of a network drive."""
BEAT_S = 5.0
DEAD_AFTER_S = 60.0
"""Seconds without a beat until a process of another machine counts as ended. NFS may show what it
has cached for as long (acregmax), though opening the file anew asks the server."""
_LOCK_BYTES = 512
"""Each beat writes the lock file over in place, in the same length: it is never half there."""
_log = logging.getLogger("cbtqa")


# --- which drive ---------------------------------------------------------------------------------


def file_system_of(folder: Path, mounts: str | None = None) -> str:
    """The kind of file system below a folder, such as `ext4` or `nfs4`; empty when unknown.

    Args:
        mounts: lines `device point kind ...`, as in /proc/mounts, to be read instead of it.
    """
    resolved = Path(os.path.realpath(folder))  # `resolve` raises at a loop of links
    if sys.platform == "win32":
        return _windows_drive(resolved)
    best, kind = -1, ""
    for line in (_mounts() if mounts is None else mounts).splitlines():
        words = line.split()
        if len(words) < 3:
            continue
        point = Path(re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), words[1]))
        # of two mounts on one point the later hides the earlier
        if resolved.is_relative_to(point) and len(point.parts) >= best:
            best, kind = len(point.parts), words[2]
    return kind


def _mounts() -> str:
    table = Path("/proc/self/mounts")
    if table.exists():
        return table.read_text(encoding="utf-8", errors="replace")
    try:  # macOS: "/dev/disk3s1 on /Volumes/My Disk (apfs, local, journaled)"
        told = subprocess.run(["/sbin/mount"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
    lines = re.findall(r"^(\S+) on (.+) \((\w+)", told, re.MULTILINE)
    return "\n".join(
        f"{d} {point.replace(' ', chr(92) + '040')} {kind}" for d, point, kind in lines
    )


def _windows_drive(resolved: Path) -> str:
    import ctypes

    kinds = {2: "removable", 3: "fixed", 4: "network share", 6: "ramdisk"}
    windows = getattr(ctypes, "windll", None)
    return kinds.get(windows.kernel32.GetDriveTypeW(resolved.anchor), "") if windows else ""


# --- a file in use -------------------------------------------------------------------------------


class DatabaseFile:
    """A SQLite file that this process may use until `release`."""

    def __init__(
        self,
        path: Path,
        *,
        writer_of: Callable[[Path], str] | None = None,
        read_only: bool = False,
    ) -> None:
        """Takes the file for use.

        Args:
            writer_of: names who writes the file; when given, only one process may, and one
                `DatabaseFile` in it, on a local disk too.
            read_only: the file is there and is read; on a local disk also beside its writer.

        Raises:
            ConfigError: another process has it, or it cannot be locked.
        """
        self.path, self._read_only = path, read_only
        self._lock: LockFile | None = None
        self._kernel_lock: sqlite3.Connection | None = None
        self.drive = file_system_of(path.parent)
        self.is_alone = self.drive not in LOCAL_FILE_SYSTEMS
        """True when nothing but this one connection may use the file."""
        may_write = os.access(path.parent, os.W_OK)
        if read_only and not (self.is_alone and may_write):
            return
        if self.is_alone:
            self._take_alone()
        else:
            # the folder may be mounted elsewhere, from this machine
            LockFile(path, self.drive).refuse_if_held()
            if writer_of is not None:
                self._kernel_lock = self._lock_locally(writer_of)
        self._make_private()

    def _make_private(self) -> None:
        """A new file is readable by its owner only; SQLite's side files get the same rights."""
        try:
            os.close(os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600))
        except OSError as error:
            self.release()
            raise ConfigError(f"{self.path} cannot be opened: {error.strerror}") from None

    def _take_alone(self) -> None:
        shared = self._beside("-shm")
        if shared.exists():
            raise ConfigError(
                f"{self.path} is in use where this drive is a local disk, or a program was killed "
                "there",
                hint=f"end it there; when nothing uses it any more, remove {shared.name} "
                "(that file only)",
            )
        self._lock = LockFile(self.path, self.drive)
        self._lock.take()
        self.is_alone = True

    def _beside(self, ending: str) -> Path:
        return self.path.with_name(self.path.name + ending)

    def _lock_locally(self, writer_of: Callable[[Path], str]) -> sqlite3.Connection:
        """SQLite's exclusive lock on an empty database.

        The operating system drops it with the process, alike on Linux, macOS and Windows.
        """
        lock = self._beside(".lock")
        db = None
        try:
            db = sqlite3.connect(lock, timeout=0, isolation_level=None, check_same_thread=False)
            db.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError as error:
            if db is not None:
                db.close()
            if "locked" not in str(error):
                raise not_opened(lock, "lock", error) from None
            raise ConfigError(
                f"{self.path} is being written by {writer_of(self.path)}",
                hint="wait for it to end, or give another output",
            ) from None
        return db

    def connect(self, page_size: int = 4096) -> sqlite3.Connection:
        """A connection in autocommit; a commit survives a power cut.

        Args:
            page_size: of a new file.

        Raises:
            sqlite3.DatabaseError: not a database.
            ConfigError: another process has it after all.
            DataError: it was not closed, and only who may write there can repair it.
        """
        if self._read_only and self._lock is None:
            return self._connect_to_read()
        if not self.is_alone:
            db = connect(self.path)
            db.execute(f"PRAGMA page_size = {page_size}")
            (mode,) = db.execute("PRAGMA journal_mode = WAL").fetchone()
            if mode == "wal":
                db.execute("PRAGMA synchronous = FULL")
                return db
            db.close()  # a drive that is local by name only
            self._take_alone()
        db = connect(self.path, vfs=_WITHOUT_LOCKS)
        db.execute("PRAGMA locking_mode = EXCLUSIVE")  # before the first access: no shared memory
        db.execute("PRAGMA mmap_size = 0")
        db.execute(f"PRAGMA page_size = {page_size}")
        db.execute("PRAGMA journal_mode = TRUNCATE")
        db.execute("PRAGMA synchronous = EXTRA")
        return db

    def _connect_to_read(self) -> sqlite3.Connection:
        sides = (self._beside("-wal"), self._beside("-journal"))
        is_open = any(side.exists() and side.stat().st_size for side in sides)
        if not self.is_alone and (is_open or os.access(self.path.parent, os.W_OK)):
            return connect(self.path, "ro")
        if is_open:
            raise DataError(
                "is in use, or was not closed by the program that wrote it",
                where=str(self.path),
                hint="ask its owner to give that program's command again",
            )
        return connect(self.path, "ro", vfs=_WITHOUT_LOCKS, immutable=1)

    def check(self) -> None:
        """Raises IncompleteRunError when another process has taken the file over meanwhile."""
        if self._lock is not None:
            self._lock.check()

    def release(self) -> None:
        """Lets the next one in; connections must be closed before."""
        if self._lock is not None:
            self._lock.release()
        if self._kernel_lock is not None:
            self._kernel_lock.close()
        self._lock = self._kernel_lock = None


_WITHOUT_LOCKS = "win32-none" if sys.platform == "win32" else "unix-none"
"""SQLite's layer that asks the file system for no lock; the lock file stands for it."""


def connect(path: Path, mode: str = "rwc", **more: str | int) -> sqlite3.Connection:
    """A plain connection in autocommit, with these parameters of SQLite's URIs."""
    uri = f"{path.absolute().as_uri()}?{urlencode({'mode': mode, **more})}"
    return sqlite3.connect(uri, 30, isolation_level=None, check_same_thread=False, uri=True)


def not_opened(path: Path, what: str, error: sqlite3.DatabaseError) -> CbtqaError:
    """The error of a file that SQLite does not open: not `what` it should be, or a disk's."""
    name = getattr(error, "sqlite_errorname", "")
    if name in ("SQLITE_NOTADB", "SQLITE_CORRUPT", "SQLITE_ERROR"):
        return DataError(f"is no {what}: {error}", where=str(path))
    return IncompleteRunError(
        f"{path} cannot be used: {error}",
        hint="is the disk full, or read-only? then give the same command again",
    )


# --- the lock file -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Holder:
    """Who has a file; what the lock file says."""

    host: str
    pid: int
    machine: str
    """Boot and process namespace: only in the same one does the process number mean the same."""
    started: str
    """When the process began, since numbers are given out again."""
    since: str
    token: str
    beat: int = 0

    @classmethod
    def here(cls) -> Holder:
        pid, now = os.getpid(), datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
        machine, token = _machine(), secrets.token_hex(8)
        return cls(socket.gethostname(), pid, machine, _process_start(pid) or "", now, token)

    @classmethod
    def of(cls, content: bytes) -> Holder | None:
        """What a lock file holds, or None where it says nothing yet."""
        try:
            return cls(**json.loads(content))
        except (ValueError, TypeError):
            return None

    @property
    def content(self) -> bytes:
        return json.dumps(asdict(self)).encode().ljust(_LOCK_BYTES)

    @property
    def is_here(self) -> bool:
        """True when it is, or was, a process of this very machine."""
        return bool(self.machine) and self.machine == _machine()

    @property
    def is_running(self) -> bool:
        return _process_start(self.pid) == self.started

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _process_start(pid: int) -> str | None:
    """When a process began, in the kernel's count; None when there is none, or nobody says."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    after_name = stat.rpartition(")")[2].split()
    return None if after_name[0] in "ZX" else after_name[19]


class LockFile:
    """`.NAME.writer` beside a file: who has it, and a beat while that process lives."""

    def __init__(
        self,
        path: Path,
        drive: str = "",
        *,
        beat_s: float | None = None,
        dead_after_s: float | None = None,
    ) -> None:
        self._of, self._drive = path, drive
        self.path = path.with_name(f".{path.name}.writer")
        self._beat_s = BEAT_S if beat_s is None else beat_s
        self._dead_after_s = DEAD_AFTER_S if dead_after_s is None else dead_after_s
        self._mine: Holder | None = None
        self._ends = threading.Event()
        self._thread: threading.Thread | None = None

    def take(self) -> None:
        """Makes the lock file; raises ConfigError while the process that made it lives."""
        mine, is_contested = Holder.here(), False
        while not self._has_made(mine, is_contested):
            is_contested = True
        self._mine = mine
        self._thread = threading.Thread(target=self._beat, name="lock-beat", daemon=True)
        self._thread.start()

    def _has_made(self, mine: Holder, is_contested: bool) -> bool:
        """True when the lock file is ours now; False when others are at it in this moment."""
        is_contested |= self.refuse_if_held()
        try:
            handle = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        except FileExistsError:
            time.sleep(0.1)
            return False
        except OSError as error:
            raise ConfigError(f"{self.path} cannot be made: {error.strerror}") from None
        try:
            os.write(handle, mine.content)
            os.fsync(handle)
        finally:
            os.close(handle)
        if is_contested:  # who held ours for the dead one's is done with it by then, see `_remove`
            time.sleep(0.5)
        return self._read() == mine.content

    def refuse_if_held(self) -> bool:
        """True when it removed the lock of an ended process; ConfigError for a living one's."""
        content = self._read()
        if content is None:
            return False
        holder = Holder.of(content)
        if holder is not None and holder.is_here:
            is_alive, why = holder.is_running, "has ended without removing its lock"
        else:
            is_alive, why = self._beats(content), "shows no more life"
        if is_alive:
            kind = f"; on this kind of drive ({self._drive}) one at a time" if self._drive else ""
            raise ConfigError(
                f"{self._of} is in use by {holder or 'another process'}{kind}",
                hint="end it or wait for it, then give the same command again",
            )
        _log.warning("%s: %s %s; taken over", self._of, holder or "another process", why)
        self._remove(content)
        return True

    def _beats(self, content: bytes) -> bool:
        """Watches whether the lock file changes; no clock of another machine is trusted."""
        holder = Holder.of(content)
        _log.warning(
            "%s was in use by %s; waiting up to %g s for a sign of life",
            *(self._of, holder or "another process", self._dead_after_s),
        )
        ends = time.monotonic() + self._dead_after_s
        while time.monotonic() < ends:
            time.sleep(min(1.0, self._dead_after_s / 20))
            now = self._read()
            if now != content:
                return now is not None
        return False

    def _remove(self, dead: bytes) -> None:
        """Removes this lock and no other: who takes over at the same moment finds its own again."""
        aside = self.path.with_name(f"{self.path.name}.{secrets.token_hex(4)}")
        with suppress(FileNotFoundError):
            if self.path.read_bytes() != dead:
                return
            self.path.rename(aside)
            if aside.read_bytes() != dead:
                aside.rename(self.path)
            aside.unlink(missing_ok=True)

    def _read(self) -> bytes | None:
        """The lock file as it is now (opening it makes NFS ask the server), or None."""
        try:
            return self.path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ConfigError(f"{self.path} cannot be read: {error.strerror}") from None

    def _beat(self) -> None:
        assert self._mine is not None, "a lock that was not taken does not beat"
        beat = 0
        while not self._ends.wait(self._beat_s):
            beat += 1
            with suppress(OSError):  # a drive that is away for a while; `check` decides
                handle = os.open(self.path, os.O_RDWR)
                try:
                    now = Holder.of(os.read(handle, _LOCK_BYTES))
                    if now is None or now.token != self._mine.token:
                        return
                    os.lseek(handle, 0, os.SEEK_SET)
                    os.write(handle, replace(self._mine, beat=beat).content)
                    os.fsync(handle)
                finally:
                    os.close(handle)

    def check(self) -> None:
        """Raises IncompleteRunError when the lock is ours no more: we stood still for too long."""
        assert self._mine is not None, "a lock that was not taken is not checked"
        try:
            content = self._read()
            if content is None:  # another one has it aside for a moment, see `_remove`
                time.sleep(0.2)
                content = self._read()
        except ConfigError as error:
            raise IncompleteRunError(f"{self._of}: {error}", hint="is the drive there?") from None
        holder = None if content is None else Holder.of(content)
        if holder is None or holder.token != self._mine.token:
            raise IncompleteRunError(
                f"{self._of} was taken over by {holder or 'another process'} while this one stood "
                "still; nothing more is written to it from here",
                hint="wait for that one to end, then give the same command again",
            )

    def release(self) -> None:
        """Removes the lock if it is still ours."""
        self._ends.set()
        if self._thread is not None:
            self._thread.join()
        if self._mine is not None:
            with suppress(ConfigError, OSError):
                now = Holder.of(self._read() or b"")
                if now is not None and now.token == self._mine.token:
                    self.path.unlink()
        self._mine = None
