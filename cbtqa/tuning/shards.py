"""Writes tensors as safetensors shards, each read, made and written in turn.

Memory holds one shard. A shard that is there already was written whole (it takes its name last),
so a run that was stopped goes on behind it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from cbtqa.files import replacing, write_json
from cbtqa.tuning.libraries import require
from cbtqa.tuning.weights import TensorFile, open_tensors

GIB = 1 << 30
SHARD_BYTES = 2 * GIB
INDEX_NAME = "model.safetensors.index.json"
_BYTES = {"float64": 8, "int64": 8, "float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class Output:
    """One tensor to write and how it is made."""

    name: str
    file: Path
    """Where its source is read from."""
    source: str
    shape: tuple[int, ...]
    dtype: str
    make: Callable[[Any], Any]
    """From the source's tensor to the one to write."""

    @property
    def n_values(self) -> int:
        return prod(self.shape)

    @property
    def n_bytes(self) -> int:
        return self.n_values * _BYTES.get(self.dtype, 1)


@dataclass(frozen=True)
class Step:
    """One file done."""

    what: str
    """`read` or `written`."""
    number: int
    total: int
    name: str
    n_bytes: int
    seconds: float
    is_kept: bool
    """True when an earlier run had written it."""


OnStep = Callable[[Step], None]


def cut_into_shards(outputs: Sequence[Output], limit: int = SHARD_BYTES) -> dict[str, list[Output]]:
    """File name to its tensors, in order; a tensor larger than `limit` has a file of its own."""
    shards: list[list[Output]] = []
    size = 0
    for output in outputs:
        if not shards or size + output.n_bytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(output)
        size += output.n_bytes
    if len(shards) == 1:
        return {"model.safetensors": shards[0]}
    names = [f"model-{n:05}-of-{len(shards):05}.safetensors" for n in range(1, len(shards) + 1)]
    return dict(zip(names, shards, strict=True))


def write_shards(shards: dict[str, list[Output]], folder: Path, on_step: OnStep) -> None:
    """Writes what is not there yet, then the index when there is more than one file.

    Raises:
        DataError: a source file is damaged.
    """
    save_file = require("safetensors.torch").save_file
    for number, (name, outputs) in enumerate(shards.items(), 1):
        started, path = time.monotonic(), folder / name
        is_kept = path.is_file()
        if not is_kept:
            with replacing(path) as temporary:
                save_file(_made(outputs), temporary, metadata={"format": "pt"})
        seconds = time.monotonic() - started
        on_step(Step("written", number, len(shards), name, path.stat().st_size, seconds, is_kept))
    if len(shards) > 1:
        weight_map = {output.name: name for name, outputs in shards.items() for output in outputs}
        total = sum(output.n_bytes for outputs in shards.values() for output in outputs)
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        write_json(folder / INDEX_NAME, index)


def _made(outputs: Iterable[Output]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    with ExitStack() as stack:
        opened: dict[Path, TensorFile] = {}
        for output in outputs:
            if output.file not in opened:
                opened[output.file] = stack.enter_context(open_tensors(output.file))
            made[output.name] = output.make(opened[output.file].read(output.source))
    return made
