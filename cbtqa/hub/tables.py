"""Parquet files as the Hub's viewer likes them: `config/split-00000-of-00001.parquet`.

    with Tables(staging) as tables:
        tables.add("qa", "train", qa_schema(), row)
    tables.n_rows["qa"]["train"]

The same rows give the same bytes, so that publishing twice sends nothing twice.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cbtqa.dataset.folder import ROWS_PER_SHARD

if TYPE_CHECKING:
    import pyarrow as pa

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
