"""Simulated patients: drawn from attribute tables, ready-made, or from a file of your own.

    draw_profiles("act", n=150, seed=7)           # the same 150 everywhere
    read_profiles(Path("mine.yaml"))

A file of your own is YAML with a list `profiles:`, each with `id`, `name` and `narrative`, and
`attributes`, `archetype` and `manner` where you want them.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from string import Template
from typing import Any, Self

from pydantic import Field, field_validator, model_validator

from cbtqa.errors import ConfigError, DataError
from cbtqa.files import parse_record, read_jsonl, read_yaml
from cbtqa.records import NonEmptyText, Provenance, Record
from cbtqa.simulation.draws import Draw
from cbtqa.simulation.study import Patients, shipped_yaml


class Profile(Record):
    """One simulated patient. Nobody real."""

    id: str = Field(pattern=r"^[A-Za-z0-9][\w.-]{0,60}$")
    """Letters, digits, dot, dash, underscore: it is a part of session ids."""
    name: NonEmptyText
    narrative: NonEmptyText
    """The story, as the patient's player is given it."""
    manner: str = ""
    """How this patient behaves in a session; the archetype's when left out."""
    archetype: str | None = None
    table: str | None = None
    """Attribute table it was drawn from; None for a written profile."""
    attributes: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    provenance: Provenance | None = None
    """Of the narrative, when a model wrote it."""

    @field_validator("attributes", mode="before")
    @classmethod
    def _one_value_is_a_list(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        many = {key: one if isinstance(one, list | tuple) else [one] for key, one in value.items()}
        return {key: [*map(str, inner)] for key, inner in many.items()}

    @property
    def behaviour(self) -> str:
        """The manner as the patient's player is given it; empty when nothing is set."""
        if self.manner or self.archetype is None:
            return self.manner
        return archetypes()[self.archetype].manner

    @model_validator(mode="after")
    def _archetype_is_known(self) -> Self:
        if self.archetype is not None and self.archetype not in archetypes():
            raise ValueError(f"archetype: one of {', '.join(archetypes())}")
        return self


class Archetype(Record):
    label: NonEmptyText
    manner: NonEmptyText


class Attribute(Record):
    """One row of an attribute table."""

    label: NonEmptyText
    options: tuple[NonEmptyText, ...] = Field(min_length=1)
    draw: tuple[int, int] = (1, 1)
    """Fewest and most options drawn."""


class Content(Record):
    """One thing that a patient's story has to cover."""

    asks: NonEmptyText
    tells: NonEmptyText | tuple[NonEmptyText, ...]
    """Sentence of the story written without a model, or several to draw from."""


class Impossible(Record):
    """Options of one attribute that nobody has with some options of an attribute drawn before."""

    when: dict[str, tuple[NonEmptyText, ...]]
    """Attribute to options; one of each is there."""
    never: dict[str, tuple[NonEmptyText, ...]]
    """Attribute to options that are then left out."""

    def excludes(self, drawn: Mapping[str, tuple[str, ...]], key: str) -> frozenset[str]:
        """Options of an attribute that these drawn ones leave out."""
        holds = all(not set(own).isdisjoint(drawn.get(name, ())) for name, own in self.when.items())
        return frozenset(self.never.get(key, ()) if holds else ())


class AttributeTable(Record):
    """What patients of a study are drawn from."""

    id: NonEmptyText
    impossible: tuple[Impossible, ...] = ()
    """Pairs that are not drawn together, such as a student of 65 or older."""
    archetypes: bool = False
    """True when every patient is also given one of the four archetypes, in turn."""
    attributes: dict[str, Attribute]
    contents: dict[str, Content]

    @model_validator(mode="after")
    def _sentences_name_attributes(self) -> Self:
        known = {*self.attributes, "name"}
        for key, content in self.contents.items():
            for sentence in _several(content.tells):
                if unknown := set(Template(sentence).get_identifiers()) - known:
                    raise ValueError(f"contents.{key} names unknown attributes {sorted(unknown)}")
        return self

    @model_validator(mode="after")
    def _impossible_names_options(self) -> Self:
        for rule in self.impossible:
            for name, options in (*rule.when.items(), *rule.never.items()):
                known = self.attributes[name].options if name in self.attributes else ()
                if unknown := [one for one in options if one not in known]:
                    raise ValueError(f"impossible: {name} has no option '{unknown[0]}'")
        return self

    def left_out(self, drawn: Mapping[str, tuple[str, ...]], key: str) -> frozenset[str]:
        """Options of an attribute that nobody has together with those drawn before."""
        return frozenset().union(*(rule.excludes(drawn, key) for rule in self.impossible))


def _several(value: str | tuple[str, ...]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else value


@cache
def _people(name: str) -> Any:
    return shipped_yaml("people", f"{name}.yaml")


@cache
def archetypes() -> Mapping[str, Archetype]:
    """The four kinds of patients of the ACT study."""
    rows = _people("archetypes")["archetypes"]
    return {name: Archetype.model_validate(row) for name, row in rows.items()}


def ready_profiles(which: str) -> tuple[Profile, ...]:
    """Ready-made patients: `test` (five, depression) or `archetypes` (one of each kind)."""
    rows = _people("patients")["patients"] if which == "test" else _people("archetypes")["ready"]
    return tuple(Profile.model_validate(row) for row in rows)


@cache
def load_table(name: str) -> AttributeTable:
    """The shipped table `cbt` or `act`, or a YAML file of your own.

    Raises:
        ConfigError: no such table.
        DataError: the file is not what it should be, with file and field.
    """
    if name in ("cbt", "act"):
        return AttributeTable.model_validate(_people(name))
    if not name.endswith((".yaml", ".yml")):
        raise ConfigError(f"no attribute table '{name}'", hint="shipped: cbt, act; or a YAML file")
    return parse_record(AttributeTable, read_yaml(Path(name)), name)


def draw_profiles(table_name: str, n: int, seed: int) -> tuple[Profile, ...]:
    """`n` patients with stories by rule; asking for more moves none of the earlier ones."""
    table = load_table(table_name)
    return tuple(_draw_profile(table, seed, number) for number in range(1, n + 1))


def _draw_profile(table: AttributeTable, seed: int, number: int) -> Profile:
    drawn: dict[str, tuple[str, ...]] = {}
    for key, attribute in table.attributes.items():
        # a generator for every attribute: a new attribute changes no other
        draw = Draw("profile", table.id, seed, number, key)
        n, left_out = draw.number(*attribute.draw), table.left_out(drawn, key)
        # in the order in which they would be drawn anyhow: others' options stay as they were
        order = draw.pick(attribute.options, len(attribute.options))
        drawn[key] = tuple([one for one in order if one not in left_out][:n])
    draw = Draw("profile", table.id, seed, number)
    name = draw.one(_people("names")["names"])
    values = {key: ", ".join(options) for key, options in drawn.items()} | {"name": name}
    story = [draw.one(_several(content.tells)) for content in table.contents.values()]
    return Profile(
        id=f"{table.id}-{seed}-{number:04d}",
        name=name,
        narrative=" ".join(Template(sentence).substitute(values) for sentence in story),
        archetype=list(archetypes())[(number - 1) % 4] if table.archetypes else None,
        table=table.id,
        attributes=drawn,
    )


def read_profiles(path: Path) -> tuple[Profile, ...]:
    """Profiles of a YAML file (`profiles:`) or of a `profiles.jsonl`.

    Raises:
        DataError: an unknown key, a missing field or an id twice; names file, profile and field.
    """
    if path.suffix == ".jsonl":
        found = tuple(read_jsonl(path, Profile))
    else:
        value = read_yaml(path)
        rows = value.get("profiles") if isinstance(value, dict) else None
        if not isinstance(rows, list) or not rows:
            raise DataError("expected a list `profiles:`", where=str(path))
        if foreign := sorted(set(value) - {"profiles"}):
            raise DataError(f"unknown key '{foreign[0]}'", where=f"{path}:{foreign[0]}")
        found = tuple(_read_profile(row, f"{path}:profiles[{n}]") for n, row in enumerate(rows))
    ids = [profile.id for profile in found]
    if twice := sorted({one for one in ids if ids.count(one) > 1}):
        raise DataError(f"two profiles have the id '{twice[0]}'", where=str(path))
    return found


def _read_profile(row: object, where: str) -> Profile:
    if isinstance(row, dict):
        for key in row:
            if key not in Profile.model_fields:
                close = difflib.get_close_matches(str(key), Profile.model_fields, n=1)
                hint = f"did you mean '{close[0]}'?" if close else None
                known = ", ".join(Profile.model_fields)
                raise DataError(
                    f"unknown key '{key}'", where=f"{where}.{key}", hint=hint or f"known: {known}"
                )
    return parse_record(Profile, row, where)


def choose_profiles(patients: Patients, seed: int) -> tuple[Profile, ...]:
    """The patients that a study names.

    Raises:
        ConfigError: fewer than it asks for.
        DataError: its file is not what it should be.
    """
    if patients.draw is not None:
        return draw_profiles(patients.draw, patients.n or 1, seed)
    found = read_profiles(patients.file) if patients.file else ready_profiles(patients.ready or "")
    if patients.n is not None and len(found) < patients.n:
        raise ConfigError(f"patients.n: {patients.n} wanted, {len(found)} there")
    return found[: patients.n]
