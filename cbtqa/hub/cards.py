"""The cards of published datasets and models: front matter, Chinese, English, citation.

Every figure comes from the manifest, the statistics of what is published, and reports that were
named. The card holds no question and no answer: it stays readable for everybody.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from cbtqa.dataset.card import (
    card_values,
    front_matter,
    join_card,
    render,
    values_of_every_card,
)
from cbtqa.dataset.report import label_names
from cbtqa.dataset.report.material import Material, say
from cbtqa.dataset.report.measures import label_table, length_table
from cbtqa.dataset.report.provenance import sampling_of
from cbtqa.dataset.stats import DatasetStatistics, distortion_share
from cbtqa.distortions.evaluate import read_evaluation
from cbtqa.distortions.tables import binary_table
from cbtqa.files import shipped_yaml, write_text
from cbtqa.hub.card_schema import DatasetFront, ModelFront, check_front
from cbtqa.hub.model_facts import BaseModel, ModelScores
from cbtqa.hub.ratings import SUMMARY_SPLIT, RatedStudy, card_table
from cbtqa.hub.scan import read_notes
from cbtqa.hub.settings import DatasetSettings, Gate, ModelSettings, PublishSettings
from cbtqa.hub.source_text import MASK
from cbtqa.manifest import Manifest
from cbtqa.plain_values import parse_yaml
from cbtqa.report.page import Phrase
from cbtqa.report.table import Table
from cbtqa.report.words import count
from cbtqa.safety.notices import required_notices, usage_terms

CONFIGS = ("qa", "distortions", "ratings", "ratings_summary")


@dataclass
class Published:
    n_rows: dict[str, dict[str, int]] = field(default_factory=dict)
    """Rows by config and split."""
    n_withheld: int = 0
    """Entries with a sign of risk, left out by `--withhold-crisis`."""
    n_unmaskable: int = 0
    """Entries left out because they repeat their question in other punctuation."""
    n_masked: int = 0
    """Entries in which words of the question are masked."""
    n_foreign_ratings: int = 0
    """Ratings of questions that are not published."""


@dataclass(frozen=True)
class CardFacts:
    settings: DatasetSettings
    manifest: Manifest
    statistics: DatasetStatistics
    """Of the entries that are published."""
    counted: Published
    has_source_text: bool
    studies: tuple[RatedStudy, ...]


def render_dataset_card(facts: CardFacts) -> str:
    names = label_names(facts.manifest, facts.statistics)
    material = Material(facts.settings.run, facts.manifest, facts.statistics, names, "zh")
    values = {**_values(facts, material), **_tables(facts, material)}
    front = check_front(DatasetFront, dataset_front_matter(facts, material))
    if facts.settings.site == "modelscope":
        front = _for_modelscope(front)
    return _card("dataset", front, values)


def _card(kind: str, front: dict[str, Any], values: dict[str, Any]) -> str:
    names = (f"{kind}.zh.md", f"{kind}.en.md", "citation.md")
    return join_card(front, *(render("cbtqa.hub", name, values) for name in names))


def dataset_front_matter(facts: CardFacts, material: Material) -> dict[str, Any]:
    """The YAML head; see the Hub's dataset card specification."""
    configs: list[dict[str, Any]] = []
    for name in CONFIGS:
        if name in facts.counted.n_rows:
            splits = [
                {"split": split, "path": f"{name}/{split}-*.parquet"}
                for split in facts.counted.n_rows[name]
            ]
            first = {"config_name": name, **({"default": True} if name == "qa" else {})}
            configs.append({**first, "data_files": splits})
    licence = {"license": "other", "license_name": TERMS_NAME, "license_link": TERMS_PATH}
    annotators = ["machine-generated", *(["expert-generated"] if facts.studies else [])]
    return {
        **front_matter(material, licence, configs),
        "task_categories": ["question-answering", "text-generation", "text-classification"],
        "annotations_creators": annotators,
        "language_creators": ["machine-generated"],
        **gate_front_matter(facts.settings.gate),
    }


def _for_modelscope(front: dict[str, Any]) -> dict[str, Any]:
    """Without the Hub's access form, which ModelScope does not know: its own asks for a reason.

    Source: ModelScope's page on model cards (license, language, tasks, frameworks, base_model,
    datasets, tags), looked up 2026-12-02; `datasets` reads `configs` there as on the Hub.
    """
    return {key: value for key, value in front.items() if not key.startswith("extra_gated_")}


def _published_values(settings: PublishSettings, kind: str) -> dict[str, Any]:
    name, page = settings.to.rpartition("/")[2], f"https://huggingface.co/{kind}{settings.to}"
    is_modelscope = settings.site == "modelscope"
    if is_modelscope:
        page = f"https://modelscope.cn/{kind or 'models/'}{settings.to}"
    of_kind = "--dataset" if kind else "--model"
    return {
        # a folder, where the libraries in the examples would look on the Hub
        "repo_id": f"./{name}" if is_modelscope else settings.to,
        "download": f"modelscope download {of_kind} {settings.to} --local_dir {name}"
        if is_modelscope
        else "",
        "gate": settings.gate,
        "contact": settings.contact,
        "discussions": page if is_modelscope else f"{page}/discussions",
        "notes": read_notes(settings.notes),
    }


def _values(facts: CardFacts, material: Material) -> dict[str, Any]:
    manifest, settings = facts.manifest, facts.settings
    rejected: dict[str, int] = manifest.counts.get("rejected", {})
    return {
        **card_values(material),
        **_published_values(settings, "datasets/"),
        "started": manifest.started_at[:10],
        "has_source_text": facts.has_source_text,
        "mask": MASK,
        **{
            name: count(n) if n else None
            for name, n in vars(facts.counted).items()
            if name != "n_rows"
        },
        "models": list(facts.statistics.models),
        "prompts": manifest.prompts,
        "inputs": manifest.inputs,
        "sampling": sampling_of(material),
        "n_out": count(manifest.counts.get("n_out", 0)),
        "distortions": _distortions(facts),
        "n_refused": count(rejected.get("refusal", 0) + rejected.get("content_filter", 0)),
        "usage": manifest.usage,
        "cost": manifest.cost,
        "hosts": manifest.acknowledgements.get("disclosure"),
        "permission": settings.permission.name if settings.permission else None,
    }


def _distortions(facts: CardFacts) -> Phrase:
    """The labelled share in words, corrected where the labeller's quality is known."""
    path = facts.settings.label_quality
    evaluation = read_evaluation(path) if path else None
    return distortion_share(facts.statistics, evaluation).sentence()


def _tables(facts: CardFacts, material: Material) -> dict[str, Any]:
    statistics, names = facts.statistics, material.label_names

    def label_name(label: str) -> Phrase:
        name = names[label]
        return Phrase(zh=f"{name.zh} `{label}`", en=f"{name.en} `{label}`")

    heads = [Phrase(zh="配置", en="config"), Phrase(zh="划分", en="split"), say("columns.entries")]
    configs = [
        (f"`{config}`", f"`{split}`", n)
        for config in CONFIGS
        for split, n in facts.counted.n_rows.get(config, {}).items()
    ]
    return {
        "configs": Table(heads, configs),
        "config_names": [name for name in CONFIGS if name in facts.counted.n_rows],
        "summary_split": SUMMARY_SPLIT,
        "lengths": length_table(statistics, lambda column: f"`{column}`"),
        "labels": label_table(statistics, label_name) if statistics.labels else None,
        "quality": read_label_quality(facts.settings.label_quality),
        "ratings": card_table(facts.studies),
    }


MODEL_TAGS = ("mental-health", "cognitive-behavioural-therapy", "psyqa")
SHOWN_SETTINGS = (
    *("preset", "objective", "mode", "method", "rank", "alpha", "dropout", "target_module"),
    *("rslora", "dora", "learning_rate", "schedule", "warmup", "weight_decay", "optimizer"),
    *("epochs", "max_steps", "batch_size", "max_length", "packing", "precision", "beta", "seed"),
)
"""Settings that a reader needs to train the same, where the run records them."""
SHOWN_PACKAGES = ("torch", "transformers", "peft", "accelerate")
SHOWN_COUNTS = (
    *("n_steps", "n_trainable", "n_frozen", "precision", "first_loss", "last_loss", "eval_loss"),
    *("method", "n_merged", "dtypes"),
)


@dataclass(frozen=True)
class ModelFacts:
    settings: ModelSettings
    manifest: Manifest
    form: Literal["adapter", "merged"]
    base: BaseModel
    method: dict[str, Any]
    """The adapter's shape, as its configuration says; empty for merged weights."""
    scores: tuple[ModelScores, ...]
    studies: tuple[RatedStudy, ...]
    notice_files: tuple[str, ...]


def render_model_card(facts: ModelFacts) -> str:
    front = check_front(ModelFront, model_front_matter(facts))
    if facts.settings.site == "modelscope":
        front = {**_for_modelscope(front), "tasks": ["text-generation"], "frameworks": ["Pytorch"]}
    return _card("model", front, _model_values(facts))


def model_front_matter(facts: ModelFacts) -> dict[str, Any]:
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
        "tags": [*MODEL_TAGS, *(["lora"] if facts.form == "adapter" else [])],
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


def _model_values(facts: ModelFacts) -> dict[str, Any]:
    settings, manifest = facts.settings, facts.manifest
    known = {name: manifest.settings[name] for name in SHOWN_SETTINGS if name in manifest.settings}
    shown_settings = [
        (name, e.value, e.origin) for name, e in known.items() if e.value not in (None, [])
    ]
    counts = {name: manifest.counts.get(name) for name in SHOWN_COUNTS}
    shown_counts = [(name, n) for name, n in counts.items() if n is not None]
    return {
        **values_of_every_card(manifest),
        **_published_values(settings, ""),
        "name": settings.to.split("/")[1],
        "form": facts.form,
        "base": facts.base,
        "datasets": settings.dataset,
        "inputs": manifest.inputs,
        "method": _facts_table(_METHOD, facts.method.items()) if facts.method else None,
        "hyper": _facts_table(_HYPER, shown_settings),
        "counts": _facts_table(_COUNTS, shown_counts),
        "packages": {name: v for name, v in manifest.packages.items() if name in SHOWN_PACKAGES},
        "scores": [(one.references, one.system, one.table()) for one in facts.scores],
        "warnings": [warning for one in facts.scores for warning in one.warnings],
        "ratings": card_table(facts.studies),
        "system": settings.system,
        "notice_files": facts.notice_files,
        "licence": settings.licence,
    }


_VALUE = Phrase(zh="值", en="value")
_METHOD = (Phrase(zh="适配器", en="adapter"), _VALUE)
_HYPER = (Phrase(zh="设置", en="setting"), _VALUE, Phrase(zh="来源", en="origin"))
_COUNTS = (Phrase(zh="训练记录", en="record"), _VALUE)


def _facts_table(heads: Sequence[Phrase], rows: Iterable[tuple[Any, ...]]) -> Table | None:
    """Names as code, values as they are recorded; None without any."""
    body = [(f"`{name}`", _plain(value), *rest) for name, value, *rest in rows]
    return Table(heads, body) if body else None


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    if isinstance(value, int):
        return count(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def read_label_quality(path: Path | None) -> dict[str, Any] | None:
    """Figures that `cbtqa distortions evaluate --json` measured, without the texts it quotes."""
    if path is None:
        return None
    report = read_evaluation(path)
    name = Path(report.data).name
    measured = {"data": name, "n_texts": report.n_texts, "taxonomy": report.taxonomy}
    return {**measured, "table": binary_table(report)}


@cache
def load_gate() -> dict[str, Any]:
    loaded: dict[str, Any] = shipped_yaml("cbtqa.hub", "gate.yaml")
    return loaded


def gate_front_matter(gate: Gate) -> dict[str, Any]:
    """The `extra_gated_*` keys; empty when nobody is asked anything."""
    if gate == "none":
        return {}
    form = load_gate()
    return {
        "extra_gated_heading": form["heading"],
        "extra_gated_prompt": form["prompt"],
        "extra_gated_description": form["description"],
        "extra_gated_button_content": form["button"],
        "extra_gated_fields": {
            f"{field['zh']} {field['en']}": {"type": "select", "options": field["options"]}
            if field["type"] == "select"
            else field["type"]
            for field in form["fields"]
        },
    }


TERMS_PATH = "LICENSE.md"
TERMS_NAME = "cbtqa-research-only"


def write_terms(staging: Path) -> None:
    """Writes `LICENSE.md`: the terms, from the notices that every card and page shows."""
    values = {
        "terms": {"zh": usage_terms("zh"), "en": usage_terms("en")},
        "required": {"zh": required_notices("zh"), "en": required_notices("en")},
    }
    write_text(staging / TERMS_PATH, render("cbtqa.hub", "terms.md", values))


def split_card(card: str) -> tuple[dict[str, Any], str]:
    """Front matter and Markdown of a card; ValueError without front matter."""
    found = re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)
    if found is None:
        raise ValueError("the card has no front matter")
    front: dict[str, Any] = parse_yaml(found[1])
    return front, card[found.end() :]
