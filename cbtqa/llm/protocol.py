"""The OpenAI chat protocol: request bodies, reply bodies, and what an HTTP error means.

Every transport and the Batch API use it, so that all give the same `Reply` and the same errors, and
so that a key in what a server answers is masked before anything reads it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from cbtqa.endings import reason_text
from cbtqa.errors import (
    BadResponseError,
    EndpointAuthError,
    EndpointError,
    EndpointTimeoutError,
    RateLimitError,
)
from cbtqa.llm.chat import ChatRequest, Fault, Reply, split_reasoning
from cbtqa.llm.endpoint import Endpoint, ResponseFormat
from cbtqa.llm.server_words import Said, clean, meaning_of, shown
from cbtqa.records import Reason, Usage
from cbtqa.secrets import masked_pieces

MOST_NAME, MOST_TOKENS, MOST_WAIT_S = 200, 10**9, 1e10
"""Bounds of what a server says: letters of a model's name, tokens of a reply, seconds to wait."""
MOST_PARTS_DEPTH, MOST_FIELDS, MOST_BRACKETS = 8, 1_000, 100_000
_EVENTS = re.compile(rb"\s*(?:data|event|id|retry)?:")
"""How the lines of server-sent events begin."""


class EventStreamError(BadResponseError):
    """The server sends events, although no stream was asked for."""

    def __init__(self, said: str) -> None:
        super().__init__(
            f"the server streams, although no stream was asked for: {said}",
            status=200,
            hint="turn streaming off there, or try --extra '{\"stream\": false}'",
        )


class RequestRefusedError(EndpointError):
    """The endpoint refuses this one request for good; others may pass."""

    def __init__(self, message: str, status: int, reason: Reason, *, names_format: bool = False):
        super().__init__(message, status=status)
        self.reason, self.names_format = reason, names_format
        """True when the words of the refusal speak of the response format."""

    @property
    def fault(self) -> Fault:
        """The refusal as an item's fault."""
        return Fault(self.reason, str(self))


def request_body(
    request: ChatRequest, endpoint: Endpoint, rung: ResponseFormat, attempt: int
) -> dict[str, Any]:
    """The JSON body of one request; fields left to the server are not there at all."""
    sampling = request.sampling.for_attempt(attempt)
    body: dict[str, Any] = {"model": endpoint.model, "messages": list(request.messages)}
    for name in ("temperature", "top_p", "seed"):
        if (value := getattr(sampling, name)) is not None:
            body[name] = value
    if sampling.max_tokens is not None:
        body[endpoint.max_tokens_field] = sampling.max_tokens
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    if request.json_schema is not None and rung != "text":
        body["response_format"] = _response_format(request, rung)
    # a field that `extra` gives as null is left to the server
    return {name: value for name, value in (body | sampling.extra).items() if value is not None}


def _response_format(request: ChatRequest, rung: ResponseFormat) -> dict[str, Any]:
    if rung == "json_object":
        return {"type": "json_object"}
    schema = request.json_schema or {}
    # a run asks thousands of times with one schema object: judged once, by identity
    if id(schema) not in _strictness:
        if len(_strictness) >= 256:
            _strictness.clear()
        _strictness[id(schema)] = (schema, _is_strict(schema))
    _, is_strict = _strictness[id(schema)]
    named = {"name": request.schema_name, "schema": schema, "strict": is_strict}
    return {"type": "json_schema", "json_schema": named}


_strictness: dict[int, tuple[object, bool]] = {}
"""By the id of a schema: the schema itself, so that its id stays its own, and the verdict."""


def _is_strict(schema: object) -> bool:
    """True when every object closes its fields and requires all: what `strict` demands."""
    if isinstance(schema, list):
        return all(map(_is_strict, schema))
    if not isinstance(schema, Mapping):
        return True
    if "properties" in schema:
        closed = schema.get("additionalProperties") is False
        if not closed or set(schema.get("required", ())) != set(schema["properties"]):
            return False
    return all(map(_is_strict, schema.values()))


def parse_completion(data: bytes, latency_s: float, endpoint: Endpoint | None = None) -> Reply:
    """A reply from the bytes of a 200 answer.

    Raises:
        EventStreamError: events, although no stream was asked for.
        BadResponseError: not the protocol.
        EndpointError: an error body sent with status 200, mapped by its own code.
    """
    try:
        # millions of empty lists cost seconds and hundreds of megabytes to read
        body = json.loads(data if data.count(b"[") + data.count(b"{") <= MOST_BRACKETS else b"")
    except (ValueError, RecursionError):
        if _EVENTS.match(data[:64]):
            raise EventStreamError(shown(data)) from None
        raise BadResponseError(
            f"answered with no JSON: {shown(data)}",
            status=200,
            hint="is --endpoint the base address, such as http://HOST:PORT/v1?",
        ) from None
    return reply_of(body, latency_s, endpoint)


def reply_of(body: Any, latency_s: float, endpoint: Endpoint | None = None) -> Reply:
    """A reply from a decoded completion object; raises as `parse_completion`.

    Nothing in a body is taken for what it should be: what is no text is no text, what is no count
    is not counted.
    """
    choice = _first_choice(body)
    if choice is None or _error_told(body, choice):
        raise _error_inside(body, endpoint)
    message: dict[str, Any] = choice["message"]
    said = _parts_of(message.get("content"))
    if said is None:
        raise _error_inside(body, endpoint)
    text, thoughts = split_reasoning(clean("".join(said.texts)))
    apart = message.get("reasoning_content") or message.get("reasoning")
    if not isinstance(apart, str):
        apart = "".join(said.thoughts) or thoughts
    refused = _parts_of(message.get("refusal"))
    refusals = [*said.refusals, *(refused.texts if refused else ())]
    return Reply(
        text=text,
        finish_reason=_ending_in(body, choice),
        refusal=clean("".join(refusals)) or None,
        reasoning=None if apart is None else clean(apart),
        usage=usage_in(body),
        model=clean(body.get("model"))[:MOST_NAME],
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        latency_s=round(latency_s, 3),
    )


def _first_choice(body: Any) -> dict[str, Any] | None:
    """The first choice that has a message; None when there is none."""
    choices = body.get("choices") if isinstance(body, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    has_message = isinstance(choice, dict) and isinstance(choice.get("message"), dict)
    return choice if has_message else None


def _error_told(body: dict[str, Any], choice: dict[str, Any]) -> object:
    """The error that stands in a choice or beside the choices; something false when none does."""
    told = body.get("base_resp")  # MiniMax
    has_failed = isinstance(told, dict) and told.get("status_code") not in (None, 0, "0")
    return choice.get("error") or body.get("error") or (told if has_failed else None)


def _ending_in(body: dict[str, Any], choice: dict[str, Any]) -> str | None:
    # MiniMax marks a filtered answer beside the choices and lets it end with `stop`
    if body.get("output_sensitive") is True or body.get("input_sensitive") is True:
        return "content_filter"
    ended = reason_text(choice.get("finish_reason"))
    return None if ended is None else clean(ended)


def usage_in(body: dict[str, Any]) -> Usage:
    """The tokens that a body counts; what is no count is 0. It is a figure beside the reply."""
    counted = body.get("usage")
    if not isinstance(counted, dict):
        return Usage()
    prompt, made = (_count(counted.get(f"{part}_tokens")) for part in ("prompt", "completion"))
    return Usage(prompt_tokens=prompt, completion_tokens=made)


def _count(value: object) -> int:
    if isinstance(value, str):
        value = _number(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return 0
    return int(value) if 0 <= value < MOST_TOKENS else 0  # nan and infinity fail both


@dataclass
class _Parts:
    """What the content of a message holds, in order."""

    texts: list[str] = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)

    def add(self, content: object, into: list[str], depth: int = 0) -> bool:
        """Takes a part, or parts within it; False when something among them is none."""
        if isinstance(content, str):
            into.append(content)
        elif isinstance(content, list) and depth < MOST_PARTS_DEPTH:
            return all(self.add(part, into, depth + 1) for part in content)
        elif isinstance(content, dict) and depth < MOST_PARTS_DEPTH:
            kind = content.get("type")
            if kind in ("thinking", "reasoning"):
                into = self.thoughts
            elif kind == "refusal":
                into = self.refusals
            inner = next((content[name] for name in _TEXT_FIELDS if content.get(name)), None)
            return self.add(inner, into, depth + 1)
        else:
            return content is None
        return True


def _parts_of(content: object) -> _Parts | None:
    """The parts of a message's content; None for what is none.

    Some servers send a list of texts or typed objects; some decode the JSON object that was asked
    for and send the object itself.
    """
    if isinstance(content, dict) and "type" not in content and list(content) != ["text"]:
        content = written(content) or 0
    parts = _Parts()
    return parts if parts.add(content, parts.texts) else None


_TEXT_FIELDS = ("text", "value", "content", "thinking", "reasoning", "refusal")
"""Where typed parts keep their text: OpenAI, Mistral, Anthropic, gateways to them."""


def written(value: object) -> str | None:
    """An object as JSON text; None when it is nested too deep to be written."""
    try:
        return clean(json.dumps(value, ensure_ascii=False))
    except (ValueError, RecursionError):
        return None


def _error_inside(body: object, endpoint: Endpoint | None) -> EndpointError:
    """What a body without a usable choice means, by the code that it carries."""
    choice = _first_choice(body) or {}
    error = _error_told(body, choice) if isinstance(body, dict) else None
    code = error.get("code") if isinstance(error, dict) else None
    status = (
        code if isinstance(code, int) else int(_number(code) or 0) if isinstance(code, str) else 0
    )
    # a large body without an error tells nothing by its thousands of values
    is_large = not error and isinstance(body, list | dict) and len(body) > MOST_FIELDS
    said = f"{len(body)} values" if is_large else written(error or body)  # type: ignore[arg-type]
    text = said or "an object nested too deep"
    return error_of(status if 400 <= status < 600 else 200, {}, text, endpoint)


def error_of(
    status: int, headers: Mapping[str, str], body: bytes | str, endpoint: Endpoint | None = None
) -> EndpointError:
    """What an answer other than a completion means: by the provider's code, then by its status.

    `is_retryable`: the same request may help later. A `RequestRefusedError` concerns one request,
    every other error the whole run.
    """
    text = body.decode("utf-8", "replace") if isinstance(body, bytes) else body
    said = f"answered {status if status != 200 else 'with no completion'}: {shown(text)}"
    if 300 <= status < 400:
        place = shown(headers.get("Location", "elsewhere"))
        return EndpointError(f"redirects to {place}", status=status, hint="give that address")
    speaks = Said.of(text)
    meaning = meaning_of(status, speaks, endpoint.host if endpoint else "")
    if meaning == "filter":
        return RequestRefusedError(said, status, Reason.CONTENT_FILTER)
    if meaning == "money":
        return EndpointError(said, status=status, hint="the account has no credit or quota left")
    if meaning == "wait" or status in (429, 529):
        return RateLimitError(said, status=status, retry_after_s=retry_after_s(headers))
    if meaning == "key" or status in (401, 403):
        where = f"check the key in {endpoint.key_env}" if endpoint else "check the key"
        return EndpointAuthError(masked_pieces(said), status=status, hint=where)
    if speaks.names_format:
        return RequestRefusedError(said, status, Reason.BAD_REQUEST, names_format=True)
    return _error_of_status(status, headers, said)


def _error_of_status(status: int, headers: Mapping[str, str], said: str) -> EndpointError:
    if status in (404, 405):
        return EndpointError(said, status=status, hint="check --endpoint and --model")
    if status == 503:
        return RateLimitError(said, status=status, retry_after_s=retry_after_s(headers))
    if status == 408:
        return EndpointTimeoutError(said, status=status)
    if status < 400 or status >= 500 or status in (409, 425):
        return BadResponseError(said, status=status)
    return RequestRefusedError(said, status, Reason.BAD_REQUEST)


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds that `retry-after-ms` or `Retry-After` (seconds or HTTP date) asks to wait."""
    if (wait := _number(headers.get("retry-after-ms", ""))) is not None:
        return wait / 1000
    text = headers.get("Retry-After", headers.get("retry-after", ""))
    if (wait := _number(text)) is not None:
        return wait
    try:
        at = parsedate_to_datetime(text)
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    return min(MOST_WAIT_S, max(0.0, (at - datetime.now(UTC)).total_seconds()))


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return min(value, MOST_WAIT_S) if 0 <= value < float("inf") else None


def duration_s(text: str) -> float | None:
    """Seconds of a duration in rate-limit headers (`12ms`, `1.5s`, `6m0s`, `30`), or None."""
    if (plain := _number(text)) is not None:
        return plain
    parts = re.findall(r"([\d.]+)(ms|[smhd])", text)
    numbers = [_number(digits) for digits, _ in parts]
    if not parts or None in numbers or "".join(map("".join, parts)) != text.strip():
        return None
    units = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
    return sum((n or 0.0) * units[unit] for n, (_, unit) in zip(numbers, parts, strict=True))
