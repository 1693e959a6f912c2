"""Drawing primitives: a canvas that becomes one SVG string, scales, round ticks, text widths.

Text stays text, so it can be searched, read aloud and set in the page's font. Colours are CSS
variables with a fallback: inside a page they follow its light or dark theme.
"""

from __future__ import annotations

import hashlib
import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup, escape

WIDTH = 720.0
"""User units across; the page scales the drawing to the column."""
TEXT_SIZE, SMALL_SIZE = 13.0, 11.5
FONT = "var(--font, 'Noto Sans CJK SC', 'PingFang SC', 'Microsoft YaHei', sans-serif)"

COLOURS = {
    "ink": "#22272b",
    "soft": "#667078",
    "faint": "#dcdad3",
    "wash": "#efede7",
    "paper": "#ffffff",
    "accent": "#2b6c8f",
    "accent-soft": "#a9c7d6",
    "mark": "#c4622d",
    "on-dark": "#ffffff",
    "on-light": "#22272b",
    "level-0": "#d98b4a",
    "level-1": "#d5d2c8",
    "level-2": "#2b6c8f",
    "series-0": "#2b6c8f",
    "series-1": "#c4622d",
    "series-2": "#4d8b57",
    "series-3": "#8a6bab",
    "series-4": "#b8902f",
    "series-5": "#7a7f85",
}
"""Told apart with any common colour blindness; also by order, position or text in every chart."""
SERIES = tuple(name for name in COLOURS if name.startswith("series-"))


def colour(name: str) -> str:
    """A colour of the palette as a CSS value."""
    return f"var(--{name}, {COLOURS[name]})"


def text_width(text: str, size: float = TEXT_SIZE) -> float:
    """Width of a text in user units: about one em for a Chinese character, half for a Latin one."""
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    return size * (wide + 0.53 * (len(text) - wide))


def fit_size(text: str, width: float, size: float = TEXT_SIZE) -> float:
    """The size at which a line is no wider than `width`; `size` where it is not anyway."""
    return min(size, size * width / max(text_width(text, size), 1e-9))


def fit_lines(text: str, width: float) -> tuple[list[str], float]:
    """The text on one line, or on two in smaller type where one is too short, and their size."""
    if text_width(text) <= width:
        return [text], TEXT_SIZE
    middle = text_width(text) / 2
    ends = [k for k in range(1, len(text)) if not (text[k - 1 : k + 1]).isascii() or text[k] == " "]
    if not ends:
        return [text], fit_size(text, width)
    end = min(ends, key=lambda k: abs(text_width(text[:k]) - middle))
    lines = [text[:end].strip(), text[end:].strip()]
    return lines, min(fit_size(line, width, SMALL_SIZE) for line in lines)


@dataclass(frozen=True)
class Scale:
    """Maps values in `low..high` to positions `start..end`; clamps what lies outside."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        if self.high == self.low:
            return self.start
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)


def round_ticks(low: float, high: float, n_about: int = 5) -> tuple[float, ...]:
    """Round numbers that cover `low..high`, about `n_about` of them."""
    span = high - low if high > low else abs(high) or 1.0
    raw = span / max(1, n_about - 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return tuple(round(k * step, 12) for k in range(first, max(last, first + 1) + 1))


def _attributes(values: dict[str, object]) -> str:
    return "".join(
        f' {name.replace("_", "-")}="{escape(_plain(value))}"'
        for name, value in values.items()
        if value is not None
    )


def _plain(value: object) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


@dataclass
class Canvas:
    """Collects shapes; `to_svg` gives the finished drawing."""

    height: float
    _parts: list[str] = field(default_factory=list)

    def add(self, tag: str, tip: str | None = None, **attributes: object) -> None:
        """Adds a shape; `tip` is shown on hover and read by screen readers."""
        inner = f"<title>{escape(tip)}</title>" if tip else ""
        self._parts.append(f"<{tag}{_attributes(attributes)}>{inner}</{tag}>")

    def text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        anchor: str = "start",
        fill: str = "ink",
        size: float = TEXT_SIZE,
        turn: float = 0.0,
    ) -> None:
        """Adds a line of text; `y` is its optical middle."""
        attributes = {
            "x": x,
            "y": y,
            "dy": "0.35em",
            "text_anchor": None if anchor == "start" else anchor,
            "style": f"fill:{colour(fill)};font-size:{size:g}px",
            "transform": f"rotate({turn:g} {x:.2f} {y:.2f})" if turn else None,
        }
        self._parts.append(f"<text{_attributes(attributes)}>{escape(text)}</text>")

    def note(
        self, x: float, y: float, text: str, anchor: str = "start", fill: str = "soft"
    ) -> None:
        self.text(x, y, text, anchor=anchor, fill=fill, size=SMALL_SIZE)

    def rect(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        fill: str,
        *,
        radius: float = 0.0,
        opacity: float = 1.0,
        tip: str | None = None,
    ) -> None:
        style = f"fill:{colour(fill)}" + (f";fill-opacity:{opacity:.3g}" if opacity < 1 else "")
        size = {"width": max(width, 0.0), "height": max(height, 0.0)}
        self.add("rect", tip, x=x, y=y, **size, rx=radius or None, style=style)

    def line(
        self,
        start: tuple[float, float],
        end: tuple[float, float],
        stroke: str = "faint",
        *,
        width: float = 1.0,
        dash: str | None = None,
        tip: str | None = None,
    ) -> None:
        style = f"stroke:{colour(stroke)};stroke-width:{width:g}"
        style += f";stroke-dasharray:{dash}" if dash else ""
        self.add("line", tip, x1=start[0], y1=start[1], x2=end[0], y2=end[1], style=style)

    def circle(
        self, x: float, y: float, radius: float, fill: str, *, tip: str | None = None
    ) -> None:
        """Adds a dot with a thin rim in the paper's colour, so that overlapping dots stay apart."""
        style = f"fill:{colour(fill)};stroke:{colour('paper')};stroke-width:1"
        self.add("circle", tip, cx=x, cy=y, r=radius, style=style)

    def polyline(
        self, points: Sequence[tuple[float, float]], stroke: str, *, dash: str | None = None
    ) -> None:
        style = f"fill:none;stroke:{colour(stroke)};stroke-width:2;stroke-linejoin:round"
        style += f";stroke-dasharray:{dash}" if dash else ""
        self.add("polyline", points=_points(points), style=style)

    def area(self, points: Sequence[tuple[float, float]], fill: str, opacity: float) -> None:
        style = f"fill:{colour(fill)};fill-opacity:{opacity:g}"
        self.add("polygon", points=_points(points), style=style)

    def to_svg(self, title: str, description: str) -> Markup:
        """The drawing; title and description are what a screen reader reads instead."""
        body = "".join(self._parts)
        key = hashlib.sha256(f"{title}\0{description}\0{body}".encode()).hexdigest()[:10]
        return Markup(
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH:g} {self.height:g}"'
            f' role="img" aria-labelledby="t{key} d{key}" style="font-family:{escape(FONT)}">'
            f'<title id="t{key}">{escape(title)}</title>'
            f'<desc id="d{key}">{escape(description)}</desc>{body}</svg>'
        )


def _points(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
