"""The crash-safe record of every paid reply: one SQLite file, one writer, nothing ever changed.

    with Journal(folder / "journal.sqlite", {"prompt": "cbt_answer.v1 3f2a...", "model": "m"}) as j:
        j.record([Entry("4394", 1, State.ACCEPTED, reply)])
        for key, outcome in j.outcomes(["4394", "4395"]): ...      # caller's order; None: not done

Every attempt on an item is a row; its last row is its state. A reply counts once its transaction is
committed: a power cut does not undo it (`database_files` knows how, on which drive). `put` gathers
rows for 50 ms before a commit, on a thread of its own, so that an event loop never waits for the
disk.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import Any, TypeVar

from cbtqa.database_files import DatabaseFile, connect, not_opened
from cbtqa.errors import ConfigError, DataError, IncompleteRunError
from cbtqa.llm.journal_rows import (
    ADD_TOTAL,
    ASKED_AGAIN,
    COLUMNS,
    FIRST_TRIES,
    INSERT,
    SCHEMA,
    Entry,
    GroupWriter,
    InFlight,
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
UNDER_WAY = "openai_batches"
"""Name of the list of batches that were handed in and are not read back yet, as JSON."""
BLOCK = 512
"""Keys looked up, and rows held, at a time."""
BULK_ROWS = 5_000
LEAST_FREE, LOOK_AT_DISK_S = 16 * 2**20, 0.5
"""Bytes that a disk must have left for another request to be sent: replies to thousands."""
OF_KEYS = "WHERE key IN (SELECT value FROM json_each(?)) ORDER BY key, attempt, id"


class Journal:
    """An open journal; close it, or use it in a `with` block."""

    def __init__(
        self, path: Path, fingerprint: Mapping[str, str] | None = None, *, read_only: bool = False
    ) -> None:
        """Opens or begins a journal.

        Args:
            fingerprint: everything that can change a reply, by name: prompt hash, model, sampling,
                input hash. Kept when the journal is begun and compared ever after its first reply;
                before that, other settings begin the journal anew.
            read_only: for reading beside a writer; no lock, no fingerprint.

        Raises:
            ConfigError: another process writes it, or it was begun with another fingerprint (the
                differences are shown).
            DataError: not a journal, or missing when `read_only`.
        """
        self.path = path
        self._reader: sqlite3.Connection | None = None
        self._db: sqlite3.Connection | None = None
        self._writer: GroupWriter | None = None
        self._writing = threading.Lock()
        self._in_flight: InFlight | None = None
        self._look_again_at, self._has_room = 0.0, True
        if read_only and not path.is_file():
            raise DataError("no such journal", where=str(path))
        if not read_only:
            make_folder(path.parent)
        self._file = DatabaseFile(path, writer_of=_writer_of, read_only=read_only)
        try:
            self._open(path, read_only)
            if not read_only:
                self._compare(masked_value(dict(fingerprint or {})))
                self._in_flight = self._open_count()
        except BaseException:
            self.close()
            raise

    def _open(self, path: Path, read_only: bool) -> None:
        try:
            if not read_only:
                # 2-3 kB rows: less is lost at page ends
                self._db = self._file.connect(page_size=8192)
                self._prepare(self._db)
            # a connection of its own: WAL lets it read while a commit waits for the disk
            shared = self._db if self._file.is_alone else None
            self._reader = shared or self._file.connect()
            version = self.meta("format_version")
            has_host = "host" in _columns_of(self._reader)
            # a journal begun before hosts were kept, opened for reading
            self._columns = COLUMNS if has_host else COLUMNS.replace("host", "NULL")
        except sqlite3.DatabaseError as error:
            raise not_opened(path, "journal of cbtqa", error) from None
        if version != FORMAT_VERSION:
            raise DataError(
                f"has format {version}, this cbtqa reads {FORMAT_VERSION}", where=str(path)
            )

    def _prepare(self, db: sqlite3.Connection) -> None:
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
        if names and not self._is_paid():
            self._begin_anew(fingerprint)
        elif names:
            lines = [
                f"  {name}: " + _difference(begun.get(name), fingerprint.get(name))
                for name in names
            ]
            raise ConfigError(
                "\n".join([f"{self.path} was begun with other settings:", *lines]),
                hint="go back to the earlier settings, or add --fork to begin a journal beside it",
            )

    def _open_count(self) -> InFlight:
        try:
            return InFlight(self.path)
        except OSError as error:
            raise IncompleteRunError(f"{self.path.parent} cannot be written: {error}") from None

    def _is_paid(self) -> bool:
        """True when a row holds a reply, or a batch is under way: other settings would mix."""
        sql = "SELECT 1 FROM attempts WHERE text IS NOT NULL LIMIT 1"
        return any(self._read(sql)) or self.meta(UNDER_WAY) not in (None, "[]")

    def _begin_anew(self, fingerprint: dict[str, str]) -> None:
        """Binds a journal without any reply to other settings; what they refused is no more."""
        assert self._db is not None
        text = json.dumps(fingerprint, ensure_ascii=False)
        with self._writing, self._db:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.execute("DELETE FROM attempts")
            self._db.execute("DELETE FROM totals")
            self._db.execute("UPDATE meta SET value = ? WHERE name = 'fingerprint'", (text,))

    def has_room(self) -> bool:
        """False when the disk may not hold the replies to what is sent from now on."""
        now = time.monotonic()
        if now >= self._look_again_at:
            self._look_again_at = now + LOOK_AT_DISK_S
            disk = shutil.disk_usage(self.path.parent)
            # some network drives do not tell their size, and give 0 for it
            self._has_room = not disk.total or disk.free >= LEAST_FREE
        return self._has_room

    @property
    def in_flight(self) -> InFlight:
        """The count of requests that are on their way."""
        assert self._in_flight is not None, "a journal opened for reading sends nothing"
        return self._in_flight

    def close(self) -> None:
        """Commits what was put, closes the file, and lets the next writer in."""
        if self._writer is not None:
            self._writer.stop()
            self._writer = None
        if self._in_flight is not None:
            self._in_flight.close()
            self._in_flight = None
        for db in (self._reader, self._db):
            if db is not None:
                db.close()
        self._file.release()

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
                self._file.check()
                self._db.execute("BEGIN IMMEDIATE")
                self._db.executemany(INSERT, rows)
                self._db.executemany(ADD_TOTAL, totals)
            if self._in_flight is not None:
                # at once, not when the loop gets to it: a kill in between tells too many
                self._in_flight.written(entries)
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
            self._file.check()
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

    def replies(self, key: str) -> list[Entry]:
        """Every reply to an item with its verdict, the first attempt first."""
        sql = f"SELECT {self._columns} FROM attempts WHERE key = ? ORDER BY attempt, id"
        rows = [row for row in self._read(sql, key) if row[13] is not None]
        # a row that was only received, or repeats its reply, is replaced by the later one
        return list({row[1]: entry_of(row) for row in rows}.values())

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

    def first_replies(self, prefix: str = "", *, is_prefixed: bool = True) -> dict[str, Any]:
        """What became of first replies: `first_try` and `asked_again`, each where there is any.

        `first_try` counts items with a verdict on their first attempt, and those accepted there;
        what the endpoint failed on is none, what it refused for good is. `asked_again` counts by
        fault how often a reply with it was asked again, and how often that was accepted.

        Args:
            prefix: of the keys that count; with `is_prefixed` False, of those that do not.
        """
        found: dict[str, Any] = {}
        ((n_asked, n_accepted),) = self._read(FIRST_TRIES, prefix, is_prefixed)
        if n_asked:
            found["first_try"] = {"n_asked": n_asked, "n_accepted": n_accepted}
        again = {
            reason: {"n_asked": n, "n_accepted": n_then_accepted}
            for reason, n, n_then_accepted in self._read(ASKED_AGAIN, prefix, is_prefixed)
        }
        return found | ({"asked_again": again} if again else {})

    def belongs_to(self, fingerprint: Mapping[str, str]) -> bool:
        """True when a run of these settings may write it: theirs, or without any reply."""
        begun = json.loads(self.meta("fingerprint") or "null")
        return begun in (None, masked_value(dict(fingerprint))) or not self._is_paid()

    def _read(self, sql: str, *values: str | bool) -> Iterable[Any]:
        assert self._reader is not None
        if self._reader is not self._db:
            return self._reader.execute(sql, values)
        with self._writing:  # one connection for both: it would show what is not committed yet
            return self._reader.execute(sql, values).fetchall()


def fork_path(path: Path, fingerprint: Mapping[str, str]) -> Path:
    """Where `--fork` keeps the journal of other settings: the same settings give the same path."""
    text = json.dumps(dict(sorted(fingerprint.items())), ensure_ascii=False)
    mark = hashlib.sha256(text.encode()).hexdigest()[:8]
    return path.with_name(f"{path.stem}-{mark}{path.suffix}")


def own_path(path: Path, fingerprint: Mapping[str, str]) -> Path:
    """Which journal a run of these settings has: the one at `path`, or a fork beside it.

    Args:
        path: of the folder's first journal, which need not exist.
    """
    if not path.exists():
        return path
    with Journal(path, read_only=True) as journal:
        return path if journal.belongs_to(fingerprint) else fork_path(path, fingerprint)


ValueT = TypeVar("ValueT")


def blocks_of(values: Iterable[ValueT], size: int) -> Iterator[list[ValueT]]:
    """The values in lists of `size`, the last one shorter."""
    iterator = iter(values)
    while block := list(islice(iterator, size)):
        yield block


def _columns_of(db: sqlite3.Connection) -> set[str]:
    return {row[1] for row in db.execute("PRAGMA table_info(attempts)")}


def _difference(was: str | None, now: str | None) -> str:
    """What a setting was and is; of long texts the part from where they differ."""
    texts = was or "", now or ""
    pairs = enumerate(zip(*texts, strict=False))
    n_alike = next((place for place, (one, other) in pairs if one != other), min(map(len, texts)))
    start = n_alike - 20 if max(map(len, texts)) > 80 else 0
    return f"was {_part(was, start)}, is {_part(now, start)}"


def _part(value: str | None, start: int) -> str:
    if value is None:
        return "not set"
    start = max(0, start)
    return ("..." if start else "") + value[start : start + 80] + "..." * (len(value) > start + 80)


def _writer_of(journal: Path) -> str:
    """`process N`, as the writer left it in the journal; WAL lets us read beside it."""
    try:
        with closing(connect(journal, "ro")) as db:
            (pid,) = db.execute("SELECT value FROM meta WHERE name = 'writer_pid'").fetchone()
    except (sqlite3.Error, TypeError):
        return "another process"
    return f"process {pid}"


__all__ = ["Entry", "Journal", "Outcome", "Standing", "State", "Totals", "blocks_of", "own_path"]
