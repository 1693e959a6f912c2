"""Says at the end how many faults were tried, and how long it took."""

from __future__ import annotations

from typing import Any


def pytest_terminal_summary(terminalreporter: Any) -> None:
    runs = [
        value
        for reports in terminalreporter.stats.values()
        for report in reports
        for name, value in getattr(report, "user_properties", ())
        if name == "fault_runs"
    ]
    if runs:
        n, seconds = sum(one[0] for one in runs), sum(one[1] for one in runs)
        terminalreporter.write_line(f"fault matrix: {n:,} runs in {seconds:.0f} s")
