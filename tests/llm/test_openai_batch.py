"""The Batch API: the same journal, the same reasons, and no batch paid for twice."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from cbtqa.errors import ConfigError, DataError, EndpointError, IncompleteRunError
from cbtqa.llm import openai_batch
from cbtqa.llm.batch import BatchStoppedError, BatchSummary, run_batch
from cbtqa.llm.chat import ChatRequest, Fault, Reply
from cbtqa.llm.cost import Budget, Price
from cbtqa.llm.endpoint import Endpoint
from cbtqa.llm.journal import Entry, Journal, State
from cbtqa.llm.limits import Limits
from cbtqa.llm.progress import Progress
from cbtqa.records import Reason
from cbtqa.secrets import MASK
from tests.support import endpoint as scripted
from tests.support.endpoint import Answer, ScriptedEndpoint, Seen, ok
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


def at(server: ScriptedEndpoint) -> Endpoint:
    return Endpoint.parse(server.url, "m", environ={}, transport="batch-api")


def ask(server: ScriptedEndpoint, journal: Journal, items: list[str]) -> list[object]:
    run_batch(items, EchoTask(), at(server), journal, FAST)
    return found_in(journal, items)


def found_in(journal: Journal, items: list[str]) -> list[object]:
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


def test_a_batch_that_is_refused_request_by_request_rejects_nothing(journal: Journal) -> None:
    items = ["一", "二", "三"]
    with (
        ScriptedEndpoint(scripted.failed(400, "thinking must be off")) as server,
        pytest.raises(
            BatchStoppedError, match=r"all 3 requests were refused.*thinking must be off"
        ),
    ):
        ask(server, journal, items)
    assert found_in(journal, items) == [None] * 3
    with ScriptedEndpoint(ok("好")) as server:
        assert ask(server, journal, items) == ["好"] * 3


def test_large_work_is_cut_into_files(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_batch, "MOST_REQUESTS", 10)
    items = [f"词{number}" for number in range(25)]
    with ScriptedEndpoint(ok("好")) as server:
        assert ask(server, journal, items) == ["好"] * 25
        assert len(server.batches) == 3 and server.n_paid == 25


def test_a_run_that_does_not_wait_names_its_batches_and_the_next_one_collects(
    journal: Journal,
) -> None:
    with ScriptedEndpoint(ok("好")) as server:
        with pytest.raises(BatchStoppedError, match="batch-2") as left:
            run_batch(["一"], EchoTask(), at(server), journal, FAST, wait=False)
        assert "same command" in str(left.value.hint)
        run_batch(["一"], EchoTask(), at(server), journal, FAST, wait=False)
        assert found_in(journal, ["一"]) == ["好"]
        assert len(server.batches) == 1


@pytest.mark.parametrize("was_created", [True, False])
def test_a_batch_whose_id_was_lost_is_found_by_its_token(
    journal: Journal, was_created: bool
) -> None:
    with ScriptedEndpoint(ok("好")) as server:
        with pytest.raises(BatchStoppedError):
            run_batch(["一"], EchoTask(), at(server), journal, FAST, wait=False)
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
        run_batch(["一", "二"], Structured(), at(server), journal, FAST)
        assert (len(server.batches), server.n_paid) == (2, 2)
    assert all(one and one.is_accepted for _, one in journal.outcomes(["一", "二"]))


def test_what_keeps_failing_is_turned_away_and_tried_again_by_the_next_run(
    journal: Journal,
) -> None:
    limits = Limits(waits=False, max_attempts=1, max_retries=1)
    with ScriptedEndpoint({"坏": scripted.server_error(), "善": ok("好")}) as server:
        summary = run_batch(["坏", "善"], EchoTask(), at(server), journal, limits)
        assert summary.rejected == {Reason.ENDPOINT: 1} and summary.n_repeats == 1
        assert len(server.batches) == 2 and server.n_paid == 1
    with ScriptedEndpoint(ok("好")) as server:
        assert ask(server, journal, ["坏", "善"]) == ["好", "好"]
        assert server.n_paid == 1


def test_an_expired_batch_keeps_what_is_done_and_sends_the_rest_again(journal: Journal) -> None:
    expired = {"code": "batch_expired", "message": "could not be executed in time"}

    def script(seen: Seen) -> Answer:
        return ok("好") if seen.user_text == "一" or seen.number > 2 else Answer(0, expired)

    with ScriptedEndpoint(script) as server:
        assert ask(server, journal, ["一", "二", "三"]) == ["好", "好", "好"]
        assert len(server.batches) == 2 and server.n_paid == 3


def test_a_batch_that_failed_as_a_whole_is_told_and_its_requests_are_sent_anew(
    journal: Journal,
) -> None:
    with ScriptedEndpoint(ok("好")) as server:
        server.batch_trouble = "the model does not take batches"
        with pytest.raises(IncompleteRunError, match="does not take batches"):
            ask(server, journal, ["一"])
        server.batch_trouble = None
        assert ask(server, journal, ["一"]) == ["好"]


def test_tokens_cost_half_and_a_budget_limits_what_is_handed_in(journal: Journal) -> None:
    price = Price(input=1e6, output=1e6)  # a token costs 1, here 0.5
    items = [f"词{number}" for number in range(20)]
    with ScriptedEndpoint(ok("好")) as server:
        summary = run_batch(["初"], EchoTask(), at(server), journal, FAST, price=price)
        assert summary.cost == 75
        budget = Budget(max_cost=500, price=price)
        with pytest.raises(BatchStoppedError, match="budget") as stopped:
            run_batch(items, EchoTask(), at(server), journal, FAST, budget=budget)
        assert 5 <= server.n_paid < 20
        assert stopped.value.summary.n_unfinished == 21 - server.n_paid


def test_a_reply_left_unchecked_by_another_transport_is_not_asked_again(journal: Journal) -> None:
    journal.record([Entry("一", 1, State.UNCHECKED, Reply("好"))])
    with ScriptedEndpoint(ok("坏")) as server:
        assert ask(server, journal, ["一"]) == ["好"]
        assert not server.batches


def test_batches_take_one_endpoint(journal: Journal) -> None:
    where = Endpoint.parse("http://127.0.0.1:9/v1", "m", environ={}, transport="batch-api")
    with pytest.raises(ConfigError, match="one endpoint"):
        run_batch(["一"], EchoTask(), [where, where], journal, FAST)


def test_ctrl_c_while_waiting_leaves_the_batch_to_the_next_run(journal: Journal) -> None:
    pressed: list[str] = []

    def press(progress: Progress) -> None:
        # once: the last report comes after the handlers, and would break the loop off
        if "in_progress" in progress.note and not pressed:
            pressed.append(progress.note)
            os.kill(os.getpid(), signal.SIGINT)

    with ScriptedEndpoint(ok("好")) as server:
        with pytest.raises(KeyboardInterrupt):
            run_batch(["一"], EchoTask(), at(server), journal, Limits(), on_progress=press)
        assert ask(server, journal, ["一"]) == ["好"]
        assert len(server.batches) == 1


# --- files for vllm run-batch --------------------------------------------------------------------


def answer_file(requests: Path, *, n_rows: int | None = None, text: str = "好") -> None:
    """Writes results as `vllm run-batch -o` does, a cut last row included."""
    rows = [json.loads(line) for line in requests.read_text("utf-8").splitlines()]
    results = []
    for row in rows[:n_rows]:
        assert (row["method"], row["url"]) == ("POST", "/v1/chat/completions")
        is_refused = "拒" in json.dumps(row["body"], ensure_ascii=False)
        said = {"error": {"message": "too long", "type": "BadRequestError", "code": 400}}
        body = None if is_refused else scripted.completion(text)
        response = {"status_code": 400 if is_refused else 200, "request_id": "r", "body": body}
        result = {"id": "vllm-1", "custom_id": row["custom_id"], "response": response}
        results.append(json.dumps(result | {"error": said if is_refused else None}))
    cut = "" if n_rows is None else '\n{"id": "vllm-2", "cust'
    output = requests.with_name(f"{requests.stem}-output.jsonl")
    output.write_text("\n".join(results) + cut, encoding="utf-8")


def test_requests_are_written_to_files_and_results_beside_them_read(
    journal: Journal, tmp_path: Path
) -> None:
    where = Endpoint.parse(f"batch-files:{tmp_path / 'out'}", "Qwen3-8B", environ={})
    assert where.is_local and where.host == "batch-files"
    items = ["一", "二", "拒"]

    def run() -> BatchSummary:
        return run_batch(items, EchoTask(), where, journal, FAST)

    with pytest.raises(BatchStoppedError, match=r"vllm run-batch .*requests-1-output\.jsonl"):
        run()
    first = tmp_path / "out/requests-1.jsonl"
    with pytest.raises(BatchStoppedError, match="missing for requests-1"):
        run()
    answer_file(first, n_rows=2)
    with pytest.raises(BatchStoppedError, match="missing for requests-1"):
        run()
    answer_file(first, text="坏")
    with pytest.raises(BatchStoppedError, match="missing for requests-2"):
        run()
    second = tmp_path / "out/requests-2.jsonl"
    assert "一 again" in second.read_text("utf-8") and "拒" not in second.read_text("utf-8")
    second.unlink()
    with pytest.raises(BatchStoppedError, match="missing for requests-2"):
        run()
    answer_file(second)
    summary = run()
    assert (summary.n_accepted, summary.n_skipped) == (2, 1)
    assert found_in(journal, items) == ["好", "好", Reason.BAD_REQUEST]


def test_a_results_file_that_is_none_is_told_with_its_line(
    journal: Journal, tmp_path: Path
) -> None:
    where = Endpoint.parse(f"batch-files:{tmp_path}", "m", environ={})
    with pytest.raises(BatchStoppedError):
        run_batch(["一"], EchoTask(), where, journal, FAST)
    (tmp_path / "requests-1-output.jsonl").write_text('{"text": "好"}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"requests-1-output\.jsonl:1"):
        run_batch(["一"], EchoTask(), where, journal, FAST)


def test_an_endpoint_without_the_api_is_told(journal: Journal) -> None:
    with ScriptedEndpoint(ok("好"), key="k") as server:
        url = server.url.replace("/v1", "/v2")
        where = Endpoint.parse(url, "m", environ={}, transport="batch-api")
        with pytest.raises(EndpointError, match="404"):
            run_batch(["一"], EchoTask(), where, journal, FAST)


def test_a_batch_whose_results_repeat_the_key_brings_it_nowhere(tmp_path: Path) -> None:
    """Each line of a result file is one answer; those that are no HTTP at all have no line."""

    def script(seen: scripted.Seen) -> scripted.Answer:
        answer = HOSTILE[seen.user_text.removesuffix(" again")](seen, "好")
        return scripted.server_error() if answer.raw or type(answer.body) is bytes else answer

    with ScriptedEndpoint(script) as server:
        where = Endpoint.parse(
            server.url, "m", environ={"CBTQA_API_KEY": KEY}, transport="batch-api"
        )
        limits = Limits(waits=False, max_attempts=2, max_retries=0)
        with Journal(tmp_path / "journal.sqlite") as journal:
            summary = run_batch(list(HOSTILE), EchoTask(), where, journal, limits)
    assert summary.n_rejected and not traces_in(repr(summary))
    told = told_under(tmp_path)
    assert MASK in told and not traces_in(told)


def test_a_server_without_a_batch_api_is_told_apart_from_a_fault_of_ours(journal: Journal) -> None:
    where = Endpoint.parse(
        "http://127.0.0.1:9/v1", "m", environ={"CBTQA_API_KEY": KEY}, transport="batch-api"
    )
    with pytest.raises(EndpointError, match=r"cannot connect to .*: nothing listens there"):
        run_batch(["一"], EchoTask(), where, journal, FAST)
