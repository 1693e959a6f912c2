"""The loss curve of a run as SVG, from its log lines."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cbtqa.files import read_rows, write_text
from cbtqa.report.plots import Line, line_chart

CURVE_NAME = "loss.svg"


def write_curve(folder: Path, log_path: Path) -> None:
    """Draws training and validation loss over steps into the folder."""
    lines = [row for _, row in read_rows(log_path)] if log_path.exists() else []
    write_text(folder / CURVE_NAME, draw_curve(lines))


def draw_curve(lines: Iterable[Mapping[str, Any]]) -> str:
    """The chart of log lines: those with `loss`, and those with `eval_loss`."""
    rows = list(lines)
    drawn = []
    for label, key in (("train", "loss"), ("validation", "eval_loss")):
        points = tuple((float(row["step"]), float(row[key])) for row in rows if key in row)
        if points:
            drawn.append(Line(label, points))
    last = ", ".join(f"{line.label} {line.points[-1][1]:.4f}" for line in drawn) or "no line"
    return str(
        line_chart(
            drawn,
            title="Loss",
            description=f"Loss over optimiser steps; at the end: {last}.",
            x_name="step",
            y_name="loss",
        )
    )
