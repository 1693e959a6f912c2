#!/usr/bin/env python3
"""How many of the package's files one item passes through on its way: fewer are easier to read.

    python scripts/bench/walks.py

A question on its way to Parquet (`build-dataset`, template teacher; card and report left out), a
prediction to its score (`score`), a dataset's row to a publish plan (`publish dataset --dry-run`).
Each verb runs over 12 and over 24 items; the files of cbtqa in which a function was called at least
once more for each further item are those that an item enters. Beside them: files called more often,
but not for each item, such as for one more split or one more label in a table.
"""

from __future__ import annotations

import contextlib
import io
import json
import random
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import cbtqa
from cbtqa.cli.main import _run

sys.path.insert(0, str(Path(__file__).parent))
from million import write_questions

ROOT = str(Path(cbtqa.__file__).parent)
FEW, MORE = 12, 24
LAST = ("dataset/card.py", "complete_folder")
"""Where a build goes over to its card and report."""


def calls_by_function(words: list[str]) -> Counter[tuple[str, str]]:
    """Calls by file of cbtqa and function while a command runs."""
    counted: Counter[tuple[str, str]] = Counter()

    def count(frame: Any, event: str, _: Any) -> None:
        code = frame.f_code
        file = code.co_filename.removeprefix(f"{ROOT}/")
        if (file, code.co_name) == LAST:
            sys.setprofile(None)
        elif event == "call" and code.co_filename.startswith(ROOT) and file.endswith(".py"):
            counted[file, code.co_qualname] += 1

    silent = io.StringIO()
    with contextlib.redirect_stdout(silent), contextlib.redirect_stderr(silent):
        threading.setprofile(count)
        sys.setprofile(count)
        try:
            code = _run(words, False)
        finally:
            sys.setprofile(None)
            threading.setprofile(None)
    if code:
        sys.exit(f"cbtqa {' '.join(words)} ended with {code}")
    return counted


def write_inputs(folder: Path, n: int) -> None:
    """Questions, predictions and references of n items."""
    folder.mkdir()
    write_questions(folder / "questions.jsonl", n)
    draw = random.Random(n)
    for name, key in (("predictions", "text"), ("references", "answer")):
        with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as stream:
            for number in range(n):
                said = "".join(draw.choice("你可以先停一下，听见了吗？慢慢来。") for _ in range(60))
                stream.write(json.dumps({"id": str(number), key: said}, ensure_ascii=False) + "\n")


def commands(folder: Path) -> dict[str, list[str]]:
    """The three walks over the inputs of a folder; the third needs what the first wrote."""
    out = str(folder / "out")
    references = ["--ref", str(folder / "references.jsonl")]
    return {
        "question to Parquet": ["build-dataset", str(folder / "questions.jsonl"), "--out", out],
        "prediction to score": ["score", str(folder / "predictions.jsonl"), *references],
        "row to publish plan": [
            *("publish", "dataset", out, "--to", "lab/cbt-qa", "--dry-run", "--quotes", "mask")
        ],
    }


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        sizes = {"warm": FEW, "few": FEW, "more": MORE}
        for name, n in sizes.items():
            write_inputs(Path(temporary) / name, n)
        walks = {name: commands(Path(temporary) / name) for name in sizes}
        for walk in walks["few"]:
            calls_by_function(walks["warm"][walk])
            few, more = (calls_by_function(walks[name][walk]) for name in ("few", "more"))
            grown = {place: n - few[place] for place, n in more.items() if n > few[place]}
            entered = sorted({file for (file, _), n in grown.items() if n >= MORE - FEW})
            beside = sorted({file for file, _ in grown} - set(entered))
            print(f"{walk}: {len(entered)} files: {', '.join(entered)}")
            print(f"    more often, but not for each item: {len(beside)}: {', '.join(beside)}")


if __name__ == "__main__":
    main()
