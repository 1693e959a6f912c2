"""`cbtqa export`: a built dataset as files that other trainers and evaluators read as they are.

llama-factory   train.jsonl, validation.jsonl, test.jsonl in Alpaca's columns, dataset_info.json
ms-swift        the same files of `messages`
trl             the same files of conversational `prompt` and `completion`
evalscope       the same files of `query`, `response`, `system`, each a subset of `general_qa`

Prompt and answer are those that `cbtqa finetune` learns from, in the same modes.

Source: the data README of LLaMA-Factory; "Custom dataset" of ms-swift; "Dataset formats" of TRL;
"Custom dataset, large language model" of EvalScope; read on 2026-12-01.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from cbtqa.dataset_folder import SPLITS, DatasetFolder
from cbtqa.errors import ConfigError, DataError, UsageError
from cbtqa.files import write_json, write_jsonl
from cbtqa.manifest import (
    MANIFEST_NAME,
    FolderResult,
    describe_file,
    new_manifest,
    now,
    write_manifest,
)
from cbtqa.settings import Resolved, Settings
from cbtqa.tuning.data.examples import Example, dataset_example, refuse_template
from cbtqa.tuning.settings import FinetuneSettings, Mode

Program = Literal["llama-factory", "ms-swift", "trl", "evalscope"]
INFO_NAME = "dataset_info.json"
COLUMNS = {"prompt": "instruction", "query": "input", "response": "output", "system": "system"}
"""LLaMA-Factory's names of the columns to ours, which are Alpaca's."""


class ExportSettings(Settings):
    """The settings of `cbtqa export`."""

    data: Path | None = None
    """Built dataset."""
    for_: Program
    """Program that is to read the files."""
    out: Path = Path("cbtqa-export")
    """Folder to write; must be empty or new."""
    mode: Mode = "answer"
    """answer (flowing text), steps (five headings) or cot (distortions first)."""
    system_prompt: str | None = None
    """System text in place of the mode's own; empty: none."""
    with_risk: bool = False
    """Also the crisis split and other questions of any risk, which are left out otherwise."""
    allow_template: bool = False
    """Also text of the template teacher, which is no source for training."""


def export(resolved: Resolved[ExportSettings]) -> FolderResult:
    """Writes every split of a dataset in the shape of another program, the manifest last.

    Raises:
        UsageError: no data named.
        ConfigError: the folder is not empty, or text of the template teacher.
        DataError: not a dataset, or no row is left of it.
    """
    settings, started = resolved.values, now()
    if settings.data is None:
        raise UsageError("no data named", hint="cbtqa export cbtqa-dataset --for llama-factory")
    _refuse_foreign(settings.out)
    dataset = DatasetFolder.open(settings.data)
    dropped: Counter[str] = Counter()
    names = [name for name in dataset.splits if name != "crisis" or settings.with_risk]
    if not settings.with_risk and "crisis" in dataset.splits:
        dropped["risk"] += sum(1 for _ in dataset.rows("crisis", ("id",)))
    chosen = FinetuneSettings(
        mode=settings.mode,
        system_prompt=settings.system_prompt,
        allow_template=settings.allow_template,
        with_risk=settings.with_risk,
    )
    counts = {}
    for name in names:
        sources = [row["is_training_source"] for row in dataset.rows(name, ("is_training_source",))]
        refuse_template(chosen, sources.count(False), len(sources), name)
    for name in names:
        path = settings.out / f"{name}.jsonl"
        n = write_jsonl(path, _rows(dataset, name, settings.for_, chosen, dropped))
        if n:
            counts[name] = n
        else:
            path.unlink()
    if not counts:
        why = ", ".join(f"{reason} {n:,}" for reason, n in dropped.items()) or "it is empty"
        raise DataError(f"no row is left: {why}", where=str(settings.data))
    if settings.for_ == "llama-factory":
        write_json(settings.out / INFO_NAME, dataset_info(list(counts)))
    files = sorted(path for path in settings.out.iterdir() if path.suffix in (".json", ".jsonl"))
    n_out = sum(counts.values())
    manifest = new_manifest(
        "export",
        resolved,
        started,
        inputs=(describe_file(settings.data / MANIFEST_NAME),),
        counts={
            "n_in": n_out + dropped.total(),
            "n_out": n_out,
            "n_rejected": dropped.total(),
            "rejected": dict(dropped.most_common()),
            "splits": counts,
        },
        files=tuple(describe_file(path, settings.out) for path in files),
    )
    write_manifest(settings.out, manifest)
    return FolderResult(settings.out, manifest)


def _refuse_foreign(folder: Path) -> None:
    """Raises a ConfigError for a folder that holds more than what a failed export left."""
    if not folder.exists():
        return
    ours = {f"{name}.jsonl" for name in SPLITS} | {INFO_NAME}
    if not folder.is_dir() or any(path.name not in ours for path in folder.iterdir()):
        raise ConfigError(f"--out: {folder} is not empty", hint="name a new folder")


def _rows(
    dataset: DatasetFolder,
    split: str,
    program: Program,
    chosen: FinetuneSettings,
    dropped: Counter[str],
) -> Iterator[dict[str, Any]]:
    for row in dataset.rows(split):
        made = dataset_example(chosen, row)
        if isinstance(made, str):
            dropped[made] += 1
        else:
            yield {"id": made.id, **row_for(program, made)}


def row_for(program: Program, example: Example) -> dict[str, Any]:
    """One example in the columns of a program."""
    *before, question = example.prompt
    system = "\n".join(turn["content"] for turn in before)
    answer = {"role": "assistant", "content": example.answer}
    match program:
        case "llama-factory":
            values = (question["content"], "", example.answer, system)
            return dict(zip(COLUMNS.values(), values, strict=True))
        case "ms-swift":
            return {"messages": [*example.prompt, answer]}
        case "trl":
            return {"prompt": list(example.prompt), "completion": [answer]}
        case "evalscope":
            spoken = {"query": question["content"], "response": example.answer}
            return {"system": system, **spoken} if system else spoken


def dataset_info(splits: list[str]) -> dict[str, Any]:
    """LLaMA-Factory's description of each split, as its `dataset_info.json` holds it."""
    return {f"cbtqa_{name}": {"file_name": f"{name}.jsonl", "columns": COLUMNS} for name in splits}


def usage(program: Program, folder: Path, splits: list[str]) -> str:
    """How the program is told to read the files, in one line."""
    has_validation = "validation" in splits
    match program:
        case "llama-factory":
            more = ", eval_dataset: cbtqa_validation" if has_validation else ""
            return f"in its YAML: dataset_dir: {folder}, dataset: cbtqa_{splits[0]}{more}"
        case "ms-swift":
            more = f" --val_dataset {folder}/validation.jsonl" if has_validation else ""
            return f"swift sft --dataset {folder}/{splits[0]}.jsonl{more} --model NAME"
        case "trl":
            files = ", ".join(f'"{name}": "{folder}/{name}.jsonl"' for name in splits)
            return f'load_dataset("json", data_files={{{files}}})'
        case "evalscope":
            subset = "test" if "test" in splits else splits[0]
            arguments = (
                f'{{"general_qa": {{"local_path": "{folder}", "subset_list": ["{subset}"]}}}}'
            )
            return f"evalscope eval --datasets general_qa --dataset-args '{arguments}' --model NAME"
