"""Many requests: every item ends as a reply or a reason, and nothing paid is paid again."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cbtqa.errors import ConfigError, EndpointAuthError, EndpointError, IncompleteRunError
from cbtqa.llm.batch import BatchStoppedError, BatchSummary, Line, Question, run_batch
from cbtqa.llm.chat import ChatRequest, Fault, Reply, Sampling
from cbtqa.llm.cost import Budget, Price
from cbtqa.llm.endpoint import Endpoint
from cbtqa.llm.journal import Journal, State
from cbtqa.llm.limits import REST_S, Limits
from cbtqa.llm.progress import Progress
from cbtqa.records import Reason
from tests.support import endpoint as scripted
from tests.support.endpoint import Answer, ScriptedEndpoint, Seen, ok

SCHEMA = {
    "type": "object",
    "properties": {"answer": {"type": "string"}},
    "required": ["answer"],
    "additionalProperties": False,
}


class EchoTask:
    """Asks for a word and wants `好` in the reply; asked again with the fault named."""

    def __init__(self, schema: dict[str, Any] | None = None) -> None:
        self.schema = schema
        self.checked: list[str] = []

    def key(self, item: str) -> str:
        return item

    def request(self, item: str) -> ChatRequest:
        return ChatRequest(
            [{"role": "user", "content": item}], self.schema, sampling=Sampling(seed=7)
        )

    def check(self, item: str, reply: Reply) -> Fault | None:
        self.checked.append(item)
        return None if "好" in reply.text else Fault(Reason.NOT_JSON, f"no 好 in {reply.text}")

    def ask_again(self, item: str, reply: Reply, fault: Fault) -> ChatRequest | None:
        said = [{"role": "assistant", "content": reply.text or "-"}]
        told = [{"role": "user", "content": f"fault: {fault.reason}"}]
        return ChatRequest([*self.request(item).messages, *said, *told], self.schema)


FAST = Limits(in_flight=8, waits=False, timeout_s=5)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal(tmp_path / "journal.sqlite", {"model": "m"}) as opened:
        yield opened


def run(
    server: ScriptedEndpoint,
    journal: Journal,
    items: list[str],
    limits: Limits = FAST,
    task: EchoTask | None = None,
    **more: Any,
) -> BatchSummary:
    where = Endpoint.parse(server.url, "m", environ={}, transport=more.pop("transport", "http"))
    return run_batch(items, task or EchoTask(), where, journal, limits, **more)


def reasons(journal: Journal, items: list[str]) -> list[Reason | None]:
    found = [outcome for _, outcome in journal.outcomes(items)]
    return [one.fault.reason if one and one.fault else None for one in found]


@pytest.mark.parametrize("transport", ["http", "sdk"])
def test_every_item_gets_its_own_reply_in_the_callers_order(
    journal: Journal, transport: str
) -> None:
    items = [f"词{number}" for number in range(40)]

    def script(seen: Seen) -> Answer:
        # early items are answered late, so that the order of completion is not the order asked
        return scripted.slow(ok(f"好{seen.user_text}"), 0.05 if seen.number < 8 else 0)

    with ScriptedEndpoint(script) as server:
        summary = run(server, journal, items, transport=transport)
    assert (summary.n_accepted, summary.n_rejected, summary.stopped) == (40, 0, None)
    replies = [outcome.reply.text for _, outcome in journal.outcomes(items) if outcome]
    assert replies == [f"好{item}" for item in items]


def test_a_second_run_sends_nothing(journal: Journal) -> None:
    with ScriptedEndpoint(ok("好")) as server:
        run(server, journal, ["一", "二"])
        summary = run(server, journal, ["一", "二"])
        assert (summary.n_skipped, summary.n_requests, len(server.requests)) == (2, 0, 2)


def test_a_faulty_reply_is_asked_again_with_its_fault_and_another_seed(journal: Journal) -> None:
    with ScriptedEndpoint([ok("坏"), ok("好")]) as server:
        run(server, journal, ["一"])
        first, second = server.requests
    assert "not_json" in second.last_text
    assert first.body["seed"] == 7
    outcome = journal.outcome("一")
    assert outcome is not None and outcome.is_accepted
    assert (outcome.n_attempts, outcome.usage.completion_tokens) == (2, 100)


def test_the_seed_grows_with_the_attempt() -> None:
    assert [Sampling(seed=7).for_attempt(n).seed for n in (1, 2, 3)] == [7, 8, 9]
    assert Sampling().for_attempt(2).seed is None


def test_attempts_are_bounded_and_the_last_fault_stays(journal: Journal) -> None:
    with ScriptedEndpoint(ok("坏")) as server:
        summary = run(server, journal, ["一"])
        assert len(server.requests) == FAST.max_attempts
        assert summary.rejected == {Reason.NOT_JSON: 1}
        run(server, journal, ["一"])
        assert len(server.requests) == FAST.max_attempts, "used-up attempts are not sent again"
    outcome = journal.outcome("一")
    assert outcome is not None and outcome.reply is not None and outcome.reply.text == "坏"


def test_a_resumed_item_goes_on_with_its_next_attempt(journal: Journal) -> None:
    with ScriptedEndpoint([ok("坏"), ok("好")]) as server:
        run(server, journal, ["一"], Limits(in_flight=8, waits=False, max_attempts=1))
        assert reasons(journal, ["一"]) == [Reason.NOT_JSON]
        run(server, journal, ["一"])
        assert "not_json" in server.requests[1].last_text
    assert reasons(journal, ["一"]) == [None]


@pytest.mark.parametrize(
    ("answer", "reason", "n_sent"),
    [
        (scripted.refusal(), Reason.REFUSAL, 3),
        (scripted.null_content(), Reason.EMPTY, 3),
        (ok("   "), Reason.EMPTY, 3),
        (ok("<think>我想想"), Reason.EMPTY, 3),
        (scripted.cut_by_length("好，但是"), Reason.CUT, 3),
        (ok("好", finish_reason="content_filter"), Reason.CONTENT_FILTER, 1),
        (scripted.content_filter(), Reason.CONTENT_FILTER, 1),
        (scripted.failed(400, "too many tokens"), Reason.BAD_REQUEST, 1),
        (scripted.failed(422, "what is this"), Reason.BAD_REQUEST, 1),
    ],
)
@pytest.mark.parametrize("transport", ["http", "sdk"])
def test_what_is_no_answer_becomes_a_reason_and_never_an_answer(
    journal: Journal, answer: Answer, reason: Reason, n_sent: int, transport: str
) -> None:
    with ScriptedEndpoint({"坏": answer, "善": ok("好")}) as server:
        summary = run(server, journal, ["坏", "善"], transport=transport)
        n_asked = sum(seen.user_text == "坏" for seen in server.requests)
        assert n_asked == n_sent
        again = run(server, journal, ["坏", "善"], transport=transport)
        assert again.n_skipped == 2, "what failed for good is not sent again"
    assert summary.rejected == {reason: 1}
    assert reasons(journal, ["坏", "善"]) == [reason, None]


@pytest.mark.parametrize(
    "failure",
    [
        scripted.rate_limited(),
        scripted.rate_limited(0.01),
        scripted.rate_limited("Wed, 21 Oct 2015 07:28:00 GMT"),
        scripted.server_error(),
        scripted.unavailable(),
        scripted.cut_connection(),
        scripted.cut_body(),
        scripted.not_the_protocol(),
        Answer(200, {"error": {"message": "upstream", "code": 502}}),
        scripted.slow(ok("好"), 0.6),
    ],
)
@pytest.mark.parametrize("transport", ["http", "sdk"])
def test_a_passing_failure_is_repeated_and_costs_no_attempt(
    journal: Journal, failure: Answer, transport: str
) -> None:
    limits = Limits(in_flight=8, waits=False, timeout_s=0.3, max_attempts=1)
    with ScriptedEndpoint([failure, failure, ok("好")]) as server:
        summary = run(server, journal, ["一"], limits, transport=transport)
    assert (summary.n_accepted, summary.n_requests, summary.n_repeats) == (1, 3, 2)


def test_an_item_that_keeps_failing_is_turned_away_but_tried_again_next_time(
    journal: Journal,
) -> None:
    script = {"坏": scripted.server_error(), "善": ok("好")}
    with ScriptedEndpoint(script) as server:
        summary = run(server, journal, ["坏", "善"])
    assert summary.rejected == {Reason.ENDPOINT: 1}
    assert summary.n_requests == FAST.max_retries + 2
    outcome = journal.outcome("坏")
    assert outcome is not None and outcome.state is State.ENDPOINT and outcome.n_attempts == 0
    with ScriptedEndpoint(ok("好")) as server:
        assert run(server, journal, ["坏", "善"]).n_accepted == 1
    assert reasons(journal, ["坏", "善"]) == [None, None]


def test_an_endpoint_failure_after_a_paid_attempt_keeps_that_attempt(journal: Journal) -> None:
    with ScriptedEndpoint([ok("坏"), scripted.server_error()]) as server:
        run(server, journal, ["一"])
    assert reasons(journal, ["一"]) == [Reason.ENDPOINT]
    with ScriptedEndpoint(ok("好")) as server:
        run(server, journal, ["一"])
        assert "not_json" in server.requests[0].last_text, "it goes on with the second attempt"
    outcome = journal.outcome("一")
    assert outcome is not None and outcome.n_attempts == 2


def test_an_endpoint_that_is_gone_stops_the_run_and_the_next_run_finishes(
    journal: Journal,
) -> None:
    items = [f"词{number}" for number in range(50)]
    script = [*[ok("好")] * 10, scripted.server_error()]
    with ScriptedEndpoint(script) as server, pytest.raises(BatchStoppedError) as stopped:
        run(server, journal, items)
    assert "gone" in str(stopped.value) and isinstance(stopped.value, IncompleteRunError)
    assert stopped.value.summary.n_accepted == 10
    assert Reason.ENDPOINT not in stopped.value.summary.rejected
    with ScriptedEndpoint(ok("好")) as server:
        assert run(server, journal, items).n_accepted == 40
        assert len(server.requests) == 40


def test_a_long_wait_asked_for_stops_the_run(journal: Journal) -> None:
    with (
        ScriptedEndpoint(scripted.rate_limited(7200)) as server,
        pytest.raises(BatchStoppedError, match="7200"),
    ):
        run(server, journal, ["一"])


@pytest.mark.parametrize("transport", ["http", "sdk"])
def test_a_refused_key_ends_the_run_and_is_not_shown(journal: Journal, transport: str) -> None:
    with ScriptedEndpoint(ok("好"), key="right") as server:
        where = Endpoint.parse(
            server.url, "m", environ={"CBTQA_API_KEY": "wr0ng"}, transport=transport
        )
        with pytest.raises(EndpointAuthError) as refused:
            run_batch(["一"], EchoTask(), where, journal, FAST)
        assert "wr0ng" not in str(refused.value)
        right = Endpoint.parse(
            server.url, "m", environ={"CBTQA_API_KEY": "right"}, transport=transport
        )
        assert run_batch(["一"], EchoTask(), right, journal, FAST).n_accepted == 1


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (scripted.failed(404, "model m does not exist"), "does not exist"),
        (scripted.out_of_quota(), "quota"),
        (scripted.failed(402, "Insufficient Balance"), "Balance"),
        (Answer(307, {}, {"Location": "https://elsewhere.example/v1"}), "elsewhere.example"),
    ],
)
@pytest.mark.parametrize("transport", ["http", "sdk"])
def test_what_no_wait_helps_against_ends_the_run_at_once(
    journal: Journal, answer: Answer, words: str, transport: str
) -> None:
    with ScriptedEndpoint(answer) as server, pytest.raises(EndpointError, match=words):
        run(server, journal, ["一"], transport=transport)
    assert len(server.requests) == 1
    assert journal.outcome("一") is None, "it is not the item's fault"


@pytest.mark.parametrize("n_items", [1, 3, 300])
@pytest.mark.parametrize("schema", [None, SCHEMA])
def test_first_requests_that_are_all_refused_stop_the_run_and_reject_nothing(
    journal: Journal, n_items: int, schema: dict[str, Any] | None
) -> None:
    items = [f"词{number}" for number in range(n_items)]

    def script(seen: Seen) -> Answer:
        return scripted.failed(400, f"thinking must be off (request {seen.number})")

    limits = Limits(in_flight=256)
    with ScriptedEndpoint(script) as server:
        with pytest.raises(BatchStoppedError, match="thinking must be off") as stopped:
            run(server, journal, items, limits, EchoTask(schema))
        assert len(server.requests) <= 3 * 16
    assert stopped.value.exit_code == 6 and "--extra" in str(stopped.value.hint)
    assert journal.outcome(items[0]) is None and stopped.value.summary.n_rejected == 0
    with ScriptedEndpoint(ok("好")) as server:
        assert run(server, journal, items, limits, EchoTask(schema)).n_accepted == n_items


def test_a_refusal_before_the_first_answer_waits_until_another_question_is_answered(
    journal: Journal,
) -> None:
    script = {"坏": scripted.failed(400, "too long"), "善": scripted.slow(ok("好"), 0.2)}
    with ScriptedEndpoint(script) as server:
        summary = run(server, journal, ["坏一", "坏二", "善"])
    assert (summary.n_accepted, summary.rejected) == (1, {Reason.BAD_REQUEST: 2})


def test_a_server_that_begins_to_refuse_everything_later_stops_the_run(journal: Journal) -> None:
    items = [f"词{number}" for number in range(300)]
    with ScriptedEndpoint([*[ok("好")] * 10, scripted.failed(400, "context is 512")]) as server:
        with pytest.raises(BatchStoppedError, match="context is 512") as stopped:
            run(server, journal, items)
        assert len(server.requests) < 130
    assert "--retry rejected=bad_request" in str(stopped.value.hint)
    with ScriptedEndpoint(ok("好")) as server:
        again = FAST.model_copy(update={"retry": ("rejected=bad_request",)})
        assert run(server, journal, items, again).n_accepted == 290


def test_what_was_rejected_is_asked_again_only_when_wanted_and_with_fresh_attempts(
    journal: Journal,
) -> None:
    items = ["坏", "拒", "善"]
    script = {"坏": ok("坏"), "拒": scripted.failed(400, "no"), "善": ok("好")}
    with ScriptedEndpoint(script) as server:
        run(server, journal, items)
    assert reasons(journal, items) == [Reason.NOT_JSON, Reason.BAD_REQUEST, None]
    with ScriptedEndpoint(script | {"拒": ok("好")}) as server:
        one = FAST.model_copy(update={"retry": ("rejected=bad_request",)})
        assert run(server, journal, items, one).n_requests == 1
        assert reasons(journal, items) == [Reason.NOT_JSON, None, None]
    with ScriptedEndpoint([ok("坏"), ok("坏"), ok("好")]) as server:
        every = FAST.model_copy(update={"retry": ("rejected",)})
        assert run(server, journal, [*items, *items], every).n_accepted == 1
        first = server.requests[0]
        assert (first.last_text, first.body["seed"]) == ("坏", 7 + 3)
    assert reasons(journal, items) == [None, None, None]
    outcome = journal.outcome("坏")
    assert outcome is not None and outcome.n_attempts == 6, "every paid reply counts"


def test_a_retry_is_tried_once_in_a_run_however_often_the_item_comes(journal: Journal) -> None:
    with ScriptedEndpoint(ok("坏")) as server:
        run(server, journal, ["一"], Limits(in_flight=8, waits=False, max_attempts=1))
        retry = Limits(in_flight=8, waits=False, max_attempts=1, retry=("rejected",))
        assert run(server, journal, ["一"] * 200, retry).n_requests == 1


@pytest.mark.parametrize("word", ["everything", "rejected=nonsense", "accepted"])
def test_a_retry_of_what_cannot_be_is_refused(word: str) -> None:
    with pytest.raises(ValueError, match="rejected=REASON"):
        Limits(retry=(word,))


def test_a_slow_server_is_given_the_time_that_its_answers_take(journal: Journal) -> None:
    """One place, 0.2 s an answer, and a limit of 0.5 s: the later ones wait for their turn."""
    turn = threading.Lock()
    due = 0.0

    def script(seen: Seen) -> Answer:
        nonlocal due
        with turn:
            due = max(due, seen.at_s) + 0.2
            return scripted.slow(ok("好"), due - seen.at_s)

    items = [f"词{number}" for number in range(12)]
    with ScriptedEndpoint(script) as server:
        summary = run(server, journal, items, Limits(in_flight=12, timeout_s=0.5))
        assert (summary.n_accepted, len(server.requests)) == (12, 12)


def test_a_server_that_loads_its_model_is_waited_for(journal: Journal) -> None:
    loading = scripted.failed(503, "Loading model", code="unavailable_error")
    told: list[Progress] = []

    def script(seen: Seen) -> Answer:
        is_loading = seen.at_s - server.requests[0].at_s < 2
        return loading if is_loading else ok("好")

    with ScriptedEndpoint(script) as server:
        limits = Limits(in_flight=64, gone_after_s=0)
        items = [f"词{number}" for number in range(20)]
        summary = run(server, journal, items, limits, on_progress=told.append)
    assert summary.n_accepted == 20
    assert any("Loading model" in one.note for one in told) and not told[-1].note


@pytest.mark.parametrize("schema", [None, SCHEMA])
def test_a_server_that_fails_at_everything_gets_few_requests_and_its_words_are_shown(
    journal: Journal, schema: dict[str, Any] | None
) -> None:
    items = [f"词{number}" for number in range(300)]
    with ScriptedEndpoint(scripted.failed(500, "CUDA out of memory")) as server:
        with pytest.raises(EndpointError, match="CUDA out of memory") as failed:
            limits = Limits(in_flight=256, gone_after_s=3)
            run(server, journal, items, limits, EchoTask(schema))
        assert len(server.requests) < 100, "three formats of a first few"
    assert "is the server running" not in str(failed.value.hint)


@pytest.mark.parametrize(
    ("refused", "kind"),
    [([], "json_schema"), (["json_schema"], "json_object"), (["json_schema", "json_object"], None)],
)
def test_the_response_format_steps_down_and_is_remembered(
    journal: Journal, refused: list[str], kind: str | None
) -> None:
    items = [f"词{number}" for number in range(60)]
    with ScriptedEndpoint(scripted.unless_format(refused, ok("好"))) as server:
        summary = run(server, journal, items, task=EchoTask(SCHEMA))
        assert summary.n_accepted == 60
        assert server.n_paid == 60, "a refused format is not paid for"
        n_refused = len(server.requests) - 60
        assert n_refused <= len(refused) * FAST.in_flight, "later requests know the rung"
        run(server, journal, ["新"], task=EchoTask(SCHEMA))
        last = server.requests[-1].body.get("response_format", {})
        assert last.get("type") == kind
        assert len(server.requests) == n_refused + 61, "a resumed run begins on the known rung"


def test_a_request_refused_for_its_own_sake_does_not_move_the_ladder(journal: Journal) -> None:
    def script(seen: Seen) -> Answer:
        return scripted.failed(400, "no") if seen.user_text == "坏" else ok("好")

    with ScriptedEndpoint(script) as server:
        run(server, journal, ["坏", "善", "美"], Limits(in_flight=1), task=EchoTask(SCHEMA))
        kinds = [
            seen.body.get("response_format", {}).get("type")
            for seen in server.requests
            if seen.user_text != "坏"
        ]
    assert kinds == ["json_schema", "json_schema"]
    assert reasons(journal, ["坏", "善", "美"]) == [Reason.BAD_REQUEST, None, None]


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (404, "No endpoints found that can handle the requested parameters"),
        (500, "failed to parse grammar"),
        (500, "Internal Server Error"),
        (501, "not implemented"),
        (503, "guided_decoding is not compiled in"),
        (422, "extra fields"),
    ],
)
def test_a_format_that_breaks_the_server_is_stepped_down_whatever_the_status(
    journal: Journal, status: int, words: str
) -> None:
    def script(seen: Seen) -> Answer:
        is_plain = "response_format" not in seen.body
        return ok("好") if is_plain else scripted.failed(status, words)

    items = [f"词{number}" for number in range(30)]
    with ScriptedEndpoint(script) as server:
        assert run(server, journal, items, task=EchoTask(SCHEMA)).n_accepted == 30
        n_refused = len(server.requests) - 30
        assert n_refused <= 2 * (FAST.in_flight + 1), "later requests know the rung"
        run(server, journal, ["新"], task=EchoTask(SCHEMA))
        assert len(server.requests) == n_refused + 31, "a resumed run knows it too"


def test_failures_by_chance_do_not_move_the_ladder(journal: Journal) -> None:
    def script(seen: Seen) -> Answer:
        return scripted.server_error() if seen.number in (0, 9, 19) else ok("好")

    items = [f"词{number}" for number in range(30)]
    with ScriptedEndpoint(script) as server:
        assert run(server, journal, items, Limits(in_flight=1, waits=False), EchoTask(SCHEMA))
        kinds = [seen.body.get("response_format", {}).get("type") for seen in server.requests]
    assert kinds.count("json_schema") == len(kinds) - 1, "one request was tried a rung lower"


def test_where_plain_text_fails_too_it_was_not_the_format(journal: Journal) -> None:
    def script(seen: Seen) -> Answer:
        return scripted.server_error() if seen.number < 4 else ok("好")

    with ScriptedEndpoint(script) as server:
        assert run(server, journal, ["一"], task=EchoTask(SCHEMA)).n_accepted == 1
        kinds = [seen.body.get("response_format", {}).get("type") for seen in server.requests]
    assert kinds == ["json_schema", "json_object", None, "json_schema", "json_schema"]
    missing = scripted.failed(404, "no such model")
    with ScriptedEndpoint(missing) as server, pytest.raises(EndpointError, match="no such model"):
        run(server, journal, ["二"], task=EchoTask(SCHEMA))
    assert len(server.requests) == 3, "one try on each rung"


def test_a_budget_in_tokens_stops_before_it_is_passed_and_counts_earlier_runs(
    journal: Journal,
) -> None:
    items = [f"词{number:02}" for number in range(100)]  # alike in length
    budget = Budget(max_tokens=3000)  # a reply costs 150
    with ScriptedEndpoint(scripted.slow(ok("好"), 0.01)) as server:
        with pytest.raises(BatchStoppedError, match="budget") as stopped:
            run(server, journal, items, budget=budget)
        assert stopped.value.summary.n_accepted == server.n_paid == 20
        with pytest.raises(BatchStoppedError, match="budget"):
            run(server, journal, items, budget=budget)
        assert server.n_paid == 20, "what an earlier run spent counts"
        assert run(server, journal, items).n_accepted == 80


def test_a_budget_in_money_stops_too(journal: Journal) -> None:
    price = Price(input=1e6, output=1e6, currency="CNY")  # a token costs 1
    budget = Budget(max_cost=1000, price=price)
    items = [f"词{number}" for number in range(50)]
    with ScriptedEndpoint(ok("好")) as server, pytest.raises(BatchStoppedError) as stopped:
        run(server, journal, items, Limits(in_flight=1, waits=False), budget=budget)
    cost = stopped.value.summary.cost
    assert cost is not None and 500 <= cost <= 1000


def test_a_budget_holds_where_the_server_counts_no_tokens(journal: Journal) -> None:
    silent = ok("好" * 100, prompt_tokens=0, completion_tokens=0)
    items = [f"词{number}" for number in range(100)]
    with ScriptedEndpoint(silent) as server, pytest.raises(BatchStoppedError, match="budget"):
        run(server, journal, items, budget=Budget(max_tokens=2000))
    assert 5 <= server.n_paid <= 33


def test_a_budget_in_money_without_a_price_is_refused() -> None:
    with pytest.raises(ConfigError, match="price"):
        Budget(max_cost=5)


def test_a_key_in_work_or_done_is_not_sent_twice(journal: Journal) -> None:
    with ScriptedEndpoint(scripted.slow(ok("好"), 0.02)) as server:
        summary = run(server, journal, ["一", "二", "一", "二", "一"] * 60)
        assert len(server.requests) == 2
    assert summary.n_accepted == 2 and summary.n_duplicates + summary.n_skipped == 298


def test_items_are_drawn_as_places_come_free(journal: Journal) -> None:
    drawn = 0

    def items() -> Iterator[str]:
        nonlocal drawn
        for number in range(1500):
            drawn += 1
            yield f"词{number}"

    ahead: list[int] = []

    def script(seen: Seen) -> Answer:
        ahead.append(drawn - seen.number)
        return ok("好")

    with ScriptedEndpoint(script) as server:
        where = Endpoint.parse(server.url, "m", environ={})
        summary = run_batch(items(), EchoTask(), where, journal, Limits(in_flight=4))
    assert summary.n_accepted == 1500
    assert max(ahead) < 300


def test_a_mistake_in_the_task_loses_no_paid_reply(journal: Journal) -> None:
    class Broken(EchoTask):
        def check(self, item: str, reply: Reply) -> Fault | None:
            raise ZeroDivisionError

    with ScriptedEndpoint(ok("好")) as server:
        with pytest.raises(ZeroDivisionError):
            run(server, journal, ["一"], task=Broken())
        assert journal.outcome("一") is None
        assert run(server, journal, ["一"]).n_accepted == 1
        assert len(server.requests) == 1, "the reply is judged again, not bought again"


def test_an_input_that_breaks_off_keeps_what_was_sent(journal: Journal) -> None:
    def items() -> Iterator[str]:
        yield from ("一", "二")
        raise ConfigError("the input broke off")

    with ScriptedEndpoint(scripted.slow(ok("好"), 0.05)) as server:
        where = Endpoint.parse(server.url, "m", environ={})
        with pytest.raises(ConfigError):
            run_batch(items(), EchoTask(), where, journal, FAST)
    assert len(list(journal.done_keys())) in (0, 2)


def test_progress_tells_counts_cost_and_time_left(journal: Journal) -> None:
    told: list[Progress] = []
    items = [f"词{number}" for number in range(60)]
    with ScriptedEndpoint(scripted.slow(ok("好"), 0.1)) as server:
        run(
            server,
            journal,
            items,
            Limits(in_flight=8),
            price=Price(input=2, output=8, currency="CNY"),
            n_total=60,
            on_progress=told.append,
        )
    middle, last = told[0], told[-1]
    assert 0 < middle.in_flight <= 8 and middle.eta_s is not None and middle.oldest_s < 1
    assert (last.n_done, last.in_flight, last.currency) == (60, 0, "CNY")
    assert last.cost == pytest.approx(60 * (100 * 2 + 50 * 8) / 1e6)


def test_it_runs_inside_a_running_loop_as_in_a_notebook(journal: Journal) -> None:
    async def cell(server: ScriptedEndpoint) -> BatchSummary:
        return run(server, journal, ["一"])

    with ScriptedEndpoint(ok("好")) as server:
        assert asyncio.run(cell(server)).n_accepted == 1


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, BatchStoppedError)]
)
def test_an_interrupt_lets_requests_in_flight_end_and_keeps_them(
    journal: Journal, number: int, error: type[BaseException]
) -> None:
    items = [f"词{number}" for number in range(100)]
    with ScriptedEndpoint(scripted.slow(ok("好"), 0.4)) as server:

        def interrupt() -> None:
            while len(server.requests) < 8:
                time.sleep(0.01)
            os.kill(os.getpid(), number)

        before = signal.getsignal(number)
        threading.Thread(target=interrupt).start()
        with pytest.raises(error):
            run(server, journal, items)
        assert signal.getsignal(number) is before
        assert len(server.requests) == 8
        assert len(list(journal.done_keys())) == 8


def test_more_than_the_servers_limit_is_learned_from_its_429s(journal: Journal) -> None:
    most = 0

    def script(seen: Seen) -> Answer:
        nonlocal most
        busy = server._in_flight
        most = max(most, busy)
        return scripted.slow(ok("好"), 0.02) if busy <= 10 else scripted.rate_limited(0.05)

    items = [f"词{number}" for number in range(300)]
    with ScriptedEndpoint(script) as server:
        summary = run(server, journal, items, Limits(in_flight=40))
        assert summary.n_accepted == 300
        assert summary.n_repeats < 300, "it learns instead of hammering"


def test_nothing_is_sent_that_a_full_disk_could_not_keep(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    n_free = [10**9] * 20 + [10**6]

    def disk_usage(folder: Path) -> Any:
        left = n_free.pop(0) if len(n_free) > 1 else n_free[0]
        return shutil._ntuple_diskusage(10**12, 0, left)

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    monkeypatch.setattr("cbtqa.llm.journal.LOOK_AT_DISK_S", 0.0)
    with ScriptedEndpoint(ok("好")) as server:
        with pytest.raises(BatchStoppedError, match="disk is nearly full"):
            run(server, journal, [f"词{number}" for number in range(100)])
        assert len(server.requests) == 20 == len(list(journal.done_keys()))


# --- several servers -----------------------------------------------------------------------------


def at(*servers: ScriptedEndpoint) -> list[Endpoint]:
    """The servers as endpoints; the second by another host name."""
    names = ("127.0.0.1", "localhost")
    urls = [
        server.url.replace("127.0.0.1", name) for server, name in zip(servers, names, strict=False)
    ]
    return [Endpoint.parse(url, "m", environ={}) for url in urls]


def test_servers_share_the_work_by_free_places_and_the_reply_keeps_its_host(
    journal: Journal,
) -> None:
    items = [f"词{number}" for number in range(120)]
    with (
        ScriptedEndpoint(scripted.slow(ok("好"), 0.4)) as slow,
        ScriptedEndpoint(scripted.slow(ok("好"), 0.05)) as fast,
    ):
        limits = Limits(in_flight=8)
        summary = run_batch(items, EchoTask(), at(slow, fast), journal, limits)
        assert summary.n_accepted == 120
        assert max(slow.peak_in_flight, fast.peak_in_flight) <= 8, "the limit is per server"
        assert fast.n_paid > 2 * slow.n_paid > 0
        hosts = [one.reply.host for _, one in journal.outcomes(items) if one and one.reply]
        assert hosts.count("localhost") == fast.n_paid
        assert hosts.count("127.0.0.1") == slow.n_paid


def test_a_server_that_dies_leaves_its_items_to_the_others(journal: Journal) -> None:
    told: list[Progress] = []
    items = [f"词{number}" for number in range(200)]

    def script(seen: Seen) -> Answer:
        answer = ok("好") if seen.number < 20 else scripted.cut_connection()
        return scripted.slow(answer, 0.02)

    with ScriptedEndpoint(script) as dies, ScriptedEndpoint(scripted.slow(ok("好"), 0.02)) as lives:
        limits, began = Limits(in_flight=16), time.monotonic()
        summary = run_batch(
            items, EchoTask(), at(dies, lives), journal, limits, on_progress=told.append
        )
        assert time.monotonic() - began < REST_S, "nobody waits for the dead one to be asked again"
        assert (summary.n_accepted, summary.stopped) == (200, None)
        assert dies.n_paid == 20 and lives.n_paid == 180
        assert len(dies.requests) < 60, "a dead server is asked now and then only"
    assert f"{dies.url} did not answer" in told[-1].note


def test_one_question_alone_does_not_use_up_its_tries_at_a_dead_server(journal: Journal) -> None:
    with ScriptedEndpoint(scripted.cut_connection()) as dead, ScriptedEndpoint(ok("好")) as lives:
        limits = Limits(in_flight=1, waits=False, max_retries=2)
        assert run_batch(["词"], EchoTask(), at(dead, lives), journal, limits).n_accepted == 1
        assert len(dead.requests) == 1


def test_servers_that_are_all_gone_stop_the_run(journal: Journal) -> None:
    items = [f"词{number}" for number in range(80)]
    script = [*[ok("好")] * 10, scripted.server_error()]
    with (
        ScriptedEndpoint(script) as one,
        ScriptedEndpoint(script) as other,
        pytest.raises(BatchStoppedError, match="gone") as stopped,
    ):
        run_batch(items, EchoTask(), at(one, other), journal, FAST)
    assert stopped.value.summary.n_accepted == 20
    with ScriptedEndpoint(ok("好")) as server:
        assert run(server, journal, items).n_accepted == 60


def test_every_server_has_its_own_response_format(journal: Journal) -> None:
    items = [f"词{number}" for number in range(60)]
    plain = scripted.unless_format(["json_schema", "json_object"], scripted.slow(ok("好"), 0.01))
    with ScriptedEndpoint(plain) as old, ScriptedEndpoint(scripted.slow(ok("好"), 0.01)) as new:
        limits = Limits(in_flight=8)
        summary = run_batch(items, EchoTask(SCHEMA), at(old, new), journal, limits)
        assert summary.n_accepted == 60 and min(old.n_paid, new.n_paid) > 5
        kinds = {seen.body.get("response_format", {}).get("type") for seen in new.requests}
        assert kinds == {"json_schema"}


# --- the open line -------------------------------------------------------------------------------


def test_an_open_line_asks_one_question_after_the_other_and_pays_none_twice(
    journal: Journal,
) -> None:
    task = EchoTask()

    async def talk(line: Line) -> list[str]:
        said = []
        async with line:
            for item in ("一", "二", "一"):
                check, again = partial(task.check, item), partial(task.ask_again, item)
                outcome = await line.ask(Question(item, task.request(item), check, again))
                assert outcome.reply is not None
                said.append(outcome.reply.text)
        return said

    with ScriptedEndpoint({"一": [ok("坏"), ok("好一")], "二": ok("好二")}) as server:
        line = Line(at(server)[0], journal, FAST)
        assert asyncio.run(talk(line)) == ["好一", "好二", "好一"]
        assert (line.conclude().n_skipped, server.n_paid) == (1, 3)


def test_a_line_that_stops_ends_with_its_reason(journal: Journal) -> None:
    task = EchoTask()

    async def talk(line: Line) -> None:
        async with line:
            for item in ("一", "二"):
                check, again = partial(task.check, item), partial(task.ask_again, item)
                await line.ask(Question(item, task.request(item), check, again))

    with ScriptedEndpoint(ok("好")) as server:
        line = Line(at(server)[0], journal, FAST, budget=Budget(max_tokens=160))
        with pytest.raises(BatchStoppedError, match="budget"):
            asyncio.run(talk(line))
        assert server.n_paid == 1


def test_a_second_ctrl_c_leaves_at_once(journal: Journal) -> None:
    with ScriptedEndpoint(scripted.slow(ok("好"), 20)) as server:

        def press_twice() -> None:
            while not server.requests:
                time.sleep(0.01)
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.2)

        threading.Thread(target=press_twice).start()
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            run(server, journal, ["一"], Limits(in_flight=2))
        assert time.monotonic() - began < 10
    assert journal.outcome("一") is None


@pytest.mark.parametrize("transport", ["http", "sdk"])
@pytest.mark.parametrize("n", [1, 40])
def test_a_server_that_this_machine_refuses_is_told_in_two_seconds(
    journal: Journal, transport: str, n: int
) -> None:
    import openai  # noqa: F401 - the first import alone takes a second

    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound and never listening: every connection is refused
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/v1"
        where = Endpoint.parse(url, "m", environ={}, transport=transport)
        began = time.monotonic()
        with pytest.raises(EndpointError, match="nothing listens there") as told:
            run_batch([f"词{n}" for n in range(n)], EchoTask(), where, journal, Limits())
    assert time.monotonic() - began < 3 and "is the server running" in (told.value.hint or "")


def test_a_server_that_listens_a_moment_later_is_still_found(journal: Journal) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    started: list[ScriptedEndpoint] = []

    def start() -> None:
        started.append(ScriptedEndpoint(ok("好"), port=port).__enter__())

    later = threading.Timer(0.3, start)
    later.start()
    where = Endpoint.parse(f"http://127.0.0.1:{port}/v1", "m", environ={})
    try:
        assert run_batch(["一"], EchoTask(), where, journal, Limits()).n_accepted == 1
    finally:
        later.join()
        started[0].__exit__(None, None, None)


def test_only_loopback_addresses_are_this_machine() -> None:
    for host, expected in (
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("[::1]", True),
        ("localhost", True),
        ("192.168.1.4", False),
        ("10.0.0.1", False),
    ):
        url = f"http://{host}:8000/v1"
        assert Endpoint.parse(url, "m", environ={}).is_this_machine is expected, host
