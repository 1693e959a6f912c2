"""Charts on two axes: heat map, lines with bands, reliability of stated confidence.

line_chart([Line("loss", ((0, 2.1), (100, 1.4)))], title="Training", description="...")
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from cbtqa.report.charts import (
    BOTTOM,
    ROW,
    TOP,
    draw_legend,
    draw_row_label,
    label_width,
)
from cbtqa.report.svg import (
    SERIES,
    SMALL_SIZE,
    WIDTH,
    Canvas,
    Scale,
    fit_text,
    round_ticks,
    show_number,
    text_width,
)


@dataclass(frozen=True)
class Line:
    """One line of a line chart: `(x, y)` points, and where known a band `(x, low, high)`."""

    label: str
    points: tuple[tuple[float, float], ...]
    band: tuple[tuple[float, float, float], ...] = ()


@dataclass(frozen=True)
class ReliabilityBin:
    """Answers of similar stated confidence, and how often they were right."""

    confidence: float
    accuracy: float
    n: int


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
    left = label_width([(label, "") for label in rows])
    step = min(64.0, (WIDTH - left) / max(1, len(columns)))
    longest = max((text_width(label, SMALL_SIZE) for label in columns), default=0)
    top = TOP + min(longest, 120) * 0.62 + 16
    canvas = Canvas(top + ROW * len(rows) + 4, WIDTH)
    highest = max((v for line in values for v in line if v is not None), default=0) or 1
    for place, label in enumerate(columns):
        x = left + step * (place + 0.5)
        canvas.text(
            x - 4,
            top - 12,
            fit_text(label, 120, SMALL_SIZE),
            turn=-38,
            fill="soft",
            size=SMALL_SIZE,
            tip=label,
        )
    for i, (label, line) in enumerate(zip(rows, values, strict=True)):
        y = top + ROW * (i + 0.5)
        draw_row_label(canvas, y, left, label)
        for j, value in enumerate(line):
            x = left + step * j
            canvas.rect(x + 1, y - ROW / 2 + 1, step - 2, ROW - 2, "wash", radius=2)
            if value is None:
                continue
            share = max(value, 0) / highest
            tip = f"{label} × {columns[j]}: {show_number(value, digits)}"
            canvas.rect(
                x + 1,
                y - ROW / 2 + 1,
                step - 2,
                ROW - 2,
                "accent",
                radius=2,
                opacity=share * 0.96,
                tip=tip,
            )
            canvas.text(
                x + step / 2,
                y,
                show_number(value, digits),
                anchor="middle",
                fill="on-dark" if share > 0.55 else "ink",
                size=SMALL_SIZE,
            )
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
    """Lines with their bands on common axes; each line's name stands in the legend."""
    canvas = Canvas(height)
    xs = [x for line in lines for x, _ in line.points] or [0.0, 1.0]
    ys = [y for line in lines for _, y in line.points] or [0.0, 1.0]
    ys += [end for line in lines for _, *ends in line.band for end in ends]
    x_ticks, y_ticks = round_ticks(min(xs), max(xs), 7), round_ticks(min(ys), max(ys))
    left = max(text_width(show_number(tick), SMALL_SIZE) for tick in y_ticks) + 12
    floor, top = height - BOTTOM - (16 if x_name else 0), TOP + 30
    x, y = Scale(min(xs), max(xs), left, WIDTH - 12), Scale(y_ticks[0], y_ticks[-1], floor, top)
    for tick in y_ticks:
        canvas.line((left, y(tick)), (WIDTH - 12, y(tick)))
        canvas.text(
            left - 8, y(tick), show_number(tick), anchor="end", fill="soft", size=SMALL_SIZE
        )
    for tick in x_ticks:
        if min(xs) <= tick <= max(xs):
            canvas.text(
                x(tick),
                floor + 14,
                show_number(tick),
                anchor="middle",
                fill="soft",
                size=SMALL_SIZE,
            )
    canvas.text(WIDTH - 12, height - 10, x_name, anchor="end", fill="soft", size=SMALL_SIZE)
    canvas.text(0, TOP + 4, y_name, fill="soft", size=SMALL_SIZE)
    start = text_width(y_name, SMALL_SIZE) + 24 if y_name else left
    draw_legend(
        canvas,
        start,
        TOP + 4,
        [(SERIES[k % len(SERIES)], line.label) for k, line in enumerate(lines)],
    )
    dashes = (None, "7 4", "2 3", "9 3 2 3")
    for k, line in enumerate(lines):
        fill = SERIES[k % len(SERIES)]
        upper = [(x(at), y(high)) for at, _, high in line.band]
        lower = [(x(at), y(low)) for at, low, _ in reversed(line.band)]
        if line.band:
            canvas.area([*upper, *lower], fill, 0.16)
        canvas.polyline([(x(a), y(b)) for a, b in line.points], fill, dash=dashes[k % len(dashes)])
    return canvas.to_svg(title, description)


def reliability_chart(
    bins: Sequence[ReliabilityBin],
    *,
    title: str,
    description: str,
    x_name: str,
    y_name: str,
) -> Markup:
    """Stated confidence against observed accuracy, both 0 to 1; dots grow with their number."""
    side, left, top = 300.0, 52.0, TOP + 20
    canvas = Canvas(top + side + BOTTOM + 14)
    x, y = Scale(0, 1, left, left + side), Scale(0, 1, top + side, top)
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        canvas.line((left, y(tick)), (left + side, y(tick)))
        canvas.text(left - 8, y(tick), f"{tick:g}", anchor="end", fill="soft", size=SMALL_SIZE)
        canvas.text(
            x(tick), top + side + 14, f"{tick:g}", anchor="middle", fill="soft", size=SMALL_SIZE
        )
    canvas.line((x(0), y(0)), (x(1), y(1)), "soft", dash="4 4")
    canvas.text(0, TOP + 4, y_name, fill="soft", size=SMALL_SIZE)
    canvas.text(left + side, top + side + 32, x_name, anchor="end", fill="soft", size=SMALL_SIZE)
    most = max((entry.n for entry in bins), default=1) or 1
    filled = sorted((entry for entry in bins if entry.n), key=lambda entry: entry.confidence)
    if len(filled) > 1:
        canvas.polyline([(x(entry.confidence), y(entry.accuracy)) for entry in filled], "accent")
    for place, entry in enumerate(filled):
        radius = 3.5 + 6 * (entry.n / most) ** 0.5
        text = f"{entry.confidence:.2f} → {entry.accuracy:.2f}  n = {entry.n:,}"
        canvas.circle(x(entry.confidence), y(entry.accuracy), radius, "accent", tip=text)
        canvas.text(left + side + 36, top + 10 + 20 * place, text, size=SMALL_SIZE)
    return canvas.to_svg(title, description)
