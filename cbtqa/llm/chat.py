"""What is said to a model and what comes back: requests, sampling, replies, faults."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import Field

from cbtqa.endings import Ending, ending_of
from cbtqa.records import Reason, Record, Usage
from cbtqa.text_faults import TextFault

Message = Mapping[str, str]
"""`{"role": ..., "content": ...}`."""


class Sampling(Record):
    """How the model draws its words. None leaves the choice to the server."""

    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    max_tokens: int | None = Field(default=None, gt=0)
    """Most tokens of a reply, reasoning included where the server counts it so."""
    seed: int | None = None
    """Raised by one with every further attempt on an item, so that a re-ask can differ."""
    stop: tuple[str, ...] = ()
    extra: dict[str, Any] = Field(default_factory=dict)
    """Further fields of the request body, such as `{"enable_thinking": false}`; None takes a field
    out."""

    def for_attempt(self, attempt: int) -> Sampling:
        """The same sampling for the n-th attempt on an item, counted from 1."""
        if self.seed is None or attempt == 1:
            return self
        return self.model_copy(update={"seed": self.seed + attempt - 1})

    def described(self) -> dict[str, float | int | str]:
        """The values that were set, flat, as `records.Provenance` keeps them."""
        plain = self.model_dump(exclude_none=True, exclude={"stop", "extra"})
        plain |= {"stop": " ".join(map(repr, self.stop))} if self.stop else {}
        return plain | {
            name: value if isinstance(value, int | float | str) else repr(value)
            for name, value in self.extra.items()
        }


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One question to a model."""

    messages: Sequence[Message]
    json_schema: Mapping[str, Any] | None = None
    """JSON schema of the object wanted back; None asks for plain text."""
    schema_name: str = "answer"
    sampling: Sampling = field(default_factory=Sampling)


@dataclass(frozen=True, slots=True)
class Reply:
    """What a model answered, reasoning kept apart from the text."""

    text: str
    """Without think blocks; empty when there is none."""
    finish_reason: str | None = None
    refusal: str | None = None
    """The model's words of refusal, where the protocol carries them."""
    reasoning: str | None = None
    usage: Usage = field(default_factory=Usage)
    model: str = ""
    """As the server names itself."""
    created_at: str = ""
    """UTC, ISO 8601: when the reply arrived."""
    latency_s: float = 0.0
    host: str = ""
    """Which of the endpoints answered; empty when no endpoint was asked."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a reply, or a request, was rejected."""

    reason: Reason
    detail: str = ""
    """What was found and what was expected, for a person and for the model asked again."""
    advice: str = ""
    """The same for the model alone, in its language and so that it can act on it. Not kept."""


REPAIRABLE = frozenset(
    {
        *(Reason.MISSING_STEP, Reason.STEP_TOO_SHORT, Reason.STEP_TOO_LONG, Reason.HEADINGS),
        *(Reason.MARKUP, Reason.PLACEHOLDER, Reason.WRONG_SCRIPT, Reason.BAD_LABEL),
        *(Reason.EVIDENCE_NOT_FOUND, Reason.PERSONAL_DATA, Reason.UNSAFE, Reason.STYLE),
    }
)
"""Faults of a reply that is good but for one thing, which a small change mends."""


def request_again(
    request: ChatRequest, reply: Reply, fault: Fault, complaint: str, detail: str = ""
) -> ChatRequest:
    """The request once more, with what was wrong; the attempt's number changes its seed.

    Only a reply that a small change mends is shown again, with the detail. A loop, an echo or a
    cut would cost its tokens again and draw the next reply towards itself: it is asked afresh.
    """
    messages = list(request.messages)
    if fault.reason in REPAIRABLE and reply.text.strip():
        messages.append({"role": "assistant", "content": reply.text})
        messages.append({"role": "user", "content": complaint + detail})
    else:
        last = messages[-1]
        messages[-1] = {**last, "content": f"{last['content']}\n\n{complaint}"}
    return replace(request, messages=messages)


_THOUGHT = r"(?:(?:seed|antml):)?think(?:ing)?|thoughts?|reasoning|思考(?:过程)?"
_OPEN = re.compile(rf"\s*(?:<(?:{_THOUGHT})>|\[THINK\]|◁think▷)", re.IGNORECASE)
_CLOSE = re.compile(rf"</(?:{_THOUGHT})>|\[/THINK\]|◁/think▷", re.IGNORECASE)


def split_reasoning(text: str) -> tuple[str, str | None]:
    """`(text, reasoning or None)`: thinking at the head of a reply is no text.

    A block that never closes was cut: all of it is reasoning. A closing mark without an opening
    one comes from chat templates that open the block inside the prompt. What has other marks, or
    stands elsewhere, is found by `text_faults` in the text that is left.
    """
    thoughts = []
    while opened := _OPEN.match(text):
        closed = _CLOSE.search(text, opened.end())
        end, rest = (closed.start(), closed.end()) if closed else (len(text), len(text))
        thoughts.append(text[opened.end() : end].strip())
        text = text[rest:]
    if not thoughts and (closed := _CLOSE.search(text)) and not _OPEN.search(text):
        thoughts.append(text[: closed.start()].strip())
        text = text[closed.end() :]
    return (text.lstrip(), "\n".join(thoughts)) if thoughts else (text, None)


def fault_of_text(found: TextFault) -> Fault:
    """What the list of `text_faults` found, as the fault of a reply."""
    return Fault(Reason(found.kind), found.found)


def fault_of_reply(reply: Reply) -> Fault | None:
    """The fault of a refused, filtered, cut or empty reply, whatever was asked; None for text."""
    ending = ending_of(reply.finish_reason)
    if ending is Ending.CONTENT_FILTER:
        said = f"the provider's filter stopped the reply ({reply.finish_reason})"
        return Fault(Reason.CONTENT_FILTER, said)
    if reply.refusal:
        return Fault(Reason.REFUSAL, reply.refusal)
    if ending is Ending.CUT:
        n_tokens = reply.usage.completion_tokens
        where = "at the token limit"
        if reply.finish_reason not in ("length", "max_tokens"):
            where = f"with finish reason '{reply.finish_reason}', not as a whole answer"
        return Fault(Reason.CUT, f"the reply ended {where} ({n_tokens} tokens)")
    if not reply.text.strip():
        had = "only reasoning" if reply.reasoning else "nothing"
        return Fault(Reason.EMPTY, f"the reply holds {had}")
    return None
