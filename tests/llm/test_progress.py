"""Rates and times left, by a clock that the test sets."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from cbtqa.llm import progress
from cbtqa.llm.cost import LATENCY_S, time_of
from cbtqa.llm.journal import Entry, State, Totals
from cbtqa.llm.progress import Meter, Progress, RecentRate, StepCounter
from cbtqa.records import Usage


class Clock:
    """Seconds since the test began."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=made.monotonic))
    return made


def _meter(n_total: int) -> Meter:
    return Meter(n_total, None, Totals(0, Usage(), 0))


def _end(meter: Meter, n: int = 1) -> None:
    for number in range(n):
        meter.ended(Entry(f"{number}", 1, State.ACCEPTED, None, None))


def test_time_left_is_that_of_the_last_minute_not_of_the_whole_run(clock: Clock) -> None:
    meter = _meter(10_000)
    for second in range(600):  # ten minutes at ten a second, while the server is at rest
        clock.now = second
        _end(meter, 10)
        meter.progress(8)
    for second in range(600, 670):  # then one a second
        clock.now = second
        _end(meter)
        now = meter.progress(8)
    assert now.rate_per_s == pytest.approx(1, rel=0.02)
    assert now.eta_s == pytest.approx(10_000 - 6070, rel=0.02)


def test_a_slow_server_that_answers_in_bursts_has_a_steady_rate(clock: Clock) -> None:
    rate, seen = RecentRate(), []
    for second in range(1, 3000):  # thirty at once each five minutes
        clock.now = second
        seen.append(rate.per_s(30 * (second // 300), 30))
    assert seen[298] == 0 < seen[299]
    assert min(seen[900:]) >= 0.05 and max(seen[900:]) <= 0.1


def test_a_stall_makes_the_time_left_longer_instead_of_unknown(clock: Clock) -> None:
    meter = _meter(100)
    for second in range(60):
        clock.now = second
        _end(meter)
        running = meter.progress(1).eta_s
    clock.now = 660
    stalled = meter.progress(1).eta_s
    assert running is not None and stalled is not None and stalled > 5 * running


def test_time_left_is_never_shorter_than_the_reply_that_is_still_to_come(clock: Clock) -> None:
    meter = _meter(61)
    for number in range(60):  # twenty seconds each, sixty at once
        clock.now = number / 10
        meter.sent(is_repeat=False)
    sent = list(meter._in_flight)
    for number, at in enumerate(sent):
        clock.now = 20 + number / 10
        meter.returned(at)
        _end(meter)
    one_left = meter.progress(60)
    assert one_left.eta_s == pytest.approx(20, abs=0.01), "not even sent"
    meter.sent(is_repeat=False)
    clock.now += 15
    assert meter.progress(60).eta_s == pytest.approx(5, abs=1.5), "fifteen seconds are over"
    _end(meter)
    assert meter.progress(60).eta_s == 0


def test_a_dry_run_of_few_requests_takes_as_long_as_one_reply() -> None:
    assert time_of(1, Usage(), 64, None, None) == (LATENCY_S, "in_flight")
    assert time_of(65, Usage(), 64, None, None) == (2 * LATENCY_S, "in_flight")
    assert time_of(1, Usage(), 64, 600, None)[0] == LATENCY_S
    assert time_of(0, Usage(), 64, 600, None)[0] == 0


def test_steps_of_a_resumed_work_are_counted_and_timed_by_the_last_minute(clock: Clock) -> None:
    told: list[Progress] = []
    counter = StepCounter(told.append, 300, "steps", n_before=100)
    for number in range(100):
        clock.now += 10.0 if number < 60 else 30.0  # it grew slower
        counter.step(note=f"loss {number}")
    last = told[-1]
    assert (last.n_done, last.n_total, last.unit, last.note) == (200, 300, "steps", "loss 99")
    assert last.rate_per_s == pytest.approx(1 / 30) and last.eta_s == pytest.approx(3000)
    StepCounter(None, 1, "steps").step()  # nobody listens
