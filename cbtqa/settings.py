"""Settings from defaults, YAML file, environment and flags, where the later one wins.

The docstring under a field of a settings model is the help text of its flag.

    resolve(BuildSettings, file=Path("run.yaml"), flags={"limit": 10}).origins["limit"] == "--limit"
"""

from __future__ import annotations

import difflib
import inspect
import os
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from cbtqa.errors import ConfigError, DataError, UsageError, faults_of
from cbtqa.files import read_text
from cbtqa.plain_values import parse_yaml, parse_yaml_lines


class Settings(BaseModel):
    """Base of all settings models: frozen, and a key that no field has is an error.

    A class may name the help panel of the flags that it declares: `panel: ClassVar[str] = "Model"`.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), use_attribute_docstrings=True
    )


SettingsT = TypeVar("SettingsT", bound=Settings)
ENVIRONMENT_PREFIX = "CBTQA_"
BY_FLAG_ONLY = "said by a flag of the command itself"
"""Annotation of a field that a file or the environment cannot set: what a person must say for this
very run. `field: Annotated[bool, BY_FLAG_ONLY]`"""


@dataclass(frozen=True)
class Resolved(Generic[SettingsT]):
    """Settings, and for every field where its value came from."""

    values: SettingsT
    origins: dict[str, str]


class Fallback(NamedTuple):
    """A value to find when none is given, instead of the model's default."""

    find: Callable[[Mapping[str, Any]], Any]
    """Gets the values given so far; None leaves the model's default."""
    origin: str
    unless: tuple[str, ...] = ()
    """Settings that replace it when given."""


def panels_of(model: type[Settings]) -> dict[str, str | None]:
    """Fields in the order of flags, each with its help panel.

    The panel is that of the nearest class that declares the field and names one. Fields without
    come first, then panels in the order of the class statement; within one, bases come first.
    """
    panels: dict[str, str | None] = {}
    for place in reversed(model.__mro__):
        for name in inspect.get_annotations(place):
            if name in model.model_fields:
                panels[name] = vars(place).get("panel") or panels.get(name)
    order = [None, *(vars(place).get("panel") for place in model.__mro__)]
    return dict(sorted(panels.items(), key=lambda item: order.index(item[1])))


def flag_of(field: str) -> str:
    """The command-line flag of a field: `max_tokens` is `--max-tokens`, `for_` is `--for`."""
    return "--" + field.rstrip("_").replace("_", "-")


def resolve(
    model: type[SettingsT],
    *,
    file: Path | None = None,
    flags: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
    fallbacks: Mapping[str, Fallback] | None = None,
) -> Resolved[SettingsT]:
    """Merges all places into one checked model.

    Args:
        flags: values of the command line or keywords; None means not given.
        fallbacks: by field, what to take where no place has a value.

    Raises:
        ConfigError: lists every unknown key and every bad value, each with its origin.
        UsageError: required settings are missing.
    """
    values: dict[str, Any] = {}
    origins = dict.fromkeys(model.model_fields, "default")
    problems: list[str] = []
    missing: list[str] = []
    if file is not None:
        for key, (value, line) in _read_yaml(file).items():
            origin = f"{file}:{line}"
            if key not in model.model_fields:
                problems.append(f"{origin}: unknown setting '{key}'{_did_you_mean(key, model)}")
                continue
            values[key], origins[key] = value, origin
    for field in model.model_fields:
        name = ENVIRONMENT_PREFIX + field.rstrip("_").upper()
        text = (os.environ if environ is None else environ).get(name)
        if text is not None:
            values[field], origins[field] = _environment_value(text, name), name
    for field in values.keys() & set(model.model_fields):
        if BY_FLAG_ONLY in model.model_fields[field].metadata:
            del values[field]
            origins[field] = f"default; not by {origins[field]}"
    for field, value in (flags or {}).items():
        if field not in model.model_fields:
            problems.append(f"unknown setting '{field}'{_did_you_mean(field, model)}")
        elif value is not None:
            values[field], origins[field] = value, flag_of(field)
    given = set(values)
    for field, fallback in (fallbacks or {}).items():
        if not given & {field, *fallback.unless}:
            found = fallback.find(values)
            if found is not None:
                values[field], origins[field] = found, fallback.origin
    try:
        settings = model.model_validate(values)
    except ValidationError as error:
        for item in faults_of(error):
            field = str(item["loc"][0]) if item["loc"] else ""
            if item["type"] == "missing" and item["loc"] == (field,):
                missing.append(field)
                continue
            problems.append(_told(item, field, origins.get(field, "settings")))
    _raise_problems(problems, missing)
    return Resolved(settings, origins)


def _told(fault: Mapping[str, Any], field: str, origin: str) -> str:
    """One fault in words; a flag names its field."""
    if not field:
        return str(fault["msg"])
    place = origin if origin == flag_of(field) else f"{origin}: {field}"
    return f"{place}: {fault['msg']}, got {fault['input']!r}"


def refuse_ignored(resolved: Resolved[Any], heeded: Container[str], where: str) -> None:
    """Refuses settings that would be ignored; those of the environment are for other commands too.

    Args:
        heeded: fields that mean something here.
        where: what ignores the others, such as `--format inspect`.

    Raises:
        UsageError: names all of them.
    """
    ignored = [
        flag_of(name)
        for name, origin in resolved.origins.items()
        if name not in heeded and not origin.startswith(("default", ENVIRONMENT_PREFIX))
    ]
    if ignored:
        names = ", ".join(ignored)
        said = f"{names} mean nothing with {where}"
        if len(ignored) == 1:
            said = f"{names} means nothing with {where}"
        raise UsageError(said, hint="leave it out")


def _raise_problems(problems: Sequence[str], missing: Sequence[str]) -> None:
    """Raises what `resolve` says, if there is anything to say."""
    lines = [f"missing: {flag_of(field).removeprefix('--')}" for field in missing]
    if problems:
        raise ConfigError("\n".join([*problems, *lines]))
    if missing:
        names = ", ".join(ENVIRONMENT_PREFIX + field.rstrip("_").upper() for field in missing)
        hint = f"give it on the command line, in --config FILE or in the environment ({names})"
        raise UsageError("\n".join(lines), hint=hint)


def _did_you_mean(key: str, model: type[BaseModel]) -> str:
    close = difflib.get_close_matches(key, model.model_fields, n=1)
    return f", did you mean '{close[0]}'?" if close else ""


def _read_yaml(path: Path) -> dict[str, tuple[Any, int]]:
    """Top-level keys of a YAML mapping with value and line."""
    text = read_text(path)
    try:
        values, lines = parse_yaml_lines(text, str(path))
    except DataError as error:
        raise ConfigError(str(error)) from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected settings as `key: value` lines")
    return {key: (value, lines.get(key, 1)) for key, value in values.items()}


def _environment_value(text: str, name: str) -> Any:
    try:
        return parse_yaml(text, name)
    except DataError as error:
        raise ConfigError(str(error)) from None
