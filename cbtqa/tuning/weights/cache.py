"""Converted copies of published checkpoints, made once and shared by every verb.

    ready = converted(find_backbone("baichuan"), print)   # downloads and converts the first time
    ready.path           # ~/.cache/cbtqa/converted/Baichuan-7B-0123456789ab

The folder is named after the model and its commit, or the state of the files of a local folder.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cbtqa import errors
from cbtqa.errors import ConfigError, UsageError
from cbtqa.files import parse_record, read_json
from cbtqa.paths import make_folder
from cbtqa.report.words import seconds, size
from cbtqa.tuning.backbones import (
    Backbone,
    commit_of,
    facts_of_config,
    fetch,
    fetch_if_present,
    find_backbone,
    read_config,
)
from cbtqa.tuning.libraries import first_line, require
from cbtqa.tuning.settings import OnStage
from cbtqa.tuning.weights.convert import RECORD_NAME, ConversionRecord, convert
from cbtqa.tuning.weights.files import WHOLE_NAMES, Step, check_space

VARIABLE = "CBTQA_CACHE"
"""Environment variable that names another cache folder."""
N_COMMIT = 12
"""Characters of a commit in a folder's name."""


def cache_folder() -> Path:
    """Where converted copies are: `CBTQA_CACHE`, or `cbtqa` in the user's cache folder."""
    given = os.environ.get(VARIABLE)
    above = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return (Path(given).expanduser() if given else Path(above) / "cbtqa") / "converted"


@dataclass(frozen=True)
class CachedCopy:
    """One folder of the cache."""

    path: Path
    record: ConversionRecord | None
    """None for a conversion that was stopped; the next use resumes it."""

    @property
    def name(self) -> str:
        """The folder's name; of a conversion that was stopped the one it will have."""
        return self.path.name.removeprefix(".").removesuffix(".partial")

    @property
    def n_bytes(self) -> int:
        """Room on the disk."""
        return sum(file.stat().st_size for file in self.path.rglob("*") if file.is_file())

    def is_of(self, backbone: Backbone) -> bool:
        """True when it was made from this model, in the revision that it names, if it names one."""
        if self.record is None or self.record.source.name != backbone.display_name:
            return False
        commit = self.record.source.revision or ""
        return backbone.revision is None or commit.startswith(backbone.revision)


def cached_copies() -> list[CachedCopy]:
    """Every finished and every stopped conversion, by name."""
    copies = []
    folder = cache_folder()
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if (path / RECORD_NAME).is_file():
            where = str(path / RECORD_NAME)
            record = parse_record(ConversionRecord, read_json(path / RECORD_NAME), where)
            copies.append(CachedCopy(path, record))
        elif path.name.endswith(".partial"):
            copies.append(CachedCopy(path, None))
    return copies


def find_copy(backbone: Backbone) -> Path | None:
    """The newest converted copy of a model that there is, without any network; None without."""
    fitting = [copy for copy in cached_copies() if copy.is_of(backbone)]
    newest = max(fitting, key=lambda copy: copy.path.stat().st_mtime, default=None)
    return newest.path if newest else None


def clear_cache(names: list[str]) -> list[CachedCopy]:
    """Removes the copies of these names, or all of them for `all`, and gives what was removed.

    Raises:
        UsageError: no copy of such a name; nothing is removed then.
    """
    copies = cached_copies()
    unknown = sorted(set(names) - {copy.name for copy in copies} - {"all"})
    if unknown:
        words = f"no converted copy is called {', '.join(unknown)}"
        raise UsageError(words, hint="their names: cbtqa cache")
    wanted = [copy for copy in copies if "all" in names or copy.name in names]
    for copy in wanted:
        shutil.rmtree(copy.path)
    return wanted


def converted(backbone: Backbone, on_stage: OnStage) -> Backbone:
    """The backbone as transformers can read it: as it is, or its copy, which is made if missing.

    Two processes that need the same copy make it once: the second one waits.

    Raises:
        ConfigError: not available, not convertible, or no room on the disk.
        DataError: the files are damaged.
        IncompleteRunError: the disk is full; the same command resumes.
    """
    if not backbone.needs_conversion:
        return backbone
    try:
        config_path = fetch(backbone.location, "config.json", revision=backbone.revision)
    except ConfigError as error:
        copy = find_copy(backbone)
        if copy is None:
            raise
        on_stage(f"{error}; its converted copy {copy.name} is taken")
        return find_backbone(copy)
    commit = commit_of(config_path)
    state = commit or _state_of(backbone.location)
    out = cache_folder() / f"{_plain_name(backbone)}-{state[:N_COMMIT]}"
    if not (out / RECORD_NAME).is_file():
        with _only_one(out, on_stage):
            if not (out / RECORD_NAME).is_file():
                _convert(backbone.model_copy(update={"revision": commit}), out, on_stage)
    return find_backbone(out)


def from_modelscope(backbone: Backbone, on_stage: OnStage) -> Backbone:
    """The backbone as the folder that ModelScope's own library downloads, into its own cache.

    Raises:
        MissingExtraError: without that library.
        ConfigError: no such model there, or no network.
    """
    if backbone.path is not None:
        return backbone
    library = errors.require("modelscope.hub.snapshot_download", extra="modelscope")
    failures = (OSError, errors.require("modelscope.hub.errors", extra="modelscope").HubError)
    name = backbone.modelscope_id or backbone.location
    on_stage(f"downloading {name} from ModelScope: once, into its own cache")
    try:
        folder = Path(library.snapshot_download(name, revision=backbone.revision))
    except failures as error:
        raise ConfigError(
            f"cannot get {name} from ModelScope: {first_line(error)}",
            hint="without --from it comes from the Hugging Face Hub; a folder works too",
        ) from None
    if backbone.known_id is None:
        return find_backbone(folder)
    facts = facts_of_config(read_config(folder), name)
    return backbone.model_copy(update={"path": folder, "source_id": backbone.id, **facts})


def _plain_name(backbone: Backbone) -> str:
    """The model's own name where it is listed or a folder, else with its owner."""
    name = backbone.display_name
    return name.rpartition("/")[2] if backbone.known_id else name.replace("/", "--")


def _state_of(location: str) -> str:
    """A name for the state of a local folder: its configuration, and its files' sizes and times."""
    folder = Path(location)
    files = [path for path in sorted(folder.iterdir()) if path.is_file()]
    lines = [f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in files]
    text = "\n".join([str(folder.resolve()), *lines])
    return hashlib.sha256(text.encode()).hexdigest()


@contextmanager
def _only_one(out: Path, on_stage: OnStage) -> Iterator[None]:
    """Holds the lock of one copy; says so when another process makes it at the moment."""
    filelock = require("filelock")
    make_folder(out.parent)
    lock = filelock.FileLock(out.parent / f".{out.name}.lock")
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        on_stage(f"waiting for another process, which converts {out.name}")
        lock.acquire()
    except NotImplementedError:  # a drive without locks, such as Lustre without `-o flock`
        lock = filelock.SoftFileLock(out.parent / f".{out.name}.softlock")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _convert(backbone: Backbone, out: Path, on_stage: OnStage) -> None:
    if backbone.path is None and not _is_downloaded(backbone):
        n_bytes = _download_size(backbone)
        # what is downloaded may lie on the same disk as what is written afterwards
        hub_cache = Path(require("huggingface_hub.constants").HF_HUB_CACHE)
        is_one_disk = _device_of(hub_cache) == _device_of(out.parent)
        check_space(hub_cache / "download", n_bytes * (2 if is_one_disk else 1))
        # training silences all bars; those of a download of gigabytes are wanted
        require("huggingface_hub.utils").enable_progress_bars()
        words = f"downloading {backbone.display_name}, {size(n_bytes)}: once, into the Hub's cache"
        on_stage(words)
    on_stage(f"converting {backbone.display_name}: once, into {out}")

    def on_step(step: Step) -> None:
        took = "there already" if step.is_kept else seconds(step.seconds)
        words = f"{step.what} {step.number} of {step.total}: {size(step.n_bytes)}, {took}"
        on_stage(words)

    convert(backbone, out, revision=backbone.revision, on_step=on_step)


def _is_downloaded(backbone: Backbone) -> bool:
    """True when the Hub's cache has weights of this revision, or the list of their parts."""
    look = require("huggingface_hub").try_to_load_from_cache
    names = [*WHOLE_NAMES, *(f"{name}.index.json" for name in WHOLE_NAMES)]
    found = (look(backbone.location, name, revision=backbone.revision) for name in names)
    return any(isinstance(path, str) for path in found)


def _download_size(backbone: Backbone) -> int:
    """Bytes of the weights on the Hub; 0 where it does not say."""
    hub, place, commit = require("huggingface_hub"), backbone.location, backbone.revision
    for name in WHOLE_NAMES:
        index = fetch_if_present(place, f"{name}.index.json", revision=commit)
        if index is not None:
            return int(read_json(index).get("metadata", {}).get("total_size", 0))
        try:
            told = hub.get_hf_file_metadata(hub.hf_hub_url(place, name, revision=commit))
        except OSError:  # none of this name: all errors of the Hub's library are of this class
            continue
        return int(told.size or 0)
    return 0


def _device_of(folder: Path) -> int:
    while not folder.exists():
        folder = folder.parent
    return folder.stat().st_dev
