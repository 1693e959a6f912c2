"""What must hold of every label, whoever gave it."""

from __future__ import annotations

from cbtqa.records import DistortionLabel


def is_evident(label: DistortionLabel, source_text: str) -> bool:
    """True when the evidence is missing by design or really occurs in the text."""
    return label.evidence is None or (bool(label.evidence) and label.evidence in source_text)
