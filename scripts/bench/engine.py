"""What the batch engine does with requests, CPU and disk. Prints one JSON object a line.

    python scripts/bench/engine.py rate                 # 256 in flight at 1 s: share of the limit
    python scripts/bench/engine.py rate --in-flight 4096 --latency 5 --requests 12000
    python scripts/bench/engine.py faults               # healthy rate with 30 % of answers faulty
    python scripts/bench/engine.py kill --rounds 20     # kill -9, resume: what was paid twice
    python scripts/bench/engine.py journal --rows 1000000

The endpoint runs on core 0, the client on core 1. "Limit" is requests in flight / latency.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cbtqa.llm.batch import run_batch
from cbtqa.llm.chat import ChatRequest, Fault, Reply, Sampling
from cbtqa.llm.endpoint import Endpoint
from cbtqa.llm.journal import Entry, Journal, State
from cbtqa.llm.limits import Limits
from cbtqa.llm.structured import parse_object
from cbtqa.records import CbtSteps, Reason, Usage

HERE = Path(__file__).resolve().parent
SYSTEM = "你是一位温和的心理咨询师。请按五个步骤回答求助者的问题，只输出一个 JSON 对象。" * 6
DESCRIPTION = (
    "最近换了新的工作，每天都担心做不好，晚上总是睡不着，白天又没有精神，越来越怕见人。" * 3
)
SCHEMA, SAMPLING = CbtSteps.model_json_schema(), Sampling(temperature=0.7, seed=7)


class BenchTask:
    """A question of PsyQA's size, answered in five steps of JSON that are parsed and checked."""

    def key(self, item: int) -> str:
        return f"q{item}"

    def request(self, item: int) -> ChatRequest:
        return self._request(f"第{item}位求助者：{DESCRIPTION}")

    def _request(self, text: str) -> ChatRequest:
        messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}]
        return ChatRequest(messages, SCHEMA, sampling=SAMPLING)

    def check(self, item: int, reply: Reply) -> Fault | None:
        found = parse_object(reply.text)
        if isinstance(found, Fault):
            return found
        try:
            CbtSteps.model_validate(found)
        except ValueError as error:
            return Fault(Reason.MISSING_STEP, str(error))
        return None

    def ask_again(self, item: int, reply: Reply, fault: Fault) -> ChatRequest:
        return self._request(f"第{item}位求助者：{DESCRIPTION}（上次的问题：{fault.reason}）")


@contextmanager
def endpoint(*flags: str) -> Iterator[Endpoint]:
    """A load endpoint on core 0."""
    command = [sys.executable, str(HERE / "endpoint.py"), "--core", "0", *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    port = process.stdout.readline().strip()
    try:
        yield Endpoint.parse(f"http://127.0.0.1:{port}/v1", "bench", environ={})
    finally:
        process.kill()
        process.wait()


def ask(where: Endpoint, path: str) -> dict[str, Any]:
    """`/stats` or `/reset` of the load endpoint."""
    with urllib.request.urlopen(where.base_url.removesuffix("/v1") + path) as answer:
        loaded: dict[str, Any] = json.load(answer)
        return loaded


def cpu_s() -> float:
    """CPU seconds of this process so far, all threads."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def say(**fields: Any) -> None:
    """One line of results."""
    print(json.dumps(fields, ensure_ascii=False), flush=True)


def measure_rate(arguments: argparse.Namespace) -> None:
    """Share of the limit and CPU per 1,000 answers, journal and parsing included."""
    limits = Limits(in_flight=arguments.in_flight)
    with endpoint("--latency", str(arguments.latency)) as where, folder() as place:
        where = Endpoint.parse(where.base_url, "bench", environ={}, transport=arguments.transport)
        with Journal(place / "warm.sqlite") as journal:
            run_batch(range(200), BenchTask(), where, journal, Limits(in_flight=200))
        ask(where, "/reset")
        with Journal(place / "journal.sqlite") as journal:
            start, cpu = time.perf_counter(), cpu_s()
            summary = run_batch(range(arguments.requests), BenchTask(), where, journal, limits)
            wall, cpu = time.perf_counter() - start, cpu_s() - cpu
        stats = ask(where, "/stats")
        # the last round drains: N requests cannot take less than ceil(N / in flight) latencies
        rounds = -(-arguments.requests // arguments.in_flight)
        say(
            bench="rate",
            transport=arguments.transport,
            requests=arguments.requests,
            in_flight=arguments.in_flight,
            latency_s=arguments.latency,
            accepted=summary.n_accepted,
            wall_s=round(wall, 2),
            span_at_endpoint_s=stats["span_s"],
            per_s=round(arguments.requests / wall, 1),
            of_limit=round(
                arguments.requests / wall / (arguments.in_flight / arguments.latency), 3
            ),
            of_whole_rounds=round(rounds * arguments.latency / wall, 3),
            cpu_s_per_1000=round(1000 * cpu / arguments.requests, 3),
            peak_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            endpoint_cpu_s=stats["cpu_s"],
            endpoint_peak_in_flight=stats["peak_in_flight"],
            peak_after_s=stats["peak_after_s"],
        )


def measure_faults(arguments: argparse.Namespace) -> None:
    """Healthy answers per request sent and per second, with and without faulty answers."""
    limits = Limits(in_flight=arguments.in_flight)
    for share in (0.0, arguments.share):
        flags = ("--latency", str(arguments.latency), "--faults", str(share))
        with endpoint(*flags) as where, folder() as place, Journal(place / "j.sqlite") as journal:
            start, cpu = time.perf_counter(), cpu_s()
            summary = run_batch(range(arguments.requests), BenchTask(), where, journal, limits)
            wall, cpu = time.perf_counter() - start, cpu_s() - cpu
            n_ended = sum(one is not None for _, one in journal.outcomes(keys(arguments.requests)))
            say(
                bench="faults",
                share=share,
                items=arguments.requests,
                ended=n_ended,
                accepted=summary.n_accepted,
                rejected={str(reason): n for reason, n in summary.rejected.items()},
                requests_sent=summary.n_requests,
                wall_s=round(wall, 2),
                requests_per_s=round(summary.n_requests / wall, 1),
                cpu_s_per_1000_requests=round(1000 * cpu / summary.n_requests, 3),
                answered=ask(where, "/stats")["answered"],
            )


def measure_kill(arguments: argparse.Namespace) -> None:
    """kill -9 at random moments, then a run to the end: what was sent and paid twice."""
    lost = twice = n_told = 0
    rng = random.Random(arguments.seed)
    for number in range(arguments.rounds):
        with endpoint("--latency", "0.2", "--track") as where, folder() as place:
            path = place / "journal.sqlite"
            command = [sys.executable, __file__, "child", str(path), where.base_url]
            command += ["--requests", str(arguments.requests)]
            child = subprocess.Popen(command, stdout=subprocess.PIPE)
            assert child.stdout is not None
            child.stdout.readline()
            time.sleep(rng.uniform(0.05, arguments.requests / 64 * 0.2))
            child.send_signal(signal.SIGKILL)
            child.wait()
            with Journal(path, read_only=True) as journal:
                kept = set(journal.done_keys())
            before = ask(where, "/stats")
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
            told = int(done.stdout)
            after = ask(where, "/stats")
            with Journal(path, read_only=True) as journal:
                n_ended = sum(
                    one is not None and one.is_accepted
                    for _, one in journal.outcomes(keys(arguments.requests))
                )
            n_sent_again = after["requests"] - before["requests"]
            acknowledged_twice = n_sent_again - (arguments.requests - len(kept))
            lost, twice = lost + after["paid_again"], twice + acknowledged_twice
            n_told += told
            say(
                bench="kill",
                round=number,
                answered_before=before["answered"].get("ok", 0),
                kept=len(kept),
                sent_after=n_sent_again,
                acknowledged_paid_twice=acknowledged_twice,
                in_flight_paid_twice=after["paid_again"],
                told=told,
                complete=n_ended == arguments.requests,
            )
    found = {"acknowledged_paid_twice": twice, "in_flight_lost": lost, "told": n_told}
    say(bench="kill", rounds=arguments.rounds, **found)


def run_child(arguments: argparse.Namespace) -> None:
    """One run of the kill bench, in a process of its own."""
    where = Endpoint.parse(arguments.url, "bench", environ={})
    with Journal(Path(arguments.path)) as journal:
        print(journal.in_flight.n_before, flush=True)
        run_batch(range(arguments.requests), BenchTask(), where, journal, Limits(in_flight=64))


def measure_journal(arguments: argparse.Namespace) -> None:
    """Rows a second of the offline road, and what resuming costs."""
    text = json.dumps({f"step{n}": DESCRIPTION for n in range(5)}, ensure_ascii=False)[:800]
    usage = Usage(prompt_tokens=520, completion_tokens=480)
    entries = (
        Entry(key, 1, State.ACCEPTED, Reply(text, "stop", usage=usage, model="bench"))
        for key in keys(arguments.rows)
    )
    with folder() as place:
        path = place / "journal.sqlite"
        with Journal(path, {"model": "bench"}) as journal:
            start, cpu = time.perf_counter(), cpu_s()
            journal.record(entries)
            wall, cpu = time.perf_counter() - start, cpu_s() - cpu
        say(
            bench="journal write",
            rows=arguments.rows,
            rows_per_s=round(arguments.rows / wall),
            cpu_us_per_row=round(1e6 * cpu / arguments.rows, 1),
            bytes_per_row=path.stat().st_size // arguments.rows,
            text_bytes=len(text.encode()),
        )
        with Journal(path, {"model": "bench"}) as journal:
            where = Endpoint.parse("http://127.0.0.1:9/v1", "bench", environ={})
            start, cpu = time.perf_counter(), cpu_s()
            summary = run_batch(range(arguments.rows), BenchTask(), where, journal, Limits())
            wall, cpu = time.perf_counter() - start, cpu_s() - cpu
            say(
                bench="journal resume",
                skipped=summary.n_skipped,
                wall_s=round(wall, 2),
                cpu_s=round(cpu, 2),
                peak_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            )
            start, cpu = time.perf_counter(), cpu_s()
            n_read = sum(one is not None for _, one in journal.outcomes(keys(arguments.rows)))
            say(
                bench="journal read",
                read=n_read,
                wall_s=round(time.perf_counter() - start, 2),
                cpu_s=round(cpu_s() - cpu, 2),
                peak_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            )


def keys(n: int) -> Iterator[str]:
    """The keys of the first n bench items."""
    return map(BenchTask().key, range(n))


@contextmanager
def folder() -> Iterator[Path]:
    """A temporary folder on the disk of the working directory, not in memory."""
    with tempfile.TemporaryDirectory(dir=".") as name:
        yield Path(name)


def main() -> None:
    """Reads the flags and measures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(required=True)

    def verb(name: str, function: Any, **numbers: float) -> argparse.ArgumentParser:
        made = verbs.add_parser(name)
        made.set_defaults(function=function)
        for flag, value in numbers.items():
            made.add_argument(f"--{flag.replace('_', '-')}", type=type(value), default=value)
        return made

    rate = verb("rate", measure_rate, requests=5000, in_flight=256, latency=1.0)
    rate.add_argument("--transport", default="http", choices=["http", "sdk"])
    verb("faults", measure_faults, requests=8000, in_flight=256, latency=0.5, share=0.3)
    verb("kill", measure_kill, requests=1000, rounds=20, seed=1)
    verb("journal", measure_journal, rows=1_000_000)
    child = verb("child", run_child, requests=1000)
    child.add_argument("path")
    child.add_argument("url")
    arguments = parser.parse_args()
    if hasattr(os, "sched_setaffinity") and (os.cpu_count() or 1) > 1:
        os.sched_setaffinity(0, {1})
    arguments.function(arguments)


if __name__ == "__main__":
    main()
