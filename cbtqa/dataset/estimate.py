"""What a build would cost, counted on the real questions and prompts; nothing is sent."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

from cbtqa.dataset.build import Build
from cbtqa.dataset.folder import JOURNAL_NAME
from cbtqa.dataset.run import prepare
from cbtqa.dataset.settings import BuildSettings
from cbtqa.dataset.teachers import EndpointTeacher
from cbtqa.llm.chat import ChatRequest
from cbtqa.llm.cost import REPLY_TOKENS, plan_run
from cbtqa.llm.journal import Journal
from cbtqa.records import Record, Rejection
from cbtqa.settings import Resolved


class BuildEstimate(Record):
    """Numbers of a dry run, if every question were answered at its first attempt."""

    n_questions: int = 0
    n_rejected: int = 0
    """Rows turned away before anything would be asked."""
    n_done: int = 0
    """Answered in the journal already."""
    n_requests: int = 0
    prompt_tokens: int = 0
    counted_by: str = ""
    """How prompt tokens were counted."""
    completion_tokens: int = 0
    length_from: str = ""
    """Where the length of an answer comes from."""
    cost: float | None = None
    """None when nothing is paid or no price is known."""
    currency: str | None = None
    price_as_of: str | None = None
    seconds: float | None = None
    """At the limits given; None for the template teacher."""
    bound_by: str = ""
    """Which limit decides the time."""


def estimate_build(resolved: Resolved[BuildSettings]) -> BuildEstimate:
    """Counts requests, tokens, price and time of a build.

    Raises:
        CbtqaError: the errors of `run.prepare`.
    """
    build = prepare(resolved, sends=False)
    settings, teacher = build.settings, build.teacher
    counts = {"n_questions": 0, "n_rejected": 0, "n_done": 0}
    path = settings.out / JOURNAL_NAME
    with Journal(path, read_only=True) if path.exists() else nullcontext() as journal:
        requests = _requests(build, journal, counts)
        if not isinstance(teacher, EndpointTeacher):
            for _ in requests:
                pass
            return BuildEstimate(**counts)
        length, length_from = _answer_length(journal)
        plan = plan_run(
            requests,
            teacher.system,
            in_flight=settings.in_flight,
            rpm=settings.rpm,
            tpm=settings.tpm,
            price=teacher.price,
            reply_tokens=length,
        )
    return BuildEstimate(
        **counts,
        n_requests=plan.n_requests,
        prompt_tokens=plan.prompt_tokens,
        counted_by=plan.counted_by,
        completion_tokens=plan.completion_tokens,
        length_from=length_from,
        cost=plan.cost,
        currency=plan.price.currency if plan.price else None,
        price_as_of=plan.price.as_of or None if plan.price else None,
        seconds=plan.seconds,
        bound_by=plan.bound_by,
    )


def _requests(
    build: Build, journal: Journal | None, counts: dict[str, int]
) -> Iterator[ChatRequest]:
    """The requests that are still to be sent; keeps the counts on the way."""
    for entry in build.items():
        if isinstance(entry, Rejection):
            counts["n_rejected"] += 1
            continue
        item = entry[0]
        counts["n_questions"] += 1
        if journal is not None and journal.standings([item.key]):
            counts["n_done"] += 1
        elif isinstance(build.teacher, EndpointTeacher):
            yield build.teacher.request(item)


def _answer_length(journal: Journal | None) -> tuple[int, str]:
    """Mean completion tokens of an answer, and where the number comes from."""
    totals = journal.totals() if journal else None
    if totals and totals.n_replies and totals.usage.completion_tokens:
        mean = totals.usage.completion_tokens / totals.n_replies
        return round(mean), f"mean of {totals.n_replies:,} replies in the journal"
    return REPLY_TOKENS, f"{REPLY_TOKENS} an answer, assumed"
