"""How many texts of files are taken for wrongly decoded as they are, and after wrong decodings.

    python scripts/bench/wrong_decodings.py FILE ...

Every line of a text file and every text of a JSON file counts, and each of its clauses; of those
with four Chinese characters or more.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cbtqa.psyqa.damage import find_wrong_decoding


def _as_browsers_do(data: bytes) -> str:
    return "".join(bytes([one]).decode("cp1252", "ignore") or chr(one) for one in data)


WRONG: dict[str, Callable[[str], str]] = {
    "as it is": lambda text: text,
    "utf-8 as latin-1": lambda text: text.encode().decode("latin-1"),
    "utf-8 as windows-1252": lambda text: _as_browsers_do(text.encode()),
    "utf-8 as cp1252, bytes lost": lambda text: text.encode().decode("cp1252", "ignore"),
    "gbk as latin-1": lambda text: text.encode("gb18030").decode("latin-1"),
    "utf-8 as gbk": lambda text: text.encode().decode("gbk", "replace"),
    "utf-8 as gbk, bytes lost": lambda text: text.encode().decode("gbk", "ignore"),
    "question marks": lambda text: text.encode("ascii", "replace").decode(),
}


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)


def main(paths: list[Path]) -> None:
    whole: list[str] = []
    for path in paths:
        text = path.read_text(encoding="utf-8")
        whole += _texts(json.loads(text)) if path.suffix == ".json" else text.splitlines()
    clauses = (part for text in whole for part in re.split(r"[，。！？\s]", text))
    texts = [text for text in (*whole, *clauses) if len(re.findall("[\u4e00-\u9fff]", text)) >= 4]
    for name, spoil in WRONG.items():
        n = sum(find_wrong_decoding(spoil(text)) is not None for text in texts)
        print(f"{name:30} {n:7,} of {len(texts):,}  {n / len(texts):.4f}")


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]])
