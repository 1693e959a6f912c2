"""The default teacher: writes five-step answers by rules, offline, always the same.

It is a template system and no therapist, and its text is no source to train models on. An answer
depends on what `facts` and the pattern labeller find in the question; its wording is in the YAML
files here. A question about suicide or self-harm gets the parts of `crisis.yaml`, which put safety
first, name help routes, and never treat the wish to die as a thinking error.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias

import cbtqa
from cbtqa.dataset.check import AnswerChecks, CheckedAnswer
from cbtqa.dataset.instruction import Item
from cbtqa.dataset.settings import BuildSettings
from cbtqa.dataset.template.facts import Facts, quote_evidence, read_facts
from cbtqa.dataset.template.grammar import Language, Part, Pools, Writer, load_language
from cbtqa.distortions.patterns import PatternHit, PatternLabeller
from cbtqa.distortions.taxonomy import Taxonomy, load_taxonomy
from cbtqa.llm.batch import OnProgress
from cbtqa.llm.chat import Fault, Reply
from cbtqa.llm.journal import Entry, Journal, State, blocks_of
from cbtqa.llm.progress import Meter
from cbtqa.processes import map_blocks
from cbtqa.records import STEP_NAMES, CbtSteps, DistortionLabel, Provenance, Question, Risk
from cbtqa.safety.screen import screen

_GROUP_ODDS = 4
"""A topic's own parts are taken, but those of its group one time in so many."""
_MAX_LABELLED = 4_000
"""Characters of a question that distortions are looked for in; PsyQA's longest has 425."""


class TemplateAnswer(NamedTuple):
    """Five steps, and the distortions found in the question; none where its risk is not none."""

    steps: CbtSteps
    distortions: tuple[DistortionLabel, ...]


class _Thought(NamedTuple):
    """One kind of thinking in the question; `quote` is None where it cannot be quoted."""

    concept: str
    term: str
    quote: str | None


class TemplateTeacher:
    """Writes answers; the same seed, id and text give the same answer on every machine.

    Args:
        taxonomy: id or path of the label set for distortions.
    """

    def __init__(self, taxonomy: str = "burns-10", seed: int = 0) -> None:
        self._taxonomy = load_taxonomy(taxonomy)
        self._labeller = PatternLabeller(self._taxonomy)
        finer = {type_id: self._taxonomy.finer_ids(type_id) for type_id in self._taxonomy.ids}
        self._finer_ids = {type_id: found for type_id, found in finer.items() if found}
        self._language = load_language()
        self._seed = seed

    def answer(self, question: Question, risk: Risk) -> TemplateAnswer:
        """The answer to one question; `risk` is its grade by `cbtqa.safety.screen`."""
        facts = read_facts(question)
        source_text = question.source_text
        labels: tuple[DistortionLabel, ...] = ()
        thoughts: list[_Thought] = []
        if risk == "none":
            text = source_text[:_MAX_LABELLED]
            hits = self._labeller.find_hits(text)
            labels = self._labeller.label(text, hits)
            thoughts = self._thoughts(text, labels, hits)
            _add_thoughts(facts, thoughts)
        named = f"{self._seed}\0{question.id}\0{source_text}".encode("utf-8", "replace")
        seed = int.from_bytes(hashlib.sha256(named).digest()[:8])
        return TemplateAnswer(
            _Composer(self._language, facts, thoughts, risk, seed).write(), labels
        )

    def _thoughts(
        self, text: str, labels: tuple[DistortionLabel, ...], hits: list[PatternHit]
    ) -> list[_Thought]:
        types: dict[str, str] = {}
        if any(label.id in self._finer_ids for label in labels):
            for hit in hits:
                types.setdefault(hit.clause.of(text), hit.rule.type)
        thoughts = []
        for label in labels:
            concept = label.id
            if concept in self._finer_ids:
                found = types.get(label.evidence or "", concept)
                concept = found if found in self._finer_ids[concept] else concept
            if concept not in self._language.types:
                continue
            name = self._language.terms.get(concept) or self._taxonomy.zh_name(concept)
            quote = quote_evidence(label.evidence) if label.evidence else None
            thoughts.append(_Thought(concept, f"「{name}」", quote))
        return thoughts


def _add_thoughts(facts: Facts, thoughts: list[_Thought]) -> None:
    """The first two thoughts as facts; a stretch of the question is quoted for one purpose only."""
    holes = facts.holes
    if thoughts:
        facts.flags.discard("calm")
        facts.flags.add("distress")
    for suffix, thought in zip(("", "2"), thoughts, strict=False):
        if suffix and thought.quote == holes.get("thought"):
            continue
        facts.flags.add("second" if suffix else "typed")
        holes[f"term{suffix}"] = thought.term
        if thought.quote:
            holes[f"thought{suffix}"] = thought.quote
    said = [holes[name] for name in ("thought", "thought2") if name in holes]
    facts.quotes = [q for q in facts.quotes if not any(q in s or s in q for s in said)]
    for name in ("asked", "retold"):
        found = holes.get(name, "").replace("你", "我")
        if found and any(found in s or s in found for s in said):
            del holes[name]


class _Composer:
    def __init__(
        self, language: Language, facts: Facts, thoughts: list[_Thought], risk: Risk, seed: int
    ) -> None:
        self._language, self._risk = language, risk
        self._topic = language.topics[facts.topic]
        self._group = language.groups[language.group_of.get(facts.topic, "any")]
        self._types: list[Pools] = [language.types[thought.concept] for thought in thoughts[:2]]
        holes, quotes = facts.holes, facts.quotes
        if not thoughts and quotes:
            holes["core"], *quotes = quotes
        self._writer = Writer(language.lexis, {*facts.flags, *holes}, holes, quotes, seed)

    def write(self) -> CbtSteps:
        plans = self._language.plans[self._risk]
        return CbtSteps(**{name: self._step(plans[name]) for name in STEP_NAMES})

    def _step(self, plans: tuple[Part, ...]) -> str:
        plan = self._writer.pick(plans)
        if plan is None:
            raise AssertionError("every step has a plan without conditions")
        said = []
        for source, kind, is_optional in self._language.kinds_of_plan[plan.number]:
            if not (is_optional and self._writer.chance(2)):
                said.append(self._say(source, kind))
        return "".join(said)

    def _say(self, source: str, kind: str) -> str:
        if kind == "belief" and not source:
            self._writer.fill("belief", self._say("topic", "belief"))
        elif kind == "second":
            self._writer.fill("gist2", self._say("type2", "gist"))
        part = self._pick(source, kind)
        return self._writer.say(part) if part else ""

    def _pick(self, source: str, kind: str) -> Part | None:
        pick, shared = self._writer.pick, self._language.shared
        if source == "topic":
            own, group = self._topic.get(kind, ()), self._group[kind]
            if kind != "belief" and self._writer.chance(_GROUP_ODDS):
                own, group = group, own
            return pick(own) or pick(group)
        if source == "type":
            return pick(self._types[0][kind])
        if source == "type2":
            return pick(self._types[1][kind])
        if source == "cue":
            return pick(shared[f"{kind}_cue"]) or pick(shared[kind])
        return pick(shared[kind] if self._risk == "none" else self._language.crisis[kind])


BLOCK = 500
LABELLER = "patterns"
Written: TypeAlias = tuple[str, Fault | None, Risk]
"""Reply text, its fault (or None), grade of the question. Plain, because it travels between
processes: a whole `Entry` took a twentieth of the time of writing it."""


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

        def missing() -> Iterator[list[Question]]:
            for block in blocks_of(items, BLOCK):
                done = journal.standings([item.key for item in block])
                meter.n_skipped += len(done)
                left = [item for item in block if item.key not in done]
                if left:
                    asked.append(left)
                    yield [item.question for item in left]

        for written in map_blocks(_make_writer, (self._settings,), missing()):
            entries = []
            for item, (text, fault, risk) in zip(asked.popleft(), written, strict=True):
                item.note(risk)
                state = State.FINAL if fault else State.ACCEPTED
                reply = Reply(text, finish_reason="stop", model="template")
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


def _make_writer(settings: BuildSettings) -> Callable[[list[Question]], list[Written]]:
    """Grades, answers and checks a block of questions; one in every process."""
    template = TemplateTeacher(taxonomy=settings.taxonomy, seed=settings.seed)
    limits = (settings.min_step_chars, settings.max_step_chars)
    checks = AnswerChecks(load_taxonomy(settings.taxonomy), LABELLER, *limits)

    def write(question: Question) -> Written:
        risk = screen(question.source_text).risk
        answer = template.answer(question, risk)
        value: dict[str, Any] = answer.steps.model_dump()
        kept = {"id", "evidence", "confidence"}
        value["distortions"] = [label.model_dump(include=kept) for label in answer.distortions]
        found = checks.check_object(question, risk, value)
        fault = found if isinstance(found, Fault) else None
        return json.dumps(value, ensure_ascii=False), fault, risk

    return lambda questions: [write(question) for question in questions]
