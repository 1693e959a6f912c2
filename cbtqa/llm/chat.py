"""What is said to a model and what comes back: requests, sampling, replies, faults."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import Field

from cbtqa.endings import Ending, ending_of
from cbtqa.records import Reason, Record, Usage

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


_THINK = re.compile(r"\s*<think(?:ing)?>(.*?)</think(?:ing)?>", re.DOTALL)
_OPEN = re.compile(r"\s*<think(?:ing)?>")
_CLOSE = re.compile(r"</think(?:ing)?>")


def split_reasoning(text: str) -> tuple[str, str | None]:
    """`(text, reasoning or None)`: think blocks at the head of a reply are no text.

    A block that never closes was cut: all of it is reasoning. A closing mark without an opening
    one comes from chat templates that open the block inside the prompt.
    """
    if "think" not in text:
        return text, None
    thoughts = []
    while match := _THINK.match(text):
        thoughts.append(match[1].strip())
        text = text[match.end() :]
    if opened := _OPEN.match(text):
        thoughts.append(text[opened.end() :].strip())
        text = ""
    elif not thoughts and (closed := _CLOSE.search(text)) and "<think" not in text:
        thoughts.append(text[: closed.start()].strip())
        text = text[closed.end() :]
    return (text.lstrip(), "\n".join(thoughts)) if thoughts else (text, None)


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
