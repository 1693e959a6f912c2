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
    found = fetch_if_present(location, name, revision=revision)
    if found is None:
        raise ConfigError(f"{location} has no file {name}", hint=_download_hint(location))
    return found


def fetch_if_present(location: str, name: str, *, revision: str | None = None) -> Path | None:
    """One file of a model, or None when the model has none of this name.

    Raises:
        ConfigError: no such model, no network, gated.
    """
    folder = Path(location)
    if folder.is_dir():
        return folder / name if (folder / name).is_file() else None
    hub = require("transformers.utils.hub")
    try:
        found = hub.cached_file(
            location, name, revision=revision, _raise_exceptions_for_missing_entries=False
        )
    except OSError as error:
        raise cannot_get(location, error) from None
    return None if found is None else Path(found)


def cannot_get(location: str, error: Exception) -> ConfigError:
    """What a failure to fetch or open a model is told as."""
    words = str(error).strip().partition("\n")[0]
    if "gated" in str(error).lower():
        hint = (
            f"accept the licence on the model's page, then: hf auth login; hf download {location}"
        )
    else:
        hint = _download_hint(location)
    return ConfigError(f"cannot get {location}: {words}", hint=hint)


def _download_hint(location: str) -> str:
    return f"where there is a network: hf download {location} --local-dir {location.split('/')[-1]}"
