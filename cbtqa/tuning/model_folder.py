"""A model's folder that appears whole or not at all, and the small files in it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cbtqa
from cbtqa.errors import ConfigError, DataError, IncompleteRunError, UsageError
from cbtqa.files import read_json, write_json
from cbtqa.manifest import FileEntry, describe_file, now, package_versions
from cbtqa.records import Record
from cbtqa.tuning.backbones import Backbone
from cbtqa.tuning.downloads import fetch_if_present
from cbtqa.tuning.failures import is_disk_full
from cbtqa.tuning.libraries import require
from cbtqa.tuning.shards import GIB, Output
from cbtqa.tuning.weights import combine_hashes

PLAN_NAME = "plan.json"
NOTICE_NAMES = ("LICENSE", "NOTICE", "LICENSE.txt", "NOTICE.txt")


class ModelRecord(Record):
    """What is recorded of every model folder written here."""

    format_version: int = 1
    cbtqa_version: str = cbtqa.__version__
    backbone: str | None
    """Listed backbone at the bottom; None when it is none of them."""
    dtypes: tuple[str, ...]
    weights_sha256: str
    """See `weights.hash_weights`."""
    packages: dict[str, str]
    files: tuple[FileEntry, ...]
    """Every other file of the folder."""
    finished_at: str


def describe_written(folder: Path, outputs: Iterable[Output]) -> dict[str, Any]:
    """The fields of a record that can be told once everything else is written."""
    written = describe_folder(folder)
    return {
        "dtypes": tuple(sorted({output.dtype for output in outputs})),
        "weights_sha256": combine_hashes(f for f in written if f.name.endswith(".safetensors")),
        "packages": package_versions(),
        "files": written,
        "finished_at": now(),
    }


def refuse_existing(out: Path) -> None:
    """Checks that the target is free.

    Raises:
        UsageError: something is there; nothing is ever overwritten.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UsageError(f"{out} exists already", hint="give another --out, or remove it first")


@contextmanager
def building(out: Path, plan: dict[str, Any]) -> Iterator[Path]:
    """A folder beside `out` to fill; on leaving without error it becomes `out`.

    Args:
        plan: what is being made, from what. What an earlier run left is kept when its plan was
            the same, and cleared away otherwise.

    Raises:
        IncompleteRunError: the disk is full; finished files stay.
    """
    partial = out.parent / f".{out.name}.partial"
    if not (partial / PLAN_NAME).is_file() or read_json(partial / PLAN_NAME) != plan:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        write_json(partial / PLAN_NAME, plan)
    for left in partial.glob(".*.part"):
        left.unlink()
    try:
        yield partial
    except (OSError, require("safetensors").SafetensorError) as error:
        if not is_disk_full(error):
            raise
        raise _disk_full(partial) from None
    (partial / PLAN_NAME).unlink()
    if out.is_dir():
        out.rmdir()
    partial.rename(out)
    handle = os.open(out.parent, os.O_RDONLY)
    try:
        os.fsync(handle)  # the new name itself, or a power cut could take the folder back
    finally:
        os.close(handle)


def _disk_full(partial: Path) -> IncompleteRunError:
    n = len(list(partial.glob("*.safetensors")))
    return IncompleteRunError(
        f"no space left on the disk of {partial}; {n} finished files of weights are kept there",
        hint="make room, then run the same command again: it goes on from there",
    )


def check_space(out: Path, n_bytes: int) -> None:
    """Checks that a model of this size fits, beside what an earlier run has written of it.

    Raises:
        ConfigError: it does not; says how much is missing.
    """
    folder = out.parent.resolve()
    while not folder.exists():
        folder = folder.parent
    written = out.parent / f".{out.name}.partial"
    n_written = sum(path.stat().st_size for path in written.glob("*.safetensors"))
    missing = n_bytes - n_written - shutil.disk_usage(folder).free
    if missing > 0:
        raise ConfigError(
            f"{out} needs {n_bytes / GIB:.1f} GiB: {missing / GIB:.1f} GiB more than are free",
            hint="make room, or give --out on another disk",
        )


def describe_folder(folder: Path) -> tuple[FileEntry, ...]:
    """All files of a folder by name, size and hash."""
    names = sorted(path for path in folder.iterdir() if path.name != PLAN_NAME)
    return tuple(describe_file(path) for path in names if path.is_file())


def make_generation_config(
    given: dict[str, Any], tokenizer: Any, family: Backbone, ends: Sequence[int] = ()
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """A generation_config.json that stops at every token that ends an answer.

    Args:
        ends: token ids that end an answer besides those of the family and of the given one.

    Returns:
        The configuration, and the keys of the given one that no native class knows.
    """
    known = set(require("transformers").GenerationConfig().to_dict())
    kept = {key: value for key, value in given.items() if key in known}
    unknown = tuple(sorted(set(given) - known - {"_from_model_config"}))
    for key in ("_from_model_config", "transformers_version"):
        kept.pop(key, None)
    vocabulary = tokenizer.get_vocab()
    named = [vocabulary[token] for token in family.stops if token in vocabulary]
    given_ends = [*_as_list(kept.get("eos_token_id")), *_as_list(tokenizer.eos_token_id)]
    stops = list(dict.fromkeys([*ends, *named, *given_ends]))
    if not stops:
        raise DataError("neither tokenizer nor configuration names a token that ends an answer")
    kept["eos_token_id"] = stops[0] if len(stops) == 1 else stops
    kept["pad_token_id"] = tokenizer.pad_token_id
    if tokenizer.bos_token_id is not None:
        kept["bos_token_id"] = tokenizer.bos_token_id
    return kept, unknown


def _as_list(value: Any) -> list[int]:
    return [] if value is None else list(value) if isinstance(value, list) else [value]


def carry_notices(source: Backbone, folder: Path) -> None:
    """Copies the licence and notice that came with the source, as licences ask."""
    for name in NOTICE_NAMES:
        found = fetch_if_present(source.location, name, revision=source.revision)
        if found is not None:
            shutil.copyfile(found, folder / name)
