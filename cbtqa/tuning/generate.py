"""`generate`: a model's answers to a dataset's questions, resumed item by item.

journal.sqlite     every answer as it was made; the same command continues from it
answers.jsonl      one `CbtAnswer` a line: what `cbtqa score` takes as predictions
rejects.jsonl      questions without an answer, each with its reason and the whole text
manifest.json      written last

result = generate(resolve(GenerateSettings, flags={...}))
result.manifest.counts["n_out"]
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cbtqa
from cbtqa.errors import ConfigError, IncompleteRunError
from cbtqa.files import json_line, replacing
from cbtqa.llm.chat import Reply
from cbtqa.llm.journal import Entry, Journal, Outcome, State
from cbtqa.llm.progress import Meter, Progress
from cbtqa.manifest import (
    MANIFEST_NAME,
    Manifest,
    describe_file,
    describe_settings,
    now,
    package_versions,
    write_manifest,
)
from cbtqa.records import CbtAnswer, Provenance, Reason, Rejection
from cbtqa.settings import Resolved
from cbtqa.tuning.answer_checks import AnswerChecks, turn_mark_of
from cbtqa.tuning.answer_endpoint import answer_by_endpoint
from cbtqa.tuning.answer_run import AnswerRun, OnStage, prepare
from cbtqa.tuning.asked import AskedItem, Prompt
from cbtqa.tuning.generate_settings import GenerateSettings
from cbtqa.tuning.targets import read_target

JOURNAL_NAME, ANSWERS_NAME, REJECTS_NAME = "journal.sqlite", "answers.jsonl", "rejects.jsonl"
OnProgress = Callable[[Progress], None]


@dataclass(frozen=True)
class GenerateResult:
    """A finished run."""

    folder: Path
    manifest: Manifest


def generate(
    resolved: Resolved[GenerateSettings],
    *,
    on_progress: OnProgress | None = None,
    on_stage: OnStage = lambda words: None,
) -> GenerateResult:
    """Answers every question, or continues a run that was interrupted.

    Raises:
        UsageError: data, adapter or model are missing, or two of them given.
        ConfigError: a model that must be converted first or is not to be had; a folder of another
            run.
        DataError: no questions, no adapter, an adapter on another base.
        MissingExtraError: torch, transformers or peft are not installed.
        LicenceGateError: questions would go to a non-local endpoint without acknowledgement.
        IncompleteRunError: an unfinished dataset; stopped early (the same call continues); or
            not one answer came out, outputs kept.
    """
    run = prepare(resolved, on_stage)
    folder = run.settings.out
    with _open_journal(folder, run) as journal:
        (folder / MANIFEST_NAME).unlink(missing_ok=True)
        _answer(run, journal, on_progress, on_stage)
        counts = _write(run, journal)
        usage = journal.totals().usage
    names = (ANSWERS_NAME, REJECTS_NAME)
    manifest = Manifest(
        kind="answers",
        packages=package_versions(),
        settings=describe_settings(resolved),
        inputs=run.asked.files,
        counts={**counts, "system": run.system, "mode": run.mode, **run.fingerprint()},
        usage=usage,
        acknowledgements=run.acknowledgements,
        files=tuple(describe_file(folder / name, folder) for name in names),
        started_at=run.started_at,
        finished_at=now(),
    )
    write_manifest(folder, manifest)
    if not counts["n_out"]:
        shown = ", ".join(f"{reason} {n:,}" for reason, n in counts["rejected"].items())
        raise IncompleteRunError(
            f"not one of {counts['n_in']:,} questions has an answer: {shown}",
            hint=f"read {folder / REJECTS_NAME}; all cut: raise --max-new-tokens (a new --out)",
        )
    return GenerateResult(folder, manifest)


def _open_journal(folder: Path, run: AnswerRun) -> Journal:
    foreign = [path for path in folder.glob("*") if not path.name.startswith(".")]
    if foreign and not (folder / JOURNAL_NAME).exists():
        raise ConfigError(
            f"--out: {folder} is not empty and holds no answers", hint="name a new folder"
        )
    try:
        return Journal(folder / JOURNAL_NAME, run.fingerprint())
    except ConfigError as error:
        hint = "one folder holds the answers of one model: name another with --out"
        raise ConfigError(str(error), hint=hint) from None


# --- answering -----------------------------------------------------------------------------------


def _answer(
    run: AnswerRun, journal: Journal, on_progress: OnProgress | None, on_stage: OnStage
) -> None:
    items = run.asked.items
    if run.endpoint is not None:
        answer_by_endpoint(items, run.settings, run.endpoint, AnswerChecks(), journal, on_progress)
        return
    assert run.opened is not None
    standings = journal.standings([item.key for item in items])
    waiting = {item.key: item for item in items if item.key not in standings}
    if not waiting:
        return
    chat = run.opened.chat
    checks = AnswerChecks(turn_mark_of(chat))
    ids = chat.prompt_ids([item.messages for item in waiting.values()])
    prompts = [Prompt(key, tuple(row)) for key, row in zip(waiting, ids, strict=True)]
    on_stage(f"loading {run.opened.backbone.told_name}")
    meter = Meter(len(items), None, journal.totals())
    meter.n_skipped = len(items) - len(waiting)
    left_out = {entry.key: entry for entry in _leave_out(run, waiting, prompts)}
    _keep(journal, meter, list(left_out.values()))
    fitting = [prompt for prompt in prompts if prompt.key not in left_out]
    for replies in _decoder(run).answer(fitting) if fitting else ():
        _keep(journal, meter, [_judged(checks, waiting[key], reply) for key, reply in replies])
        if on_progress:
            on_progress(meter.progress(0))


def _keep(journal: Journal, meter: Meter, entries: list[Entry]) -> None:
    """Durable, then counted."""
    journal.record(entries)
    for entry in entries:
        if entry.reply is not None:
            meter.paid(entry.reply.usage, 0)
        meter.ended(entry)


def _decoder(run: AnswerRun) -> Any:
    assert run.opened is not None and run.precision is not None
    if run.settings.engine == "vllm":
        from cbtqa.tuning.answer_vllm import VllmDecoder

        return VllmDecoder(run.opened, run.settings)
    from cbtqa.tuning.decoding import Decoder

    model = run.opened.load(run.device, run.precision)
    return Decoder(model, run.opened.chat, run.opened.stops, run.settings, run.model_name)


def _leave_out(
    run: AnswerRun, waiting: dict[str, AskedItem], prompts: list[Prompt]
) -> Iterator[Entry]:
    """Rejections of prompts that cannot be asked."""
    assert run.opened is not None
    for prompt in prompts:
        messages, n_new = waiting[prompt.key].messages, run.settings.max_new_tokens
        fault = run.opened.fault_of_prompt(messages, len(prompt.ids), n_new)
        if fault is not None:
            yield Entry(prompt.key, 1, State.FINAL, None, fault)


def _judged(checks: AnswerChecks, item: AskedItem, reply: Reply) -> Entry:
    fault = checks.fault_of(item, reply)
    state = State.ACCEPTED if fault is None else State.FINAL
    return Entry(item.key, 1, state, reply, fault)


# --- writing -------------------------------------------------------------------------------------


def _write(run: AnswerRun, journal: Journal) -> dict[str, Any]:
    """Both files from the journal, in the order of the questions; gives the counts."""
    folder, rejected = run.settings.out, Counter[str]()
    n_out = n_steps = 0
    with (
        replacing(folder / ANSWERS_NAME) as answers_path,
        replacing(folder / REJECTS_NAME) as rejects_path,
        answers_path.open("w", encoding="utf-8") as answers,
        rejects_path.open("w", encoding="utf-8") as rejects,
    ):
        for found in _records(run, journal):
            if isinstance(found, CbtAnswer):
                answers.write(json_line(found))
                n_out, n_steps = n_out + 1, n_steps + (found.steps is not None)
            else:
                rejects.write(json_line(found))
                rejected[found.reason.value] += 1
    return {
        "n_in": len(run.asked.items) + len(run.asked.rejections),
        "n_out": n_out,
        "n_with_steps": n_steps,
        "n_rejected": rejected.total(),
        "rejected": dict(rejected.most_common()),
    }


def _records(run: AnswerRun, journal: Journal) -> Iterator[CbtAnswer | Rejection]:
    yield from run.asked.rejections
    outcomes = journal.outcomes(item.key for item in run.asked.items)
    for item, (_, outcome) in zip(run.asked.items, outcomes, strict=True):
        yield _record(run, item, outcome)


def _record(run: AnswerRun, item: AskedItem, outcome: Outcome | None) -> CbtAnswer | Rejection:
    reply = outcome.reply if outcome else None
    if outcome is None or reply is None or outcome.fault is not None:
        fault = outcome.fault if outcome else None
        return Rejection(
            item_id=item.id,
            stage="generate",
            reason=fault.reason if fault else Reason.ENDPOINT,
            detail=fault.detail if fault else "no reply",
            raw=reply.text if reply else None,
        )
    read = read_target(run.mode, reply.text)
    return CbtAnswer(
        question_id=item.id,
        system=run.system,
        text=read.text,
        steps=read.steps,
        risk=item.risk,
        provenance=Provenance(
            model=run.model_name,
            endpoint_host=run.endpoint.host if run.endpoint else None,
            sampling=run.sampling(),
            seed=run.settings.seed,
            usage=reply.usage,
            finish_reason=reply.finish_reason,
            version=cbtqa.__version__,
            created_at=reply.created_at or None,
        ),
    )
