"""`finetune`: one training run, read from top to bottom, that continues where it was interrupted.

result = finetune(resolve(FinetuneSettings, flags={"data": ..., "backbone": ..., "out": ...}))
result.manifest.counts["eval_loss"]
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cbtqa.manifest import FolderResult
from cbtqa.settings import Resolved
from cbtqa.tuning.libraries import require
from cbtqa.tuning.settings import FinetuneSettings

OnStage = Callable[[str], None]
OnLine = Callable[[dict[str, float]], None]


@dataclass(frozen=True)
class FinetuneResult(FolderResult):
    """A finished run."""

    is_first_process: bool = True
    """False on the other processes of a run over several, which have nothing to tell."""


def finetune(
    resolved: Resolved[FinetuneSettings],
    *,
    on_stage: OnStage = lambda words: None,
    on_line: OnLine = lambda line: None,
) -> FinetuneResult:
    """Trains an adapter, or continues a run that was interrupted.

    Raises:
        ConfigError: settings, backbone or folder do not fit.
        DataError: the data is not what it should be, or nothing of it is left.
        MissingExtraError: torch, transformers or peft is not installed.
        IncompleteRunError: stopped early: memory, disk, or a signal; the same command continues.
    """
    for module in ("torch", "transformers", "peft", "accelerate"):
        require(module)
    talk = require("transformers").logging
    talk.set_verbosity_error()
    talk.disable_progress_bar()
    from cbtqa.tuning.loading import choose_backbone
    from cbtqa.tuning.training.prepare import prepare_sets, resolve_for_run
    from cbtqa.tuning.training.record import check_folder, continued, finished, start_of
    from cbtqa.tuning.weights.files import describe_base

    resolved = resolve_for_run(resolved)
    settings = resolved.values
    if settings.method == "qlora" or settings.optimizer == "adamw_8bit":
        require("bitsandbytes", "qlora")
    check_folder(settings.out)
    backbone = choose_backbone(settings)
    on_stage("reading data")
    sets = prepare_sets(settings, backbone)
    on_stage("hashing the backbone")
    base = describe_base(backbone, is_quantized=settings.method == "qlora")
    start = continued(settings.out, start_of(resolved, sets.inputs, base, sets.ids()))
    before = finished(settings.out)
    if before is not None:
        return FinetuneResult(settings.out, before, was_complete=True)
    from cbtqa.tuning.training.run import run_training

    manifest, is_first = run_training(settings, backbone, sets, start, on_stage, on_line)
    return FinetuneResult(settings.out, manifest, is_first_process=is_first)
