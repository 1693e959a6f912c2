"""The facts of a dataset that every section of its report shows, and the report's wording."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cbtqa.dataset.stats import DatasetStatistics
from cbtqa.manifest import Manifest
from cbtqa.psyqa import is_bundled_sample
from cbtqa.report.page import Lang, Phrase, load_wording, same


def wording() -> dict[str, Phrase]:
    """Every phrase of the report by its dotted key."""
    return load_wording("cbtqa.dataset.report", "wording.yaml")


def say(key: str, **values: object) -> Phrase:
    """A phrase of `wording.yaml`."""
    return wording()[key].fill(**values)


@dataclass(frozen=True)
class Material:
    """One dataset, with the language of its report."""

    folder: Path
    manifest: Manifest
    statistics: DatasetStatistics
    label_names: Mapping[str, Phrase]
    lang: Lang

    def setting(self, name: str) -> object:
        """The value of a setting of the build, None when it is not recorded."""
        entry = self.manifest.settings.get(name)
        return entry.value if entry else None

    @property
    def is_template(self) -> bool:
        """True when no entry may serve as training source."""
        return self.statistics.n_entries > 0 and self.statistics.n_training_source == 0

    @property
    def is_bundled_sample(self) -> bool:
        """True when the questions are the invented ones that come with the package."""
        inputs = self.manifest.inputs
        return bool(inputs) and all(is_bundled_sample(entry.sha256) for entry in inputs)

    def text(self, phrase: Phrase) -> str:
        """A phrase in the page's language."""
        return phrase.first(self.lang)


def known_phrase(group: str, name: str) -> Phrase:
    """The phrase `group.name`, or the name itself when the wording has none."""
    return wording().get(f"{group}.{name}", same(name))
