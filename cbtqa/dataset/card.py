"""The dataset card: README.md with the front matter that `datasets` and the Hub read.

Every figure comes from the manifest and the statistics. The card holds no question and no answer:
a card stays public where its dataset is gated.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from cbtqa.dataset.report import dataset_report
from cbtqa.dataset.report.items import crisis_handling
from cbtqa.dataset.report.material import Material, known_phrase, say
from cbtqa.dataset.report.provenance import disclosure
from cbtqa.dataset.stats import (
    DatasetStatistics,
    distortion_share,
    folder_statistics,
    paper_distortion_share,
)
from cbtqa.dataset_folder import CARD_NAME, FORMAT_VERSION, REPORT_NAME, DatasetFolder, data_files
from cbtqa.files import write_text
from cbtqa.manifest import Manifest, describe_file, now, write_manifest
from cbtqa.report.page import Lang, Phrase
from cbtqa.report.table import markdown_cell
from cbtqa.report.words import count
from cbtqa.safety.notices import (
    content_warning,
    help_text,
    not_a_therapist,
    required_notices,
    usage_terms,
)

if TYPE_CHECKING:
    from jinja2 import Environment

SIZES = ("1K", "10K", "100K", "1M", "10M", "100M")
TAGS = ("mental-health", "cognitive-behavioural-therapy", "cognitive-distortions", "synthetic")


def complete_folder(folder: Path, manifest: Manifest) -> Manifest:
    """Adds card, report and, last, the manifest with the list of files to what was written."""
    statistics = folder_statistics(DatasetFolder.open(folder, partial=True))
    write_text(folder / CARD_NAME, render_card(folder, manifest, statistics))
    write_text(folder / REPORT_NAME, dataset_report(folder, manifest, statistics))
    files = tuple(describe_file(path, folder) for path in data_files(folder))
    finished = {"files": files, "format_version": FORMAT_VERSION, "finished_at": now()}
    manifest = manifest.model_copy(update=finished)
    write_manifest(folder, manifest)
    return manifest


def render_card(folder: Path, manifest: Manifest, statistics: DatasetStatistics) -> str:
    """The card as Markdown: front matter, Chinese, English.

    Args:
        folder: the dataset; only its file names are looked at.
    """
    material = Material(folder, manifest, statistics, {}, "zh")
    values = {**card_values(material), **_local_values(material)}
    parts = [render("cbtqa.dataset", f"card.{lang}.md", values) for lang in ("zh", "en")]
    return join_card(_local_front(material), *parts)


def _local_front(material: Material) -> dict[str, Any]:
    licence: dict[str, Any] = {"license": "apache-2.0"}
    if not material.is_bundled_sample:
        licence = {"license": "other", "license_name": "research-only-source-terms-apply"}
    splits = material.statistics.splits
    parts = [{"split": name, "path": f"data/{name}-*.parquet"} for name in splits]
    human = [{"split": "human", "path": "human/*.parquet"}]
    configs: list[dict[str, Any]] = []
    if parts:
        configs.append({"config_name": "default", "default": True, "data_files": parts})
    if _has_human(material):
        configs.append({"config_name": "human", "data_files": human})
    return front_matter(material, licence, configs)


def front_matter(
    material: Material, licence: dict[str, Any], configs: list[dict[str, Any]]
) -> dict[str, Any]:
    """The YAML head of a dataset's card; see the Hub's dataset card specification."""
    n_entries, is_invented = material.statistics.n_entries, material.is_bundled_sample
    bounds = zip(("", *SIZES), SIZES, strict=False)
    ranges = [f"{low}<n<{high}" if low else f"n<{high}" for low, high in bounds]
    place = sum(n_entries >= 1_000 * 10**k for k in range(len(SIZES) - 1))
    return {
        "pretty_name": say("title").zh,
        "language": ["zh"],
        **licence,
        "size_categories": [ranges[place]],
        "task_categories": ["question-answering", "text-generation"],
        "annotations_creators": ["machine-generated"],
        "language_creators": ["machine-generated"] if is_invented else ["found"],
        "source_datasets": ["original"] if is_invented else ["extended"],
        "tags": [*TAGS, "not-for-training"] if material.is_template else list(TAGS),
        "configs": configs,
    }


def _has_human(material: Material) -> bool:
    return any(material.folder.glob("human/*.parquet"))


def card_values(material: Material) -> dict[str, Any]:
    """What the local card and the published one both show."""
    manifest, statistics = material.manifest, material.statistics
    rejected: dict[str, int] = manifest.counts.get("rejected", {})
    return {
        **values_of_every_card(manifest),
        "title": say("title"),
        "n_entries": count(statistics.n_entries),
        "paper_distortions": paper_distortion_share().sentence(),
        "is_template": material.is_template,
        "is_bundled_sample": material.is_bundled_sample,
        "has_steps": statistics.n_with_steps > 0,
        "n_in": count(manifest.counts.get("n_in", 0)),
        "n_rejected": count(sum(rejected.values())),
        "rejected": listed("reasons", rejected),
        "crisis": crisis_handling(material),
        "risks": listed("risk", statistics.risk),
        "dangers": listed("dangers", statistics.dangers),
        "n_minors": count(statistics.n_minors) if statistics.n_minors else None,
    }


def values_of_every_card(manifest: Manifest) -> dict[str, Any]:
    """Version, date, notices and citation, for cards of datasets and models."""
    citation = resources.files("cbtqa.dataset").joinpath("card", "citation.bib")
    return {
        "version": manifest.cbtqa_version,
        "date": manifest.finished_at[:10],
        "zh": notices_of("zh"),
        "en": notices_of("en"),
        "citation": citation.read_text("utf-8"),
    }


def _local_values(material: Material) -> dict[str, Any]:
    manifest, statistics = material.manifest, material.statistics
    near = manifest.counts.get("n_near_duplicates")
    medians = {name: count(found.median) for name, found in statistics.lengths.items()}
    none = Phrase(zh="", en="")
    return {
        "n_distorted": statistics.n_distorted,
        "distortions": distortion_share(statistics).sentence(),
        "has_human": _has_human(material),
        "splits": [(name, count(n)) for name, n in statistics.splits.items()],
        "length_sentence": say("lengths.sentence", **medians) if medians else none,
        "teacher": _teacher(material),
        "prompts": ", ".join(f"`{name}` ({h})" for name, h in manifest.prompts.items()),
        "inputs": ", ".join(f"{code(e.name)} (SHA-256 {e.sha256})" for e in manifest.inputs),
        "n_out": count(statistics.n_entries),
        "n_near_duplicates": None if near is None else count(near),
        "disclosure": disclosure(material),
    }


def notices_of(lang: Lang) -> dict[str, Any]:
    """Notices, help routes and terms that every card carries, in one language."""
    terms = usage_terms(lang)
    return {
        "made_by_program": say("notice.made_by_program").first(lang),
        "not_a_therapist": not_a_therapist(lang),
        "content_warning": content_warning(lang),
        "help": help_text(lang),
        "intended": terms.intended,
        "forbidden": terms.forbidden,
        "required": required_notices(lang),
    }


def _teacher(material: Material) -> Phrase:
    if material.is_template:
        return say("made.teacher_template")
    models = ", ".join(code(name) for name in material.statistics.models)
    kind = say("made.teacher_endpoint")
    return Phrase(zh=f"{kind.zh} {models}", en=f"{kind.en} {models}")


def listed(group: str, counts: dict[str, int]) -> Phrase | None:
    """Counts by name, such as `cut 2, refusal 1`; None when there is nothing to count."""
    if not counts:
        return None
    names = [(known_phrase(group, name), count(n)) for name, n in counts.items()]
    return Phrase(
        zh="，".join(f"{name.zh} {n}" for name, n in names),
        en=", ".join(f"{name.en} {n}" for name, n in names),
    )


def render(package: str, template: str, values: Mapping[str, Any]) -> str:
    """A template of the package's `card/`, filled in; a missing value is an error."""
    text = _environment(package).get_template(template).render(values)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def join_card(front: Mapping[str, Any], *parts: str) -> str:
    """A whole card: YAML head, then the parts."""
    head = yaml.safe_dump(dict(front), allow_unicode=True, sort_keys=False, width=1_000)
    return f"---\n{head}---\n\n" + "\n".join(parts)


def code(text: str) -> str:
    """A name from outside as inline code that it cannot leave."""
    return "`" + re.sub(r"[`\s]+", " ", str(text)).strip() + "`"


@cache
def _environment(package: str) -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader(package, "card"),
        autoescape=False,  # Markdown, not HTML; names from outside go through `code` and `cell`
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"code": code, "cell": markdown_cell}
    return environment
