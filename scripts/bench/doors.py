#!/usr/bin/env python3
"""Opens what cbtqa writes with the programs themselves, each in a virtual environment of its own.

    python scripts/bench/doors.py                    # all; some hundred megabytes of downloads
    python scripts/bench/doors.py inspect-ai trackio --work /tmp/doors

Run it from the environment of the tests, whose packages each new one sees beneath its own: a client
that wants other versions gets them. A line each: version, tests that passed, were skipped, failed.
Exit code 1 when a test failed, or none of a program passed.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]


class Door(NamedTuple):
    """One program, and the tests that open files with it."""

    install: tuple[str, ...]
    tests: tuple[str, ...]
    empty_modules: tuple[str, ...] = ()
    """Imported by the program, and of no use for rows of text: empty modules in their place."""


SHARED: tuple[str, ...] = ()
DOORS = {
    "datasets": Door(
        SHARED, ("tests/dataset/test_card.py", "tests/dataset/test_run.py", "-k", "datasets")
    ),
    "pandas": Door(
        SHARED, ("tests/dataset/test_run.py", "tests/test_api.py", "-k", "pandas or form_of_texts")
    ),
    "trl": Door(SHARED, ("tests/tuning/test_export.py", "-k", "trl_takes")),
    "evaluate": Door(SHARED, ("tests/metrics/test_for_evaluate.py",)),
    "mlcroissant": Door(
        ("mlcroissant[parquet]",), ("tests/hub/test_croissant.py", "-k", "mlcroissant")
    ),
    "inspect-ai": Door(("inspect-ai",), ("tests/simulation/test_inspect_logs.py",)),
    "label-studio-sdk": Door(
        ("label-studio-sdk",), ("tests/ratings/test_exchange.py", "-k", "accepts and label_studio")
    ),
    "potato-annotation": Door(
        ("potato-annotation",), ("tests/ratings/test_exchange.py", "-k", "accepts and potato")
    ),
    "llamafactory": Door(
        ("--no-deps", "llamafactory", "omegaconf", "antlr4-python3-runtime==4.9.*"),
        ("tests/tuning/test_export.py", "-k", "llama_factory_loads"),
        ("torchaudio",),
    ),
    "ms-swift": Door(("ms-swift",), ("tests/tuning/test_export.py", "-k", "ms_swift_loads")),
    "trackio": Door(("trackio",), ("tests/tuning/test_finetune.py", "-k", "trackio")),
}


def python_of(name: str, door: Door, work: Path) -> Path:
    """The interpreter of a program's environment, made where it is not there."""
    if not door.install:
        return Path(sys.executable)
    folder = work / name
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not python.exists():
        venv.create(folder, with_pip=True)
        ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
        own = Path(subprocess.check_output([python, "-c", ask], text=True).strip())
        (own / "below.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
        for module in door.empty_modules:
            (own / f"{module}.py").write_text("", encoding="utf-8")
    subprocess.run([python, "-m", "pip", "install", "-q", *door.install], check=True)
    return python


def open_door(name: str, door: Door, work: Path) -> tuple[str, dict[str, int]]:
    """The program's version, and how its tests ended."""
    python = python_of(name, door, work)
    ask = f"import importlib.metadata as m; print(m.version({name!r}))"
    version = subprocess.check_output([python, "-c", ask], text=True).strip()
    words = ["-q", "-n", "0", "-p", "no:cacheprovider", *door.tests]
    done = subprocess.run(
        [python, "-m", "pytest", *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    last = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else done.stderr[-300:]
    counts = {kind: int(n) for n, kind in re.findall(r"(\d+) (passed|skipped|failed|error)", last)}
    if counts.get("failed") or counts.get("error") or not counts:
        print(done.stdout[-3000:], done.stderr[-1000:], file=sys.stderr)
    return version, counts


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("names", nargs="*", choices=[[], *DOORS], help="default: all")
    parser.add_argument("--work", type=Path, help="folder of the environments; kept")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = given.work or Path(temporary)
        is_whole = True
        print(f"{'program':20} {'version':12} passed skipped failed")
        for name in given.names or DOORS:
            version, counts = open_door(name, DOORS[name], work)
            n_failed = counts.get("failed", 0) + counts.get("error", 0)
            is_whole &= counts.get("passed", 0) > 0 and not n_failed
            cells = counts.get("passed", 0), counts.get("skipped", 0), n_failed
            print(f"{name:20} {version:12} {cells[0]:6} {cells[1]:7} {cells[2]:6}", flush=True)
    return 0 if is_whole else 1


if __name__ == "__main__":
    sys.exit(main())
