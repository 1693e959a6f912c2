"""Weight files of a model: which they are, what they hash to, their tensors read one at a time.

Both formats, whole or in parts with an index: safetensors, and `.bin`, which is read as tensors
only: a pickle that holds anything else is refused.
"""

from __future__ import annotations

import hashlib
import pickle
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cbtqa.errors import DataError
from cbtqa.files import read_json, sha256_of, write_json
from cbtqa.manifest import FileEntry
from cbtqa.records import Record
from cbtqa.tuning.backbones import RECORD_NAMES, Backbone
from cbtqa.tuning.downloads import commit_of, download_hint, fetch, fetch_if_present
from cbtqa.tuning.libraries import require

WHOLE_NAMES = ("model.safetensors", "pytorch_model.bin")
BASE_RECORD = "base.json"


# --- which files ---------------------------------------------------------------------------------


def find_weights(location: str, revision: str | None = None) -> tuple[Path, ...]:
    """The weight files of a folder or Hub id, safetensors before `.bin`.

    Raises:
        DataError: none, or an index that names a file which is not there.
        ConfigError: the Hub cannot be reached, or the model is gated.
    """
    for name in WHOLE_NAMES:
        index = fetch_if_present(location, f"{name}.index.json", revision=revision)
        if index is not None:
            parts = sorted(set(read_json(index).get("weight_map", {}).values()))
            if location == str(index.parent):
                _check_parts(index, parts)
            return tuple(fetch(location, part, revision=revision) for part in parts)
        whole = fetch_if_present(location, name, revision=revision)
        if whole is not None:
            return (whole,)
    raise DataError(
        f"no weights: neither {' nor '.join(WHOLE_NAMES)}, nor parts",
        where=location,
        hint=None if Path(location).is_dir() else download_hint(location),
    )


def _check_parts(index: Path, parts: list[str]) -> None:
    missing = [part for part in parts if not (index.parent / part).is_file()]
    if missing or not parts:
        raise DataError(
            f"names {len(parts)} files of weights, {len(missing)} are missing: {missing[:3]}",
            where=str(index),
            hint="the download may have been interrupted: run it again",
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


# --- which base an adapter belongs to ------------------------------------------------------------


class BaseRecord(Record):
    """Which base model an adapter was trained on; `base.json` beside the adapter."""

    backbone: str | None
    """Known backbone it is or was made from; None when it is none of them."""
    name: str
    """Hub id, or the folder's own name."""
    revision: str | None = None
    weights_sha256: str
    """See `hash_weights`."""
    is_quantized: bool = False
    """True when the base was loaded in 4 bits while training (QLoRA)."""


def describe_base(backbone: Backbone, *, is_quantized: bool = False) -> BaseRecord:
    """The record of a base; a folder that we converted or merged is not hashed again.

    Raises:
        DataError, ConfigError: as `find_weights`.
    """
    recorded = _recorded_hash(backbone.path) if backbone.path else None
    files = () if recorded else find_weights(backbone.location, backbone.revision)
    return BaseRecord(
        backbone=backbone.known_id,
        name=backbone.told_name,
        revision=commit_of(files[0]) if files else backbone.revision,
        weights_sha256=recorded or hash_weights(files),
        is_quantized=is_quantized,
    )


def _recorded_hash(folder: Path) -> str | None:
    """The hash our own record gives, when the files still have the sizes it names."""
    for name in RECORD_NAMES:
        if (folder / name).is_file():
            record = read_json(folder / name)
            sizes = {file["name"]: file["n_bytes"] for file in record["files"]}
            is_intact = all(
                (folder / each).is_file() and (folder / each).stat().st_size == size
                for each, size in sizes.items()
            )
            return str(record["weights_sha256"]) if is_intact else None
    return None


def write_base_record(folder: Path, record: BaseRecord) -> None:
    """Writes `base.json` into an adapter's folder."""
    write_json(folder / BASE_RECORD, record)


def read_base_record(folder: Path) -> BaseRecord | None:
    """An adapter's base, or None for an adapter that records none (made by another program)."""
    path = folder / BASE_RECORD
    return BaseRecord.model_validate(read_json(path)) if path.is_file() else None


# --- tensors -------------------------------------------------------------------------------------


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
    """Opens a weight file; the tensors are mapped, not loaded.

    Raises:
        DataError: damaged, or a pickle with more than tensors in it.
    """
    opened = _open_safetensors if path.suffix == ".safetensors" else _open_pickle
    with opened(path) as tensors:
        yield tensors


@contextmanager
def _open_safetensors(path: Path) -> Iterator[TensorFile]:
    safetensors = require("safetensors")
    with ExitStack() as stack:
        try:
            file = stack.enter_context(safetensors.safe_open(path, framework="pt", device="cpu"))
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - no dict
        except safetensors.SafetensorError as error:
            raise _damaged(path, error) from None
        yield TensorFile(
            {name: tuple(part.get_shape()) for name, part in slices.items()},
            {name: _torch_name(part.get_dtype()) for name, part in slices.items()},
            file.get_tensor,
        )


def _torch_name(dtype: str) -> str:
    floats = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}
    return floats.get(dtype, dtype)


@contextmanager
def _open_pickle(path: Path) -> Iterator[TensorFile]:
    tensors = _load_pickle(path, mapped=True)
    yield TensorFile(
        {name: tuple(tensor.shape) for name, tensor in tensors.items()},
        {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in tensors.items()},
        tensors.__getitem__,
    )


def _load_pickle(path: Path, *, mapped: bool) -> dict[str, Any]:
    torch = require("torch")
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        raise DataError(
            f"a pickle with more than tensors in it is not loaded: {_first_line(error)}",
            where=str(path),
        ) from None
    except (RuntimeError, EOFError, ValueError) as error:
        if mapped and "mmap" in str(error):  # the format before torch 1.6 cannot be mapped
            return _load_pickle(path, mapped=False)
        raise _damaged(path, error) from None
    if not isinstance(loaded, dict) or not all(hasattr(each, "dtype") for each in loaded.values()):
        raise DataError("expected tensors by name", where=str(path))
    return loaded


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(
        f"damaged weights: {_first_line(error)}",
        where=str(path),
        hint="the download may have been interrupted: run it again",
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
