"""The report of a dataset folder: one HTML page that says what is in it and how it came about.

write_text(folder / "report.html", dataset_report(folder, manifest, statistics))
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cbtqa.dataset.report import items, measures, provenance
from cbtqa.dataset.report.material import Material, say
from cbtqa.dataset.stats import DatasetStatistics, folder_statistics
from cbtqa.dataset_folder import DatasetFolder
from cbtqa.distortions.taxonomy import load_taxonomy, shipped_concepts
from cbtqa.errors import DataError
from cbtqa.manifest import Manifest
from cbtqa.report.page import Lang, Page, Phrase, Section, render_page


def dataset_report(
    folder: Path,
    manifest: Manifest | None = None,
    statistics: DatasetStatistics | None = None,
    *,
    lang: Lang = "zh",
) -> str:
    """The report as HTML.

    Args:
        manifest: read from the folder by default; a build passes its own, not yet written.
        statistics: counted from the folder by default.
        lang: language of headings and sentences; headings carry the other one beside them.

    Raises:
        IncompleteRunError: no manifest given and none in the folder.
        DataError: a file of the folder is damaged.
    """
    manifest = manifest or DatasetFolder.open(folder).manifest
    statistics = statistics or folder_statistics(DatasetFolder.open(folder, partial=True))
    material = Material(folder, manifest, statistics, label_names(manifest, statistics), lang)
    sections = {
        "glance": provenance.glance,
        "made": provenance.made,
        "splits": provenance.splits,
        "topics": measures.topics,
        "lengths": measures.lengths,
        "steps": measures.steps,
        "distortions": measures.distortions,
        "risk": items.risk,
        "rejects": items.rejects,
        "likeness": measures.likeness,
        "examples": items.examples,
        "use": items.use,
        "files": provenance.files,
        "load": provenance.load,
    }
    page = Page(
        title=say("title"),
        kicker=say("kicker"),
        lede=provenance.lede(material),
        opening=provenance.opening(material),
        sections=tuple(
            Section(say(f"sections.{key}"), tuple(make(material)), key)
            for key, make in sections.items()
        ),
        footer=say("footer", version=manifest.cbtqa_version),
        lang=lang,
    )
    return render_page(page)


def label_names(manifest: Manifest, statistics: DatasetStatistics) -> Mapping[str, Phrase]:
    """Chinese and English names of all labels met; an unknown id stands for itself."""
    names = {key: Phrase(zh=c.zh, en=c.en) for key, c in shipped_concepts().items()}
    setting = manifest.settings.get("taxonomy")
    if setting is not None:
        try:
            taxonomy = load_taxonomy(str(setting.value))
            names |= {entry.id: Phrase(zh=entry.zh, en=entry.en) for entry in taxonomy.types}
        except DataError:
            pass  # a taxonomy file of the user's that is no longer where it was
    return {
        label.id: names.get(label.id, Phrase(zh=label.id, en=label.id))
        for label in statistics.labels
    }


__all__ = ["dataset_report", "label_names"]
