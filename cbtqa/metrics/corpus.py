"""Metrics of a whole system that do not add up over pairs, such as the share of distinct words."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from cbtqa.metrics.base import Signature, maker
from cbtqa.metrics.texts import Texts


class Collector(ABC):
    """What one system's texts have come to so far."""

    @abstractmethod
    def add(self, predictions: Texts, is_scored: NDArray[np.bool_]) -> None:
        """Takes in a block of texts; those not scored are passed over."""

    @abstractmethod
    def score(self) -> float | None:
        """The score; None when there was nothing to score."""


class CorpusMetric(ABC):
    """Base of the metrics of a whole system; they carry no interval."""

    name: str
    label: str
    unit: str = "0-1"
    is_higher_better: ClassVar[bool | None] = None
    unscored_reason: str = "no text could be scored"

    @abstractmethod
    def collector(self) -> Collector:
        """A fresh collector for one system."""

    @abstractmethod
    def own_fields(self) -> tuple[tuple[str, str], ...]:
        """The settings of this metric, in the order of its signature."""

    def signature(self) -> Signature:
        """Name, own settings, and who computed it."""
        return Signature((("metric", self.name), *self.own_fields(), ("by", maker())))
