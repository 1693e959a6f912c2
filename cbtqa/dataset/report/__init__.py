"""The report of a dataset folder: one HTML page about its content and origin."""

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
        lang: the language that the page opens in; its switch shows the other one.

    Raises:
        IncompleteRunError: no manifest given and none in the folder.
    """
    opened = DatasetFolder.open(folder, partial=True)
    manifest = manifest or opened.manifest
    statistics = statistics or folder_statistics(opened)
    material = Material(folder, manifest, statistics, label_names(manifest, statistics), lang)
    totals = provenance.totals(material)
    notices = load_notices()
    return render_page(
        "cbtqa.dataset.report",
        "report.html.j2",
        Head(
            title=say("title"),
            kicker=say("kicker"),
            lede=provenance.lede(material),
            footer=say("footer", version=manifest.cbtqa_version),
            lang=lang,
        ),
        say=say,
        items=items,
        measures=measures,
        provenance=provenance,
        material=material,
        folder=opened,
        statistics=statistics,
        totals=totals,
        adds_up=totals["n_in"] == totals["n_out"] + totals["n_rejected"],
        paper=paper_facts(),
        label_name=lambda label: material.label_names.get(label, same(label)),
        text_name=lambda column: known_phrase("texts", column),
        reason_name=lambda reason: known_phrase("reasons", reason),
        content_warning=_phrase(notices.content_warning),
        intended_use=_phrase(notices.intended_use),
        forbidden_use=[_phrase(entry) for entry in notices.forbidden_use],
        required=[_phrase(entry) for entry in notices.required],
        help=Phrase(zh=help_text("zh"), en=help_text("en")),
        help_page=Phrase(zh=help_text("zh", "page"), en=help_text("en", "page")),
    )


def _phrase(text: Wording) -> Phrase:
    return Phrase(zh=text.zh, en=text.en)


def label_names(manifest: Manifest, statistics: DatasetStatistics) -> Mapping[str, Phrase]:
    """Chinese and English names of all labels of the dataset and of the paper, which stand in one
    table; an unknown id is its own name."""
    names = {key: Phrase(zh=c.zh, en=c.en) for key, c in shipped_concepts().items()}
    setting = manifest.settings.get("taxonomy")
    if setting is not None:
        try:
            taxonomy = load_taxonomy(str(setting.value))
            names |= {entry.id: Phrase(zh=entry.zh, en=entry.en) for entry in taxonomy.types}
        except DataError:
            pass  # a taxonomy file of the user's that is no longer where it was
    ids = dict.fromkeys([*(label.id for label in statistics.labels), *dict(paper_facts().labels)])
    return {label: names.get(label, same(label)) for label in ids}
