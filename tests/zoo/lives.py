"""What one class goes through: dry run, two steps packed and padded, resume, merge, generate.

life = live("qwen3_5_text", tmp_path)
life.ending, life.sentence        # "padded", "tiny mixes packed documents: ..."
"""

from __future__ import annotations

import json
import shutil
import traceback
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from cbtqa.errors import CbtqaError
from cbtqa.settings import resolve
from cbtqa.tuning.libraries import FAULTS
from tests.support.tiny_models import tiny_tokenizer, write_rows
from tests.zoo.tiny import registered_types, tiny_config

Ending = Literal["packed", "padded", "refused", "unexpected"]
TOLERANCE = 2e-3
"""Largest difference, relative to it, that a loss may have packed and padded."""


@dataclass(frozen=True)
class Life:
    """How a class fared."""

    model_type: str
    architecture: str
    ending: Ending
    sentence: str = ""
    """Why it is padded or refused; for `unexpected` the stage and the error."""
    predicts_packing: bool | None = None
    """What the dry run says of packing; None where it was not reached."""
    targets: tuple[str, ...] = ()
    """Layers that got an adapter."""
    merges: str = ""
    """Empty when the merged model writes what base and adapter write; else the refusal."""
    loss: tuple[float, ...] = ()
    """First and last of the packed (or padded) run."""

    def line(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self), ensure_ascii=False)


class Unexpected(Exception):
    """A result that contradicts another."""


def live(model_type: str, folder: Path) -> Life:
    """Everything that a user would do with a checkpoint of this type."""
    life = Life(model_type, registered_types()[model_type], "unexpected")
    stage = "making the tiny model"
    try:
        base = _write(model_type, folder / "tiny")
        data = write_rows(folder / "rows.jsonl", 8)
        stage = "dry run"
        foretold = _dry_run(data, base)
        life = replace(life, predicts_packing=foretold)
        stage = "two steps"
        run = _train(data, base, folder / "run")
        counts = run["counts"]
        is_packed = counts["is_packed"]
        note = next((n for n in counts["notes"] if "padded" in n), "")
        config = json.loads((folder / "run" / "adapter_config.json").read_text())
        named = {*(config["target_modules"] or ()), *(config.get("target_parameters") or ())}
        life = replace(
            life,
            sentence=note,
            targets=tuple(sorted(named)),
            loss=(counts["first_loss"], counts["last_loss"]),
        )
        stage = "two steps, padded"
        padded = counts
        if is_packed:
            padded = _train(data, base, folder / "padded", packing=False)["counts"]
        for name in ("first_loss", "last_loss"):
            if abs(padded[name] - counts[name]) > TOLERANCE * abs(padded[name]):
                raise Unexpected(f"{name} {counts[name]:.5f}, padded {padded[name]:.5f}")
        if is_packed and not foretold:  # the other way round the trial has found out
            raise Unexpected("the dry run foretold padded batches, the run is packed")
        stage = "resume"
        _resume(data, base, folder)
        stage = "generate"
        own = _generate(folder, adapter=folder / "run", base=str(base))
        stage = "merge"
        life = replace(life, merges=_merge(folder, base, own))
    except CbtqaError as error:
        words = " ".join(str(error).split())
        if stage == "two steps" or stage == "dry run":
            return replace(life, ending="refused", sentence=words)
        return replace(life, ending="unexpected", sentence=f"{stage}: {words}")
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the finding
        at = traceback.extract_tb(error.__traceback__)
        own_line = [one for one in at if "cbtqa" in one.filename][-1:] or at[-1:]
        where = " < ".join(f"{Path(o.filename).name}:{o.lineno}" for o in (at[-1], own_line[0]))
        words = " ".join(str(error).split())[:300]
        said = f"{stage}: {type(error).__name__}: {words} [{where}]"
        return replace(life, ending="unexpected", sentence=said)
    return replace(life, ending="packed" if is_packed else "padded")


def _write(model_type: str, folder: Path) -> Path:
    import torch
    import transformers

    torch.manual_seed(0)
    config = tiny_config(model_type)
    config.architectures = [registered_types()[model_type]]
    tiny_tokenizer().save_pretrained(folder)
    config.save_pretrained(folder)
    try:
        model = transformers.AutoModelForCausalLM.from_config(config)
    except FAULTS:
        if not _is_of_the_class(type(config)):
            raise
        return folder  # as one who has such a checkpoint would find it
    if type(model).__name__ != registered_types()[model_type]:
        raise Unexpected(f"made a {type(model).__name__}")
    model.save_pretrained(folder)
    return folder


def _is_of_the_class(config_class: Any) -> bool:
    """True when the class cannot be made of its own default configuration either."""
    import torch
    import transformers

    try:
        with torch.device("meta"):
            transformers.AutoModelForCausalLM.from_config(config_class())
    except FAULTS:
        return True
    return False


def _flags(data: Path, base: Path, out: Path, **more: Any) -> Any:
    from cbtqa.tuning.settings import FinetuneSettings

    words = {"data": data, "backbone": str(base), "out": out, "max_steps": 2, "batch_size": 4}
    words |= {"micro_batch_tokens": 300, "max_length": 300, "rank": 4, "n_samples": 0}
    words |= {"eval_steps": 1, "precision": "fp32", "log_steps": 1}
    return resolve(FinetuneSettings, flags=words | more)


def _dry_run(data: Path, base: Path) -> bool:
    from cbtqa.tuning.training.dry_run import dry_run

    found = dry_run(_flags(data, base, base.parent / "none"))
    if found.n_trainable <= 0 or found.bytes_per_token <= 0:
        raise Unexpected(f"dry run: {found.n_trainable} trained, {found.bytes_per_token} bytes")
    return found.layout.is_packed


def _train(data: Path, base: Path, out: Path, **more: Any) -> dict[str, Any]:
    from cbtqa.tuning.training.finetune import finetune

    result = finetune(_flags(data, base, out, **more))
    return {"counts": result.manifest.counts}


def _resume(data: Path, base: Path, folder: Path) -> None:
    run, again = folder / "run", folder / "again"
    shutil.copytree(run, again)
    shutil.rmtree(again / "checkpoints" / "checkpoint-2")
    whole = (run / "adapter_model.safetensors").read_bytes()
    for name in ("manifest.json", "adapter_model.safetensors"):
        (again / name).unlink()
    _train(data, base, again)
    if (again / "adapter_model.safetensors").read_bytes() != whole:
        raise Unexpected("the resumed run has other weights")


def _generate(folder: Path, **model: Any) -> list[str]:
    from cbtqa.tuning.answering.generate import generate
    from cbtqa.tuning.answering.settings import GenerateSettings

    asked = folder / "asked.jsonl"
    asked.write_text(
        "".join(
            json.dumps({"id": f"q{k}", "prompt": text}, ensure_ascii=False) + "\n"
            for k, text in enumerate(("最近总是睡不好。", "同事说我的方案太天真，怎么办？"))
        ),
        encoding="utf-8",
    )
    out = folder / ("of-" + "-".join(sorted(model)))
    words = {"data": asked, "out": out, "max_new_tokens": 6, "device": "cpu", **model}
    try:
        generate(resolve(GenerateSettings, flags=words))
    except CbtqaError as error:
        # six tokens of a random model are no whole answer; they are kept with the rejects
        if "has an answer" not in str(error):
            raise
    rows = [json.loads(line) for line in (out / "rejects.jsonl").read_text().splitlines()]
    rows += [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
    return sorted(str(row.get("raw") or row.get("text")) for row in rows)


def _merge(folder: Path, base: Path, own: list[str]) -> str:
    from cbtqa.errors import ConfigError
    from cbtqa.tuning.weights.merge import merge

    try:
        merge(folder / "run", folder / "merged", base=str(base))
    except ConfigError as error:
        return " ".join(str(error).split())
    merged = _generate(folder, model=str(folder / "merged"))
    if merged != own:
        raise Unexpected(f"the merged model writes {merged}, the adapter {own}")
    return ""
