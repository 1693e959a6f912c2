"""How often the product's intervals hold the truth and its tests reject it, by simulation.

    python scripts/bench/coverage.py [--trials 1000] [--only rate]
    python scripts/bench/coverage.py --trials 0        # as many as the test suite runs
    python scripts/bench/coverage.py --markdown docs/statistics.md    # writes its table there

With `--markdown` every row goes into the file as soon as it is measured, in the place of the older
one of this figure; rows of figures that are no more are dropped. Of N trials a rate near .95 is
known to within 1.96 * sqrt(.0475 / N): .0135 at 1,000. The column `width`: `Measured.width` in
tests/coverage/cases.py.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.coverage.all_cases import CASES
from tests.coverage.cases import Case, Measured, faults

BEGIN, END = "<!-- measured by scripts/bench/coverage.py -->", "<!-- end of measured -->"
HEAD = (
    "| figure | of | nominal | measured | ± | allowed | width | printed | trials | tier |\n"
    "|---|---|---|---|---|---|---|---|---|---|"
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=1_000)
    parser.add_argument("--only", default="", help="cases whose room or name holds this word")
    parser.add_argument("--markdown", type=Path, help="the file whose table is written anew")
    asked = parser.parse_args()
    print(HEAD)
    for case in CASES:
        if asked.only not in f"{case.room} {case.name}":
            continue
        start = time.process_time()
        n_trials = asked.trials or case.n_trials
        found = case.run(n_trials)
        row = row_of(case, found, n_trials)
        print(
            row, f"{time.process_time() - start:.1f} s", "; ".join(faults(case, found)), flush=True
        )
        if asked.markdown:
            write_row(asked.markdown, row)


def row_of(case: Case, found: Measured, n_trials: int) -> str:
    """One line of the table; what is allowed only where it is not the nominal band."""
    n_printed = found.printed * n_trials
    fields = (
        case.name,
        case.room,
        ".95" if case.is_interval else ".05",
        _digits(found.rate, 3),
        _digits(found.error / math.sqrt(n_printed) if n_printed else math.nan, 3),
        "" if not case.note else f"{_digits(case.allowed[0], 3)}-{_digits(case.allowed[1], 3)}",
        _digits(found.width, 2),
        _digits(found.printed, 2),
        f"{n_trials:,}",
        case.tier,
    )
    return f"| {' | '.join(fields)} |"


def _digits(value: float, n: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{n}f}"


def write_row(path: Path, row: str) -> None:
    """Puts a row into the table between the two marks, in the order of the cases."""
    before, rest = path.read_text(encoding="utf-8").split(BEGIN)
    table, after = rest.split(END)
    rows = {_name(line): line for line in table.splitlines() if line.startswith("| ")}
    rows[_name(row)] = row
    names = [(case.name, case.room) for case in CASES]
    ordered = "\n".join(rows[name] for name in names if name in rows)
    path.write_text(f"{before}{BEGIN}\n{HEAD}\n{ordered}\n{END}{after}", encoding="utf-8")


def _name(row: str) -> tuple[str, str]:
    _, name, room, *_ = (field.strip() for field in row.split("|"))
    return name, room


if __name__ == "__main__":
    main()
