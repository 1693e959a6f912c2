"""Taxonomies of cognitive distortions: the closed label sets, their names, and how they map.

A taxonomy is a YAML file; the shipped ones lie in `taxonomies/`. Types share ids across taxonomies
(`mind_reading` is one concept wherever it appears), so most maps are the identity. Where a
taxonomy merges two concepts (Burns' ten fold mind reading and fortune telling into jumping to
conclusions), the finer names still find the merged type, and `finer_ids` lists them.

    taxonomy = load_taxonomy("burns-10")
    taxonomy.find("读心术").id == "jumping_to_conclusions"
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Mapping
from functools import cache, cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from cbtqa.errors import DataError
from cbtqa.files import open_text, parse_record, parse_yaml
from cbtqa.records import DistortionLabel, NonEmptyText, Record

DEFAULT_TAXONOMY = "burns-10"
_FOLDER = files("cbtqa.distortions") / "taxonomies"
_NOT_TAXONOMIES = ("concepts", "maps")
_IGNORED_IN_NAMES = re.compile(r"[\s_\-/·“”\"'‘’「」《》()（）]+")


class DistortionType(Record):
    """One type of a taxonomy."""

    id: NonEmptyText
    """Shared by all taxonomies that hold this concept, such as `mind_reading`."""
    zh: NonEmptyText
    en: NonEmptyText
    aliases: tuple[str, ...] = ()
    """Other names in use, Chinese and English."""
    definition: NonEmptyText
    """Plain Chinese, our wording."""
    definition_en: str = ""
    example: NonEmptyText
    """An invented thought of this type."""

    @property
    def names(self) -> tuple[str, ...]:
        """Every name the type goes by, the id included."""
        return (self.id, self.zh, self.en, *self.aliases)


class Taxonomy(Record):
    """A closed set of distortion types."""

    id: NonEmptyText
    title: NonEmptyText
    citation: NonEmptyText
    types: tuple[DistortionType, ...]

    @cached_property
    def ids(self) -> tuple[str, ...]:
        """Type ids in the file's order."""
        return tuple(entry.id for entry in self.types)

    @property
    def sha256(self) -> str:
        """Hash of all it says, the same wherever its file lies."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()

    def find(self, name: str) -> DistortionType | None:
        """The type with this id, name or alias, or that a finer concept of this name falls under.

        None when the taxonomy has no place for the name. Case, spaces, hyphens, quotes and
        brackets do not matter.
        """
        return self._by_name.get(normalise_name(name))

    def finer_ids(self, type_id: str) -> tuple[str, ...]:
        """Concepts that this taxonomy merges into `type_id`, such as `mind_reading`."""
        return tuple(
            finer
            for finer in shipped_concepts()
            if finer != type_id and _lift(finer, frozenset(self.ids)).id == type_id
        )

    def zh_name(self, concept_id: str) -> str:
        """The Chinese name of a type, or of a finer concept the taxonomy merges.

        Raises:
            KeyError: neither a type here nor a known concept.
        """
        for entry in self.types:
            if entry.id == concept_id:
                return entry.zh
        return shipped_concepts()[concept_id].zh

    @cached_property
    def _by_name(self) -> dict[str, DistortionType]:
        found: dict[str, DistortionType] = {}
        for entry in self.types:
            for name in entry.names:
                found.setdefault(normalise_name(name), entry)
        for entry in self.types:
            for finer in self.finer_ids(entry.id):
                for name in shipped_concepts()[finer].names:
                    found.setdefault(normalise_name(name), entry)
        return found


class LostLabel(Record):
    """What a map could not keep of one label."""

    id: NonEmptyText
    """The id in the source taxonomy."""
    became: str | None
    """The id in the target taxonomy; None when the label was dropped."""
    lost: NonEmptyText
    """What is no longer told, for a person."""


class MappedLabels(NamedTuple):
    """Labels in the target taxonomy, and what the map lost on the way."""

    labels: tuple[DistortionLabel, ...]
    lost: tuple[LostLabel, ...]


class _Lifted(NamedTuple):
    id: str | None
    lost: str


def normalise_name(name: str) -> str:
    """A name as it is compared: NFKC, lower case, without spaces, hyphens, quotes, brackets."""
    return _IGNORED_IN_NAMES.sub("", unicodedata.normalize("NFKC", name)).casefold()


def is_no_distortion(name: str) -> bool:
    """True for the names that data sets use for `no distortion`, such as 无 or `No Distortion`."""
    return normalise_name(name) in _none_names()


@cache
def ordinary_names() -> frozenset[str]:
    """Names, in lower case, that running text also uses without meaning a distortion."""
    return frozenset(str(name).casefold() for name in _maps()["ordinary"])


def shipped_taxonomies() -> tuple[str, ...]:
    """Ids of the taxonomies that come with the package, sorted."""
    names = (entry.name.removesuffix(".yaml") for entry in _FOLDER.iterdir())
    return tuple(sorted(name for name in names if name not in _NOT_TAXONOMIES))


def is_shipped(taxonomy: Taxonomy) -> bool:
    """Whether it is one of the package's own, word for word."""
    return taxonomy.id in shipped_taxonomies() and load_taxonomy(taxonomy.id) == taxonomy


@cache
def load_taxonomy(name_or_path: str = DEFAULT_TAXONOMY) -> Taxonomy:
    """A shipped taxonomy by id, or one of your own by the path of its `.yaml` file.

    Raises:
        DataError: no such taxonomy, or the file is malformed (with file and field).
    """
    if name_or_path.endswith((".yaml", ".yml")):
        with open_text(Path(name_or_path)) as stream:
            return _parse_taxonomy(stream.read(), name_or_path)
    if name_or_path not in shipped_taxonomies():
        raise DataError(
            f"no taxonomy '{name_or_path}'",
            hint=f"shipped: {', '.join(shipped_taxonomies())}; or give the path of a .yaml file",
        )
    entry = _FOLDER / f"{name_or_path}.yaml"
    return _parse_taxonomy(entry.read_text(encoding="utf-8"), entry.name)


def map_labels(
    labels: Iterable[DistortionLabel], source: Taxonomy, target: Taxonomy
) -> MappedLabels:
    """Labels of `source` said in `target`, and what that loses.

    A label keeps its id where the target has it, else goes to the broader concept the target has,
    else is dropped. Labels that meet in one id stay separate: each has its own evidence.

    Raises:
        DataError: a label is not of the source taxonomy.
    """
    kept: list[DistortionLabel] = []
    lost: list[LostLabel] = []
    target_ids = frozenset(target.ids)
    for label in labels:
        if label.id not in source.ids and label.id not in shipped_concepts():
            raise DataError(f"'{label.id}' is not a type of {source.id}")
        lifted = _lift(label.id, target_ids)
        if lifted.id is not None:
            kept.append(label.model_copy(update={"id": lifted.id}))
        if lifted.lost:
            lost.append(LostLabel(id=label.id, became=lifted.id, lost=lifted.lost))
    return MappedLabels(tuple(kept), tuple(lost))


def lift_id(concept_id: str, target: Taxonomy) -> str | None:
    """The id that `target` uses for a concept, following merges; None when it has no place."""
    return _lift(concept_id, frozenset(target.ids)).id


@cache
def _lift(concept_id: str, target_ids: frozenset[str]) -> _Lifted:
    at, losses = concept_id, []
    while at not in target_ids:
        edge = _broader().get(at)
        if edge is None:
            return _Lifted(None, "the whole label: the target has no such type")
        losses.append(edge["lost"])
        at = edge["to"]
    return _Lifted(at, ", then ".join(losses))


@cache
def shipped_concepts() -> Mapping[str, DistortionType]:
    """Every concept that a shipped taxonomy can name, by id."""
    raw = parse_yaml((_FOLDER / "concepts.yaml").read_text(encoding="utf-8"))
    return {
        key: parse_record(DistortionType, {"id": key, **fields}, f"concepts.yaml:{key}")
        for key, fields in raw.items()
    }


@cache
def _maps() -> dict[str, Any]:
    loaded: dict[str, Any] = parse_yaml((_FOLDER / "maps.yaml").read_text(encoding="utf-8"))
    return loaded


@cache
def _broader() -> dict[str, dict[str, str]]:
    return {edge["from"]: edge for edge in _maps()["broader"]}


@cache
def _none_names() -> frozenset[str]:
    return frozenset(normalise_name(name) for name in _maps()["none"])


def _parse_taxonomy(text: str, where: str) -> Taxonomy:
    try:
        raw = parse_yaml(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise DataError(
            f"not YAML: {getattr(error, 'problem', error)}",
            where=f"{where}:{mark.line + 1}" if mark else where,
        ) from None
    if not isinstance(raw, dict) or not isinstance(raw.get("types"), list):
        raise DataError("expected id, title, citation and a list `types`", where=where)
    raw["types"] = [_with_concept(entry, where) for entry in raw["types"]]
    taxonomy = parse_record(Taxonomy, raw, where)
    owners: dict[str, str] = {}
    for entry in taxonomy.types:
        for name in {normalise_name(name) for name in entry.names}:
            if name in owners:
                raise DataError(
                    f"the name '{name}' belongs to both '{owners[name]}' and '{entry.id}'",
                    where=where,
                )
            owners[name] = entry.id
    return taxonomy


def _with_concept(entry: object, where: str) -> dict[str, Any]:
    """A type's own fields over those of the shipped concept with the same id."""
    if not isinstance(entry, dict) or not isinstance(entry.get("id"), str):
        raise DataError("every type needs an `id`", where=f"{where}:types")
    concept = shipped_concepts().get(entry["id"])
    return {**(concept.model_dump() if concept else {}), **entry}
