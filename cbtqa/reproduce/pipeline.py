"""The pipeline: which stages are done, and the next ones, each resumed where it was interrupted.

    for done in reproduce(plan, chosen): ...

A stage is done when its record in `stages/` was made from the settings and inputs of now, and the
result that it names is still there. A record is written after its stage, so a run killed at any
moment is continued by the same command: the verb that was interrupted resumes by its own means.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import cbtqa
from cbtqa.database_files import LockFile
from cbtqa.errors import CbtqaError, DataError, IncompleteRunError, UsageError
from cbtqa.files import parse_record, read_json, sha256_of, write_json
from cbtqa.manifest import MANIFEST_NAME, read_manifest
from cbtqa.paths import make_folder
from cbtqa.records import Record
from cbtqa.reproduce.recipe import STAGES, Recipe, read_recipe
from cbtqa.reproduce.session_stages import session_stages
from cbtqa.reproduce.stages import (
    NOTHING,
    Cost,
    Plan,
    ReproduceSettings,
    Stage,
    Watch,
    answer_stages,
)

RECORDS = "stages"
EXPERIMENT_NAME = "experiment.json"
"""Recipe and settings of the folder, for the report and for who opens it later."""
State = Literal["done", "to do", "changed", "waiting", "skipped"]
"""changed: done once, from other settings or inputs; waiting: a stage before it is not done."""


class StageRecord(Record):
    """What a finished stage was made from, and what it left."""

    stage: str
    key: str
    """SHA-256 of settings and inputs."""
    result: str
    """SHA-256 of the file that tells which result is there."""
    cbtqa_version: str
    """Told in the report where it is another one; a newer version does no finished stage anew."""


class StageState(Record):
    """One stage as it stands."""

    stage: str
    state: State
    why: str = ""
    """Why it is skipped, or what it waits for."""
    cost: Cost = NOTHING
    """What it would still take; only in a dry run."""


class Experiment(Record):
    """What an experiment's folder was made from: `experiment.json`."""

    kind: Literal["experiment"] = "experiment"
    cbtqa_version: str
    is_smoke: bool
    data: str
    """Name of the file of questions."""
    data_sha256: str
    recipe: Recipe


SMOKE: dict[str, dict[str, object]] = {
    "build": {"endpoint": None, "model": None, "labels": None, "validation": 0.1, "test": 0.08},
    "finetune": {
        "limit": 8,
        "max_steps": 4,
        "batch_size": 2,
        "eval_steps": 2,
        "log_steps": 1,
        "allow_template": True,
        "n_samples": 0,
        "micro_batch_tokens": 2048,
        # no 4-bit weights on a CPU; sessions are long in the few tokens of a tiny vocabulary
        "method": "lora",
        "optimizer": "adamw",
        "max_length": 16384,
    },
    "generate": {"max_new_tokens": 128, "temperature": 1.0, "top_k": 50},
    "score": {"metrics": "default,bleu_jieba,meteor_jieba", "bootstrap": 200},
    "compare": {"trials": 200, "bootstrap": 200},
    "rate": {"n": None, "raters": 2},
    "judge": {"endpoint": None, "model": None, "rules": True},
    "corpus": {"study": None},
    "export": {"serve": None, "arm": None},
    "play": {"study": None, "patients": None},
    "analyse": {"terms": None, "reference": (), "by": (), "bootstrap": 0},
}
"""Settings of a smoke run, over those of any recipe: few steps, nobody asked."""


def make_plan(settings: ReproduceSettings) -> Plan:
    """The recipe read and checked, with what a smoke run changes in it."""
    recipe = read_recipe(settings.recipe, settings.set_)
    if settings.smoke:
        known = STAGES[recipe.kind]
        over = {
            (stage, name): value
            for stage, values in SMOKE.items()
            if (model := known.get(stage)) is not None
            for name, value in values.items()
            if name in model.model_fields
        }
        recipe = recipe.with_values(over, "smoke run")
    return Plan(recipe, settings)


def stages_of(plan: Plan) -> list[Stage]:
    """All stages but the report, in order."""
    return session_stages(plan) if plan.recipe.kind == "sessions" else answer_stages(plan)


def chosen_stages(
    stages: Sequence[Stage], only: Sequence[str] = (), start: str | None = None
) -> list[Stage]:
    """The stages named, by kind (`finetune`) or one by one (`finetune:qwen`), or from one on.

    Raises:
        UsageError: no such stage; the hint has the near name.
    """
    names = {name for stage in stages for name in (stage.name, stage.kind)} | {"report"}
    for given in (*only, *([start] if start else [])):
        if given not in names:
            close = difflib.get_close_matches(given, names, n=1)
            kinds = ", ".join(dict.fromkeys(stage.kind for stage in stages))
            hint = f"stages: {kinds}, report"
            hint = f"did you mean {close[0]}? {hint}" if close else hint
            raise UsageError(f"no stage '{given}'", hint=hint)
    found = [one for one in stages if not only or {one.name, one.kind} & set(only)]
    if start == "report":
        return []
    if start is not None:
        first = next(n for n, one in enumerate(stages) if start in (one.name, one.kind))
        found = [one for one in found if stages.index(one) >= first]
    return found


def states(plan: Plan, stages: Sequence[Stage], *, with_cost: bool = False) -> list[StageState]:
    """Every stage as it stands now."""
    found: list[StageState] = []
    for stage in stages:
        state, why = state_of(plan, stage, stages)
        is_ahead = with_cost and state not in ("done", "skipped")
        cost = stage.estimate() if is_ahead else NOTHING
        found.append(StageState(stage=stage.name, state=state, why=why, cost=cost))
    return found


def state_of(plan: Plan, stage: Stage, stages: Sequence[Stage]) -> tuple[State, str]:
    """Whether a stage is done, from the settings and inputs of now."""
    if stage.skipped:
        return "skipped", stage.skipped
    by_name = {one.name: one for one in stages}
    needed = [by_name[name] for name in stage.needs if not by_name[name].skipped]
    lacking = [one.name for one in needed if state_of(plan, one, stages)[0] != "done"]
    if lacking:
        return "waiting", f"for {', '.join(lacking)}"
    record = _record_of(plan, stage)
    if record is None or not stage.marker.is_file():
        return "to do", ""
    if record.key != _key(plan, stage, stages) or record.result != sha256_of(stage.marker):
        return "changed", "made from other settings or inputs"
    return "done", ""


def _key(plan: Plan, stage: Stage, stages: Sequence[Stage]) -> str:
    """SHA-256 of all that decides a stage: settings, and the results it is made from."""
    records = {one.name: _record_of(plan, one) for one in stages if one.name in stage.needs}
    made_from = {name: record.result for name, record in records.items() if record}
    decided = {"settings": dict(stage.settings), "from": made_from}
    text = json.dumps(decided, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def versions_of(root: Path) -> dict[str, str]:
    """By name of a finished stage, the version of cbtqa that did it."""
    paths = sorted((root / RECORDS).glob("*.json"))
    records = [parse_record(StageRecord, read_json(path), str(path)) for path in paths]
    return {one.stage: one.cbtqa_version for one in records}


def _record_path(plan: Plan, name: str) -> Path:
    return plan.root / RECORDS / f"{name.replace(':', '-')}.json"


def _record_of(plan: Plan, stage: Stage) -> StageRecord | None:
    path = _record_path(plan, stage.name)
    return parse_record(StageRecord, read_json(path), str(path)) if path.is_file() else None


def reproduce(
    plan: Plan,
    stages: Sequence[Stage],
    chosen: Sequence[Stage],
    watch: Watch,
    on_state: Callable[[StageState, int, int], None] = lambda state, n, n_all: None,
) -> None:
    """Runs the chosen stages that are not done.

    Args:
        on_state: called before each stage, with its place among all.

    Raises:
        IncompleteRunError: a stage before the chosen ones is not done.
        UsageError: the folder holds another experiment.
        ConfigError: another process is at it.
        CbtqaError: as the verbs themselves; the same command continues.
    """
    with _begun(plan):
        _do(plan, stages, chosen, watch, on_state)


def _do(
    plan: Plan,
    stages: Sequence[Stage],
    chosen: Sequence[Stage],
    watch: Watch,
    on_state: Callable[[StageState, int, int], None],
) -> None:
    for stage in chosen:
        state, why = state_of(plan, stage, stages)
        told = StageState(stage=stage.name, state=state, why=why)
        on_state(told, stages.index(stage) + 1, len(stages) + 1)
        if state == "waiting":
            raise IncompleteRunError(
                f"{stage.name} waits {why}", hint="run without --only and --from, or name these too"
            )
        if state in ("done", "skipped"):
            continue
        key = _key(plan, stage, stages)
        try:
            stage.work(watch)
        except CbtqaError as error:
            words = f"; {error.hint}" if error.hint else ""
            error.hint = f"stage {stage.name}: the same command continues there{words}"
            raise
        _check_whole(stage)
        result, version = sha256_of(stage.marker), cbtqa.__version__
        record = StageRecord(stage=stage.name, key=key, result=result, cbtqa_version=version)
        write_json(_record_path(plan, stage.name), record)


def _check_whole(stage: Stage) -> None:
    """That the files which a manifest names are there; raises DataError."""
    if stage.marker.name != MANIFEST_NAME:
        return
    folder = stage.marker.parent
    for file in read_manifest(folder).files:
        path = folder / file.name
        if not path.is_file() or path.stat().st_size != file.n_bytes:
            hint = f"remove {folder}: the stage is done again"
            raise DataError("is not as its manifest says", where=str(path), hint=hint)


@contextmanager
def _begun(plan: Plan) -> Iterator[None]:
    """Holds the folder alone, with what it is written in it; refuses that of another experiment."""
    path = plan.root / EXPERIMENT_NAME
    there = plan.root.iterdir() if plan.root.is_dir() else ()
    if not path.exists() and any(not one.name.startswith(".") for one in there):
        raise UsageError(
            f"{plan.root} is not empty and holds no experiment", hint="name another --out"
        )
    experiment = Experiment(
        cbtqa_version=cbtqa.__version__,
        is_smoke=plan.settings.smoke,
        data=plan.questions.name,
        data_sha256=sha256_of(plan.questions),
        recipe=plan.recipe,
    )
    if path.exists():
        before = parse_record(Experiment, read_json(path), str(path))
        if (before.recipe.id, before.is_smoke) != (plan.recipe.id, plan.settings.smoke):
            told = f"a smoke run of {before.recipe.id}" if before.is_smoke else before.recipe.id
            raise UsageError(f"{plan.root} holds {told}", hint="name another --out")
    make_folder(plan.root)
    lock = LockFile(path)
    lock.take()
    try:
        write_json(path, experiment)
        yield
    finally:
        lock.release()
