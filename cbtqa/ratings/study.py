"""A rating study on disk: what is shown, to whom, in which order. Never which system wrote it.

    study.json       the design: id, seed, raters, arms by letter, counts
    rubric.json      the rubric, frozen when the study was made
    items.jsonl      every text to rate, under an opaque id, with the letter of its arm
    plan.jsonl       every presentation: which rater sees which item, as number so-and-so
    log.jsonl        what was done with the study, and when
    ratings.sqlite   what raters did (see `store`)
    sheets/          one xlsx per rater

The one file that ties letters to system names is the key, written beside the folder, not into it:
whoever holds the folder alone stays blind. `unblind` is a logged step that copies the names in.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field

from cbtqa.errors import DataError, UsageError
from cbtqa.files import (
    json_line,
    parse_record,
    read_json,
    read_jsonl,
    read_text,
    write_json,
    write_jsonl,
    write_text,
)
from cbtqa.manifest import FileEntry, now
from cbtqa.paths import keep_private, make_folder, remove_leftovers
from cbtqa.ratings.rubric import Language, Rubric
from cbtqa.records import NonEmptyText, Record, Risk

RecordT = TypeVar("RecordT", bound=Record)
FORMAT_VERSION = 1
QUESTIONS_ONLY = "questions"
"""Stands for the system when the questions themselves are rated."""

# XML 1.0 has no place for these, so neither has a sheet; they carry nothing to read
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]")


def clean_text(text: str) -> str:
    """Text as shown and compared: unix line ends, no control characters, no outer blanks."""
    unix = text.replace("\r\n", "\n").replace("\r", "\n")
    return _CONTROL.sub("", unix).strip()


def column_letters(place: int) -> str:
    """A, B, ..., Z, AA, AB, ... from 0 on."""
    before, last = divmod(place, 26)
    return (column_letters(before - 1) if before else "") + chr(ord("A") + last)


class ShownTurn(Record):
    role: NonEmptyText
    text: str


def session_text(turns: Iterable[ShownTurn]) -> str:
    """A session as one text, a numbered line for each turn."""
    return "\n".join(f"#{n} {turn.role}: {turn.text}" for n, turn in enumerate(turns, 1))


class Item(Record):
    id: NonEmptyText
    """Opaque: reveals neither the system nor the question."""
    arm: NonEmptyText
    """A letter; the key file maps it to a system."""
    question_id: NonEmptyText
    question: str = ""
    description: str = ""
    answer: str = ""
    turns: tuple[ShownTurn, ...] = ()
    risk: Risk = "none"
    """Risk graded on the question; shown as a content note, never as a score."""
    stratum: str = "all"
    """What it was drawn for, such as `risk:explicit`."""

    @property
    def parts(self) -> dict[str, str]:
        """Everything that is shown, by part, empty parts left out."""
        shown = {name: getattr(self, name) for name in ("question", "description", "answer")}
        shown["session"] = session_text(self.turns)
        return {name: text for name, text in shown.items() if text}

    def quotes(self, evidence: str) -> bool:
        """True when the evidence is in what is shown, or names a turn as `#12`."""
        turn = re.fullmatch(r"#\s*(\d{1,6})", evidence.strip())
        if turn and self.turns:
            return 1 <= int(turn[1]) <= len(self.turns)
        return any(clean_text(evidence) in text for text in self.parts.values())


class Presentation(Record):
    """One item put before one rater."""

    code: NonEmptyText
    """Unique in the study, such as `R2-017`: the rater and the place in that rater's order."""
    rater: NonEmptyText
    order: int = Field(ge=1)
    item_id: NonEmptyText
    repeat: int = Field(default=0, ge=0)
    """1 when this rater has already had this item: it measures how steady the rater is."""
    phase: Literal["calibration", "main"] = "main"
    """Calibration items come first, are the same for all raters, and do not count."""


class Study(Record):
    format_version: int = FORMAT_VERSION
    id: NonEmptyText
    title: str = ""
    language: Language
    seed: int
    rubric: NonEmptyText
    """Rubric id with version, such as `cbt-llm.v1`."""
    rubric_sha256: NonEmptyText
    raters: tuple[str, ...]
    """R1, R2, ...; real names stay with whoever runs the study."""
    arms: tuple[str, ...]
    per_item: int
    """Raters per item; all of them in a fully crossed study."""
    n_questions: int
    n_items: int
    n_calibration: int = 0
    n_repeats: int = 0
    """Items that each rater sees twice."""
    stratified_by: str = "none"
    inputs: tuple[FileEntry, ...] = ()
    cbtqa_version: str
    created_at: str


class StudyKey(Record):
    """Each letter's system. Kept apart from the study until it is unblinded."""

    study_id: NonEmptyText
    systems: dict[str, str]
    """Arm letter to system name."""


@dataclass(frozen=True)
class StudyFolder:
    path: Path
    study: Study
    rubric: Rubric
    items: Mapping[str, Item]
    plan: tuple[Presentation, ...]

    @property
    def store_path(self) -> Path:
        return self.path / "ratings.sqlite"

    @property
    def sheets_path(self) -> Path:
        return self.path / "sheets"

    @cached_property
    def by_code(self) -> dict[str, Presentation]:
        return {shown.code: shown for shown in self.plan}

    @cached_property
    def _by_rater(self) -> dict[str, tuple[Presentation, ...]]:
        plan = sorted(self.plan, key=lambda shown: shown.order)
        return {name: tuple(p for p in plan if p.rater == name) for name in self.study.raters}

    def shown_to(self, rater: str) -> tuple[Presentation, ...]:
        return self._by_rater[rater]

    def item_of(self, shown: Presentation) -> Item:
        return self.items[shown.item_id]

    def systems(self) -> dict[str, str] | None:
        """Arm letters to names, or None while the study is blind."""
        path = self.path / "systems.json"
        return _read_part(StudyKey, path).systems if path.exists() else None

    def names_of_arms(self) -> dict[str, str]:
        """Arm letters to what they are called now: names, or the letters while blind."""
        named = self.systems()
        if named is None and self.rubric.shows == "question":
            return dict.fromkeys(self.study.arms, QUESTIONS_ONLY)
        return named or {arm: arm for arm in self.study.arms}

    def log(self, action: str, **details: Any) -> None:
        """Adds one line to the study's log, durably."""
        line = json_line({"at": now(), "action": action, **details})
        with (self.path / "log.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(line)
            stream.flush()
            os.fsync(stream.fileno())


UNFINISHED = ".unfinished"
"""Holds the study's id while its folder, its key and its sheets are being written."""


def require_new(path: Path, key_path: Path) -> None:
    """Raises a UsageError where a study or its key would overwrite something.

    What a killed command has left of both is removed.
    """
    if (path / UNFINISHED).is_file():
        study_id = read_text(path / UNFINISHED)
        if key_path.is_file() and _read_part(StudyKey, key_path).study_id == study_id:
            key_path.unlink()
        _remove(path)
    elif path.is_dir() and all(one.suffix == ".part" for one in path.iterdir()):
        remove_leftovers(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        holds = "already holds a study" if (path / "study.json").is_file() else "is no empty folder"
        raise UsageError(
            f"{path} {holds}; a study is never written over",
            hint="choose another --out, or remove it yourself",
        )
    if key_path.exists():
        raise UsageError(f"{key_path} exists; a key is never written over", hint="choose --key")


def _remove(path: Path) -> None:
    """Removes an unfinished study, its mark last: killed in between, it is known for one again."""
    mark = path / UNFINISHED
    for one in path.iterdir():
        if one.is_dir() and not one.is_symlink():
            shutil.rmtree(one)
        elif one != mark:
            one.unlink()
    mark.unlink()
    path.rmdir()


def write_study(
    path: Path, study: Study, rubric: Rubric, items: Iterable[Item], plan: Sequence[Presentation]
) -> StudyFolder:
    """Writes a new study folder, for its owner only; the caller removes `UNFINISHED`."""
    make_folder(path)
    keep_private(path)
    write_text(path / UNFINISHED, study.id)
    kept, shown = {item.id: item for item in items}, tuple(plan)
    write_json(path / "rubric.json", rubric)
    write_jsonl(path / "items.jsonl", kept.values())
    write_jsonl(path / "plan.jsonl", shown)
    write_json(path / "study.json", study)
    folder = StudyFolder(path, study, rubric, kept, shown)
    folder.log("created", rubric=study.rubric, seed=study.seed, n_items=study.n_items)
    for file in path.iterdir():
        keep_private(file)
    return folder


def open_study(path: Path) -> StudyFolder:
    """A study; DataError where there is none, a part is damaged, or the rubric has changed."""
    if not (path / "study.json").exists():
        raise DataError("no study here", where=str(path), hint="make one with: cbtqa rate new")
    study = _read_part(Study, path / "study.json")
    if study.format_version != FORMAT_VERSION:
        raise DataError(
            f"format version {study.format_version}; this cbtqa reads {FORMAT_VERSION}",
            where=str(path / "study.json"),
        )
    rubric = _read_part(Rubric, path / "rubric.json")
    if rubric.sha256 != study.rubric_sha256:
        raise DataError(
            "the rubric is not the one the study was made with",
            where=str(path / "rubric.json"),
            hint="restore the file; a changed rubric is a new study",
        )
    items = {item.id: item for item in read_jsonl(path / "items.jsonl", Item)}
    plan = tuple(read_jsonl(path / "plan.jsonl", Presentation))
    unknown = next((shown for shown in plan if shown.item_id not in items), None)
    if unknown is not None:
        raise DataError(
            f"{unknown.code} shows {unknown.item_id}, which items.jsonl does not hold",
            where=str(path / "plan.jsonl"),
        )
    return StudyFolder(path, study, rubric, items, plan)


def newest_study(within: Path = Path()) -> Path:
    """The study made last: this folder itself, or one or two levels down.

    Raises:
        UsageError: there is none.
    """
    parts = ("study.json", "rubric.json", "items.jsonl", "plan.jsonl")
    folders = (within, *within.glob("*/"), *within.glob("*/*/"))
    found = [one for one in folders if all((one / name).is_file() for name in parts)]
    if not found:
        raise UsageError(
            "no rating study named, and none in the current folder",
            hint="cbtqa rate new makes one; or give its folder",
        )
    return max(found, key=lambda one: (one / "study.json").stat().st_mtime_ns)


def _read_part(model: type[RecordT], path: Path) -> RecordT:
    return parse_record(model, read_json(path), str(path))


def write_key(path: Path, key: StudyKey) -> None:
    write_json(path, key)
    keep_private(path)


def unblind(folder: StudyFolder, key_path: Path, by: str, n_ratings: int, digest: str) -> StudyKey:
    """Brings the system names into the study and logs who did it, on which ratings.

    `digest` is the hash of the ratings at this moment, so that later changes show. A key of
    another study, or with other arms, is a DataError.
    """
    key = _read_part(StudyKey, key_path)
    if key.study_id != folder.study.id:
        raise DataError(
            f"this key opens study {key.study_id}, not {folder.study.id}", where=str(key_path)
        )
    if set(key.systems) != set(folder.study.arms):
        raise DataError(
            f"the key names arms {sorted(key.systems)}, the study has {list(folder.study.arms)}",
            where=str(key_path),
        )
    folder.log("unblinded", by=by, n_ratings=n_ratings, ratings_sha256=digest)
    write_key(folder.path / "systems.json", key)
    return key
