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
    return load_wording("cbtqa.dataset.report", "wording.yaml")


def say(key: str, **values: object) -> Phrase:
    return wording()[key].fill(**values)


def is_invented(manifest: Manifest) -> bool:
    """True when all questions are the sample that comes with cbtqa: nobody's text."""
    return bool(manifest.inputs) and all(is_bundled_sample(e.sha256) for e in manifest.inputs)


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
        return is_invented(self.manifest)

    def text(self, phrase: Phrase) -> str:
        return phrase.first(self.lang)


def known_phrase(group: str, name: str) -> Phrase:
    """The phrase `group.name`, or the name itself when the wording has none."""
    return wording().get(f"{group}.{name}", same(name))
