"""The card of a published model: front matter with the scores, Chinese, English, citation."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Literal

from cbtqa.hub.base_model import BaseModel
from cbtqa.hub.card_schema import ModelFront, check_front
from cbtqa.hub.gating import gate_front_matter
from cbtqa.hub.notices import notices_of
from cbtqa.hub.ratings import RatedStudy, card_rows
from cbtqa.hub.rendering import join_card, render
from cbtqa.hub.scores import ModelScores
from cbtqa.hub.settings import ModelSettings
from cbtqa.manifest import Manifest

TAGS = ("mental-health", "cognitive-behavioural-therapy", "psyqa")
SHOWN_SETTINGS = (
    *("preset", "objective", "mode", "method", "rank", "alpha", "dropout", "target_module"),
    *("rslora", "dora", "learning_rate", "schedule", "warmup", "weight_decay", "optimizer"),
    *("epochs", "max_steps", "batch_size", "max_length", "packing", "precision", "beta", "seed"),
)
"""Settings that a reader needs to train the same, where the run records them."""
SHOWN_COUNTS = (
    *("n_steps", "n_trainable", "n_frozen", "precision", "first_loss", "last_loss", "eval_loss"),
    *("method", "n_merged", "dtypes"),
)


@dataclass(frozen=True)
class ModelFacts:
    """All that the card draws on."""

    settings: ModelSettings
    manifest: Manifest
    form: Literal["adapter", "merged"]
    base: BaseModel
    method: dict[str, Any]
    """The adapter's shape, as its configuration says; empty for merged weights."""
    scores: tuple[ModelScores, ...]
    studies: tuple[RatedStudy, ...]
    notes: str | None
    notice_files: tuple[str, ...]


def render_model_card(facts: ModelFacts) -> str:
    """The card as Markdown."""
    values = _values(facts)
    parts = [render(f"model.{lang}.md", values) for lang in ("zh", "en")]
    front = check_front(ModelFront, front_matter(facts))
    return join_card(front, *parts, render("citation.md", values))


def front_matter(facts: ModelFacts) -> dict[str, Any]:
    """The YAML head; see the Hub's model card specification."""
    settings, base = facts.settings, facts.base
    licence: dict[str, Any] = {"license": settings.licence or "other"}
    if licence["license"] == "other":
        licence["license_name"] = "see-base-model"
        licence["license_link"] = f"https://huggingface.co/{base.hub_id}"
    front: dict[str, Any] = {
        "language": ["zh"],
        **licence,
        "base_model": base.hub_id,
        "base_model_relation": "adapter" if facts.form == "adapter" else "finetune",
        "library_name": "peft" if facts.form == "adapter" else "transformers",
        "pipeline_tag": "text-generation",
        "inference": False,
        "tags": [*TAGS, *(["lora"] if facts.form == "adapter" else [])],
    }
    if settings.dataset:
        front["datasets"] = list(settings.dataset)
    entries = [scores.index_entry(settings.dataset) for scores in facts.scores]
    entries = [entry for entry in entries if entry["metrics"]]
    if entries:
        named = [metric["type"] for entry in entries for metric in entry["metrics"]]
        front["metrics"] = list(dict.fromkeys(named))
        name = settings.to.split("/")[1]
        front["model-index"] = [{"name": name, "results": entries}]
    return {**front, **gate_front_matter(settings.gate)}


def _values(facts: ModelFacts) -> dict[str, Any]:
    settings, manifest = facts.settings, facts.manifest
    return {
        "repo_id": settings.to,
        "name": settings.to.split("/")[1],
        "form": facts.form,
        "base": facts.base,
        "method": facts.method,
        "version": manifest.cbtqa_version,
        "date": manifest.finished_at[:10],
        "datasets": settings.dataset,
        "inputs": manifest.inputs,
        "hyper": [
            (name, _plain(entry.value), entry.origin)
            for name in SHOWN_SETTINGS
            if (entry := manifest.settings.get(name)) is not None and entry.value not in (None, [])
        ],
        "counts": [
            (name, _plain(manifest.counts[name]))
            for name in SHOWN_COUNTS
            if manifest.counts.get(name) is not None
        ],
        "packages": {
            name: version
            for name, version in manifest.packages.items()
            if name in ("torch", "transformers", "peft", "accelerate")
        },
        "scores": [(one.references, one.system, one.rows()) for one in facts.scores],
        "warnings": [warning for one in facts.scores for warning in one.warnings],
        "ratings": card_rows(facts.studies),
        "system": settings.system,
        "notice_files": facts.notice_files,
        "licence": settings.licence,
        "gate": settings.gate,
        "contact": settings.contact,
        "discussions": f"https://huggingface.co/{settings.to}/discussions",
        "notes": facts.notes,
        "zh": notices_of("zh"),
        "en": notices_of("en"),
        "citation": files("cbtqa.dataset").joinpath("card", "citation.bib").read_text("utf-8"),
    }


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:g}" if isinstance(value, float) else str(value)
