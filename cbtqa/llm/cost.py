"""What a run costs: prices, tokens, the budget.

Price(input=2.0, output=8.0, currency="CNY").of(Usage(prompt_tokens=520, ...))
"""

from __future__ import annotations

from dataclasses import dataclass, field

from cbtqa.records import Record, Usage


class Price(Record):
    """Money for a million tokens."""

    input: float
    output: float
    currency: str = "USD"
    as_of: str = ""
    """When it was looked up; empty when a person gave it."""
    source: str = ""

    def of(self, usage: Usage) -> float:
        """The price of so many tokens."""
        n_in, n_out = usage.prompt_tokens, usage.completion_tokens
        return (n_in * self.input + n_out * self.output) / 1e6


@dataclass
class Budget:
    """The most that a journal may cost, earlier runs included. What is in flight counts too."""

    max_cost: float | None = None
    """In the price's currency."""
    max_tokens: int | None = None
    price: Price | None = None
    spent: Usage = field(default_factory=Usage)

    def is_used_up(self, reserved: Usage) -> bool:
        """True when what is spent and what is under way leave nothing."""
        n_in = self.spent.prompt_tokens + reserved.prompt_tokens
        n_out = self.spent.completion_tokens + reserved.completion_tokens
        if self.max_tokens is not None and n_in + n_out > self.max_tokens:
            return True
        if self.max_cost is None or self.price is None:
            return False
        total = Usage(prompt_tokens=n_in, completion_tokens=n_out)
        return self.price.of(total) > self.max_cost


def estimate_tokens(text: str) -> int:
    """Tokens of a text without its tokenizer: 0.6 for a wide character, 0.3 for another.

    Source: DeepSeek API documentation, "Token & Token Usage" (1 Chinese character about 0.6
    tokens, 1 English character about 0.3).
    """
    n_narrow = sum(map(str.isascii, text))
    return round(0.6 * (len(text) - n_narrow) + 0.3 * n_narrow)
