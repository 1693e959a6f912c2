"""The Batch API: the same journal, the same reasons, and no batch paid for twice."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from cbtqa.errors import EndpointError, IncompleteRunError
from cbtqa.llm import openai_batch
from cbtqa.llm.chat import ChatRequest, Fault, Reply
from cbtqa.llm.endpoint import Endpoint
from cbtqa.llm.journal import Journal
from cbtqa.llm.limits import Limits
from cbtqa.llm.openai_batch import run_openai_batch
from cbtqa.records import Reason
from cbtqa.secrets import MASK
from tests.support import endpoint as scripted
from tests.support.endpoint import ScriptedEndpoint, ok
from tests.support.hostile import HOSTILE, KEY, told_under, traces_in

FAST = Limits(waits=False, max_attempts=2)


class EchoTask:
    """Wants `好` in the reply."""

    def key(self, item: str) -> str:
        return item

    def request(self, item: str) -> ChatRequest:
        return ChatRequest([{"role": "user", "content": item}])

    def check(self, item: str, reply: Reply) -> Fault | None:
        return None if "好" in reply.text else Fault(Reason.NOT_JSON, "no 好")

    def ask_again(self, item: str, reply: Reply, fault: Fault) -> ChatRequest | None:
        return ChatRequest([{"role": "user", "content": f"{item} again"}])


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal(tmp_path / "journal.sqlite") as opened:
        yield opened


def ask(server: ScriptedEndpoint, journal: Journal, items: list[str]) -> list[object]:
    where = Endpoint.parse(server.url, "m", environ={})
    run_openai_batch(items, EchoTask(), where, journal, FAST)
    found = [outcome for _, outcome in journal.outcomes(items)]
    return [
        one and (one.fault.reason if one.fault else one.reply and one.reply.text) for one in found
    ]


def test_every_item_ends_as_a_reply_or_a_reason(journal: Journal) -> None:
    script = {
        "二 again": ok("好二"),
        "二": ok("坏"),
        "三": scripted.content_filter(),
        "四": scripted.refusal(),
        "一": ok("好一"),
    }
    with ScriptedEndpoint(script) as server:
        found = ask(server, journal, ["一", "二", "三", "四", "一"])
        assert found == ["好一", "好二", Reason.CONTENT_FILTER, Reason.REFUSAL, "好一"]
        assert len(server.batches) == 2, "one batch, and one for what was asked again"
        ask(server, journal, ["一", "二", "三", "四"])
        assert len(server.batches) == 2, "a second run sends nothing"


def test_large_work_is_cut_into_files(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_batch, "MOST_REQUESTS", 10)
    items = [f"词{number}" for number in range(25)]
    with ScriptedEndpoint(ok("好")) as server:
        assert ask(server, journal, items) == ["好"] * 25
        assert len(server.batches) == 3 and server.n_paid == 25


def test_a_batch_under_way_is_waited_for_and_not_sent_again(journal: Journal) -> None:
    with ScriptedEndpoint(ok("好")) as server:
        where = Endpoint.parse(server.url, "m", environ={})

        def die(status: str, n_done: int, n_total: int) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run_openai_batch(["一"], EchoTask(), where, journal, FAST, on_wait=die)
        assert ask(server, journal, ["一"]) == ["好"]
        assert len(server.batches) == 1


@pytest.mark.parametrize("was_created", [True, False])
def test_a_batch_whose_id_was_lost_is_found_by_its_token(
    journal: Journal, was_created: bool
) -> None:
    with ScriptedEndpoint(ok("好")) as server:
        where = Endpoint.parse(server.url, "m", environ={})

        def die(status: str, n_done: int, n_total: int) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run_openai_batch(["一"], EchoTask(), where, journal, FAST, on_wait=die)
        noted = json.loads(journal.meta(openai_batch.UNDER_WAY) or "")
        noted[0]["id"] = None
        journal.set_meta(openai_batch.UNDER_WAY, json.dumps(noted))
        if not was_created:
            server.batches.clear()
        assert ask(server, journal, ["一"]) == ["好"]
        assert len(server.batches) == 1


def test_a_format_that_is_refused_costs_a_round_and_no_item(journal: Journal) -> None:
    class Structured(EchoTask):
        def request(self, item: str) -> ChatRequest:
            return ChatRequest([{"role": "user", "content": item}], {"type": "object"})

    script = scripted.unless_format(["json_schema"], ok("好"))
    with ScriptedEndpoint(script) as server:
        where = Endpoint.parse(server.url, "m", environ={})
        run_openai_batch(["一", "二"], Structured(), where, journal, FAST)
        assert (len(server.batches), server.n_paid) == (2, 2)
    assert all(one and one.is_accepted for _, one in journal.outcomes(["一", "二"]))


def test_what_keeps_failing_ends_the_run_and_can_be_continued(journal: Journal) -> None:
    limits = Limits(waits=False, max_attempts=1, max_retries=1)
    with ScriptedEndpoint({"坏": scripted.server_error(), "善": ok("好")}) as server:
        where = Endpoint.parse(server.url, "m", environ={})
        with pytest.raises(IncompleteRunError):
            run_openai_batch(["坏", "善"], EchoTask(), where, journal, limits)
        assert len(server.batches) == 3 and server.n_paid == 1


def test_an_endpoint_without_the_api_is_told(journal: Journal) -> None:
    with ScriptedEndpoint(ok("好"), key="k") as server:
        where = Endpoint.parse(server.url.replace("/v1", "/v2"), "m", environ={})
        with pytest.raises(EndpointError, match="404"):
            run_openai_batch(["一"], EchoTask(), where, journal, FAST)


def test_a_batch_whose_results_repeat_the_key_brings_it_nowhere(tmp_path: Path) -> None:
    """Each line of a result file is one answer; those that are no HTTP at all have no line."""

    def script(seen: scripted.Seen) -> scripted.Answer:
        answer = HOSTILE[seen.user_text.removesuffix(" again")](seen, "好")
        return scripted.server_error() if answer.raw or type(answer.body) is bytes else answer

    with ScriptedEndpoint(script) as server:
        where = Endpoint.parse(server.url, "m", environ={"CBTQA_API_KEY": KEY})
        limits = Limits(waits=False, max_attempts=2, max_retries=0)
        with (
            Journal(tmp_path / "journal.sqlite") as journal,
            pytest.raises(IncompleteRunError) as ended,
        ):
            run_openai_batch(list(HOSTILE), EchoTask(), where, journal, limits)
    assert not traces_in(str(ended.value))
    told = told_under(tmp_path)
    assert MASK in told and not traces_in(told)


def test_a_server_without_a_batch_api_is_told_apart_from_a_fault_of_ours(journal: Journal) -> None:
    where = Endpoint.parse("http://127.0.0.1:9/v1", "m", environ={"CBTQA_API_KEY": KEY})
    with pytest.raises(EndpointError, match="connection broke: ConnectError"):
        run_openai_batch(["一"], EchoTask(), where, journal, FAST)
