"""The dataset card: README.md with the front matter that `datasets` and the Hub read.

    write_text(folder / "README.md", render_card(folder, manifest, statistics))

Every figure comes from the manifest and the statistics. The card holds no question and no answer:
a card stays public where its dataset is gated.
"""

from __future__ import annotations

import re
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from cbtqa.dataset.report import dataset_report
from cbtqa.dataset.report.items import crisis_handling
from cbtqa.dataset.report.material import Material, known_phrase, number, percent, say
from cbtqa.dataset.report.provenance import disclosure
from cbtqa.dataset.stats import DatasetStatistics, folder_statistics, paper_facts
from cbtqa.dataset_folder import CARD_NAME, FORMAT_VERSION, REPORT_NAME, DatasetFolder, data_files
from cbtqa.files import write_text
from cbtqa.manifest import Manifest, describe_file, now, write_manifest
from cbtqa.report.page import Lang, Phrase
from cbtqa.safety.notices import (
    content_warning,
    help_text,
    required_notices,
    usage_terms,
)

if TYPE_CHECKING:
    from jinja2 import Environment

SIZES = (1_000, 10_000, 100_000, 1_000_000, 10_000_000)
SIZE_NAMES = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M")
"""The Hub's size categories."""


def complete_folder(folder: Path, manifest: Manifest) -> Manifest:
    """Adds card, report and, last, the manifest with the list of files to what was written."""
    statistics = folder_statistics(DatasetFolder.open(folder, partial=True))
    write_text(folder / CARD_NAME, render_card(folder, manifest, statistics))
    write_text(folder / REPORT_NAME, dataset_report(folder, manifest, statistics))
    files = tuple(describe_file(path, folder) for path in data_files(folder))
    told = {"files": files, "format_version": FORMAT_VERSION, "finished_at": now()}
    manifest = manifest.model_copy(update=told)
    write_manifest(folder, manifest)
    return manifest


def render_card(folder: Path, manifest: Manifest, statistics: DatasetStatistics) -> str:
    """The card as Markdown: front matter, Chinese, English, citation.

    Args:
        folder: the dataset; only its file names are looked at.
    """
    material = Material(folder, manifest, statistics, {}, "zh")
    values = _values(material)
    parts = [_environment().get_template(f"card.{lang}.md").render(values) for lang in ("zh", "en")]
    front = yaml.safe_dump(front_matter(material), allow_unicode=True, sort_keys=False)
    body = re.sub(r"\n{3,}", "\n\n", "\n".join(parts))
    return f"---\n{front}---\n\n{body.strip()}\n"


def front_matter(material: Material) -> dict[str, Any]:
    """The YAML head of the card; see the Hub's dataset card specification."""
    statistics, is_invented = material.statistics, material.is_bundled_sample
    category = next((k for k, size in enumerate(SIZES) if statistics.n_entries < size), len(SIZES))
    licence: dict[str, Any] = {"license": "apache-2.0"}
    if not is_invented:
        licence = {"license": "other", "license_name": "research-only-source-terms-apply"}
    configs: list[dict[str, Any]] = []
    if statistics.splits:
        parts = [{"split": name, "path": f"data/{name}-*.parquet"} for name in statistics.splits]
        configs.append({"config_name": "default", "default": True, "data_files": parts})
    if _has_human(material):
        human = [{"split": "human", "path": "human/*.parquet"}]
        configs.append({"config_name": "human", "data_files": human})
    tags = ["mental-health", "cognitive-behavioural-therapy", "cognitive-distortions", "synthetic"]
    return {
        "pretty_name": material.text(say("title")),
        "language": ["zh"],
        **licence,
        "size_categories": [SIZE_NAMES[category]],
        "task_categories": ["question-answering", "text-generation"],
        "annotations_creators": ["machine-generated"],
        "language_creators": ["machine-generated"] if is_invented else ["found"],
        "source_datasets": ["original"] if is_invented else ["extended"],
        "tags": [*tags, "not-for-training"] if material.is_template else tags,
        "configs": configs,
    }


def _has_human(material: Material) -> bool:
    return any(material.folder.glob("human/*.parquet"))


def _values(material: Material) -> dict[str, Any]:
    manifest, statistics = material.manifest, material.statistics
    rejected: dict[str, int] = manifest.counts.get("rejected", {})
    near = manifest.counts.get("n_near_duplicates")
    share = statistics.share_distorted
    return {
        "title": say("title"),
        "n_entries": number(statistics.n_entries),
        "n_distorted": statistics.n_distorted,
        "share_distorted": percent(share) if share else None,
        "paper_share": percent(paper_facts().share_distorted),
        "version": manifest.cbtqa_version,
        "date": manifest.finished_at[:10],
        "is_template": material.is_template,
        "is_bundled_sample": material.is_bundled_sample,
        "has_human": _has_human(material),
        "has_steps": statistics.n_with_steps > 0,
        "splits": [(name, number(n)) for name, n in statistics.splits.items()],
        "length_sentence": _length_sentence(statistics),
        "teacher": _teacher(material),
        "prompts": ", ".join(f"`{name}` ({h})" for name, h in manifest.prompts.items()),
        "inputs": ", ".join(
            f"{_code(entry.name)} (SHA-256 {entry.sha256})" for entry in manifest.inputs
        ),
        "n_in": number(manifest.counts.get("n_in", 0)),
        "n_out": number(statistics.n_entries),
        "n_rejected": number(sum(rejected.values())),
        "rejected": _listed("reasons", rejected) if rejected else None,
        "n_near_duplicates": None if near is None else number(near),
        "disclosure": disclosure(material),
        "crisis": crisis_handling(material),
        "risks": _listed("risk", statistics.risk),
        "zh": _notices("zh"),
        "en": _notices("en"),
        "citation": resources.files("cbtqa.dataset")
        .joinpath("card", "citation.bib")
        .read_text("utf-8"),
    }


def _notices(lang: Lang) -> dict[str, Any]:
    terms = usage_terms(lang)
    return {
        "made_by_program": say("notice.made_by_program").first(lang),
        "content_warning": content_warning(lang),
        "help": help_text(lang),
        "intended": terms.intended,
        "forbidden": terms.forbidden,
        "required": required_notices(lang),
    }


def _teacher(material: Material) -> Phrase:
    if material.is_template:
        return say("made.teacher_template")
    models = ", ".join(_code(name) for name in material.statistics.models)
    kind = say("made.teacher_endpoint")
    return Phrase(zh=f"{kind.zh} {models}", en=f"{kind.en} {models}")


def _length_sentence(statistics: DatasetStatistics) -> Phrase:
    if not statistics.lengths:
        return Phrase(zh="", en="")
    medians = {
        name: number(statistics.lengths[name].median)
        for name in ("question", "description", "answer")
    }
    return say("lengths.sentence", **medians)


def _listed(group: str, counts: dict[str, int]) -> Phrase:
    """Counts by name in both languages, such as `cut 2, refusal 1`."""
    names = [(known_phrase(group, name), number(n)) for name, n in counts.items()]
    return Phrase(
        zh="，".join(f"{name.zh} {n}" for name, n in names),
        en=", ".join(f"{name.en} {n}" for name, n in names),
    )


def _code(text: str) -> str:
    """A name from outside as inline code that it cannot leave."""
    return "`" + re.sub(r"[`\s]+", " ", text) + "`"


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("cbtqa.dataset", "card"),
        autoescape=False,  # Markdown, not HTML; names from outside go through `_code`
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
