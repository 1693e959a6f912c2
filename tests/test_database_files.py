"""SQLite files: WAL on disks known to be local; elsewhere one process, by a lock that beats."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

import pytest

from cbtqa import database_files
from cbtqa.database_files import DatabaseFile, Holder, LockFile, file_system_of
from cbtqa.errors import ConfigError, DataError, IncompleteRunError
from cbtqa.files import write_text
from cbtqa.llm.chat import Reply
from cbtqa.llm.journal import Entry, Journal, State
from cbtqa.paths import keep_private
from cbtqa.ratings.answers import Change
from cbtqa.ratings.store import Event, Store
from cbtqa.records import Usage
from tests.support.drives import network_drive

MOUNTS = (
    "/dev/vda / ext4 rw 0 0\n"
    "host:/export /data/net nfs4 rw 0 0\n"
    "/dev/vdb /data/net/local xfs rw 0 0\n"
    "me@host: /data/with\\040space fuse.sshfs rw 0 0\n"
    "10.0.0.1@tcp:/scratch /scratch lustre rw 0 0\n"
    "systemd-1 /auto autofs rw 0 0\n"
    "nas:/vol /auto nfs rw 0 0\n"
)


@pytest.mark.parametrize(
    ("folder", "kind"),
    [
        ("/data/net/runs", "nfs4"),
        ("/data/netlike", "ext4"),
        ("/data/net/local/x", "xfs"),
        ("/data/with space/x", "fuse.sshfs"),
        ("/scratch/me", "lustre"),
        ("/auto/home", "nfs"),
    ],
)
def test_the_deepest_and_latest_mount_says_which_file_system_a_folder_is_on(
    folder: str, kind: str
) -> None:
    assert file_system_of(Path(folder), MOUNTS) == kind


def test_only_file_systems_known_to_be_local_are_used_with_shared_memory() -> None:
    local = database_files.LOCAL_FILE_SYSTEMS
    assert {"ext4", "xfs", "btrfs", "zfs", "tmpfs", "overlay", "apfs", "fixed"} <= local
    for kind in ("", "nfs", "nfs4", "lustre", "gpfs", "beegfs", "cifs", "smb3", "9p", "virtiofs"):
        assert kind not in local
    for kind in ("fuse", "fuse.sshfs", "ceph", "gfs2", "ocfs2", "wekafs", "never-heard-of"):
        assert kind not in local


@pytest.fixture
def one_drive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A real drive where one can be made, for what takes long."""
    monkeypatch.setattr(database_files, "DEAD_AFTER_S", 0.4)
    with ExitStack() as stack:
        try:
            yield stack.enter_context(network_drive(tmp_path))
        except pytest.skip.Exception:
            monkeypatch.setattr(database_files, "LOCAL_FILE_SYSTEMS", frozenset())
            yield tmp_path


@pytest.fixture(params=["fuse", "unknown"])
def drive(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """A folder where no memory is shared: a real one, and one of a kind that nobody knows."""
    monkeypatch.setattr(database_files, "DEAD_AFTER_S", 0.4)
    with ExitStack() as stack:
        if request.param == "fuse":
            yield stack.enter_context(network_drive(tmp_path))
        else:
            monkeypatch.setattr(database_files, "LOCAL_FILE_SYSTEMS", frozenset())
            yield tmp_path


def entry(key: str) -> Entry:
    return Entry(key, 1, State.ACCEPTED, Reply("好" * 700, "stop", None, None, Usage(), "m"))


def child(body: str, *arguments: object) -> subprocess.Popen[str]:
    """A process that runs `body` with the same idea of which drives are local."""
    local = sorted(database_files.LOCAL_FILE_SYSTEMS)
    head = f"from cbtqa import database_files as d\nd.LOCAL_FILE_SYSTEMS = frozenset({local})\n"
    command = [sys.executable, "-c", head + body, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def kill(process: subprocess.Popen[str]) -> str:
    """Ends a process with -9; returns what it still said."""
    process.send_signal(signal.SIGKILL)
    said, _ = process.communicate(timeout=60)
    return said


def test_a_journal_on_a_network_drive_shares_no_memory_and_is_read_back(drive: Path) -> None:
    path = drive / "run" / "journal.sqlite"
    with Journal(path, {"model": "m"}) as journal:
        journal.record(entry(f"k{n}") for n in range(1200))
        assert journal._db is not None
        assert journal._db.execute("PRAGMA journal_mode").fetchone() == ("truncate",)
        assert journal._db.execute("PRAGMA page_size").fetchone() == (8192,)
        assert set(journal.done_keys()) == {f"k{n}" for n in range(1200)}
        assert not [one for one in path.parent.iterdir() if one.name.endswith(("-shm", "-wal"))]
    assert {one.name for one in path.parent.iterdir()} <= {path.name, f"{path.name}-journal"}
    with Journal(path, read_only=True) as journal:
        assert journal.totals().n_replies == 1200
    with Journal(path, {"model": "m"}) as journal:
        assert journal.outcome("k7") is not None


HOLD = """
import sys, time
from pathlib import Path
from cbtqa.llm.journal import Journal
journal = Journal(Path(sys.argv[1]))
print("open", flush=True)
time.sleep(60)
"""


def test_on_a_network_drive_the_second_process_is_refused_and_a_dead_ones_place_is_taken(
    drive: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = drive / "journal.sqlite"
    holder = child(HOLD, path)
    assert holder.stdout is not None and holder.stdout.readline() == "open\n"
    for read_only in (False, True):
        with pytest.raises(ConfigError, match=f"process {holder.pid} on .*one at a time"):
            Journal(path, read_only=read_only)
    kill(holder)
    with Journal(path):
        assert f"process {holder.pid}" in caplog.text and "taken over" in caplog.text
        with pytest.raises(ConfigError, match=f"process {os.getpid()}"):
            Journal(path)
    assert not list(drive.glob(".*"))


WRITE = """
import os, sys
from pathlib import Path
from cbtqa.llm.chat import Reply
from cbtqa.llm.journal import Entry, Journal, State
with Journal(Path(sys.argv[1])) as journal:
    n = 0
    while True:
        journal.record([Entry(f"{sys.argv[2]}k{n + i}", 1, State.ACCEPTED, Reply("好" * 700))
                        for i in range(20)])
        n += 20
        os.write(1, b"%d\\n" % n)
"""


def test_what_was_acknowledged_on_a_network_drive_survives_kill_9(one_drive: Path) -> None:
    path, acknowledged = one_drive / "journal.sqlite", set()
    for turn in range(3):
        writer = child(WRITE, path, turn)
        assert writer.stdout is not None
        said = [writer.stdout.readline() for _ in range(2 + 3 * turn)]
        said += kill(writer).splitlines()
        n_said = int([line for line in said if line.strip()][-1])
        acknowledged |= {f"{turn}k{n}" for n in range(n_said)}
        with Journal(path) as journal:
            assert acknowledged <= set(journal.done_keys())
            assert journal._db is not None
            assert journal._db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_half_written_commit_is_taken_back_by_the_next_process(one_drive: Path) -> None:
    path = one_drive / "f.sqlite"
    body = """
import os, sys
from pathlib import Path
file = d.DatabaseFile(Path(sys.argv[1]))
db = file.connect()
db.execute("CREATE TABLE t (x)")
db.execute("INSERT INTO t VALUES ('kept')")
db.execute("PRAGMA cache_size = 1")
db.execute("PRAGMA cache_spill = 1")
db.execute("BEGIN")
db.executemany("INSERT INTO t VALUES (?)", [("lost" * 2000,) for _ in range(300)])
os.kill(os.getpid(), 9)
"""
    child(body, path).communicate(timeout=60)
    assert path.stat().st_size > 500_000, "pages of the open transaction reached the file"
    assert path.with_name("f.sqlite-journal").stat().st_size > 0
    file = DatabaseFile(path)
    with closing(file.connect()) as db:
        assert db.execute("SELECT x FROM t").fetchall() == [("kept",)]
    file.release()


def test_a_journal_from_a_local_disk_goes_on_where_memory_is_not_shared(
    tmp_path: Path, drive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = drive / "journal.sqlite"
    here = tmp_path / "local.sqlite"
    with monkeypatch.context() as changed:
        changed.setattr(database_files, "LOCAL_FILE_SYSTEMS", {file_system_of(tmp_path)})
        journal = Journal(here)
        journal.record([entry("一")])
        for ending in ("", "-wal"):  # as after a kill: the newest rows are in the log alone
            there.with_name(there.name + ending).write_bytes(
                here.with_name(here.name + ending).read_bytes()
            )
        journal.close()
    with Journal(there) as journal:
        assert journal.outcome("一") is not None
        journal.record([entry("二")])
    assert not there.with_name("journal.sqlite-wal").exists()


def elsewhere(path: Path) -> LockFile:
    """The lock file of a process on another machine, which `path` is open in."""
    lock = LockFile(path)
    there = replace(Holder.here(), host="node7", pid=1, machine="another", token="t")
    lock.path.write_bytes(there.content)
    return lock


def test_a_process_on_another_machine_counts_as_ended_when_its_lock_beats_no_more(
    drive: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = drive / "journal.sqlite"
    elsewhere(path)
    with Journal(path) as journal:
        journal.record([entry("一")])
    assert "process 1 on node7" in caplog.text
    assert "waiting" in caplog.text and "taken over" in caplog.text


def test_a_process_on_another_machine_is_left_alone_while_its_lock_beats(drive: Path) -> None:
    path, ends = drive / "journal.sqlite", threading.Event()
    lock = elsewhere(path)
    there = Holder.of(lock.path.read_bytes())
    assert there is not None

    def beat(number: int = 0) -> None:
        while not ends.wait(0.05):
            number += 1
            with lock.path.open("r+b") as stream:
                stream.write(replace(there, beat=number).content)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(ConfigError, match="in use by process 1 on node7"):
            Journal(path)
    finally:
        ends.set()
        thread.join()
    now = Holder.of(lock.path.read_bytes())
    assert now is not None and now.token == "t", "its lock is still there"


def test_a_lock_file_that_says_nothing_is_watched_before_it_is_removed(one_drive: Path) -> None:
    for content in (b"", b'{"host": 1}'):
        LockFile(one_drive / "j").path.write_bytes(content)
        with Journal(one_drive / "j"):
            pass


def test_the_lock_beats_while_it_is_held_and_is_gone_afterwards(tmp_path: Path) -> None:
    lock = LockFile(tmp_path / "j", beat_s=0.01)
    lock.take()
    seen: set[int] = set()
    while len(seen) < 3:
        holder = Holder.of(lock.path.read_bytes())
        assert holder is not None
        seen.add(holder.beat)
    lock.release()
    assert not lock.path.exists()


def test_who_stood_still_while_another_took_over_writes_nothing_more(drive: Path) -> None:
    path = drive / "journal.sqlite"
    with Journal(path) as slow:
        slow.record([entry("一")])
        elsewhere(path)  # another one has written its own lock
        with pytest.raises(IncompleteRunError, match="taken over by process 1 on node7"):
            slow.record([entry("二")])
        assert slow.outcome("二") is None
    holder = Holder.of(LockFile(path).path.read_bytes())
    assert holder is not None and holder.token == "t", "a lock that is not ours stays"


def test_of_many_that_take_over_at_once_one_gets_the_file(one_drive: Path) -> None:
    path = one_drive / "journal.sqlite"
    body = """
import sys, time
from pathlib import Path
from cbtqa.errors import ConfigError
d.DEAD_AFTER_S = 0.4
lock = d.LockFile(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
try:
    lock.take()
    time.sleep(1)
    lock.check()
    print("mine", flush=True)
except ConfigError:
    print("refused", flush=True)
"""
    elsewhere(path)
    local = sorted(database_files.LOCAL_FILE_SYSTEMS)
    head = f"from cbtqa import database_files as d\nd.LOCAL_FILE_SYSTEMS = frozenset({local})\n"
    command = [sys.executable, "-c", head + body, str(path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    takers = [subprocess.Popen(command, text=True, **pipes) for _ in range(4)]
    for taker in takers:
        assert taker.stdout is not None and taker.stdout.readline() == "ready\n"
    said = []
    for taker in takers:
        assert taker.stdin is not None
        taker.stdin.write("go\n")
        taker.stdin.flush()
    for taker in takers:
        said.append(taker.communicate(timeout=60)[0].strip())
    assert sorted(said) == ["mine", "refused", "refused", "refused"]


def test_a_file_in_use_as_a_local_disk_is_not_opened_through_the_network(drive: Path) -> None:
    path = drive / "journal.sqlite"
    path.with_name("journal.sqlite-shm").write_bytes(b"\0" * 32768)
    with pytest.raises(ConfigError, match="in use where this drive is a local disk"):
        Journal(path)
    path.with_name("journal.sqlite-shm").unlink()
    with Journal(path):
        pass


def test_a_file_in_use_through_the_network_is_not_opened_as_a_local_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_files, "DEAD_AFTER_S", 5.0)
    lock = LockFile(tmp_path / "ratings.sqlite", beat_s=0.02)
    lock.take()
    for opened in (Journal, lambda path: Store(path, "s")):
        with pytest.raises(ConfigError, match="in use by process"):
            opened(tmp_path / "ratings.sqlite")
    lock.release()


def test_what_lies_where_nothing_may_be_written_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "journal.sqlite"
    with Journal(path) as journal:
        journal.record([entry("一")])
        unclosed = path.with_name("journal.sqlite-wal").read_bytes()
    monkeypatch.setattr(os, "access", lambda *_: False)  # these tests may run as root
    for local in (database_files.LOCAL_FILE_SYSTEMS, frozenset[str]()):
        monkeypatch.setattr(database_files, "LOCAL_FILE_SYSTEMS", local)
        with Journal(path, read_only=True) as journal:
            assert journal.outcome("一") is not None
    path.with_name("journal.sqlite-wal").write_bytes(unclosed)
    with pytest.raises(DataError, match="not closed by the program that wrote it"):
        Journal(path, read_only=True)


def test_ratings_on_a_network_drive_are_kept_and_one_command_at_a_time_has_them(
    drive: Path,
) -> None:
    path = drive / "ratings.sqlite"
    with Store(path, "study") as store:
        assert store.drive in ("fuse", file_system_of(drive))
        store.add("R1", "web", [Event("a", Change("R1-001", "value:relevance", 2))])
        with pytest.raises(ConfigError, match="one at a time"):
            Store(path, "study")
        store.snapshot(drive / "copy.sqlite")
        for one in drive.iterdir():
            assert one.stat().st_mode & 0o077 == 0, one.name
    for kept in (path, drive / "copy.sqlite"):
        with Store(kept, "study") as store:
            assert store.answers()["R1-001"].values == {"relevance": 2}


def test_every_file_of_a_store_on_a_local_disk_is_for_its_owner_only(tmp_path: Path) -> None:
    with Store(tmp_path / "ratings.sqlite", "study") as store:
        store.add("R1", "web", [Event("a", Change("R1-001", "value:relevance", 2))])
        assert store.drive is None
        rights = {one.name: one.stat().st_mode & 0o777 for one in tmp_path.iterdir()}
    assert rights == dict.fromkeys((f"ratings.sqlite{e}" for e in ("", "-wal", "-shm")), 0o600)


def test_a_local_disk_keeps_wal_and_a_reader_beside_the_writer(tmp_path: Path) -> None:
    file = DatabaseFile(tmp_path / "f.sqlite")
    with closing(file.connect()) as db:
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        db.execute("CREATE TABLE t (x)")
        beside = DatabaseFile(tmp_path / "f.sqlite", read_only=True)
        with closing(beside.connect()) as reader:
            assert reader.execute("SELECT count(*) FROM t").fetchone() == (0,)
            with pytest.raises(sqlite3.OperationalError, match="readonly"):
                reader.execute("INSERT INTO t VALUES (1)")
    file.release()


def test_a_drive_that_lets_no_rights_be_set_takes_a_dataset_and_a_private_file_with_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with network_drive(tmp_path, "--chmod-deny") as drive:
        write_text(drive / "report.html", "好")
        keep_private(drive / "report.html")
        assert "others may be able to read" not in caplog.text, "it is private as it was made"
        folder = drive / "study"
        folder.mkdir(mode=0o755)
        keep_private(folder)
        assert f"others may be able to read {folder}" in caplog.text


def test_a_disk_that_takes_nothing_is_not_called_a_foreign_file(tmp_path: Path) -> None:
    body = """
import resource, signal, sys
from pathlib import Path
from cbtqa.errors import IncompleteRunError
from cbtqa.llm.journal import Journal
from cbtqa.ratings.store import Store
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # as on a full disk
for opened in (Journal, lambda path: Store(path, "s")):
    try:
        opened(Path(sys.argv[1]))
    except IncompleteRunError as error:
        print(error, error.hint)
"""
    said, _ = child(body, tmp_path / "j.sqlite").communicate(timeout=60)
    assert said.count("cannot be used") == said.count("is the disk full") == 2


def test_a_loop_of_links_is_on_no_drive_and_raises_nothing(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    assert file_system_of(tmp_path / "loop" / "out", "/dev/vda / ext4 rw 0 0") == "ext4"
