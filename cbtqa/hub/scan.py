"""The scan of a plan: finds what must not leave; nothing is sent before it passes.

Only known kinds of files pass, and all their text is read: cards, JSON, the header of safetensors,
every string of a Parquet file.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cbtqa.errors import DataError
from cbtqa.files import open_text, read_json, shipped_yaml
from cbtqa.hub.client import saved_token
from cbtqa.hub.modelscope import saved_modelscope_token
from cbtqa.hub.plan import (
    CARD_PATH,
    CROISSANT_PATH,
    PROVENANCE_PATH,
    PlannedFile,
    PublishPlan,
    PublishRefusedError,
)
from cbtqa.hub.settings import PublishSettings
from cbtqa.hub.source_text import ANSWER_RUN, SourceIndex
from cbtqa.paths import real_path
from cbtqa.psyqa import SourceItem, parse_columns, read_questions
from cbtqa.safety.personal_data import find_personal_data

if TYPE_CHECKING:
    import pyarrow as pa

PERSONAL_KINDS = {"phone", "landline", "id_card", "bank_card", "email", "wechat", "qq"}
"""Kinds told by form and checksum; names and addresses after a cue are too often invented ones."""
SHORTEST_SECRET = 12
"""Characters; what is shorter is no key, and may be a common word."""
MAX_SHOWN = 10
OPEN_TO_ALL = (CARD_PATH, CROISSANT_PATH, PROVENANCE_PATH)
_SECRET_NAME = re.compile(r"(?:KEY|TOKEN|SECRET|PASSWORD|PASSWD)$")


@cache
def load_refusals() -> dict[str, Any]:
    loaded: dict[str, Any] = shipped_yaml("cbtqa.hub", "refusals.yaml")
    return loaded


class Finding(NamedTuple):
    where: str
    """`file`, `file:line` or `file:row N:column`."""
    what: str


@dataclass(frozen=True)
class Watch:
    """What this very publication must not contain, beside what no publication may."""

    index: SourceIndex = field(default_factory=SourceIndex)
    """Text of questions and human answers."""
    names: Sequence[str] = ()
    """Names of people."""
    secrets: Sequence[str] = ()
    """Keys in use on this machine."""
    places: Sequence[str] = ()
    """Paths of this machine, such as the run's own folder."""


def places_of(*paths: Path) -> tuple[str, ...]:
    """Paths that betray this machine, long enough to mean something."""
    known = {str(real_path(path)) for path in (*paths, Path.home(), Path.cwd())}
    return tuple(sorted(place for place in known if place.count(os.sep) >= 2))


def scan_plan(plan: PublishPlan, watch: Watch) -> list[Finding]:
    findings: list[Finding] = []
    for file in plan.files:
        if refused := _refused_kind(file):
            findings.append(Finding(file.path, refused))
            continue
        # question text is in the tables by permission, never in what stays readable for all
        is_open = plan.has_source_text and file.path not in OPEN_TO_ALL
        own = Watch(SourceIndex(), watch.names, watch.secrets, watch.places) if is_open else watch
        findings += scan_file(file, own)
    return findings


def scan_file(file: PlannedFile, watch: Watch) -> Iterator[Finding]:
    find = _TextScan(watch, has_plain_text=not _fits(file.path, VOCABULARIES))
    is_table = file.path.endswith(".parquet")
    for block in passages_of(file.path, file.source):
        for passage, what in find.all_in(block, look_for_people=is_table):
            yield Finding(f"{file.path}:{passage.where}", what)
    if file.path == CARD_PATH:
        yield from find_blanks(file.source.read_text(encoding="utf-8"))


def find_blanks(card: str) -> Iterator[Finding]:
    """Places of a card that nobody filled in."""
    pattern = re.compile("|".join(load_refusals()["blanks"]), re.MULTILINE)
    for number, line in enumerate(card.splitlines(), 1):
        if found := pattern.search(line):
            yield Finding(f"{CARD_PATH}:{number}", f"a blank in the card: {found[0].strip()!r}")


def refuse_findings(findings: Sequence[Finding]) -> None:
    """Raises PublishRefusedError that lists where and what was found, never the secret itself."""
    if not findings:
        return
    lines = [f"{finding.where}: {finding.what}" for finding in findings[:MAX_SHOWN]]
    if len(findings) > MAX_SHOWN:
        lines.append(f"... and {len(findings) - MAX_SHOWN:,} more")
    hint = "nothing was sent; take it out at its source and run the same command again"
    if any("repeats protected text" in finding.what for finding in findings):
        hint += "; for answers that quote their own question: --quotes mask"
    raise PublishRefusedError("not published:\n" + "\n".join(lines), hint=hint)


def _refused_kind(file: PlannedFile) -> str | None:
    name = file.path.rsplit("/", 1)[-1].lower()
    for rule in load_refusals()["names"]:
        if fnmatch(name, rule["match"]):
            return str(rule["why"])
    with file.source.open("rb") as stream:
        head = stream.read(16)
    for magic in load_refusals()["magic"]:
        if head.startswith(bytes.fromhex(magic["bytes"])):
            return f"{magic['why']}, whatever its name says"
    kinds = (*TEXT_KINDS, *VOCABULARIES, "*.parquet", "*.safetensors")
    return None if _fits(name, kinds) else "a kind of file that is not published"


class _TextScan:
    def __init__(self, watch: Watch, has_plain_text: bool) -> None:
        self._index = watch.index
        self._has_plain_text = has_plain_text
        self._literals = {
            **dict.fromkeys(watch.secrets, "a key that is in use on this machine"),
            **dict.fromkeys(watch.places, "a path of this machine"),
        }
        if has_plain_text:  # a vocabulary knows every name
            self._literals |= dict.fromkeys(watch.names, "a name that must not appear")
        self._secrets = [
            (kind["id"], re.compile(kind["pattern"])) for kind in load_refusals()["secrets"]
        ]
        self._paths = re.compile("|".join(load_refusals()["paths"]), re.MULTILINE)

    def all_in(
        self, block: Sequence[Passage], look_for_people: bool
    ) -> Iterator[tuple[Passage, str]]:
        """Every finding in some passages, with its passage."""
        for passage in block:
            yield from ((passage, what) for what in self._in_text(passage.text))
            if look_for_people:
                yield from ((passage, what) for what in _people_in(passage.text))
        if self._index and self._has_plain_text:
            for number, start, end in self._index.hits([passage.text for passage in block]):
                shown = f"characters {start + 1}-{end}"
                yield block[number], f"repeats protected text ({shown} of this field)"

    def _in_text(self, text: str) -> Iterator[str]:
        for value, what in self._literals.items():
            if value in text:
                yield what
        if len(text) < SHORTEST_SECRET:
            return
        for name, pattern in self._secrets:
            if found := pattern.search(text):
                yield f"looks like a secret: {name} ({found[0][:4]}...)"
        if self._has_plain_text and (found := self._paths.search(text)):
            yield f"an absolute path: {found[0][:40]}"


def _people_in(text: str) -> Iterable[str]:
    # hashes and versions are no prose; every kind holds five digits, an @ or an account's letters
    if not re.search(r"[\u4e00-\u9fff]", text) or not re.search(r"\d{5}|@|[A-Za-z]{5}", text):
        return ()
    kinds = {place.kind for place in find_personal_data(text)} & PERSONAL_KINDS
    return [f"personal data: {kind}" for kind in sorted(kinds)]


# --- text of files -------------------------------------------------------------------------------
# A kind of file that is not listed here is not read, and so is not published.

PASSAGES_PER_BLOCK = 2_000
TEXT_KINDS = ("*.md", "*.json", "*.yaml", "*.txt", "*.jinja", "*.bib", "license*", "notice*")
VOCABULARIES = (
    *("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt", "added_tokens.json"),
    *("*.tiktoken", "*.model"),
)
"""Files of a tokenizer: full of pieces that look like paths and words of any text."""
MAX_HEADER = 100_000_000
"""Bytes; safetensors' own limit for its header."""


class Passage(NamedTuple):
    """One piece of text; `where` is `line N`, `question ID:column` or `row N:column`."""

    where: str
    text: str


def passages_of(path: str, source: Path) -> Iterator[list[Passage]]:
    """All text of a file, in blocks that fit into memory; DataError for a wrong file name."""
    name = path.rsplit("/", 1)[-1].lower()
    if name.endswith(".parquet"):
        yield from _of_parquet(source)
    elif name.endswith(".safetensors"):
        yield _of_header(source)
    elif fnmatch(name, "*.model"):
        # protobuf of a tokenizer: its pieces are UTF-8, one after the other
        pieces = re.findall(r"[^\W_].{11,}", source.read_bytes().decode("utf-8", "replace"))
        yield [Passage("piece", piece) for piece in pieces]
    elif _fits(name, VOCABULARIES) and name.endswith(".json"):
        # piece by piece: side by side on one line they make up patterns that none of them is
        yield list(_strings(read_json(source), ""))
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
        yield list(_strings(read_json(source), ""))
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
    return list(_strings(header, "header"))


def _of_parquet(source: Path) -> Iterator[list[Passage]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(source) as parquet:
            metadata = parquet.schema_arrow.metadata or {}
            pairs = [b"=".join(pair).decode("utf-8", "replace") for pair in metadata.items()]
            yield [Passage("metadata", pair) for pair in pairs]
            number = 0
            for batch in parquet.iter_batches(batch_size=PASSAGES_PER_BLOCK):
                rows = _row_names(batch, number)
                for name in batch.schema.names:
                    values = batch.column(batch.schema.get_field_index(name)).to_pylist()
                    yield [
                        Passage(f"{row}:{where}", text)
                        for row, value in zip(rows, values, strict=True)
                        for where, text in _strings(value, name, with_keys=False)
                    ]
                number += batch.num_rows
    except pa.ArrowInvalid as error:
        raise DataError(f"not Parquet: {error}", where=str(source)) from None


def _row_names(batch: pa.RecordBatch, n_before: int) -> list[str]:
    """What to call each row of a table: the question that it is about, else its number."""
    for name in ("id", "question_id"):
        if name in batch.schema.names:
            ids = batch.column(batch.schema.get_field_index(name)).to_pylist()
            return [f"question {value}" for value in ids]
    return [f"row {n_before + row}" for row in range(1, batch.num_rows + 1)]


def _strings(value: Any, where: str, with_keys: bool = True) -> Iterator[Passage]:
    """Every string inside a nested value; keys of mappings too, unless a schema fixes them."""
    if isinstance(value, str):
        yield Passage(where, value)
    elif isinstance(value, dict):
        for key, inner in value.items():
            place = f"{where}.{key}".lstrip(".")
            if with_keys:
                yield Passage(place, str(key))
            yield from _strings(inner, place, with_keys)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _strings(inner, where, with_keys)


def read_notes(path: Path | None) -> str | None:
    if path is None:
        return None
    with open_text(path) as stream:
        return stream.read().strip()


def protected_text(settings: PublishSettings) -> SourceIndex:
    """The texts of `--source`: questions, descriptions and human answers."""
    index = SourceIndex()
    if settings.source is None:
        return index
    columns = parse_columns(settings.column)
    for item in read_questions(
        settings.source,
        encoding=settings.encoding,
        columns=columns,
        first_turn=settings.first_turn,
        with_answers=True,
    ):
        if isinstance(item, SourceItem):
            index.add(item.question.question)
            index.add(item.question.description)
            for answer in item.answers:
                index.add(answer.text, ANSWER_RUN)
    if not index:
        raise DataError("no question in it to compare with", where=str(settings.source))
    return index


def watch_for(settings: PublishSettings, index: SourceIndex) -> Watch:
    names: tuple[str, ...] = ()
    if settings.names is not None:
        with open_text(settings.names) as stream:
            names = tuple(name for line in stream if (name := line.strip()))
    secrets = [
        value
        for name, value in os.environ.items()
        if _SECRET_NAME.search(name.upper()) and len(value) >= SHORTEST_SECRET
    ]
    tokens = [saved_token()]
    if settings.site == "modelscope":
        tokens.append(saved_modelscope_token())
    secrets += [token for token in tokens if token]
    return Watch(index, names, secrets, places_of(settings.run))
