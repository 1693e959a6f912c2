"""Runs the `cbtqa` program as a user would: in this process, or as one of its own."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest


def program() -> list[str]:
    """The program under test: CBTQA_PROGRAM (an installed wheel), or this environment's own."""
    own = os.environ.get("CBTQA_PROGRAM")
    return [own] if own else [sys.executable, "-m", "cbtqa"]


def environment(**more: str) -> dict[str, str]:
    """The environment without anything that would set cbtqa up."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("CBTQA_", "OPENAI_"))}
    return {**kept, "NO_COLOR": "1", "COLUMNS": "120", "LC_ALL": "C.UTF-8", **more}


def run_cbtqa(
    *words: str | Path, cwd: Path, code: int | None = 0, as_process: bool = False, **more: str
) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end and checks its exit code; with None any but that of a bug.

    In this process, which has its imports and rules loaded, unless `as_process` says otherwise or
    CBTQA_PROGRAM names an installed program: `scripts/test_wheel` runs the same tests with one.
    """
    run = _as_process if as_process or "CBTQA_PROGRAM" in os.environ else _here
    done = run(list(map(str, words)), cwd, environment(**more))
    is_expected = done.returncode != 1 if code is None else done.returncode == code
    assert is_expected, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return done


def _as_process(
    words: list[str], cwd: Path, env: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*program(), *words], cwd=cwd, env=env, capture_output=True, text=True, timeout=110
    )


def _here(words: list[str], cwd: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    from cbtqa.cli import language
    from cbtqa.cli.main import main

    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.chdir(cwd)
        patch.setattr(language, "_chosen", "en")  # and so it is again for the next test
        for name in os.environ.keys() - env.keys():
            patch.delenv(name)
        for name in env:
            patch.setenv(name, env[name])
        patch.setattr(sys, "excepthook", sys.excepthook)
        with pytest.raises(SystemExit) as ended:
            main(words)
    code = int(ended.value.code or 0)
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())
