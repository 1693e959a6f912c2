"""The gate: how many at once, how many a minute, and what the server's answers teach it."""

from __future__ import annotations

import asyncio
import time

import pytest

from cbtqa.errors import BadResponseError, RateLimitError
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
        for _ in range(64):
            gate.failed(RateLimitError("slow down"))
        assert gate.limit == 32
        for _ in range(32):
            gate.failed(RateLimitError("slow down"))
        assert gate.limit == 16
        for _ in range(5000):
            gate.answered()
        assert gate.limit == 64

    asyncio.run(check())


def test_a_few_429s_by_chance_do_not_decide_the_speed() -> None:
    async def check() -> None:
        gate = Gate(Limits(in_flight=256))
        for number in range(20_000):
            if number % 25:
                gate.answered()
            else:
                gate.failed(RateLimitError("slow down"))
        assert gate.limit > 240

    asyncio.run(check())


def test_an_outage_lets_one_probe_through_and_half_come_back_at_once() -> None:
    async def check() -> None:
        gate = Gate(Limits(in_flight=64, gone_after_s=1000))
        gate.answered()
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
