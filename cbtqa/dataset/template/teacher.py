"""The default teacher: writes five-step answers by rules, offline, always the same.

It is a template system and no therapist, and its text is no source to train models on. It says
nothing that the question does not say: `reading` finds what is certain, `language.yaml` holds what
may be said of it, and everything else stays general and asks. A question about suicide or
self-harm gets `crisis.yaml`, one about another danger `danger.yaml` with the help text of this
danger: safety first, help routes, no talk of thinking errors.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple, TypeAlias

import cbtqa
from cbtqa.dataset.check import AnswerChecks, CheckedAnswer, fault_of_language
from cbtqa.dataset.instruction import Grade, Item, grade_text
from cbtqa.dataset.settings import BuildSettings
from cbtqa.dataset.template.reading import Reading, is_sure_label, load_words, read_question
from cbtqa.distortions.patterns import PatternLabeller
from cbtqa.distortions.taxonomy import Taxonomy, lift_id, load_taxonomy
from cbtqa.errors import DataError
from cbtqa.files import shipped_yaml
from cbtqa.llm.batch import OnProgress
from cbtqa.llm.chat import Fault, Reply
from cbtqa.llm.journal import Entry, Journal, State, blocks_of
from cbtqa.llm.progress import Meter
from cbtqa.processes import map_blocks
from cbtqa.records import (
    STEP_NAMES,
    CbtSteps,
    DistortionLabel,
    Provenance,
    Question,
    Reason,
    Risk,
)
from cbtqa.safety.notices import help_text

LABELLER = "patterns"
_MAX_LABELLED = 4_000
"""Characters of a question that distortions are looked for in; PsyQA's longest has 425."""


class TemplateAnswer(NamedTuple):
    """Five steps, and the distortions found in the question; none where there is any danger."""

    steps: CbtSteps
    distortions: tuple[DistortionLabel, ...]


# --- the language ---------------------------------------------------------------------------------

_NODE = re.compile(r"\((?P<options>[^()]*)\)|<(?P<hole>[a-z]+)>")
Node: TypeAlias = str | tuple[str, ...]
"""Plain words (a hole is `<name>`), or the wordings of a choice."""


class Group(NamedTuple):
    """Texts that may be said where the facts hold."""

    needs: frozenset[str]
    avoids: frozenset[str]
    texts: tuple[tuple[Node, ...], ...]


class Language(NamedTuple):
    """Slots of each step, and the groups of each slot, in order; the last always holds."""

    steps: Mapping[str, Sequence[str]]
    slots: Mapping[str, Sequence[Group]]

    def write(self, reading: Reading, seed: int) -> CbtSteps:
        """Five steps; in every slot the first group that fits, one of its texts by the seed."""
        dice, facts = Dice(seed), reading.facts
        written = {}
        for step in STEP_NAMES:
            said: list[str] = []
            for slot in self.steps[step]:
                texts = next(
                    group.texts
                    for group in self.slots[slot]
                    if group.needs <= facts and group.avoids.isdisjoint(facts)
                )
                if texts:
                    for node in texts[dice.roll(len(texts))]:
                        said.append(_say(node, reading.holes, dice))
            written[step] = "".join(said)
        return CbtSteps(**written)


class Dice:
    """Numbers that depend on the seed alone, on every machine and Python version."""

    __slots__ = ("_state",)

    def __init__(self, seed: int) -> None:
        self._state = seed & 0xFFFFFFFFFFFFFFFF

    def roll(self, sides: int) -> int:
        """A number from 0 to `sides` - 1. Source: Knuth's MMIX generator, its high bits."""
        self._state = (self._state * 6364136223846793005 + 1442695040888963407) & 0xFFFFFFFFFFFFFFFF
        return (self._state >> 33) % sides


def _say(node: Node, holes: Mapping[str, str], dice: Dice) -> str:
    words = node if isinstance(node, str) else node[dice.roll(len(node))]
    if "<" in words:
        for name, filling in holes.items():
            words = words.replace(f"<{name}>", filling)
    return words


def read_language(raw: Mapping[str, Any], where: str) -> Language:
    """A language file, compiled; DataError names the slot of a malformed text."""
    slots: dict[str, list[Group]] = {}
    for slot, groups in raw.items():
        if slot in {"steps", "terms"}:
            continue
        slots[slot] = []
        for facts, texts in groups.items():
            nodes = tuple(_nodes(text, f"{where}:{slot}") for text in texts)
            for alternative in facts.split("|"):
                names = {name.strip() for name in alternative.split("&")} - {"any"}
                avoided = {name for name in names if name.startswith("not ")}
                avoids = frozenset(name.removeprefix("not ") for name in avoided)
                slots[slot].append(Group(frozenset(names - avoided), avoids, nodes))
        if slots[slot][-1][:2] != (frozenset(), frozenset()):
            raise DataError("the last group must be `any`", where=f"{where}:{slot}")
    return Language(raw["steps"], slots)


def _nodes(text: str, where: str) -> tuple[Node, ...]:
    nodes: list[Node] = []
    at = 0
    for match in _NODE.finditer(text):
        nodes.append(text[at : match.start()])
        at = match.end()
        options = tuple(match["options"].split("|")) if match["options"] is not None else None
        nodes.append(options or match[0])
        if options and len(options) < 2:
            raise DataError(f"not a choice: {match[0]}", where=where)
    nodes.append(text[at:])
    if any(mark in node for node in nodes if isinstance(node, str) for mark in "()|"):
        raise DataError(f"a bracket without its partner: {text}", where=where)
    return tuple(node for node in nodes if node)


@cache
def load_languages() -> Mapping[str, Language]:
    """The shipped language of each grade of risk, and `danger` for other dangers."""
    plain = shipped_yaml("cbtqa.dataset", "template/language.yaml")
    crisis = shipped_yaml("cbtqa.dataset", "template/crisis.yaml")
    danger = shipped_yaml("cbtqa.dataset", "template/danger.yaml")
    return {
        "none": read_language(plain, "template/language.yaml"),
        "danger": read_language(danger, "template/danger.yaml"),
        **{
            risk: read_language(raw, f"template/crisis.yaml:{risk}") for risk, raw in crisis.items()
        },
    }


@cache
def _terms() -> Mapping[str, str]:
    """Concept id -> a plainer Chinese name than the taxonomy's own."""
    terms: Mapping[str, str] = shipped_yaml("cbtqa.dataset", "template/language.yaml")["terms"]
    return terms


# --- the teacher ----------------------------------------------------------------------------------

_LEAST_HAN = 0.05
"""Share of a question's letters: below it the Chinese is a name in a foreign sentence. A foreign
term with a Chinese question behind it (`borderline personality disorder怎么治`) has more."""


def fault_of_question(question: Question) -> Fault | None:
    """Why the templates have no answer: they read Chinese alone. None: they have one."""
    text = question.source_text
    # without any letter (`???`) it is in no other language, and is asked to say more
    found = fault_of_language(text, _LEAST_HAN) if any(map(str.isalpha, text)) else None
    if found is None:
        return None
    detail = f"the templates read and write Chinese alone: {found.detail} of the question"
    return Fault(Reason.WRONG_LANGUAGE, detail)


class TemplateTeacher:
    """Writes answers; the same seed, id and text give the same answer on every machine.

    Args:
        taxonomy: id or path of the label set for distortions.
    """

    def __init__(self, taxonomy: str = "burns-10", seed: int = 0) -> None:
        self._taxonomy = load_taxonomy(taxonomy)
        self._labeller = PatternLabeller(self._taxonomy)
        self._languages = load_languages()
        self._seed = seed

    def answer(
        self, question: Question, risk: Risk, help_routes: str | None = None
    ) -> TemplateAnswer:
        """The answer to one question; `risk` is its grade by `cbtqa.safety.screen`.

        Args:
            help_routes: said first to a question in another danger, may be empty; None without one.
        """
        language = risk if help_routes is None else "danger"
        reading = read_question(question)
        labels: tuple[DistortionLabel, ...] = ()
        if language == "none":
            reading, labels = self._label(question, reading)
        if help_routes is not None:
            reading = reading._replace(holes={"help": help_routes})
        named = f"{self._seed}\0{question.id}\0{question.source_text}".encode("utf-8", "replace")
        seed = int.from_bytes(hashlib.sha256(named).digest()[:8])
        return TemplateAnswer(self._languages[language].write(reading, seed), labels)

    def _label(
        self, question: Question, reading: Reading
    ) -> tuple[Reading, tuple[DistortionLabel, ...]]:
        """The first sure label, and the reading with its thought in place of a plain one.

        One label at most: step two speaks of one thought, and an unspoken label is none.
        """
        if reading.facts & {"other", "unclear", *load_words().guarded}:
            return reading, ()
        text = question.source_text[:_MAX_LABELLED]
        for hit in self._labeller.find_hits(text):
            type_id = lift_id(hit.rule.type, self._taxonomy)
            if type_id is None or not is_sure_label(hit.rule.id, text, *hit.clause):
                continue
            evidence = hit.clause.of(text)
            # a shipped taxonomy may merge the concept or keep it
            term = _terms().get(hit.rule.type) or self._taxonomy.zh_name(hit.rule.type)
            holes = {**reading.holes, "thought": evidence, "term": f"「{term}」"}
            if evidence in holes.get("told", ""):
                del holes["told"]
            facts = (reading.facts - {"fear", "view", "cannot", "told"}) | set(holes)
            label = DistortionLabel(
                id=type_id, evidence=evidence, labeller=LABELLER, confidence=hit.rule.confidence
            )
            return Reading(frozenset(facts | {"typed", hit.rule.type}), holes), (label,)
        return reading, ()


BLOCK = 500
Written: TypeAlias = tuple[str | None, Fault | None, Grade]
"""Reply text (None: there is none), its fault (or None), grade of the question. Plain, because it
travels between processes: a whole `Entry` took a twentieth of the time of writing it."""


class OfflineTeacher:
    """Answers by template; several processes write the answers and check them."""

    system = "template"
    prompts: Mapping[str, str] = {}
    service = None

    def __init__(self, settings: BuildSettings, taxonomy: Taxonomy) -> None:
        self._taxonomy, self._settings = taxonomy, settings
        version, seed = cbtqa.__version__, settings.seed
        self._provenance = Provenance(
            model="template", seed=seed, is_training_source=False, version=version
        )

    def fingerprint(self) -> dict[str, str]:
        """The version decides: the rules change with it."""
        return {
            "teacher": "template",
            "version": cbtqa.__version__,
            "taxonomy": self._taxonomy.id,
            "seed": str(self._settings.seed),
            "step_chars": f"{self._settings.min_step_chars}-{self._settings.max_step_chars}",
        }

    def generate(
        self, items: Iterable[Item], journal: Journal, on_progress: OnProgress | None
    ) -> None:
        """Writes what the journal does not hold; a kill costs at most a few blocks."""
        meter = Meter(None, price=None, earlier=journal.totals())
        asked: deque[list[Item]] = deque()

        def missing() -> Iterator[list[tuple[Question, Grade | None]]]:
            for block in blocks_of(items, BLOCK):
                done = journal.standings([item.key for item in block])
                meter.n_skipped += len(done)
                left = [item for item in block if item.key not in done]
                if left:
                    asked.append(left)
                    yield [(one.question, one.grade if one.is_graded else None) for one in left]

        for written in map_blocks(_make_writer, (self._settings,), missing()):
            entries = []
            for item, (text, fault, grade) in zip(asked.popleft(), written, strict=True):
                item.note(grade)
                state = State.FINAL if fault else State.ACCEPTED
                reply = Reply(text, finish_reason="stop", model="template") if text else None
                entries.append(Entry(item.key, 1, state, reply, fault))
            meter.n_accepted += journal.record(entries)
            if on_progress is not None:
                on_progress(meter.progress(limit=1))

    def read(self, item: Item, reply: Reply) -> CheckedAnswer | Fault:
        """Taken as it was written: it was checked then."""
        value = json.loads(reply.text)
        steps = CbtSteps(**{name: value[name] for name in STEP_NAMES})
        labels = (DistortionLabel(labeller=LABELLER, **label) for label in value["distortions"])
        return CheckedAnswer(steps.joined(), steps, tuple(labels))

    def provenance(self, reply: Reply) -> Provenance:
        return self._provenance


def _make_writer(
    settings: BuildSettings,
) -> Callable[[list[tuple[Question, Grade | None]]], list[Written]]:
    """Grades, answers and checks a block of questions; one in every process."""
    template = TemplateTeacher(taxonomy=settings.taxonomy, seed=settings.seed)
    limits = (settings.min_step_chars, settings.max_step_chars)
    checks = AnswerChecks(load_taxonomy(settings.taxonomy), LABELLER, *limits)

    def write(question: Question, known: Grade | None) -> Written:
        grade = known or grade_text(question.source_text)
        if unread := fault_of_question(question):
            return None, unread, grade
        help_routes = grade.danger and help_text(danger=grade.danger)
        answer = template.answer(question, grade.risk, help_routes)
        value: dict[str, Any] = answer.steps.model_dump()
        kept = {"id", "evidence", "confidence"}
        value["distortions"] = [label.model_dump(include=kept) for label in answer.distortions]
        found = checks.check_object(question, grade, value)
        fault = found if isinstance(found, Fault) else None
        return json.dumps(value, ensure_ascii=False), fault, grade

    return lambda questions: [write(*one) for one in questions]
