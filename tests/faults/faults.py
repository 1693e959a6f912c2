"""What can be wrong with a file, a folder and a place to write to."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

Fault = Callable[[Path], None]
"""Spoils the good file at a path."""

BOMB = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{now}: &{now} [{', '.join([f'*{before}'] * 10)}]\n"
    for before, now in zip("abcdefgh", "bcdefghi", strict=True)
)


def _missing(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _binary(path: Path) -> None:
    path.write_bytes(b"\x00\x9f\xff" + random.Random(1).randbytes(3_000))


def _truncated(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3 - 1])


def _gbk(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    path.write_bytes((text + "\n我总是做不好").encode("gb18030"))


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


def _replaced(pattern: str, new: str) -> Fault:
    """Every value of a text is replaced: `pattern` finds it, its first group stays."""

    def spoil(path: Path) -> None:
        text = path.read_text(encoding="utf-8")
        path.write_text(re.sub(pattern, lambda m: m[1] + new, text), encoding="utf-8")

    return spoil


_VALUE = r'(": ?)(?:"(?:[^"\\]|\\.)*"|-?\d[\d.e+-]*|true|false|null)'
_YAML_VALUE = r"(?m)(: )([^\n{\[]+)$"


def _wrong_types(path: Path) -> None:
    """Text becomes a list, a list an object, a number text, all others a number."""

    def wrong(value: Any, depth: int = 0) -> Any:
        if isinstance(value, dict) and depth < 3:
            return {key: wrong(one, depth + 1) for key, one in value.items()}
        if isinstance(value, list) and depth < 2 and value:
            return [wrong(one, depth + 1) for one in value]
        kinds = {str: [value], list: {"x": 1}, dict: 7, int: "many", float: "many"}
        return kinds.get(type(value), -3)

    text = path.read_text(encoding="utf-8")
    if path.suffix == ".jsonl":
        lines = [json.dumps(wrong(json.loads(line))) for line in text.splitlines() if line]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    else:
        path.write_text(json.dumps(wrong(json.loads(text))), encoding="utf-8")


def _other_object(path: Path) -> None:
    path.write_text('{"kind": {"x": [null, 1e300]}, "files": 3}\n', encoding="utf-8")


def _doubled_column(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    mark = "\t" if path.suffix == ".tsv" else ","
    path.write_text("\n".join(f"{line}{mark}{line}" for line in lines), encoding="utf-8")


def _few_cells(path: Path) -> None:
    path.write_text(path.read_text(encoding="utf-8") + "only\n", encoding="utf-8")


def _prefixed(text: str) -> Fault:
    def spoil(path: Path) -> None:
        path.write_text(text + path.read_text(encoding="utf-8"), encoding="utf-8")

    return spoil


def _doubled_key(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    found = re.search(r"(?m)^\w+:", text)
    path.write_text(f"{text}\n{found[0] if found else 'x:'} again\n", encoding="utf-8")


def _rewritten(change: Callable[[Any], Any]) -> Fault:
    """A Parquet file with other columns."""

    def spoil(path: Path) -> None:
        import pyarrow.parquet as pq

        pq.write_table(change(pq.read_table(path)), path)

    return spoil


def _numbers(table: Any) -> Any:
    import pyarrow as pa

    columns = {name: pa.array([0.5] * len(table)) for name in table.column_names}
    return pa.table(columns).replace_schema_metadata(table.schema.metadata)


def _bad_text(table: Any) -> Any:
    import pyarrow as pa

    size = len(table)
    ends = b"".join((i * 2).to_bytes(4, "little") for i in range(size + 1))
    bad = pa.StringArray.from_buffers(size, pa.py_buffer(ends), pa.py_buffer(b"\xff\xfe" * size))
    for index, field in enumerate(table.schema):
        if field.type == pa.string():
            table = table.set_column(index, field, bad)
    return table


def _times(table: Any) -> Any:
    import pyarrow as pa

    far = pa.array([-(10**17)] * len(table), pa.timestamp("us"))
    return pa.table(dict.fromkeys(table.column_names, far))


ANY: dict[str, Fault] = {
    "missing": _missing,
    "empty": _empty,
    "binary": _binary,
    "truncated": _truncated,
    "a folder": _folder,
    "a named pipe": _pipe,
    "a loop of links": _loop,
}
TEXT: dict[str, Fault] = {"GBK": _gbk}
JSON: dict[str, Fault] = {
    "NaN": _replaced(_VALUE, "NaN"),
    "infinite": _replaced(_VALUE, "1e999"),
    "long number": _replaced(_VALUE, "7" * 5_000),
    "large number": _replaced(_VALUE, "9" * 40),
    "deep": _replaced(_VALUE, "[" * 400 + "]" * 400),
    "very deep": _replaced(_VALUE + "(?s:.*)", "[" * 200_000),
    "half surrogate": _replaced(_VALUE, '"\\\\ud83d x"'.replace("\\\\", "\\")),
    "null": _replaced(_VALUE, "null"),
    "wrong types": _wrong_types,
    "another object": _other_object,
}
TABLE: dict[str, Fault] = {"doubled column": _doubled_column, "few cells": _few_cells}
YAML: dict[str, Fault] = {
    "alias bomb": _prefixed(BOMB),
    "doubled key": _doubled_key,
    "names that are no text": _prefixed("1: x\n2026-02-30: y\n[a]: z\n"),
    "deep": _prefixed("a: " + "[" * 400 + "]" * 400 + "\n"),
    "NaN": _replaced(_YAML_VALUE, ".nan"),
    "impossible date": _replaced(_YAML_VALUE, "2026-02-31"),
    "wrong types": _replaced(_YAML_VALUE, "[{x: 1}]"),
    "own types": _replaced(_YAML_VALUE, "!!python/name:os.system"),
}
PARQUET: dict[str, Fault] = {
    "numbers": _rewritten(_numbers),
    "bytes that are no text": _rewritten(_bad_text),
    "times out of range": _rewritten(_times),
    "no rows": _rewritten(lambda table: table.slice(0, 0)),
}
OF_SUFFIX: dict[str, dict[str, Fault]] = {
    ".json": TEXT | JSON,
    ".jsonl": TEXT | JSON,
    ".csv": TEXT | TABLE,
    ".tsv": TEXT | TABLE,
    ".yaml": TEXT | YAML,
    ".md": TEXT,
    ".txt": TEXT,
    ".parquet": PARQUET,
    ".xlsx": {},
    ".sqlite": {},
}
ALIKE = ("empty", "truncated", "a folder", "a loop of links", "GBK", "long number", "null")
"""Left out where a path may be left out: the same reader has met them elsewhere."""
ENDS_BADLY = {"missing", "a named pipe", "a loop of links", "binary", "very deep"}
"""With these no command can go on as if nothing were wrong with a file that it was given."""
EVERYWHERE = ("missing",)
"""What every place is tried with, whichever others take the same input."""
WHERE_REQUIRED = ("wrong types", "numbers")
"""What every place is tried with without which a command does nothing. Every other fault of an input
is tried at one of the places that take it; `CBTQA_FAULTS=all` tries every one at every place."""
IN_A_FOLDER = ("truncated", "wrong types", "missing", "deep", "numbers")
"""What is tried on each file of a folder that a command is given: the others say the same."""
IN_SETTINGS = ("missing", "alias bomb", "wrong types")
"""What is tried on `--config` of every command: one function reads it for all of them."""


def faults_of(path: Path) -> dict[str, Fault]:
    """Every fault that a good file can have, by its kind."""
    return ANY | OF_SUFFIX.get(path.suffix, {})
