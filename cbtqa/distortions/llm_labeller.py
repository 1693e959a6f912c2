"""Labels by a language model: closed set of types, evidence checked to be in the text.

All sentences of a document go into one request. A reply that names an unknown type, or quotes what
is not in the text, is asked again with the fault named, and rejected when the fault stays. The
batch engine keeps every paid reply in the journal.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

from pydantic import Field

from cbtqa.distortions.labellers import Labels
from cbtqa.distortions.taxonomy import Taxonomy, load_taxonomy, map_labels
from cbtqa.errors import UsageError
from cbtqa.llm.chat import ChatRequest, Fault, Reply, Sampling, request_again
from cbtqa.llm.journal import Journal, Outcome
from cbtqa.llm.runs import EndpointSettings, Service
from cbtqa.llm.structured import find_echo, parse_object, strings_of_form
from cbtqa.prompts import fence, load_prompt
from cbtqa.prompts.rules import load_rules
from cbtqa.records import DistortionLabel, Reason, Rejection

Convention = Literal["strict", "broad"]
PROMPTS: Mapping[Convention, str] = {
    "strict": "distortion_labels",
    "broad": "distortion_labels_broad",
}
LEAST_CONFIDENCE: Mapping[Convention, float] = {"strict": 0.0, "broad": 0.5}
"""Below that the broad prompt has doubt marked; measured, see docs/log.md."""
HOPELESSNESS = "hopelessness"
"""What a model calls "life has no meaning, I cannot go on": apart from the types of a taxonomy."""
MOST_SENTENCES = 20
"""Of one document in one request; a longer one takes several, so that no reply is cut."""
OTHER_RUN = "name another --out: replies lie beside it; or go back to the earlier settings"
"""What to do where the journal holds replies to another prompt, model or taxonomy."""
REPLY_TOKENS = 120
"""Of two labels with their quotes; assumed for the dry run."""
MOST_TOKENS = 2048
DRAWN = {"temperature": 0.0, "max_tokens": MOST_TOKENS}
"""Labelling wants the likeliest answer; 2,048 tokens hold a label for each of 20 sentences."""


class TextsToLabel(NamedTuple):
    """What one request is about."""

    id: str
    texts: tuple[str, ...]
    """One text, or sentences of one document in their order."""


class Found(NamedTuple):
    """What a model found in one text."""

    labels: Labels
    hopelessness: str | None = None
    """The clause that says that life has no meaning or cannot go on; no type, never a label, but
    for `binary` in the broad convention."""


class LlmSettings(EndpointSettings):
    """How a language model labels."""

    panel: ClassVar[str] = "Endpoint"
    convention: Convention = "strict"
    """For llm: strict counts distorted thoughts alone; broad also sweeping negatives about self,
    life or future and lasting distress, as CogDis annotates."""
    min_confidence: float | None = Field(None, ge=0, le=1)
    """For llm: leave out labels of less confidence; paid replies serve for every value. Default:
    0 in the strict convention, 0.5 in the broad one, which marks doubt below that."""
    max_tokens: int = Field(MOST_TOKENS, ge=16)
    """For llm: most tokens of a reply. 2,048 hold a label for each of 20 sentences; a model that
    lists labels without end is cut there, and its document rejected."""
    prompt: str | None = None
    """For llm: a prompt in place of the convention's, or a path of your own."""

    @property
    def least_confidence(self) -> float:
        """The least confidence of a label in use."""
        known = self.min_confidence
        return LEAST_CONFIDENCE[self.convention] if known is None else known

    def labelling(self, taxonomy: Taxonomy) -> tuple[Service, LabellingTask]:
        """Who is asked, and what; UsageError without an endpoint."""
        service = self.service()
        if service is None:
            raise UsageError("--labeller llm needs --endpoint and --model")
        task = LabellingTask(
            taxonomy,
            service.model,
            convention=self.convention,
            prompt=self.prompt,
            min_confidence=self.least_confidence,
            sampling=self.sampling(**DRAWN | {"max_tokens": self.max_tokens}),
        )
        return service, task


class LabellingTask:
    """What is asked about texts, and what is wrong with a reply; the engine's task."""

    def __init__(
        self,
        taxonomy: Taxonomy,
        model: str,
        *,
        convention: Convention = "strict",
        prompt: str | None = None,
        min_confidence: float = 0.0,
        sampling: Sampling | None = None,
    ) -> None:
        """`prompt` takes the place of the convention's; `min_confidence` is of given labels."""
        self.taxonomy, self.name = taxonomy, f"llm:{model}"
        # whether a text is distorted at all is told better when the types are looked for
        is_folded = taxonomy.ids == ("distorted",)
        self._asked = load_taxonomy("burns-10") if is_folded else taxonomy
        self._convention, self._least = convention, min_confidence
        self._prompt = load_prompt(prompt or PROMPTS[convention])
        self._sampling = sampling or Sampling(**DRAWN)
        self._types = "\n".join(
            f"- {entry.id}：{entry.zh}。{entry.definition}例如：{entry.example}"
            for entry in self._asked.types
        )
        rules = self._prompt.header.rules
        self._rules = load_rules(rules).labels_block() if rules else ""
        system = self._prompt.system.template
        self._form, self._is_numbered = strings_of_form(system), '"sentence"' in system
        knows = HOPELESSNESS in system and self._asked.find(HOPELESSNESS) is None
        self._ids = (*self._asked.ids, *([HOPELESSNESS] if knows else ()))
        self._schema = labels_schema(self._ids, is_numbered=self._is_numbered)

    @property
    def prompt_name(self) -> str:
        """Id and version of the prompt."""
        return self._prompt.name

    def fingerprint(self) -> dict[str, str]:
        """Everything that can change a reply, for the journal."""
        return {
            "task": "distortion labels",
            "labeller": self.name,
            "prompt": self._prompt.name,
            "prompt_sha256": self._prompt.sha256,
            "types_sha256": hashlib.sha256((self._types + self._rules).encode()).hexdigest(),
            "sampling": repr(sorted(self._sampling.described().items())),
        }

    def key(self, item: TextsToLabel) -> str:
        text = "\n".join(item.texts)
        return f"{item.id}:{hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}"

    def request(self, item: TextsToLabel) -> ChatRequest:
        numbered = "\n".join(f"[{n}] {text}" for n, text in enumerate(item.texts, 1))
        offered = {"text": fence("\n".join(item.texts)), "texts": fence(numbered)}
        messages = self._prompt.fill(
            {"taxonomy": self._types, "label_rules": self._rules, **offered}
        )
        return ChatRequest(messages, self._schema, "distortion_labels", sampling=self._sampling)

    def check(self, item: TextsToLabel, reply: Reply) -> Fault | None:
        found = self.read(item, reply)
        return found if isinstance(found, Fault) else None

    def ask_again(self, item: TextsToLabel, reply: Reply, fault: Fault) -> ChatRequest | None:
        """The question again with what was wrong, see `request_again`; not after a refusal."""
        if fault.reason in (Reason.REFUSAL, Reason.CONTENT_FILTER):
            return None
        complaint = _COMPLAINTS.get(fault.reason, _FORMAT)
        first = self.request(item)
        return request_again(first, reply, fault, complaint, f"（{fault.detail[:200]}）")

    def read(self, item: TextsToLabel, reply: Reply) -> tuple[Found, ...] | Fault:
        """What the reply finds in each of the texts."""
        found = parse_object(reply.text, fits=lambda value: isinstance(value.get("labels"), list))
        if isinstance(found, Fault):
            return found
        if echo := find_echo(found, self._form):
            return echo
        if not isinstance(found.get("labels"), list):
            return Fault(Reason.NOT_JSON, "no list `labels`")
        by_text: list[list[DistortionLabel]] = [[] for _ in item.texts]
        for entry in found["labels"]:
            label = self._read_label(item, entry)
            if isinstance(label, Fault):
                return label
            place, one = label
            by_text[place].append(one)
        return tuple(map(self._settle, by_text))

    def read_outcome(
        self, item: TextsToLabel, outcome: Outcome | None
    ) -> tuple[Found, ...] | Fault:
        """The labels of what the journal holds of an item, or why there are none."""
        if outcome is not None and outcome.is_accepted and outcome.reply is not None:
            return self.read(item, outcome.reply)
        return (outcome.fault if outcome else None) or Fault(Reason.ENDPOINT, "no reply yet")

    def _read_label(self, item: TextsToLabel, entry: object) -> tuple[int, DistortionLabel] | Fault:
        """A label and the place of its text."""
        if not isinstance(entry, Mapping):
            return Fault(Reason.BAD_LABEL, f"a label is no object: {entry!r}")
        name = str(entry.get("id", ""))
        kind = self._asked.find(name)
        type_id = kind.id if kind else name.strip().casefold()
        if type_id not in self._ids:
            return Fault(Reason.BAD_LABEL, f"'{entry.get('id')}' is not in the list of types")
        evidence = str(entry.get("evidence") or "").strip()
        place = _place_of(item.texts, evidence, entry.get("sentence"))
        if place is None:
            return Fault(Reason.EVIDENCE_NOT_FOUND, f"'{evidence}' is not in the text")
        sure = entry.get("confidence")
        is_number = isinstance(sure, int | float) and not isinstance(sure, bool)
        if sure is not None and not (is_number and 0 <= sure <= 1):
            return Fault(Reason.BAD_LABEL, f"confidence {sure!r} is not from 0 to 1")
        known = {"evidence": evidence, "labeller": self.name, "confidence": sure}
        return place, DistortionLabel(id=type_id, **known)

    def _settle(self, given: Sequence[DistortionLabel]) -> Found:
        """The sure ones in the taxonomy, each type once, the surest first; hopelessness apart."""
        sure = [label for label in given if _surety(label) >= self._least]
        apart = [label for label in sure if label.id not in self._asked.ids]
        labels = [label for label in sure if label.id in self._asked.ids]
        if self._asked is not self.taxonomy:
            if self._convention == "broad":
                labels += [one.model_copy(update={"id": "distorted"}) for one in apart]
            labels = list(map_labels(labels, self.taxonomy)[0])
        return Found(_each_once(labels), apart[0].evidence if apart else None)


def _surety(label: DistortionLabel) -> float:
    return 1.0 if label.confidence is None else label.confidence


def _each_once(labels: Iterable[DistortionLabel]) -> Labels:
    """The surest label of each type, the surest first."""
    kept: dict[str, DistortionLabel] = {}
    for label in sorted(labels, key=_surety, reverse=True):
        kept.setdefault(label.id, label)
    return tuple(kept.values())


def _place_of(texts: Sequence[str], evidence: str, number: object) -> int | None:
    """The text that the evidence is from: the numbered one where it stands there, else the first.

    Models miscount sentences; a quote that is word for word in another one tells which is meant.
    """
    places = [place for place, text in enumerate(texts) if evidence and evidence in text]
    if isinstance(number, int) and number - 1 in places:
        return number - 1
    return places[0] if places else None


def join_found(parts: Sequence[Found]) -> Found:
    """What was found in a document, from its sentences: every type once, the surest."""
    hopelessness = next((one.hopelessness for one in parts if one.hopelessness), None)
    return Found(_each_once(label for one in parts for label in one.labels), hopelessness)


def cut_document(document: str, sentences: Sequence[str]) -> list[TextsToLabel]:
    """The requests about the sentences of one document."""
    return [
        TextsToLabel(f"{document}/{start + 1}", tuple(sentences[start : start + MOST_SENTENCES]))
        for start in range(0, len(sentences), MOST_SENTENCES)
    ]


def read_outcomes(
    items: Iterable[TextsToLabel], task: LabellingTask, journal: Journal
) -> Iterator[Found | Rejection]:
    """For each text of each item what its accepted reply finds, or why there is nothing."""
    for item in items:
        outcome = journal.outcome(task.key(item))
        found = task.read_outcome(item, outcome)
        if isinstance(found, Fault):
            rejection = Rejection(
                item_id=item.id,
                stage="label",
                reason=found.reason,
                detail=found.detail,
                raw=outcome.reply.text if outcome and outcome.reply else None,
            )
            yield from [rejection] * len(item.texts)
        else:
            yield from found


def labels_schema(ids: Sequence[str], *, is_numbered: bool = True) -> dict[str, Any]:
    """JSON schema of the reply: strict, ids as an enumeration."""
    number = {"sentence": {"type": "integer"}} if is_numbered else {}
    label = _strict(
        **number,
        id={"type": "string", "enum": list(ids)},
        evidence={"type": "string"},
        confidence={"type": "number"},
    )
    return _strict(labels={"type": "array", "items": label})


def _strict(**properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


_FORMAT = "请只输出约定的 JSON 对象，填入真正的内容。"
_COMPLAINTS = {
    Reason.BAD_LABEL: "上面的标注不合要求：类型只能用表中的英文 id，把握为 0 到 1。请重新输出。",
    Reason.EVIDENCE_NOT_FOUND: "上面的证据不是原文中的原话。请逐字照抄后重新输出。",
    Reason.CUT: "请只输出 JSON 对象，证据取得短一些。",
}
