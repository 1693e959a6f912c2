"""The template teacher's language: loads `template/*.yaml` and compiles it once."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

from cbtqa.dataset.template_grammar import Lexis, Part
from cbtqa.errors import DataError
from cbtqa.files import parse_yaml

TOPIC_FILES = ("topics_love", "topics_people", "topics_work", "topics_self", "topics_life")
_TOPIC_KINDS = ("feel", "worry", "belief", "ask", "act", "hope")

Pools = Mapping[str, tuple[Part, ...]]


class PlannedKind(NamedTuple):
    """One item of a plan."""

    source: str
    """`topic`, `type`, `type2`, `cue`, or empty for parts that any topic shares."""
    kind: str
    is_optional: bool


class Language(NamedTuple):
    """All parts, compiled; a pool is a list of parts of one kind."""

    lexis: Lexis
    plans: Mapping[str, Pools]
    """Risk -> step -> plans, each a part that lists kinds."""
    kinds_of_plan: Mapping[int, tuple[PlannedKind, ...]]
    """By the plan's number"""
    shared: Pools
    crisis: Pools
    topics: Mapping[str, Pools]
    groups: Mapping[str, Pools]
    group_of: Mapping[str, str]
    types: Mapping[str, Pools]
    terms: Mapping[str, str]
    """Concept id -> a plainer Chinese name than the taxonomy's own."""


@cache
def load_language() -> Language:
    """The shipped language.

    Raises:
        DataError: a part is malformed; names file and list.
    """
    general, crisis, types = _load("language"), _load("crisis"), _load("types")
    lexis = Lexis(general.pop("echoes"))
    plans = {
        "none": _pools(lexis, general.pop("plans"), "language.plans"),
        **{
            risk: _pools(lexis, steps, f"crisis.plans.{risk}")
            for risk, steps in crisis.pop("plans").items()
        },
    }
    topics: dict[str, Pools] = {}
    groups: dict[str, Pools] = {}
    for name in TOPIC_FILES:
        loaded = _load(name)
        for group, kinds in loaded.pop("groups").items():
            groups[group] = _pools(lexis, kinds, f"{name}.{group}")
        for topic, kinds in loaded.items():
            topics[topic] = _pools(lexis, kinds, f"{name}.{topic}")
    facts = _load("facts")["topics"]
    terms = {concept: str(kinds.pop("term")) for concept, kinds in types.items() if "term" in kinds}
    gists = {concept: [kinds.pop("gist")] for concept, kinds in types.items()}
    return Language(
        lexis=lexis,
        plans=plans,
        kinds_of_plan={
            plan.number: _read_plan(plan)
            for steps in plans.values()
            for found in steps.values()
            for plan in found
        },
        shared=_pools(lexis, general, "language"),
        crisis=_pools(lexis, crisis, "crisis"),
        topics=topics,
        groups=groups,
        group_of={topic: words["group"] for topic, words in facts.items()},
        types={
            concept: _pools(lexis, {**kinds, "gist": gists[concept]}, f"types.{concept}")
            for concept, kinds in types.items()
        },
        terms=terms,
    )


def _pools(lexis: Lexis, kinds: Mapping[str, list[str]], where: str) -> Pools:
    return {
        kind: lexis.compile_all(parts, f"template/{where}.{kind}") for kind, parts in kinds.items()
    }


def _load(name: str) -> dict[str, Any]:
    source = files("cbtqa.dataset").joinpath(f"template/{name}.yaml")
    loaded = parse_yaml(source.read_text(encoding="utf-8"))
    if not isinstance(loaded, dict):
        raise DataError("expected a mapping", where=f"template/{name}.yaml")
    return loaded


def _read_plan(plan: Part) -> tuple[PlannedKind, ...]:
    kinds = []
    for word in "".join(node for node in plan.nodes if isinstance(node, str)).split():
        source, _, kind = word.removesuffix("?").rpartition(".")
        kinds.append(PlannedKind(source, kind, word.endswith("?")))
    return tuple(kinds)
