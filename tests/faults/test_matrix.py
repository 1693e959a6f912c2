"""Every command with every fault in every file that it takes, and in every place that it writes to.

The commands and their paths come from the program's own registry: a new one is in here by itself.
Places that take the same input share the faults out among them, and commands the places that they
write to: one command has every pair of an input and a fault. `CBTQA_FAULTS=all` leaves none out.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.faults.faults import (
    ALIKE,
    ENDS_BADLY,
    EVERYWHERE,
    IN_A_FOLDER,
    IN_SETTINGS,
    WHERE_REQUIRED,
    faults_of,
)
from tests.faults.material import (
    OUT,
    Place,
    commands_with_output,
    good_input,
    line,
    places,
    write_material,
)
from tests.faults.runner import ON_TORCH
from tests.support.program import environment

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.xdist_group("faults"),  # one runner, which keeps two processes busy
]
CODES = {0, 2, 3, 4, 5, 6, 7}
LIMIT_MB = 1_000
ROOT = Path(__file__).parents[2]
PLACES = places()
COMMANDS = sorted({place.command for place in PLACES})
IS_WHOLE = os.environ.get("CBTQA_FAULTS") == "all"


class Spoiling(NamedTuple):
    """What is done to an input."""

    name: str
    inner: str
    """The path within a folder; `*` all of them."""
    fault: str


class Case(NamedTuple):
    """One run of a command with something wrong."""

    name: str
    words: list[str]
    cwd: Path
    may_end_well: bool = True
    more: dict[str, Any] = {}  # noqa: RUF012 - a value of JSON that nobody changes


@pytest.fixture(scope="session")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The good inputs, made once."""
    folder = tmp_path_factory.mktemp("faults") / "good"
    write_material(folder)
    return folder


Runner = Callable[[bool], subprocess.Popen[str]]


@pytest.fixture(scope="session")
def runner() -> Iterator[Runner]:
    """The process from which commands are forked; with torch in it a fork costs three times as much."""
    with ExitStack() as stack:

        @cache
        def start(is_on_torch: bool) -> subprocess.Popen[str]:
            started = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.runner"],
                cwd=ROOT,
                env=environment(PYTHONPATH=str(ROOT), HF_HUB_OFFLINE="1", COLUMNS="80"),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            assert started.stdin is not None
            stack.enter_context(started)
            stack.callback(started.stdin.close)
            return started

        yield start


Run = Callable[[list[Case]], list[dict[str, Any]]]


@pytest.fixture
def run(runner: Runner, record_property: Callable[[str, object], None]) -> Run:
    """Runs cases, two at a time; their number and time are told at the end of the session."""

    def run_all(cases: list[Case]) -> list[dict[str, Any]]:
        started = time.monotonic()
        one = runner(any(case.words[0] in ON_TORCH for case in cases))
        assert one.stdin is not None and one.stdout is not None
        asked = [{"words": case.words, "cwd": str(case.cwd), **case.more} for case in cases]
        one.stdin.write(json.dumps(asked) + "\n")
        one.stdin.flush()
        ends: list[dict[str, Any]] = json.loads(one.stdout.readline())
        record_property("fault_runs", (len(cases), time.monotonic() - started))
        return ends

    return run_all


def _put(good: Path, place: Place, folder: Path) -> Path:
    """A copy of the place's good input in a folder of its own."""
    name = good_input(place)
    target = folder / f"in-{place.name.strip('-')}" / Path(name).name
    target.parent.mkdir(parents=True, exist_ok=True)
    source = good / name
    shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
    return target


def _with_inputs(
    good: Path, folder: Path, command: str, attacked: Place | None
) -> tuple[list[tuple[Place, Path]], Path | None]:
    """The inputs that the command needs and the one to spoil."""
    folder.mkdir(parents=True)
    inputs = [
        (place, _put(good, place, folder))
        for place in PLACES
        if place.command == command and (place.is_required or place == attacked)
    ]
    return inputs, next((path for place, path in inputs if place == attacked), None)


@cache
def _shared_out(good: Path) -> dict[Place, list[Spoiling]]:
    """What each place is tried with: every fault of an input at the place with the fewest so far."""
    found: dict[Place, list[Spoiling]] = {place: [] for place in PLACES}
    takers: dict[tuple[str, Spoiling], list[Place]] = {}
    for place in PLACES:
        for one in _possible(good, place):
            if _is_tried(place, one):
                found[place].append(one)
            takers.setdefault((good_input(place), one), []).append(place)
    for (_, one), of in takers.items():
        if not any(one in found[place] for place in of):
            found[min(of, key=lambda place: len(found[place]))].append(one)
    return found


def _is_tried(place: Place, one: Spoiling) -> bool:
    """Whether the place is tried with this whatever others are."""
    of_place = (*EVERYWHERE, *(WHERE_REQUIRED if place.is_required else ()))
    return IS_WHOLE or (one.fault in of_place and not one.inner)


def _possible(good: Path, place: Place) -> Iterator[Spoiling]:
    """Every fault that the place can have."""
    source = good / good_input(place)
    if not source.is_dir():
        known = IN_SETTINGS if place.name == "--config" else tuple(faults_of(source))
        left_out = () if place.is_required else ALIKE
        yield from (Spoiling(name, "", name) for name in known if name not in left_out)
        return
    yield from (Spoiling("folder missing", "", "missing"), Spoiling("no files", "*", "missing"))
    tried = IN_A_FOLDER if place.is_required else IN_A_FOLDER[:2]
    alike = set()
    for path in sorted(filter(Path.is_file, source.rglob("*"))):
        inner = path.relative_to(source).as_posix()
        kind = re.sub(r"\d+|train|validation|test|crisis", "", inner)
        if kind not in alike:  # one of several shards, splits or sheets
            alike.add(kind)
            known = faults_of(path)
            yield from (Spoiling(f"{inner} {n}", inner, n) for n in tried if n in known)


def _input_cases(good: Path, base: Path, place: Place) -> Iterator[Case]:
    for number, (name, inner, fault) in enumerate(_shared_out(good)[place]):
        folder = base / f"{place.name.strip('-')}-{number}"
        inputs, path = _with_inputs(good, folder, place.command, place)
        assert path is not None
        if inner == "*":
            shutil.rmtree(path)
            path.mkdir()
        else:
            target = path / inner if inner else path
            faults_of(target)[fault](target)
        words = line(good, place.command, inputs, folder / _out(place.command))
        is_read = place.is_required or place.name == "--config"  # of others not every run takes it
        may_end_well = bool(inner) or fault not in ENDS_BADLY or not is_read
        # a server that goes on with it is as good as a refusal
        more = {"kill_s": 2.5} if place.command == "rate serve" else {}
        yield Case(f"{place.name}: {name}", words, folder, may_end_well, more)


def _out(command: str) -> str:
    return OUT.get(command, "out")


def _at(place: str, command: str) -> str:
    """A place to write to, with the suffix that the command wants of a file."""
    return place + Path(_out(command)).suffix if place != "full" else place


def _fault_of(case: Case, end: dict[str, Any]) -> str | None:
    said = end["out"] + end["err"]
    if case.more.get("kill_s") and end["code"] == -9:
        return None
    if end["code"] in (-signal.SIGKILL, -signal.SIGXCPU):
        return "did not end"
    if end["code"] not in CODES:
        return f"exit code {end['code']}"
    if "Traceback" in said or "a bug in cbtqa" in said:
        return "a traceback"
    if end["code"] and "error:" not in end["err"] and not end["err"].strip():
        return "no word about it"
    if not end["code"] and not case.may_end_well:
        return "ended well"
    if end["mb"] is not None and end["mb"] > LIMIT_MB:
        return f"{end['mb']:,} MiB"
    if left := [path for path in case.cwd.rglob("*.part") if "in-" not in str(path)]:
        return f"left {left[0].name} behind"
    return None


def _check(cases: list[Case], ends: list[dict[str, Any]]) -> None:
    found = [
        f"{case.name}: {fault}\n    {' '.join(case.words)}\n    {end['err'].strip()[-600:]}"
        for case, end in zip(cases, ends, strict=True)
        if (fault := _fault_of(case, end))
    ]
    assert not found, f"{len(found)} of {len(cases)}\n" + "\n".join(found)


def test_every_fault_of_an_input_is_tried_somewhere_and_every_place_with_some(
    material: Path,
) -> None:
    shared = _shared_out(material)
    assert all(shared.values())
    tried = {(good_input(place), one) for place in PLACES for one in shared[place]}
    possible = {(good_input(place), one) for place in PLACES for one in _possible(material, place)}
    assert tried == possible


@pytest.mark.parametrize("command", COMMANDS)
def test_whatever_a_file_holds_the_command_says_what_is_wrong(
    command: str, material: Path, tmp_path: Path, run: Run
) -> None:
    base = tmp_path / "in"
    mine = [place for place in PLACES if place.command == command]
    cases = [case for place in mine for case in _input_cases(material, base, place)]
    _check(cases, run(cases))


OUTS = {
    "below a file": "file/out",
    "read-only": "/sys/kernel/cbtqa/out",
    "a name too long": "长" * 100,
    "a folder that is not empty": "full",
    "a link to itself": "loop/out",
}


NOWHERE = ("below a file", "read-only", "a link to itself")
REFUSED = {"convert": (4,)}
"""Where nothing can be made: the words of the command are wrong, or a setting."""
SIZES = (3_000, 40_000)
ALL_OUTS = {"build-dataset", "score", "rate new", "simulate run", "publish dataset"}
"""Tried with every place to write to; the others take turns at what one function finds for all."""


def _outs(command: str) -> tuple[dict[str, str], tuple[int, ...]]:
    """Places to write to, and after how many bytes the disk is full."""
    if IS_WHOLE or command in ALL_OUTS:
        return OUTS, SIZES
    number = commands_with_output().index(command)
    names = {NOWHERE[number % 3], "a folder that is not empty"}
    names |= {"a name too long"} if number % 2 else set()
    return {name: out for name, out in OUTS.items() if name in names}, (SIZES[number // 2 % 2],)


@pytest.mark.parametrize("command", commands_with_output())
def test_wherever_it_is_to_write_the_command_says_what_is_wrong(
    command: str, material: Path, tmp_path: Path, run: Run
) -> None:
    cases = []
    outs, sizes = _outs(command)
    for number, (name, out) in enumerate(outs.items()):
        folder = tmp_path / f"{number}"
        inputs, _ = _with_inputs(material, folder, command, None)
        (folder / "file").write_text("")
        (folder / "full").mkdir()
        (folder / "full" / "mine.txt").write_text("mine")
        (folder / "loop").symlink_to("loop")
        cases.append(
            Case(name, line(material, command, inputs, folder / _at(out, command)), folder)
        )
    for size in sizes:
        folder = tmp_path / f"size-{size}"
        inputs, _ = _with_inputs(material, folder, command, None)
        words = line(material, command, inputs, folder / _out(command))
        cases.append(Case(f"full after {size}", words, folder, True, {"file_bytes": size}))
    ends = run(cases)
    _check(cases, ends)
    for case, end in zip(cases, ends, strict=True):
        if (case.cwd / "full").is_dir():
            assert (case.cwd / "full" / "mine.txt").read_text() == "mine", case.name
        # a dry run writes nothing; the source of `convert` here is an adapter, refused before
        may_end = (2, 3, *((0,) if "--dry-run" in case.words else ()), *REFUSED.get(command, ()))
        if case.name in NOWHERE:
            assert end["code"] in may_end, f"{case.name}: {end['err']}"


@pytest.mark.parametrize("command", commands_with_output())
def test_after_a_kill_the_same_command_ends_as_if_it_had_not_been(
    command: str, material: Path, tmp_path: Path, run: Run
) -> None:
    inputs, _ = _with_inputs(material, tmp_path / "whole", command, None)
    words = line(material, command, inputs, tmp_path / "whole" / _out(command))
    whole = Case("unharmed", words, tmp_path / "whole")
    [end] = run([whole])
    _check([whole], [end])
    draw, cases = random.Random(command), []
    for number in range(4 if IS_WHOLE else 1):
        folder = tmp_path / f"{number}"
        inputs, _ = _with_inputs(material, folder, command, None)
        words = line(material, command, inputs, folder / _out(command))
        kill = {"kill_s": draw.uniform(0.1, 1) * end["seconds"]}
        cases.append(Case(f"kill {number}", words, folder, True, kill))
    killed = run(cases)
    _check(cases, killed)
    again = [
        Case(f"again {number}", case.words, case.cwd)
        for number, (case, one) in enumerate(zip(cases, killed, strict=True))
        if one["code"] == -9
        and not _is_whole(case.cwd / _out(command), tmp_path / "whole" / _out(command))
    ]
    ends = run(again)
    for case, one in zip(again, ends, strict=True):
        if "already holds" in one["err"]:  # killed between its last file and its end
            assert _names(case.cwd / _out(command)) == _names(whole.cwd / _out(command)), case.name
            continue
        assert one["code"] == end["code"], f"{case.name}: {one['err']}"


def _names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def _is_whole(path: Path, unharmed: Path) -> bool:
    """Whether a file is there: then it must be the whole one, for it is taken for that."""
    if not path.is_file():
        return False
    # what names its own place is as long as that place
    sizes = [
        len(one.read_bytes().replace(str(one.parent).encode(), b"")) for one in (path, unharmed)
    ]
    assert sizes[0] == sizes[1]
    return True
