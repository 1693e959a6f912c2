"""The card of a published dataset: front matter, Chinese, English, citation.

Every figure comes from the manifest, the statistics of what is published, and reports that were
named. The card holds no question and no answer: it stays readable for everybody.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from cbtqa.dataset.card import SIZE_NAMES, SIZES
from cbtqa.dataset.report import label_names
from cbtqa.dataset.report.items import crisis_handling
from cbtqa.dataset.report.material import Material, known_phrase, number, percent, say
from cbtqa.dataset.stats import DatasetStatistics, paper_facts
from cbtqa.hub.card_schema import DatasetFront, check_front
from cbtqa.hub.gating import gate_front_matter
from cbtqa.hub.label_quality import read_label_quality
from cbtqa.hub.notices import notices_of
from cbtqa.hub.quotes import MASK
from cbtqa.hub.ratings import SUMMARY_SPLIT, RatedStudy, card_rows
from cbtqa.hub.rendering import join_card, render
from cbtqa.hub.settings import DatasetSettings
from cbtqa.hub.terms import TERMS_NAME, TERMS_PATH
from cbtqa.manifest import Manifest
from cbtqa.report.wording import Phrase

CONFIGS = ("qa", "distortions", "ratings", "ratings_summary")
TAGS = ("mental-health", "cognitive-behavioural-therapy", "cognitive-distortions", "synthetic")


@dataclass(frozen=True)
class CardFacts:
    """All that the card draws on."""

    settings: DatasetSettings
    manifest: Manifest
    statistics: DatasetStatistics
    """Of the entries that are published."""
    n_rows: dict[str, dict[str, int]]
    """Rows by config and split."""
    has_source_text: bool
    n_withheld: int
    n_unmaskable: int
    n_masked: int
    studies: tuple[RatedStudy, ...]
    notes: str | None


def render_dataset_card(facts: CardFacts) -> str:
    """The card as Markdown."""
    material = Material(
        facts.settings.run,
        facts.manifest,
        facts.statistics,
        label_names(facts.manifest, facts.statistics),
        "zh",
    )
    values = {**_values(facts, material), **_tables(facts, material)}
    parts = [render(f"dataset.{lang}.md", values) for lang in ("zh", "en")]
    front = check_front(DatasetFront, front_matter(facts, material))
    return join_card(front, *parts, render("citation.md", values))


def front_matter(facts: CardFacts, material: Material) -> dict[str, Any]:
    """The YAML head; see the Hub's dataset card specification."""
    n_entries = facts.statistics.n_entries
    category = next((k for k, size in enumerate(SIZES) if n_entries < size), len(SIZES))
    configs: list[dict[str, Any]] = []
    for name in CONFIGS:
        if name in facts.n_rows:
            splits = [
                {"split": split, "path": f"{name}/{split}-*.parquet"}
                for split in facts.n_rows[name]
            ]
            first = {"config_name": name, **({"default": True} if name == "qa" else {})}
            configs.append({**first, "data_files": splits})
    annotators = ["machine-generated", *(["expert-generated"] if facts.studies else [])]
    return {
        "pretty_name": say("title").zh,
        "language": ["zh"],
        "license": "other",
        "license_name": TERMS_NAME,
        "license_link": TERMS_PATH,
        "size_categories": [SIZE_NAMES[category]],
        "task_categories": ["question-answering", "text-generation", "text-classification"],
        "annotations_creators": annotators,
        "language_creators": ["machine-generated"],
        "source_datasets": ["original"] if material.is_bundled_sample else ["extended"],
        "tags": [*TAGS, "not-for-training"] if material.is_template else list(TAGS),
        "configs": configs,
        **gate_front_matter(facts.settings.gate),
    }


def _values(facts: CardFacts, material: Material) -> dict[str, Any]:
    manifest, statistics = facts.manifest, facts.statistics
    rejected: dict[str, int] = manifest.counts.get("rejected", {})
    return {
        "repo_id": facts.settings.to,
        "title": say("title"),
        "version": manifest.cbtqa_version,
        "date": manifest.finished_at[:10],
        "started": manifest.started_at[:10],
        "is_template": material.is_template,
        "is_bundled_sample": material.is_bundled_sample,
        "has_source_text": facts.has_source_text,
        "mask": MASK,
        "n_entries": number(statistics.n_entries),
        "n_masked": number(facts.n_masked) if facts.n_masked else None,
        "n_withheld": number(facts.n_withheld) if facts.n_withheld else None,
        "n_unmaskable": number(facts.n_unmaskable) if facts.n_unmaskable else None,
        "has_steps": statistics.n_with_steps > 0,
        "models": list(statistics.models),
        "prompts": manifest.prompts,
        "inputs": manifest.inputs,
        "sampling": _sampling(material),
        "n_in": number(manifest.counts.get("n_in", 0)),
        "n_out": number(manifest.counts.get("n_out", 0)),
        "n_rejected": number(sum(rejected.values())),
        "rejected": _listed("reasons", rejected),
        "n_refused": number(rejected.get("refusal", 0) + rejected.get("content_filter", 0)),
        "usage": manifest.usage,
        "cost": manifest.cost,
        "hosts": manifest.acknowledgements.get("disclosure"),
        "permission": facts.settings.permission.name if facts.settings.permission else None,
        "crisis": crisis_handling(material),
        "risks": _listed("risk", statistics.risk),
        "gate": facts.settings.gate,
        "contact": facts.settings.contact,
        "discussions": f"https://huggingface.co/datasets/{facts.settings.to}/discussions",
        "notes": facts.notes,
        "zh": notices_of("zh"),
        "en": notices_of("en"),
        "citation": files("cbtqa.dataset").joinpath("card", "citation.bib").read_text("utf-8"),
    }


def _tables(facts: CardFacts, material: Material) -> dict[str, Any]:
    statistics = facts.statistics
    lengths = [
        (name, f"{s.mean:.0f}", f"{s.median:g}", f"{s.p95:.0f}", f"{s.max:,}")
        for name, s in statistics.lengths.items()
        if name in ("question", "description", "answer")
    ]
    labels = [
        (
            label.id,
            material.label_names[label.id],
            number(label.n_entries),
            percent(label.share_of_entries),
            percent(paper_facts().labels.get(label.id)).replace("n/a", "-"),
        )
        for label in statistics.labels
    ]
    return {
        "configs": [
            (config, split, number(n))
            for config in CONFIGS
            for split, n in facts.n_rows.get(config, {}).items()
        ],
        "config_names": [name for name in CONFIGS if name in facts.n_rows],
        "summary_split": SUMMARY_SPLIT,
        "lengths": lengths,
        "labels": labels,
        "share_distorted": percent(statistics.share_distorted),
        "paper_share": percent(paper_facts().share_distorted),
        "quality": read_label_quality(facts.settings.label_quality),
        "ratings": card_rows(facts.studies),
    }


def _sampling(material: Material) -> str | None:
    given = {name: material.setting(name) for name in ("temperature", "top_p", "max_tokens")}
    shown = ", ".join(f"{name} {value}" for name, value in given.items() if value is not None)
    return shown if shown and not material.is_template else None


def _listed(group: str, counts: dict[str, int]) -> Phrase | None:
    """Counts by name in both languages; None when there is nothing to count."""
    if not counts:
        return None
    names = [(known_phrase(group, name), number(n)) for name, n in counts.items()]
    return Phrase(
        zh="，".join(f"{name.zh} {n}" for name, n in names),
        en=", ".join(f"{name.en} {n}" for name, n in names),
    )
