"""The report of a dataset folder: one HTML page that says what is in it and how it came about.

write_text(folder / "report.html", dataset_report(folder, manifest, statistics))
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cbtqa.dataset.report import items, measures, provenance
from cbtqa.dataset.report.material import Material, known_phrase, say
from cbtqa.dataset.stats import DatasetStatistics, folder_statistics, paper_facts
from cbtqa.dataset_folder import DatasetFolder
from cbtqa.distortions.taxonomy import load_taxonomy, shipped_concepts
from cbtqa.errors import DataError
from cbtqa.manifest import Manifest
from cbtqa.report.page import Head, Lang, Phrase, render_page, same
from cbtqa.safety.notices import Wording, help_text, load_notices


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
    totals = provenance.totals(material)
    head = Head(
        title=say("title"),
        kicker=say("kicker"),
        lede=provenance.lede(material),
        footer=say("footer", version=manifest.cbtqa_version),
        lang=lang,
    )
    return render_page(
        "cbtqa.dataset.report",
        "report.html.j2",
        head,
        **_shared_with_templates(),
        material=material,
        folder=DatasetFolder.open(folder, partial=True),
        statistics=statistics,
        totals=totals,
        adds_up=totals["n_in"] == totals["n_out"] + totals["n_rejected"],
        label_name=lambda label: material.label_names.get(label, same(label)),
        text_name=lambda column: known_phrase("texts", column),
    )


def _shared_with_templates() -> dict[str, object]:
    """Functions that the report's template calls, and the texts that every report shows."""
    notices = load_notices()
    return {
        "say": say,
        "items": items,
        "measures": measures,
        "provenance": provenance,
        "paper": paper_facts(),
        "content_warning": _phrase(notices.content_warning),
        "intended_use": _phrase(notices.intended_use),
        "forbidden_use": [_phrase(entry) for entry in notices.forbidden_use],
        "required": [_phrase(entry) for entry in notices.required],
        "help": Phrase(zh=help_text("zh"), en=help_text("en")),
        "help_page": Phrase(zh=help_text("zh", "page"), en=help_text("en", "page")),
    }


def _phrase(wording: Wording) -> Phrase:
    return Phrase(zh=wording.zh, en=wording.en)


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
