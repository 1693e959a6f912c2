"""The gate: how many at once, how many a minute, and what the server's answers teach it."""

from __future__ import annotations

import asyncio
import time

import pytest

from cbtqa.errors import BadResponseError, EndpointTimeoutError, RateLimitError
from cbtqa.llm.limits import Gate, GateClosedError, Limits, Pace, Queue, backoff_s


def test_no_more_pass_than_the_limit_and_retries_pass_first() -> None:
    async def check() -> None:
        gate = Gate(Limits(in_flight=2))
        order: list[str] = []

        async def visit(name: str, *, is_retry: bool) -> None:
            await gate.enter(is_retry=is_retry)
            order.append(name)
            assert gate.in_flight <= 2
            await asyncio.sleep(0.01)
            gate.leave()

        visits = [visit(f"fresh{n}", is_retry=False) for n in range(4)]
        await asyncio.gather(*visits, visit("again", is_retry=True))
        assert order[:3] == ["fresh0", "fresh1", "again"]
        assert gate.in_flight == 0

    asyncio.run(check())


def test_a_round_of_429s_halves_the_limit_and_answers_raise_it_again() -> None:
    async def check() -> None:
        gate = Gate(Limits(in_flight=64))
        climb(gate)
        assert gate.limit == 64
        for _ in range(64):
            gate.failed(RateLimitError("slow down"))
        assert gate.limit == 32
        for _ in range(32):
            gate.failed(RateLimitError("slow down"))
        assert gate.limit == 16
        for _ in range(5000):
            gate.answered(1.0)
        assert gate.limit == 64

    asyncio.run(check())


def climb(gate: Gate) -> None:
    """A server that answers quickly, until the limit is reached."""
    for _ in range(100):
        gate.answered(1.0)
    gate._n_outcomes = 0  # a new round


def test_a_few_429s_by_chance_do_not_decide_the_speed() -> None:
    async def check() -> None:
        gate = Gate(Limits(in_flight=256))
        for number in range(20_000):
            if number % 25:
                gate.answered(1.0)
            else:
                gate.failed(RateLimitError("slow down"))
        assert gate.limit > 240

    asyncio.run(check())


def test_a_run_begins_with_a_few_requests_and_climbs_with_quick_answers() -> None:
    async def check() -> None:
        gate = Gate(Limits(in_flight=256))
        assert gate.limit == 8
        for _ in range(8):
            gate.answered(1.0)
        assert gate.limit == 32, "four times as many each round"
        for _ in range(200):
            gate.answered(10.0)
        assert gate.limit < 100, "answers that waited in a queue do not raise it by much"

    asyncio.run(check())


def test_while_nothing_comes_back_a_run_climbs_by_itself_but_not_to_hundreds() -> None:
    async def check() -> None:
        quiet, refuses = Gate(Limits(in_flight=500)), Gate(Limits(in_flight=500))
        for gate in (quiet, refuses):
            await gate.enter()
        refuses.answered()  # with a refusal
        await asyncio.sleep(0.6)
        assert quiet.limit == 128
        assert refuses.limit < 20

    asyncio.run(check())


def test_a_server_that_fails_at_everything_is_asked_less_and_less_often() -> None:
    async def check() -> None:
        gate = Gate(Limits(in_flight=64))
        for _ in range(8):
            gate.failed(BadResponseError("answered 500", status=500))
        waits = []
        for _ in range(5):
            waits.append(gate.hold_until - time.monotonic())
            gate.hold_until = 0.0  # the wait is over
            gate.failed(BadResponseError("answered 500", status=500))
        assert [round(wait, 1) for wait in waits] == [0.5, 1, 2, 4, 8]

    asyncio.run(check())


def test_a_server_that_is_loading_is_busy_and_not_gone() -> None:
    async def check() -> None:
        gate, loading = Gate(Limits(in_flight=64)), RateLimitError("loading model", status=503)
        too_many = RateLimitError("too many", status=429)
        for _ in range(100):
            gate.failed(loading)
        assert gate.is_out and not gate.is_suspect
        gate._busy_since -= 1_000  # seconds later
        assert not gate.is_gone(loading) and gate.is_gone(too_many)
        gate._busy_since -= 1_000
        assert gate.is_gone(loading)

    asyncio.run(check())


def test_a_timeout_is_no_proof_that_a_server_is_gone() -> None:
    async def check() -> None:
        gate = Gate(Limits(in_flight=64, timeout_s=180))
        slow = EndpointTimeoutError("no whole answer within 180 s")
        for _ in range(64):
            gate.failed(slow, 180)
        gate._failing_since -= 181  # the second try was too slow, too
        assert not gate.is_gone(slow, 180)
        gate._failing_since -= 400
        assert gate.is_gone(slow, 180)

    asyncio.run(check())


def test_the_time_limit_grows_with_what_answers_took_also_for_those_that_wait() -> None:
    async def check() -> None:
        gate = Gate(Limits(timeout_s=0.1))
        with gate.time_limit() as deadline:
            async with deadline:
                gate.answered(0.5)
                await asyncio.sleep(0.3)  # three times the limit that it was sent with

        began = asyncio.get_running_loop().time()
        with gate.time_limit(n_before=1) as deadline:
            due = deadline.when()
            assert due is not None and due - began == pytest.approx(3.0, abs=0.1)

    asyncio.run(check())


def test_an_outage_lets_one_probe_through_and_half_come_back_at_once() -> None:
    async def check() -> None:
        gate = Gate(Limits(in_flight=64, gone_after_s=1000))
        climb(gate)
        failure = BadResponseError("500")
        for _ in range(20):
            gate.failed(failure)
        assert gate.is_suspect and gate.limit == 1 and not gate.is_gone(failure)
        gate.answered()
        assert not gate.is_suspect and gate.limit >= 32

    asyncio.run(check())


def test_a_pace_spreads_requests_and_takes_corrections() -> None:
    pace = Pace(60)  # one a second, a burst of one second
    assert [pace.reserve(1, 100.0) for _ in range(4)] == [0, 0, 1, 2]
    assert pace.reserve(1, 200.0) == 0, "an idle minute saves up no more than the burst"
    pace.correct(10)
    assert pace.reserve(1, 200.0) == 10


def test_requests_a_minute_are_kept() -> None:
    async def check() -> None:
        gate = Gate(Limits(in_flight=50, rpm=1200))  # 20 a second, 20 at once
        start = time.monotonic()

        async def visit() -> None:
            await gate.enter()
            gate.leave()

        await asyncio.gather(*(visit() for _ in range(36)))
        assert 0.65 <= time.monotonic() - start <= 2

    asyncio.run(check())


@pytest.mark.parametrize(
    "headers",
    [
        {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "300ms"},
        {"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "0.3"},
    ],
)
def test_an_empty_allowance_in_the_headers_holds_everybody(headers: dict[str, str]) -> None:
    async def check() -> None:
        gate = Gate(Limits())
        gate.heed(headers, 0)
        start = time.monotonic()
        await gate.enter()
        assert 0.25 <= time.monotonic() - start <= 1.5

    asyncio.run(check())


def test_closing_turns_away_those_who_wait_and_keeps_the_count() -> None:
    async def check() -> None:
        gate = Gate(Limits(in_flight=1))
        await gate.enter()
        waiting = [asyncio.create_task(gate.enter()) for _ in range(3)]
        sleeping = asyncio.create_task(gate.sleep(60))
        await asyncio.sleep(0)
        gate.close()
        results = await asyncio.gather(*waiting, sleeping, return_exceptions=True)
        assert all(isinstance(one, GateClosedError) for one in results)
        gate.leave()
        assert gate.in_flight == 0

    asyncio.run(check())


def test_a_cancelled_waiter_takes_no_place_along() -> None:
    async def check() -> None:
        gate = Gate(Limits(in_flight=1))
        await gate.enter()
        waiting = asyncio.create_task(gate.enter())
        await asyncio.sleep(0)
        gate.leave()  # hands the place over...
        waiting.cancel()  # ...to one who leaves in the same moment
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await asyncio.wait_for(gate.enter(), 1)

    asyncio.run(check())


def test_backoff_is_full_jitter_within_a_doubling_bounded_span() -> None:
    for n_failures, span in ((1, 0.5), (3, 2), (10, 60), (1000, 60)):
        drawn = [backoff_s(n_failures) for _ in range(300)]
        assert 0 <= min(drawn) < 0.1 * span and 0.9 * span < max(drawn) <= span


def test_a_rate_limit_holds_for_all_servers_together() -> None:
    async def check() -> float:
        limits = Limits(in_flight=8, rpm=600)
        queue = Queue(limits)
        gates = [Gate(limits, queue) for _ in range(2)]
        began = time.monotonic()

        async def visit() -> None:
            (await gates[0].enter()).leave()

        await asyncio.gather(*(visit() for _ in range(25)))
        return time.monotonic() - began

    # ten a second, of which the first second's worth goes out at once
    assert 1.3 <= asyncio.run(check()) < 4


def test_a_server_that_asks_to_wait_is_passed_over_while_another_has_places() -> None:
    async def check() -> None:
        limits = Limits(in_flight=2)
        queue = Queue(limits)
        held, free = Gate(limits, queue), Gate(limits, queue)
        held.hold(30)
        assert [await held.enter() for _ in range(2)] == [free, free]

    asyncio.run(check())


def test_a_server_that_answered_first_does_not_take_all_of_a_small_run() -> None:
    async def takers() -> list[Gate]:
        limits = Limits(in_flight=64)
        queue = Queue(limits)
        gates = [Gate(limits, queue) for _ in range(2)]
        gates[0].limit = 64.0  # as after its first answers, when the other has given none yet
        return [await gates[0].enter() for _ in range(3)]

    first, second, _ = asyncio.run(takers())
    assert first is not second
