"""The dataset's folder on disk: Parquet shards per split, rejects, human answers.

    data/train-00000-of-00002.parquet ...   data/crisis-00000-of-00001.parquet
    human/human-00000-of-00001.parquet      rejects.jsonl   journal.sqlite
    report.html   README.md (card)          manifest.json, written last

Shards are written under a temporary name and named when their number is known; leftovers of an
earlier write are removed first.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from cbtqa.dataset_folder import SPLITS, answer_schema, human_schema
from cbtqa.files import ParquetRows, json_line, replacing
from cbtqa.records import Rejection

if TYPE_CHECKING:
    import pyarrow as pa

ROWS_PER_SHARD = 100_000
JOURNAL_NAME = "journal.sqlite"
REJECTS_NAME = "rejects.jsonl"
REPORT_NAME = "report.html"
CARD_NAME = "README.md"


class _Shards:
    """Rows of one split, in shards; a split without rows leaves no file."""

    def __init__(self, folder: Path, name: str, schema: pa.Schema) -> None:
        self.n_rows = 0
        self._folder, self._name, self._schema = folder, name, schema
        self._paths: list[Path] = []
        self._open: ParquetRows | None = None

    def add(self, row: dict[str, Any]) -> None:
        if self.n_rows % ROWS_PER_SHARD == 0:
            self._close_shard(None)
            path = self._folder / f"{self._name}-{len(self._paths):05d}.parquet"
            self._paths.append(path)
            self._open = ParquetRows(path, self._schema).__enter__()
        assert self._open is not None
        self._open.add(row)
        self.n_rows += 1

    def _close_shard(self, kind: Any) -> None:
        if self._open is not None:
            self._open.__exit__(kind, None, None)
            self._open = None

    def close(self, kind: Any) -> None:
        """Finishes the last shard and gives all their final names (or drops it after an error)."""
        self._close_shard(kind)
        if kind is None:
            for index, path in enumerate(self._paths):
                name = f"{self._name}-{index:05d}-of-{len(self._paths):05d}.parquet"
                path.replace(path.with_name(name))


class DatasetWriter:
    """Writes the files of a dataset folder, row by row; use as a context manager."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._shards = {name: _Shards(folder / "data", name, answer_schema()) for name in SPLITS}
        self._human = _Shards(folder / "human", "human", human_schema())
        self._rejects: IO[str]
        self._stack = ExitStack()

    def __enter__(self) -> DatasetWriter:
        for part in ("data", "human"):
            for stale in (self._folder / part).glob("*.parquet"):
                stale.unlink()
        temporary = self._stack.enter_context(replacing(self._folder / REJECTS_NAME))
        self._rejects = self._stack.enter_context(temporary.open("w", encoding="utf-8"))
        return self

    def add_answer(self, split: str, row: dict[str, Any]) -> None:
        """Adds a row of `answer_schema` to a split."""
        self._shards[split].add(row)

    def add_human(self, row: dict[str, Any]) -> None:
        """Adds a row of `human_schema`."""
        self._human.add(row)

    def add_rejection(self, rejection: Rejection) -> None:
        """Adds a line to `rejects.jsonl`."""
        self._rejects.write(json_line(rejection))

    @property
    def n_rows(self) -> dict[str, int]:
        """Rows per split, splits without rows left out."""
        return {name: shards.n_rows for name, shards in self._shards.items() if shards.n_rows}

    def __exit__(self, kind: Any, value: Any, trace: Any) -> None:
        for shards in (*self._shards.values(), self._human):
            shards.close(kind)
        self._stack.__exit__(kind, value, trace)


def data_files(folder: Path) -> list[Path]:
    """Every file of a finished dataset that its manifest lists, in a stable order."""
    names = (REJECTS_NAME, CARD_NAME, REPORT_NAME)
    parts = sorted(folder.glob("data/*.parquet")) + sorted(folder.glob("human/*.parquet"))
    return parts + [folder / name for name in names if (folder / name).exists()]
