"""Runs the installed `cbtqa` program as a process, as a user would."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def program() -> list[str]:
    """The program under test: CBTQA_PROGRAM (an installed wheel), or this environment's own."""
    own = os.environ.get("CBTQA_PROGRAM")
    return [own] if own else [sys.executable, "-m", "cbtqa"]


def environment(**more: str) -> dict[str, str]:
    """The environment without anything that would set cbtqa up."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("CBTQA_", "OPENAI_"))}
    return {**kept, "NO_COLOR": "1", "COLUMNS": "120", **more}


def run_cbtqa(
    *words: str | Path, cwd: Path, code: int = 0, **more: str
) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end and checks its exit code."""
    done = subprocess.run(
        [*program(), *map(str, words)],
        cwd=cwd,
        env=environment(**more),
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return done
