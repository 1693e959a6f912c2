"""What the engine does in Ray actors, beside the same work in one process. One JSON object a line.

    python scripts/bench/cluster.py --in-flight 256 --latency 1 --requests 2000

The endpoint runs on core 0, everything else on core 1. CPU is that of this process alone: with Ray,
that of handing out and of the journal. `wall_s` holds the start of the actors, not that of Ray.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import ray
from engine import BenchTask, endpoint, folder, say

from cbtqa.llm.batch import run_batch
from cbtqa.llm.cluster import Cluster
from cbtqa.llm.journal import Journal
from cbtqa.llm.limits import Limits


def main() -> None:
    """Measures one process, then actors, at the same endpoint."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--in-flight", type=int, default=256)
    parser.add_argument("--latency", type=float, default=1.0, help="seconds before each answer")
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--actors", type=int, default=2)
    arguments = parser.parse_args()
    limits = Limits(in_flight=arguments.in_flight)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # the actors import the task from beside this file
    paths = [str(Path(__file__).resolve().parent), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    with endpoint("--latency", str(arguments.latency)) as where, folder() as place:
        os.sched_setaffinity(0, {1})
        for kind in ("one process", "ray"):
            if kind == "ray":
                ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
            cluster = Cluster("local", arguments.actors) if kind == "ray" else None
            with Journal(place / f"{kind}.sqlite") as journal:
                before = time.process_time()
                items = range(arguments.requests)
                summary = run_batch(items, BenchTask(), where, journal, limits, cluster=cluster)
                own_cpu = time.process_time() - before
            per_s = summary.n_accepted / summary.elapsed_s
            say(
                bench="cluster",
                kind=kind,
                accepted=summary.n_accepted,
                wall_s=round(summary.elapsed_s, 2),
                of_limit=round(per_s / (arguments.in_flight / arguments.latency), 3),
                driver_cpu_s_per_1000=round(1000 * own_cpu / summary.n_accepted, 3),
            )


if __name__ == "__main__":
    main()
