"""Labels a whole file or dataset: texts in, rows with labels out, each row accounted for.

One output row:

    {"id": "4394", "level": "document", "part": 0, "text": "...", "labels": [{"id": ...}]}

`part` numbers the sentences of a text from 1; a document is part 0.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from cbtqa.distortions.clauses import split_sentences
from cbtqa.distortions.labellers import Labeller, Labels, VoteRule, count_votes, labels_named_in
from cbtqa.distortions.llm_labeller import LabellingTask, TextToLabel, read_outcomes
from cbtqa.distortions.models import load_labeller
from cbtqa.distortions.patterns import PatternLabeller
from cbtqa.distortions.taxonomy import Taxonomy, load_taxonomy, map_labels
from cbtqa.errors import ConfigError, DataError, LicenceGateError
from cbtqa.files import ParquetRows, read_rows, replacing, write_jsonl
from cbtqa.llm.batch import run_batch
from cbtqa.llm.endpoint import Endpoint
from cbtqa.llm.journal import Journal
from cbtqa.llm.limits import Limits
from cbtqa.llm.progress import Progress
from cbtqa.records import DistortionLabel, NonEmptyText, Record, Rejection
from cbtqa.settings import Settings

Level = Literal["document", "sentence", "both"]
_TEXT_COLUMNS = ("text", "文本", "内容", "sentence")
_ID_COLUMNS = ("id", "question_id", "questionID", "item_id")


class LabelSettings(Settings):
    """What `cbtqa distortions label` can be told."""

    input: Path = Field(
        description="JSONL, JSON, CSV, TSV, Parquet, or a dataset folder; columns `text`, or "
        "`question` and `description`."
    )
    out: Path | None = Field(
        None, description="Result: .jsonl, .parquet, .csv or .tsv. Default: INPUT.labels.jsonl."
    )
    labeller: tuple[str, ...] = Field(
        ("patterns",),
        description="patterns, answer (what a dataset's answers say), llm, or the folder of a "
        "trained model. Several together vote.",
    )
    taxonomy: str = Field(
        "burns-10", description="Taxonomy of the labels (see `cbtqa distortions taxonomies`)."
    )
    level: Level = Field("document", description="document, sentence, or both.")
    vote: VoteRule = Field("majority", description="majority, any or all.")
    encoding: str = Field("utf-8", description="Encoding of a text file, such as gb18030.")
    endpoint: str | None = Field(
        None, description="For llm: base URL or preset of an OpenAI-compatible endpoint."
    )
    model: str | None = Field(None, description="For llm: model name at the endpoint.")
    prompt: str = Field("distortion_labels", description="For llm: prompt, or a path of your own.")
    in_flight: int = Field(64, ge=1, description="For llm: most requests at a time.")
    acknowledge_disclosure: bool = Field(
        False,
        description="For llm: I may pass these texts on to the operator of a non-local endpoint.",
    )


class LabelledText(Record):
    """One text with its labels: a row of the result."""

    id: NonEmptyText
    level: Literal["document", "sentence"]
    part: int = Field(ge=0)
    text: NonEmptyText
    labels: tuple[DistortionLabel, ...]


class SourceText(Record):
    """One text of the input."""

    id: NonEmptyText
    text: NonEmptyText
    answer: str | None = None
    """The answer's text, where the input holds one."""
    answer_labels: tuple[DistortionLabel, ...] | None = None
    """Labels the input carries for the answer; None when it has no such column."""


class LabellingRun(Record):
    """What came of a run."""

    rows: tuple[LabelledText, ...]
    rejections: tuple[Rejection, ...]
    """Parts that a language model's labels could not be had for."""
    labellers: tuple[str, ...]
    n_texts: int
    n_parts: int
    lost: dict[str, int]
    """Labels that the taxonomy has no place for, by id."""


def read_texts(path: Path, encoding: str = "utf-8") -> Iterator[SourceText]:
    """The texts of a file or dataset folder.

    Raises:
        DataError: no column with text, an empty text, or two rows with one id (file and line).
    """
    seen: set[str] = set()
    source = path / "data" if (path / "data").is_dir() else path
    for number, (where, row) in enumerate(read_rows(source, encoding), 1):
        item = _read_text(row, where, number)
        if item.id in seen:
            raise DataError(f"the id '{item.id}' stands twice", where=where)
        seen.add(item.id)
        yield item


def _read_text(row: Mapping[str, Any], where: str, number: int) -> SourceText:
    column = next((name for name in _TEXT_COLUMNS if name in row), None)
    if "question" in row:
        parts = [
            str(row[name] or "").strip() for name in ("question", "description") if name in row
        ]
        text, column = "\n".join(part for part in parts if part), "question"
    elif column is not None:
        text = str(row[column] or "").strip()
    else:
        raise DataError(
            f"no column with text: expected question, or one of {', '.join(_TEXT_COLUMNS)}, "
            f"found {', '.join(row)}",
            where=where,
        )
    if not text:
        raise DataError("the text is empty", where=f"{where}:{column}")
    key = next((row[name] for name in _ID_COLUMNS if row.get(name) not in (None, "")), number)
    answer = row.get("answer", row.get("text") if "question" in row else None)
    carried = row.get("distortions")
    labels = None
    if isinstance(carried, list):
        known = DistortionLabel.model_fields
        labels = tuple(
            DistortionLabel(**{name: entry[name] for name in known if name in entry})
            for entry in carried
        )
    return SourceText(id=str(key), text=text, answer=answer or None, answer_labels=labels)


def label_file(
    settings: LabelSettings, *, on_progress: Callable[[Progress], None] | None = None
) -> LabellingRun:
    """Labels every text of the input.

    Raises:
        DataError: the input, or a model for another taxonomy.
        ConfigError: labellers that do not fit together.
        LicenceGateError: texts would go to a non-local endpoint without acknowledgement.
    """
    taxonomy = load_taxonomy(settings.taxonomy)
    sources = list(read_texts(settings.input, settings.encoding))
    parts = [part for source in sources for part in _parts_of(source, settings.level)]
    lost: dict[str, int] = {}
    rejections: list[Rejection] = []
    ballots: list[list[Labels | None]] = []
    for spec in settings.labeller:
        if spec == "llm":
            ballot = _label_by_llm(parts, taxonomy, settings, rejections, on_progress)
        elif spec == "answer":
            ballot = _label_by_answer(sources, settings, taxonomy, lost)
        else:
            ballot = list(open_labeller(spec, taxonomy).label_many(part.text for part in parts))
        ballots.append(ballot)
    rows = []
    for part, *given in zip(parts, *ballots, strict=True):
        votes = [labels for labels in given if labels is not None]
        if len(votes) < len(given):
            continue
        won = votes[0] if len(votes) == 1 else count_votes(votes, settings.vote)
        rows.append(part.model_copy(update={"labels": won}))
    return LabellingRun(
        rows=tuple(rows),
        rejections=tuple(rejections),
        labellers=settings.labeller,
        n_texts=len(sources),
        n_parts=len(parts),
        lost=lost,
    )


def open_labeller(spec: str, taxonomy: Taxonomy) -> Labeller:
    """`patterns`, or the labeller of a trained model's folder.

    Raises:
        DataError: no such labeller, or a model for another taxonomy.
    """
    if spec == "patterns":
        return PatternLabeller(taxonomy)
    return load_labeller(Path(spec), taxonomy).labeller


def _parts_of(source: SourceText, level: Level) -> Iterator[LabelledText]:
    if level != "sentence":
        yield LabelledText(id=source.id, level="document", part=0, text=source.text, labels=())
    if level != "document":
        for number, span in enumerate(split_sentences(source.text), 1):
            yield LabelledText(
                id=source.id, level="sentence", part=number, text=span.of(source.text), labels=()
            )


def _label_by_answer(
    sources: Sequence[SourceText], settings: LabelSettings, taxonomy: Taxonomy, lost: dict[str, int]
) -> list[Labels | None]:
    if settings.level != "document":
        raise ConfigError("--labeller answer labels whole texts: use --level document")
    found: list[Labels | None] = []
    for source in sources:
        if source.answer_labels is None and source.answer is None:
            raise DataError(
                "has no answer and no labels", where=f"{settings.input}: text {source.id}"
            )
        if source.answer_labels is None:
            found.append(labels_named_in(str(source.answer), taxonomy))
            continue
        mapped = map_labels(source.answer_labels, taxonomy, taxonomy)
        found.append(mapped.labels)
        for label in mapped.lost:
            lost[label.id] = lost.get(label.id, 0) + (label.became is None)
    return found


def _label_by_llm(
    parts: Sequence[LabelledText],
    taxonomy: Taxonomy,
    settings: LabelSettings,
    rejections: list[Rejection],
    on_progress: Callable[[Progress], None] | None,
) -> list[Labels | None]:
    if not settings.endpoint or not settings.model:
        raise ConfigError("--labeller llm needs --endpoint and --model")
    endpoint = Endpoint.parse(settings.endpoint, settings.model)
    if not endpoint.is_local and not settings.acknowledge_disclosure:
        raise LicenceGateError(
            f"the texts would be sent to {endpoint.host}, a third party",
            hint="use a local endpoint, or, if you may pass the texts on, add "
            "--acknowledge-disclosure",
        )
    task = LabellingTask(taxonomy, settings.model, prompt=settings.prompt)
    items = [TextToLabel(f"{part.id}/{part.part}", part.text) for part in parts]
    path = journal_path(settings)
    limits = Limits(in_flight=settings.in_flight)
    with Journal(path, task.fingerprint()) as journal:
        run_batch(
            items, task, endpoint, journal, limits, n_total=len(items), on_progress=on_progress
        )
        outcomes = list(read_outcomes(items, task, journal))
    rejections.extend(outcome for outcome in outcomes if isinstance(outcome, Rejection))
    return [None if isinstance(outcome, Rejection) else outcome for outcome in outcomes]


# --- writing -------------------------------------------------------------------------------------


def result_path(settings: LabelSettings) -> Path:
    """Where the result goes."""
    return settings.out or settings.input.with_name(f"{settings.input.name}.labels.jsonl")


def journal_path(settings: LabelSettings) -> Path:
    """Where paid replies are kept, beside the result."""
    return result_path(settings).with_suffix(".journal.sqlite")


def write_labels(path: Path, rows: Iterable[LabelledText]) -> None:
    """Writes rows as the suffix says; CSV and TSV get one column `types` and the labels as JSON.

    Raises:
        DataError: an unknown suffix.
    """
    suffix = path.suffix.lower()
    if suffix in (".jsonl", ".ndjson"):
        write_jsonl(path, rows)
    elif suffix == ".parquet":
        _write_parquet(path, rows)
    elif suffix in (".csv", ".tsv"):
        with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as out:
            writer = csv.writer(out, delimiter="\t" if suffix == ".tsv" else ",")
            writer.writerow(["id", "level", "part", "text", "types", "labels"])
            for row in rows:
                labels = [label.model_dump() for label in row.labels]
                types = ";".join(label.id for label in row.labels)
                cells = [row.id, row.level, row.part, row.text, types]
                writer.writerow([*cells, json.dumps(labels, ensure_ascii=False)])
    else:
        raise DataError(
            f"do not know the format '{suffix}'",
            where=str(path),
            hint="use .jsonl, .parquet, .csv or .tsv",
        )


def _write_parquet(path: Path, rows: Iterable[LabelledText]) -> None:
    import pyarrow as pa

    label = pa.struct(
        [
            ("id", pa.string()),
            ("evidence", pa.string()),
            ("labeller", pa.string()),
            ("confidence", pa.float64()),
        ]
    )
    schema = pa.schema(
        [
            ("id", pa.string()),
            ("level", pa.string()),
            ("part", pa.int32()),
            ("text", pa.string()),
            ("labels", pa.list_(label)),
        ]
    )
    with ParquetRows(path, schema) as parquet:
        for row in rows:
            parquet.add(row.model_dump())
