"""The crash-safe record of every paid reply: one SQLite file, one writer, nothing ever changed.

    with Journal(folder / "journal.sqlite", {"prompt": "cbt_answer.v1 3f2a...", "model": "m"}) as j:
        j.record([Entry("4394", 1, State.ACCEPTED, reply)])
        for key, outcome in j.outcomes(["4394", "4395"]): ...      # caller's order; None: not done

Every attempt on an item is a row; its last row is its state. A reply counts once its transaction is
committed (WAL, synchronous=FULL: a power cut does not undo it). `put` gathers rows for 50 ms before
a commit, on a thread of its own, so that an event loop never waits for the disk.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import sqlite3
import sys
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import Any, TypeVar

from cbtqa.errors import ConfigError, DataError, IncompleteRunError
from cbtqa.llm.journal_rows import (
    ADD_TOTAL,
    COLUMNS,
    INSERT,
    SCHEMA,
    Entry,
    GroupWriter,
    Outcome,
    Standing,
    State,
    Totals,
    entry_of,
    outcome_of,
    row_of,
)
from cbtqa.paths import make_folder
from cbtqa.records import Reason, Usage
from cbtqa.secrets import masked, masked_value

FORMAT_VERSION = "1"
BLOCK = 512
"""Keys looked up, and rows held, at a time."""
BULK_ROWS = 5_000
OF_KEYS = "WHERE key IN (SELECT value FROM json_each(?)) ORDER BY key, attempt, id"


class Journal:
    """An open journal; close it, or use it in a `with` block."""

    def __init__(
        self, path: Path, fingerprint: Mapping[str, str] | None = None, *, read_only: bool = False
    ) -> None:
        """Opens or begins a journal.

        Args:
            fingerprint: everything that can change a reply, by name: prompt hash, model, sampling,
                input hash. Kept when the journal is begun and compared ever after.
            read_only: for reading beside a writer; no lock, no fingerprint.

        Raises:
            ConfigError: another process writes it, it is on a network drive, or it was begun with
                another fingerprint (the differences are shown).
            DataError: not a journal, or missing when `read_only`.
        """
        self.path = path
        self._lock: WriterLock | None = None
        self._writer: GroupWriter | None = None
        self._writing = threading.Lock()
        if not read_only:
            make_folder(path.parent)
            refuse_network_drive(path.parent)
            self._lock = WriterLock(path)
        elif not path.is_file():
            raise DataError("no such journal", where=str(path))
        try:
            self._open(path, read_only)
            if not read_only:
                self._compare(masked_value(dict(fingerprint or {})))
        except BaseException:
            self.close()
            raise

    def _open(self, path: Path, read_only: bool) -> None:
        self._reader = self._db = None
        try:
            if not read_only:
                self._db = _connect(path, "rwc")
                self._prepare(self._db)
            # a connection of its own: WAL lets it read while a commit waits for the disk
            self._reader = _connect(path, "ro" if read_only else "rw")
            version = self.meta("format_version")
            has_host = "host" in _columns_of(self._reader)
            # a journal begun before hosts were kept, opened for reading
            self._columns = COLUMNS if has_host else COLUMNS.replace("host", "NULL")
        except sqlite3.DatabaseError as error:
            raise DataError(f"is no journal of cbtqa: {error}", where=str(path)) from None
        if version != FORMAT_VERSION:
            raise DataError(
                f"has format {version}, this cbtqa reads {FORMAT_VERSION}", where=str(path)
            )

    def _prepare(self, db: sqlite3.Connection) -> None:
        if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'meta'").fetchone():
            db.execute("PRAGMA page_size = 8192")  # 2-3 kB rows: less is lost at page ends
        (mode,) = db.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":
            raise ConfigError(
                f"{self.path.parent} cannot hold a journal: its file system has no shared memory",
                hint="choose an output folder on a local disk",
            )
        db.execute("PRAGMA synchronous = FULL")
        if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'meta'").fetchone():
            version = f"INSERT INTO meta VALUES ('format_version', '{FORMAT_VERSION}');"
            db.executescript(f"BEGIN; {SCHEMA} {version} COMMIT;")
        if "host" not in _columns_of(db):
            db.execute("ALTER TABLE attempts ADD COLUMN host TEXT")
        self.set_meta("writer_pid", str(os.getpid()))

    def _compare(self, fingerprint: dict[str, str]) -> None:
        text = self.meta("fingerprint")
        if text is None:
            self.set_meta("fingerprint", json.dumps(fingerprint, ensure_ascii=False))
            return
        begun: dict[str, str] = json.loads(text)
        names = [name for name in begun | fingerprint if begun.get(name) != fingerprint.get(name)]
        if names:
            lines = [
                f"  {name}: was {_short(begun.get(name))}, is {_short(fingerprint.get(name))}"
                for name in names
            ]
            raise ConfigError(
                "\n".join([f"{self.path} was begun with other settings:", *lines]),
                hint="go back to the earlier settings, or add --fork to begin a journal beside it",
            )

    def close(self) -> None:
        """Commits what was put, closes the file, and lets the next writer in."""
        if self._writer is not None:
            self._writer.stop()
            self._writer = None
        for db in (self._reader, self._db):
            if db is not None:
                db.close()
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def record(self, entries: Iterable[Entry]) -> int:
        """Appends rows and returns how many, all durable; for teachers that work offline.

        Raises:
            IncompleteRunError: the disk is full or failing.
        """
        count = 0
        for block in blocks_of(entries, BULK_ROWS):
            self._commit(block)
            count += len(block)
        return count

    def put(self, entry: Entry) -> asyncio.Future[None]:
        """Queues a row from a running event loop; the future is done once the row is durable."""
        if self._writer is None:
            self._writer = GroupWriter(self._commit)
        return self._writer.put(entry)

    def _commit(self, entries: Sequence[Entry]) -> None:
        assert self._db is not None, "a journal opened for reading is not written"
        rows = [row_of(entry) for entry in entries]
        sums: dict[tuple[int, str], tuple[int, int, int]] = {}
        for row in rows:
            group = (row[2], row[3] or "")
            n, n_prompt, n_completion = sums.get(group, (0, 0, 0))
            sums[group] = (n + 1, n_prompt + (row[10] or 0), n_completion + (row[11] or 0))
        totals = [(*group, *numbers) for group, numbers in sums.items()]
        try:
            with self._writing, self._db:
                self._db.execute("BEGIN IMMEDIATE")
                self._db.executemany(INSERT, rows)
                self._db.executemany(ADD_TOTAL, totals)
        except sqlite3.Error as error:
            raise IncompleteRunError(
                f"the journal {self.path} cannot be written: {error}",
                hint="free some disk space, then give the same command again",
            ) from None

    def meta(self, name: str) -> str | None:
        """A named value kept in the journal, or None."""
        db = self._reader or self._db
        assert db is not None
        row = db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return None if row is None else str(row[0])

    def set_meta(self, name: str, value: str) -> None:
        """Keeps a named value, durably."""
        assert self._db is not None, "a journal opened for reading is not written"
        with self._writing:
            self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, masked(value)))

    def standings(self, keys: Sequence[str]) -> dict[str, Standing]:
        """How far each of these items is; an item without rows is missing. Reads an index only."""
        sql = f"SELECT key, attempt, state FROM attempts {OF_KEYS}"
        rows = (
            row for block in blocks_of(keys, BLOCK) for row in self._read(sql, json.dumps(block))
        )
        return {key: Standing(attempt, State(state)) for key, attempt, state in rows}

    def done_keys(self, max_attempts: int = 1) -> Iterator[str]:
        """Keys for which nothing is left to send, in the order of the keys."""
        sql = "SELECT key, attempt, state FROM attempts ORDER BY key, attempt, id"
        for key, rows in groupby(self._read(sql), itemgetter(0)):
            *_, (_, attempt, state) = rows
            if Standing(attempt, State(state)).is_done(max_attempts):
                yield key

    def outcome(self, key: str) -> Outcome | None:
        """The last word on one item, or None when there is none yet."""
        return next(self.outcomes([key]))[1]

    def outcomes(self, keys: Iterable[str]) -> Iterator[tuple[str, Outcome | None]]:
        """Each key with its outcome, in the order given; memory does not grow with the number."""
        sql = f"SELECT {self._columns} FROM attempts {OF_KEYS}"
        for block in blocks_of(keys, BLOCK):
            rows: dict[str, list[Any]] = {}
            for row in self._read(sql, json.dumps(block)):
                rows.setdefault(row[0], []).append(row)
            for key in block:
                yield key, outcome_of(rows[key]) if key in rows else None

    def last_paid(self, key: str) -> Entry | None:
        """The newest row of an item that holds a reply, or None."""
        sql = f"SELECT {self._columns} FROM attempts WHERE key = ? ORDER BY attempt DESC, id DESC"
        for row in self._read(sql, key):
            if row[13] is not None:
                return entry_of(row)
        return None

    def totals(self) -> Totals:
        """What all attempts cost and why they were rejected; kept as running sums."""
        n_replies, usage = 0, Usage()
        faults: Counter[Reason] = Counter()
        sql = "SELECT state, reason, n, prompt_tokens, completion_tokens FROM totals"
        for state, reason, n, n_prompt, n_completion in self._read(sql):
            if state in (State.ACCEPTED, State.FAULTY):
                n_replies += n
            usage += Usage(prompt_tokens=n_prompt, completion_tokens=n_completion)
            if reason:
                faults[Reason(reason)] += n
        return Totals(n_replies, usage, dict(faults))

    def _read(self, sql: str, *values: str) -> sqlite3.Cursor:
        assert self._reader is not None
        return self._reader.execute(sql, values)


def fork_path(path: Path, fingerprint: Mapping[str, str]) -> Path:
    """Where `--fork` keeps the journal of other settings: the same settings give the same path."""
    text = json.dumps(dict(sorted(fingerprint.items())), ensure_ascii=False)
    mark = hashlib.sha256(text.encode()).hexdigest()[:8]
    return path.with_name(f"{path.stem}-{mark}{path.suffix}")


ValueT = TypeVar("ValueT")


def blocks_of(values: Iterable[ValueT], size: int) -> Iterator[list[ValueT]]:
    """The values in lists of `size`, the last one shorter."""
    iterator = iter(values)
    while block := list(islice(iterator, size)):
        yield block


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    uri = f"{path.absolute().as_uri()}?mode={mode}"
    return sqlite3.connect(uri, 30, isolation_level=None, check_same_thread=False, uri=True)


def _columns_of(db: sqlite3.Connection) -> set[str]:
    return {row[1] for row in db.execute("PRAGMA table_info(attempts)")}


def _short(value: str | None) -> str:
    if value is None:
        return "not set"
    return value if len(value) <= 80 else value[:80] + "..."


NETWORK_FILE_SYSTEMS = re.compile(
    r"nfs\d*|cifs|smb\w*|afs|ncpfs|ceph|lustre|beegfs|gpfs|glusterfs|orangefs|ocfs2|gfs2|davfs\d*"
    r"|fuse\.(sshfs|s3fs|rclone|gcsfuse|goofys|blobfuse2?|glusterfs|ceph|juicefs|mfs|vmhgfs-fuse)"
)
"""File systems without the shared memory or the locks that SQLite's WAL needs."""


class WriterLock:
    """Holds `<journal>.lock` until `release` or the end of the process, however it ends.

    It is SQLite's own exclusive lock on an empty database: the operating system drops it with the
    process, alike on Linux, macOS and Windows.
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
        with closing(_connect(journal, "ro")) as db:
            (pid,) = db.execute("SELECT value FROM meta WHERE name = 'writer_pid'").fetchone()
    except (sqlite3.Error, TypeError):
        return "another process"
    return f"process {pid}"


def refuse_network_drive(folder: Path, mounts: str | None = None) -> None:
    """Raises ConfigError when the folder is on a network file system.

    Known from /proc/mounts (Linux) and from `\\\\server` paths (Windows). Elsewhere a drive
    without shared memory fails when the journal is opened.

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


__all__ = ["Entry", "Journal", "Outcome", "Standing", "State", "Totals", "blocks_of", "fork_path"]
