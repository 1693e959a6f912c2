"""What a run costs: prices, tokens, the budget, and the numbers of a dry run."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from importlib.resources import files
from math import ceil

from pydantic import Field

from cbtqa.errors import ConfigError
from cbtqa.llm.chat import ChatRequest
from cbtqa.plain_values import parse_yaml
from cbtqa.records import Record, Usage

REPLY_TOKENS = 600
"""Taken for a reply when nobody says more: five steps of 100-200 Chinese characters; assumed."""
LATENCY_S = 10.0
"""Seconds of one reply; 2-20 s is usual, 10 is assumed."""
MESSAGE_TOKENS = 4
"""Marks round each message in the usual chat templates; assumed."""
_TOKENS_OF = (
    (re.compile(r"[\u3400-\u9fff\U00020000-\U0003ffff]"), 0.55),
    (re.compile(r"[^\x00-\x7f\u3400-\u9fff\U00020000-\U0003ffff]"), 0.9),
    (re.compile(r"[A-Za-z]"), 0.22),
    (re.compile(r"[0-9]|[!-/:-@\[-`{-~]|\n+"), 1.0),
)
"""Chinese characters; other wide ones, mostly punctuation; Latin letters; digits, ASCII marks and
line breaks. Blanks belong to the word behind them."""
COUNTED_REQUESTS = 500
"""Requests whose tokens a dry run counts before it begins to take every 2nd, 4th, 8th..."""


class Price(Record):
    """Money for a million tokens."""

    input: float = Field(ge=0)
    output: float = Field(ge=0)
    currency: str = "USD"
    as_of: str = ""
    """Year and month of the page it was read from; empty when a person gave the price."""
    source: str = ""

    def of(self, usage: Usage) -> float:
        """The price of so many tokens."""
        n_in, n_out = usage.prompt_tokens, usage.completion_tokens
        return (n_in * self.input + n_out * self.output) / 1e6

    def times(self, factor: float) -> Price:
        """The same price, raised or lowered by a factor."""
        changed = {"input": self.input * factor, "output": self.output * factor}
        return self.model_copy(update=changed)


def find_price(model: str) -> Price | None:
    """The table's price of a model, its date suffix ignored; None when it is not listed."""
    plain = re.sub(r"-(\d{4}-\d{2}-\d{2}|\d{8}|\d{4}|latest)$", "", model.lower())
    return _price_table().get(model.lower()) or _price_table().get(plain)


@cache
def _price_table() -> dict[str, Price]:
    text = files("cbtqa.llm").joinpath("prices.yaml").read_text(encoding="utf-8")
    table = {}
    for row in parse_yaml(text)["prices"]:
        models = row.pop("models")
        table.update(dict.fromkeys(models, Price(**row)))
    return table


@dataclass
class Budget:
    """The most that a journal may cost, earlier runs included. What is in flight counts too."""

    max_cost: float | None = None
    """In the price's currency."""
    max_tokens: int | None = None
    price: Price | None = None
    n_tokens: int = 0
    """Spent, and booked for requests in flight."""
    cost: float = 0.0
    """Of these tokens, as far as prices are known."""

    def __post_init__(self) -> None:
        """Raises ConfigError when money is limited and nobody knows the price."""
        if self.max_cost is not None and self.price is None:
            raise ConfigError(
                "a budget in money needs a price",
                hint="add --price-in and --price-out (per million tokens), or limit the tokens",
            )

    def book(self, usage: Usage, price: Price | None = None, *, sign: int = 1) -> None:
        """Adds tokens at a price, the budget's own when left out; `sign=-1` takes them back."""
        price = price or self.price
        self.n_tokens += sign * usage.n_tokens
        self.cost += sign * price.of(usage) if price else 0.0

    def is_used_up(self, more: Usage, price: Price | None = None) -> bool:
        """True when `more` tokens on top would pass the limit."""
        price = price or self.price
        if self.max_tokens is not None and self.n_tokens + more.n_tokens > self.max_tokens:
            return True
        if self.max_cost is None:
            return False
        return self.cost + (price.of(more) if price else 0.0) > self.max_cost


def estimate_tokens(text: str) -> int:
    """Tokens of a text without its tokenizer: so much for each kind of character.

    Source: fitted to the tokenizers of Qwen and DeepSeek V4 on the shipped prompts, where it is
    within 8 % of both (`scripts/bench/tokens.py`, docs/log.md).
    """
    return round(sum(weight * len(kind.findall(text)) for kind, weight in _TOKENS_OF))


def estimate_prompt(request: ChatRequest) -> int:
    """Tokens of a request's messages by `estimate_tokens`."""
    return sum(estimate_tokens(message["content"]) for message in request.messages)


def token_counter(model: str) -> tuple[Callable[[str], int], str]:
    """How to count tokens for a model, and the name of the method.

    tiktoken, where it is installed, knows the model, and TIKTOKEN_CACHE_DIR holds its vocabulary
    (it loads one from the network otherwise, which a count must not do); else `estimate_tokens`.
    """
    with suppress(ImportError, KeyError, OSError):
        import tiktoken

        name = tiktoken.encoding_name_for_model(model)
        if os.environ.get("TIKTOKEN_CACHE_DIR"):
            encoding = tiktoken.get_encoding(name)
            count = partial(encoding.encode, disallowed_special=())
            return (lambda text: len(count(text))), f"tiktoken {name}"
    return estimate_tokens, "estimate by kinds of characters, within 10 % for Qwen and DeepSeek"


class Estimate(Record):
    """What a run would take, if every item were answered at its first attempt."""

    items: str = "requests"
    """What is counted, such as `questions`."""
    n_items: int = 0
    n_left_out: int = 0
    """Would not be sent: rejected rows, sessions that cannot be judged."""
    name: str = ""
    """Of a part: who is asked, and on what."""
    n_done: int = 0
    """Requests that the journal holds the replies of."""
    n_requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    counted_by: str = ""
    """How prompt tokens were counted."""
    length_from: str = ""
    """Where the length of a reply comes from."""
    cost: float | None = 0.0
    """None when no price is known; nothing is paid to a local endpoint."""
    currency: str = ""
    price_as_of: str = ""
    seconds: float = 0.0
    """At the limits, and at `LATENCY_S` for one reply."""
    bound_by: str = ""
    """Which limit sets the time: `in_flight`, `rpm`, `tpm` or `batch-api`."""
    parts: tuple[Estimate, ...] = ()
    """The same by model, where several are asked."""


def sum_estimates(items: str, n_items: int, n_left_out: int, parts: Sequence[Estimate]) -> Estimate:
    """The whole of several parts that are asked one after the other."""
    costs = [part.cost for part in parts]
    sums = ("n_done", "n_requests", "prompt_tokens", "completion_tokens", "seconds")
    first = ("counted_by", "length_from", "currency", "price_as_of")
    longest = max(parts, key=lambda part: part.seconds, default=Estimate())
    return Estimate(
        items=items,
        n_items=n_items,
        n_left_out=n_left_out,
        cost=None if None in costs else sum(cost or 0 for cost in costs),
        bound_by=longest.bound_by,
        parts=tuple(parts),
        **{name: sum(getattr(part, name) for part in parts) for name in sums},
        **{name: next(filter(None, (getattr(one, name) for one in parts)), "") for name in first},
    )


def plan_run(
    requests: Iterable[ChatRequest],
    model: str,
    *,
    in_flight: int,
    rpm: int | None = None,
    tpm: int | None = None,
    price: Price | None = None,
    reply_tokens: int = REPLY_TOKENS,
) -> Estimate:
    """Counts what a run would send, without sending; streams, so a million requests will do."""
    count, counted_by = token_counter(model)
    n_requests = n_counted = tokens = weight = 0
    stride = 1
    for request in requests:
        if n_requests % stride == 0:
            said = (message["content"] for message in request.messages)
            # a counted request counts for the `stride - 1` that are passed over after it
            tokens += stride * sum(count(text) + MESSAGE_TOKENS for text in said)
            weight += stride
            n_counted += 1
            if n_counted % COUNTED_REQUESTS == 0:
                stride *= 2
        n_requests += 1
    mean = tokens / weight if weight else 0
    usage = Usage(
        prompt_tokens=round(mean * n_requests), completion_tokens=n_requests * reply_tokens
    )
    seconds, bound_by = time_of(n_requests, usage, in_flight, rpm, tpm)
    return Estimate(
        n_requests=n_requests,
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        counted_by=counted_by,
        cost=price.of(usage) if price else None,
        currency=price.currency if price else "",
        price_as_of=price.as_of if price else "",
        seconds=seconds,
        bound_by=bound_by,
    )


def time_of(
    n_requests: int, usage: Usage, in_flight: int, rpm: int | None, tpm: int | None
) -> tuple[float, str]:
    """Seconds of so many requests, at least those of one reply, and the limit that sets them."""
    times = {"in_flight": ceil(n_requests / in_flight) * LATENCY_S}
    if rpm:
        times["rpm"] = 60 * n_requests / rpm
    if tpm:
        times["tpm"] = 60 * usage.n_tokens / tpm
    bound_by = max(times, key=lambda name: times[name])
    return times[bound_by], bound_by
