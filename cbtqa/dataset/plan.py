"""Which split each question goes to: near-duplicates together, crisis items by setting."""

from __future__ import annotations

from collections.abc import Iterator

from cbtqa.dataset.duplicates import NearDuplicates
from cbtqa.dataset.instruction import Item
from cbtqa.dataset.settings import BuildSettings
from cbtqa.splits import split_of


class SplitPlan:
    """Where each question belongs: near-duplicates together, crisis items by setting."""

    def __init__(self, settings: BuildSettings) -> None:
        self._settings = settings
        self._near = NearDuplicates(settings.near_duplicate)
        self._ids: list[str] = []
        self._is_crisis = bytearray()
        self.n_near_duplicates = 0
        """Questions that joined the cluster of an earlier one; known after `splits`."""

    def add(self, item: Item) -> None:
        """Notes the next question."""
        self._near.add(item.question.source_text)
        self._ids.append(item.question.id)
        self._is_crisis.append(item.risk != "none" and self._settings.crisis == "split")

    def splits(self) -> Iterator[str]:
        """The split of each question, in the order added."""
        clusters = self._near.clusters()
        self.n_near_duplicates = int((clusters != range(len(clusters))).sum())
        for index, first in enumerate(clusters.tolist()):
            if self._is_crisis[index]:
                yield "crisis"
            else:
                yield split_of(
                    self._ids[first],
                    seed=self._settings.split_seed,
                    validation=self._settings.validation,
                    test=self._settings.test,
                )
