"""Weight files of a model: which they are, their hashes, their tensors read and written.

Both formats, whole or in parts with an index: safetensors, and `.bin`, which is read as tensors
only: a pickle that holds anything else is rejected.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import cbtqa
from cbtqa.errors import ConfigError, DataError, IncompleteRunError, UsageError
from cbtqa.files import parse_record, read_json, sha256_of, write_json
from cbtqa.manifest import FileEntry, describe_file, now, package_versions
from cbtqa.paths import make_folder, real_path, replacing
from cbtqa.records import Record
from cbtqa.tuning.backbones import (
    Backbone,
    commit_of,
    download_hint,
    fetch,
    fetch_if_present,
    record_of,
)
from cbtqa.tuning.data.chat_format import ChatFormat
from cbtqa.tuning.libraries import first_line, is_disk_full, require

WHOLE_NAMES = ("model.safetensors", "pytorch_model.bin")
BASE_RECORD = "base.json"
GENERATION_NAME = "generation_config.json"
TOKEN_IDS = ("bos_token_id", "pad_token_id", "eos_token_id")
DOWNLOAD_AGAIN = "the download may have been interrupted: run it again"


def find_weights(location: str, revision: str | None = None) -> tuple[Path, ...]:
    """The weight files of a folder or Hub id, safetensors before `.bin`; raises DataError."""
    for name in WHOLE_NAMES:
        index = fetch_if_present(location, f"{name}.index.json", revision=revision)
        if index is not None:
            parts = sorted(set(read_json(index).get("weight_map", {}).values()))
            missing = [part for part in parts if not (index.parent / part).is_file()]
            if location == str(index.parent) and (missing or not parts):
                raise DataError(
                    f"names {len(parts)} files of weights, {len(missing)} are missing: "
                    f"{missing[:3]}",
                    where=str(index),
                    hint=DOWNLOAD_AGAIN,
                )
            return tuple(fetch(location, part, revision=revision) for part in parts)
        whole = fetch_if_present(location, name, revision=revision)
        if whole is not None:
            return (whole,)
    raise DataError(
        f"no weights: neither {' nor '.join(WHOLE_NAMES)}, nor parts",
        where=location,
        hint=None if Path(location).is_dir() else download_hint(location),
    )


def hash_weights(files: Iterable[Path]) -> str:
    """One SHA-256 for all weight files, of their names and hashes.

    Reads every byte once, but for files in the Hub's cache, which are stored under their hash.
    """
    return combine_hashes(FileEntry(name=p.name, n_bytes=0, sha256=_sha256(p)) for p in files)


def _sha256(path: Path) -> str:
    stored = path.resolve()
    is_named_by_hash = stored.parent.name == "blobs" and re.fullmatch("[0-9a-f]{64}", stored.name)
    return stored.name if is_named_by_hash else sha256_of(path)


def combine_hashes(files: Iterable[FileEntry]) -> str:
    """One SHA-256 for several hashed files, whatever their order."""
    lines = sorted(f"{file.sha256}  {file.name}\n" for file in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


class BaseRecord(Record):
    """Which base model an adapter was trained on; `base.json` beside the adapter."""

    backbone: str | None
    """Known backbone it is or was made from; None when it is none of them."""
    name: str
    """Hub id, or the folder's own name."""
    hub_id: str | None = None
    """Where its weights, or those that were converted, were published; None where not known."""
    revision: str | None = None
    """Commit there."""
    is_converted: bool = False
    """True when `cbtqa convert`, or a verb by itself, rewrote what was published."""
    weights_sha256: str
    """See `hash_weights`."""
    is_quantized: bool = False
    """True when the base was loaded in 4 bits while training (QLoRA)."""


def describe_base(backbone: Backbone, *, is_quantized: bool = False) -> BaseRecord:
    """The record of a base; a folder that we converted or merged is not hashed again."""
    recorded = _recorded_hash(backbone.path) if backbone.path else None
    files = () if recorded else find_weights(backbone.location, backbone.revision)
    record = record_of(backbone.path) if backbone.path else {}
    source = record.get("source") or {}  # of a conversion; without a commit it was a folder
    commit = source.get("revision") or (commit_of(files[0]) if files else backbone.revision)
    hub_id = None if backbone.path else backbone.hub_id
    return BaseRecord(
        backbone=backbone.known_id,
        name=backbone.display_name,
        hub_id=source["name"] if source.get("revision") else hub_id,
        revision=commit,
        is_converted=bool(source),
        weights_sha256=recorded or hash_weights(files),
        is_quantized=is_quantized,
    )


def _recorded_hash(folder: Path) -> str | None:
    """The hash our own record gives, when the files still have the sizes it names."""
    record = record_of(folder)
    is_intact = all(
        (path := folder / file["name"]).is_file() and path.stat().st_size == file["n_bytes"]
        for file in record.get("files", ())
    )
    return str(record["weights_sha256"]) if record and is_intact else None


def write_base_record(folder: Path, record: BaseRecord) -> None:
    """Writes `base.json` into an adapter's folder."""
    write_json(folder / BASE_RECORD, record)


def read_base_record(folder: Path) -> BaseRecord | None:
    """An adapter's base, or None for an adapter that records none (made by another program)."""
    path = folder / BASE_RECORD
    return parse_record(BaseRecord, read_json(path), str(path)) if path.is_file() else None


@dataclass(frozen=True)
class TensorFile:
    """The tensors of one file, each read when asked for."""

    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]
    """torch's names, such as `float16`."""
    read: Callable[[str], Any]
    """Name to tensor."""


@contextmanager
def open_tensors(path: Path) -> Iterator[TensorFile]:
    """The tensors of a file, mapped, not loaded; raises DataError for damage or other pickles."""
    if path.suffix != ".safetensors":
        tensors = _load_pickle(path, mapped=True)
        yield TensorFile(
            {name: tuple(tensor.shape) for name, tensor in tensors.items()},
            {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in tensors.items()},
            tensors.__getitem__,
        )
        return
    safetensors = require("safetensors")
    with ExitStack() as stack:
        try:
            file = stack.enter_context(safetensors.safe_open(path, framework="pt", device="cpu"))
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - no dict
        except safetensors.SafetensorError as error:
            raise _damaged(path, error) from None
        dtypes = {name: part.get_dtype() for name, part in slices.items()}
        yield TensorFile(
            {name: tuple(part.get_shape()) for name, part in slices.items()},
            {name: _FLOATS.get(dtype, dtype) for name, dtype in dtypes.items()},
            file.get_tensor,
        )


def _load_pickle(path: Path, *, mapped: bool) -> dict[str, Any]:
    torch = require("torch")
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        # torch's own words advise to load it all the same, which would run what is in it
        words = "damaged, or a pickle with more than tensors in it: it is not loaded"
        raise DataError(words, where=str(path), hint=DOWNLOAD_AGAIN) from error
    except (RuntimeError, EOFError, ValueError) as error:
        if mapped and "mmap" in str(error):  # the format before torch 1.6 cannot be mapped
            return _load_pickle(path, mapped=False)
        raise _damaged(path, error) from None
    if not isinstance(loaded, dict) or not all(hasattr(each, "dtype") for each in loaded.values()):
        raise DataError("expected tensors by name", where=str(path))
    return loaded


def _damaged(path: Path, error: Exception) -> DataError:
    words = f"damaged weights: {first_line(error)}"
    return DataError(words, where=str(path), hint=DOWNLOAD_AGAIN)


# --- shards --------------------------------------------------------------------------------------

GIB = 1 << 30
SHARD_BYTES = 2 * GIB
INDEX_NAME = "model.safetensors.index.json"
_BYTES = {"float64": 8, "int64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
_FLOATS = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}
"""safetensors' names of types to torch's."""


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


def dtypes_of(outputs: Iterable[Output]) -> set[str]:
    """torch's names of the types that are written."""
    return {output.dtype for output in outputs}


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


def cut_into_shards(outputs: Sequence[Output], limit: int) -> dict[str, list[Output]]:
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


def write_shards(outputs: Sequence[Output], limit: int, folder: Path, on_step: OnStep) -> None:
    """Writes the shards that are missing, then the index when there is more than one file.

    Memory holds one shard. A shard takes its name last: one that is there is whole, so a run that
    was stopped resumes after it.
    """
    save_file = require("safetensors.torch").save_file
    shards = cut_into_shards(outputs, limit)
    for number, (name, of_shard) in enumerate(shards.items(), 1):
        started, path = time.monotonic(), folder / name
        is_kept = path.is_file()
        if not is_kept:
            with replacing(path, is_shared=True) as temporary:
                save_file(_made(of_shard), temporary, metadata={"format": "pt"})
        seconds = time.monotonic() - started
        on_step(Step("written", number, len(shards), name, path.stat().st_size, seconds, is_kept))
    if len(shards) > 1:
        weight_map = {output.name: name for name, part in shards.items() for output in part}
        total = sum(output.n_bytes for output in outputs)
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


# --- the folder of a model -----------------------------------------------------------------------

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
    packages: dict[str, str]
    files: tuple[FileEntry, ...]
    """Every other file of the folder."""
    finished_at: str


def describe_written(folder: Path, dtypes: Iterable[str]) -> dict[str, Any]:
    """The fields of a record that are known once everything else is written."""
    paths = sorted(path for path in folder.iterdir() if path.name != PLAN_NAME)
    written = tuple(describe_file(path) for path in paths if path.is_file())
    return {
        "dtypes": tuple(sorted(set(dtypes))),
        "weights_sha256": combine_hashes(f for f in written if f.name.endswith(".safetensors")),
        "packages": package_versions(),
        "files": written,
        "finished_at": now(),
    }


def refuse_existing(out: Path) -> None:
    """Raises UsageError when something is at the target; nothing is ever overwritten."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UsageError(f"{out} exists already", hint="give another --out, or remove it first")


@contextmanager
def building(out: Path, plan: dict[str, Any]) -> Iterator[Path]:
    """A folder beside `out` to fill; on leaving without error it becomes `out`.

    Args:
        plan: what is made, from what. What an earlier run left is kept only under the same plan.

    Raises:
        IncompleteRunError: the disk is full; finished files are kept.
    """
    partial = out.parent / f".{out.name}.partial"
    if not (partial / PLAN_NAME).is_file() or read_json(partial / PLAN_NAME) != plan:
        shutil.rmtree(partial, ignore_errors=True)
        make_folder(partial)
        write_json(partial / PLAN_NAME, plan)
    for left in partial.glob(".*.part"):
        left.unlink()
    try:
        yield partial
    except (OSError, require("safetensors").SafetensorError) as error:
        if not is_disk_full(error):
            raise
        n = len(list(partial.glob("*.safetensors")))
        raise IncompleteRunError(
            f"no space left on the disk of {partial}; {n} finished files of weights are kept there",
            hint="make room, then run the same command again: it resumes from there",
        ) from None
    (partial / PLAN_NAME).unlink()
    if out.is_dir():
        out.rmdir()
    partial.rename(out)
    handle = os.open(out.parent, os.O_RDONLY)
    try:
        os.fsync(handle)  # the new name itself, or a power cut could take the folder back
    finally:
        os.close(handle)


def check_space(out: Path, n_bytes: int) -> None:
    """Raises ConfigError when a model of this size, less what is written of it, does not fit."""
    folder = real_path(out.parent)
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


def make_generation_config(
    given: dict[str, Any], tokenizer: Any, family: Backbone, ends: Sequence[int] = ()
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """A generation_config.json that stops at every token that ends an answer, `ends` among them.

    Also gives the keys of `given` that no native class knows.
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


def write_configs(
    folder: Path,
    source: Backbone,
    family: Backbone,
    config: dict[str, Any],
    dtypes: Iterable[str],
    *,
    adapter: Path | None = None,
) -> tuple[str, ...]:
    """Writes config.json and generation_config.json; gives the generation settings left out.

    Args:
        adapter: folder whose generation settings and learnt end of turn come before the source's.

    Raises:
        DataError: more tokens than the embedding has rows.
    """
    tokenizer = require("transformers").AutoTokenizer.from_pretrained(folder)
    n_rows = config.get("vocab_size", len(tokenizer))
    if len(tokenizer) > n_rows:
        raise DataError(
            f"the tokenizer has {len(tokenizer):,} tokens, the embedding {n_rows:,} rows: these "
            "are not files of one model",
            where=source.display_name,
        )
    path = fetch_if_present(source.location, GENERATION_NAME, revision=source.revision)
    ends: list[int] = []
    config = {key: value for key, value in config.items() if key not in ("torch_dtype", "dtype")}
    if adapter is None:
        config |= {key: getattr(tokenizer, key) for key in TOKEN_IDS}
    else:
        own, ends = adapter / GENERATION_NAME, _learnt_ends(tokenizer)
        path = own if own.is_file() else path
    given = read_json(path) if path else {}
    generation, unknown = make_generation_config(given, tokenizer, family, ends)
    kinds = set(dtypes)
    if len(kinds) == 1:
        config["torch_dtype"] = kinds.pop()
    write_json(folder / "config.json", config)
    write_json(folder / GENERATION_NAME, generation)
    return unknown


def _learnt_ends(tokenizer: Any) -> list[int]:
    """What closes an answer in the tokenizer's chat format; empty when it writes no answers."""
    try:
        return ChatFormat(tokenizer).end_ids if tokenizer.chat_template else []
    except ConfigError:
        return []


def carry_notices(source: Backbone, folder: Path) -> None:
    """Copies the licence and notice that came with the source, as licences ask."""
    for name in NOTICE_NAMES:
        found = fetch_if_present(source.location, name, revision=source.revision)
        if found is not None:
            shutil.copyfile(found, folder / name)
