"""What all tests share: no network but loopback, no settings, no keys of another test."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from cbtqa import secrets

# Two processes test on two cores. Threads of numpy and torch that wait for each other spin: beside
# other work an encoder was tuned in 61 s with two of them and in 5 s with one. Children inherit it.
os.environ["OMP_NUM_THREADS"] = "1"
# Images set it: then every process that a test starts compiles the package anew, half of what a
# command takes. The test files themselves, rewritten for their assertions, are kept as well.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

_connect = socket.socket.connect


def _loopback_only(self: socket.socket, address: Any) -> None:
    host = address[0] if isinstance(address, tuple) else address
    if (
        isinstance(host, str)
        and self.family != socket.AF_UNIX
        and not (host.startswith("127.") or host in ("localhost", "::1"))
    ):
        raise AssertionError(f"a test tried to reach {host}")
    _connect(self, address)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(socket.socket, "connect", _loopback_only)
    for name in list(os.environ):
        if name.startswith("CBTQA_") and name != "CBTQA_PROGRAM":
            monkeypatch.delenv(name)
    monkeypatch.setattr(secrets, "_known", {})
    yield


def pytest_terminal_summary(terminalreporter: Any) -> None:
    # here and not beside the faults: the process that leads the workers loads no deeper file
    found = [
        (name, value)
        for reports in terminalreporter.stats.values()
        for report in reports
        if getattr(report, "when", "") == "call"  # the end of a test carries them once more
        for name, value in getattr(report, "user_properties", ())
    ]
    for name, value in found:
        if name == "figure":
            terminalreporter.write_line(value)
    runs = [value for name, value in found if name == "fault_runs"]
    if runs:
        n, seconds = sum(one[0] for one in runs), sum(one[1] for one in runs)
        terminalreporter.write_line(f"fault matrix: {n:,} runs in {seconds:.0f} s")
