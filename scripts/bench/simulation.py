#!/usr/bin/env python3
"""Kills a study with SIGKILL at random moments until it is done, and compares it with a whole run.

    scripts/bench/simulation.py --arms 6 --patients 10 --replicates 2 --kills 10

Prints one JSON object: seconds and CPU seconds of the uninterrupted run, the number of kills, how
many answers each killed run found in the journal and asked for, and whether `sessions.jsonl` is the
same byte for byte. Exit code 1 when it is not, or when an answer was made twice.
"""

import argparse
import json
import random
import resource
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
VARIANTS = ("attentive", "present", "plain", "lecturing")


def write_study(path: Path, n_arms: int, n_patients: int, n_replicates: int) -> None:
    """A study of scripted players with events, every second arm with reasoning."""
    arms = [
        {
            "name": f"{VARIANTS[n % 4]}-{n}",
            "therapist": {"scripted": VARIANTS[n % 4]},
            "reasoning": "cot" if n % 2 else "plain",
        }
        for n in range(n_arms)
    ]
    study = {
        "id": "killed",
        "approach": "cbt",
        "seed": 11,
        "arms": arms,
        "patients": {"draw": "cbt", "n": n_patients},
        "replicates": n_replicates,
        "events": {"first": 2, "last": 9, "probability": 0.3},
    }
    path.write_text(yaml.safe_dump(study), encoding="utf-8")


def start(study: Path, out: Path) -> subprocess.Popen[bytes]:
    """The program, as a user starts it."""
    words = [sys.executable, "-m", "cbtqa", "simulate", "run", str(study), "--out", str(out)]
    return subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def n_rows(out: Path) -> tuple[int, int]:
    """Rows of the journal, and keys among them: more rows than keys is an answer made twice."""
    journal = out / "turns.sqlite"
    if not journal.exists():
        return 0, 0
    with sqlite3.connect(f"file:{journal}?mode=ro", uri=True) as db:
        if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'attempts'").fetchone():
            return 0, 0
        query = "SELECT count(*), count(DISTINCT key) FROM attempts"
        rows, keys = db.execute(query).fetchone()
    return int(rows), int(keys)


def main() -> int:
    """Runs the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arms", type=int, default=6)
    parser.add_argument("--patients", type=int, default=10)
    parser.add_argument("--replicates", type=int, default=2)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    chance = random.Random(given.seed)
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        study = base / "study.yaml"
        write_study(study, given.arms, given.patients, given.replicates)
        began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        if start(study, base / "whole").wait() != 0:
            raise SystemExit("the uninterrupted run failed")
        whole_s = time.perf_counter() - began
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        total, _ = n_rows(base / "whole")
        # a kill where the journal has so many rows: spread over the whole run
        marks = sorted(chance.sample(range(1, total), given.kills))
        found = []
        for mark in marks:
            child = start(study, base / "killed")
            while child.poll() is None and n_rows(base / "killed")[0] < mark:
                time.sleep(0.005)
            child.send_signal(signal.SIGKILL)
            child.wait()
            found.append(n_rows(base / "killed")[0])
        if start(study, base / "killed").wait() != 0:
            raise SystemExit("the last run failed")
        rows, keys = n_rows(base / "killed")
        is_same = (base / "whole/sessions.jsonl").read_bytes() == (
            base / "killed/sessions.jsonl"
        ).read_bytes()
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    told = {
        "sessions": given.arms * given.patients * given.replicates,
        "answers": total,
        "whole_s": round(whole_s, 1),
        "whole_cpu_s": round(cpu_s, 1),
        "rows_at_kill": found,
        "answers_made_twice": rows - keys,
        "same_bytes": is_same,
    }
    print(json.dumps(told, indent=2))
    return 0 if is_same and rows == keys else 1


if __name__ == "__main__":
    sys.exit(main())
