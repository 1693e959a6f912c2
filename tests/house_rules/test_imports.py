"""Which room may import which library, and what `--help` must not load."""

from __future__ import annotations

import ast
import subprocess
import sys

from tests.support.sources import ROOT, nodes_of, package_files

ROOMS_OF_LIBRARY = {
    "typer": ("cli/",),
    "rich": ("cli/",),
    "openai": ("llm/",),
    "aiohttp": ("llm/",),
    "ray": ("llm/cluster.py",),
    "torch": ("tuning/", "metrics/", "distortions/", "safety/encoder.py"),
    "transformers": ("tuning/", "metrics/", "distortions/"),
    "peft": ("tuning/",),
    "trl": (),
    "huggingface_hub": ("hub/",),
    "httpx2": ("hub/",),
    "markdown_it": ("hub/",),
    "openpyxl": ("ratings/",),
    "xlsxwriter": ("ratings/",),
    "starlette": ("ratings/", "web/", "tuning/answering/"),
    "sacrebleu": ("metrics/",),
    "jieba": ("metrics/",),
    "rjieba": ("metrics/",),
    "nltk": (),
    "krippendorff": (),
    "pingouin": (),
}
HEAVY = ("torch", "transformers", "datasets", "pandas", "openai", "aiohttp", "pyarrow", "numpy")


def test_third_party_libraries_stay_in_their_rooms() -> None:
    for path in package_files():
        room = path.relative_to(ROOT / "cbtqa").as_posix()
        for node in nodes_of(path):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            for name in names:
                rooms = ROOMS_OF_LIBRARY.get(name.split(".")[0])
                assert rooms is None or room.startswith(rooms), f"{room} imports {name}"


def test_help_loads_no_heavy_library() -> None:
    code = (
        "import sys; from cbtqa.cli.main import _run; _run(['--help'], False);"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stderr.strip() == "[]"
