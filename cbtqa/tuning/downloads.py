"""Single files of a model: from its folder, the Hub's cache, or the Hub."""

from __future__ import annotations

from pathlib import Path

from cbtqa.errors import ConfigError
from cbtqa.tuning.libraries import require


def fetch(location: str, name: str, *, revision: str | None = None) -> Path:
    """One file of a model, downloaded when need be.

    Args:
        location: folder or Hub id.

    Raises:
        ConfigError: not there, no network, gated; the hint names the next command.
    """
    found = _find(location, name, revision, is_needed=True)
    if found is None:
        raise ConfigError(f"{location} has no file {name}", hint=download_hint(location))
    return found


def fetch_if_present(location: str, name: str, *, revision: str | None = None) -> Path | None:
    """One file of a model, or None when the model has none of this name.

    Without a network the Hub's cache decides: fetch a file that every model has first.

    Raises:
        ConfigError: no such model, or gated.
    """
    return _find(location, name, revision, is_needed=False)


def _find(location: str, name: str, revision: str | None, *, is_needed: bool) -> Path | None:
    folder = Path(location)
    if folder.is_dir():
        return folder / name if (folder / name).is_file() else None
    hub = require("transformers.utils.hub")
    try:
        found = hub.cached_file(
            location, name, revision=revision, _raise_exceptions_for_missing_entries=is_needed
        )
    except OSError as error:
        raise cannot_get(location, error) from None
    return None if found is None else Path(found)


def commit_of(path: Path) -> str | None:
    """The commit of a file in the Hub's cache (`.../snapshots/COMMIT/FILE`), or None."""
    parts = path.parts
    return parts[parts.index("snapshots") + 1] if "snapshots" in parts else None


def cannot_get(location: str, error: Exception) -> ConfigError:
    """What a failure to fetch or open a model is told as."""
    words = str(error).strip().partition("\n")[0]
    if "gated" in str(error).lower():
        hint = (
            f"accept the licence on the model's page, then: hf auth login; hf download {location}"
        )
    else:
        hint = download_hint(location)
    return ConfigError(f"cannot get {location}: {words}", hint=hint)


def download_hint(location: str) -> str:
    """The command that downloads a model where there is a network."""
    return f"where there is a network: hf download {location} --local-dir {location.split('/')[-1]}"
