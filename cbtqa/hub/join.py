"""`cbtqa join`: puts question text back into a text-free dataset, from the user's own file.

Every question is checked by its hash before it is used: the file must hold the very text that the
answers were made from. The result is a dataset folder like that of `cbtqa build-dataset`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cbtqa.dataset.card import complete_folder
from cbtqa.dataset_folder import ANSWER_COLUMNS, SPLITS, DatasetWriter, types_of
from cbtqa.errors import ConfigError, DataError, IncompleteRunError, UsageError
from cbtqa.files import class_names, parquet_schema, read_json, read_rows, sha256_of
from cbtqa.hub.client import download_dataset
from cbtqa.hub.dataset import MASKED_COLUMNS, source_hash
from cbtqa.hub.plan import PROVENANCE_PATH
from cbtqa.hub.settings import REPO_ID
from cbtqa.hub.source_text import Quote, restore_quotes
from cbtqa.manifest import Manifest, SettingValue, describe_file, now, package_versions
from cbtqa.psyqa import SourceItem, parse_columns, read_questions
from cbtqa.records import Question, Reason, Rejection, Tabular
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
        DataError: no such dataset, files that were changed, or no question that fits.
        IncompleteRunError: some questions were not found; what could be joined is written.
    """
    if settings.out.exists() and any(settings.out.iterdir()):
        raise ConfigError(f"--out: {settings.out} is not empty", hint="name a new folder")
    started = now()
    published = _fetched(settings)
    tables = _checked_tables(published)
    labels: dict[str, list[dict[str, Any]]] = {}
    for _, row in _rows(tables, "distortions"):
        labels.setdefault(row["id"], []).append(row)
    wanted = {row["id"] for _, row in _rows(tables, "qa")}
    questions = _questions(settings, wanted)
    counts = {"joined": 0, "missing": 0, "other": 0}
    settings.out.mkdir(parents=True, exist_ok=True)
    with DatasetWriter(settings.out, _types_of(tables)) as writer:
        for split, row in _rows(tables, "qa"):
            question = questions.get(row["id"])
            if question and source_hash(question.source_text) == row["question_sha256"]:
                counts["joined"] += 1
                writer.add_answer(split, _restored(row, question, labels.get(row["id"], [])))
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
    return joined


def _fetched(settings: JoinSettings) -> Path:
    folder = Path(settings.published)
    if folder.is_dir():
        return folder
    if not REPO_ID.fullmatch(settings.published):
        raise DataError("neither a folder nor owner/name", where=settings.published)
    patterns = (PROVENANCE_PATH, "qa/*.parquet", "distortions/*.parquet")
    return download_dataset(settings.published, settings.revision, patterns)


def _checked_tables(folder: Path) -> list[Path]:
    """The tables that the provenance lists, after each was compared with it, split by split."""
    path = folder / PROVENANCE_PATH
    if not path.is_file():
        raise DataError(f"no {PROVENANCE_PATH}: not a dataset of cbtqa publish", where=str(folder))
    provenance: dict[str, Any] = read_json(path)
    if provenance.get("kind") != "dataset":
        raise DataError(f"holds a {provenance.get('kind')}, not a dataset", where=str(folder))
    if provenance.get("has_source_text"):
        raise UsageError("the dataset holds its questions already", hint="load it as it is")
    tables = []
    for entry in provenance["files"]:
        if not entry["path"].startswith(("qa/", "distortions/")):
            continue
        table = folder / entry["path"]
        if not table.is_file() or sha256_of(table) != entry["sha256"]:
            raise DataError("missing or not what was published", where=str(table))
        tables.append(table)
    order = {split: place for place, split in enumerate(SPLITS)}
    return sorted(tables, key=lambda path: (order.get(_split_of(path), len(order)), path.name))


def _split_of(table: Path) -> str:
    return table.name.split("-")[0]


def _rows(tables: list[Path], config: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for table in tables:
        if table.parent.name == config:
            for _, row in read_rows(table):
                yield _split_of(table), row


def _types_of(tables: list[Path]) -> list[str]:
    """The types that the labels' column names; none where it holds texts."""
    for table in tables:
        if table.parent.name == "distortions":
            return class_names(parquet_schema(table)).get("label", [])
    return []


def _questions(settings: JoinSettings, wanted: set[str]) -> dict[str, Question]:
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
    row: Mapping[str, Any], question: Question, labels: list[dict[str, Any]]
) -> dict[str, Any]:
    """A row of `answer_features`: what was published, with the question's words back in."""
    text = question.source_text
    made = {name: row.get(name) for name in ANSWER_COLUMNS}
    made |= {
        **question.model_dump(exclude={"id"}),
        "distortions": [_label(label, text) for label in labels],
        "distortion_types": types_of(label["label"] for label in labels),
    }
    for name in MASKED_COLUMNS:
        quotes = [Quote(q["start"], q["end"]) for q in row["quotes"] if q["column"] == name]
        if quotes:
            made[name] = restore_quotes(row[name], quotes, text)
    return made


def _label(label: Mapping[str, Any], text: str) -> dict[str, Any]:
    start, end = label["evidence_start"], label["evidence_end"]
    evidence = None if start is None else text[start:end]
    kept = {name: label[name] for name in ("labeller", "confidence")}
    return {"id": label["label"], "evidence": evidence, **kept}


def _finish(
    settings: JoinSettings,
    published: Path,
    counts: Mapping[str, int],
    splits: Mapping[str, int],
    started: str,
) -> None:
    run, folder = read_json(published / PROVENANCE_PATH)["run"], settings.out
    left_out = {Reason.SOURCE_MISSING: counts["missing"], Reason.SOURCE_DIFFERS: counts["other"]}
    n_left_out = sum(left_out.values())
    origin = f"published as {Path(settings.published).name}"
    before = {name: SettingValue(value=v, origin=origin) for name, v in run["settings"].items()}
    kept = {name: run[name] for name in ("prompts", "usage", "cost", "acknowledgements")}
    manifest = Manifest(
        kind="dataset",
        packages=package_versions(),
        settings=before,
        inputs=(describe_file(settings.questions), describe_file(published / PROVENANCE_PATH)),
        counts={
            "n_in": counts["joined"] + n_left_out,
            "n_out": counts["joined"],
            "n_rejected": n_left_out,
            "rejected": {str(reason): n for reason, n in left_out.items() if n},
            "splits": dict(splits),
        },
        **kept,
        started_at=started,
        finished_at=now(),
    )
    complete_folder(folder, manifest)
