"""The OpenAI chat protocol: request bodies, reply bodies, and what an HTTP error means.

Every transport and the Batch API use it, so that all give the same `Reply` and the same errors, and
so that a key in what a server answers is masked before anything reads it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from pydantic import ValidationError

from cbtqa.endings import reason_text
from cbtqa.errors import (
    BadResponseError,
    EndpointAuthError,
    EndpointError,
    EndpointTimeoutError,
    RateLimitError,
)
from cbtqa.llm.chat import ChatRequest, Fault, Reply, split_reasoning
from cbtqa.llm.endpoint import Endpoint, ResponseFormat, preset_file
from cbtqa.records import Reason, Usage
from cbtqa.secrets import masked, masked_value

SHOWN = 300
"""Characters of a server's message that an error quotes."""


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


def parse_completion(data: bytes, latency_s: float) -> Reply:
    """A reply from the bytes of a 200 answer.

    Raises:
        BadResponseError: not the protocol.
        EndpointError: an error body sent with status 200, mapped by its own code.
    """
    try:
        body = json.loads(data)
    except ValueError:
        raise BadResponseError(f"answered with no JSON: {_shown(data)}", status=200) from None
    return reply_of(body, latency_s)


def reply_of(body: Any, latency_s: float) -> Reply:
    """A reply from a decoded completion object; raises as `parse_completion`."""
    body = masked_value(body)
    try:
        choice = body["choices"][0]
        message = choice["message"]
        text = _text_of(message.get("content"))
        refusal = _text_of(message.get("refusal")) or None
        counted = body.get("usage") or {}
        usage = Usage(
            prompt_tokens=counted.get("prompt_tokens") or 0,
            completion_tokens=counted.get("completion_tokens") or 0,
        )
    except (KeyError, IndexError, TypeError, AttributeError, ValidationError):
        raise _error_inside(body) from None
    text, thoughts = split_reasoning(text)
    apart = message.get("reasoning_content") or message.get("reasoning")
    return Reply(
        text=text,
        finish_reason=reason_text(choice.get("finish_reason")),
        refusal=refusal,
        reasoning=_encodable(apart) if isinstance(apart, str) else thoughts,
        usage=usage,
        model=str(body.get("model") or ""),
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        latency_s=round(latency_s, 3),
    )


def _text_of(content: object) -> str:
    """Message content as text; some servers send a list of parts."""
    if content is None:
        return ""
    if isinstance(content, str):
        return _encodable(content)
    if isinstance(content, list):
        # masked once more: each part may hold a piece of a key
        return _encodable(masked("".join(str(part.get("text", "")) for part in content)))
    raise TypeError


def _encodable(text: str) -> str:
    """The text with lone surrogates, which JSON escapes can smuggle in, made visible."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _error_inside(body: object) -> EndpointError:
    error = body.get("error") if isinstance(body, dict) else None
    code = error.get("code") if isinstance(error, dict) else None
    text = json.dumps(body, ensure_ascii=False)
    if isinstance(code, int) and 400 <= code < 600:
        return error_of(code, {}, text)
    if error and _has_mark(text, preset_file().content_filter_marks):
        return error_of(400, {}, text)
    return BadResponseError(f"answered with no completion: {_shown(text)}", status=200)


def error_of(status: int, headers: Mapping[str, str], body: bytes | str) -> EndpointError:
    """What an answer other than a completion means.

    `is_retryable`: the same request may help later. A `RequestRefusedError` concerns one request,
    every other error the whole run.
    """
    text = masked(body.decode("utf-8", "replace") if isinstance(body, bytes) else body)
    marks = preset_file()
    said = f"answered {status}: {_shown(text)}"
    if 300 <= status < 400:
        place = _shown(headers.get("Location", "elsewhere"))
        return EndpointError(f"redirects to {place}", status=status, hint="give that address")
    if status == 402 or (status in (400, 403, 429) and _has_mark(text, marks.no_credit_marks)):
        return EndpointError(said, status=status, hint="the account has no credit or quota left")
    if status in (400, 403) and _has_mark(text, marks.content_filter_marks):
        return RequestRefusedError(said, status, Reason.CONTENT_FILTER)
    if status in (401, 403):
        # the server's words are left out: they may repeat a part of the key
        return EndpointAuthError(f"answered {status}: the key is missing or refused", status=status)
    if status in (404, 405):
        return EndpointError(said, status=status, hint="check --endpoint and --model")
    if status in (429, 503, 529):
        return RateLimitError(said, status=status, retry_after_s=retry_after_s(headers))
    if status == 408:
        return EndpointTimeoutError(said, status=status)
    if status >= 500 or status in (409, 425):
        return BadResponseError(said, status=status)
    names_format = _has_mark(text, marks.format_marks)
    return RequestRefusedError(said, status, Reason.BAD_REQUEST, names_format=names_format)


def described(error: BaseException) -> str:
    """A foreign exception by its type and its message; never its repr, which may hold headers."""
    # aiohttp's str adds the address, and its repr the request with all its headers
    message = getattr(error, "message", None)
    said = _shown(message if isinstance(message, str) else str(error))
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def _has_mark(text: str, marks: tuple[str, ...]) -> bool:
    lowered = text.lower()
    return any(mark in lowered for mark in marks)


def _shown(text: bytes | str) -> str:
    if isinstance(text, bytes):
        text = text.decode("utf-8", "replace")
    # masked before it is cut: a piece of a key would not be found
    text = masked(" ".join(text.split()))
    return text if len(text) <= SHOWN else text[:SHOWN] + "..."


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds that `retry-after-ms` or `Retry-After` (seconds or HTTP date) asks to wait."""
    if (wait := _number(headers.get("retry-after-ms", ""))) is not None:
        return wait / 1000
    text = headers.get("Retry-After", headers.get("retry-after", ""))
    if (wait := _number(text)) is not None:
        return wait
    try:
        at = parsedate_to_datetime(text)
    except ValueError:
        return None
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    return max(0.0, (at - datetime.now(UTC)).total_seconds())


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 <= value < float("inf") else None


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
