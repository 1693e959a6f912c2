"""A built dataset on disk: its columns, its only writer, and its only reader.

    data/train-00000-of-00002.parquet ...   data/crisis-00000-of-00001.parquet
    human/human-00000-of-00001.parquet      rejects.jsonl   journal.sqlite
    report.html   README.md (card)          manifest.json, written last

    folder = DatasetFolder.open(Path("cbtqa-dataset"))
    folder.manifest.counts["n_out"], list(folder.splits)
    for row in folder.rows("train", columns=("id", "answer", "risk")): ...

The Parquet files' metadata describes the columns as `datasets.Features` do (`ClassLabel` for risk
and distortion types), for `load_dataset(folder)`, the Hub's viewer and `DatasetFolder`. Folders of
format 1 hold the names themselves.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, get_args

from cbtqa.errors import DataError, IncompleteRunError
from cbtqa.files import (
    FEATURES_KEY,
    ParquetRows,
    arrow_type_name,
    class_names,
    expect_columns,
    json_line,
    open_text,
    parquet_schema,
    parse_record,
    read_parquet,
    read_rows,
)
from cbtqa.manifest import MANIFEST_NAME, Manifest, read_manifest
from cbtqa.paths import remove_leftovers, replacing
from cbtqa.records import (
    STEP_NAMES,
    CbtAnswer,
    CbtSteps,
    Danger,
    DistortionLabel,
    Provenance,
    Question,
    ReferenceAnswer,
    Rejection,
    Risk,
    Tabular,
    Usage,
)

if TYPE_CHECKING:
    import pyarrow as pa

SPLITS = ("train", "validation", "test", "crisis")
FORMAT_VERSION = 2
"""2: risk and `distortion_types` are class labels. 1: texts, and no `distortion_types`."""
ROWS_PER_SHARD = 100_000
JOURNAL_NAME = "journal.sqlite"
REJECTS_NAME = "rejects.jsonl"
REPORT_NAME = "report.html"
PREVIEW_NAME = "preview.html"
CARD_NAME = "README.md"

# --- columns -------------------------------------------------------------------------------------

Feature = dict[str, Any]
"""One column as `datasets.Features.to_dict` writes it."""
_VALUES = ("string", "int64", "float64", "bool")
TEXT, INTEGER, NUMBER, TRUTH = [Feature(dtype=kind, _type="Value") for kind in _VALUES]
LABEL: Feature = {"id": TEXT, "evidence": TEXT, "labeller": TEXT, "confidence": NUMBER}
RISK: Feature = {"names": list(get_args(Risk)), "_type": "ClassLabel"}
DANGER: Feature = {"names": list(get_args(Danger)), "_type": "ClassLabel"}


def list_of(feature: Feature) -> Feature:
    """A list of such values; of a struct when `feature` maps names to features."""
    return {"feature": feature, "_type": "List"}


def type_label(types: Sequence[str]) -> Feature:
    """One distortion type: a class label of the taxonomy's types, a text where none are known."""
    return {"names": list(types), "_type": "ClassLabel"} if types else TEXT


def answer_features(types: Sequence[str] = ()) -> dict[str, Feature]:
    """Columns of the splits, in order; `types` are the ids of the taxonomy's types.

    The viewer shows a class label inside a list as a number: the labels in `distortions` keep
    their ids as texts, and `distortion_types` holds the same types as class labels.
    """
    return {
        **dict.fromkeys(("id", "question", "description"), TEXT),
        "keywords": list_of(TEXT),
        **dict.fromkeys(("answer", *STEP_NAMES), TEXT),
        "distortions": list_of(LABEL),
        "distortion_types": list_of(type_label(types)),
        "has_distortion": TRUTH,
        "risk": RISK,
        "dangers": list_of(DANGER),
        **dict.fromkeys(("is_acute", "is_minor"), TRUTH),
        "system": TEXT,
        "is_training_source": TRUTH,
        **dict.fromkeys(("model", "endpoint_host", "prompt_id", "prompt_sha256"), TEXT),
        "seed": INTEGER,
        "sampling": TEXT,
        **dict.fromkeys(("prompt_tokens", "completion_tokens"), INTEGER),
        **dict.fromkeys(("finish_reason", "cbtqa_version", "created_at"), TEXT),
    }


ANSWER_COLUMNS = tuple(answer_features())
LATER_COLUMNS = frozenset(("distortion_types", "dangers", "is_acute", "is_minor"))
"""Folders of earlier versions lack them: None there, the types from the labels."""


def human_features() -> dict[str, Feature]:
    """Columns of the human answers, in order."""
    span = {"start": INTEGER, "end": INTEGER, "type": TEXT}
    return {"question_id": TEXT, "text": TEXT, "strategies": list_of(span)}


def arrow_schema(features: Mapping[str, Feature]) -> pa.Schema:
    """What `datasets.Features.arrow_schema` gives, without the seconds that importing it takes."""
    import pyarrow as pa

    described = json.dumps({"info": {"features": dict(features)}})
    fields = [(name, _arrow_type(feature)) for name, feature in features.items()]
    return pa.schema(fields, {FEATURES_KEY: described})


def _arrow_type(feature: Feature) -> Any:
    import pyarrow as pa

    kind = feature.get("_type")
    if kind is None:
        return pa.struct([(name, _arrow_type(inner)) for name, inner in feature.items()])
    if kind == "List":
        return pa.list_(_arrow_type(feature["feature"]))
    return pa.type_for_alias("int64" if kind == "ClassLabel" else feature["dtype"])


# --- rows ----------------------------------------------------------------------------------------

_MADE = (
    *("model", "endpoint_host", "prompt_id", "prompt_sha256", "seed", "finish_reason"),
    *("is_training_source", "created_at"),
)
"""Columns that are fields of the provenance under the same name."""


def answer_row(question: Question, answer: CbtAnswer) -> dict[str, Any]:
    """One question with its answer as a row of `answer_features`, class labels by name."""
    made = answer.provenance
    return {
        **question.model_dump(),
        "answer": answer.text,
        **{name: getattr(answer.steps, name, None) for name in STEP_NAMES},
        "distortions": [label.model_dump() for label in answer.distortions],
        "distortion_types": types_of(label.id for label in answer.distortions),
        "has_distortion": bool(answer.distortions),
        "risk": answer.risk,
        "dangers": list(answer.dangers),
        "is_acute": answer.is_acute,
        "is_minor": answer.is_minor,
        "system": answer.system,
        **{name: getattr(made, name) for name in _MADE},
        "sampling": json.dumps(made.sampling, sort_keys=True) if made.sampling else None,
        "prompt_tokens": made.usage.prompt_tokens if made.usage else None,
        "completion_tokens": made.usage.completion_tokens if made.usage else None,
        "cbtqa_version": made.version,
    }


def types_of(ids: Iterable[str]) -> list[str]:
    """The distinct types in their order."""
    return list(dict.fromkeys(ids))


def answer_of(row: Mapping[str, Any]) -> CbtAnswer:
    """The answer that `answer_row` wrote."""
    has_steps = row[STEP_NAMES[0]] is not None
    tokens = {name: row[name] for name in ("prompt_tokens", "completion_tokens")}
    return CbtAnswer(
        question_id=row["id"],
        system=row["system"],
        text=row["answer"],
        steps=CbtSteps(**{name: row[name] for name in STEP_NAMES}) if has_steps else None,
        distortions=tuple(DistortionLabel(**label) for label in row["distortions"]),
        risk=row["risk"],
        dangers=tuple(row["dangers"] or ()),
        is_acute=bool(row["is_acute"]),
        is_minor=bool(row["is_minor"]),
        provenance=Provenance(
            **{name: row[name] for name in _MADE},
            sampling=json.loads(row["sampling"]) if row["sampling"] else {},
            usage=None if row["prompt_tokens"] is None else Usage(**tokens),
            version=row["cbtqa_version"],
        ),
    )


def question_of(row: Mapping[str, Any]) -> Question:
    """The question that `answer_row` wrote."""
    return Question(**{name: row[name] for name in QUESTION_COLUMNS})


QUESTION_COLUMNS = tuple(Question.model_fields)

# --- reading -------------------------------------------------------------------------------------


def is_dataset_folder(path: Path) -> bool:
    """Whether a path is to be opened as a dataset, be it unfinished or damaged."""
    if (path / MANIFEST_NAME).is_file():
        return read_manifest(path).kind == "dataset"
    return (path / JOURNAL_NAME).is_file()


def has_splits(path: Path) -> bool:
    """Whether a path is a dataset, or a clone of a repository of the Hub in the same layout."""
    return is_dataset_folder(path) or any(path.glob("data/*.parquet"))


@dataclass(frozen=True)
class DatasetFolder(Tabular):
    """A built dataset, read as a stream: memory does not grow with it."""

    path: Path
    found: Manifest | None
    """None for an unfinished folder that was opened with `partial`."""

    @classmethod
    def open(cls, path: Path, *, partial: bool = False) -> DatasetFolder:
        """Opens a folder that `cbtqa build-dataset` or `cbtqa join` wrote.

        Args:
            partial: accept what an unfinished build has written so far.

        Raises:
            IncompleteRunError: the build has not finished.
            DataError: no such folder, none of a dataset, or a file of it is missing.
        """

        def wrong(what: str, hint: str | None = None) -> DataError:
            return DataError(what, where=str(path), hint=hint)

        if not path.is_dir():
            raise wrong("is a file" if path.exists() else "no such folder")
        if not (path / MANIFEST_NAME).exists():
            has_rows = any(path.glob("data/*.parquet")) or (path / REJECTS_NAME).exists()
            if partial and has_rows:
                return cls(path, None)
            if not has_rows and not (path / JOURNAL_NAME).exists():
                raise wrong("is no dataset of cbtqa", NO_DATASET)
            raise unfinished(path)
        manifest = read_manifest(path)
        if manifest.kind != "dataset":
            raise wrong(f"holds {manifest.kind}, not a dataset", NO_DATASET)
        if manifest.format_version > FORMAT_VERSION:
            found = f"is of format {manifest.format_version}, newer than this cbtqa can read"
            raise wrong(found, "pip install --upgrade cbtqa")
        for entry in manifest.files:
            if entry.name.endswith(".parquet") and not (path / entry.name).is_file():
                raise wrong(f"lacks {entry.name}, which its manifest lists", DAMAGED)
        return cls(path, manifest)

    @property
    def manifest(self) -> Manifest:
        """How the dataset was made, and its counts; IncompleteRunError before the build's end."""
        if self.found is None:
            raise unfinished(self.path)
        return self.found

    @cached_property
    def splits(self) -> dict[str, tuple[Path, ...]]:
        """The splits that hold rows, in their order, each with its files."""
        files: dict[str, list[Path]] = {name: [] for name in SPLITS}
        for file in sorted((self.path / "data").glob("*.parquet")):
            files.setdefault(file.name.split("-")[0], []).append(file)
        return {name: tuple(found) for name, found in files.items() if found}

    @cached_property
    def types(self) -> tuple[str, ...]:
        """The distortion types that a label can have; empty in format 1, which does not say."""
        for files in self.splits.values():
            return tuple(class_names(parquet_schema(files[0])).get("distortion_types", ()))
        return ()

    def files(self, split: str = "all") -> list[Path]:
        """The Parquet files of one split, several (`train,test`) or all.

        Raises:
            DataError: no such split, or a file whose columns are not those of a built dataset.
        """
        files = [file for name in self._names(split) for file in self.splits[name]]
        for file in files if self.found else ():  # a clone of a repository may hold others
            expect_columns(file, _answer_types())
        return files

    def _names(self, split: str) -> list[str]:
        if split == "all":
            return list(self.splits)
        for name in split.split(","):
            if name not in self.splits:
                raise DataError(
                    f"has no split '{name}'",
                    where=str(self.path),
                    hint=f"its splits are {', '.join(self.splits) or 'none'}",
                )
        return split.split(",")

    def rows(
        self,
        split: str = "all",
        columns: Sequence[str] | None = ANSWER_COLUMNS,
        ids: Collection[str] | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Rows in order, class labels by name.

        Args:
            columns: what to read; None for every column of the files.
            ids: only the rows of these questions.
        """
        for file in self.files(split):
            yield from (row for _, row in _read_shard(file, columns, ids))

    def answers(self, split: str = "all") -> Iterator[CbtAnswer]:
        """The answers in order."""
        return map(answer_of, self.rows(split))

    def questions(self, split: str = "all") -> Iterator[Question]:
        """The questions in order."""
        return map(question_of, self.rows(split, QUESTION_COLUMNS))

    def human_answers(self) -> Iterator[ReferenceAnswer]:
        """PsyQA's own answers, where the build kept them."""
        for file in sorted((self.path / "human").glob("*.parquet")):
            for where, row in read_parquet(file):
                yield parse_record(ReferenceAnswer, row, where)

    def to_dict(self) -> dict[str, Any]:
        """Where it is, and its counts."""
        return {"folder": str(self.path), "counts": self.manifest.counts}

    def to_rows(self) -> list[dict[str, Any]]:
        """The splits with their numbers of rows."""
        splits = self.manifest.counts["splits"]
        return [{"split": name, "rows": n} for name, n in splits.items()]

    def to_datasets(self) -> Any:
        """A `datasets.DatasetDict` of the splits."""
        from datasets import load_dataset

        files = {name: [str(file) for file in found] for name, found in self.splits.items()}
        return load_dataset("parquet", data_files=files)

    def to_pandas(self, split: str = "all") -> Any:
        """A `pandas.DataFrame` with a column `split` and class labels by name."""
        import pandas

        names = self._names(split)
        rows = [{"split": name, **row} for name in names for row in self.rows(name)]
        return pandas.DataFrame(rows, columns=["split", *ANSWER_COLUMNS])


NO_DATASET = "name a folder that cbtqa build-dataset wrote"
DAMAGED = "write it again from its paid replies: cbtqa build-dataset with its --out and --update"


def unfinished(path: Path) -> IncompleteRunError:
    """The error for a dataset whose build has not finished."""
    return IncompleteRunError(
        f"{path} holds no {MANIFEST_NAME}: the run did not finish",
        hint=f"the command that made it continues it: cbtqa build-dataset ... --out {path}",
    )


@cache
def _answer_types() -> dict[str, tuple[str, ...]]:
    """The Arrow types that a built dataset's columns may have: format 1 has labels as text."""
    features = answer_features(("any",))
    as_text = json.loads(json.dumps(features), object_hook=_label_as_text)
    return {
        name: tuple({arrow_type_name(_arrow_type(one)) for one in (feature, as_text[name])})
        for name, feature in features.items()
    }


def _label_as_text(feature: dict[str, Any]) -> dict[str, Any]:
    return TEXT if feature.get("_type") == "ClassLabel" else feature


def _read_shard(
    file: Path, columns: Sequence[str] | None = None, ids: Collection[str] | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    missing = LATER_COLUMNS.difference(parquet_schema(file).names)
    wanted = missing.intersection(columns or ("distortion_types",))
    if columns is not None:
        columns = [name for name in columns if name not in missing]
    for where, row in read_parquet(file, columns, ids):
        row |= dict.fromkeys(wanted)
        if "distortion_types" in wanted and "distortions" in row:
            row["distortion_types"] = types_of(label["id"] for label in row["distortions"])
        yield where, row


def source_rows(
    path: Path, split: str = "all", encoding: str = "utf-8"
) -> Iterator[tuple[str, dict[str, Any]]]:
    """`(where, row)` of a dataset's split, or of what `files.read_rows` takes.

    A clone of a repository of the Hub has the layout of a dataset and is read by split too. An
    unfinished dataset is an IncompleteRunError.
    """
    is_folder = path.is_dir() or not (path.suffix or path.exists())
    if is_folder and (has_splits(path) or not any(path.rglob("*.parquet"))):
        is_clone = has_splits(path) and not is_dataset_folder(path)
        folder = DatasetFolder(path, None) if is_clone else DatasetFolder.open(path)
        return (pair for file in folder.files(split) for pair in _read_shard(file))
    return read_rows(path, encoding)


SHORTEST_TEXT = 6
"""Characters from which what is no file may be a text."""
_PROSE = re.compile(r"[\s\u3400-\u9fff]")


def is_text(path: Path) -> bool:
    """Whether an argument is no path but the text itself: words of prose that name no file."""
    text = str(path)
    if len(text) < SHORTEST_TEXT or not _PROSE.search(text):
        return False
    if len(text.encode()) > 255:  # longer than any file's name may be
        return os.sep not in text
    return not path.suffix.isascii() or not (path.suffix or path.exists() or os.sep in text)


def text_rows(path: Path, encoding: str = "utf-8") -> Iterator[tuple[str, dict[str, Any]]]:
    """`(where, row)` as of `source_rows`, or of plain text, in the column `text`.

    Plain text is a .txt file or `-` (standard input), a row for each line that is not empty, or one
    text itself in place of a path (`is_text`).
    """
    if is_text(path):
        return iter([("the text given", {"text": str(path)})])
    if str(path) == "-" or path.suffix.lower() == ".txt":
        return _read_lines(path, encoding)
    return source_rows(path, encoding=encoding)


def _read_lines(path: Path, encoding: str) -> Iterator[tuple[str, dict[str, Any]]]:
    with ExitStack() as stack:
        is_stdin = str(path) == "-"
        lines = sys.stdin if is_stdin else stack.enter_context(open_text(path, encoding))
        name = "standard input" if is_stdin else str(path)
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield f"{name}:{number}", {"text": line.strip()}


# --- writing -------------------------------------------------------------------------------------


class ParquetShards:
    """Rows of one split, in shards that are named when their number is known; no row, no file."""

    def __init__(self, folder: Path, name: str, schema: pa.Schema, rows_per_group: int) -> None:
        self.n_rows = 0
        self._folder, self._name, self._schema = folder, name, schema
        self._rows_per_group = rows_per_group
        self._paths: list[Path] = []
        self._open: ParquetRows | None = None

    def add(self, row: Mapping[str, Any]) -> None:
        """Adds a row; its keys are the schema's columns."""
        if self.n_rows % ROWS_PER_SHARD == 0:
            self._close_shard(None, None, None)
            path = self._folder / f"{self._name}-{len(self._paths):05d}.parquet"
            self._paths.append(path)
            self._open = ParquetRows(path, self._schema, self._rows_per_group).__enter__()
        assert self._open is not None
        self._open.add(row)
        self.n_rows += 1

    def _close_shard(self, *error: Any) -> None:
        if self._open is not None:
            self._open.__exit__(*error)
            self._open = None

    def close(self, *error: Any) -> None:
        """Finishes the last shard and renames all (or drops it after an error)."""
        self._close_shard(*error)
        if error[0] is None:
            for index, path in enumerate(self._paths):
                name = f"{self._name}-{index:05d}-of-{len(self._paths):05d}.parquet"
                path.replace(path.with_name(name))


class DatasetWriter:
    """Writes the files of a dataset folder, row by row; use as a context manager."""

    def __init__(self, folder: Path, types: Sequence[str]) -> None:
        self._folder = folder
        data, schema = folder / "data", arrow_schema(answer_features(types))
        human = arrow_schema(human_features())
        self._shards = {name: ParquetShards(data, name, schema, 5_000) for name in SPLITS}
        self._human = ParquetShards(folder / "human", "human", human, 5_000)
        self._rejects: IO[str]
        self._stack = ExitStack()

    def __enter__(self) -> DatasetWriter:
        remove_leftovers(self._folder)
        for part in (self._folder / "data", self._folder / "human"):
            remove_leftovers(part)
            for stale in part.glob("*.parquet"):
                stale.unlink()
        temporary = self._stack.enter_context(replacing(self._folder / REJECTS_NAME))
        self._rejects = self._stack.enter_context(temporary.open("w", encoding="utf-8"))
        for shards in (self._human, *reversed(self._shards.values())):
            self._stack.push(shards.close)
        return self

    def add_answer(self, split: str, row: Mapping[str, Any]) -> None:
        """Adds a row of `answer_features` to a split, class labels by name."""
        self._shards[split].add(row)

    def add_human(self, answer: ReferenceAnswer) -> None:
        self._human.add(answer.model_dump())

    def add_rejection(self, rejection: Rejection) -> None:
        self._rejects.write(json_line(rejection))

    @property
    def n_rows(self) -> dict[str, int]:
        """Rows per split, splits without rows left out."""
        return {name: shards.n_rows for name, shards in self._shards.items() if shards.n_rows}

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)


def data_files(folder: Path) -> list[Path]:
    """Every file of a finished dataset that its manifest lists, in a stable order."""
    names = (REJECTS_NAME, CARD_NAME, REPORT_NAME)
    parts = sorted(folder.glob("data/*.parquet")) + sorted(folder.glob("human/*.parquet"))
    return parts + [folder / name for name in names if (folder / name).exists()]
