"""`cbtqa join`: puts question text back into a text-free dataset, from the user's own file.

Every question is checked by its hash before it is used: the file must hold the very text that the
answers were made from. The result is a dataset folder like that of `cbtqa build-dataset`.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field

from cbtqa.dataset.card import complete_folder
from cbtqa.dataset_folder import ANSWER_COLUMNS, SPLITS, DatasetWriter, answer_of, types_of
from cbtqa.errors import ConfigError, DataError, IncompleteRunError, UsageError
from cbtqa.files import (
    class_names,
    parquet_schema,
    parse_record,
    read_json,
    read_parquet,
    sha256_of,
)
from cbtqa.hub.client import download_dataset
from cbtqa.hub.dataset import MASKED_COLUMNS, source_hash
from cbtqa.hub.plan import FORMAT_VERSION, PROVENANCE_PATH
from cbtqa.hub.settings import REPO_ID
from cbtqa.hub.source_text import Quote, restore_quotes
from cbtqa.manifest import (
    MANIFEST_NAME,
    Manifest,
    SettingValue,
    describe_file,
    now,
    package_versions,
)
from cbtqa.paths import make_folder
from cbtqa.psyqa import SourceItem, parse_columns, read_questions
from cbtqa.records import (
    STEP_NAMES,
    NonEmptyText,
    Question,
    Reason,
    Rejection,
    Tabular,
    Usage,
)
from cbtqa.settings import Settings


class JoinSettings(Settings):
    published: str
    """The published dataset: owner/name, or a local folder."""
    questions: Path
    """Your own file with the questions, such as PsyQA's."""
    out: Path = Path("cbtqa-joined")
    """Folder of the joined dataset."""
    revision: str | None = None
    """Tag or commit of the published dataset. Default: the newest."""
    encoding: str = "utf-8"
    """Encoding of the questions, such as gb18030."""
    column: tuple[str, ...] = ()
    """Name a column of the questions: question=title. May be repeated."""
    first_turn: bool = False
    """The file holds conversations: what the client says first is the question."""
    partial: bool = False
    """Entries whose question is not found do not make the result incomplete."""


@dataclass(frozen=True)
class Joined(Tabular):
    folder: Path
    n_joined: int
    n_missing: int
    """Entries whose id the file does not have."""
    n_other: int
    """Entries whose question reads differently in the file."""


def join(settings: JoinSettings) -> Joined:
    """Writes the joined dataset.

    Raises:
        DataError: no such dataset, files that are damaged or were changed, or no question that
            fits.
        IncompleteRunError: some questions were not found; what could be joined is written, and
            the same command replaces it.
    """
    begun = settings.out / BEGUN
    if settings.out.exists() and any(settings.out.iterdir()) and not begun.exists():
        # a join that was killed after its last file left a whole dataset and no mark
        is_dataset = (settings.out / MANIFEST_NAME).is_file()
        holds = "already holds a dataset" if is_dataset else "is not empty"
        raise ConfigError(f"--out: {settings.out} {holds}", hint="name a new folder")
    started = now()
    published = _published(settings)
    wanted = _ids(published)
    labels = _labels(published, wanted)
    questions = _questions(settings, wanted)
    counts = {"joined": 0, "missing": 0, "other": 0}
    make_folder(settings.out)
    # what a stopped join left is known by this, and replaced by the next; at one stroke, for a
    # kill must leave no half-made mark in a folder that is then nobody's
    begun.touch()
    (settings.out / MANIFEST_NAME).unlink(missing_ok=True)
    with DatasetWriter(settings.out, published.types) as writer:
        for split, where, row in published.rows("qa"):
            question = questions.get(row["id"])
            if question and source_hash(question.source_text) == row["question_sha256"]:
                counts["joined"] += 1
                made = _restored(row, question, labels.get(row["id"], []), where)
                writer.add_answer(split, made)
                continue
            counts["other" if question else "missing"] += 1
            reason = Reason.SOURCE_DIFFERS if question else Reason.SOURCE_MISSING
            writer.add_rejection(Rejection(item_id=row["id"], stage="input", reason=reason))
        splits = writer.n_rows
    if not counts["joined"]:
        raise DataError(
            f"none of {len(wanted):,} entries has its question in this file",
            where=str(settings.questions),
            hint="is it the file the dataset was built from? cbtqa data check FILE shows its ids",
        )
    _finish(settings, published, counts, splits, started)
    joined = Joined(settings.out, counts["joined"], counts["missing"], counts["other"])
    if joined.n_joined < len(wanted) and not settings.partial:
        raise IncompleteRunError(
            f"{joined.n_missing:,} entries have no question in {settings.questions.name} and "
            f"{joined.n_other:,} another one; {joined.n_joined:,} are joined in {settings.out}",
            hint="see rejects.jsonl there; --partial accepts it",
        )
    begun.unlink()
    return joined


BEGUN = ".join"
"""Marks a folder whose join has not ended well."""


def _fetched(settings: JoinSettings) -> Path:
    folder = Path(settings.published)
    if folder.is_dir():
        return folder
    if not REPO_ID.fullmatch(settings.published):
        raise DataError("neither a folder nor owner/name", where=settings.published)
    patterns = (PROVENANCE_PATH, "qa/*.parquet", "distortions/*.parquet")
    return download_dataset(settings.published, settings.revision, patterns)


# --- what was published --------------------------------------------------------------------------


class PublishedFile(BaseModel):
    """One file as the provenance lists it."""

    path: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class PublishedRun(BaseModel):
    """How the dataset was made: what the joined one says about it too."""

    settings: dict[str, Any] = {}
    prompts: dict[str, str] = {}
    usage: Usage | None = None
    cost: dict[str, Any] | None = None
    acknowledgements: dict[str, str] = {}


class Provenance(BaseModel):
    """`provenance.json` of a published dataset, as far as a join needs it."""

    kind: str
    format_version: int = Field(ge=1)
    has_source_text: bool
    published: dict[str, dict[str, int]]
    """Rows by table and split."""
    run: PublishedRun
    files: tuple[PublishedFile, ...]


class PublishedLabel(BaseModel):
    """One row of `distortions`."""

    id: NonEmptyText
    label: str
    labeller: str | None = None
    confidence: float | None = Field(default=None, ge=0, le=1)
    evidence_start: int | None = Field(ge=0)
    evidence_end: int | None = Field(ge=0)


class PublishedQuote(BaseModel):
    """Where a masked stretch comes from."""

    column: Literal["answer", *STEP_NAMES]  # type: ignore[valid-type]
    start: int = Field(ge=0)
    end: int = Field(ge=0)


class PublishedEntry(BaseModel):
    """The columns of a row of `qa` that a join acts on; the others are checked as an answer."""

    id: NonEmptyText
    question_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    quotes: list[PublishedQuote]


TABLE = re.compile(rf"(qa|distortions)/({'|'.join(SPLITS)})-(\d{{5}})-of-(\d{{5}})\.parquet")
"""The only names under which tables are read: no path leads out of the folder."""


@dataclass(frozen=True)
class PublishedDataset:
    """A published dataset whose files are those that its provenance lists."""

    folder: Path
    provenance: Provenance
    tables: dict[str, tuple[tuple[str, Path], ...]]
    """By config: the split and path of each table, in order."""

    def rows(self, config: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """`(split, where, row)` of one config."""
        for split, path in self.tables.get(config, ()):
            for where, row in read_parquet(path):
                yield split, where, row

    @property
    def types(self) -> list[str]:
        """The types that the labels' column names; none where it holds texts."""
        for _, path in self.tables.get("distortions", ()):
            return class_names(parquet_schema(path)).get("label", [])
        return []


def _published(settings: JoinSettings) -> PublishedDataset:
    """The dataset, after each table was compared with the provenance.

    Raises:
        DataError: none of `cbtqa publish`, or a table is missing, changed, or not as it is listed.
    """
    folder = _fetched(settings)
    path = folder / PROVENANCE_PATH
    if not path.is_file():
        raise DataError(f"no {PROVENANCE_PATH}: not a dataset of cbtqa publish", where=str(folder))
    provenance = parse_record(Provenance, read_json(path), str(path))
    if provenance.kind != "dataset":
        raise DataError(f"holds a {provenance.kind}, not a dataset", where=str(folder))
    if provenance.format_version > FORMAT_VERSION:
        found = f"is of format {provenance.format_version}, newer than this cbtqa can read"
        raise DataError(found, where=str(path), hint="pip install --upgrade cbtqa")
    if provenance.has_source_text:
        raise UsageError("the dataset holds its questions already", hint="load it as it is")
    published = PublishedDataset(folder, provenance, _tables(folder, provenance, str(path)))
    for config in ("qa", "distortions"):
        counted = Counter(split for split, _, _ in published.rows(config))
        listed = provenance.published.get(config, {})
        if dict(counted) != {split: n for split, n in listed.items() if n}:
            found = f"{config} holds {_counts(counted)} and is listed with {_counts(listed)}"
            raise DataError(found, where=str(path))
    return published


def _counts(of_splits: Mapping[str, int]) -> str:
    return ", ".join(f"{n:,} {split}" for split, n in sorted(of_splits.items())) or "no row"


def _tables(
    folder: Path, provenance: Provenance, where: str
) -> dict[str, tuple[tuple[str, Path], ...]]:
    found: dict[str, dict[tuple[int, int], tuple[str, Path]]] = {"qa": {}, "distortions": {}}
    n_shards: dict[tuple[str, str], int] = {}
    seen: Counter[tuple[str, str]] = Counter()
    for entry in provenance.files:
        name = TABLE.fullmatch(entry.path)
        if name is None:
            if entry.path.split("/")[0] in found:
                raise DataError(f"lists {entry.path!r}, which is no name of a table", where=where)
            continue
        config, split, number, n = name[1], name[2], int(name[3]), int(name[4])
        place = (SPLITS.index(split), number)
        if place in found[config] or n_shards.setdefault((config, split), n) != n or number >= n:
            raise DataError(f"lists {entry.path} beside others that do not go with it", where=where)
        table = folder / entry.path
        if not table.is_file() or sha256_of(table) != entry.sha256:
            raise DataError("missing or not what was published", where=str(table))
        found[config][place] = split, table
        seen[config, split] += 1
    for (config, split), n in n_shards.items():
        if seen[config, split] != n:
            held = f"lists {seen[config, split]} of the {n} tables of {config}/{split}"
            raise DataError(held, where=where)
    if not found["qa"]:
        raise DataError("lists no table of answers", where=where)
    return {config: tuple(of[key] for key in sorted(of)) for config, of in found.items()}


def _ids(published: PublishedDataset) -> set[str]:
    """The ids of the entries.

    Raises:
        DataError: a row is not what `cbtqa publish` writes, or an id stands twice.
    """
    found: set[str] = set()
    for _, where, row in published.rows("qa"):
        entry = parse_record(PublishedEntry, row, where)
        if entry.id in found:
            raise DataError(f"the id '{entry.id}' stands twice", where=where)
        found.add(entry.id)
    return found


def _labels(published: PublishedDataset, ids: Container[str]) -> dict[str, list[PublishedLabel]]:
    types, found = set(published.types), defaultdict(list)
    for _, where, row in published.rows("distortions"):
        label = parse_record(PublishedLabel, row, where)
        if label.id not in ids:
            raise DataError(f"labels '{label.id}', which is no entry", where=where)
        if types and label.label not in types:
            raise DataError(f"'{label.label}' is none of its types", where=where)
        found[label.id].append(label)
    return dict(found)


# --- joining -------------------------------------------------------------------------------------


def _questions(settings: JoinSettings, wanted: Container[str]) -> dict[str, Question]:
    columns = parse_columns(settings.column)
    items = read_questions(
        settings.questions,
        encoding=settings.encoding,
        columns=columns,
        first_turn=settings.first_turn,
    )
    return {
        item.question.id: item.question
        for item in items
        if isinstance(item, SourceItem) and item.question.id in wanted
    }


def _restored(
    row: Mapping[str, Any], question: Question, labels: list[PublishedLabel], where: str
) -> dict[str, Any]:
    """A row of `answer_features`: what was published, with the question's words back in.

    Raises:
        DataError: a place lies outside the question, or the row is no answer.
    """
    text = question.source_text
    made = {name: row.get(name) for name in ANSWER_COLUMNS}
    try:
        made |= {
            **question.model_dump(exclude={"id"}),
            "distortions": [_label(label, text) for label in labels],
            "distortion_types": types_of(label.label for label in labels),
        }
        for name in MASKED_COLUMNS:
            quotes = [Quote(q["start"], q["end"]) for q in row["quotes"] if q["column"] == name]
            if quotes:
                masked = made[name]
                if not isinstance(masked, str):
                    raise ValueError(f"{name} is no text")
                made[name] = restore_quotes(masked, quotes, text)
        answer_of(made)
    except (ValueError, TypeError) as error:  # a record's fault is a ValueError too
        found = f"the entry '{row['id']}' cannot be put together: {error}"
        raise DataError(found, where=where) from None
    return made


def _label(label: PublishedLabel, text: str) -> dict[str, Any]:
    start, end = label.evidence_start, label.evidence_end
    if (start is None) != (end is None):
        raise ValueError(f"the evidence of '{label.label}' has one end")
    if start is not None and end is not None and not start < end <= len(text):
        raise ValueError(f"the evidence {start}-{end} lies outside the question")
    evidence = None if start is None else text[start:end]
    return {
        "id": label.label,
        "evidence": evidence,
        "labeller": label.labeller,
        "confidence": label.confidence,
    }


def _finish(
    settings: JoinSettings,
    published: PublishedDataset,
    counts: Mapping[str, int],
    splits: Mapping[str, int],
    started: str,
) -> None:
    run, folder = published.provenance.run, settings.out
    left_out = {Reason.SOURCE_MISSING: counts["missing"], Reason.SOURCE_DIFFERS: counts["other"]}
    n_left_out = sum(left_out.values())
    origin = f"published as {Path(settings.published).name}"
    before = {name: SettingValue(value=v, origin=origin) for name, v in run.settings.items()}
    manifest = Manifest(
        kind="dataset",
        packages=package_versions(),
        settings=before,
        inputs=(
            describe_file(settings.questions),
            describe_file(published.folder / PROVENANCE_PATH),
        ),
        counts={
            "n_in": counts["joined"] + n_left_out,
            "n_out": counts["joined"],
            "n_rejected": n_left_out,
            "rejected": {str(reason): n for reason, n in left_out.items() if n},
            "splits": dict(splits),
        },
        prompts=run.prompts,
        usage=run.usage,
        cost=run.cost,
        acknowledgements=run.acknowledgements,
        started_at=started,
        finished_at=now(),
    )
    complete_folder(folder, manifest)
