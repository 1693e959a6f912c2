"""Every causal class of the installed transformers, made tiny, through tuning and back.

    nice -n 10 python scripts/bench/zoo.py                       # all: about half an hour on a core
    python scripts/bench/zoo.py qwen3_5_text qwen3_moe           # these alone
    nice -n 10 python scripts/bench/zoo.py --missing             # what has no result yet
    scripts/make_zoo_table                                       # the table of docs/backbones.md

Each class runs in a process of its own, within `--limit` CPU seconds. Results go to
tests/zoo/results.jsonl, one line a class, in place of what stood there; the exit code is 1 when one
of them is unexpected.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")


def spent() -> int:
    """CPU seconds of this process so far, which a child's limit counts as well."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return int(used.ru_utime + used.ru_stime) + 1


def run_one(model_type: str, limit: int) -> str:
    """The line of one class, from a process of its own."""
    from tests.zoo.lives import Life, live
    from tests.zoo.tiny import registered_types

    with tempfile.TemporaryDirectory(prefix="zoo-") as name:
        result = Path(name) / "line"
        child = os.fork()
        if child == 0:
            resource.setrlimit(resource.RLIMIT_CPU, (limit + spent(), limit + spent() + 5))
            result.write_text(live(model_type, Path(name)).line(), encoding="utf-8")
            os._exit(0)
        os.waitpid(child, 0)
        if result.is_file():
            return result.read_text(encoding="utf-8")
    architecture = registered_types()[model_type]
    return Life(model_type, architecture, "unexpected", f"not done in {limit} CPU seconds").line()


def main() -> int:
    """Runs what is named, or all, and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("types", nargs="*", help="model types; default: all that are registered")
    parser.add_argument("--missing", action="store_true", help="only types without a result")
    parser.add_argument("--limit", type=int, default=90, help="CPU seconds for one class")
    parser.add_argument("--out", type=Path, default=ROOT / "tests/zoo/results.jsonl")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    import torch

    from tests.zoo.lives import live
    from tests.zoo.tiny import registered_types

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="zoo-") as folder:
        live("llama", Path(folder))  # tables and patterns are read once, for all children
    gc.freeze()  # each child collects its own garbage, not the parent's libraries again
    lines: dict[str, str] = {}
    if given.out.is_file():
        for text in given.out.read_text(encoding="utf-8").splitlines():
            lines[json.loads(text)["model_type"]] = text
    names = given.types or list(registered_types())
    if given.missing:
        names = [name for name in names if name not in lines]
    for name in names:
        started = time.perf_counter()
        lines[name] = run_one(name, given.limit)
        found = json.loads(lines[name])
        seconds = time.perf_counter() - started
        print(f"{name:28} {found['ending']:10} {seconds:5.1f} s  {found['sentence'][:240]}")
        kept = (lines[key] + "\n" for key in registered_types() if key in lines)
        given.out.write_text("".join(kept), encoding="utf-8")
    counts = Counter(json.loads(lines[name])["ending"] for name in names)
    print(", ".join(f"{ending} {n}" for ending, n in counts.most_common()))
    return 1 if counts["unexpected"] else 0


if __name__ == "__main__":
    sys.exit(main())
