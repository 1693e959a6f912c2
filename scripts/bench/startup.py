"""How long `cbtqa` takes to start, beside an empty Python, in turns in one run.

    python scripts/bench/startup.py                  # 15 rounds
    python scripts/bench/startup.py --rounds 30

Every round starts each program once, so that other work on the machine slows all alike. Prints
one JSON object: medians in milliseconds, the ratios to the empty Python, and what `import cbtqa`
itself takes inside a running Python.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time

INSIDE = "import time; t = time.perf_counter(); import cbtqa; print(time.perf_counter() - t)"
PROGRAMS = {
    "python -c pass": ["-c", "pass"],
    "import cbtqa": ["-c", "import cbtqa"],
    "cbtqa --help": ["-m", "cbtqa", "--help"],
    "cbtqa score --help": ["-m", "cbtqa", "score", "--help"],
}


def main() -> None:
    """Prints the measurement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    taken: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    inside: list[float] = []
    for _ in range(parser.parse_args().rounds):
        for name, words in PROGRAMS.items():
            began = time.perf_counter()
            subprocess.run([sys.executable, *words], stdout=subprocess.DEVNULL, check=True)
            taken[name].append(time.perf_counter() - began)
        done = subprocess.run([sys.executable, "-c", INSIDE], capture_output=True, check=True)
        inside.append(float(done.stdout))
    medians = {name: statistics.median(seconds) for name, seconds in taken.items()}
    empty = medians["python -c pass"]
    print(
        json.dumps(
            {
                "milliseconds": {name: round(one * 1e3, 1) for name, one in medians.items()},
                "ratios": {name: round(one / empty, 2) for name, one in medians.items()},
                "import cbtqa, inside": round(statistics.median(inside) * 1e3, 2),
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
