"""Charts, each a function from plain values to one SVG string.

    interval_chart([Interval("Baichuan-7B", 26.5, 25.1, 27.9)], title="BLEU", description="...")

Every value is also text in the chart; a missing one shows its reason and is never drawn as 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from cbtqa.report import words
from cbtqa.report.svg import (
    SERIES,
    SMALL_SIZE,
    WIDTH,
    Canvas,
    Scale,
    fit_lines,
    fit_size,
    round_ticks,
    text_width,
)

ROW = 27.0
TOP, BOTTOM = 8.0, 30.0
GAP = 12.0
LABEL_SHARE = 0.42
"""The most of the width that row labels may take."""


@dataclass(frozen=True)
class Bar:
    """One row of a bar chart."""

    label: str
    value: float
    shown: str
    """The value as it is written beside the bar, such as `42 (18.4 %)`."""
    second_label: str = ""
    """The label in the other language, set smaller."""
    reference: float | None = None
    """A value to compare with, drawn as a mark; None when there is none."""


@dataclass(frozen=True)
class Interval:
    """One row of an interval chart."""

    label: str
    value: float | None
    low: float | None = None
    high: float | None = None
    missing: str = ""
    """Shown instead when `value` is None: why."""


@dataclass(frozen=True)
class Levels:
    """One row of stacked bars: how many items got each level, lowest level first."""

    label: str
    counts: tuple[int, ...]
    shown: str = ""
    """Text at the right, such as `1.73 [1.69, 1.78]`."""


@dataclass(frozen=True)
class HistogramBar:
    """One bar: from `low` up to, but not including, `high` (None: and everything above)."""

    low: float
    high: float | None
    n: int


def _label_width(labels: Sequence[tuple[str, str]]) -> float:
    """Width of a column of row labels, each with its second label or an empty text."""
    widest = max(
        (text_width(a) + (8 + text_width(b, SMALL_SIZE) if b else 0) for a, b in labels), default=0
    )
    return min(widest, WIDTH * LABEL_SHARE) + GAP


def _row_label(canvas: Canvas, y: float, width: float, label: str, second: str = "") -> None:
    """Writes a row's label into the column, in two lines or smaller type where it is too long."""
    room = width - GAP
    used = text_width(label) + 8
    if second and used + text_width(second, SMALL_SIZE) <= room:
        canvas.text(0, y, label)
        canvas.note(used, y, second)
        return
    if second:
        size = fit_size(label, room, SMALL_SIZE + 0.5)
        canvas.text(0, y - 6, label, size=size)
        canvas.text(0, y + 6.5, second, fill="soft", size=fit_size(second, room, SMALL_SIZE - 1))
        return
    lines, size = fit_lines(label, room)
    for place, line in enumerate(lines):
        canvas.text(0, y + (place - (len(lines) - 1) / 2) * 12, line, size=size)


def _legend(canvas: Canvas, x: float, y: float, entries: Sequence[tuple[str, str]]) -> None:
    """Small squares with their names, left to right; entries are `(colour name, text)`."""
    for fill, text in entries:
        canvas.rect(x, y - 5, 10, 10, fill, radius=2)
        canvas.note(x + 15, y, text)
        x += 15 + text_width(text, SMALL_SIZE) + 18


def bar_chart(
    bars: Sequence[Bar], *, title: str, description: str, reference_name: str = ""
) -> Markup:
    """Horizontal bars from zero, with their values; marks where a reference value is given."""
    has_reference = any(bar.reference is not None for bar in bars)
    top = TOP + (22 if has_reference else 0)
    canvas = Canvas(top + ROW * max(1, len(bars)))
    left = _label_width([(bar.label, bar.second_label) for bar in bars])
    right = WIDTH - max((text_width(bar.shown) for bar in bars), default=0) - 10
    highest = max([bar.value for bar in bars] + [bar.reference or 0 for bar in bars] + [0]) or 1
    scale = Scale(0, highest, left, right)
    if has_reference:
        canvas.line((left + 5, TOP - 3), (left + 5, TOP + 11), "mark", width=3)
        canvas.note(left + 15, TOP + 4, reference_name)
    for place, bar in enumerate(bars):
        y = top + ROW * (place + 0.5)
        _row_label(canvas, y, left, bar.label, bar.second_label)
        canvas.rect(left, y - 7, right - left, 14, "wash", radius=2)
        canvas.rect(left, y - 7, scale(bar.value) - left, 14, "accent", radius=2, tip=bar.shown)
        if bar.reference is not None:
            x = scale(bar.reference)
            canvas.line((x, y - 10), (x, y + 10), "mark", width=3, tip=reference_name)
        canvas.text(WIDTH, y, bar.shown, anchor="end", fill="ink")
    return canvas.to_svg(title, description)


def interval_chart(
    rows: Sequence[Interval],
    *,
    title: str,
    description: str,
    digits: int = 2,
    low: float | None = None,
    high: float | None = None,
) -> Markup:
    """Dots with their 95 % intervals on a common axis; `low` and `high` fix the axis."""
    ends = [v for row in rows for v in (row.value, row.low, row.high) if v is not None]
    ticks = round_ticks(
        min(ends, default=0) if low is None else low, max(ends, default=1) if high is None else high
    )
    show = words.digits(digits)
    shown = [
        row.missing if row.value is None else words.estimate(row.value, row.low, row.high, show)
        for row in rows
    ]
    canvas = Canvas(TOP + ROW * max(1, len(rows)) + BOTTOM)
    left = _label_width([(row.label, "") for row in rows]) + 6
    right = WIDTH - max((text_width(text) for text in shown), default=0) - GAP - 6
    scale = Scale(ticks[0], ticks[-1], left, right)
    floor = TOP + ROW * max(1, len(rows))
    for tick in ticks:
        canvas.line((scale(tick), TOP), (scale(tick), floor))
        canvas.note(scale(tick), floor + 14, words.general(tick), "middle")
    for place, (row, text) in enumerate(zip(rows, shown, strict=True)):
        y = TOP + ROW * (place + 0.5)
        _row_label(canvas, y, left - 6, row.label)
        fill = "soft" if row.value is None else "ink"
        canvas.text(WIDTH, y, text, anchor="end", fill=fill)
        if row.low is not None and row.high is not None:
            canvas.line((scale(row.low), y), (scale(row.high), y), "accent", width=2.5)
            for end in (row.low, row.high):
                canvas.line((scale(end), y - 5), (scale(end), y + 5), "accent", width=1.5)
        if row.value is not None:
            canvas.circle(scale(row.value), y, 5, "accent", tip=f"{row.label}: {text}")
    return canvas.to_svg(title, description)


def stacked_bars(
    rows: Sequence[Levels], levels: Sequence[str], *, title: str, description: str
) -> Markup:
    """Shares of each level, a row per system; for ratings on 0-1-2 the paper's three levels."""
    fills = [f"level-{k}" for k in range(3)] if len(levels) == 3 else SERIES[: len(levels)]
    canvas = Canvas(TOP + 26 + ROW * max(1, len(rows)))
    left = _label_width([(row.label, "") for row in rows])
    right = WIDTH - max((text_width(row.shown) + GAP for row in rows if row.shown), default=0)
    _legend(canvas, left, TOP + 4, list(zip(fills, levels, strict=True)))
    for place, row in enumerate(rows):
        y, total, x = TOP + 26 + ROW * (place + 0.5), sum(row.counts), left
        _row_label(canvas, y, left, row.label)
        for fill, level, count in zip(fills, levels, row.counts, strict=True):
            width = (right - left) * count / total if total else 0
            share = words.share(count / total, 0) if total else ""
            canvas.rect(x, y - 9, width, 18, fill, tip=f"{row.label}, {level}: {count} ({share})")
            if width > text_width(share, SMALL_SIZE) + 8:
                inner = "on-light" if fill in ("level-0", "level-1") else "on-dark"
                canvas.note(x + width / 2, y, share, "middle", inner)
            x += width
        canvas.text(WIDTH, y, row.shown, anchor="end")
    return canvas.to_svg(title, description)


def histogram(
    bars: Sequence[HistogramBar],
    *,
    title: str,
    description: str,
    marks: Sequence[tuple[float, str]] = (),
    height: float = 190.0,
) -> Markup:
    """Vertical bars of equal width; `marks` are dashed lines `(value, text)`, such as a median."""
    canvas = Canvas(height)
    top, floor = TOP + 20, height - BOTTOM
    ticks = round_ticks(0, max((bar.n for bar in bars), default=1), 4)
    left, y = _left_axis(canvas, ticks, floor, top, WIDTH)
    step = (WIDTH - left) / max(1, len(bars))
    every = max(1, round(len(bars) / 10))
    for place, bar in enumerate(bars):
        x = left + place * step
        span = f"≥ {bar.low:g}" if bar.high is None else f"{bar.low:g}–{bar.high - 1:g}"
        fill = "accent-soft" if bar.high is None else "accent"
        canvas.rect(x + 1, y(bar.n), step - 2, floor - y(bar.n), fill, tip=f"{span}: {bar.n}")
        if bar.high is None:
            canvas.note(x + step / 2, floor + 14, f"≥{bar.low:g}", "middle")
        elif place % every == 0 and place < len(bars) - 1:
            canvas.note(x, floor + 14, words.general(bar.low), "middle")
    closed = [bar for bar in bars if bar.high is not None]
    for value, text in marks if closed else ():
        x = Scale(closed[0].low, closed[-1].high or 0, left, left + step * len(closed))(value)
        canvas.line((x, TOP + 14), (x, floor), "mark", width=1.5, dash="4 3")
        anchor = "end" if x > WIDTH * 0.75 else "middle" if x > 80 else "start"
        canvas.note(x, TOP + 4, text, anchor, "mark")
    return canvas.to_svg(title, description)


def _left_axis(
    canvas: Canvas, ticks: Sequence[float], floor: float, top: float, right: float
) -> tuple[float, Scale]:
    """Draws the ticks' numbers and lines; gives back the plot's left edge and the scale."""
    left = max(text_width(words.general(tick), SMALL_SIZE) for tick in ticks) + 12
    scale = Scale(ticks[0], ticks[-1], floor, top)
    for tick in ticks:
        canvas.line((left, scale(tick)), (right, scale(tick)))
        canvas.note(left - 8, scale(tick), words.general(tick), "end")
    return left, scale


def flow_bar(
    parts: Sequence[tuple[str, int]], *, title: str, description: str, n_total: int
) -> Markup:
    """One bar whose parts add up to `n_total`; the first part is what came out.

    Raises:
        ValueError: the parts do not add up.
    """
    if sum(n for _, n in parts) != n_total:
        raise ValueError(f"the parts add up to {sum(n for _, n in parts)}, not {n_total}")
    shown = [f"{name} {words.count(n)}" for name, n in parts[1:]]
    places = _flow_legend(shown)
    canvas, x = Canvas(34.0 + (20.0 * (places[-1][1] + 1) if places else 0)), 0.0
    for place, (name, n) in enumerate(parts):
        width = WIDTH * n / n_total if n_total else 0
        fill = "accent" if place == 0 else "mark"
        faded = 1 if place == 0 else max(0.3, 1 - 0.18 * (place - 1))
        tip = f"{name}  {words.count_of(n, n_total)}" if n_total else name
        canvas.rect(x, 6, max(width - 1, 1 if n else 0), 22, fill, radius=2, opacity=faded, tip=tip)
        if place == 0 and width > text_width(tip) + 16:
            canvas.text(x + 10, 17, tip, fill="on-dark")
        if place:
            left, row = places[place - 1]
            canvas.rect(left, 41 + 20 * row, 10, 10, fill, radius=2, opacity=faded)
            text = shown[place - 1]
            canvas.note(left + 15, 46 + 20 * row, text)
        x += width
    return canvas.to_svg(title, description)


def _flow_legend(texts: Sequence[str]) -> list[tuple[float, int]]:
    """Left edge and row of each legend entry, wrapped at the chart's width."""
    places: list[tuple[float, int]] = []
    x, row = 0.0, 0
    for text in texts:
        width = 15 + text_width(text, SMALL_SIZE) + 18
        if x and x + width > WIDTH:
            x, row = 0.0, row + 1
        places.append((x, row))
        x += width
    return places


@dataclass(frozen=True)
class Line:
    """One line of a line chart: `(x, y)` points, and where known a band `(x, low, high)`."""

    label: str
    points: tuple[tuple[float, float], ...]
    band: tuple[tuple[float, float, float], ...] = ()


def heat_map(
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float | None]],
    *,
    title: str,
    description: str,
    digits: int = 0,
) -> Markup:
    """A table shaded by value; None is an empty cell."""
    left = _label_width([(label, "") for label in rows])
    step = min(64.0, (WIDTH - left) / max(1, len(columns)))
    longest = max((text_width(label, SMALL_SIZE) for label in columns), default=0)
    top = TOP + min(longest, 120) * 0.62 + 16
    canvas = Canvas(top + ROW * len(rows) + 4)
    highest = max((v for line in values for v in line if v is not None), default=0) or 1
    for place, label in enumerate(columns):
        x = left + step * (place + 0.5)
        size = fit_size(label, 120, SMALL_SIZE)
        canvas.text(x - 4, top - 12, label, turn=-38, fill="soft", size=size)
    for i, (label, line) in enumerate(zip(rows, values, strict=True)):
        y = top + ROW * (i + 0.5)
        _row_label(canvas, y, left, label)
        for j, value in enumerate(line):
            x = left + step * j
            cell = (x + 1, y - ROW / 2 + 1, step - 2, ROW - 2)
            canvas.rect(*cell, "wash", radius=2)
            if value is None:
                continue
            share, shown = max(value, 0) / highest, words.number(value, digits)
            tip = f"{label} × {columns[j]}: {shown}"
            canvas.rect(*cell, "accent", radius=2, opacity=share * 0.96, tip=tip)
            canvas.note(x + step / 2, y, shown, "middle", "on-dark" if share > 0.55 else "ink")
    return canvas.to_svg(title, description)


def line_chart(
    lines: Sequence[Line],
    *,
    title: str,
    description: str,
    x_name: str = "",
    y_name: str = "",
    height: float = 260.0,
) -> Markup:
    """Lines with their bands on common axes; each line's name is in the legend."""
    canvas = Canvas(height)
    xs = [x for line in lines for x, _ in line.points] or [0.0, 1.0]
    ys = [y for line in lines for _, y in line.points] or [0.0, 1.0]
    ys += [end for line in lines for _, *ends in line.band for end in ends]
    x_ticks, y_ticks = round_ticks(min(xs), max(xs), 7), round_ticks(min(ys), max(ys))
    floor, top = height - BOTTOM - (16 if x_name else 0), TOP + 30
    left, y = _left_axis(canvas, y_ticks, floor, top, WIDTH - 12)
    x = Scale(min(xs), max(xs), left, WIDTH - 12)
    for tick in x_ticks:
        if min(xs) <= tick <= max(xs):
            canvas.note(x(tick), floor + 14, words.general(tick), "middle")
    canvas.note(WIDTH - 12, height - 10, x_name, "end")
    canvas.note(0, TOP + 4, y_name)
    start = text_width(y_name, SMALL_SIZE) + 24 if y_name else left
    fills = [SERIES[k % len(SERIES)] for k in range(len(lines))]
    names = [line.label for line in lines]
    _legend(canvas, start, TOP + 4, list(zip(fills, names, strict=True)))
    dashes = (None, "7 4", "2 3", "9 3 2 3")
    for k, (fill, line) in enumerate(zip(fills, lines, strict=True)):
        upper = [(x(at), y(high)) for at, _, high in line.band]
        lower = [(x(at), y(low)) for at, low, _ in reversed(line.band)]
        if line.band:
            canvas.area([*upper, *lower], fill, 0.16)
        canvas.polyline([(x(a), y(b)) for a, b in line.points], fill, dash=dashes[k % len(dashes)])
    return canvas.to_svg(title, description)
