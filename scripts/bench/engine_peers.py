"""Our engine, curator and distilabel against the same endpoint: rate and CPU of the process tree.

    python -m venv /tmp/curator && /tmp/curator/bin/pip install bespokelabs-curator
    python -m venv /tmp/distilabel && /tmp/distilabel/bin/pip install 'distilabel[openai]' requests
    python scripts/bench/engine_peers.py --curator /tmp/curator --distilabel /tmp/distilabel

Every client asks the same questions, 256 in flight at 1 s, without retries of its own making. A
peer whose folder is not given, or which does not finish, is reported as such.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from engine import ask, endpoint, say

CURATOR = """
import os, sys
from importlib.util import find_spec
from pathlib import Path
# curator counts tokens with a vocabulary that it would fetch; litellm brings a copy
own = Path(find_spec("litellm").origin).parent / "litellm_core_utils" / "tokenizers"
os.environ.setdefault("TIKTOKEN_CACHE_DIR", str(own))
os.environ["CURATOR_VIEWER"] = "0"
os.environ["TELEMETRY_ENABLED"] = "false"
from bespokelabs import curator
from datasets import Dataset
url, n, in_flight = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])

class Echo(curator.LLM):
    def prompt(self, row): return row["question"]
    def parse(self, row, response): return {"answer": response}

model = Echo(model_name="bench", backend="openai", backend_params={
    "base_url": url, "api_key": "none", "max_requests_per_minute": 10**7,
    "max_tokens_per_minute": 10**9, "max_concurrent_requests": in_flight})
rows = Dataset.from_list([{"question": f"q{i}"} for i in range(n)])
made = model(rows, working_dir=sys.argv[4])
made = getattr(made, "dataset", made)
assert len(made) == n, len(made)
"""
DISTILABEL = """
import sys
from distilabel.models import OpenAILLM
from distilabel.pipeline import Pipeline
from distilabel.steps import LoadDataFromDicts
from distilabel.steps.tasks import TextGeneration
url, n, in_flight = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
if __name__ == "__main__":
    with Pipeline(name="bench", cache_dir=sys.argv[4]) as pipeline:
        load = LoadDataFromDicts(data=[{"instruction": f"q{i}"} for i in range(n)],
                                 batch_size=in_flight)
        ask = TextGeneration(llm=OpenAILLM(model="bench", base_url=url, api_key="none"),
                             input_batch_size=in_flight)
        load >> ask
    made = pipeline.run(use_cache=False)
    assert len(made["default"]["train"]) == n
"""
OURS = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[5])
from engine import BenchTask
from cbtqa.llm.batch import run_batch
from cbtqa.llm.endpoint import Endpoint
from cbtqa.llm.journal import Journal
from cbtqa.llm.limits import Limits
url, n, in_flight = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
with Journal(Path(sys.argv[4]) / "journal.sqlite") as journal:
    where = Endpoint.parse(url, "bench", environ={})
    made = run_batch(range(n), BenchTask(), where, journal, Limits(in_flight=in_flight))
assert made.n_accepted == n
"""


def measure(name: str, python: str, code: str, arguments: argparse.Namespace) -> None:
    """Runs one client as a process pinned to core 1 and says what it took."""
    with (
        endpoint("--latency", str(arguments.latency)) as where,
        tempfile.TemporaryDirectory(dir=".") as folder,
    ):
        script = Path(folder) / "client.py"
        script.write_text(code, encoding="utf-8")
        words = [python, str(script), where.base_url, str(arguments.requests)]
        words += [str(arguments.in_flight), folder, str(Path(__file__).resolve().parent)]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        start = time.perf_counter()
        try:
            ended = subprocess.run(
                words,
                capture_output=True,
                text=True,
                timeout=arguments.timeout,
                env=os.environ | {"OPENAI_API_KEY": "none", "HF_HUB_OFFLINE": "1"},
                check=False,
            )
            failure = ended.stderr.strip().splitlines()[-3:] if ended.returncode else None
        except subprocess.TimeoutExpired:
            failure = [f"did not end within {arguments.timeout} s"]
        wall = time.perf_counter() - start
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        stats = ask(where, "/stats")
        limit = arguments.in_flight / arguments.latency
        say(
            bench="peers",
            client=name,
            failure=failure,
            answered=stats["answered"].get("ok", 0),
            wall_s=round(wall, 1),
            span_at_endpoint_s=stats["span_s"],
            of_limit_while_asking=round(stats["requests"] / max(stats["span_s"], 1e-3) / limit, 3),
            cpu_s_per_1000=round(1000 * cpu / max(1, stats["requests"]), 2),
            peak_in_flight=stats["peak_in_flight"],
        )


def main() -> None:
    """Reads the flags and measures each client in turn."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--curator", help="folder of a virtual environment with curator")
    parser.add_argument("--distilabel", help="folder of a virtual environment with distilabel")
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--in-flight", type=int, default=256)
    parser.add_argument("--latency", type=float, default=1.0)
    parser.add_argument("--timeout", type=float, default=180)
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {1})
    measure("cbtqa", sys.executable, OURS, arguments)
    for name, code in (("curator", CURATOR), ("distilabel", DISTILABEL)):
        folder = getattr(arguments, name)
        if folder:
            measure(name, str(Path(folder) / "bin" / "python"), code, arguments)
        else:
            print(json.dumps({"bench": "peers", "client": name, "failure": "not given"}))


if __name__ == "__main__":
    main()
