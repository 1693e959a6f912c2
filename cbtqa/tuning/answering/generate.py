"""`generate`: a model's answers to a dataset's questions, resumed item by item.

journal.sqlite     every answer as it was made; the same command continues from it
answers.jsonl      one `CbtAnswer` a line: what `cbtqa score` takes as predictions
rejects.jsonl      questions without an answer, each with its reason and the whole text
manifest.json      written last

result = generate(resolve(GenerateSettings, flags={...}))
result.manifest.counts["n_out"]
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cbtqa
from cbtqa.errors import ConfigError, IncompleteRunError, UsageError
from cbtqa.files import json_line, read_rows, replacing
from cbtqa.llm.batch import OnProgress
from cbtqa.llm.chat import ChatRequest, Fault, Reply, Sampling
from cbtqa.llm.cost import Estimate
from cbtqa.llm.journal import Entry, Journal, Outcome, State
from cbtqa.llm.progress import Meter
from cbtqa.llm.runs import Run, Service, estimate_run, open_run, refuse_foreign
from cbtqa.manifest import (
    MANIFEST_NAME,
    FolderResult,
    describe_file,
    write_manifest,
)
from cbtqa.psyqa import is_bundled_sample
from cbtqa.records import CbtAnswer, Provenance, Reason, Rejection
from cbtqa.settings import Resolved
from cbtqa.tuning.answering.model import AnswerModel, open_model, read_training
from cbtqa.tuning.answering.questions import (
    AnswerChecks,
    Asked,
    AskedItem,
    Prompt,
    read_asked,
    turn_mark_of,
)
from cbtqa.tuning.answering.settings import GenerateSettings, SpeakerSettings
from cbtqa.tuning.data.examples import read_target
from cbtqa.tuning.libraries import require
from cbtqa.tuning.loading import ComputeType, choose_precision
from cbtqa.tuning.settings import Mode

JOURNAL_NAME, ANSWERS_NAME, REJECTS_NAME = "journal.sqlite", "answers.jsonl", "rejects.jsonl"
WRITTEN = (ANSWERS_NAME, REJECTS_NAME)


class GenerateResult(FolderResult):
    """A finished run."""

    @property
    def path(self) -> Path:
        """The answers, as `cbtqa score` takes them."""
        return self.folder / ANSWERS_NAME

    def to_dict(self) -> dict[str, Any]:
        """Where the answers are, and what they came to."""
        return {**super().to_dict(), "answers": str(self.path)}

    def to_rows(self) -> list[dict[str, Any]]:
        """The answers."""
        return [row for _, row in read_rows(self.path)]


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
    refuse_foreign(folder / JOURNAL_NAME, "answers")
    with open_run(
        folder / JOURNAL_NAME,
        run.fingerprint(),
        run.service,
        what="the questions",
        is_invented=all(is_bundled_sample(file.sha256) for file in run.asked.files),
        hint="one folder holds the answers of one model: name another with --out",
    ) as opened:
        (folder / MANIFEST_NAME).unlink(missing_ok=True)
        _answer(run, opened, on_progress, on_stage)
        counts = _write(run, opened.journal)
        manifest = opened.manifest(
            "answers",
            resolved,
            inputs=run.asked.files,
            counts={**counts, "system": run.system, "mode": run.mode, **run.fingerprint()},
            files=tuple(describe_file(folder / name, folder) for name in WRITTEN),
        )
    write_manifest(folder, manifest)
    if not counts["n_out"]:
        shown = ", ".join(f"{reason} {n:,}" for reason, n in counts["rejected"].items())
        raise IncompleteRunError(
            f"not one of {counts['n_in']:,} questions has an answer: {shown}",
            hint=f"read {folder / REJECTS_NAME}; all cut: raise --max-new-tokens (a new --out)",
        )
    return GenerateResult(folder, manifest)


def estimate_answers(resolved: Resolved[GenerateSettings]) -> Estimate:
    """What an endpoint would still be sent; a model in this process is sent nothing.

    Raises:
        UsageError, ConfigError, DataError: as `generate`; no weights are looked at.
    """
    settings = resolved.values
    service, _, asked = _read(settings)
    task = AnswerTask(settings, AnswerChecks())
    estimate = estimate_run(service, settings.out / JOURNAL_NAME, asked.items, task)
    return estimate.model_copy(update={"n_left_out": len(asked.rejections)})


# --- answering -----------------------------------------------------------------------------------


def _answer(run: AnswerRun, opened: Run, on_progress: OnProgress | None, on_stage: OnStage) -> None:
    items, journal = run.asked.items, opened.journal
    if run.service is not None:
        task = AnswerTask(run.settings, AnswerChecks())
        opened.ask(items, task, n_total=len(items), on_progress=on_progress)
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
        from cbtqa.tuning.answering.decoding import VllmDecoder

        return VllmDecoder(run.opened, run.settings)
    from cbtqa.tuning.answering.decoding import Decoder

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
            endpoint_host=(reply.host or run.service.host) if run.service else None,
            sampling=run.sampling(),
            seed=run.settings.seed,
            usage=reply.usage,
            finish_reason=reply.finish_reason,
            version=cbtqa.__version__,
            created_at=reply.created_at or None,
        ),
    )


# --- answer run ----------------------------------------------------------------------------------
# A run of `generate` before its first answer: questions read, model checked, gates passed.

OnStage = Callable[[str], None]


@dataclass(frozen=True)
class AnswerRun:
    """Everything decided before the first answer."""

    resolved: Resolved[GenerateSettings]
    mode: Mode
    asked: Asked
    service: Service | None
    """None when the model runs in this process."""
    opened: AnswerModel | None
    """None at an endpoint."""
    device: str = ""
    precision: ComputeType | None = None
    """Both empty at an endpoint."""

    @property
    def settings(self) -> GenerateSettings:
        """The settings without their origins."""
        return self.resolved.values

    @property
    def model_name(self) -> str:
        """Name at the endpoint, else of the folder or on the Hub."""
        if self.service is not None:
            return self.service.model
        assert self.opened is not None
        return self.opened.name

    @property
    def system(self) -> str:
        """Short name for score tables."""
        return self.settings.system or self.model_name.rstrip("/").rpartition("/")[2]

    def sampling(self) -> dict[str, float | int | str]:
        """Everything that decides how tokens are drawn, as provenance keeps it."""
        told = sampling_of(self.settings).described()
        told.pop("seed", None)
        if self.service is None:
            assert self.precision is not None
            told |= {"engine": self.settings.engine, "dtype": self.precision}
        return told | {"mode": self.mode}

    def fingerprint(self) -> dict[str, str]:
        """Everything that, when changed, makes the journal's answers those of another run."""
        told = {
            "task": "generate",
            "model": self.model_name,
            "sampling": json.dumps(self.sampling(), sort_keys=True),
            "seed": str(self.settings.seed),
        }
        if self.service is not None:
            return told | {"endpoint_host": self.service.host}
        assert self.opened is not None
        template = self.opened.chat.prompt_text([{"role": "user", "content": "问题"}])
        template_hash = hashlib.sha256(template.encode()).hexdigest()
        more = {"weights_sha256": self.opened.weights_sha256, "chat_sha256": template_hash}
        return told | more | {"device": self.device}


def prepare(resolved: Resolved[GenerateSettings], on_stage: OnStage) -> AnswerRun:
    """Decides everything; loads no weights and sends nothing.

    Raises:
        UsageError, ConfigError, DataError, MissingExtraError, LicenceGateError,
        IncompleteRunError: as `generate`.
    """
    settings = resolved.values
    if settings.endpoint:
        service, mode, asked = _read(settings)
        return AnswerRun(resolved, mode, asked, service, None)
    require_libraries()
    _, mode, asked = _read(settings)
    opened, device, precision = open_here(settings, on_stage)
    return AnswerRun(resolved, mode, asked, None, opened, device, precision)


def _read(settings: GenerateSettings) -> tuple[Service | None, Mode, Asked]:
    """Who is asked, and what, in which form."""
    refuse_adapter_at_endpoint(settings)
    trained = read_training(settings.adapter)
    mode = settings.mode or trained.mode or "answer"
    prompt = trained.system_prompt if settings.system_prompt is None else settings.system_prompt
    if settings.out.is_file():
        raise ConfigError(f"--out: {settings.out} is a file")
    return settings.service(), mode, read_asked(settings, mode, prompt)


def refuse_adapter_at_endpoint(settings: SpeakerSettings) -> None:
    """Raises UsageError for an adapter together with an endpoint."""
    if settings.endpoint and settings.adapter is not None:
        raise UsageError(
            "--endpoint goes with --model NAME, the model's name there",
            hint="an adapter is served under a name of its own: vllm serve BASE --enable-lora "
            "--lora-modules NAME=FOLDER",
        )


def require_libraries() -> None:
    """Imports what a model in this process needs, and silences its talk.

    Raises:
        MissingExtraError: torch, transformers or peft are not installed.
    """
    for module in ("torch", "transformers", "peft"):
        require(module)
    talk = require("transformers").logging
    talk.set_verbosity_error()
    talk.disable_progress_bar()


def open_here(settings: SpeakerSettings, on_stage: OnStage) -> tuple[AnswerModel, str, ComputeType]:
    """The model of this process, checked, with its device and precision.

    Raises:
        UsageError, ConfigError, DataError: as `answer_model.open_model`.
    """
    on_stage("checking the model")
    opened = open_model(settings)
    for note in opened.notes:
        on_stage(note)
    device = _choose_device(settings.device)
    precision = choose_precision(settings.dtype) if device == "cuda" else _off_card(settings)
    return opened, device, precision


def _choose_device(wanted: str) -> str:
    torch = require("torch")
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    backend = {"cuda": torch.cuda, "mps": torch.backends.mps}.get(wanted)
    if backend is not None and not backend.is_available():
        raise ConfigError(f"--device {wanted}: there is none", hint="use --device cpu")
    return wanted


def _off_card(settings: SpeakerSettings) -> ComputeType:
    return "fp32" if settings.dtype == "auto" else settings.dtype


# --- answer endpoint -----------------------------------------------------------------------------
# A prediction is taken as it comes: nothing is asked again because of what a reply says.


def sampling_of(settings: SpeakerSettings) -> Sampling:
    """The request's sampling; what the protocol has no field for goes along as vLLM takes it."""
    more: dict[str, float | int] = {}
    if settings.top_k:
        more["top_k"] = settings.top_k
    if settings.repetition_penalty != 1:
        more["repetition_penalty"] = settings.repetition_penalty
    return settings.sampling(
        temperature=settings.temperature,
        top_p=settings.top_p if settings.top_p < 1 else None,
        max_tokens=settings.max_new_tokens,
        seed=settings.seed,
        extra=more,
    )


class AnswerTask:
    """The engine's task: one question, one reply."""

    def __init__(self, settings: GenerateSettings, checks: AnswerChecks) -> None:
        self._sampling, self._checks = sampling_of(settings), checks

    def key(self, item: AskedItem) -> str:
        """See `AskedItem.key`."""
        return item.key

    def request(self, item: AskedItem) -> ChatRequest:
        """The question as messages."""
        return ChatRequest(item.messages, sampling=self._sampling)

    def check(self, item: AskedItem, reply: Reply) -> Fault | None:
        """The fault of a reply that holds text."""
        return self._checks.leak_in(item, reply.text)

    def ask_again(self, item: AskedItem, reply: Reply, fault: Fault) -> None:
        """Never: a second try would flatter the system."""
