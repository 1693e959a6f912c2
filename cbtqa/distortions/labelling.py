"""Labels a whole file or dataset as a stream; only ids and counts stay in memory. One output row:

    {"id": "4394", "level": "document", "part": 0, "text": "...", "labels": [{"id": ...}]}

`part` numbers the sentences of a text from 1; a document is part 0. A language model is asked about
all sentences of a document at once; with both levels the document has what its sentences have.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import groupby, islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, TextIO

from pydantic import Field

from cbtqa.dataset_folder import (
    INTEGER,
    LABEL,
    TEXT,
    arrow_schema,
    is_text,
    list_of,
    text_rows,
)
from cbtqa.distortions.labellers import Labeller, Labels, VoteRule, count_votes, labels_named_in
from cbtqa.distortions.llm_labeller import (
    OTHER_RUN,
    REPLY_TOKENS,
    Found,
    LabellingTask,
    LlmSettings,
    TextsToLabel,
    cut_document,
    join_found,
    read_outcomes,
)
from cbtqa.distortions.models import load_labeller
from cbtqa.distortions.patterns import PatternLabeller, split_sentences
from cbtqa.distortions.taxonomy import Taxonomy, load_taxonomy, map_labels
from cbtqa.errors import ConfigError, DataError, UsageError
from cbtqa.files import ParquetRows, json_line, parse_record, read_rows, write_jsonl
from cbtqa.llm.batch import OnProgress
from cbtqa.llm.cost import Estimate
from cbtqa.llm.journal import Journal
from cbtqa.llm.runs import estimate_run, open_run
from cbtqa.manifest import MANIFEST_NAME, refuse_empty
from cbtqa.paths import refuse_existing, replacing
from cbtqa.records import DistortionLabel, NonEmptyText, Record, Rejection


class LabelledText(Record):
    """One text with its labels: a row of the result."""

    id: NonEmptyText
    level: Literal["document", "sentence"]
    part: int = Field(ge=0)
    text: NonEmptyText
    labels: tuple[DistortionLabel, ...]
    hopelessness: str | None = None
    """The clause in which a language model finds that life has no meaning or cannot go on, word for
    word; no distortion, and one of the reasons for a crisis screen. None from other labellers."""


def write_labels(path: Path, rows: Iterable[LabelledText]) -> None:
    """Writes rows in the format of the suffix (DataError for others); labels in CSV are JSON."""
    suffix = path.suffix.lower()
    if suffix in (".jsonl", ".ndjson"):
        write_jsonl(path, rows)
    elif suffix == ".parquet":
        columns = {"id": TEXT, "level": TEXT, "part": INTEGER, "text": TEXT}
        columns |= {"labels": list_of(LABEL), "hopelessness": TEXT}
        with ParquetRows(path, arrow_schema(columns)) as parquet:
            for row in rows:
                parquet.add(row.model_dump())
    elif suffix in (".csv", ".tsv"):
        with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as out:
            writer = csv.writer(out, delimiter="\t" if suffix == ".tsv" else ",")
            writer.writerow(["id", "level", "part", "text", "types", "labels", "hopelessness"])
            for row in rows:
                labels = json.dumps(
                    [label.model_dump() for label in row.labels], ensure_ascii=False
                )
                types = ";".join(label.id for label in row.labels)
                known = (row.id, row.level, row.part, row.text, types, labels)
                writer.writerow([*known, row.hopelessness or ""])
    else:
        hint = "use .jsonl, .parquet, .csv or .tsv"
        raise DataError(f"do not know the format '{suffix}'", where=str(path), hint=hint)


_CHUNK = 1024
Level = Literal["document", "sentence", "both"]
_TEXT_COLUMNS = ("text", "文本", "内容", "sentence")
_ID_COLUMNS = ("id", "question_id", "questionID", "item_id")


class LabelSettings(LlmSettings):
    """Settings of `cbtqa distortions label`; the endpoint is for the llm."""

    input: Path
    """JSONL, JSON, CSV, TSV, Parquet, or a dataset folder; columns `text`, or `question` and
    `description`. Or .txt or - (a text a line), or one text itself."""
    out: Path | None = None
    """Result: .jsonl, .parquet, .csv or .tsv. Default: INPUT.labels.jsonl; shown and not kept for
    - and for one text itself."""
    overwrite: bool = False
    """Replace the result of an earlier run."""
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

    @property
    def is_shown_only(self) -> bool:
        """True where no result is named and the input is no file beside which it could lie."""
        return self.out is None and (str(self.input) == "-" or is_text(self.input))


class SourceText(Record):
    id: NonEmptyText
    text: NonEmptyText
    answer: str | None = None
    """The answer's text, where the input holds one."""
    answer_labels: tuple[DistortionLabel, ...] | None = None
    """Labels the input carries for the answer; None when it has no such column."""


class LabellingRun(Record):
    """Counts of a run; the rows are in `out`."""

    out: Path
    rejects: Path | None
    """File of rejections; None when there was none."""
    labellers: tuple[str, ...]
    n_texts: int
    n_parts: int
    n_rows: int
    n_labelled: int
    """Rows with at least one label."""
    n_hopeless: int
    """Rows in which a language model finds hopelessness."""
    n_rejected: int
    """Parts without valid labels from the language model."""
    rejected: dict[str, int]
    """The same by reason."""
    types: dict[str, int]
    """Rows with each type, most frequent first."""
    lost: dict[str, int]
    """Labels that the taxonomy has no place for, by id."""


class LabelledTexts(Record):
    rows: tuple[LabelledText, ...]
    n_rejected: int
    """Parts without valid labels from the language model."""


def read_labels(run: LabellingRun) -> LabelledTexts:
    """The rows that a run wrote, whatever its format."""
    rows = []
    for where, row in read_rows(run.out):
        if isinstance(row["labels"], str):  # a cell of CSV
            row["labels"] = json.loads(row["labels"])
        fields = {name: row[name] for name in LabelledText.model_fields}
        fields["hopelessness"] = fields["hopelessness"] or None
        rows.append(parse_record(LabelledText, fields, where))
    return LabelledTexts(rows=tuple(rows), n_rejected=run.n_rejected)


def read_texts(path: Path, encoding: str = "utf-8") -> Iterator[SourceText]:
    """The texts of a file or folder; DataError for no column, an empty text, or an id twice."""
    seen: set[str] = set()
    for number, (where, row) in enumerate(text_rows(path, encoding=encoding), 1):
        item = _read_text(row, where, number)
        if item.id in seen:
            raise DataError(f"the id '{item.id}' occurs twice", where=where)
        seen.add(item.id)
        yield item


def _read_text(row: Mapping[str, Any], where: str, number: int) -> SourceText:
    columns = [name for name in ("question", "description") if "question" in row and name in row]
    columns = columns or [name for name in _TEXT_COLUMNS if name in row][:1]
    if not columns:
        raise DataError(
            f"no column with text: expected question, or one of {', '.join(_TEXT_COLUMNS)}, "
            f"found {', '.join(row)}",
            where=where,
        )
    text = "\n".join(filter(None, (str(row[name] or "").strip() for name in columns)))
    if not text:
        raise DataError("the text is empty", where=f"{where}:{columns[0]}")
    key = next((row[name] for name in _ID_COLUMNS if row.get(name) not in (None, "")), number)
    answer = row.get("answer", row.get("text") if "question" in row else None)
    given = row.get("distortions")
    labels = None
    if isinstance(given, list):
        known = DistortionLabel.model_fields.keys()
        labels = tuple(DistortionLabel(**{k: one[k] for k in known & one.keys()}) for one in given)
    return SourceText(id=str(key), text=text, answer=answer or None, answer_labels=labels)


def label_file(settings: LabelSettings, *, on_progress: OnProgress | None = None) -> LabellingRun:
    """Labels every text of the input and writes the rows; rejected parts go beside them.

    Raises:
        DataError: the input, or a model for another taxonomy.
        ConfigError: labellers that do not fit together.
        LicenceGateError: texts would go to a non-local endpoint without acknowledgement.
    """
    out = _result_path(settings)
    refuse_existing(out, overwrite=settings.overwrite or bool(settings.retry))
    rejects = out.with_name(f"{out.name}.rejects.jsonl")
    counts = _Counts()
    with ExitStack() as stack:
        labellers = [
            _open_part_labeller(spec, settings, counts, stack, on_progress)
            for spec in settings.labeller
        ]
        temporary = stack.enter_context(replacing(rejects))
        rejections = stack.enter_context(temporary.open("w", encoding="utf-8"))
        write_labels(out, _labelled_rows(settings, labellers, counts, rejections))
    if not counts.rejected:
        rejects.unlink()
    if not counts.n["n_rows"]:
        out.unlink()  # nothing is in it: it must not stand in the way of the same command
    refuse_empty(
        *(counts.n["n_rows"], counts.n["n_parts"], "texts was labelled", counts.rejected),
        kept=rejects if counts.rejected else None,
    )
    return LabellingRun(
        **{name: counts.n[name] for name in _COUNTED},
        out=out,
        rejects=rejects if counts.rejected else None,
        labellers=settings.labeller,
        n_rejected=counts.rejected.total(),
        rejected=dict(counts.rejected),
        types=dict(counts.types.most_common()),
        lost=dict(counts.lost),
    )


class _Part(NamedTuple):
    source: SourceText
    row: LabelledText
    """Without its labels."""


PartLabeller = Callable[[Sequence[_Part]], Sequence[Labels | Found | Rejection]]
_COUNTED = ("n_texts", "n_parts", "n_rows", "n_labelled", "n_hopeless")


class _Counts:
    def __init__(self) -> None:
        self.n: Counter[str] = Counter()
        self.rejected: Counter[str] = Counter()
        self.types: Counter[str] = Counter()
        self.lost: Counter[str] = Counter()


def _labelled_rows(
    settings: LabelSettings, labellers: Sequence[PartLabeller], counts: _Counts, rejections: TextIO
) -> Iterator[LabelledText]:
    parts = _read_parts(settings, counts)
    while chunk := list(islice(parts, _CHUNK)):
        ballots = [labeller(chunk) for labeller in labellers]
        for part, *given in zip(chunk, *ballots, strict=True):
            counts.n["n_parts"] += 1
            rejected = next((one for one in given if isinstance(one, Rejection)), None)
            if rejected is not None:
                counts.rejected[str(rejected.reason)] += 1
                rejections.write(json_line(rejected))
                continue
            asked = next((one for one in given if isinstance(one, Found)), Found(()))
            votes = [
                one.labels if isinstance(one, Found) else one
                for one in given
                if not isinstance(one, Rejection)
            ]
            won = votes[0] if len(votes) == 1 else count_votes(votes, settings.vote)
            counts.n["n_rows"] += 1
            counts.n["n_labelled"] += bool(won)
            counts.n["n_hopeless"] += asked.hopelessness is not None
            counts.types.update({label.id for label in won})
            more = {"labels": won, "hopelessness": asked.hopelessness}
            yield part.row.model_copy(update=more)


def _read_parts(settings: LabelSettings, counts: _Counts) -> Iterator[_Part]:
    for source in read_texts(settings.input, settings.encoding):
        counts.n["n_texts"] += 1
        whole = LabelledText(id=source.id, level="document", part=0, text=source.text, labels=())
        if settings.level != "sentence":
            yield _Part(source, whole)
        spans = split_sentences(source.text) if settings.level != "document" else ()
        for number, span in enumerate(spans, 1):
            sentence = {"level": "sentence", "part": number, "text": span.of(source.text)}
            yield _Part(source, whole.model_copy(update=sentence))


def _open_part_labeller(
    spec: str,
    settings: LabelSettings,
    counts: _Counts,
    stack: ExitStack,
    on_progress: OnProgress | None,
) -> PartLabeller:
    taxonomy = load_taxonomy(settings.taxonomy)
    if spec == "vote":
        hint = "name the voters: --labeller MODEL --labeller llm --vote any"
        raise UsageError("several --labeller vote by themselves", hint=hint)
    if spec == "llm":
        return _ask_llm(taxonomy, settings, stack, on_progress)
    if spec == "answer":
        if settings.level != "document":
            raise ConfigError("--labeller answer labels whole texts: use --level document")
        return lambda parts: [_label_by_answer(part, settings, taxonomy, counts) for part in parts]
    labeller = open_labeller(spec, taxonomy)
    return lambda parts: labeller.label_many(part.row.text for part in parts)


def open_labeller(spec: str, taxonomy: Taxonomy) -> Labeller:
    """`patterns`, a trained model's folder, or the labels that a dataset or file holds.

    Raises:
        DataError: no model there or one of another taxonomy; a file without labels.
    """
    path = Path(spec)
    if spec == "patterns":
        return PatternLabeller(taxonomy)
    if path.is_file() or (path / MANIFEST_NAME).is_file():
        return RecordedLabels(path, taxonomy)
    return load_labeller(path, taxonomy)


class RecordedLabels:
    """The labels of a dataset's column `distortions`, by text: so they are measured themselves."""

    def __init__(self, path: Path, taxonomy: Taxonomy) -> None:
        self.taxonomy, self._path = taxonomy, path
        self._labels: dict[str, Labels] = {}
        for row in read_texts(path):
            if row.answer_labels is None:
                raise DataError("holds no column distortions with labels", where=str(path))
            self._labels[row.text], _ = map_labels(row.answer_labels, taxonomy)
        labellers = {label.labeller for labels in self._labels.values() for label in labels}
        self.name = labellers.pop() if len(labellers) == 1 else path.stem

    def label(self, text: str) -> Labels:
        if text not in self._labels:
            hint = "the gold's texts must be questions of this dataset (distortions annotate)"
            raise DataError(f"has no question '{text[:40]}'", where=str(self._path), hint=hint)
        return self._labels[text]

    def label_many(self, texts: Iterable[str]) -> list[Labels]:
        return [self.label(text) for text in texts]


def _label_by_answer(
    part: _Part, settings: LabelSettings, taxonomy: Taxonomy, counts: _Counts
) -> Labels:
    source = part.source
    if source.answer_labels is None and source.answer is None:
        raise DataError("has no answer and no labels", where=f"{settings.input}: text {source.id}")
    if source.answer_labels is None:
        return labels_named_in(str(source.answer), taxonomy)
    labels, dropped = map_labels(source.answer_labels, taxonomy)
    counts.lost.update(dropped)
    return labels


def _ask_llm(
    taxonomy: Taxonomy, settings: LabelSettings, stack: ExitStack, on_progress: OnProgress | None
) -> PartLabeller:
    """Asks about every text, into the journal; the result reads the labels from there."""
    service, task = settings.labelling(taxonomy)
    n_total = sum(1 for _ in _asks(settings))  # a bad line shows before anything is paid
    path = _journal_path(settings)
    opened = open_run(path, task.fingerprint(), service, what="the texts", hint=OTHER_RUN)
    run = stack.enter_context(opened)
    run.ask(_asks(settings), task, n_total=n_total, on_progress=on_progress)

    def read(parts: Sequence[_Part]) -> list[Found | Rejection]:
        groups = groupby(parts, key=lambda part: part.source.id)
        return [
            found
            for _, group in groups
            for found in _read_document(list(group), settings.level, task, run.journal)
        ]

    return read


def _asks(settings: LabelSettings) -> Iterator[TextsToLabel]:
    for source in read_texts(settings.input, settings.encoding):
        yield from _requests_about(source, settings.level)


def _requests_about(source: SourceText, level: Level) -> list[TextsToLabel]:
    """The whole text as one, or its sentences together."""
    if level == "document":
        return [TextsToLabel(f"{source.id}/0", (source.text,))]
    return cut_document(source.id, [span.of(source.text) for span in split_sentences(source.text)])


def _read_document(
    parts: Sequence[_Part], level: Level, task: LabellingTask, journal: Journal
) -> Iterator[Found | Rejection]:
    """What was found in parts of one document."""
    found = list(read_outcomes(_requests_about(parts[0].source, level), task, journal))
    for part in parts:
        number = part.row.part
        if number or level == "document":
            one = found[max(0, number - 1)]
        else:
            read = [each for each in found if isinstance(each, Found)]
            failed = (each for each in found if isinstance(each, Rejection))
            one = next(failed, None) or join_found(read)
        if isinstance(one, Rejection):
            one = one.model_copy(update={"item_id": f"{part.row.id}/{number}"})
        yield one


def estimate_labels(settings: LabelSettings) -> Estimate:
    """What would still be sent to the llm; the other labellers send nothing."""
    service, task = None, None
    if "llm" in settings.labeller:
        service, task = settings.labelling(load_taxonomy(settings.taxonomy))
    path, asks = _journal_path(settings), _asks(settings)
    return estimate_run(service, path, asks, task, name="texts", reply_tokens=REPLY_TOKENS)


def _result_path(settings: LabelSettings) -> Path:
    own = f"{settings.input.name}.labels.jsonl"
    # a text is no name beside which a file could lie; its journal has nothing paid in it
    return settings.out or (
        Path("labels.jsonl") if settings.is_shown_only else settings.input.with_name(own)
    )


def _journal_path(settings: LabelSettings) -> Path:
    return _result_path(settings).with_suffix(".journal.sqlite")
