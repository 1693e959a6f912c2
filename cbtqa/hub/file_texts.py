"""The text inside the kinds of files that are published, in passages that say where they stand.

A kind that is not listed here is not read, and so is not published.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

from cbtqa.errors import DataError
from cbtqa.files import open_text, read_json

PASSAGES_PER_BLOCK = 2_000
TEXT_KINDS = ("*.md", "*.json", "*.txt", "*.jinja", "*.bib", "license*", "notice*")
VOCABULARIES = (
    *("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt", "added_tokens.json"),
    *("*.tiktoken", "*.model"),
)
"""Files of a tokenizer: full of pieces that look like paths and words of any text."""
MAX_HEADER = 100_000_000
"""Bytes; safetensors' own limit for its header."""


class Passage(NamedTuple):
    """One piece of text; `where` is `line N` or `row N:column`."""

    where: str
    text: str


def is_vocabulary(path: str) -> bool:
    """True for a tokenizer's vocabulary, which is no running text."""
    return _fits(path, VOCABULARIES)


def is_known_kind(path: str) -> bool:
    """True for a kind of file whose text can be read here."""
    return _fits(path, (*TEXT_KINDS, *VOCABULARIES, "*.parquet", "*.safetensors"))


def passages_of(path: str, source: Path) -> Iterator[list[Passage]]:
    """All text of a file, in blocks that fit into memory.

    Raises:
        DataError: the file is not what its name says.
    """
    name = path.rsplit("/", 1)[-1].lower()
    if name.endswith(".parquet"):
        yield from _of_parquet(source)
    elif name.endswith(".safetensors"):
        yield _of_header(source)
    elif fnmatch(name, "*.model"):
        # protobuf of a tokenizer: its pieces are UTF-8, one after the other
        pieces = re.findall(r"[^\W_].{11,}", source.read_bytes().decode("utf-8", "replace"))
        yield [Passage("piece", piece) for piece in pieces]
    elif is_vocabulary(name) and name.endswith(".json"):
        # piece by piece: side by side on one line they make up patterns that none of them is
        yield [Passage(*pair) for pair in _strings(read_json(source), "")]
    else:
        yield from _of_text(source)


def _fits(path: str, kinds: tuple[str, ...]) -> bool:
    name = path.rsplit("/", 1)[-1].lower()
    return any(fnmatch(name, kind) for kind in kinds)


def _of_text(source: Path) -> Iterator[list[Passage]]:
    """Lines; text that runs over a line end is seen in the whole, which comes last."""
    with open_text(source) as stream:
        text = stream.read()
    yield [Passage(str(number), line) for number, line in enumerate(text.splitlines(), 1)]
    if source.suffix.lower() == ".json":
        # escapes such as \u4f60 hide text from a plain search
        yield [Passage(*pair) for pair in _strings(read_json(source), "")]
    elif text.count("\n") > 1:
        yield [Passage("across lines", text)]


def _of_header(source: Path) -> list[Passage]:
    """The JSON header of safetensors: names of tensors and whatever was put beside them."""
    with source.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        if size > MAX_HEADER:
            raise DataError("not safetensors: its header is too long", where=str(source))
        raw = stream.read(size)
    try:
        header = json.loads(raw)
    except (UnicodeDecodeError, json.JSONDecodeError):
        raise DataError("not safetensors: its header is not JSON", where=str(source)) from None
    return [Passage(*pair) for pair in _strings(header, "header")]


def _of_parquet(source: Path) -> Iterator[list[Passage]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(source) as parquet:
            metadata = parquet.schema_arrow.metadata or {}
            yield [
                Passage(
                    "metadata",
                    f"{key.decode('utf-8', 'replace')}={value.decode('utf-8', 'replace')}",
                )
                for key, value in metadata.items()
            ]
            number = 0
            for batch in parquet.iter_batches(batch_size=PASSAGES_PER_BLOCK):
                for name in batch.schema.names:
                    values = batch.column(batch.schema.get_field_index(name)).to_pylist()
                    yield [
                        Passage(f"row {number + row}:{where}", text)
                        for row, value in enumerate(values, 1)
                        for where, text in _strings(value, name, with_keys=False)
                    ]
                number += batch.num_rows
    except pa.ArrowInvalid as error:
        raise DataError(f"not Parquet: {error}", where=str(source)) from None


def _strings(value: Any, where: str, with_keys: bool = True) -> Iterator[tuple[str, str]]:
    """Every string inside a nested value; keys of mappings too, unless a schema fixes them."""
    if isinstance(value, str):
        yield where, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            place = f"{where}.{key}".lstrip(".")
            if with_keys:
                yield place, str(key)
            yield from _strings(inner, place, with_keys)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _strings(inner, where, with_keys)
