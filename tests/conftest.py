"""What all tests share: no network but loopback, no settings, no keys of another test."""

from __future__ import annotations

import gc
import os
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
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

# Loading makes a million objects that stay: looking for garbage among them is a fifth of a collection
# of the tests, and a tenth of the tests on torch. What stays is left out, the rest looked at later.
gc.disable()

# What is written durably waits for the disk: 80 ms of a command with a journal. A folder in memory
# is as good for tests that kill processes, never the machine.
MEMORY, ROOM = Path("/dev/shm"), 4 << 30
if os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > ROOM:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))

_connect = socket.socket.connect


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes long comes first; who shares a fixture of a module is run by one process.

    Processes take the groups first, then test by test, so that no long one is left at the end.
    """
    shared = {str(item.path) for item in items if _has_module_fixture(item)}
    for item in items:
        if str(item.path) in shared and item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.path.stem))
        if item.config.getoption("loadgroup", False):
            _put_the_group_into_the_id(item)
    items.sort(key=_comes_later)


def _put_the_group_into_the_id(item: pytest.Item) -> None:
    """What pytest-xdist 3.8 does itself: pytest 9.2 does not read any more where it writes that.

    The process that hands out tests knows groups by ids alone: without this every test is its own.
    """
    group = item.get_closest_marker("xdist_group")
    if group is not None and item.parent is not None and hasattr(item, "_id"):
        item._id = item.parent.id.child(f"{item.name}@{group.args[0]}")


def _comes_later(item: pytest.Item) -> bool:
    marks = {mark.name for mark in item.iter_markers()}
    return "slow" not in marks or "xdist_group" in marks


def _has_module_fixture(item: pytest.Item) -> bool:
    found = getattr(item, "_fixtureinfo", None)
    used = found.name2fixturedefs.values() if found else ()
    return any(one[-1].scope == "module" and one[-1].params is None for one in used)


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)
    gc.enable()


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
