"""What a build would cost, counted on the real questions and prompts; nothing is sent."""

from __future__ import annotations

from pydantic import Field

from cbtqa.dataset.folder import JOURNAL_NAME
from cbtqa.dataset.run import prepare
from cbtqa.dataset.settings import BuildSettings
from cbtqa.llm.cost import token_counter
from cbtqa.llm.journal import Journal
from cbtqa.records import Record, Rejection, Usage
from cbtqa.settings import Resolved

ASSUMED_COMPLETION_TOKENS = 600
"""Tokens of one answer when the journal holds none yet; about 500 to 900 Chinese characters."""
ASSUMED_LATENCY_S = 20.0
"""Seconds of one reply when no rate limit is given; hosted models take 5 to 40."""


class BuildEstimate(Record):
    """Numbers of a dry run."""

    n_questions: int
    n_rejected: int
    """Rows turned away before anything would be asked."""
    n_done: int
    """Answered in the journal already."""
    n_requests: int
    """Without repeats of faulty replies."""
    prompt_tokens: int
    completion_tokens: int
    tokenizer: str
    """How prompt tokens were counted."""
    basis: str
    """Where the length of an answer comes from."""
    price: float | None = Field(default=None)
    """None when nothing is paid or no price is known."""
    currency: str | None = None
    seconds: float | None = None
    """None for the template teacher."""
    pace: str = ""
    """Which limit decides the time."""


def estimate_build(resolved: Resolved[BuildSettings]) -> BuildEstimate:
    """Counts requests, tokens, price and time of a build.

    Raises:
        the errors of `run.prepare`.
    """
    build = prepare(resolved)
    settings, teacher = build.settings, build.teacher
    count_tokens, tokenizer = token_counter(settings.model)
    path = settings.out / JOURNAL_NAME
    journal = Journal(path, read_only=True) if path.exists() else None
    n_questions = n_rejected = n_done = prompt_tokens = 0
    for entry in build.items():
        if isinstance(entry, Rejection):
            n_rejected += 1
            continue
        n_questions += 1
        item = entry[0]
        if journal is not None and item.key in journal.standings([item.key]):
            n_done += 1
            continue
        prompt_tokens += sum(count_tokens(text) for text in teacher.prompt_texts(item))
    n_requests = n_questions - n_done if teacher.is_paid else 0
    each, basis = _answer_length(journal)
    completion_tokens = round(n_requests * each)
    if journal is not None:
        journal.close()
    usage = Usage(prompt_tokens=prompt_tokens, completion_tokens=completion_tokens)
    seconds, pace = _seconds(settings, n_requests, usage)
    price = teacher.price
    return BuildEstimate(
        n_questions=n_questions,
        n_rejected=n_rejected,
        n_done=n_done,
        n_requests=n_requests,
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        tokenizer=tokenizer,
        basis=basis,
        price=price.of(usage) if price else None,
        currency=price.currency if price else None,
        seconds=seconds if teacher.is_paid else None,
        pace=pace,
    )


def _answer_length(journal: Journal | None) -> tuple[float, str]:
    """Mean completion tokens of an answer, and where the number comes from."""
    totals = journal.totals() if journal else None
    if totals and totals.n_replies and totals.usage.completion_tokens:
        mean = totals.usage.completion_tokens / totals.n_replies
        return mean, f"mean of {totals.n_replies:,} replies in the journal"
    return float(ASSUMED_COMPLETION_TOKENS), f"{ASSUMED_COMPLETION_TOKENS} an answer, assumed"


def _seconds(settings: BuildSettings, n_requests: int, usage: Usage) -> tuple[float, str]:
    """The longest of what the limits allow, and its name."""
    n_tokens = usage.prompt_tokens + usage.completion_tokens
    bounds = {
        f"{settings.in_flight} in flight, {ASSUMED_LATENCY_S:.0f} s a reply, assumed": (
            n_requests / settings.in_flight * ASSUMED_LATENCY_S
        )
    }
    if settings.rpm:
        bounds[f"{settings.rpm:,} requests a minute"] = 60 * n_requests / settings.rpm
    if settings.tpm:
        bounds[f"{settings.tpm:,} tokens a minute"] = 60 * n_tokens / settings.tpm
    pace = max(bounds, key=lambda name: bounds[name])
    return bounds[pace], pace
