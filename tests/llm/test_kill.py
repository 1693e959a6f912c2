"""A run killed with -9 at any moment continues, and pays for nothing that was acknowledged."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

from cbtqa.llm.journal import Journal
from tests.support.endpoint import Answer, ScriptedEndpoint, Seen, ok, slow

CLIENT = """
import sys
from pathlib import Path
from cbtqa.llm.batch import run_batch
from cbtqa.llm.chat import ChatRequest
from cbtqa.llm.endpoint import Endpoint
from cbtqa.llm.journal import Journal
from cbtqa.llm.limits import Limits

class Echo:
    def key(self, item): return f"q{item}"
    def request(self, item): return ChatRequest([{"role": "user", "content": f"q{item}"}])
    def check(self, item, reply): return None
    def ask_again(self, item, reply, fault): return None

where = Endpoint.parse(sys.argv[2], "m", environ={})
with Journal(Path(sys.argv[1]), {"model": "m"}) as journal:
    print(journal.in_flight.n_before, flush=True)
    run_batch(range(300), Echo(), where, journal, Limits(in_flight=16))
"""


def test_acknowledged_replies_are_never_paid_twice(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    keys = [f"q{number}" for number in range(300)]

    def script(seen: Seen) -> Answer:
        return slow(ok(f"好{seen.user_text}"), 0.02)

    with ScriptedEndpoint(script) as server:
        command = [sys.executable, "-c", CLIENT, str(path), server.url]
        kept: set[str] = set()
        n_told = n_lost = 0
        for n_wanted in (60, 200, None):
            n_before = len(server.requests)
            child = subprocess.Popen(command, stdout=subprocess.PIPE)
            assert child.stdout is not None
            with child.stdout:
                n_told += int(child.stdout.readline())
                while n_wanted and len(server.paid) < n_wanted and child.poll() is None:
                    time.sleep(0.001)
                if n_wanted:
                    child.send_signal(signal.SIGKILL)
                child.wait(60)
            asked = {seen.user_text for seen in server.requests[n_before:]}
            assert not kept & asked, "what the journal held was asked again"
            with Journal(path, read_only=True) as journal:
                kept = set(journal.done_keys())
            n_lost += len(asked - kept)
        assert kept == set(keys)
        # besides: what did not reach the server, and a group committed and not yet noted
        assert server.n_paid_again <= n_lost <= n_told <= n_lost + 2 * (16 + 64), "that was told"
        assert not list(tmp_path.glob(".*in-flight")), "nothing is on its way at the end"
    with Journal(path, {"model": "m"}) as journal:
        replies = [one.reply.text for _, one in journal.outcomes(keys) if one and one.reply]
    assert replies == [f"好{key}" for key in keys]
