"""Taxonomies of cognitive distortions: the closed label sets, their names, and how they map.

Types share ids across taxonomies (`mind_reading` is one concept everywhere), so most maps are the
identity. Where a taxonomy merges two concepts, the finer names still find the merged type:

    load_taxonomy("burns-10").find("读心术").id == "jumping_to_conclusions"
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Mapping
from functools import cache, cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

from cbtqa.errors import DataError
from cbtqa.files import parse_record, read_text, shipped_yaml
from cbtqa.plain_values import parse_yaml
from cbtqa.records import DistortionLabel, NonEmptyText, Record

_FOLDER = files("cbtqa.distortions") / "taxonomies"
_NOT_TAXONOMIES = ("concepts", "maps")
_IGNORED_IN_NAMES = re.compile(r"[\s_\-/·“”\"'‘’「」《》()（）]+")


class DistortionType(Record):
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
        return (self.id, self.zh, self.en, *self.aliases)


class Taxonomy(Record):
    id: NonEmptyText
    title: NonEmptyText
    citation: NonEmptyText
    types: tuple[DistortionType, ...]

    @cached_property
    def ids(self) -> tuple[str, ...]:
        return tuple(entry.id for entry in self.types)

    @property
    def sha256(self) -> str:
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
            if finer != type_id and lift_id(finer, self) == type_id
        )

    def zh_name(self, concept_id: str) -> str:
        """The Chinese name of a type, or of any known concept (else KeyError)."""
        own = (entry.zh for entry in self.types if entry.id == concept_id)
        return next(own, None) or shipped_concepts()[concept_id].zh

    @cached_property
    def _by_name(self) -> dict[str, DistortionType]:
        names = [(name, entry) for entry in self.types for name in entry.names]
        names += [
            (name, entry)
            for entry in self.types
            for finer in self.finer_ids(entry.id)
            for name in shipped_concepts()[finer].names
        ]
        return {normalise_name(name): entry for name, entry in reversed(names)}


def normalise_name(name: str) -> str:
    """A name as it is compared: NFKC, lower case, without spaces, hyphens, quotes, brackets."""
    return _IGNORED_IN_NAMES.sub("", unicodedata.normalize("NFKC", name)).casefold()


def is_no_distortion(name: str) -> bool:
    """True for the names that data sets use for `no distortion`, such as 无 or `No Distortion`."""
    return normalise_name(name) in {normalise_name(none) for none in _maps()["none"]}


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
def load_taxonomy(name_or_path: str = "burns-10") -> Taxonomy:
    """A shipped taxonomy by id, or a `.yaml` file's; DataError where missing or malformed."""
    if name_or_path.endswith((".yaml", ".yml")):
        return _parse_taxonomy(read_text(Path(name_or_path)), name_or_path)
    if name_or_path not in shipped_taxonomies():
        raise DataError(
            f"no taxonomy '{name_or_path}'",
            hint=f"shipped: {', '.join(shipped_taxonomies())}; or give the path of a .yaml file",
        )
    name = f"{name_or_path}.yaml"
    return _parse_taxonomy((_FOLDER / name).read_text(encoding="utf-8"), name)


def map_labels(
    labels: Iterable[DistortionLabel], target: Taxonomy
) -> tuple[tuple[DistortionLabel, ...], tuple[str, ...]]:
    """Labels in terms of `target`, and the ids for which it has no place.

    Labels that meet in one id stay separate: each has its own evidence.

    Raises:
        DataError: a label is neither a type of `target` nor a known concept.
    """
    kept, dropped = [], []
    for label in labels:
        if label.id not in target.ids and label.id not in shipped_concepts():
            raise DataError(f"'{label.id}' is not a type of {target.id}")
        type_id = lift_id(label.id, target)
        if type_id is None:
            dropped.append(label.id)
        else:
            kept.append(label.model_copy(update={"id": type_id}))
    return tuple(kept), tuple(dropped)


def lift_id(concept_id: str, target: Taxonomy) -> str | None:
    """The id that `target` uses for a concept, following merges; None when it has no place."""
    at: str | None = concept_id
    while at is not None and at not in target.ids:
        at = _maps()["broader"].get(at)
    return at


@cache
def shipped_concepts() -> Mapping[str, DistortionType]:
    """Every concept that a shipped taxonomy can name, by id."""
    raw = shipped_yaml("cbtqa.distortions", "taxonomies/concepts.yaml")
    return {
        key: DistortionType.model_validate({"id": key, **fields}) for key, fields in raw.items()
    }


@cache
def _maps() -> dict[str, Any]:
    return dict(shipped_yaml("cbtqa.distortions", "taxonomies/maps.yaml"))


def _parse_taxonomy(text: str, where: str) -> Taxonomy:
    raw = parse_yaml(text, where)
    if not isinstance(raw, dict) or not isinstance(raw.get("types"), list):
        raise DataError("expected id, title, citation and a list `types`", where=where)
    raw["types"] = [_with_concept(entry, where) for entry in raw["types"]]
    taxonomy = parse_record(Taxonomy, raw, where)
    owners: dict[str, DistortionType] = {}
    for entry in taxonomy.types:
        for name in map(normalise_name, entry.names):
            owner = owners.setdefault(name, entry)
            if owner is not entry:
                found = f"the name '{name}' belongs to both '{owner.id}' and '{entry.id}'"
                raise DataError(found, where=where)
    return taxonomy


def _with_concept(entry: object, where: str) -> dict[str, Any]:
    """A type's own fields over those of the shipped concept with the same id."""
    if not isinstance(entry, dict) or not isinstance(entry.get("id"), str):
        raise DataError("every type needs an `id`", where=f"{where}:types")
    concept = shipped_concepts().get(entry["id"])
    return {**(concept.model_dump() if concept else {}), **entry}
