"""Runs commands as processes forked from one that has loaded the program: thousands in a minute.

    python -m tests.faults.runner     # one batch of cases a line on stdin, their ends on stdout

A case is `{"words": [...], "cwd": "..."}`, with `"file_bytes"` for a disk that is full after so
many and `"kill_s"` for a kill -9. Two run at a time.
"""

from __future__ import annotations

import faulthandler
import fcntl
import gc
import json
import os
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

AT_A_TIME = 2
CPU_S, WALL_S = 20, 60
"""Seconds of work, and of waiting on a machine that is busy with other things."""
TAIL = 4_000
ON_TORCH = ("finetune", "merge")
LIBRARIES = (
    *("pyarrow.parquet", "pyarrow.compute", "aiohttp", "openpyxl", "xlsxwriter", "pandas"),
    *("rich.console", "rich.table", "rich.text", "scipy.stats", "scipy.optimize", "sacrebleu"),
    *("markdown_it", "huggingface_hub", "jinja2", "datasets"),
)


def main() -> None:
    """Answers every batch with one line."""
    for line in sys.stdin:
        if any(case["words"][0] in ON_TORCH for case in json.loads(line)):
            load_torch()
        sys.stdout.write(json.dumps(list(_run_all(json.loads(line)))) + "\n")
        sys.stdout.flush()


def _run_all(cases: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    waiting, running = list(enumerate(cases))[::-1], {}
    ends: dict[int, dict[str, Any]] = {}
    while waiting or running:
        while waiting and len(running) < AT_A_TIME:
            number, case = waiting.pop()
            running[_start(case, number)] = (number, case, time.monotonic())
        _stop_the_slow(running)
        pid, status, used = os.wait4(-1, os.WNOHANG)
        if not pid:
            time.sleep(0.002)
            continue
        number, case, started = running.pop(pid)
        ends[number] = _end(case, number, status, time.monotonic() - started)
        ends[number]["cpu"] = round(used.ru_utime + used.ru_stime, 3)
    return iter(ends[number] for number in range(len(cases)))


def _stop_the_slow(running: dict[int, Any]) -> None:
    for pid, (_, case, started) in running.items():
        if time.monotonic() - started > case.get("kill_s", WALL_S):
            os.kill(pid, signal.SIGKILL)


def _paths(case: dict[str, Any], number: int) -> tuple[str, str, str]:
    base = f"{case['cwd']}.{number}"
    return f"{base}.out", f"{base}.err", f"{base}.peak"


def _start(case: dict[str, Any], number: int) -> int:
    written = None
    if "file_bytes" in case:
        # what the command says must not meet the limit of files: it goes through a pipe
        case["pipe"], written = os.pipe()
        fcntl.fcntl(written, fcntl.F_SETPIPE_SZ, 1 << 20)
    pid = os.fork()
    if pid:
        if written is not None:
            os.close(written)
        return pid
    out, err, peak = _paths(case, number)
    if written is not None:
        out, err = os.devnull, f"/dev/fd/{written}"
    code = 70
    try:
        _settle(case, out, err)
        start = _memory("VmRSS")
        code = _command(case["words"])
        Path(peak).write_text(str(_memory("VmHWM") - start))
    finally:
        os._exit(code)


def _settle(case: dict[str, Any], out: str, err: str) -> None:
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
    os.dup2(os.open(err, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    os.chdir(case["cwd"])
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    faulthandler.dump_traceback_later(WALL_S - 2, file=2)  # where it waits
    Path("/proc/self/clear_refs").write_text("5")  # the peak of memory begins here
    if "file_bytes" in case:
        # as on a full disk, no file grows any more: EFBIG in place of ENOSPC
        size = case["file_bytes"]
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def _command(words: list[str]) -> int:
    """The exit code, as the program itself would end."""
    from cbtqa.cli.main import main as run

    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    code = 1
    try:
        run(words)
    except SystemExit as ending:
        code = int(ending.code or 0)
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        if not isinstance(error, Exception):
            raise
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    return code


def _memory(name: str) -> int:
    """Mebibytes of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) // 1024
    return 0


def _end(case: dict[str, Any], number: int, status: int, seconds: float) -> dict[str, Any]:
    out, err, peak = map(Path, _paths(case, number))
    found = {
        "code": os.waitstatus_to_exitcode(status),
        "seconds": round(seconds, 2),
        "out": _read(out),
        "err": _read(err) if case.get("pipe") is None else _drain(case["pipe"]),
        "mb": int(peak.read_text()) if peak.exists() else None,
    }
    for path in (out, err, peak):
        path.unlink(missing_ok=True)
    return found


def _read(path: Path) -> str:
    """The end of what a command wrote; nothing where it was killed before it began."""
    data = path.read_bytes() if path.exists() else b""
    return data.decode("utf-8", "surrogateescape")[-TAIL:]


def _drain(pipe: int) -> str:
    with open(pipe, "rb") as stream:
        return stream.read().decode("utf-8", "surrogateescape")[-TAIL:]


def load() -> None:
    """Loads and compiles what the commands do, so that a fork finds it there."""
    from cbtqa.cli.main import MODULES, VERBS
    from cbtqa.distortions.patterns import PatternLabeller
    from cbtqa.distortions.taxonomy import load_taxonomy
    from cbtqa.records import Turn
    from cbtqa.safety.answers import check_answer
    from cbtqa.safety.screen import screen
    from cbtqa.simulation.marks import content_marks

    for verb in VERBS:
        import_module(f"cbtqa.cli.{MODULES.get(verb, verb.replace('-', '_'))}")
    for name in LIBRARIES:
        import_module(name)
    PatternLabeller(load_taxonomy()).label("我总是做不好。")
    check_answer("会好起来的。", "none")
    screen("我总是做不好。")
    content_marks([Turn(role="therapist", text="I see.")])
    gc.freeze()  # a fork that collects would copy every page of what is loaded


@cache
def load_torch() -> None:
    """The same for what runs on torch: the dry run of one model, whose shape is counted then."""
    for name in ("torch", "transformers", "peft"):
        import_module(name)
    from cbtqa.settings import resolve
    from cbtqa.tuning.settings import FinetuneSettings
    from cbtqa.tuning.training.dry_run import dry_run

    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder, "rows.jsonl")
        rows.write_text(
            '{"prompt": "睡不着。", "completion": "先记下来。"}\n' * 2, encoding="utf-8"
        )
        flags = {"data": rows, "backbone": "qwen2.5"}
        dry_run(resolve(FinetuneSettings, flags=flags, environ={}))
    gc.freeze()


if __name__ == "__main__":
    load()
    main()
