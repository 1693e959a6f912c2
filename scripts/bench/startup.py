"""How long `cbtqa` takes to start, beside an empty Python, in turns in one run.

    python scripts/bench/startup.py                  # 15 rounds
    python scripts/bench/startup.py --rounds 30
    python scripts/bench/startup.py --rounds 5 --verbs   # `cbtqa VERB --help` of every verb

Every round starts each program once, so that other work on the machine slows all alike. Prints
one JSON object: medians of wall and CPU milliseconds, their ratios to the empty Python, and what
`import cbtqa` itself takes inside a running Python.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

INSIDE = "import time; t = time.perf_counter(); import cbtqa; print(time.perf_counter() - t)"
EMPTY = "python -c pass"
PROGRAMS = {
    EMPTY: ["-c", "pass"],
    "import cbtqa": ["-c", "import cbtqa"],
    "cbtqa --help": ["-m", "cbtqa", "--help"],
    "cbtqa score --help": ["-m", "cbtqa", "score", "--help"],
}


def main() -> None:
    """Prints the measurement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--verbs", action="store_true", help="the help of every verb")
    given = parser.parse_args()
    programs = PROGRAMS | (_verbs() if given.verbs else {})
    wall: dict[str, list[float]] = {name: [] for name in programs}
    cpu: dict[str, list[float]] = {name: [] for name in programs}
    inside: list[float] = []
    for _ in range(given.rounds):
        for name, words in programs.items():
            began, used = time.perf_counter(), _cpu_of_children()
            subprocess.run([sys.executable, *words], stdout=subprocess.DEVNULL, check=True)
            wall[name].append(time.perf_counter() - began)
            cpu[name].append(_cpu_of_children() - used)
        done = subprocess.run([sys.executable, "-c", INSIDE], capture_output=True, check=True)
        inside.append(float(done.stdout))
    told = {"wall": _told(wall), "cpu": _told(cpu)}
    told["import cbtqa, inside"] = {"milliseconds": round(statistics.median(inside) * 1e3, 2)}
    print(json.dumps(told, indent=2))


def _verbs() -> dict[str, list[str]]:
    from cbtqa.cli.main import VERBS

    return {f"cbtqa {verb} --help": ["-m", "cbtqa", verb, "--help"] for verb in VERBS}


def _cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _told(taken: dict[str, list[float]]) -> dict[str, object]:
    medians = {name: statistics.median(seconds) for name, seconds in taken.items()}
    return {
        "milliseconds": {name: round(one * 1e3, 1) for name, one in medians.items()},
        "ratios": {name: round(one / medians[EMPTY], 2) for name, one in medians.items()},
    }


if __name__ == "__main__":
    main()
