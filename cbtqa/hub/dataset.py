"""`cbtqa publish dataset`: a built dataset as the files of a repository.

Configs: `qa` (answers), `distortions` (one row a label), `ratings` and `ratings_summary` (people's
ratings, when there are any). Rejected items, journals, reports and human answers stay behind.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cbtqa.dataset.report.material import is_invented
from cbtqa.dataset.stats import DatasetStatistics, StatisticsTally
from cbtqa.dataset_folder import (
    INTEGER,
    NUMBER,
    QUESTION_COLUMNS,
    TEXT,
    DatasetFolder,
    Feature,
    ParquetShards,
    answer_features,
    arrow_schema,
    data_files,
    list_of,
    question_of,
    type_label,
    types_of,
)
from cbtqa.distortions.taxonomy import shipped_concepts
from cbtqa.endings import Ending, ending_of
from cbtqa.errors import DataError
from cbtqa.files import sha256_of, write_json, write_text
from cbtqa.hub.cards import CardFacts, Published, render_dataset_card, write_terms
from cbtqa.hub.croissant import croissant_of
from cbtqa.hub.plan import (
    CARD_PATH,
    CROISSANT_PATH,
    KEY,
    Permission,
    PublishPlan,
    fresh_staging,
    pass_permission_gate,
    staged_files,
    write_provenance,
)
from cbtqa.hub.ratings import (
    SUMMARY_SPLIT,
    RatedStudy,
    rating_row,
    rating_schema,
    read_study,
    summary_rows,
    summary_schema,
)
from cbtqa.hub.scan import Finding, Watch, protected_text, scan_plan, watch_for
from cbtqa.hub.settings import DatasetSettings
from cbtqa.hub.source_text import SourceIndex, mask_quotes
from cbtqa.llm.batch import OnProgress
from cbtqa.llm.chat import Fault
from cbtqa.llm.second_opinion import Exchange, OpinionCounts, opinions_of
from cbtqa.records import STEP_NAMES
from cbtqa.text_faults import find_machine_text

if TYPE_CHECKING:
    import pyarrow as pa


STAYS_BEHIND = {
    "rejects.jsonl": "rejected items, with their text",
    "report.html": "a report that shows whole entries",
    "journal.sqlite": "replies of the model, with the questions",
    "screen.journal.sqlite": "verdicts on the questions, by a further model",
    "guard.journal.sqlite": "verdicts on the answers, by a further model",
    "human": "human answers",
    "README.md": "the local card; the repository gets its own",
    "manifest.json": "its content is in provenance.json",
}


def plan_dataset(settings: DatasetSettings) -> tuple[PublishPlan, Watch]:
    """Writes every file of the repository to `RUN/publish/files`; with what must not be in them.

    An unfinished build is an IncompleteRunError, a missing permission a PublishRefusedError.
    """
    folder = DatasetFolder.open(settings.run)
    manifest = folder.manifest
    permission = pass_permission_gate(settings, manifest)
    studies = [read_study(folder) for folder in settings.ratings]
    index = protected_text(settings)
    if not is_invented(manifest):
        for question in folder.questions():
            index.add(question.question)
            index.add(question.description)
    staging = fresh_staging(settings.run)
    counted, statistics = _write_tables(folder, settings, permission, index, studies, staging)
    facts = CardFacts(
        settings=settings,
        manifest=manifest,
        statistics=statistics,
        counted=counted,
        has_source_text=permission.has_source_text,
        studies=tuple(studies),
    )
    write_terms(staging)
    card = render_dataset_card(facts)
    write_text(staging / CARD_PATH, card)
    write_json(staging / CROISSANT_PATH, croissant_of(card, staging, manifest, settings))
    acknowledgements = {KEY: permission.acknowledgement} if permission.acknowledgement else {}
    write_provenance(
        staging,
        "dataset",
        manifest,
        acknowledgements={**manifest.acknowledgements, **acknowledgements},
        more={"has_source_text": permission.has_source_text, "published": counted.n_rows},
    )
    plan = PublishPlan(
        kind="dataset",
        repo_id=settings.to,
        files=staged_files(staging),
        gate=settings.gate,
        has_source_text=permission.has_source_text,
        left_out=tuple((p, why) for p, why in STAYS_BEHIND.items() if (settings.run / p).exists()),
        remarks=_remarks(counted, permission),
        acknowledgements=acknowledgements,
    )
    return plan, watch_for(settings, index)


def check_dataset(plan: PublishPlan, watch: Watch, settings: DatasetSettings) -> list[Finding]:
    """What must not leave, and files of the run that are not what its manifest says."""
    folder = DatasetFolder.open(settings.run)
    manifest = folder.manifest
    known = {entry.name: entry.sha256 for entry in manifest.files}
    changed = [
        Finding(name, "is not the file that the run's manifest describes")
        for path in data_files(settings.run)
        if (name := path.relative_to(settings.run).as_posix()).startswith("data/")
        and known.get(name) != sha256_of(path)
    ]
    return [*changed, *_damaged_answers(folder, settings), *scan_plan(plan, watch)]


def guard_answers(
    settings: DatasetSettings, on_progress: OnProgress | None = None
) -> tuple[list[Finding], tuple[str, ...]]:
    """What a guard finds unsafe among the answers to be published, and what it gave no verdict on.

    It reads what it has not read when the dataset was built; nobody is asked without
    `--guard-endpoint`.

    Raises:
        LicenceGateError: answers would go to a non-local endpoint without acknowledgement.
        EndpointError, IncompleteRunError: the asking stopped early; the same call continues.
    """
    opinions = opinions_of(settings, settings.run)
    if opinions.guard is None:
        return [], ()
    folder, counts = DatasetFolder.open(settings.run), OpinionCounts(opinions.guard)
    columns = (*QUESTION_COLUMNS, "risk", "is_acute", "answer")

    def exchanges() -> Iterator[Exchange]:
        for row in folder.rows(columns=columns):
            if not (settings.withhold_crisis and (row["risk"] != "none" or row["is_acute"])):
                yield Exchange(row["id"], question_of(row).source_text, row["answer"])

    found = []
    with opinions.open("the answers", is_invented=is_invented(folder.manifest)) as opened:
        guard = opened.guard
        assert guard is not None
        guard.ask(exchanges(), n_total=sum(1 for _ in exchanges()), on_progress=on_progress)
        for item, verdict in guard.read(exchanges()):
            problems = () if isinstance(verdict, Fault) else verdict
            counts.add(verdict, [problem.rule for problem in problems])
            if problems:
                what = "; ".join(map(str, problems))
                found.append(Finding(f"question {item.id}", f"its answer is unsafe: {what}"))
    unread = ", ".join(f"{reason} {n}" for reason, n in counts.unread.items())
    n_unread = counts.unread.total()
    remarks = [f"the guard {opinions.guard.service.model} read {counts.n_read:,} answers"]
    remarks += [f"it gave no verdict on {n_unread:,} ({unread})"] if n_unread else []
    return found, tuple(remarks)


def _damaged_answers(folder: DatasetFolder, settings: DatasetSettings) -> Iterator[Finding]:
    """Entries to be published whose answer is cut, or holds what a model writes to itself."""
    for row in folder.rows(columns=("id", "risk", "is_acute", "finish_reason", "answer")):
        ended, where = row["finish_reason"], f"question {row['id']}"
        if settings.withhold_crisis and (row["risk"] != "none" or row["is_acute"]):
            continue
        if ending_of(ended) is not Ending.WHOLE:
            yield Finding(where, f"its answer is cut: it ended with '{ended}'")
        elif found := find_machine_text(row["answer"]):
            yield Finding(where, f"its answer holds machine text ({found.kind}): {found.found!r}")


def _write_tables(
    folder: DatasetFolder,
    settings: DatasetSettings,
    permission: Permission,
    index: SourceIndex,
    studies: list[RatedStudy],
    staging: Path,
) -> tuple[Published, DatasetStatistics]:
    has_text = permission.has_source_text
    masks = settings.quotes == "mask" and not has_text
    counted, tally, split_of = Published(), StatisticsTally(), {}
    qa = arrow_schema(qa_features(folder.types, has_text))
    labels = arrow_schema(label_features(folder.types, has_text))
    with Tables(staging) as tables:
        for split, row in ((name, row) for name in folder.splits for row in folder.rows(name)):
            if settings.withhold_crisis and (row["risk"] != "none" or row["is_acute"]):
                counted.n_withheld += 1
                continue
            made = _masked_row(row, has_text, masks, index, counted)
            if made is None:
                continue
            tables.add("qa", split, qa, made)
            for label in label_rows(row, has_source_text=has_text):
                tables.add("distortions", split, labels, label)
            tally.add(split, row)
            split_of[row["id"]] = split
        if not split_of:
            raise DataError("no entry is left to publish", where=str(settings.run))
        _write_ratings(tables, studies, split_of, counted)
    counted.n_rows = tables.n_rows
    return counted, tally.result()


def _masked_row(
    row: dict[str, Any], has_text: bool, masks: bool, index: SourceIndex, counted: Published
) -> dict[str, Any] | None:
    """A row as published; None when it still repeats protected text after masking."""
    try:
        made = qa_row(row, has_source_text=has_text, masks=masks)
    except ValueError:
        counted.n_unmaskable += 1
        return None
    if masks and index.hits([made["answer"]]):
        counted.n_unmaskable += 1
        return None
    counted.n_masked += bool(made["quotes"])
    return made


def _write_ratings(
    tables: Tables, studies: list[RatedStudy], split_of: dict[str, str], counted: Published
) -> None:
    for study in studies:
        n_ours = 0
        for rating in study.rows():
            if rating.question_id not in split_of:
                counted.n_foreign_ratings += 1
                continue
            row, split = rating_row(study.report, rating), split_of[rating.question_id]
            tables.add("ratings", split, rating_schema(), row)
            n_ours += 1
        if not n_ours:
            what = f"study {study.report.study_id} rates no question of this dataset"
            raise DataError(what, where=str(study.ratings_path))
        for row in summary_rows(study.report):
            tables.add("ratings_summary", SUMMARY_SPLIT, summary_schema(), row)


def _remarks(counted: Published, permission: Permission) -> tuple[str, ...]:
    found = [
        (counted.n_withheld, "entries with a sign of risk are withheld"),
        (counted.n_masked, "answers have words of their question masked"),
        (counted.n_unmaskable, "answers are left out: they repeat text in a way masks cannot hide"),
        (counted.n_foreign_ratings, "ratings are left out: their questions are not published"),
    ]
    remarks = [f"{n:,} {what}" for n, what in found if n]
    return (*remarks, permission.remark) if permission.remark else tuple(remarks)


# `config/split-00000-of-00001.parquet`. The same rows give the same bytes, so that publishing twice
# sends nothing twice.

ROWS_PER_GROUP = 1_000
"""Small groups and a page index: the viewer reads a page without the whole file."""


class Tables(ExitStack):
    """Writes rows into configs and splits; a split without rows gets no file."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder
        self._splits: dict[tuple[str, str], ParquetShards] = {}

    def add(self, config: str, split: str, schema: pa.Schema, row: dict[str, Any]) -> None:
        key = (config, split)
        if key not in self._splits:
            shards = ParquetShards(self._folder / config, split, schema, ROWS_PER_GROUP)
            self._splits[key] = shards
            self.push(shards.close)
        self._splits[key].add(row)

    @property
    def n_rows(self) -> dict[str, dict[str, int]]:
        """Rows by config and split, in order of appearance."""
        counted: dict[str, dict[str, int]] = {}
        for (config, split), part in self._splits.items():
            counted.setdefault(config, {})[split] = part.n_rows
        return counted


# --- rows -----------------------------------------------------------------------------------------
# Without permission no row holds words of a question: `question_sha256` says which text belongs to
# it, `evidence_start` and `evidence_end` where in it a label rests, `quotes` which words of it were
# masked in the answer. Offsets count code points of the question, a newline and the description, as
# `records.Question.source_text` joins them.

SOURCE_COLUMNS = ("question", "description", "keywords")
"""The columns with the source's own text."""
NOT_PUBLISHED = (
    *(*SOURCE_COLUMNS, "distortions", "endpoint_host"),
    *("dangers", "is_acute", "is_minor"),
)
"""Columns of a built dataset that `qa` lacks; hosts would tell where somebody computes, and what a
person lives through is nobody else's to list."""
MASKED_COLUMNS = ("answer", *STEP_NAMES)


def source_hash(source_text: str) -> str:
    """The hash that ties a published row to the question text it was made from."""
    return hashlib.sha256(source_text.encode()).hexdigest()


def qa_features(types: Sequence[str], has_source_text: bool) -> dict[str, Feature]:
    built = answer_features(types)
    source = {name: built[name] for name in SOURCE_COLUMNS} if has_source_text else {}
    quote = {"column": TEXT, "start": INTEGER, "end": INTEGER}
    return {
        "id": TEXT,
        "question_sha256": TEXT,
        **source,
        **{name: feature for name, feature in built.items() if name not in NOT_PUBLISHED},
        "labels": list_of(TEXT),
        "quotes": list_of(quote),
    }


def label_features(types: Sequence[str], has_source_text: bool) -> dict[str, Feature]:
    return {
        **dict.fromkeys(("id", "question_sha256"), TEXT),
        "label": type_label(types),
        **dict.fromkeys(("label_zh", "label_en", "labeller"), TEXT),
        "confidence": NUMBER,
        **dict.fromkeys(("evidence_start", "evidence_end"), INTEGER),
        **({"evidence": TEXT} if has_source_text else {}),
    }


def qa_row(row: Mapping[str, Any], *, has_source_text: bool, masks: bool) -> dict[str, Any]:
    """A row of `qa_features`, from a row of `answer_features`.

    Args:
        masks: replace words of the question in the answer by `source_text.MASK`; ValueError where
            the answer holds a mask already.
    """
    source_text = question_of(row).source_text
    made = {name: value for name, value in row.items() if name not in NOT_PUBLISHED}
    if has_source_text:
        made |= {name: row[name] for name in SOURCE_COLUMNS}
    made["question_sha256"] = source_hash(source_text)
    made["labels"] = types_of(label["id"] for label in row["distortions"])
    made["quotes"] = []
    for name in MASKED_COLUMNS if masks else ():
        if row[name] is not None:
            made[name], found = mask_quotes(row[name], source_text)
            made["quotes"] += [{"column": name, **quote._asdict()} for quote in found]
    return made


def label_rows(row: Mapping[str, Any], *, has_source_text: bool) -> Iterator[dict[str, Any]]:
    """The labels of a question as rows of `label_features`."""
    source_text = question_of(row).source_text
    for label in row["distortions"]:
        evidence = label["evidence"]
        start = source_text.find(evidence) if evidence else -1
        known = shipped_concepts().get(label["id"])
        made = {
            "id": row["id"],
            "question_sha256": source_hash(source_text),
            "label": label["id"],
            "label_zh": known.zh if known else None,
            "label_en": known.en if known else None,
            "labeller": label["labeller"],
            "confidence": label["confidence"],
            "evidence_start": start if start >= 0 else None,
            "evidence_end": start + len(evidence) if start >= 0 else None,
        }
        yield {**made, "evidence": evidence} if has_source_text else made
