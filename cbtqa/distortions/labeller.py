"""What a labeller is: anything that reads a text and names its distortions, with evidence."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from cbtqa.distortions.taxonomy import Taxonomy
from cbtqa.records import DistortionLabel

Labels = tuple[DistortionLabel, ...]


class Labeller(Protocol):
    """Patterns, a trained model, a language model, or a vote of several."""

    @property
    def name(self) -> str:
        """What stands in `DistortionLabel.labeller`, such as `patterns`."""
        ...

    @property
    def taxonomy(self) -> Taxonomy:
        """The closed set that every label id comes from."""
        ...

    def label(self, text: str) -> Labels:
        """The distortions of one text, most certain first; empty when none is found."""
        ...

    def label_many(self, texts: Iterable[str]) -> list[Labels]:
        """The same for many texts, in their order."""
        ...
