"""The teacher behind an endpoint; `template.teacher` holds the offline one.

Every teacher puts its replies into the run's journal and reads them back from it the same way, so
that a run is finished from its journal alone, whoever wrote it.
"""

from __future__ import annotations

import hashlib
import json

import cbtqa
from cbtqa.dataset.check import AnswerChecks, CheckedAnswer, answer_json_schema, wording
from cbtqa.dataset.instruction import Instruction, Item
from cbtqa.dataset.settings import BuildSettings
from cbtqa.distortions.labellers import labels_named_in
from cbtqa.distortions.llm_labeller import DRAWN, LabellingTask, TextsToLabel
from cbtqa.distortions.taxonomy import Taxonomy
from cbtqa.errors import ConfigError
from cbtqa.llm.chat import ChatRequest, Fault, Reply, request_again
from cbtqa.llm.runs import Service
from cbtqa.llm.structured import find_echo, parse_object, strings_of_form
from cbtqa.prompts import Prompt, load_prompt
from cbtqa.prompts.rules import load_rules
from cbtqa.records import STEP_NAMES, Provenance, Reason

QUOTING = frozenset(
    {
        *(Reason.HEADINGS, Reason.MARKUP, Reason.PLACEHOLDER, Reason.WRONG_SCRIPT, Reason.STYLE),
        *(Reason.EVIDENCE_NOT_FOUND, Reason.PERSONAL_DATA),
    }
)
"""Faults whose detail is what stands in the reply, which the model can look for."""


LABELS = "labels "
"""Begins the journal keys of the second pass, which counts apart from the answers."""


class QuestionLabels:
    """The second pass over the questions of answers in one flowing text: types with evidence.

    Its replies lie in the journal of the answers, so that budget, cost and resuming are shared; its
    keys hold a hash of everything that can change a label, so that the answers outlive a change.
    """

    def __init__(
        self, settings: BuildSettings, taxonomy: Taxonomy, service: Service, prompt: Prompt
    ) -> None:
        name = prompt.header.rules
        self._rules = load_rules(name) if name else None
        sampling = settings.sampling(**DRAWN)
        self.task = LabellingTask(taxonomy, service.model, sampling=sampling)
        self.most_types = load_rules("cbt_answer.rules").most_types
        """Kept of one question, the surest: what the labelling prompt asks for."""
        described = self.task.fingerprint()
        self.prompts = {described["prompt"]: described["prompt_sha256"]}
        text = json.dumps(described, sort_keys=True)
        self._mark = hashlib.sha256(text.encode()).hexdigest()[:8]

    def text_of(self, item: Item) -> TextsToLabel | None:
        """What is to be labelled; None where the prompt's branch allows no labels."""
        grade = item.grade
        if self._rules and not self._rules.branches[grade.branch].labels:
            return None
        if grade.risk == "explicit":
            return None
        question = item.question
        return TextsToLabel(f"{LABELS}{self._mark} {question.id}", (question.source_text,))

    def key(self, item: Item) -> str | None:
        text = self.text_of(item)
        return text and self.task.key(text)


class EndpointTeacher:
    """A model behind OpenAI-compatible endpoints; also the engine's task."""

    def __init__(self, settings: BuildSettings, taxonomy: Taxonomy, service: Service) -> None:
        self.service, self.system = service, service.model
        self._prompt = load_prompt(settings.prompt)
        self._is_json = self._prompt.header.output == "json"
        self._taxonomy = taxonomy
        limits = (settings.min_step_chars, settings.max_step_chars)
        # providers refuse lengths in a strict schema; the servers that people run know them
        known = limits if all(one.is_local for one in service.endpoints) else None
        self._schema = answer_json_schema(taxonomy, known) if self._is_json else None
        self._form = strings_of_form(self._prompt.system.template)
        self._instruction = Instruction(settings, self._prompt, taxonomy)
        self._sampling = settings.sampling(
            temperature=settings.temperature,
            top_p=settings.top_p,
            max_tokens=settings.max_tokens,
            seed=settings.seed,
        )
        if self._is_json and settings.labels:
            hint = f"leave --labels out: {self._prompt.name} asks for labels with their evidence"
            raise ConfigError("--labels is for prompts that ask for one flowing text", hint=hint)
        by_question = not self._is_json and settings.labels != "answer"
        self.labels = (
            QuestionLabels(settings, taxonomy, service, self._prompt) if by_question else None
        )
        """The second pass; None where labels come with the answer."""
        labeller = f"answer:{service.model}"
        self._checks = AnswerChecks(taxonomy, labeller, *limits, self._prompt)
        self.prompts = {self._prompt.name: self._prompt.sha256}
        self.prompts |= self.labels.prompts if self.labels else {}

    def fingerprint(self) -> dict[str, str]:
        return {
            "teacher": "endpoint",
            "model": self.service.model,
            "endpoint_host": self.service.host,
            "prompt": self._prompt.name,
            "prompt_sha256": self._prompt.sha256,
            "instruction_sha256": self._instruction.sha256,
            "taxonomy": self._taxonomy.id,
            "sampling": json.dumps(self._sampling.described(), sort_keys=True),
        }

    def key(self, item: Item) -> str:
        return item.key

    def request(self, item: Item) -> ChatRequest:
        return ChatRequest(
            self._instruction.messages(item), json_schema=self._schema, sampling=self._sampling
        )

    def check(self, item: Item, reply: Reply) -> Fault | None:
        found = self.read(item, reply)
        return found if isinstance(found, Fault) else None

    def ask_again(self, item: Item, reply: Reply, fault: Fault) -> ChatRequest:
        """The same question with the fault named; see `request_again`."""
        words = wording()
        complaint = words["ask_again"].get(fault.reason.value, words["ask_again"]["not_json"])
        found = fault.advice or (fault.detail if fault.reason in QUOTING else "")
        if fault.reason is Reason.UNSAFE and not fault.advice:  # read back from a journal
            unsafe = words["unsafe"].items()
            found = "；".join(one for rule, one in unsafe if f"{rule}: " in fault.detail)
        detail = f"（{found[:200]}）" if found else ""
        return request_again(
            self.request(item), reply, fault, f"{complaint}{words['ask_again_closing']}", detail
        )

    def read(self, item: Item, reply: Reply) -> CheckedAnswer | Fault:
        """Five steps from JSON, or one flowing text with the distortions it names."""
        if not self._is_json:
            labels = labels_named_in(reply.text, self._taxonomy)
            return self._checks.check_fused(item.question, item.grade, reply.text, labels)
        found = parse_object(reply.text, lambda value: set(STEP_NAMES) <= set(value))
        if isinstance(found, Fault):
            return self._checks.refusal(reply.text) or found
        if echo := find_echo(found, self._form):
            return echo
        return self._checks.check_object(item.question, item.grade, found)

    def provenance(self, reply: Reply) -> Provenance:
        return Provenance(
            model=self.service.model,
            endpoint_host=reply.host or self.service.host,
            prompt_id=self._prompt.name,
            prompt_sha256=self._prompt.sha256,
            sampling=self._sampling.described(),
            seed=self._sampling.seed,
            usage=reply.usage,
            finish_reason=reply.finish_reason,
            version=cbtqa.__version__,
            created_at=reply.created_at,
        )
