"""Labels a whole file or dataset: texts in, rows with labels out, each row accounted for.

The input is read as a stream and the result written as one; only ids and counts stay in memory.

One output row:

    {"id": "4394", "level": "document", "part": 0, "text": "...", "labels": [{"id": ...}]}

`part` numbers the sentences of a text from 1; a document is part 0.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, TextIO

from pydantic import Field

from cbtqa.dataset_folder import INTEGER, LABEL, TEXT, arrow_schema, list_of, source_rows
from cbtqa.distortions.clauses import split_sentences
from cbtqa.distortions.labellers import Labeller, Labels, VoteRule, count_votes, labels_named_in
from cbtqa.distortions.llm_labeller import LabellingTask, TextToLabel, read_outcomes
from cbtqa.distortions.models import load_labeller
from cbtqa.distortions.patterns import PatternLabeller
from cbtqa.distortions.taxonomy import Taxonomy, load_taxonomy, map_labels
from cbtqa.errors import ConfigError, DataError
from cbtqa.files import (
    ParquetRows,
    json_line,
    parse_record,
    read_rows,
    replacing,
    write_jsonl,
)
from cbtqa.llm.batch import run_batch
from cbtqa.llm.endpoint import Endpoint, pass_disclosure_gate
from cbtqa.llm.journal import Journal
from cbtqa.llm.limits import Limits
from cbtqa.llm.progress import Progress
from cbtqa.records import DistortionLabel, NonEmptyText, Record, Rejection
from cbtqa.settings import Settings

# --- label files ---------------------------------------------------------------------------------
# Rows of labelled texts, and how they are written: JSONL, Parquet, CSV, TSV.
#
# write_labels(Path("labels.parquet"), rows)


class LabelledText(Record):
    """One text with its labels: a row of the result."""

    id: NonEmptyText
    level: Literal["document", "sentence"]
    part: int = Field(ge=0)
    text: NonEmptyText
    labels: tuple[DistortionLabel, ...]


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
    columns = {"id": TEXT, "level": TEXT, "part": INTEGER, "text": TEXT, "labels": list_of(LABEL)}
    with ParquetRows(path, arrow_schema(columns)) as parquet:
        for row in rows:
            parquet.add(row.model_dump())


# --- labelling -----------------------------------------------------------------------------------
Level = Literal["document", "sentence", "both"]
_TEXT_COLUMNS = ("text", "文本", "内容", "sentence")
_ID_COLUMNS = ("id", "question_id", "questionID", "item_id")


class LabelSettings(Settings):
    """What `cbtqa distortions label` can be told."""

    input: Path
    """JSONL, JSON, CSV, TSV, Parquet, or a dataset folder; columns `text`, or `question` and
    `description`."""
    out: Path | None = None
    """Result: .jsonl, .parquet, .csv or .tsv. Default: INPUT.labels.jsonl."""
    labeller: tuple[str, ...] = ("patterns",)
    """patterns, answer (what a dataset's answers say), llm, or the folder of a trained model.
    Several together vote."""
    taxonomy: str = "burns-10"
    """Taxonomy of the labels (see `cbtqa distortions taxonomies`)."""
    level: Level = "document"
    """document, sentence, or both."""
    vote: VoteRule = "majority"
    """majority, any or all."""
    encoding: str = "utf-8"
    """Encoding of a text file, such as gb18030."""
    endpoint: str | None = None
    """For llm: base URL or preset of an OpenAI-compatible endpoint."""
    model: str | None = None
    """For llm: model name at the endpoint."""
    prompt: str = "distortion_labels"
    """For llm: prompt, or a path of your own."""
    in_flight: int = Field(64, ge=1)
    """For llm: most requests at a time."""
    acknowledge_disclosure: bool = False
    """For llm: I may pass these texts on to the operator of a non-local endpoint."""


class SourceText(Record):
    """One text of the input."""

    id: NonEmptyText
    text: NonEmptyText
    answer: str | None = None
    """The answer's text, where the input holds one."""
    answer_labels: tuple[DistortionLabel, ...] | None = None
    """Labels the input carries for the answer; None when it has no such column."""


class LabellingRun(Record):
    """What came of a run, in counts; the rows are in `out`."""

    out: Path
    rejects: Path | None
    """File of rejections; None when there was none."""
    labellers: tuple[str, ...]
    n_texts: int
    n_parts: int
    n_rows: int
    n_labelled: int
    """Rows with at least one label."""
    n_rejected: int
    """Parts that a language model's labels could not be had for."""
    rejected: dict[str, int]
    """The same by reason."""
    types: dict[str, int]
    """Rows with each type, most frequent first."""
    lost: dict[str, int]
    """Labels that the taxonomy has no place for, by id."""


class LabelledTexts(Record):
    """The rows of a run."""

    rows: tuple[LabelledText, ...]
    n_rejected: int
    """Parts that a language model's labels could not be had for."""


def read_labels(run: LabellingRun) -> LabelledTexts:
    """The rows that a run wrote, whatever its format."""
    rows = []
    for where, row in read_rows(run.out):
        if isinstance(row["labels"], str):  # a cell of CSV
            row["labels"] = json.loads(row["labels"])
        told = {name: row[name] for name in LabelledText.model_fields}
        rows.append(parse_record(LabelledText, told, where))
    return LabelledTexts(rows=tuple(rows), n_rejected=run.n_rejected)


def read_texts(path: Path, encoding: str = "utf-8") -> Iterator[SourceText]:
    """The texts of a file or dataset folder.

    Raises:
        DataError: no column with text, an empty text, or two rows with one id (file and line).
    """
    seen: set[str] = set()
    for number, (where, row) in enumerate(source_rows(path, encoding=encoding), 1):
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
    """Labels every text of the input and writes the rows; turned-away parts go beside them.

    Raises:
        DataError: the input, or a model for another taxonomy.
        ConfigError: labellers that do not fit together.
        LicenceGateError: texts would go to a non-local endpoint without acknowledgement.
    """
    out, rejects = result_path(settings), rejects_path(settings)
    counts = _Counts()
    with ExitStack() as stack:
        labellers = [
            _open_part_labeller(spec, settings, counts, stack, on_progress)
            for spec in settings.labeller
        ]
        turned_away = stack.enter_context(replacing(rejects))
        rejections = stack.enter_context(turned_away.open("w", encoding="utf-8"))
        write_labels(out, _labelled_rows(settings, labellers, counts, rejections))
    if not counts.rejected:
        rejects.unlink()
    return LabellingRun(
        out=out,
        rejects=rejects if counts.rejected else None,
        labellers=settings.labeller,
        n_texts=counts.n_texts,
        n_parts=counts.n_parts,
        n_rows=counts.n_rows,
        n_labelled=counts.n_labelled,
        n_rejected=counts.rejected.total(),
        rejected=dict(counts.rejected),
        types=dict(counts.types.most_common()),
        lost=dict(counts.lost),
    )


class _Part(NamedTuple):
    source: SourceText
    row: LabelledText
    """Without its labels."""


PartLabeller = Callable[[Sequence[_Part]], Sequence[Labels | Rejection]]


@dataclass
class _Counts:
    n_texts: int = 0
    n_parts: int = 0
    n_rows: int = 0
    n_labelled: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    types: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)


def _labelled_rows(
    settings: LabelSettings,
    labellers: Sequence[PartLabeller],
    counts: _Counts,
    rejections: TextIO,
) -> Iterator[LabelledText]:
    parts = _read_parts(settings, counts)
    while chunk := list(islice(parts, _CHUNK)):
        counts.n_parts += len(chunk)
        ballots = [labeller(chunk) for labeller in labellers]
        for part, *given in zip(chunk, *ballots, strict=True):
            turned_away = next((one for one in given if isinstance(one, Rejection)), None)
            if turned_away is not None:
                counts.rejected[str(turned_away.reason)] += 1
                rejections.write(json_line(turned_away))
                continue
            votes = [one for one in given if not isinstance(one, Rejection)]
            won = votes[0] if len(votes) == 1 else count_votes(votes, settings.vote)
            counts.n_rows += 1
            counts.n_labelled += bool(won)
            counts.types.update({label.id for label in won})
            yield part.row.model_copy(update={"labels": won})


_CHUNK = 1024


def _read_parts(settings: LabelSettings, counts: _Counts | None = None) -> Iterator[_Part]:
    for source in read_texts(settings.input, settings.encoding):
        if counts:
            counts.n_texts += 1
        for row in _parts_of(source, settings.level):
            yield _Part(source, row)


def _open_part_labeller(
    spec: str,
    settings: LabelSettings,
    counts: _Counts,
    stack: ExitStack,
    on_progress: Callable[[Progress], None] | None,
) -> PartLabeller:
    taxonomy = load_taxonomy(settings.taxonomy)
    if spec == "llm":
        return _ask_llm(taxonomy, settings, stack, on_progress)
    if spec == "answer":
        if settings.level != "document":
            raise ConfigError("--labeller answer labels whole texts: use --level document")
        return lambda parts: [_label_by_answer(part, settings, taxonomy, counts) for part in parts]
    labeller = open_labeller(spec, taxonomy)
    return lambda parts: labeller.label_many(part.row.text for part in parts)


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
    part: _Part, settings: LabelSettings, taxonomy: Taxonomy, counts: _Counts
) -> Labels:
    source = part.source
    if source.answer_labels is None and source.answer is None:
        raise DataError("has no answer and no labels", where=f"{settings.input}: text {source.id}")
    if source.answer_labels is None:
        return labels_named_in(str(source.answer), taxonomy)
    mapped = map_labels(source.answer_labels, taxonomy, taxonomy)
    counts.lost.update(label.id for label in mapped.lost if label.became is None)
    return mapped.labels


def _ask_llm(
    taxonomy: Taxonomy,
    settings: LabelSettings,
    stack: ExitStack,
    on_progress: Callable[[Progress], None] | None,
) -> PartLabeller:
    """Has every part answered into the journal; gives what reads the answers from it."""
    if not settings.endpoint or not settings.model:
        raise ConfigError("--labeller llm needs --endpoint and --model")
    endpoint = Endpoint.parse(settings.endpoint, settings.model)
    pass_disclosure_gate(endpoint, "the texts", is_acknowledged=settings.acknowledge_disclosure)
    task = LabellingTask(taxonomy, settings.model, prompt=settings.prompt)
    n_parts = sum(1 for _ in _read_parts(settings))  # a bad line shows before anything is paid
    journal = stack.enter_context(Journal(journal_path(settings), task.fingerprint()))
    items = (_to_label(part) for part in _read_parts(settings))
    limits = Limits(in_flight=settings.in_flight)
    run_batch(items, task, endpoint, journal, limits, n_total=n_parts, on_progress=on_progress)
    return lambda parts: list(read_outcomes(map(_to_label, parts), task, journal))


def _to_label(part: _Part) -> TextToLabel:
    return TextToLabel(f"{part.row.id}/{part.row.part}", part.row.text)


def result_path(settings: LabelSettings) -> Path:
    """Where the result goes."""
    return settings.out or settings.input.with_name(f"{settings.input.name}.labels.jsonl")


def journal_path(settings: LabelSettings) -> Path:
    """Where paid replies are kept, beside the result."""
    return result_path(settings).with_suffix(".journal.sqlite")


def rejects_path(settings: LabelSettings) -> Path:
    """Where parts without labels go, with the reason and the model's own words."""
    out = result_path(settings)
    return out.with_name(f"{out.name}.rejects.jsonl")
