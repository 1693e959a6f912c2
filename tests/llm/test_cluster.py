"""The engine on a Ray cluster: the same outcomes as on one machine, and no reply paid for twice."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cbtqa.errors import ConfigError, EndpointAuthError, MissingExtraError
from cbtqa.llm.batch import BatchStoppedError, BatchSummary, run_batch
from cbtqa.llm.chat import ChatRequest, Fault, Reply
from cbtqa.llm.cluster import Cluster, share_of_budget, shares
from cbtqa.llm.cost import Budget
from cbtqa.llm.endpoint import Endpoint
from cbtqa.llm.journal import Journal
from cbtqa.llm.limits import Limits
from cbtqa.records import Reason, Usage
from tests.support import endpoint as scripted
from tests.support.endpoint import Answer, ScriptedEndpoint, Seen, ok, slow

ROOT = Path(__file__).parents[2]
FAST = Limits(waits=False, max_attempts=2, in_flight=8)
needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="needs ray: cbtqa[cluster]"
)


class EchoTask:
    """Wants `好` in the reply."""

    def key(self, item: str) -> str:
        return item

    def request(self, item: str) -> ChatRequest:
        return ChatRequest([{"role": "user", "content": item}])

    def check(self, item: str, reply: Reply) -> Fault | None:
        if "碎" in item:
            raise ZeroDivisionError("the task broke")
        return None if "好" in reply.text else Fault(Reason.NOT_JSON, "no 好")

    def ask_again(self, item: str, reply: Reply, fault: Fault) -> ChatRequest | None:
        return ChatRequest([{"role": "user", "content": f"{item} again"}])


class TellingTask(EchoTask):
    """Leaves the numbers of the processes in which it checks."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def check(self, item: str, reply: Reply) -> Fault | None:
        (self._folder / f"{os.getpid()}.pid").touch()
        return super().check(item, reply)


class RowTask(EchoTask):
    """Asks about rows of a Dataset."""

    def key(self, item: Any) -> str:
        return f"词{item['id']}"

    def request(self, item: Any) -> ChatRequest:
        return super().request(self.key(item))


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """Ray on this machine, started once; `run_cluster` takes it as it finds it."""
    found = pytest.importorskip("ray", reason="needs ray: cbtqa[cluster]")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    path = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
    found.init(
        "local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="error",
        runtime_env={"env_vars": {"PYTHONPATH": path}},
    )
    yield found
    found.shutdown()


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal(tmp_path / "journal.sqlite") as opened:
        yield opened


def at(server: ScriptedEndpoint) -> Endpoint:
    return Endpoint.parse(server.url, "m", environ={})


def run_cluster(
    items: Any,
    task: Any,
    where: Endpoint,
    journal: Journal,
    limits: Limits,
    budget: Budget | None = None,
) -> BatchSummary:
    return run_batch(items, task, where, journal, limits, budget=budget, cluster=Cluster())


def found_in(journal: Journal, items: list[str]) -> list[Any]:
    return [
        outcome
        and (
            outcome.state,
            outcome.n_attempts,
            outcome.usage,
            outcome.fault and outcome.fault.reason,
        )
        for _, outcome in journal.outcomes(items)
    ]


def mixed(seen: Seen) -> Answer:
    """Every kind of fault, told by the last digit of the item."""
    answers = {
        "1": ok("坏"),
        "2": scripted.content_filter(),
        "3": scripted.refusal(),
        "4": scripted.null_content(),
        "5": scripted.cut_by_length("好好"),
        "6": scripted.server_error(),
    }
    if seen.user_text.endswith("again") and "1" in seen.user_text:
        return ok("好了")
    return answers.get(seen.user_text.removesuffix(" again")[-1], ok("好"))


# --- without Ray ---------------------------------------------------------------------------------


def test_shares_add_up_to_the_limits_and_none_is_empty() -> None:
    parts = shares(Limits(in_flight=10, rpm=100, tpm=None), 4)
    assert [part.in_flight for part in parts] == [2, 2, 3, 3]
    assert sum(part.rpm or 0 for part in parts) == 100 and parts[0].tpm is None
    assert len(shares(Limits(in_flight=64, rpm=3), 8)) == 3, "no share of nothing"


def test_shares_of_a_budget_never_exceed_what_is_left() -> None:
    spent = Usage(prompt_tokens=60, completion_tokens=40)
    budget, used_up = Budget(max_tokens=1000), Budget(max_tokens=50)
    budget.book(spent)
    used_up.book(spent)
    part = share_of_budget(budget, 4)
    assert part is not None and part.max_tokens == 100 + 225
    part = share_of_budget(used_up, 4)
    assert part is not None and part.is_used_up(Usage())
    assert share_of_budget(None, 4) is None


def test_a_missing_ray_is_told_with_its_extra(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    where = Endpoint.parse("http://127.0.0.1:9/v1", "m", environ={})
    with pytest.raises(MissingExtraError) as told:
        run_cluster(["一"], EchoTask(), where, journal, FAST)
    assert told.value.hint == "pip install 'cbtqa[cluster]'"


def test_an_address_where_nothing_listens_is_told_at_once(journal: Journal) -> None:
    pytest.importorskip("ray", reason="needs ray: cbtqa[cluster]")
    where = Endpoint.parse("http://127.0.0.1:9/v1", "m", environ={})
    with pytest.raises(ConfigError, match="no Ray cluster"):
        run_batch(["一"], EchoTask(), where, journal, FAST, cluster=Cluster("127.0.0.1:9"))


# --- with Ray ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_outcomes_and_summary_equal_those_of_one_machine(
    ray: Any, journal: Journal, tmp_path: Path
) -> None:
    items = [f"词{number}" for number in range(120)]
    limits = FAST.model_copy(update={"max_retries": 1})
    with ScriptedEndpoint(mixed) as server:
        there = run_cluster([*items, "词0"], EchoTask(), at(server), journal, limits)
    with ScriptedEndpoint(mixed) as server, Journal(tmp_path / "one.sqlite") as other:
        here = run_batch([*items, "词0"], EchoTask(), at(server), other, limits)
        assert found_in(journal, items) == found_in(other, items)
        assert journal.totals() == other.totals()
    # a repeated item is a duplicate or, when its first has ended, already held
    same = {"elapsed_s": 0.0, "rate_per_s": 0.0, "n_duplicates": 0, "n_skipped": 0}
    assert replace(there, **same) == replace(here, **same)
    assert there.n_duplicates + there.n_skipped == here.n_duplicates + here.n_skipped == 1


@pytest.mark.slow
def test_a_second_call_sends_only_what_is_left(ray: Any, journal: Journal) -> None:
    items = [f"词{number}" for number in range(60)]
    with ScriptedEndpoint(ok("好")) as server:
        run_cluster(items[:40], EchoTask(), at(server), journal, FAST)
        summary = run_cluster(items, EchoTask(), at(server), journal, FAST)
        assert (summary.n_skipped, summary.n_accepted, server.n_paid_again) == (40, 20, 0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning")  # Ray's own settings
def test_a_dataset_is_worked_off_row_by_row_within_the_limits(ray: Any, journal: Journal) -> None:
    import ray.data

    with ScriptedEndpoint(slow(ok("好"), 0.02)) as server:
        summary = run_cluster(
            ray.data.range(100, override_num_blocks=4), RowTask(), at(server), journal, FAST
        )
        assert (summary.n_accepted, server.n_paid) == (100, 100)
        assert 4 < server.peak_in_flight <= FAST.in_flight


@pytest.mark.slow
def test_what_a_dead_actor_had_is_asked_by_others_and_nothing_kept_is_paid_again(
    ray: Any, journal: Journal, tmp_path: Path
) -> None:
    items = [f"词{number}" for number in range(500)]
    kept: set[str] = set()

    with ScriptedEndpoint(slow(ok("好"), 0.05)) as server:

        def shoot() -> None:
            while server.n_paid < 60:
                time.sleep(0.005)
            with Journal(journal.path, read_only=True) as reader:
                kept.update(reader.done_keys())
            os.kill(int(next(tmp_path.glob("*.pid")).stem), signal.SIGKILL)

        killer = threading.Thread(target=shoot)
        killer.start()
        summary = run_cluster(items, TellingTask(tmp_path), at(server), journal, FAST)
        killer.join()
        asked_again = {body for body, times in server.paid.items() if times > 1}
        assert summary.n_accepted == 500 and len(kept) > 10
        assert len(list(tmp_path.glob("*.pid"))) == 3, "two, and one in the place of the dead"
        assert not [key for key in kept if any(f'"{key}"' in body for body in asked_again)]
        # at most what the dead actor had in flight or not yet told
        assert server.n_paid_again <= 2 * FAST.in_flight + 64


@pytest.mark.slow
def test_a_task_that_breaks_stops_all_actors_and_its_reply_is_kept(
    ray: Any, journal: Journal
) -> None:
    items = [f"词{number}" for number in range(30)] + ["碎"]
    with ScriptedEndpoint(ok("好")) as server, pytest.raises(ZeroDivisionError):
        run_cluster(items, EchoTask(), at(server), journal, FAST)
    last = journal.last_paid("碎")
    assert last is not None and last.reply is not None and last.reply.text == "好"


@pytest.mark.slow
def test_a_refused_key_ends_the_run_with_its_own_error(ray: Any, journal: Journal) -> None:
    with ScriptedEndpoint(ok("好"), key="k") as server, pytest.raises(EndpointAuthError):
        run_cluster(["一", "二"], EchoTask(), at(server), journal, FAST)


@pytest.mark.slow
def test_a_budget_is_kept_and_used_by_all_actors(ray: Any, journal: Journal) -> None:
    items = [f"词{number}" for number in range(200)]
    with ScriptedEndpoint(slow(ok("好"), 0.01)) as server:
        with pytest.raises(BatchStoppedError, match="budget") as stopped:
            run_cluster(items, EchoTask(), at(server), journal, FAST, Budget(max_tokens=6000))
        # 150 tokens a reply; each of two actors may stop a reply short
        assert 5600 <= 150 * server.n_paid <= 6000
        assert stopped.value.summary.n_accepted == server.n_paid


@pytest.mark.slow
def test_items_that_cannot_be_read_leave_no_reply_unkept(ray: Any, journal: Journal) -> None:
    def items() -> Iterator[str]:
        yield from (f"词{number}" for number in range(40))
        raise OSError("the file ends here")

    with ScriptedEndpoint(slow(ok("好"), 0.02)) as server:
        with pytest.raises(OSError, match="ends here"):
            run_cluster(items(), EchoTask(), at(server), journal, FAST)
        assert len(list(journal.done_keys())) == server.n_paid


@pytest.mark.slow
def test_ctrl_c_keeps_what_is_in_flight(ray: Any, journal: Journal) -> None:
    items = [f"词{number}" for number in range(400)]
    with ScriptedEndpoint(slow(ok("好"), 0.05)) as server:

        def press() -> None:
            while server.n_paid < 40:
                time.sleep(0.005)
            os.kill(os.getpid(), signal.SIGINT)

        finger = threading.Thread(target=press)
        finger.start()
        with pytest.raises(KeyboardInterrupt):
            run_cluster(items, EchoTask(), at(server), journal, FAST)
        finger.join()
        assert len(list(journal.done_keys())) == server.n_paid < 400


CLIENT = """
import sys
from pathlib import Path
from cbtqa.llm.batch import run_batch
from cbtqa.llm.cluster import Cluster
from cbtqa.llm.endpoint import Endpoint
from cbtqa.llm.journal import Journal
from cbtqa.llm.limits import Limits
from cbtqa.llm.chat import ChatRequest

class Echo:
    def key(self, item): return f"q{item}"
    def request(self, item): return ChatRequest([{"role": "user", "content": f"q{item}"}])
    def check(self, item, reply): return None
    def ask_again(self, item, reply, fault): return None

where = Endpoint.parse(sys.argv[2], "m", environ={})
with Journal(Path(sys.argv[1]), {"model": "m"}) as journal:
    run_batch(range(200), Echo(), where, journal, Limits(in_flight=16), cluster=Cluster())
"""


@pytest.mark.slow
@needs_ray
def test_a_killed_driver_continues_and_asks_nothing_kept_again(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    with ScriptedEndpoint(slow(ok("好"), 0.05)) as server:
        command = [sys.executable, "-c", CLIENT, str(path), server.url]
        with subprocess.Popen(command, cwd=ROOT) as child:
            while server.n_paid < 80 and child.poll() is None:
                time.sleep(0.002)
            child.send_signal(signal.SIGKILL)
        with Journal(path, read_only=True) as journal:
            kept = set(journal.done_keys())
        time.sleep(1)  # actors outlive their driver by a moment
        n_before = len(server.requests)
        subprocess.run(command, check=True, timeout=60, cwd=ROOT)
        asked = {seen.user_text for seen in server.requests[n_before:]}
        assert 20 < len(kept) < 200 and not kept & asked
    with Journal(path, read_only=True) as journal:
        assert len(list(journal.done_keys())) == 200
