"""Settings that do not fit together, all told at once, before anything is read or loaded."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

from cbtqa.errors import ConfigError
from cbtqa.settings import Resolved
from cbtqa.tuning.examples import is_of_rows
from cbtqa.tuning.settings import FinetuneSettings

_INSTALL = {"tensorboard": "pip install tensorboard", "wandb": "pip install wandb"}


def check_settings(resolved: Resolved[FinetuneSettings], n_processes: int = 1) -> None:
    """Refuses what cannot work.

    Raises:
        ConfigError: lists every problem with the origin of its setting.
    """
    problems = [
        f"{resolved.origins[name]}: {name}: {words}"
        for name, words in _problems(resolved.values, n_processes)
    ]
    if problems:
        raise ConfigError("\n".join(problems))


def _problems(settings: FinetuneSettings, n_processes: int) -> Iterator[tuple[str, str]]:
    is_rows = settings.data is not None and is_of_rows(settings.data)
    if is_rows and settings.mode != "answer":
        yield "mode", f"{settings.mode} is for built datasets; a file's rows are learnt as they are"
    if is_rows and settings.system_prompt is not None:
        yield "system_prompt", "is for built datasets; a file's rows bring their own"
    has_own = settings.data is not None and settings.data.is_dir()
    if settings.early_stopping and settings.validation_data is None and not has_own:
        yield "early_stopping", "wants --validation-data: there is nothing to evaluate on"
    if settings.batch_size < n_processes:
        yield "batch_size", f"{settings.batch_size} examples for {n_processes} processes"
    if settings.objective == "orpo" and settings.loss_on == "text":
        yield "loss_on", "is for sft; for orpo: --orpo-nll"
    for name in settings.tracker:
        if name not in _INSTALL:
            yield "tracker", f"no tracker '{name}': {' or '.join(_INSTALL)}"
        elif importlib.util.find_spec(name) is None:
            yield "tracker", f"{name} is not installed: {_INSTALL[name]}"
