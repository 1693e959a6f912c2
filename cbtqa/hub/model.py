"""`cbtqa publish model`: an adapter, or merged weights, as the files of a repository.

Only what a reader needs is taken: weights in safetensors, configuration, tokenizer, licence and
notice files. Everything else of the run stays behind and is listed.
"""

from __future__ import annotations

import shutil
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

import yaml

from cbtqa.errors import DataError
from cbtqa.files import read_json, write_json, write_text
from cbtqa.hub.cards import ModelFacts, render_model_card
from cbtqa.hub.model_facts import BaseModel, find_base, read_scores
from cbtqa.hub.plan import (
    CARD_PATH,
    STAGING,
    PlannedFile,
    PublishPlan,
    PublishRefusedError,
    fresh_staging,
    open_run,
    staged_files,
    write_provenance,
)
from cbtqa.hub.ratings import read_study
from cbtqa.hub.scan import Watch, load_refusals, protected_text, watch_for
from cbtqa.hub.settings import ModelSettings
from cbtqa.manifest import Manifest, package_versions

Form = Literal["adapter", "merged"]
ADAPTER_WEIGHTS, ADAPTER_CONFIG = "adapter_model*.safetensors", "adapter_config.json"
MERGED_WEIGHTS, MERGE_RECORD = "model*.safetensors", "merge.json"
TOKENIZER = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "*.tiktoken"),
    *("chat_template.jinja", "chat_template.json"),
)
NOTICES = ("license*", "notice*", "use_policy*")
TAKEN: dict[Form, tuple[str, ...]] = {
    "adapter": (ADAPTER_WEIGHTS, *TOKENIZER, *NOTICES),
    "merged": (MERGED_WEIGHTS, "model.safetensors.index.json", *TOKENIZER, *NOTICES),
}
REWRITTEN: dict[Form, tuple[str, ...]] = {
    "adapter": (ADAPTER_CONFIG,),
    "merged": ("config.json", "generation_config.json"),
}
EVAL_RESULTS = ".eval_results"
"""Folder that the Hub's leaderboards read."""
PATH_KEYS = ("_name_or_path", "name_or_path")
"""Keys in which the training's libraries leave the folder that a model was loaded from."""


def plan_model(settings: ModelSettings) -> tuple[PublishPlan, Watch]:
    """Writes what is generated to `RUN/publish/files` and lists it with the weights.

    Raises:
        PublishRefusedError: the run is not finished, its weights are pickles, its base is not
            named, or merged weights lack the base's licence.
        DataError: no weights there, or a damaged file.
    """
    if not (settings.run / MERGE_RECORD).is_file():
        open_run(settings.run)
    form = _form_of(settings.run)
    manifest = _open_model(settings.run, form)
    base = find_base(settings, manifest.counts)
    staging = fresh_staging(settings.run)
    for path in settings.licence_file:
        if not path.is_file():
            raise DataError("no such file", where=str(path))
        shutil.copyfile(path, staging / path.name)
    _write_configs(settings.run, staging, form, base)
    taken = _taken(settings.run, staging, form)
    names = {path.name for path in (*staging.iterdir(), *(file.source for file in taken))}
    notices = sorted(n for n in names if any(fnmatch(n.lower(), kind) for kind in NOTICES))
    if form == "merged" and not any(name.lower().startswith("license") for name in notices):
        raise PublishRefusedError(
            "merged weights carry their base's licence, and there is no licence file in the run",
            hint=f"fetch it from {base.hub_id} and add --licence-file LICENSE",
        )
    facts = ModelFacts(
        settings=settings,
        manifest=manifest,
        form=form,
        base=base,
        method=_method(staging),
        scores=tuple(read_scores(folder, settings.system) for folder in settings.scores),
        studies=tuple(read_study(folder) for folder in settings.ratings),
        notice_files=tuple(notices),
    )
    write_text(staging / CARD_PATH, render_model_card(facts))
    if settings.benchmark:
        _write_eval_results(staging, settings.benchmark, facts)
    write_provenance(
        staging,
        "model",
        manifest,
        taken=taken,
        acknowledgements=manifest.acknowledgements,
        more={"form": form, "base": {"hub_id": base.hub_id, "revision": base.revision}},
    )
    files = tuple(sorted((*staged_files(staging), *taken), key=lambda file: file.path))
    plan = PublishPlan(
        kind="model",
        repo_id=settings.to,
        files=files,
        gate=settings.gate,
        left_out=_left_out(settings.run, {file.path for file in files}),
        remarks=_remarks(settings, base),
    )
    return plan, watch_for(settings, protected_text(settings))


def _write_eval_results(staging: Path, benchmark: str, facts: ModelFacts) -> None:
    entries = facts.scores[0].eval_results(benchmark, f"https://huggingface.co/{facts.settings.to}")
    text = yaml.safe_dump(entries, allow_unicode=True, sort_keys=False, width=1_000)
    name = benchmark.partition("@")[0].replace("/", "--")
    write_text(staging / EVAL_RESULTS / f"{name}.yaml", text)


def _form_of(run: Path) -> Form:
    if not run.is_dir():
        raise DataError("no such folder", where=str(run))
    if any(run.glob(ADAPTER_WEIGHTS)):
        return "adapter"
    if any(run.glob(MERGED_WEIGHTS)) and (run / "config.json").is_file():
        return "merged"
    pickles = [path.name for kind in ("*.bin", "*.pt", "*.pth") for path in run.glob(kind)]
    if pickles:
        raise PublishRefusedError(
            f"{run} holds its weights as pickles ({pickles[0]}), which run code when loaded",
            hint="save them as safetensors: cbtqa finetune and cbtqa merge do",
        )
    raise DataError(
        "no adapter_model.safetensors and no model.safetensors in it",
        where=str(run),
        hint="RUN is the folder that cbtqa finetune or cbtqa merge wrote",
    )


def _open_model(run: Path, form: Form) -> Manifest:
    """The manifest of an adapter; merged weights are finished by `merge.json` instead."""
    if form == "merged" and (run / MERGE_RECORD).is_file():
        record: dict[str, Any] = read_json(run / MERGE_RECORD)
        finished = str(record.get("finished_at", ""))
        return Manifest(
            kind="merged",
            packages={**package_versions(), **record.get("packages", {})},
            counts={key: record.get(key) for key in ("method", "n_merged", "n_replaced", "dtypes")},
            started_at=finished,
            finished_at=finished,
        )
    return open_run(run)


def _write_configs(run: Path, staging: Path, form: Form, base: BaseModel) -> None:
    """Configuration files with the base's Hub id where the training left a folder's name."""
    for name in REWRITTEN[form]:
        if not (run / name).is_file():
            if name == "generation_config.json":
                continue
            raise DataError(f"no {name} in it", where=str(run))
        config: dict[str, Any] = read_json(run / name)
        if name == ADAPTER_CONFIG:
            config |= {"base_model_name_or_path": base.hub_id, "revision": base.revision}
        write_json(staging / name, _without_paths(config))
    settings = run / "tokenizer_config.json"
    if settings.is_file() and set(PATH_KEYS) & set(config := read_json(settings)):
        write_json(staging / settings.name, _without_paths(config))


def _without_paths(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in PATH_KEYS}


def _taken(run: Path, staging: Path, form: Form) -> tuple[PlannedFile, ...]:
    """Files of the run that go out as they are."""
    return tuple(
        PlannedFile(path.name, path)
        for path in sorted(run.iterdir())
        if path.is_file()
        and any(fnmatch(path.name.lower(), kind) for kind in TAKEN[form])
        and not (staging / path.name).exists()
    )


def _method(staging: Path) -> dict[str, Any]:
    """The adapter's shape for the card; empty for merged weights."""
    path = staging / ADAPTER_CONFIG
    if not path.is_file():
        return {}
    config = read_json(path)
    keys = ("peft_type", "r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora")
    return {key: config[key] for key in keys if config.get(key) is not None}


def _left_out(run: Path, published: set[str]) -> tuple[tuple[str, str], ...]:
    """Every file and folder that stays behind, with the reason."""
    found = []
    for path in sorted(run.iterdir()):
        name = f"{path.name}/" if path.is_dir() else path.name
        if name in published or name == f"{STAGING}/":
            continue
        rules = load_refusals()["left_out"]
        why = next((rule["why"] for rule in rules if fnmatch(name, rule["match"])), None)
        found.append((name, why or "not for readers"))
    return tuple(found)


def _remarks(settings: ModelSettings, base: BaseModel) -> tuple[str, ...]:
    remarks = []
    if base.is_converted:
        remarks.append(
            f"readers have to convert {base.hub_id} first; the card says so (cbtqa convert)"
        )
    if settings.source is None:
        remarks.append("texts are not compared with PsyQA: name its file with --source")
    if not settings.scores:
        remarks.append("the card shows no scores: --scores FOLDER adds them")
    return tuple(remarks)
