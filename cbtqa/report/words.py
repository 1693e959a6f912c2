"""Numbers as people read them: one way for each kind, on the terminal, on pages and in files.

    p_value(0.00003), estimate(26.5, 25.1, 27.9), share(0.544), signed(-0.21)
    '< 0.0001', '26.50 [25.10, 27.90]', '54.4%', '-0.21'

What has no value is `-`, whatever it would have been.
"""

from __future__ import annotations

import math
from collections.abc import Callable

GAP = "-"
Show = Callable[[float | None], str]
"""Writes a number of one kind."""
LEAST_P = 0.0001
"""Below it a p-value is written as `< 0.0001`."""


def number(value: float | None, digits: int = 2) -> str:
    """`1,234.50`; zero has no sign."""
    if value is None:
        return GAP
    text = f"{value:,.{digits}f}"
    return text.removeprefix("-") if not text.strip("-0.,") else text


def digits(n: int) -> Show:
    """Writes numbers with `n` decimals."""
    return lambda value: number(value, n)


def general(value: float | None) -> str:
    """`3`, `0.5`, `1,250`: up to ten digits, no needless zeros."""
    return GAP if value is None else f"{value:,.10g}" if abs(value) < 1e6 else f"{value:,.0f}"


def count(n: float | None) -> str:
    """`1,234`."""
    return number(n, 0)


def share(value: float | None, digits: int = 1) -> str:
    """`54.4%` of a share from 0 to 1."""
    return GAP if value is None else f"{value:.{digits}%}"


def count_of(n: int, n_total: int, digits: int = 1) -> str:
    """`12 (54.5%)`: how many, and the share of a whole that may be empty."""
    return f"{count(n)} ({share(n / n_total, digits)})" if n_total else count(n)


def signed(value: float | None, digits: int = 2) -> str:
    """`+0.21`, `-0.21`, and `0.00` without a sign."""
    text = number(value, digits)
    has_sign = value is None or text.startswith("-") or not text.strip("0.,")
    return text if has_sign else f"+{text}"


def p_value(p: float | None) -> str:
    """`0.0340`, or `< 0.0001`."""
    return GAP if p is None else f"< {LEAST_P}" if p < LEAST_P else f"{p:.4f}"


def p_relation(p: float) -> str:
    """A p-value behind the letter: `= 0.0340`, or `< 0.0001`."""
    text = p_value(p)
    return text if text.startswith("<") else f"= {text}"


def interval(low: float | None, high: float | None, show: Show = number) -> str:
    """`[0.12, 0.34]`."""
    return GAP if low is None or high is None else f"[{show(low)}, {show(high)}]"


def estimate(
    value: float | None, low: float | None, high: float | None, show: Show = number
) -> str:
    """`0.23 [0.12, 0.34]`, or the value alone where there is no interval."""
    if value is None or low is None or high is None:
        return show(value)
    return f"{show(value)} {interval(low, high, show)}"


def money(amount: float | None, currency: str | None = "") -> str:
    """`1,234.50 CNY`; below ten cents two figures, such as `0.0034 CNY`, so that none is `0.00`."""
    if amount is None:
        return GAP
    digits = 2 if amount == 0 or abs(amount) >= 0.1 else 1 - math.floor(math.log10(abs(amount)))
    return f"{number(amount, digits)} {currency or ''}".strip()


def seconds(value: float | None) -> str:
    """Seconds for people: `45 s`, `12 min`, `3 h 05 min`."""
    if value is None:
        return GAP
    if value < 90:
        return f"{value:.0f} s"
    minutes = round(value / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def size(n_bytes: float | None) -> str:
    """`512 bytes`, `12.5 MiB`, `13.9 GiB`."""
    if n_bytes is None:
        return GAP
    for unit, least in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if n_bytes >= least:
            return f"{n_bytes / least:,.1f} {unit}"
    return f"{n_bytes:.0f} bytes"
