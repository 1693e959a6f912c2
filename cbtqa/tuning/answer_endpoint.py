"""Answers from an OpenAI-compatible endpoint: the engine's task, and its limits.

A prediction is taken as it comes: nothing is asked again because of what a reply says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cbtqa.llm.batch import run_batch
from cbtqa.llm.chat import ChatRequest, Fault, Reply, Sampling
from cbtqa.llm.endpoint import Endpoint
from cbtqa.llm.journal import Journal
from cbtqa.llm.limits import Limits
from cbtqa.llm.progress import Progress
from cbtqa.tuning.answer_checks import AnswerChecks
from cbtqa.tuning.asked import AskedItem
from cbtqa.tuning.generate_settings import GenerateSettings, SpeakerSettings


def sampling_of(settings: SpeakerSettings) -> Sampling:
    """The request's sampling; what the protocol has no field for goes along as vLLM takes it."""
    more: dict[str, float | int] = {}
    if settings.top_k:
        more["top_k"] = settings.top_k
    if settings.repetition_penalty != 1:
        more["repetition_penalty"] = settings.repetition_penalty
    return Sampling(
        temperature=settings.temperature,
        top_p=settings.top_p if settings.top_p < 1 else None,
        max_tokens=settings.max_new_tokens,
        seed=settings.seed,
        extra=more,
    )


class AnswerTask:
    """The engine's task: one question, one reply."""

    def __init__(self, settings: GenerateSettings, checks: AnswerChecks) -> None:
        self._sampling, self._checks = sampling_of(settings), checks

    def key(self, item: AskedItem) -> str:
        """See `AskedItem.key`."""
        return item.key

    def request(self, item: AskedItem) -> ChatRequest:
        """The question as messages."""
        return ChatRequest(item.messages, sampling=self._sampling)

    def check(self, item: AskedItem, reply: Reply) -> Fault | None:
        """The fault of a reply that holds text."""
        return self._checks.leak_in(item, reply.text)

    def ask_again(self, item: AskedItem, reply: Reply, fault: Fault) -> None:
        """Never: a second try would flatter the system."""


def answer_by_endpoint(
    items: Sequence[AskedItem],
    settings: GenerateSettings,
    endpoint: Endpoint,
    checks: AnswerChecks,
    journal: Journal,
    on_progress: Callable[[Progress], None] | None,
) -> None:
    """Sends what the journal has no answer for; see `run_batch` for what stops it."""
    limits = Limits(
        in_flight=settings.in_flight,
        rpm=settings.rpm,
        tpm=settings.tpm,
        timeout_s=settings.timeout_s,
        max_attempts=1,
    )
    run_batch(
        items,
        AnswerTask(settings, checks),
        endpoint,
        journal,
        limits,
        n_total=len(items),
        on_progress=on_progress,
    )
