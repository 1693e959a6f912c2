"""The one store of a study's ratings: append-only events in SQLite, safe against a crash.

    with Store(folder.store_path) as store:
        store.add("R1", "web", [Event("k1", Change("R1-001", "value:relevance", 2))])
        store.answers()["R1-001"].values == {"relevance": 2}

One transaction per `add`: when it returns, the events survive a kill or a power cut. On a local
disk several commands may use the store at once, on a network drive one (see `database_files`).
Nothing is updated or deleted; the present state is the last event of each field, and an event of
the same key counts once. Links of raters are here too, as hashes only.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from cbtqa.database_files import DatabaseFile, not_opened
from cbtqa.errors import DataError
from cbtqa.manifest import now
from cbtqa.paths import keep_private
from cbtqa.ratings.answers import Answer, Change

_SCHEMA = """
CREATE TABLE IF NOT EXISTS study (id TEXT PRIMARY KEY) STRICT;
CREATE TABLE IF NOT EXISTS events (
  seq INTEGER PRIMARY KEY AUTOINCREMENT,
  key TEXT NOT NULL UNIQUE,
  at TEXT NOT NULL,
  source TEXT NOT NULL,
  rater TEXT NOT NULL,
  code TEXT NOT NULL,
  field TEXT NOT NULL,
  value TEXT NOT NULL,
  seconds REAL
) STRICT;
CREATE INDEX IF NOT EXISTS events_by_rater ON events (rater, seq);
CREATE TABLE IF NOT EXISTS links (
  sha256 TEXT PRIMARY KEY, rater TEXT NOT NULL, issued_at TEXT NOT NULL, revoked_at TEXT
) STRICT;
CREATE TABLE IF NOT EXISTS visits (
  sha256 TEXT PRIMARY KEY, link TEXT NOT NULL, csrf TEXT NOT NULL, began_at TEXT NOT NULL
) STRICT;
"""
_COLUMNS = ("key", "at", "source", "rater", "code", "field", "value", "seconds")


@dataclass(frozen=True)
class Event:
    """A change with the key that makes it count once, and the active seconds it took."""

    key: str
    change: Change
    seconds: float | None = None


@dataclass(frozen=True)
class Visit:
    rater: str
    csrf: str


class Store:
    """The ratings of one study. May be used from several threads."""

    def __init__(self, path: Path, study_id: str) -> None:
        """Opens or makes the store; a DataError where the file is none, or of another study."""
        self._lock = threading.Lock()
        self._file = DatabaseFile(path)
        try:
            self._connection = self._open(study_id)
        except sqlite3.DatabaseError as error:
            self._file.release()
            raise not_opened(path, "store of ratings", error) from None
        found = self._connection.execute("SELECT id FROM study").fetchone()[0]
        if found != study_id:
            self.close()
            raise DataError(f"holds study {found}, not {study_id}", where=str(path))

    def _open(self, study_id: str) -> sqlite3.Connection:
        connection = self._file.connect()
        try:
            connection.executescript(_SCHEMA)
            connection.execute(
                "INSERT INTO study SELECT ? WHERE NOT EXISTS (SELECT 1 FROM study)", (study_id,)
            )
        except sqlite3.DatabaseError:
            connection.close()
            raise
        return connection

    @property
    def drive(self) -> str | None:
        """The kind of drive where one command at a time may use the store, or None on a disk."""
        return (self._file.drive or "of an unknown kind") if self._file.is_alone else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        with self._lock:
            self._connection.close()
            self._file.release()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._connection:
            self._file.check()
            self._connection.execute("BEGIN IMMEDIATE")
            yield self._connection

    def add(self, rater: str, source: str, events: Sequence[Event]) -> int:
        """Keeps these events for good, all or none; returns how many were new.

        `source` is the front end: `web`, `sheet`, `csv` or `label-studio`.
        """
        at = now()
        rows = [
            {
                **vars(event.change),
                "value": json.dumps(event.change.value, ensure_ascii=False),
                "key": event.key,
                "seconds": event.seconds,
                "at": at,
                "source": source,
                "rater": rater,
            }
            for event in events
        ]
        places = ", ".join(f":{name}" for name in _COLUMNS)
        with self._transaction() as connection:
            before = connection.total_changes
            connection.executemany(
                f"INSERT OR IGNORE INTO events ({', '.join(_COLUMNS)}) VALUES ({places})", rows
            )
            return connection.total_changes - before

    def answers(self, rater: str | None = None) -> dict[str, Answer]:
        """The present state by presentation code, of one rater or of all."""
        answers: dict[str, Answer] = {}
        for event in self.events(rater):
            answer = answers.setdefault(event["code"], Answer())
            answer.set(event["field"], event["value"])
            if event["seconds"] is not None:
                answer.seconds = (answer.seconds or 0.0) + event["seconds"]
        return answers

    def events(self, rater: str | None = None) -> list[dict[str, Any]]:
        """Every event in order, for export and for a rater's own download."""
        clause, values = ("WHERE rater = ?", (rater,)) if rater else ("", ())
        columns = ("seq", *_COLUMNS)
        query = f"SELECT {', '.join(columns)} FROM events {clause} ORDER BY seq"
        rows = [dict(zip(columns, row, strict=True)) for row in self._rows(query, values)]
        return [{**row, "value": json.loads(row["value"])} for row in rows]

    def sources(self) -> list[str]:
        """The front ends that ratings came through, in the order of their first use."""
        query = "SELECT source FROM events GROUP BY source ORDER BY min(seq)"
        return [row[0] for row in self._rows(query)]

    def last_activity(self) -> dict[str, str]:
        return dict(self._rows("SELECT rater, max(at) FROM events GROUP BY rater"))

    def snapshot(self, path: Path) -> None:
        """Copies the store while it is in use."""
        file = DatabaseFile(path)
        try:
            with self._lock, closing(file.connect()) as target:
                self._connection.backup(target)
        finally:
            file.release()
        keep_private(path)

    def _rows(self, query: str, values: Iterable[Any] = ()) -> list[tuple[Any, ...]]:
        with self._lock:
            return self._connection.execute(query, tuple(values)).fetchall()

    def issue_link(self, rater: str) -> str:
        """A new token for this rater; an earlier one and its visits stop working."""
        token = secrets.token_urlsafe(24)
        with self._transaction() as connection:
            connection.execute(
                "UPDATE links SET revoked_at = ? WHERE rater = ? AND revoked_at IS NULL",
                (now(), rater),
            )
            row = (_hash(token), rater, now())
            connection.execute("INSERT INTO links (sha256, rater, issued_at) VALUES (?, ?, ?)", row)
        return token

    def linked_raters(self) -> set[str]:
        return {row[0] for row in self._rows("SELECT rater FROM links WHERE revoked_at IS NULL")}

    def begin_visit(self, token: str) -> str | None:
        """Swaps a link's token for a cookie value; None when the link does not work."""
        link, cookie = _hash(token), secrets.token_urlsafe(24)
        if not self._rows("SELECT 1 FROM links WHERE sha256 = ? AND revoked_at IS NULL", (link,)):
            return None
        with self._transaction() as connection:
            connection.execute(
                "INSERT INTO visits (sha256, link, csrf, began_at) VALUES (?, ?, ?, ?)",
                (_hash(cookie), link, secrets.token_urlsafe(24), now()),
            )
        return cookie

    def visit(self, cookie: str) -> Visit | None:
        """Whose browser this cookie is; None when its link was revoked or never was."""
        rows = self._rows(
            "SELECT links.rater, visits.csrf FROM visits JOIN links ON links.sha256 = visits.link"
            " WHERE visits.sha256 = ? AND links.revoked_at IS NULL",
            (_hash(cookie),),
        )
        return Visit(*rows[0]) if rows else None


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
