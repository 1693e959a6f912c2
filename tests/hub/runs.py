"""Finished runs to publish, invented: a dataset, its ratings, an adapter, its scores."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

from cbtqa.dataset_folder import answer_features, arrow_schema, question_of
from cbtqa.files import ParquetRows, read_rows, write_json, write_jsonl
from cbtqa.manifest import (
    FileEntry,
    Manifest,
    SettingValue,
    describe_file,
    read_manifest,
    write_manifest,
)
from cbtqa.metrics.score_folder import write_folder
from cbtqa.metrics.scoring import ScoreSettings, score
from cbtqa.ratings.analysis import analyse, write_outputs
from cbtqa.ratings.answers import Answer
from cbtqa.ratings.design import NewStudySettings, create_study
from cbtqa.ratings.study import open_study, unblind
from cbtqa.settings import resolve
from cbtqa.tuning.weights.files import BaseRecord, write_base_record
from cbtqa.tuning.weights.merge import MergeRecord
from tests.support.dataset_folder import write_dataset_folder

BASE = "invented-lab/Tiny-Chat"
REVISION = "1" * 40


def rows_of(run: Path) -> list[dict[str, Any]]:
    """All rows of a dataset folder."""
    return [row for path in sorted((run / "data").glob("*.parquet")) for _, row in read_rows(path)]


def write_dataset(folder: Path, n_entries: int = 30, **kind: Any) -> Path:
    """A finished dataset whose answers quote nothing of their questions at length."""
    write_dataset_folder(folder, n_entries, **kind)
    edit_rows(folder, _without_quotes)
    return folder


def _without_quotes(row: dict[str, Any]) -> None:
    for label in row["distortions"]:
        if label["evidence"]:
            for name in ("answer", "key_thought"):
                if row[name] is not None:
                    row[name] = row[name].replace(label["evidence"], "那句话")


def edit_rows(run: Path, edit: Any, *, also_in_manifest: bool = True) -> None:
    """Changes every row in place, as a build with other answers would have written them."""
    for path in sorted((run / "data").glob("*.parquet")):
        rows = [row for _, row in read_rows(path)]
        with ParquetRows(path, arrow_schema(answer_features())) as parquet:
            for row in rows:
                edit(row)
                parquet.add(row)
    if also_in_manifest:
        manifest = read_manifest(run)
        files = tuple(describe_file(run / entry.name, run) for entry in manifest.files)
        write_manifest(run, manifest.model_copy(update={"files": files}))


def write_psyqa(run: Path, path: Path) -> Path:
    """The questions of a dataset as a file in PsyQA's schema, with a human answer each."""
    rows = [
        {
            "questionID": int(row["id"]),
            "question": row["question"],
            "description": row["description"],
            "keywords": ",".join(row["keywords"]),
            "answers": [
                {
                    "answer_text": f"楼主你好，第{row['id']}位来信的朋友，先抱一抱努力撑到今天的你，再慢慢说给你听。",
                    "has_label": False,
                    "labels_sequence": None,
                }
            ],
        }
        for row in rows_of(run)
    ]
    path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    return path


def write_ratings(run: Path, folder: Path, *, is_blind: bool = False) -> Path:
    """A rated study of two systems on questions of the dataset, as `cbtqa rate report` leaves it."""
    folder.mkdir()
    rows = rows_of(run)
    for system in ("ours", "base"):
        answers = [{"question_id": r["id"], "text": f"{r['answer']}（{system}）"} for r in rows]
        write_jsonl(folder / f"{system}.jsonl", answers)
    write_jsonl(folder / "questions.jsonl", [question_of(row).model_dump() for row in rows])
    made = create_study(
        NewStudySettings(
            predictions=tuple(f"{name}={folder / name}.jsonl" for name in ("ours", "base")),
            questions=folder / "questions.jsonl",
            n=6,
            raters=3,
            out=folder / "study",
        )
    )
    if not is_blind:
        unblind(made.folder, made.key_path, "Li Hua", 36, "0" * 64)
    study, chance = open_study(folder / "study"), random.Random(5)
    answers_of = {
        shown.code: Answer(
            values={c.id: chance.choice(list(c.points)) for c in study.rubric.criteria},
            note="王小明觉得第二段太长",
            seconds=31.5,
        )
        for shown in study.plan
    }
    out = folder / "report"
    write_outputs(out, study, answers_of, analyse(study, answers_of), ["sheet"])
    return out


def write_scores(run: Path, folder: Path, *, n_systems: int = 1) -> Path:
    """Scores of `ours` (and `base`) against the dataset's answers, as `cbtqa score --out` writes."""
    rows, paths = rows_of(run), []
    for system in ("ours", "base")[:n_systems]:
        path = folder.parent / f"{system}.jsonl"
        answers = [{"id": r["id"], "prediction": r["answer"][: 60 + len(system)]} for r in rows]
        write_jsonl(path, answers)
        paths.append(path)
    resolved = resolve(
        ScoreSettings,
        flags={"predictions": tuple(paths), "ref": run, "split": "all", "metrics": "chrf2,length"},
    )
    write_folder(folder, score(resolved.values), resolved, "2026-11-21T00:00:00+00:00")
    return folder


def write_adapter(folder: Path, *, base: dict[str, Any] | None = None) -> Path:
    """An adapter as `cbtqa finetune` leaves it, with what must stay behind around it."""
    import numpy as np
    from safetensors.numpy import save_file

    folder.mkdir(parents=True)
    chance = np.random.default_rng(0)
    weights = {
        f"base_model.model.model.layers.0.self_attn.q_proj.lora_{side}.weight": chance.random(
            (4, 8) if side == "A" else (8, 4), np.float32
        )
        for side in ("A", "B")
    }
    save_file(weights, str(folder / "adapter_model.safetensors"), metadata={"format": "pt"})
    local = f"{folder.parent}/models/tiny-chat"
    write_json(
        folder / "adapter_config.json",
        {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": local,
            "revision": None,
            "r": 4,
            "lora_alpha": 8,
            "lora_dropout": 0.0,
            "target_modules": ["q_proj"],
        },
    )
    write_json(folder / "tokenizer_config.json", {"name_or_path": local, "pad_token": "<pad>"})
    write_json(folder / "tokenizer.json", {"model": {"vocab": {"/usr/local": 0, "心理": 1}}})
    (folder / "README.md").write_text(f"base: {local}", encoding="utf-8")
    recorded = _base_record(base if base is not None else {"name": BASE, "revision": REVISION})
    write_base_record(folder, recorded)
    (folder / "checkpoint-10").mkdir()
    for name in ("checkpoint-10/optimizer.pt", "training_args.bin", "samples.jsonl"):
        (folder / name).write_bytes(b"\x80\x02state")
    write_manifest(folder, _adapter_manifest(recorded.model_dump()))
    return folder


def _base_record(fields: dict[str, Any]) -> BaseRecord:
    """The training's own record of a base; an empty name is one that says nothing."""
    return BaseRecord(**{"backbone": None, "name": "", "weights_sha256": "c" * 64, **fields})


def _adapter_manifest(base: dict[str, Any]) -> Manifest:
    settings = {"rank": 4, "learning_rate": 2e-4, "epochs": 3.0, "preset": "modern", "seed": 0}
    return Manifest(
        kind="adapter",
        packages={"torch": "2.13.0", "peft": "0.21.2"},
        settings={k: SettingValue(value=v, origin="default") for k, v in settings.items()},
        inputs=(FileEntry(name="cbtqa-dataset", n_bytes=10, sha256="ab" * 32),),
        counts={"base": base, "n_steps": 30, "eval_loss": 1.25, "n_trainable": 64},
        started_at="2026-11-21T01:00:00+00:00",
        finished_at="2026-11-21T02:00:00+00:00",
    )


def write_merged(folder: Path, *, with_licence: bool = True) -> Path:
    """Merged weights as `cbtqa merge` leaves them."""
    import numpy as np
    from safetensors.numpy import save_file

    folder.mkdir(parents=True)
    save_file(
        {"model.embed_tokens.weight": np.ones((4, 4), np.float32)},
        str(folder / "model.safetensors"),
    )
    write_json(
        folder / "config.json",
        {"architectures": ["LlamaForCausalLM"], "_name_or_path": str(folder)},
    )
    write_json(folder / "tokenizer_config.json", {"pad_token": "<pad>"})
    if with_licence:
        (folder / "LICENSE").write_text("Licence of the base.\n", encoding="utf-8")
    record = MergeRecord(
        backbone=None,
        base=_base_record({"name": BASE, "revision": REVISION}),
        adapter="adapter",
        adapter_files=(),
        method="LoRA",
        n_merged=1,
        n_replaced=0,
        dtypes=("float32",),
        notes=(),
        weights_sha256="d" * 64,
        packages={"torch": "2.13.0"},
        files=(),
        finished_at="2026-11-21T02:00:00+00:00",
    )
    write_json(folder / "merge.json", record)
    return folder


def copy_of(run: Path, folder: Path) -> Path:
    """The same run elsewhere."""
    shutil.copytree(run, folder)
    return folder
