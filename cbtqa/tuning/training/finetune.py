"""`finetune`: one training run, which resumes where it was interrupted.

result = finetune(resolve(FinetuneSettings, flags={"data": ..., "backbone": ..., "out": ...}))
result.manifest.counts["eval_loss"]
"""

from __future__ import annotations

from dataclasses import dataclass

from cbtqa.llm.batch import OnProgress
from cbtqa.manifest import MANIFEST_NAME, FolderResult, read_manifest
from cbtqa.settings import Resolved
from cbtqa.tuning.libraries import require, require_training
from cbtqa.tuning.settings import FinetuneSettings, OnLine, OnStage


@dataclass(frozen=True)
class FinetuneResult(FolderResult):
    """A finished run."""

    is_first_process: bool = True
    """False on the other processes of a run over several, which report nothing."""


def finetune(
    resolved: Resolved[FinetuneSettings],
    *,
    on_stage: OnStage = lambda words: None,
    on_line: OnLine = lambda line: None,
    on_progress: OnProgress | None = None,
) -> FinetuneResult:
    """Trains an adapter, or resumes a run that was interrupted.

    Raises:
        ConfigError: settings, backbone or folder do not fit.
        DataError: rows that cannot be read, or no example left.
        MissingExtraError: torch, transformers or peft is not installed.
        IncompleteRunError: stopped early: memory, disk, or a signal; the same command resumes.
    """
    require_training("accelerate")
    from cbtqa.tuning.loading import choose_backbone
    from cbtqa.tuning.training.prepare import prepare_sets, resolve_for_run
    from cbtqa.tuning.training.record import check_folder, continued, start_of
    from cbtqa.tuning.weights.files import describe_base

    resolved = resolve_for_run(resolved)
    settings = resolved.values
    if settings.method == "qlora" or settings.optimizer == "adamw_8bit":
        require("bitsandbytes", extra="qlora")
    check_folder(settings.out)
    backbone = choose_backbone(settings.backbone, settings.revision, on_stage, place=settings.from_)
    on_stage("reading data")
    sets = prepare_sets(settings, backbone)
    on_stage("hashing the backbone")
    base = describe_base(backbone, is_quantized=settings.method == "qlora")
    ids = {name: [item.id for item in of.items] for name, of in sets.by_name.items()}
    start = continued(settings.out, start_of(resolved, sets.inputs, base, ids))
    if (settings.out / MANIFEST_NAME).exists():
        return FinetuneResult(settings.out, read_manifest(settings.out), was_complete=True)
    from cbtqa.tuning.training.run import run_training

    manifest, is_first = run_training(sets, start, on_stage, on_line, on_progress)
    return FinetuneResult(settings.out, manifest, is_first_process=is_first)
