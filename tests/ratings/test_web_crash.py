"""The form as a process: killed under load, it has lost nothing that it acknowledged."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from cbtqa.ratings.store import Store
from cbtqa.ratings.study import StudyFolder
from tests.ratings.conftest import MakeStudy

N_RATERS, N_ACKNOWLEDGED = 8, 200


def start(folder: StudyFolder, port: int, *more: str) -> tuple[subprocess.Popen[str], list[str]]:
    """The server as a user starts it, and what it said until it served."""
    words = ["serve", str(folder.path), "--port", str(port), *more]
    process = subprocess.Popen(
        [sys.executable, "-c", "from cbtqa.cli.rate import app; app()", *words],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "COLUMNS": "200"},
    )
    said = []
    assert process.stderr is not None
    for line in process.stderr:
        said.append(line)
        if "stop with Ctrl-C" in line:
            break
    for _ in range(200):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return process, said
        time.sleep(0.02)
    raise AssertionError("".join(said))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def enter(port: int, token: str, study: str) -> tuple[http.client.HTTPConnection, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", f"/r/{token}")
    reply = connection.getresponse()
    cookie = (reply.getheader("Set-Cookie") or "").partition(";")[0]
    reply.read()
    connection.request("GET", "/item/1", headers={"Cookie": cookie})
    page = connection.getresponse().read().decode()
    csrf = re.search(r'"csrf": ?"([^"]+)"', page)[1]  # type: ignore[index]
    assert cookie.startswith(f"cbtqa-{study}=")
    return connection, {"Cookie": cookie, "X-CSRF-Token": csrf}


def test_kill_9_under_load_of_eight_raters_loses_no_acknowledged_rating(
    make_study: MakeStudy,
) -> None:
    folder = make_study(n=8, raters=N_RATERS).folder
    port = free_port()
    process, said = start(folder, port)
    tokens = dict(re.findall(r"(R\d): http://\S+/r/(\S+)", "".join(said)))
    acknowledged: list[str] = []

    def rate(rater: str) -> None:
        connection, headers = enter(port, tokens[rater], folder.study.id)
        plan, number = folder.shown_to(rater), 0
        while True:
            number += 1
            change = {
                "key": f"{number}",
                "code": plan[number % len(plan)].code,
                "field": "value:relevance",
                "value": number % 3,
            }
            try:
                connection.request("POST", "/save", json.dumps({"changes": [change]}), headers)
                reply = connection.getresponse()
                if reply.status == 200 and json.loads(reply.read())["settled"] == [str(number)]:
                    acknowledged.append(f"web:{rater}:{number}")
            except (OSError, http.client.HTTPException, ValueError):
                connection.close()
                return

    threads = [threading.Thread(target=rate, args=(rater,)) for rater in folder.study.raters]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 30
    while len(acknowledged) < N_ACKNOWLEDGED and time.monotonic() < deadline:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    for thread in threads:
        thread.join(10)
    process.communicate(timeout=10)
    with Store(folder.store_path, folder.study.id) as store:
        kept = {event["key"] for event in store.events()}
        assert store._connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    lost = set(acknowledged) - kept
    assert len(acknowledged) >= N_ACKNOWLEDGED
    assert lost == set(), f"{len(lost)} of {len(acknowledged)} acknowledged ratings are lost"


def test_no_token_is_said_twice_or_logged_and_restarting_keeps_links(
    make_study: MakeStudy, tmp_path: Path
) -> None:
    folder = make_study(n=2, raters=2).folder
    port = free_port()
    process, said = start(folder, port)
    tokens = dict(re.findall(r"(R\d): http://127.0.0.1:\d+/r/(\S+)", "".join(said)))
    enter(port, tokens["R1"], folder.study.id)[0].close()
    stranger = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    for token, status in (("some-wrong-token", 403), (tokens["R1"], 200)):
        stranger.request("GET", f"/r/{token}")
        reply = stranger.getresponse()
        assert (reply.status, bool(reply.read())) == (status, True)
    stranger.close()
    process.send_signal(signal.SIGINT)
    rest = process.communicate(timeout=15)[1]
    for secret in (*tokens.values(), "some-wrong-token"):
        assert secret not in rest
        assert secret not in (folder.path / "log.jsonl").read_text("utf-8")

    process, said = start(folder, port, "--new-link", "R2")
    again = "".join(said)
    assert "R1:" not in again and "links given out earlier still work" in again
    enter(port, tokens["R1"], folder.study.id)[0].close()
    late = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    late.request("GET", f"/r/{tokens['R2']}")
    assert late.getresponse().status == 403
    late.close()
    process.kill()
    process.communicate(timeout=10)


def listening_on(port: int) -> set[str]:
    """Addresses, in the kernel's hexadecimal, on which this port is open."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {r[1].split(":")[0] for r in rows if r[1].endswith(f":{port:04X}") and r[3] == "0A"}


@pytest.mark.parametrize(("words", "address"), [((), "0100007F"), (("--lan",), "00000000")])
def test_the_server_listens_on_loopback_alone_unless_told_and_then_warns(
    make_study: MakeStudy, words: tuple[str, ...], address: str
) -> None:
    folder = make_study(n=2, raters=1).folder
    port = free_port()
    process, said = start(folder, port, *words)
    found = listening_on(port)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", "/", headers={"Host": f"elsewhere.example:{port}"})
    status = connection.getresponse().status
    connection.close()
    process.kill()
    process.communicate(timeout=10)
    assert (found, status) == ({address}, 400)
    assert ("unencrypted" in "".join(said)) == bool(words)


def test_the_store_opens_after_a_kill_without_any_repair(make_study: MakeStudy) -> None:
    folder = make_study(n=2, raters=1).folder
    with Store(folder.store_path, folder.study.id):
        pass
    connection = sqlite3.connect(folder.store_path)
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()
