"""A language model's opinion of a question or an answer, beside the rules and the trained model.

    service = opinion_service(settings, "guard")              # None when no endpoint is named
    found = ask_once(service, GuardTask(service.model), Exchange("1", question, answer))
    worse_of(screen(text), ask_once(service, ScreenTask(service.model), Exchange("1", text)))

The worse counts: a model can raise a grade or add a problem, never take one away. A reply that
cannot be read, and an endpoint that does not answer, change nothing; the fault says why.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Generic, Literal, NamedTuple, TypeVar

from cbtqa.dataset_folder import text_rows
from cbtqa.errors import DataError, EndpointError, IncompleteRunError, UsageError
from cbtqa.files import json_line
from cbtqa.llm.batch import OnProgress, run_batch
from cbtqa.llm.chat import ChatRequest, Fault, Message, Reply, Sampling, request_again
from cbtqa.llm.cost import Estimate
from cbtqa.llm.journal import Journal, Outcome
from cbtqa.llm.limits import Limits, RateSettings
from cbtqa.llm.runs import (
    AccessSettings,
    EndpointSettings,
    Run,
    Service,
    SpendingSettings,
    estimate_run,
    open_run,
)
from cbtqa.llm.structured import parse_object
from cbtqa.paths import refuse_existing, replacing
from cbtqa.prompts import fence, load_prompt
from cbtqa.records import Reason, Record, Risk
from cbtqa.safety.answers import HARMS, Problem, check_in_both
from cbtqa.safety.encoder import ScreenSettings, open_encoder
from cbtqa.safety.screen import DANGERS, FoundDanger, Hit, Screening, screen_each, worse_of_two
from cbtqa.settings import Settings

DRAWN = {"temperature": 0.0, "max_tokens": 2048}
"""The likeliest verdict; the tokens are for models that think first."""
REPLY_TOKENS = 60
"""Of a verdict with one quote; assumed for the dry run."""
NO_HELP = "no_help_route"
KINDS = {**HARMS, NO_HELP: "answers danger without naming anyone who can help"}
"""What a guard may find, with what is told of it."""
_RANK: dict[Risk, int] = {"none": 0, "concern": 1, "explicit": 2}
_EXAMPLE = "原话"
"""What stands for a quote in both prompts."""
_FORMAT = "请只输出约定的 JSON 对象，填入真正的内容。"
_QUICK = Limits(in_flight=1, max_attempts=2, max_retries=1, retry_for_s=15, gone_after_s=15)
"""For one question that a person waits on."""

VerdictT = TypeVar("VerdictT")
Role = Literal["screen", "guard"]


class ScreenEndpointSettings(Settings):
    """A model that grades questions, beside the screen."""

    panel: ClassVar[str] = "Second opinion"
    screen_endpoint: str | None = None
    """Endpoint (URL or preset) of a model that grades the question as well; the worse grade
    counts."""
    screen_endpoint_model: str | None = None
    """Its name there."""


class GuardSettings(Settings):
    """A model that reads question and answer, beside the checks."""

    panel: ClassVar[str] = "Second opinion"
    guard_endpoint: str | None = None
    """Endpoint (URL or preset) of a model that reads question and answer as well; what it finds
    unsafe is unsafe."""
    guard_model: str | None = None
    """Its name there."""


class Exchange(NamedTuple):
    """What an opinion is asked about."""

    id: str
    question: str
    answer: str = ""


class _OpinionTask(ABC, Generic[VerdictT]):
    """What is asked, and what is wrong with a reply; the engine's task."""

    prompt: ClassVar[str]
    properties: ClassVar[Mapping[str, Any]]

    def __init__(self, model: str, extra: Mapping[str, Any] | None = None) -> None:
        kept = {name: value for name, value in DRAWN.items() if name not in (extra or {})}
        sent = {name: value for name, value in (extra or {}).items() if value is not None}
        self.model, self._sampling = model, Sampling(**kept, extra=sent)
        self._prompt = load_prompt(self.prompt)

    def fingerprint(self) -> dict[str, str]:
        """Everything that can change a reply, for the journal."""
        return {
            "task": self.prompt,
            "model": self.model,
            "prompt": self._prompt.name,
            "prompt_sha256": self._prompt.sha256,
            "sampling": repr(sorted(self._sampling.described().items())),
        }

    def key(self, item: Exchange) -> str:
        texts = json.dumps([item.question, item.answer]).encode()
        return f"{item.id}:{hashlib.blake2b(texts, digest_size=8).hexdigest()}"

    def request(self, item: Exchange) -> ChatRequest:
        schema = _strict(self.properties)
        return ChatRequest(self._messages(item), schema, self.prompt, sampling=self._sampling)

    def check(self, item: Exchange, reply: Reply) -> Fault | None:
        found = self.read(item, reply)
        return found if isinstance(found, Fault) else None

    def ask_again(self, item: Exchange, reply: Reply, fault: Fault) -> ChatRequest | None:
        """The question again; not after a refusal, which would come again."""
        if fault.reason in (Reason.REFUSAL, Reason.CONTENT_FILTER):
            return None
        return request_again(self.request(item), reply, fault, _FORMAT, f"（{fault.detail[:200]}）")

    def read(self, item: Exchange, reply: Reply) -> VerdictT | Fault:
        """The verdict of a reply, or why it is none."""
        found = parse_object(reply.text, fits=lambda value: self.properties.keys() <= value.keys())
        return found if isinstance(found, Fault) else self._read(item, found)

    def read_outcome(self, item: Exchange, outcome: Outcome | None) -> VerdictT | Fault:
        """The verdict that the journal holds of an item, or why there is none."""
        if outcome is not None and outcome.is_accepted and outcome.reply is not None:
            return self.read(item, outcome.reply)
        return (outcome.fault if outcome else None) or Fault(Reason.ENDPOINT, "no reply")

    @abstractmethod
    def _messages(self, item: Exchange) -> Sequence[Message]: ...

    @abstractmethod
    def _read(self, item: Exchange, found: Mapping[str, Any]) -> VerdictT | Fault: ...


class ScreenTask(_OpinionTask[Screening]):
    """Grades a question for suicide and self-harm and for the other dangers."""

    prompt = "safety_screen"
    properties: ClassVar[Mapping[str, Any]] = {
        "risk": {"type": "string", "enum": list(_RANK)},
        "quote": {"type": "string"},
        "dangers": {
            "kind": {"type": "string", "enum": list(DANGERS)},
            "risk": {"type": "string", "enum": ["concern", "explicit"]},
            "quote": {"type": "string"},
        },
    }

    def _messages(self, item: Exchange) -> Sequence[Message]:
        return self._prompt.render(text=fence(item.question))

    def _read(self, item: Exchange, found: Mapping[str, Any]) -> Screening | Fault:
        text, risk, entries = item.question, found.get("risk"), _entries(found.get("dangers"))
        if risk not in _RANK:
            return Fault(Reason.BAD_LABEL, f"risk is {risk!r}, not none, concern or explicit")
        if isinstance(entries, Fault):
            return entries
        place = _place_of(found.get("quote"), text)
        dangers: dict[str, FoundDanger] = {}
        for entry in entries:
            named = entry.get("kind"), entry.get("risk")
            kind = next((one for one in DANGERS if one == named[0]), None)
            grade = next((one for one in _RANK if one == named[1] != "none"), None)
            if kind is None or grade is None:
                return Fault(Reason.BAD_LABEL, f"no danger of the list: {named}")
            span = _place_of(entry.get("quote"), text)
            if isinstance(span, Fault):
                return span
            danger = FoundDanger(kind, grade, *span, None)
            if kind not in dangers or _RANK[grade] > _RANK[dangers[kind].risk]:
                dangers[kind] = danger
        if isinstance(place, Fault):
            return place
        hits = () if risk == "none" else (Hit(f"endpoint.{risk}", risk, *place, "stated"),)
        return Screening(risk, hits, tuple(dangers.values()))


class GuardTask(_OpinionTask[tuple[Problem, ...]]):
    """Reads a question and its answer together; the problems, none when the answer is safe."""

    prompt = "safety_guard"
    properties: ClassVar[Mapping[str, Any]] = {
        "problems": {
            "kind": {"type": "string", "enum": list(KINDS)},
            "quote": {"type": "string"},
        },
    }

    def _messages(self, item: Exchange) -> Sequence[Message]:
        question = item.question.strip() or "（没有给出）"
        return self._prompt.render(question=fence(question), answer=fence(item.answer))

    def _read(self, item: Exchange, found: Mapping[str, Any]) -> tuple[Problem, ...] | Fault:
        entries = _entries(found.get("problems"))
        if isinstance(entries, Fault):
            return entries
        problems = []
        for entry in entries:
            kind = entry.get("kind")
            if kind not in KINDS:
                return Fault(Reason.BAD_LABEL, f"no class of the list: {kind!r}")
            place = _place_of("" if kind == NO_HELP else entry.get("quote"), item.answer)
            if isinstance(place, Fault):
                return place
            problems.append(Problem(kind, *place, f"{KINDS[kind]}, says {self.model}"))
        return tuple(sorted(dict.fromkeys(problems), key=lambda problem: problem.start))


def _entries(value: object) -> list[Mapping[str, Any]] | Fault:
    if not isinstance(value, list) or not all(isinstance(one, Mapping) for one in value):
        return Fault(Reason.NOT_JSON, "expected a list of objects")
    return value


def _place_of(quote: object, text: str) -> tuple[int, int, str] | Fault:
    """Where a text holds a quote; its end, without a span, when it does not hold it.

    A verdict with a paraphrase is still a verdict; the form sent back unfilled is none.
    """
    words = quote.strip() if isinstance(quote, str) else ""
    start = text.find(words) if words else -1
    if start >= 0:
        return start, start + len(words), words
    if words == _EXAMPLE:
        return Fault(Reason.ECHO, f"not filled in: '{words}'")
    return len(text), len(text), ""


def _strict(properties: Mapping[str, Any]) -> dict[str, Any]:
    """JSON schema of an object; a property without a type is a list of such objects."""
    filled = {
        name: one if "type" in one else {"type": "array", "items": _strict(one)}
        for name, one in properties.items()
    }
    closed = {"required": list(filled), "additionalProperties": False}
    return {"type": "object", "properties": filled, **closed}


def worse_of(own: Screening, opinion: Screening | Fault) -> Screening:
    """A text's grades after a second opinion: the worse one of each; a fault changes nothing."""
    if isinstance(opinion, Fault):
        return own
    return worse_of_two(own, opinion)


# --- asking --------------------------------------------------------------------------------------


def opinion_service(settings: Settings, role: Role) -> Service | None:
    """Who is asked for an opinion, under the settings' own limits; None when nobody is named.

    Raises:
        UsageError, ConfigError: an endpoint without a model or the reverse; no address; files.
    """
    model_flag = "screen_endpoint_model" if role == "screen" else "guard_model"
    endpoint, model = getattr(settings, f"{role}_endpoint"), getattr(settings, model_flag)
    flags = f"--{role}-endpoint and --{model_flag.replace('_', '-')}"
    if (endpoint is None) != (model is None):
        raise UsageError(f"{flags} go together")
    if endpoint is None:
        return None
    # `extra` of a verb that asks another model for answers is meant for that one
    is_alone = not hasattr(settings, "endpoint")
    shared = set(EndpointSettings.model_fields) - {"endpoint", "model", "transport", "cluster"}
    given = settings.model_dump(include=shared if is_alone else shared - {"extra"})
    service = EndpointSettings(**given, endpoint=endpoint, model=model).service()
    if service is None or service.endpoints[0].is_batch:
        raise UsageError(f"{flags}: an opinion is wanted at once, not through files")
    return service


def ask_once(service: Service, task: _OpinionTask[VerdictT], item: Exchange) -> VerdictT | Fault:
    """The opinion of one item, which is kept nowhere; a fault when there is none to be had."""
    limits = _QUICK.model_copy(update={"timeout_s": service.limits.timeout_s})
    with (
        TemporaryDirectory() as folder,
        Journal(Path(folder, "journal.sqlite"), task.fingerprint()) as journal,
    ):
        try:
            run_batch([item], task, service.endpoints, journal, limits)
        except (EndpointError, IncompleteRunError) as error:
            return Fault(Reason.ENDPOINT, str(error))
        return task.read_outcome(item, journal.outcome(task.key(item)))


# --- a file of answers ---------------------------------------------------------------------------


class CheckSettings(ScreenSettings, GuardSettings, SpendingSettings, RateSettings, AccessSettings):
    """The settings of `cbtqa safety check`."""

    answers: Path
    """JSONL, JSON, CSV, TSV, Parquet or a dataset folder; columns `answer_text`, `answer` or
    `text`, and `question` (with `description`) or `risk`. Or one answer itself."""
    out: Path | None = None
    """JSONL with the problems of every answer; the text is not repeated. A guard needs it: its
    replies are kept beside it."""
    overwrite: bool = False
    """Replace the file of --out."""
    encoding: str = "utf-8"
    """Of a text file, such as gb18030."""


class AnswerSurvey(Record):
    """What is unsafe in a file of answers."""

    n_answers: int
    n_unsafe: int
    """Answers with a problem, whoever found it."""
    n_unsafe_by_checks: int
    n_unsafe_by_guard: int | None
    """None without a guard."""
    n_by_problem: dict[str, int]
    """Answers by problem, as rules and trained model find them; most frequent first."""
    n_by_problem_of_guard: dict[str, int]
    n_unread: int
    """Answers of which the guard gave no verdict; the checks alone decide."""
    unread: dict[str, int]
    """The same by reason."""
    guard: str | None


class _Answer(NamedTuple):
    exchange: Exchange
    where: str
    risk: Risk | None
    """Of the question, where the row says it."""


def check_file(settings: CheckSettings, on_progress: OnProgress | None = None) -> AnswerSurvey:
    """Checks every answer of a file, with a guard where one is named.

    Raises:
        DataError: no rows, no column with answers, an empty answer.
        UsageError: a guard without `out`; `out` exists already, without `overwrite`.
        LicenceGateError: texts would go to a non-local endpoint without acknowledgement.
        IncompleteRunError: the guard's run stopped early; the same call continues.
    """
    service, task = _guard(settings)
    if settings.out is not None:
        refuse_existing(settings.out, overwrite=settings.overwrite or bool(settings.retry))
    counts = _Counts()
    with ExitStack() as stack:
        run = None
        if service is not None and task is not None:
            n_answers = sum(1 for _ in _read_answers(settings))  # a bad line shows before paying
            run = stack.enter_context(
                open_run(_journal_path(settings), task.fingerprint(), service, what="the answers")
            )
            asked = (one.exchange for one in _read_answers(settings))
            run.ask(asked, task, n_total=n_answers, on_progress=on_progress)
        lines = _checked(settings, run, task, counts)
        if settings.out is None:
            for _ in lines:
                pass
        else:
            temporary = stack.enter_context(replacing(settings.out))
            with temporary.open("w", encoding="utf-8") as out:
                out.writelines(map(json_line, lines))
    return counts.survey(task.model if task else None)


def estimate_check(settings: CheckSettings) -> Estimate:
    """What would still be sent to the guard; nothing without one."""
    service, task = _guard(settings)
    items = (one.exchange for one in _read_answers(settings))
    path = _journal_path(settings)
    return estimate_run(service, path, items, task, name="answers", reply_tokens=REPLY_TOKENS)


def _guard(settings: CheckSettings) -> tuple[Service | None, GuardTask | None]:
    service = opinion_service(settings, "guard")
    if service is None:
        return None, None
    if settings.out is None:
        raise UsageError("what a guard answers is kept: name a file with --out")
    return service, GuardTask(service.model, settings.extra)


def _journal_path(settings: CheckSettings) -> Path:
    return (settings.out or Path("checked.jsonl")).with_suffix(".journal.sqlite")


class _Counts:
    def __init__(self) -> None:
        self.n: Counter[str] = Counter()
        self.own: Counter[str] = Counter()
        self.guards: Counter[str] = Counter()
        self.unread: Counter[str] = Counter()

    def add(self, own: Sequence[Problem], guards: Sequence[Problem] | Fault | None) -> None:
        if isinstance(guards, Fault):
            self.unread[guards.reason.value] += 1
            guards = ()
        found = {"unsafe_by_checks": own, "unsafe_by_guard": guards, "unsafe": own or guards}
        self.n.update(name for name, problems in found.items() if problems)
        self.n["answers"] += 1
        self.own.update({problem.rule for problem in own})
        self.guards.update({problem.rule for problem in guards or ()})

    def survey(self, guard: str | None) -> AnswerSurvey:
        return AnswerSurvey(
            n_answers=self.n["answers"],
            n_unsafe=self.n["unsafe"],
            n_unsafe_by_checks=self.n["unsafe_by_checks"],
            n_unsafe_by_guard=self.n["unsafe_by_guard"] if guard else None,
            n_by_problem=dict(self.own.most_common()),
            n_by_problem_of_guard=dict(self.guards.most_common()),
            n_unread=self.unread.total(),
            unread=dict(self.unread.most_common()),
            guard=guard,
        )


def _checked(
    settings: CheckSettings, run: Run | None, task: GuardTask | None, counts: _Counts
) -> Iterator[dict[str, Any]]:
    for answer, risk in _graded(settings):
        item = answer.exchange
        own = check_in_both(item.answer, risk)
        guards: Sequence[Problem] | Fault | None = None
        if run is not None and task is not None:
            guards = task.read_outcome(item, run.journal.outcome(task.key(item)))
        counts.add(own, guards)
        line: dict[str, Any] = {"id": item.id, "where": answer.where, "risk": risk}
        line["problems"] = [{**asdict(problem), "by": "checks"} for problem in own]
        if isinstance(guards, Fault):
            line["guard_fault"] = guards.reason.value
        else:
            line["problems"] += [{**asdict(one), "by": "guard"} for one in guards or ()]
        yield line


def _graded(settings: CheckSettings) -> Iterator[tuple[_Answer, Risk]]:
    """Every answer with the risk of its question, screened where the row does not say it."""

    def text_of(answer: _Answer) -> str:
        return "" if answer.risk else answer.exchange.question

    model = open_encoder(settings.screen_model)
    for answer, screening in screen_each(_read_answers(settings), text_of, model=model):
        yield answer, answer.risk or screening.risk


_ANSWERS = ("answer_text", "answer", "text")
_IDS = ("id", "question_id", "questionID")


def _read_answers(settings: CheckSettings) -> Iterator[_Answer]:
    where = None
    for where, row in text_rows(settings.answers, settings.encoding):
        column = next((name for name in _ANSWERS if name in row), None)
        if column is None:
            hint = f"expected one of {', '.join(_ANSWERS)}"
            raise DataError(f"no column with answers among {sorted(row)}", where=where, hint=hint)
        answer = row[column]
        if not isinstance(answer, str) or not answer.strip():
            raise DataError("no answer in this row", where=f"{where}:{column}")
        parts = (str(row.get(name) or "").strip() for name in ("question", "description"))
        question = "\n".join(filter(None, parts))
        found = next((str(row[name]) for name in _IDS if row.get(name) is not None), where)
        given = row.get("risk")
        risk: Risk | None = given if given in _RANK else None
        yield _Answer(Exchange(found, question, answer), where, risk)
    if where is None:
        raise DataError("the file holds no rows", where=str(settings.answers))
