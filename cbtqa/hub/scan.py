"""Reads every file of a plan and refuses what must not leave; nothing is sent before it passes.

    refuse_findings(scan_plan(plan, Watch(index=index)))

Only kinds of files that are known to belong into a repository are let through; all text in them is
read: cards, JSON, the header of safetensors, and every string of a Parquet file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from cbtqa.files import parse_yaml
from cbtqa.hub.file_texts import Passage, is_known_kind, is_vocabulary, passages_of
from cbtqa.hub.plan import CARD_PATH, PROVENANCE_PATH, PlannedFile, PublishPlan, PublishRefusedError
from cbtqa.hub.source_text import SourceIndex
from cbtqa.records import Record
from cbtqa.safety.personal_data import find_personal_data

PERSONAL_KINDS = {"phone", "landline", "id_card", "bank_card", "email", "wechat", "qq"}
"""Kinds told by form and checksum; names and addresses after a cue are too often invented ones."""
SHORTEST_SECRET = 12
"""Characters; what is shorter is no key, and may be a common word."""
MAX_SHOWN = 10
_SECRET_NAME = re.compile(r"(?:KEY|TOKEN|SECRET|PASSWORD|PASSWD)$")


class Rule(Record):
    """A name and why files of it stay."""

    match: str
    why: str


class Magic(Record):
    """First bytes in hex, and what they mean."""

    bytes: str
    why: str


class SecretPattern(Record):
    """A kind of key and how it looks."""

    id: str
    pattern: str


class Refusals(Record):
    """The whole file."""

    left_out: tuple[Rule, ...]
    names: tuple[Rule, ...]
    magic: tuple[Magic, ...]
    secrets: tuple[SecretPattern, ...]
    paths: tuple[str, ...]
    blanks: tuple[str, ...]


@cache
def load_refusals() -> Refusals:
    """The shipped file."""
    text = files("cbtqa.hub").joinpath("refusals.yaml").read_text(encoding="utf-8")
    return Refusals.model_validate(parse_yaml(text))


class Finding(NamedTuple):
    """One thing that must not leave."""

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
    """Keys in use on this machine; see `secrets_of_environment`."""
    places: Sequence[str] = ()
    """Paths of this machine, such as the run's own folder."""


def secrets_of_environment() -> tuple[str, ...]:
    """Values of environment variables that are named like keys."""
    return tuple(
        value
        for name, value in os.environ.items()
        if _SECRET_NAME.search(name.upper()) and len(value) >= SHORTEST_SECRET
    )


def places_of(*paths: Path) -> tuple[str, ...]:
    """Paths that betray this machine, long enough to mean something."""
    known = {str(path.resolve()) for path in (*paths, Path.home(), Path.cwd())}
    return tuple(sorted(place for place in known if place.count(os.sep) >= 2))


def scan_plan(plan: PublishPlan, watch: Watch) -> list[Finding]:
    """Everything in the plan that must not leave, file by file."""
    findings: list[Finding] = []
    for file in plan.files:
        refused = _refused_kind(file)
        if refused is not None:
            findings.append(Finding(file.path, refused))
            continue
        # question text stands in the tables by permission, never in what stays readable for all
        is_open = plan.has_source_text and file.path not in (CARD_PATH, PROVENANCE_PATH)
        own = Watch(SourceIndex(), watch.names, watch.secrets, watch.places) if is_open else watch
        findings += scan_file(file, own)
    return findings


def scan_file(file: PlannedFile, watch: Watch) -> Iterator[Finding]:
    """What one file holds that must not leave."""
    find = _TextScan(watch, has_plain_text=not is_vocabulary(file.path))
    is_table = file.path.endswith(".parquet")
    for block in passages_of(file.path, file.source):
        for passage, what in find.all_in(block, look_for_people=is_table):
            yield Finding(f"{file.path}:{passage.where}", what)
    if file.path == CARD_PATH:
        yield from find_blanks(file.source.read_text(encoding="utf-8"))


def find_blanks(card: str) -> Iterator[Finding]:
    """Places of a card that nobody filled in."""
    pattern = re.compile("|".join(load_refusals().blanks), re.MULTILINE)
    for number, line in enumerate(card.splitlines(), 1):
        found = pattern.search(line)
        if found:
            yield Finding(f"{CARD_PATH}:{number}", f"a blank in the card: {found[0].strip()!r}")


def refuse_findings(findings: Sequence[Finding]) -> None:
    """Stops the publication when there is anything.

    Raises:
        PublishRefusedError: lists where and what, never the secret itself.
    """
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
    for rule in load_refusals().names:
        if fnmatch(name, rule.match):
            return rule.why
    with file.source.open("rb") as stream:
        head = stream.read(16)
    for magic in load_refusals().magic:
        if head.startswith(bytes.fromhex(magic.bytes)):
            return f"{magic.why}, whatever its name says"
    return None if is_known_kind(name) else "a kind of file that is not published"


class _TextScan:
    """All patterns, compiled once for a file."""

    def __init__(self, watch: Watch, has_plain_text: bool) -> None:
        self._index = watch.index
        self._has_plain_text = has_plain_text
        self._literals = [
            (value, "a key that is in use on this machine") for value in watch.secrets
        ]
        self._literals += [(value, "a path of this machine") for value in watch.places]
        if has_plain_text:  # a vocabulary knows every name
            self._literals += [(value, "a name that must not appear") for value in watch.names]
        self._secrets = [(kind.id, re.compile(kind.pattern)) for kind in load_refusals().secrets]
        self._paths = re.compile("|".join(load_refusals().paths), re.MULTILINE)

    def all_in(
        self, block: Sequence[Passage], look_for_people: bool
    ) -> Iterator[tuple[Passage, str]]:
        """Every finding in some passages, with the passage it stands in."""
        for passage in block:
            for what in self._in_text(passage.text):
                yield passage, what
            if look_for_people:
                for what in _people_in(passage.text):
                    yield passage, what
        if self._index and self._has_plain_text:
            for number, start, end in self._index.hits([passage.text for passage in block]):
                shown = f"characters {start + 1}-{end}"
                yield block[number], f"repeats protected text ({shown} of this field)"

    def _in_text(self, text: str) -> Iterator[str]:
        for value, what in self._literals:
            if value in text:
                yield what
        if len(text) < SHORTEST_SECRET:
            return
        for name, pattern in self._secrets:
            found = pattern.search(text)
            if found:
                yield f"looks like a secret: {name} ({found[0][:4]}...)"
        if self._has_plain_text:
            found = self._paths.search(text)
            if found:
                yield f"an absolute path: {found[0][:40]}"


def _people_in(text: str) -> Iterable[str]:
    # hashes and versions are no prose; every kind holds five digits, an @ or an account's letters
    if not re.search(r"[\u4e00-\u9fff]", text) or not re.search(r"\d{5}|@|[A-Za-z]{5}", text):
        return ()
    kinds = {place.kind for place in find_personal_data(text)} & PERSONAL_KINDS
    return [f"personal data: {kind}" for kind in sorted(kinds)]
