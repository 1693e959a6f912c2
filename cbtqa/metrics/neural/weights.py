"""Model weights: where they are, what they hash to, and how they come onto a device.

Whatever is missing becomes a `ConfigError` that names the next command. Code from a checkpoint is
never run.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field

from cbtqa import errors
from cbtqa.errors import ConfigError
from cbtqa.files import sha256_of
from cbtqa.settings import Settings

Dtype = Literal["float32", "bfloat16", "float16"]


class NeuralSettings(Settings):
    """Weights, device and precision of BERTScore and BLEURT."""

    panel: ClassVar[str] = "Neural metrics"
    bertscore_model: str = "bert-base-chinese"
    """BERTScore's model: a folder with weights, or a Hub id."""
    bertscore_layer: int | None = Field(None, ge=0)
    """Layer whose embeddings BERTScore compares; known for the usual models."""
    bertscore_baseline: Path | None = None
    """Baseline table (LAYER,P,R,F) for bertscore_rescaled; shipped for bert-base-chinese."""
    bertscore_idf: Path | None = None
    """Text file, one document a line, whose rare tokens weigh more in BERTScore."""
    bleurt_model: str = "lucadiliello/BLEURT-20"
    """BLEURT's checkpoint in PyTorch: a folder, or a Hub id."""
    device: str = "auto"
    """Where models run: auto, cpu, cuda, cuda:1, mps."""
    dtype: Dtype = "float32"
    """Precision of the models: float32, bfloat16, float16; part of the signature."""
    batch_size: int = Field(32, ge=1)
    """Texts a model reads at a time."""

    @classmethod
    def part_of(cls, settings: Self) -> NeuralSettings:
        """These fields alone, of a larger settings model."""
        return NeuralSettings(
            **{name: getattr(settings, name) for name in NeuralSettings.model_fields}
        )


WEIGHT_NAMES = ("model.safetensors", "pytorch_model.bin")


require = partial(errors.require, extra="neural")


def versions(*packages: str) -> str:
    """Signature fields with the versions of libraries that compute, without the build (`+cpu`)."""
    found = ((name, importlib.metadata.version(name).partition("+")[0]) for name in packages)
    return "|".join(f"{name}:{version}" for name, version in found)


@dataclass(frozen=True)
class Checkpoint:
    """A model that was found."""

    given: str
    """Folder or Hub id, as transformers wants it."""
    flag: str
    """The flag that names it, for messages."""
    config: Path
    files: tuple[Path, ...]

    @property
    def name(self) -> str:
        """Hub id, or the folder's own name: never a path."""
        return Path(self.given).resolve().name if Path(self.given).is_dir() else self.given

    def sha256(self) -> str:
        """Of the weights; of the hashes of their parts when there are several."""
        hashes = [sha256_of(path) for path in self.files]
        return (
            hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()
        )

    def beside(self, name: str) -> Path | None:
        """Another file of the checkpoint, or None when it has none of this name."""
        return _finder(self.given, self.flag)(name)

    def state(self) -> dict[str, Any]:
        """All tensors by name; a ConfigError when a file is damaged or holds more than tensors."""
        read = map(_read_tensors, self.files)
        return {name: tensor for tensors in read for name, tensor in tensors.items()}


def find_checkpoint(given: str, flag: str) -> Checkpoint:
    """Looks for a model in a folder, in the Hub's cache, or on the Hub, or raises a ConfigError."""
    path = Path(given).expanduser()
    if not path.is_dir() and (path.exists() or given.startswith((".", "/", "~"))):
        raise ConfigError(f"{flag}: {given} is not a folder with a model")
    given = str(path) if path.is_dir() else given
    find = _finder(given, flag)
    config = _finder(given, flag, is_needed=True)("config.json")
    if config is None:
        what = "a TensorFlow checkpoint" if find("saved_model.pb") else "no model of transformers"
        raise ConfigError(
            f"{flag}: {given} is {what}: it has no config.json",
            hint=_download_hint("ORGANISATION/NAME", flag),
        )
    for name in WEIGHT_NAMES:  # whole files first: each name asked of a Hub out of reach costs time
        if (single := find(name)) is not None:
            return Checkpoint(given, flag, config, (single,))
    for name in WEIGHT_NAMES:
        if (index := find(f"{name}.index.json")) is not None:
            parts = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
            found = [find(part) for part in dict.fromkeys(parts)]
            if None not in found:
                return Checkpoint(given, flag, config, tuple(part for part in found if part))
    raise ConfigError(
        f"{flag}: {given} has no weights ({' or '.join(WEIGHT_NAMES)})",
        hint="the download may have been interrupted: " + _download_hint(given, flag),
    )


def _finder(given: str, flag: str, *, is_needed: bool = False) -> Callable[[str], Path | None]:
    """Finds files by name; one that is needed and not to be had raises with the Hub's own words."""
    if Path(given).is_dir():
        folder = Path(given)
        return lambda name: folder / name if (folder / name).is_file() else None
    hub = require("transformers.utils.hub")

    def find(name: str) -> Path | None:
        try:
            found = hub.cached_file(given, name, _raise_exceptions_for_missing_entries=is_needed)
        except OSError as error:
            raise cannot_load(given, flag, error) from None
        return None if found is None else Path(found)

    return find


def why_absent(given: str, metric: str, modules: Sequence[str]) -> str | None:
    """Why a model cannot run here as it is: a library or its weights are missing; else None.

    Nothing is asked of the Hub. A folder is taken for a model.
    """
    for module in ("transformers", *modules):
        if importlib.util.find_spec(module) is None:  # looked for only: torch takes seconds
            return errors.MissingExtraError(module, "neural").hint
    if Path(given).expanduser().is_dir():
        return None
    find = require("transformers.utils.hub").cached_file
    quiet = {"_raise_exceptions_for_missing_entries": False}
    quiet["_raise_exceptions_for_connection_errors"] = False
    try:
        is_here = find(given, "config.json", local_files_only=True, **quiet) is not None
    except OSError:
        is_here = False
    if is_here:
        return None
    return f"{given} is not on this machine; --metrics {metric} downloads it"


def cannot_load(given: str, flag: str, error: Exception) -> ConfigError:
    """What a failure to fetch or read a model is reported as."""
    words = str(error).strip().partition("\n")[0]
    if "gated" in str(error).lower():
        hint = f"accept the model's terms on its page, then: hf auth login; hf download {given}"
    else:
        hint = _download_hint(given, flag)
    return ConfigError(f"{flag}: cannot load {given}: {words}", hint=hint)


def _download_hint(given: str, flag: str) -> str:
    folder = given.rpartition("/")[2] or "NAME"
    return (
        f"where there is a network: hf download {given} --local-dir {folder}; then {flag} {folder}"
    )


def _read_tensors(path: Path) -> Mapping[str, Any]:
    torch = require("torch")
    if path.suffix == ".safetensors":
        safetensors = require("safetensors.torch")
        damaged: tuple[type[Exception], ...] = (require("safetensors").SafetensorError,)
    else:
        import pickle

        damaged = (pickle.UnpicklingError, RuntimeError, EOFError)
    try:
        if path.suffix == ".safetensors":
            return dict(safetensors.load_file(path))
        return dict(torch.load(path, map_location="cpu", weights_only=True))
    except damaged as error:
        raise ConfigError(
            f"{path}: the weights are damaged: {str(error).partition(chr(10))[0]}",
            hint="fetch the file again",
        ) from None


def device_of(settings: NeuralSettings) -> str:
    """The device asked for, or a ConfigError; `auto` takes a GPU when there is one."""
    torch = require("torch")
    if settings.device == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(1, device=settings.device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        words = str(error).partition("\n")[0]
        raise ConfigError(f"--device {settings.device}: {words}", hint="--device cpu") from None
    return settings.device


def on_device(model: Any, settings: NeuralSettings) -> Any:
    """The model in the precision and on the device asked for, ready for inference."""
    torch = require("torch")
    model = model.to(device=device_of(settings), dtype=getattr(torch, settings.dtype))
    return model.eval().requires_grad_(False)


@contextmanager
def enough_memory(settings: NeuralSettings) -> Iterator[None]:
    """Turns a device's lack of memory into a ConfigError with the flags that help."""
    torch = require("torch")
    try:
        yield
    except torch.OutOfMemoryError as error:
        words = str(error).partition("\n")[0][:200]
        hint = f"--batch-size {max(1, settings.batch_size // 2)}, or --dtype bfloat16"
        raise ConfigError(f"--device {settings.device}: {words}", hint=hint) from None


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without transformers' bars and load reports: what is missing, we check and raise."""
    logging = require("transformers.utils.logging")
    before, had_bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if had_bar:
            logging.enable_progress_bar()


# Windows work on tokens: what a window holds is what the model would have read of the whole.
ENDS, CLOSERS = frozenset("。！？!?…；;\n"), frozenset("”’」』）)】》\"'")
"""What ends a sentence, and what may still follow its end."""


def sentence_ends(tokens: Sequence[str]) -> list[int]:
    """Positions between tokens at which a sentence has just ended, ascending."""
    found = []
    for position in range(1, len(tokens)):
        if _is_closer(tokens[position]) or tokens[position][-1:] in ENDS:
            continue
        last = position - 1
        while last > 0 and _is_closer(tokens[last]):
            last -= 1
        if tokens[last][-1:] in ENDS:
            found.append(position)
    return found


def _is_closer(token: str) -> bool:
    return bool(token) and CLOSERS.issuperset(token)


def split_evenly(tokens: Sequence[str], n_windows: int) -> list[slice]:
    """Windows of about equal length, cut at a sentence end within half a window of an even cut."""
    ends, n = sentence_ends(tokens), len(tokens)
    cuts = [0]
    for number in range(1, n_windows):
        even = round(number * n / n_windows)
        low = max(cuts[-1] + 1, even - n // (2 * n_windows))
        place = bisect_left(ends, even)
        near = [end for end in ends[max(0, place - 1) : place + 1] if low <= end < n]
        near = [end for end in near if abs(end - even) <= n // (2 * n_windows)]
        cuts.append(min(near, key=lambda end: abs(end - even)) if near else max(even, cuts[-1]))
    cuts.append(n)
    return [slice(start, stop) for start, stop in pairwise(cuts)]


def windows_within(tokens: Sequence[str], limit: int) -> list[slice]:
    """The fewest even windows of at most `limit` tokens each; one window when all fits."""
    n_windows = max(1, -(-len(tokens) // limit))
    while True:
        windows = split_evenly(tokens, n_windows)
        if all(window.stop - window.start <= limit for window in windows):
            return windows
        n_windows += 1
