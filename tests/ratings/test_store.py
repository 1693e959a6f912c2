"""The store: nothing is changed or lost, nothing counts twice, links are hashes."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import pytest

from cbtqa.errors import DataError
from cbtqa.ratings.answers import Change
from cbtqa.ratings.store import Event, Store


def rate(key: str, value: int | None, code: str = "R1-001", seconds: float | None = None) -> Event:
    return Event(key, Change(code, "value:relevance", value), seconds)


def test_the_last_event_counts_and_all_are_kept(tmp_path: Path) -> None:
    with Store(tmp_path / "s.sqlite", "study") as store:
        store.add("R1", "web", [rate("a", 2, seconds=3), rate("b", 1, seconds=4.5)])
        store.add("R1", "web", [rate("c", None)])
        assert store.answers()["R1-001"].values == {"relevance": None}
        assert store.answers()["R1-001"].seconds == 7.5
        assert [event["value"] for event in store.events()] == [2, 1, None]


def test_an_event_sent_twice_counts_once(tmp_path: Path) -> None:
    with Store(tmp_path / "s.sqlite", "study") as store:
        assert store.add("R1", "web", [rate("a", 2), rate("b", 1)]) == 2
        assert store.add("R1", "web", [rate("a", 2), rate("b", 1), rate("c", 0)]) == 1
        assert store.answers()["R1-001"].values == {"relevance": 0}


def test_the_store_is_durable_by_its_settings_and_readable_by_its_owner_only(
    tmp_path: Path,
) -> None:
    path = tmp_path / "s.sqlite"
    with Store(path, "study") as store:
        store.add("R1", "web", [rate("a", 2)])
        connection = store._connection
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,)
        assert path.stat().st_mode & 0o077 == 0


def test_a_failing_batch_leaves_nothing_behind(tmp_path: Path) -> None:
    with Store(tmp_path / "s.sqlite", "study") as store:
        broken = Event("b", Change("R1-001", "note", "x"), seconds="soon")  # type: ignore[arg-type]
        with pytest.raises(sqlite3.Error):
            store.add("R1", "web", [rate("a", 2), broken])
        assert store.events() == []


def test_many_threads_write_without_losing_any(tmp_path: Path) -> None:
    with Store(tmp_path / "s.sqlite", "study") as store:

        def work(rater: int) -> None:
            for number in range(25):
                store.add(f"R{rater}", "web", [rate(f"{rater}:{number}", 1, f"R{rater}-{number}")])

        threads = [threading.Thread(target=work, args=(rater,)) for rater in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(store.answers()) == 200


def test_a_snapshot_taken_while_in_use_is_whole(tmp_path: Path) -> None:
    with Store(tmp_path / "s.sqlite", "study") as store:
        store.add("R1", "web", [rate("a", 2)])
        store.snapshot(tmp_path / "copy.sqlite")
        store.add("R1", "web", [rate("b", 1)])
    with Store(tmp_path / "copy.sqlite", "study") as copy:
        assert copy.answers()["R1-001"].values == {"relevance": 2}


def test_a_store_of_another_study_or_no_store_at_all_is_refused(tmp_path: Path) -> None:
    Store(tmp_path / "s.sqlite", "one").close()
    with pytest.raises(DataError, match="holds study one, not two"):
        Store(tmp_path / "s.sqlite", "two")
    (tmp_path / "text.sqlite").write_text("this is no database, whatever its name says" * 20)
    with pytest.raises(DataError, match="is no store of ratings"):
        Store(tmp_path / "text.sqlite", "one")


def test_a_link_is_stored_as_a_hash_and_replacing_it_ends_its_visits(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite"
    with Store(path, "study") as store:
        token = store.issue_link("R1")
        cookie = store.begin_visit(token)
        assert cookie is not None
        visit = store.visit(cookie)
        assert visit is not None and visit.rater == "R1"
        assert store.begin_visit("wrong") is None and store.visit("wrong") is None
        data = path.read_bytes() + path.with_name("s.sqlite-wal").read_bytes()
        assert token.encode() not in data and cookie.encode() not in data
        fresh = store.issue_link("R1")
        assert store.begin_visit(token) is None and store.visit(cookie) is None
        assert store.begin_visit(fresh) is not None
        assert store.linked_raters() == {"R1"}
