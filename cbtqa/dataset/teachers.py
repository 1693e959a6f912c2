"""Who writes the answers, and the teacher behind an endpoint (`offline` holds the embedded one).

Every teacher puts its replies into the run's journal and reads them back from it the same way, so
that a run is finished from its journal alone, whoever wrote it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import cbtqa
from cbtqa.dataset.check import AnswerChecks, CheckedAnswer, answer_json_schema, wording
from cbtqa.dataset.instruction import Instruction, Item
from cbtqa.dataset.settings import BuildSettings
from cbtqa.distortions.labellers import labels_named_in
from cbtqa.distortions.taxonomy import Taxonomy
from cbtqa.errors import ConfigError
from cbtqa.llm.batch import run_batch
from cbtqa.llm.chat import ChatRequest, Fault, Message, Reply, Sampling
from cbtqa.llm.cluster import Cluster
from cbtqa.llm.cost import Budget, Price, find_price
from cbtqa.llm.endpoint import Endpoint
from cbtqa.llm.journal import Journal
from cbtqa.llm.limits import Limits
from cbtqa.llm.progress import Progress
from cbtqa.llm.structured import parse_object
from cbtqa.prompts import load_prompt
from cbtqa.records import STEP_NAMES, Provenance

OnProgress = Callable[[Progress], None]


class Teacher(Protocol):
    """Writes answers into a journal, and reads them back."""

    @property
    def system(self) -> str:
        """Short name in the dataset's `system` column."""

    @property
    def prompts(self) -> Mapping[str, str]:
        """Prompt name to SHA-256 of its file."""

    @property
    def is_paid(self) -> bool:
        """True when every reply costs time or money at an endpoint."""

    @property
    def price(self) -> Price | None:
        """Price of its tokens; None when nobody knows or nothing is paid."""

    def fingerprint(self) -> dict[str, str]:
        """Everything that, when changed, makes the journal's replies those of another run."""

    def generate(
        self,
        items: Iterable[Item],
        journal: Journal,
        *,
        n_total: int | None,
        on_progress: OnProgress | None,
    ) -> None:
        """Answers every item that the journal has no final outcome for."""

    def read(self, item: Item, reply: Reply) -> CheckedAnswer | Fault:
        """The checked answer in a reply, or why it is none."""

    def provenance(self, reply: Reply) -> Provenance:
        """Where the reply comes from."""


class EndpointTeacher:
    """A model behind an OpenAI-compatible endpoint; also the engine's task."""

    is_paid = True

    def __init__(self, settings: BuildSettings, taxonomy: Taxonomy, endpoint: Endpoint) -> None:
        self._endpoint, self._settings = endpoint, settings
        self._prompt = load_prompt(settings.prompt)
        self._is_json = self._prompt.header.output == "json"
        self._taxonomy = taxonomy
        self._schema = answer_json_schema(taxonomy) if self._is_json else None
        self._instruction = Instruction(settings, self._prompt, taxonomy)
        self._sampling = Sampling(
            temperature=settings.temperature,
            top_p=settings.top_p,
            max_tokens=settings.max_tokens,
            seed=settings.seed,
        )
        self._checks = AnswerChecks(
            taxonomy,
            f"answer:{endpoint.model}",
            settings.min_step_chars,
            settings.max_step_chars,
            self._prompt,
        )
        self.system = endpoint.model
        self.price = price_from(settings, endpoint)
        self.prompts = {self._prompt.name: self._prompt.sha256}

    def fingerprint(self) -> dict[str, str]:
        """Prompt, parts, model, host and sampling."""
        return {
            "teacher": "endpoint",
            "model": self._endpoint.model,
            "endpoint_host": self._endpoint.host,
            "prompt": self._prompt.name,
            "prompt_sha256": self._prompt.sha256,
            "instruction_sha256": self._instruction.sha256,
            "taxonomy": self._taxonomy.id,
            "sampling": json.dumps(self._sampling.described(), sort_keys=True),
        }

    def generate(
        self,
        items: Iterable[Item],
        journal: Journal,
        *,
        n_total: int | None,
        on_progress: OnProgress | None,
    ) -> None:
        """Sends what is not answered yet; `llm.batch` and `llm.cluster` say what stops it."""
        settings = self._settings
        limits = Limits(
            in_flight=settings.in_flight,
            rpm=settings.rpm,
            tpm=settings.tpm,
            timeout_s=settings.timeout_s,
            max_attempts=settings.max_attempts,
        )
        budget = Budget(settings.budget, settings.budget_tokens, self.price)
        options: dict[str, Any] = {
            "budget": budget if settings.budget or settings.budget_tokens else None,
            "price": self.price,
            "n_total": n_total,
            "on_progress": on_progress,
        }
        if settings.cluster:
            options["cluster"] = Cluster(settings.cluster, settings.cluster_actors)
        run_batch(items, self, self._endpoint, journal, limits, **options)

    # --- the engine's task -----------------------------------------------------------------------

    def key(self, item: Item) -> str:
        """See `Item.key`."""
        return item.key

    def request(self, item: Item) -> ChatRequest:
        """The first request for an item."""
        return ChatRequest(
            self._instruction.messages(item), json_schema=self._schema, sampling=self._sampling
        )

    def check(self, item: Item, reply: Reply) -> Fault | None:
        """The fault of a reply, or None when it will do."""
        found = self.read(item, reply)
        return found if isinstance(found, Fault) else None

    def ask_again(self, item: Item, reply: Reply, fault: Fault) -> ChatRequest:
        """The same conversation with the faulty reply and the fault named."""
        words = wording()
        complaint = words["ask_again"].get(fault.reason.value, words["ask_again"]["not_json"])
        messages: list[Message] = list(self._instruction.messages(item))
        if reply.text:
            messages.append({"role": "assistant", "content": reply.text})
        detail = f"（{fault.detail[:200]}）" if fault.detail else ""
        closing = words["ask_again_closing"]
        messages.append({"role": "user", "content": f"{complaint}{detail}\n{closing}"})
        return ChatRequest(messages, json_schema=self._schema, sampling=self._sampling)

    # --- reading back ----------------------------------------------------------------------------

    def read(self, item: Item, reply: Reply) -> CheckedAnswer | Fault:
        """Five steps from JSON, or one flowing text with the distortions it names."""
        if not self._is_json:
            labels = labels_named_in(reply.text, self._taxonomy)
            return self._checks.check_fused(item.question, item.risk, reply.text, labels)
        found = parse_object(reply.text, _has_all_steps)
        if isinstance(found, Fault):
            return self._checks.refusal(reply.text) or found
        return self._checks.check_object(item.question, item.risk, found)

    def provenance(self, reply: Reply) -> Provenance:
        """Model, host, prompt, sampling, tokens."""
        return Provenance(
            model=self._endpoint.model,
            endpoint_host=reply.host or self._endpoint.host,
            prompt_id=self._prompt.name,
            prompt_sha256=self._prompt.sha256,
            sampling=self._sampling.described(),
            seed=self._sampling.seed,
            usage=reply.usage,
            finish_reason=reply.finish_reason,
            version=cbtqa.__version__,
            created_at=reply.created_at,
        )


def price_from(settings: BuildSettings, endpoint: Endpoint) -> Price | None:
    """The price given by flags, else that of the dated table, else None.

    A local endpoint has no price of its own.

    Raises:
        ConfigError: a budget in money without any price.
    """
    if settings.price_in is not None and settings.price_out is not None:
        return Price(input=settings.price_in, output=settings.price_out, currency="")
    if (settings.price_in is None) != (settings.price_out is None):
        raise ConfigError("--price-in and --price-out go together")
    known = None if endpoint.is_local else find_price(endpoint.model)
    if known is None and settings.budget is not None:
        raise ConfigError(
            f"--budget: no price is known for {endpoint.model}",
            hint="add --price-in and --price-out, or use --budget-tokens",
        )
    return known


def _has_all_steps(value: Mapping[str, Any]) -> bool:
    return set(STEP_NAMES) <= set(value)
