"""The journal: durable, single-writer, never mixed up, and read back in the caller's order."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from cbtqa.errors import ConfigError, DataError, IncompleteRunError
from cbtqa.llm.chat import Fault, Reply
from cbtqa.llm.journal import (
    UNDER_WAY,
    Entry,
    Journal,
    State,
    fork_path,
)
from cbtqa.records import Reason, Usage

USAGE = Usage(prompt_tokens=10, completion_tokens=5)


def reply(text: str = "好") -> Reply:
    return Reply(text, "stop", None, "想", USAGE, "m", "2026-01-01T00:00:00+00:00", 0.5)


def faulty(key: str, attempt: int) -> Entry:
    return Entry(key, attempt, State.FAULTY, reply("坏"), Fault(Reason.CUT, "cut"))


def test_a_reply_comes_back_as_it_was(tmp_path: Path) -> None:
    original = Reply("好\x00\n“引”", "stop", "no", "想", USAGE, "m", "2026-01-01T00:00:00Z", 1.25)
    with Journal(tmp_path / "j") as journal:
        journal.record([Entry("一", 1, State.ACCEPTED, original)])
    with Journal(tmp_path / "j") as journal:
        outcome = journal.outcome("一")
    assert outcome is not None and outcome.reply == original and outcome.fault is None


def test_outcomes_come_in_the_callers_order_with_gaps_and_repeats(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:
        journal.record(Entry(f"k{n}", 1, State.ACCEPTED, reply(f"r{n}")) for n in range(2000))
        wanted = [f"k{n}" for n in reversed(range(0, 2600, 2))] + ["k4", "k4"]
        found = list(journal.outcomes(iter(wanted)))
    assert [key for key, _ in found] == wanted
    for key, outcome in found:
        n = int(key[1:])
        assert (outcome is None) == (n >= 2000)
        assert outcome is None or (outcome.reply and outcome.reply.text) == f"r{n}"


def test_the_last_attempt_decides_and_the_usage_of_all_adds_up(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:
        journal.record([faulty("一", 1), Entry("一", 2, State.ACCEPTED, reply())])
        gone = Entry("二", 2, State.ENDPOINT, None, Fault(Reason.ENDPOINT, "gone"))
        journal.record([faulty("二", 1), gone])
        one, two = (outcome for _, outcome in journal.outcomes(["一", "二"]))
        assert one is not None and two is not None
        assert (one.is_accepted, one.n_attempts, one.usage.prompt_tokens) == (True, 2, 20)
        assert (two.fault, two.n_attempts) == (Fault(Reason.ENDPOINT, "gone"), 1)
        standing = journal.standings(["一", "二", "三"])
        assert standing["一"].is_done(9) and not standing["二"].is_done(1)
        assert "三" not in standing
        totals = journal.totals()
        assert (totals.n_replies, totals.usage.prompt_tokens) == (3, 30)
        assert totals.faults == {Reason.CUT: 2, Reason.ENDPOINT: 1}


@pytest.mark.parametrize(
    ("state", "attempt", "is_done"),
    [
        (State.ACCEPTED, 1, True),
        (State.FINAL, 1, True),
        (State.FAULTY, 2, False),
        (State.FAULTY, 3, True),
        (State.ENDPOINT, 1, False),
        (State.UNCHECKED, 1, False),
    ],
)
def test_done_means_that_nothing_is_left_to_send(
    tmp_path: Path, state: State, attempt: int, is_done: bool
) -> None:
    fault = None if state is State.ACCEPTED else Fault(Reason.EMPTY)
    with Journal(tmp_path / "j") as journal:
        journal.record([Entry("一", attempt, state, reply(), fault), faulty("零", 1)])
        assert list(journal.done_keys(max_attempts=3)) == (["一"] if is_done else [])


def test_of_long_settings_the_part_that_differs_is_shown(tmp_path: Path) -> None:
    long = "请以心理咨询师的身份回答。" * 20
    with Journal(tmp_path / "j", {"prompt": f"{long}温和一些。"}) as journal:
        journal.record([faulty("一", 1)])
    with pytest.raises(ConfigError) as refused:
        Journal(tmp_path / "j", {"prompt": f"{long}简短一些。{long}"})
    (line,) = (one for one in str(refused.value).splitlines() if one.startswith("  prompt: was "))
    was, now = line.removeprefix("  prompt: was ").split(", is ")
    assert was.startswith("...") and was.endswith("温和一些。")
    assert "简短一些。" in now and now.endswith("...") and len(now) < 100


def test_a_changed_fingerprint_is_refused_with_the_differences(tmp_path: Path) -> None:
    with Journal(tmp_path / "j", {"model": "m1", "prompt": "p", "seed": "1"}) as journal:
        journal.record([faulty("一", 1)])
    with pytest.raises(ConfigError) as refused:
        Journal(tmp_path / "j", {"model": "m2", "prompt": "p", "extra": "x"})
    message = str(refused.value)
    assert "model: was m1, is m2" in message and "prompt" not in message
    assert "seed: was 1, is not set" in message and "extra: was not set, is x" in message
    assert "--fork" in str(refused.value.hint)
    with Journal(tmp_path / "j", {"seed": "1", "prompt": "p", "model": "m1"}):
        pass


@pytest.mark.parametrize(
    ("entry", "is_bound"),
    [
        (Entry("一", 1, State.FINAL, None, Fault(Reason.BAD_REQUEST, "no")), False),
        (Entry("一", 1, State.ENDPOINT, None, Fault(Reason.ENDPOINT, "gone")), False),
        (Entry("一", 1, State.UNCHECKED, reply()), True),
        (Entry("一", 1, State.FINAL, reply(), Fault(Reason.CONTENT_FILTER, "")), True),
    ],
)
def test_only_a_reply_binds_the_settings_of_a_journal(
    tmp_path: Path, entry: Entry, is_bound: bool
) -> None:
    with Journal(tmp_path / "j", {"model": "m1"}) as journal:
        journal.record([entry])
    if is_bound:
        with pytest.raises(ConfigError, match="other settings"):
            Journal(tmp_path / "j", {"model": "m2"})
        return
    with Journal(tmp_path / "j", {"model": "m2"}) as journal:
        assert journal.outcome("一") is None and not journal.totals().faults, "asked anew"
        journal.record([Entry("一", 1, State.ACCEPTED, reply())])
    with pytest.raises(ConfigError, match="was m2, is m1"):
        Journal(tmp_path / "j", {"model": "m1"})


def test_a_batch_under_way_binds_the_settings_of_a_journal(tmp_path: Path) -> None:
    with Journal(tmp_path / "j", {"model": "m1"}) as journal:
        journal.set_meta(UNDER_WAY, '[{"token": "t", "id": "batch-1"}]')
    with pytest.raises(ConfigError, match="other settings"):
        Journal(tmp_path / "j", {"model": "m2"})


def test_a_fork_has_one_path_for_one_fingerprint(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    first = fork_path(path, {"a": "1", "b": "2"})
    assert first == fork_path(path, {"b": "2", "a": "1"}) != fork_path(path, {"a": "1", "b": "3"})
    assert first.parent == tmp_path and first.suffix == ".sqlite" and first != path


HOLD = """
import sys, time
from pathlib import Path
from cbtqa.llm.journal import Journal
journal = Journal(Path(sys.argv[1]))
print("open", flush=True)
time.sleep(60)
"""


def test_a_second_process_is_refused_by_name_and_a_dead_one_is_no_obstacle(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    with holder.stdout:
        assert holder.stdout.readline() == "open\n"
        with pytest.raises(ConfigError, match=f"process {holder.pid}"):
            Journal(path)
        with Journal(path, read_only=True) as beside:
            assert beside.totals().n_replies == 0
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with Journal(path) as journal:
        assert journal.meta("writer_pid") == str(os.getpid())
        with pytest.raises(ConfigError, match=f"process {os.getpid()}"):
            Journal(path)


WRITE = """
import asyncio, os, sys
from pathlib import Path
from cbtqa.llm.chat import Reply
from cbtqa.llm.journal import Entry, Journal, State

async def main():
    with Journal(Path(sys.argv[1])) as journal:
        n = 0
        while True:
            group = [journal.put(Entry(f"k{n + i}", 1, State.ACCEPTED, Reply("好" * 700)))
                     for i in range(20)]
            await asyncio.gather(*group)
            n += 20
            os.write(1, b"%d\\n" % n)

asyncio.run(main())
"""


def test_what_was_acknowledged_survives_kill_9(tmp_path: Path) -> None:
    for number in range(5):
        path = tmp_path / f"{number}.sqlite"
        writer = subprocess.Popen([sys.executable, "-c", WRITE, str(path)], stdout=subprocess.PIPE)
        assert writer.stdout is not None
        with writer.stdout:
            said = [writer.stdout.readline() for _ in range(3 + number)]
            writer.send_signal(signal.SIGKILL)
            said += writer.stdout.read().splitlines()
            writer.wait()
        n_acknowledged = int([line for line in said if line.strip()][-1])
        with Journal(path) as journal:
            kept = {key for key, one in journal.outcomes(f"k{n}" for n in range(9999)) if one}
        assert {f"k{n}" for n in range(n_acknowledged)} <= kept


def test_a_row_put_is_durable_when_its_future_is_done(tmp_path: Path) -> None:
    async def put(journal: Journal) -> None:
        await asyncio.gather(
            *(journal.put(Entry(f"k{n}", 1, State.ACCEPTED, reply())) for n in range(1500))
        )

    with Journal(tmp_path / "j") as journal:
        asyncio.run(put(journal))
        with Journal(tmp_path / "j", read_only=True) as beside:
            assert beside.totals().n_replies == 1500


def test_closing_commits_what_was_put(tmp_path: Path) -> None:
    async def put(journal: Journal) -> None:
        journal.put(Entry("一", 1, State.ACCEPTED, reply()))

    with Journal(tmp_path / "j") as journal:
        asyncio.run(put(journal))
    with Journal(tmp_path / "j", read_only=True) as journal:
        assert journal.outcome("一") is not None


def test_a_full_disk_is_told_and_loses_nothing_committed(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:
        journal.record([Entry("一", 1, State.ACCEPTED, reply())])
        assert journal._db is not None
        pages = journal._db.execute("PRAGMA page_count").fetchone()[0]
        journal._db.execute(f"PRAGMA max_page_count = {pages + 2}")
        with pytest.raises(IncompleteRunError, match="full"):
            journal.record(
                Entry(f"k{n}", 1, State.ACCEPTED, reply("长" * 3000)) for n in range(200)
            )
        assert journal.outcome("一") is not None
        assert journal.outcome("k0") is None, "a group is written whole or not at all"


@pytest.mark.parametrize("content", [b"not a database, but long enough to be read as one" * 40])
def test_a_file_that_is_no_journal_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "j"
    path.write_bytes(content)
    with pytest.raises(DataError, match="is no journal"):
        Journal(path)
    assert path.read_bytes() == content
    with pytest.raises(DataError, match="no such journal"):
        Journal(tmp_path / "missing", read_only=True)


def test_a_journal_of_a_newer_format_is_refused(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:
        journal.set_meta("format_version", "99")
    with pytest.raises(DataError, match="format 99"):
        Journal(tmp_path / "j")


def test_the_file_is_in_wal_mode_and_synced_in_full(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:
        assert isinstance(journal._db, sqlite3.Connection)
        assert journal._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert journal._db.execute("PRAGMA synchronous").fetchone() == (2,)


def test_a_journal_begun_before_hosts_were_kept_is_read_and_continued(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    with Journal(path) as journal:
        journal.record([Entry("一", 1, State.ACCEPTED, reply())])
    with sqlite3.connect(path) as db:
        db.execute("ALTER TABLE attempts DROP COLUMN host")
    with Journal(path, read_only=True) as journal:
        outcome = journal.outcome("一")
        assert outcome is not None and outcome.reply == reply()
    with Journal(path) as journal:
        journal.record([Entry("二", 1, State.ACCEPTED, replace(reply(), host="h"))])
        found = [one.reply.host for _, one in journal.outcomes(["一", "二"]) if one and one.reply]
    assert found == ["", "h"]


def test_a_first_try_counts_once_and_never_where_the_endpoint_failed(tmp_path: Path) -> None:
    refused = Entry("c", 1, State.FINAL, None, Fault(Reason.BAD_REQUEST))
    rows = [
        Entry("a", 1, State.UNCHECKED, Reply("x")),
        Entry("a", 1, State.ACCEPTED, Reply("x")),
        # a fault after which nothing more is asked repeats its row
        Entry("b", 1, State.FAULTY, Reply("x"), Fault(Reason.CUT)),
        Entry("b", 1, State.FINAL, Reply("x"), Fault(Reason.CUT)),
        refused,
        Entry("d", 1, State.ENDPOINT, None, Fault(Reason.ENDPOINT)),
    ]
    with Journal(tmp_path / "j.sqlite") as journal:
        assert journal.first_replies() == {}
        journal.record(rows)
        assert journal.first_replies()["first_try"] == {"n_asked": 3, "n_accepted": 1}
        assert len(journal.replies("b")) == 1 and journal.replies("c") == []


def test_items_of_another_pass_are_counted_apart_by_how_their_keys_begin(tmp_path: Path) -> None:
    rows = [
        Entry("a", 1, State.FAULTY, Reply("x"), Fault(Reason.CUT)),
        Entry("a", 2, State.ACCEPTED, Reply("x")),
        Entry("labels a", 1, State.FAULTY, Reply("x"), Fault(Reason.NOT_JSON)),
        Entry("labels a", 2, State.FAULTY, Reply("x"), Fault(Reason.NOT_JSON)),
        Entry("labels b", 1, State.ACCEPTED, Reply("x")),
    ]
    with Journal(tmp_path / "j.sqlite") as journal:
        journal.record(rows)
        assert journal.first_replies("labels ", is_prefixed=False) == {
            "first_try": {"n_asked": 1, "n_accepted": 0},
            "asked_again": {"cut": {"n_asked": 1, "n_accepted": 1}},
        }
        assert journal.first_replies("labels ") == {
            "first_try": {"n_asked": 2, "n_accepted": 1},
            "asked_again": {"not_json": {"n_asked": 1, "n_accepted": 0}},
        }


def test_what_was_asked_again_is_counted_by_its_fault_with_what_became_of_it(
    tmp_path: Path,
) -> None:
    def row(key: str, attempt: int, state: State, reason: Reason | None = None) -> Entry:
        return Entry(key, attempt, state, Reply("x"), Fault(reason) if reason else None)

    rows = [
        row("a", 1, State.FAULTY, Reason.CUT),
        row("a", 2, State.ACCEPTED),
        row("b", 1, State.FAULTY, Reason.CUT),
        row("b", 2, State.FAULTY, Reason.MISSING_STEP),
        row("b", 3, State.FAULTY, Reason.CUT),
        row("c", 1, State.ACCEPTED),
        row("d", 1, State.FAULTY, Reason.ECHO),
        Entry("d", 2, State.ENDPOINT, None, Fault(Reason.ENDPOINT)),
    ]
    with Journal(tmp_path / "j.sqlite") as journal:
        journal.record(rows)
        assert journal.first_replies()["first_try"] == {"n_asked": 4, "n_accepted": 1}
        assert [entry.fault and entry.fault.reason for entry in journal.replies("a")] == [
            Reason.CUT,
            None,
        ]
        assert journal.first_replies()["asked_again"] == {
            "cut": {"n_asked": 2, "n_accepted": 1},
            "missing_step": {"n_asked": 1, "n_accepted": 0},
        }
        told = {key: outcome.fault for key, outcome in journal.outcomes("abcd") if outcome}
    assert told["a"] is None and told["c"] is None
    assert told["b"] and told["b"].detail == "(attempts: cut, missing_step, cut)"


def test_a_fault_that_came_every_time_says_how_often(tmp_path: Path) -> None:
    fault = Fault(Reason.CUT, "the reply ended at the token limit (64 tokens)")
    rows = [Entry("a", n, State.FAULTY, Reply("x"), fault) for n in (1, 2, 3)]
    with Journal(tmp_path / "j.sqlite") as journal:
        journal.record(rows)
        outcome = journal.outcome("a")
    assert outcome and outcome.fault
    assert outcome.fault.detail == "the reply ended at the token limit (64 tokens) (all 3 attempts)"


def test_a_drive_that_does_not_tell_its_size_counts_as_one_with_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = SimpleNamespace(total=0, used=0, free=0)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: told)
    with Journal(tmp_path / "j") as journal:
        assert journal.has_room()
        told.total = 10**12
        journal._look_again_at = 0.0
        assert not journal.has_room()
