"""`generate`: a model's answers to a dataset's questions, resumed item by item.

journal.sqlite     every answer as it was made; the same command continues from it
answers.jsonl      one `CbtAnswer` a line: what `cbtqa score` takes as predictions
rejects.jsonl      questions without an answer, each with its reason and the whole text
checked.jsonl      what the safety checks, and a guard where one is asked, find in each answer
manifest.json      written last

result = generate(resolve(GenerateSettings, flags={...}))
result.manifest.counts["n_out"]
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import cbtqa
from cbtqa.errors import ConfigError, UsageError
from cbtqa.files import json_line, read_rows, write_jsonl
from cbtqa.llm.batch import OnProgress, asked_again
from cbtqa.llm.chat import ChatRequest, Fault, Reply, Sampling
from cbtqa.llm.checked_files import (
    AnswerCheck,
    CheckedExchange,
    estimate_answers_check,
    with_grades,
)
from cbtqa.llm.cost import Estimate, sum_estimates
from cbtqa.llm.journal import Entry, Journal, Outcome, State
from cbtqa.llm.progress import Meter
from cbtqa.llm.runs import Run, Service, estimate_run, open_run, refuse_foreign
from cbtqa.llm.second_opinion import ANSWER_CHARS, Exchange, opinions_of
from cbtqa.manifest import (
    MANIFEST_NAME,
    FolderResult,
    describe_file,
    refuse_empty,
    write_manifest,
)
from cbtqa.paths import replacing
from cbtqa.psyqa import is_bundled_sample
from cbtqa.records import CbtAnswer, Provenance, Reason, Rejection, Risk
from cbtqa.safety.encoder import fingerprint_of
from cbtqa.safety.screen import Screening
from cbtqa.settings import Resolved
from cbtqa.tuning.answering.model import AnswerModel, open_model, prompt_form
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
from cbtqa.tuning.libraries import require, require_training
from cbtqa.tuning.loading import ComputeType, choose_precision
from cbtqa.tuning.settings import Mode, OnStage

JOURNAL_NAME, ANSWERS_NAME, REJECTS_NAME = "journal.sqlite", "answers.jsonl", "rejects.jsonl"
CHECKED_NAME = "checked.jsonl"
WRITTEN = (ANSWERS_NAME, REJECTS_NAME, CHECKED_NAME)


class GenerateResult(FolderResult):
    """A finished run."""

    @property
    def path(self) -> Path:
        """The answers, as `cbtqa score` takes them."""
        return self.folder / ANSWERS_NAME

    def to_dict(self) -> dict[str, Any]:
        """The manifest's facts, and the path of the answers."""
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
        ConfigError: a model that cannot be had or loaded; a folder of another run.
        DataError: no questions, no adapter, an adapter on another base.
        MissingExtraError: torch, transformers or peft are not installed.
        LicenceGateError: questions would go to a non-local endpoint without acknowledgement.
        IncompleteRunError: an unfinished dataset; stopped early (the same call resumes); or not
            one answer, outputs kept.
    """
    run = prepare(resolved.values, on_stage)
    folder = run.settings.out
    refuse_foreign(folder / JOURNAL_NAME, "answers")
    shown: dict[str, Any] = {"what": "the questions"}
    shown["is_invented"] = all(is_bundled_sample(file.sha256) for file in run.asked.files)
    opinions = opinions_of(run.settings, folder)
    with (
        open_run(
            folder / JOURNAL_NAME,
            run.fingerprint(),
            run.service,
            further=opinions.services,
            hint="one folder holds the answers of one model: name another with --out",
            **shown,
        ) as opened,
        opinions.open(**shown) as second,
    ):
        (folder / MANIFEST_NAME).unlink(missing_ok=True)
        _answer(run, opened, on_progress, on_stage, second.runs)
        check = AnswerCheck(_to_check(run, opened.journal), second, run.settings.screen_model)
        if second.runs:
            on_stage("reading questions and answers with " + ", ".join(opinions.names))
        check.ask(beside=[opened], on_progress=on_progress)
        counts = _write(run, opened.journal, check)
        manifest = opened.manifest(
            "answers",
            resolved,
            beside=second.runs,
            prompts=opinions.prompts,
            inputs=run.asked.files,
            counts={**counts, "system": run.system, "mode": run.mode, **run.fingerprint()},
            files=tuple(describe_file(folder / name, folder) for name in WRITTEN),
        )
    write_manifest(folder, manifest)
    was_cut = counts["rejected"].get("cut")
    refuse_empty(
        *(counts["n_out"], counts["n_in"], "questions has an answer", counts["rejected"]),
        kept=folder / REJECTS_NAME,
        hint="all cut: raise --max-new-tokens (a new --out)" if was_cut else "",
    )
    return GenerateResult(folder, manifest)


def estimate_answers(resolved: Resolved[GenerateSettings]) -> Estimate:
    """What an endpoint would still be sent; nothing for a model in this process.

    Raises as `generate`, but reads no weights.
    """
    settings = resolved.values
    service, mode, asked = _read(settings)
    path = settings.out / JOURNAL_NAME
    estimate = estimate_run(service, path, asked.items, AnswerTask(settings))
    n_left_out = len(asked.rejections)
    opinions = opinions_of(settings, settings.out)
    if not opinions.services:
        return estimate.model_copy(update={"n_left_out": n_left_out})
    with Journal(path, read_only=True) if path.exists() else nullcontext() as journal:
        known = dict(journal.outcomes(item.key for item in asked.items)) if journal else {}
    answers = []
    for item in asked.items:
        outcome = known.get(item.key)
        reply = outcome.reply.text if outcome and outcome.reply else "字" * ANSWER_CHARS
        text = read_target(mode, reply).text
        known_grades = Screening(item.risk, ())
        answers.append(CheckedExchange(Exchange(item.id, item.question, text), "", known_grades))
    graded = list(with_grades(answers, settings.screen_model))
    further = estimate_answers_check(graded, opinions)
    parts = [estimate.model_copy(update={"name": "answers"}), *further.parts]
    return sum_estimates("questions", len(asked.items), n_left_out, parts)


def _to_check(run: AnswerRun, journal: Journal) -> list[CheckedExchange]:
    """The accepted answers with their questions, which are graded."""
    outcomes = journal.outcomes(item.key for item in run.asked.items)
    answers = []
    for item, (_, outcome) in zip(run.asked.items, outcomes, strict=True):
        if outcome is not None and outcome.reply is not None and outcome.fault is None:
            text = read_target(run.mode, outcome.reply.text).text
            exchange = Exchange(item.id, item.question, text)
            answers.append(CheckedExchange(exchange, item.id, Screening(item.risk, ())))
    return list(with_grades(answers, run.settings.screen_model))


def _answer(
    run: AnswerRun,
    opened: Run,
    on_progress: OnProgress | None,
    on_stage: OnStage,
    beside: Sequence[Run],
) -> None:
    items, journal = run.asked.items, opened.journal
    if run.service is not None:
        shown: dict[str, Any] = {"n_total": len(items), "on_progress": on_progress}
        opened.ask(items, AnswerTask(run.settings), beside=beside, **shown)
        return
    assert run.opened is not None and run.precision is not None
    standings = journal.standings([item.key for item in items])
    again = asked_again(journal, standings, run.settings.limits)
    waiting = {one.key: one for one in items if one.key not in standings or one.key in again}
    if not waiting:
        return
    from cbtqa.tuning.answering.decoding import Decoder, VllmDecoder

    chat = run.opened.chat
    checks = AnswerChecks(turn_mark_of(chat))
    on_stage(f"loading {run.opened.backbone.display_name}")
    meter = Meter(len(items), None, journal.totals())
    meter.n_skipped = len(items) - len(waiting)
    prompts, left_out = [], []
    ids = chat.prompt_ids([item.messages for item in waiting.values()])
    if run.opened.backbone.shape is not None:  # before the weights are loaded
        chat.refuse_unknown(ids, run.opened.backbone.shape.vocab)
    for item, row in zip(waiting.values(), ids, strict=True):
        fault = run.opened.fault_of_prompt(item.messages, len(row), run.settings.max_new_tokens)
        if fault is None:
            prompts.append(Prompt(item.key, tuple(row)))
        else:
            left_out.append(Entry(item.key, 1, State.FINAL, None, fault))
    _record_entries(journal, meter, left_out)
    if not prompts:
        return
    if run.settings.engine == "vllm":
        decoder: Decoder | VllmDecoder = VllmDecoder(run.opened, run.settings)
    else:
        model = run.opened.load(run.device, run.precision)
        decoder = Decoder(model, chat, run.opened.stops, run.settings, run.model_name)
    for replies in decoder.answer(prompts):
        entries = []
        for key, reply in replies:
            fault = checks.fault_of(waiting[key], reply)
            state = State.ACCEPTED if fault is None else State.FINAL
            entries.append(Entry(key, 1, state, reply, fault))
        _record_entries(journal, meter, entries)
        if on_progress:
            on_progress(meter.progress(0))


def _record_entries(journal: Journal, meter: Meter, entries: list[Entry]) -> None:
    # durable first, then counted: a crash between the two must not lose an answer
    journal.record(entries)
    for entry in entries:
        if entry.reply is not None:
            meter.paid(entry.reply.usage, 0)
        meter.ended(entry)


def _write(run: AnswerRun, journal: Journal, check: AnswerCheck) -> dict[str, Any]:
    """All three files from the journals, in the order of the questions; gives the counts."""
    lines = list(check.lines())
    write_jsonl(run.settings.out / CHECKED_NAME, lines)
    risks: dict[str, Risk] = {line["id"]: line["risk"] for line in lines}
    folder, rejected = run.settings.out, Counter[str]()
    n_out = n_steps = 0
    outcomes = journal.outcomes(item.key for item in run.asked.items)
    pairs = zip(run.asked.items, outcomes, strict=True)
    records = (
        _answer_record(run, item, outcome, risks.get(item.id, item.risk))
        for item, (_, outcome) in pairs
    )
    with (
        replacing(folder / ANSWERS_NAME) as answers_path,
        replacing(folder / REJECTS_NAME) as rejects_path,
        answers_path.open("w", encoding="utf-8") as answers,
        rejects_path.open("w", encoding="utf-8") as rejects,
    ):
        for found in chain(run.asked.rejections, records):
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
        "safety": check.survey().to_dict(),
    }


def _answer_record(
    run: AnswerRun, item: AskedItem, outcome: Outcome | None, risk: Risk
) -> CbtAnswer | Rejection:
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
        risk=risk,
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


# --- before the first answer ---------------------------------------------------------------------


@dataclass(frozen=True)
class AnswerRun:
    """Everything decided before the first answer: questions read, model checked."""

    settings: GenerateSettings
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
        described = sampling_of(self.settings).described()
        described.pop("seed", None)
        if self.precision is not None:
            described |= {"engine": self.settings.engine, "dtype": self.precision}
        return described | {"mode": self.mode}

    def fingerprint(self) -> dict[str, str]:
        """Everything that, when changed, makes the journal's answers those of another run."""
        known = {
            "task": "generate",
            "model": self.model_name,
            "sampling": json.dumps(self.sampling(), sort_keys=True),
            "seed": str(self.settings.seed),
            **fingerprint_of(self.settings.screen_model),
        }
        if self.service is not None:
            return known | {"endpoint_host": self.service.host}
        assert self.opened is not None
        template = self.opened.chat.prompt_text([{"role": "user", "content": "问题"}])
        template_hash = hashlib.sha256(template.encode()).hexdigest()
        more = {"weights_sha256": self.opened.weights_sha256, "chat_sha256": template_hash}
        return known | more | {"device": self.device}


def prepare(settings: GenerateSettings, on_stage: OnStage) -> AnswerRun:
    """Decides everything; loads no weights and sends nothing. Raises as `generate`."""
    if not settings.endpoint:
        require_training()
    service, mode, asked = _read(settings)
    if service is not None:
        return AnswerRun(settings, mode, asked, service, None)
    opened, device, precision = open_local(settings, on_stage)
    settings = settings.with_own(opened.generation)
    return AnswerRun(settings, mode, asked, None, opened, device, precision)


def _read(settings: GenerateSettings) -> tuple[Service | None, Mode, Asked]:
    """The endpoint, the form of the answers, and the questions."""
    refuse_adapter_at_endpoint(settings)
    mode, system = prompt_form(settings)
    if settings.out.is_file():
        raise ConfigError(f"--out: {settings.out} is a file")
    return settings.service(), mode, read_asked(settings, mode, system)


def refuse_adapter_at_endpoint(settings: SpeakerSettings) -> None:
    """Raises UsageError for an adapter together with an endpoint."""
    if settings.endpoint and settings.adapter is not None:
        raise UsageError(
            "--endpoint goes with --model NAME, the model's name there",
            hint="an adapter is served under a name of its own: vllm serve BASE --enable-lora "
            "--lora-modules NAME=FOLDER",
        )


def open_local(
    settings: SpeakerSettings, on_stage: OnStage
) -> tuple[AnswerModel, str, ComputeType]:
    """The model of this process, checked, with its device and precision; raises as `open_model`."""
    on_stage("checking the model")
    opened = open_model(settings, on_stage)
    for note in opened.notes:
        on_stage(note)
    torch, device = require("torch"), settings.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    backend = {"cuda": torch.cuda, "mps": torch.backends.mps}.get(device)
    if backend is not None and not backend.is_available():
        raise ConfigError(f"--device {device}: there is none", hint="use --device cpu")
    if device == "cuda":
        return opened, device, choose_precision(settings.dtype)
    return opened, device, "fp32" if settings.dtype == "auto" else settings.dtype


# --- at an endpoint ------------------------------------------------------------------------------


def sampling_of(settings: SpeakerSettings) -> Sampling:
    """The request's sampling; what the protocol has no field for is sent as vLLM takes it."""
    more: dict[str, Any] = {}
    if settings.top_k:
        more["top_k"] = settings.top_k
    if settings.repetition_penalty != 1:
        more["repetition_penalty"] = settings.repetition_penalty
    if settings.thinking in ("on", "off"):
        more["chat_template_kwargs"] = {"enable_thinking": settings.thinking == "on"}
    # with `--decoding model` the server knows them
    is_servers = settings.decoding == "model" and "temperature" not in settings.model_fields_set
    return settings.sampling(
        temperature=None if is_servers and settings.endpoint else settings.temperature,
        top_p=settings.top_p if settings.top_p < 1 else None,
        max_tokens=settings.max_new_tokens,
        seed=settings.seed,
        extra=more,
    )


class AnswerTask:
    """The engine's task: one question, one reply, which is never asked for again."""

    def __init__(self, settings: GenerateSettings) -> None:
        self._sampling = sampling_of(settings)

    def key(self, item: AskedItem) -> str:
        """See `AskedItem.key`."""
        return item.key

    def request(self, item: AskedItem) -> ChatRequest:
        """The question as messages."""
        return ChatRequest(item.messages, sampling=self._sampling)

    def check(self, item: AskedItem, reply: Reply) -> Fault | None:
        """The fault of a reply that holds text."""
        return AnswerChecks().fault_in(item, reply.text)

    def ask_again(self, item: AskedItem, reply: Reply, fault: Fault) -> None:
        """Never: a second try would flatter the system."""
