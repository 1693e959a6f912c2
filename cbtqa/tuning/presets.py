"""Presets: named layers of settings whose every value says what it rests on.

    # in presets/paper.yaml
    rank: {value: 8, mark: assumed, why: "the default of the paper's framework at the time"}

A preset of one's own is a YAML file of the same form, or of plain `rank: 8` lines.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import ValidationError

from cbtqa.errors import ConfigError
from cbtqa.files import open_text, parse_yaml
from cbtqa.settings import Resolved
from cbtqa.tuning.settings import FinetuneSettings

Mark = Literal["card", "summary", "notebook", "measured", "assumed"]
"""card: the model card; summary: public summaries of the paper; notebook: the authors' own code;
measured: by us; assumed: the source is silent."""
MARKS: tuple[str, ...] = get_args(Mark)
_ENTRY_KEYS = {"value", "mark", "why"}


@dataclass(frozen=True, slots=True)
class PresetValue:
    """One value of a preset, with the origin that error messages and manifests show."""

    value: Any
    origin: str


def shipped_presets() -> tuple[str, ...]:
    """Names of the presets that come with the package."""
    folder = files("cbtqa.tuning") / "presets"
    return tuple(
        sorted(entry.name[:-5] for entry in folder.iterdir() if entry.name[-5:] == ".yaml")
    )


def resolve_preset(resolved: Resolved[FinetuneSettings]) -> Resolved[FinetuneSettings]:
    """Puts the preset's values where neither file, environment nor flag gave one.

    Raises:
        ConfigError: no such preset, or bad values in it, each with its origin.
    """
    preset = read_preset(resolved.values.preset)
    values = {
        name: getattr(resolved.values, name)
        for name, origin in resolved.origins.items()
        if origin != "default"
    }
    origins = dict(resolved.origins)
    for name, entry in preset.items():
        if resolved.origins[name] == "default":
            values[name], origins[name] = entry.value, entry.origin
    try:
        merged = FinetuneSettings.model_validate(values)
    except ValidationError as error:
        raise ConfigError(
            "\n".join(
                f"{origins.get(str(item['loc'][0]), resolved.values.preset)}: "
                f"{item['loc'][0]}: {item['msg']}, got {item['input']!r}"
                for item in error.errors(include_url=False)
            )
        ) from None
    return Resolved(merged, origins)


def read_preset(name: str) -> dict[str, PresetValue]:
    """The values of a shipped preset, or of a YAML file when `name` ends in .yaml or .yml.

    Raises:
        ConfigError: no such preset, or lines that are no settings.
    """
    if name.endswith((".yaml", ".yml")):
        with open_text(Path(name)) as stream:
            text = stream.read()
        title = Path(name).name
    elif name in shipped_presets():
        text = (files("cbtqa.tuning") / "presets" / f"{name}.yaml").read_text(encoding="utf-8")
        title = f"preset {name}"
    else:
        raise ConfigError(
            f"--preset: no preset '{name}'",
            hint=f"shipped: {', '.join(shipped_presets())}; or the path of a YAML file",
        )
    try:
        rows = parse_yaml(text) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"{title}: not YAML: {getattr(error, 'problem', error)}") from None
    if not isinstance(rows, dict):
        raise ConfigError(f"{title}: expected settings as `key: value` lines")
    problems = [problem for key, row in rows.items() if (problem := _problem(key, row))]
    if problems:
        raise ConfigError("\n".join(f"{title}: {problem}" for problem in problems))
    return {key: _entry(title, row) for key, row in rows.items()}


def _problem(key: str, row: Any) -> str | None:
    if key not in FinetuneSettings.model_fields or key == "preset":
        return f"unknown setting '{key}'"
    if isinstance(row, dict):
        if "value" not in row or not row.keys() <= _ENTRY_KEYS:
            return f"{key}: expected value, mark and why, found {', '.join(map(str, row))}"
        if row.get("mark") not in (None, *MARKS):
            return f"{key}: mark is '{row['mark']}', expected one of {', '.join(MARKS)}"
    return None


def _entry(title: str, row: Any) -> PresetValue:
    if not isinstance(row, dict):
        return PresetValue(row, title)
    marked = ", ".join(str(row[key]) for key in ("mark", "why") if key in row)
    return PresetValue(row["value"], f"{title}: {marked}" if marked else title)
