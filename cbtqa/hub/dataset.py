"""`cbtqa publish dataset`: a built dataset as the files of a repository.

    plan, watch = plan_dataset(DatasetSettings(run=Path("runs/psyqa"), to="my-lab/cbt-qa"))
    refuse_findings(check_dataset(plan, watch, settings))

Configs: `qa` (answers), `distortions` (one row a label), `ratings` and `ratings_summary` (people's
ratings, when there are any). Rejected items, journals, reports and human answers stay behind.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cbtqa.dataset.folder import ROWS_PER_SHARD, data_files
from cbtqa.dataset.stats import DatasetStatistics, StatisticsTally
from cbtqa.dataset_folder import SPLITS, answer_schema
from cbtqa.errors import DataError
from cbtqa.files import read_rows, sha256_of, write_text
from cbtqa.hub.cards import CardFacts, render_dataset_card, write_terms
from cbtqa.hub.plan import (
    CARD_PATH,
    KEY,
    Permission,
    PublishPlan,
    fresh_staging,
    is_invented,
    open_run,
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
from cbtqa.hub.rows import label_rows, label_schema, qa_row, qa_schema
from cbtqa.hub.scan import Finding, Watch, protected_text, read_notes, scan_plan, watch_for
from cbtqa.hub.settings import DatasetSettings
from cbtqa.hub.source_text import SourceIndex

if TYPE_CHECKING:
    import pyarrow as pa


STAYS_BEHIND = {
    "rejects.jsonl": "items that were turned away, with their text",
    "report.html": "a report that shows whole entries",
    "journal.sqlite": "replies of the model, with the questions",
    "human": "human answers",
    "README.md": "the local card; the repository gets its own",
    "manifest.json": "its content is in provenance.json",
}


@dataclass
class Published:
    """What came of the rows of a dataset."""

    n_rows: dict[str, dict[str, int]] = field(default_factory=dict)
    """Rows by config and split."""
    n_withheld: int = 0
    """Entries with a sign of risk, left out by `--withhold-crisis`."""
    n_unmaskable: int = 0
    """Entries left out because they repeat their question in other punctuation."""
    n_masked: int = 0
    """Entries in which words of the question are masked."""
    n_foreign_ratings: int = 0
    """Ratings of questions that are not published."""


def plan_dataset(settings: DatasetSettings) -> tuple[PublishPlan, Watch]:
    """Writes every file of the repository to `RUN/publish/files` and says what must not be in them.

    Raises:
        PublishRefusedError: the run is not finished, or a permission is missing.
        DataError: no dataset, or a damaged file.
    """
    manifest = open_run(settings.run)
    if manifest.kind != "dataset":
        raise DataError(
            f"holds a {manifest.kind}, not a dataset",
            where=str(settings.run),
            hint="cbtqa publish model RUN" if manifest.kind != "scores" else None,
        )
    permission = pass_permission_gate(settings, manifest)
    studies = [read_study(folder) for folder in settings.ratings]
    index = protected_text(settings)
    if not is_invented(manifest):
        for _, row in _split_rows(settings.run):
            index.add(row["question"])
            index.add(row["description"] or "")
    staging = fresh_staging(settings.run)
    counted, statistics = _write_tables(settings, permission, index, studies, staging)
    facts = CardFacts(
        settings=settings,
        manifest=manifest,
        statistics=statistics,
        n_rows=counted.n_rows,
        has_source_text=permission.has_source_text,
        n_withheld=counted.n_withheld,
        n_unmaskable=counted.n_unmaskable,
        n_masked=counted.n_masked,
        studies=tuple(studies),
        notes=read_notes(settings.notes),
    )
    write_terms(staging)
    write_text(staging / CARD_PATH, render_dataset_card(facts))
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
    manifest = open_run(settings.run)
    known = {entry.name: entry.sha256 for entry in manifest.files}
    changed = [
        Finding(name, "is not the file that the run's manifest describes")
        for path in data_files(settings.run)
        if (name := path.relative_to(settings.run).as_posix()).startswith("data/")
        and known.get(name) != sha256_of(path)
    ]
    return changed + scan_plan(plan, watch)


def _write_tables(
    settings: DatasetSettings,
    permission: Permission,
    index: SourceIndex,
    studies: list[RatedStudy],
    staging: Path,
) -> tuple[Published, DatasetStatistics]:
    has_text = permission.has_source_text
    masks = settings.quotes == "mask" and not has_text
    counted, tally, split_of = Published(), StatisticsTally(), {}
    schemas = qa_schema(has_text), label_schema(has_text)
    with Tables(staging) as tables:
        for split, row in _split_rows(settings.run):
            if settings.withhold_crisis and row["risk"] != "none":
                counted.n_withheld += 1
                continue
            made = _masked_row(row, has_text, masks, index, counted)
            if made is None:
                continue
            tables.add("qa", split, schemas[0], made)
            for label in label_rows(row, has_source_text=has_text):
                tables.add("distortions", split, schemas[1], label)
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
    if masks:
        texts = [made[name] for name in ("answer",) if made[name]]
        if index.hits(texts):
            counted.n_unmaskable += 1
            return None
        counted.n_masked += bool(made["quotes"])
    return made


def _write_ratings(
    tables: Tables, studies: list[RatedStudy], split_of: dict[str, str], counted: Published
) -> None:
    schemas = (rating_schema(), summary_schema()) if studies else None
    for study in studies:
        n_ours = 0
        for rating in study.rows():
            split = split_of.get(rating.question_id)
            if split is None or schemas is None:
                counted.n_foreign_ratings += 1
                continue
            tables.add("ratings", split, schemas[0], rating_row(study.report, rating))
            n_ours += 1
        if not n_ours:
            raise DataError(
                f"study {study.report.study_id} rates no question of this dataset",
                where=str(study.ratings_path),
            )
        for row in summary_rows(study.report):
            if schemas is not None:
                tables.add("ratings_summary", SUMMARY_SPLIT, schemas[1], row)


def _split_rows(run: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every row with its split, in a stable order."""
    columns = set(answer_schema().names)
    paths = sorted((run / "data").glob("*.parquet"), key=_split_order)
    if not paths:
        raise DataError("the dataset has no rows", where=str(run))
    for path in paths:
        for where, row in read_rows(path):
            if missing := sorted(columns - set(row)):
                raise DataError(f"no column {', '.join(missing)}", where=where)
            yield path.name.split("-")[0], row


def _split_order(path: Path) -> tuple[int, str]:
    split = path.name.split("-")[0]
    return (SPLITS.index(split) if split in SPLITS else len(SPLITS), path.name)


def _remarks(counted: Published, permission: Permission) -> tuple[str, ...]:
    found = [
        (counted.n_withheld, "entries with a sign of risk are withheld"),
        (counted.n_masked, "answers have words of their question masked"),
        (counted.n_unmaskable, "answers are left out: they repeat text in a way masks cannot hide"),
        (counted.n_foreign_ratings, "ratings are left out: their questions are not published"),
    ]
    told = [f"{n:,} {what}" for n, what in found if n]
    return (*told, permission.remark) if permission.remark else tuple(told)


# --- tables --------------------------------------------------------------------------------------
# Parquet files as the Hub's viewer likes them: `config/split-00000-of-00001.parquet`.
#
#     with Tables(staging) as tables:
#         tables.add("qa", "train", qa_schema(), row)
#     tables.n_rows["qa"]["train"]
#
# The same rows give the same bytes, so that publishing twice sends nothing twice.

ROWS_PER_GROUP = 1_000
"""Small groups and a page index: the viewer reads a page without the whole file."""


class _Split:
    """One split of one config, in shards."""

    def __init__(self, folder: Path, name: str, schema: pa.Schema) -> None:
        self.n_rows = 0
        self._folder, self._name, self._schema = folder, name, schema
        self._paths: list[Path] = []
        self._pending: list[dict[str, Any]] = []
        self._writer: Any = None

    def add(self, row: dict[str, Any]) -> None:
        if self.n_rows % ROWS_PER_SHARD == 0:
            self._open_shard()
        self._pending.append(row)
        self.n_rows += 1
        if len(self._pending) == ROWS_PER_GROUP:
            self._flush()

    def _open_shard(self) -> None:
        import pyarrow.parquet as pq

        self._close_shard()
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{self._name}-{len(self._paths):05d}.parquet"
        self._paths.append(path)
        self._writer = pq.ParquetWriter(
            path, self._schema, compression="zstd", write_page_index=True
        )

    def _flush(self) -> None:
        import pyarrow as pa

        if self._pending:
            self._writer.write_table(pa.Table.from_pylist(self._pending, schema=self._schema))
            self._pending.clear()

    def _close_shard(self) -> None:
        if self._writer is not None:
            self._flush()
            self._writer.close()
            self._writer = None

    def close(self) -> None:
        """Writes what is pending and gives the shards their final names."""
        self._close_shard()
        for index, path in enumerate(self._paths):
            name = f"{self._name}-{index:05d}-of-{len(self._paths):05d}.parquet"
            path.replace(path.with_name(name))


class Tables:
    """Writes rows into configs and splits; a split without rows leaves no file."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._splits: dict[tuple[str, str], _Split] = {}

    def __enter__(self) -> Tables:
        return self

    def add(self, config: str, split: str, schema: pa.Schema, row: dict[str, Any]) -> None:
        """Adds a row; its keys are the schema's columns."""
        key = (config, split)
        if key not in self._splits:
            self._splits[key] = _Split(self._folder / config, split, schema)
        self._splits[key].add(row)

    @property
    def n_rows(self) -> dict[str, dict[str, int]]:
        """Rows by config and split, in order of appearance."""
        counted: dict[str, dict[str, int]] = {}
        for (config, split), part in self._splits.items():
            counted.setdefault(config, {})[split] = part.n_rows
        return counted

    def __exit__(self, kind: Any, value: Any, trace: Any) -> None:
        for part in self._splits.values():
            part.close()
