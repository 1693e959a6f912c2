"""Labels by a language model: closed set of types, evidence checked to be in the text.

A reply that names an unknown type, or quotes what is not in the text, is asked again with the fault
named, and rejected when the fault stays. The batch engine keeps every paid reply in the journal.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from cbtqa.distortions.labellers import Labels
from cbtqa.distortions.taxonomy import Taxonomy
from cbtqa.llm.chat import ChatRequest, Fault, Reply, Sampling, request_again
from cbtqa.llm.journal import Journal, Outcome
from cbtqa.llm.structured import find_echo, parse_object, strings_of_form
from cbtqa.prompts import fence, load_prompt
from cbtqa.prompts.rules import load_rules
from cbtqa.records import DistortionLabel, Reason, Rejection

REPLY_TOKENS = 120
"""Of two labels with their quotes; assumed for the dry run."""
DRAWN = {"temperature": 0.0, "max_tokens": 1024}
"""Labelling wants the likeliest answer; 1,024 tokens hold ten labels with their quotes."""


class TextToLabel(NamedTuple):
    id: str
    text: str


class LabellingTask:
    """What is asked about a text, and what is wrong with a reply; the engine's task."""

    def __init__(
        self,
        taxonomy: Taxonomy,
        model: str,
        *,
        prompt: str = "distortion_labels",
        sampling: Sampling | None = None,
    ) -> None:
        self.taxonomy, self.name = taxonomy, f"llm:{model}"
        self._prompt, self._sampling = load_prompt(prompt), sampling or Sampling(**DRAWN)
        self._types = "\n".join(
            f"- {entry.id}：{entry.zh}。{entry.definition}例如：{entry.example}"
            for entry in taxonomy.types
        )
        rules = self._prompt.header.rules
        self._rules = load_rules(rules).labels_block() if rules else ""
        self._schema = labels_schema(taxonomy)
        self._form = strings_of_form(self._prompt.system.template)

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

    def key(self, item: TextToLabel) -> str:
        return f"{item.id}:{hashlib.blake2b(item.text.encode(), digest_size=8).hexdigest()}"

    def request(self, item: TextToLabel) -> ChatRequest:
        messages = self._prompt.fill(
            {"taxonomy": self._types, "label_rules": self._rules, "text": fence(item.text)}
        )
        return ChatRequest(messages, self._schema, "distortion_labels", sampling=self._sampling)

    def check(self, item: TextToLabel, reply: Reply) -> Fault | None:
        found = self.read(item, reply)
        return found if isinstance(found, Fault) else None

    def ask_again(self, item: TextToLabel, reply: Reply, fault: Fault) -> ChatRequest | None:
        """The question again with what was wrong, see `request_again`; not after a refusal."""
        if fault.reason in (Reason.REFUSAL, Reason.CONTENT_FILTER):
            return None
        complaint = _COMPLAINTS.get(fault.reason, _FORMAT)
        first = self.request(item)
        return request_again(first, reply, fault, complaint, f"（{fault.detail[:200]}）")

    def read(self, item: TextToLabel, reply: Reply) -> Labels | Fault:
        found = parse_object(reply.text, fits=lambda value: isinstance(value.get("labels"), list))
        if isinstance(found, Fault):
            return found
        if echo := find_echo(found, self._form):
            return echo
        if not isinstance(found.get("labels"), list):
            return Fault(Reason.NOT_JSON, "no list `labels`")
        labels: dict[str, DistortionLabel] = {}
        for entry in found["labels"]:
            label = self._read_label(item, entry)
            if isinstance(label, Fault):
                return label
            labels.setdefault(label.id, label)
        return tuple(sorted(labels.values(), key=lambda label: -(label.confidence or 0)))

    def read_outcome(self, item: TextToLabel, outcome: Outcome | None) -> Labels | Fault:
        """The labels of what the journal holds of a text, or why there are none."""
        if outcome is not None and outcome.is_accepted and outcome.reply is not None:
            return self.read(item, outcome.reply)
        return (outcome.fault if outcome else None) or Fault(Reason.ENDPOINT, "no reply yet")

    def _read_label(self, item: TextToLabel, entry: object) -> DistortionLabel | Fault:
        if not isinstance(entry, Mapping):
            return Fault(Reason.BAD_LABEL, f"a label is no object: {entry!r}")
        kind = self.taxonomy.find(str(entry.get("id", "")))
        if kind is None:
            return Fault(Reason.BAD_LABEL, f"'{entry.get('id')}' is not in the list of types")
        evidence = str(entry.get("evidence") or "").strip()
        if not evidence or evidence not in item.text:
            return Fault(Reason.EVIDENCE_NOT_FOUND, f"'{evidence}' is not in the text")
        sure = entry.get("confidence")
        is_number = isinstance(sure, int | float) and not isinstance(sure, bool)
        if sure is not None and not (is_number and 0 <= sure <= 1):
            return Fault(Reason.BAD_LABEL, f"confidence {sure!r} is not from 0 to 1")
        return DistortionLabel(id=kind.id, evidence=evidence, labeller=self.name, confidence=sure)


def read_outcomes(
    items: Iterable[TextToLabel], task: LabellingTask, journal: Journal
) -> Iterator[Labels | Rejection]:
    """For each text the labels of its accepted reply, or why there are none."""
    for item in items:
        outcome = journal.outcome(task.key(item))
        found = task.read_outcome(item, outcome)
        if isinstance(found, Fault):
            yield Rejection(
                item_id=item.id,
                stage="label",
                reason=found.reason,
                detail=found.detail,
                raw=outcome.reply.text if outcome and outcome.reply else None,
            )
        else:
            yield found


def labels_schema(taxonomy: Taxonomy) -> dict[str, Any]:
    """JSON schema of the reply: strict, ids as an enumeration."""
    label = _strict(
        id={"type": "string", "enum": list(taxonomy.ids)},
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
