"""A language model's opinion of a question or an answer, beside the rules and the trained model.

    opinions = opinions_of(settings, folder)                # .screen and .guard, None if not named
    with opinions.open("the questions") as opened:
        opened.screen.ask(exchanges)                        # journaled beside the run's own replies
        for exchange, found in opened.screen.read(exchanges):
            worse_of(screen(exchange.question), found)
    ask_once(service, GuardTask(service.model), exchange)   # one that is kept nowhere

The worse counts: a model can raise a grade or add a problem, never take one away. A reply that
cannot be read changes nothing, and the fault says why. An endpoint that is gone stops a run, which
the same command continues, and one question of a person's goes on without it.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Generic, Literal, NamedTuple, TypeVar

from cbtqa.errors import EndpointError, IncompleteRunError, UsageError
from cbtqa.llm.batch import OnProgress, run_batch
from cbtqa.llm.chat import ChatRequest, Fault, Message, Reply, Sampling, request_again
from cbtqa.llm.cost import Estimate, Price
from cbtqa.llm.journal import Journal, Outcome, blocks_of, own_path
from cbtqa.llm.limits import Limits
from cbtqa.llm.runs import EndpointSettings, Run, Service, estimate_run, open_run
from cbtqa.llm.structured import parse_object
from cbtqa.prompts import fence, load_prompt
from cbtqa.records import Reason, Risk
from cbtqa.safety.answers import HARMS, Problem
from cbtqa.safety.screen import DANGERS, FoundDanger, Hit, Screening, worse_of_two
from cbtqa.settings import Settings

REPLY_LIMIT = 2048
"""Tokens of a reply, most of them for models that think first."""
REPLY_TOKENS = 60
"""Of a verdict with one quote; assumed for the dry run."""
ANSWER_CHARS = 600
"""Of an answer that is not written yet, in a dry run; assumed."""
NO_HELP = "no_help_route"
KINDS = {**HARMS, NO_HELP: "answers danger without naming anyone who can help"}
"""What a guard may find, with what is told of it."""
_RANK: dict[Risk, int] = {"none": 0, "concern": 1, "explicit": 2}
_EXAMPLE = "原话"
"""What stands for a quote in both prompts."""
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


class OpinionTask(ABC, Generic[VerdictT]):
    """What is asked, and what is wrong with a reply; the engine's task."""

    prompt: ClassVar[str]
    properties: ClassVar[Mapping[str, Any]]
    max_tokens: ClassVar[int] = REPLY_LIMIT
    form_words: ClassVar[str] = "请只输出约定的 JSON 对象，填入真正的内容。"
    """What is said of a reply that could not be read, in the prompt's language."""

    def __init__(self, model: str, extra: Mapping[str, Any] | None = None) -> None:
        # the likeliest verdict
        drawn = {"temperature": 0.0, "max_tokens": self.max_tokens}
        kept: dict[str, Any] = {key: one for key, one in drawn.items() if key not in (extra or {})}
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
        detail = f" ({fault.detail[:200]})"
        return request_again(self.request(item), reply, fault, self.form_words, detail)

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


class ScreenTask(OpinionTask[Screening]):
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
        text, risk, entries = item.question, found.get("risk"), entries_of(found.get("dangers"))
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


class GuardTask(OpinionTask[tuple[Problem, ...]]):
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
        entries = entries_of(found.get("problems"))
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


def entries_of(value: object) -> list[Mapping[str, Any]] | Fault:
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


def changes(own: Screening, worse: Screening) -> tuple[str, ...]:
    """What a second opinion made worse: `concern`, `explicit`, or classes of danger."""
    known = {danger.kind: danger.risk for danger in own.dangers}
    raised = [one.kind for one in worse.dangers if known.get(one.kind) != one.risk]
    return (*([worse.risk] if worse.risk != own.risk else []), *raised)


# --- asking --------------------------------------------------------------------------------------


def opinion_service(settings: Settings, role: Role) -> Service | None:
    """Who is asked for an opinion, under the settings' own limits; None when nobody is named.

    Raises:
        UsageError, ConfigError: an endpoint without a model or the reverse; no address; files.
    """
    model_flag = "screen_endpoint_model" if role == "screen" else "guard_model"
    endpoint, model = (getattr(settings, name, None) for name in (f"{role}_endpoint", model_flag))
    flags = f"--{role}-endpoint and --{model_flag.replace('_', '-')}"
    if (endpoint is None) != (model is None):
        raise UsageError(f"{flags} go together")
    if endpoint is None:
        return None
    shared = set(EndpointSettings.model_fields) - {"endpoint", "model", "transport", "cluster"}
    given = settings.model_dump(include=shared - _of_another(settings, model))
    asked = EndpointSettings(**given, endpoint=endpoint, model=model)
    (server,) = asked.endpoints()
    if server.is_batch:
        raise UsageError(f"{flags}: an opinion is wanted at once, not through files")
    # what runs here costs nothing, whatever the other model of a budget in money costs
    free = Price(input=0, output=0, currency="") if server.is_local and asked.budget else None
    return Service.of(asked, [server], free)


def _of_another(settings: Settings, model: str | None) -> set[str]:
    """Settings that are meant for the model that a verb asks for answers, not for an opinion."""
    if not hasattr(settings, "endpoint"):
        return set()
    prices = {"price_in", "price_out"} if getattr(settings, "model", None) != model else set()
    # one attempt is for a system that is scored, not for who reads its answers
    is_scored = type(settings).model_fields.get("max_attempts")
    return {"extra", *prices, *(["max_attempts"] if is_scored and is_scored.default == 1 else [])}


def ask_once(service: Service, task: OpinionTask[VerdictT], item: Exchange) -> VerdictT | Fault:
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


@dataclass(frozen=True)
class Opinion(Generic[VerdictT]):
    """A further model of a run, before it is asked."""

    role: Role
    service: Service
    task: OpinionTask[VerdictT]
    path: Path
    """Of its journal, beside what the run itself writes."""

    @property
    def journal_path(self) -> Path:
        """The journal, or a fork of it where that one holds another model's replies."""
        return own_path(self.path, self.task.fingerprint())

    def estimate(self, items: Iterable[Exchange], name: str) -> Estimate:
        """What would still be sent to it."""
        how: dict[str, Any] = {"name": name, "reply_tokens": REPLY_TOKENS}
        found = estimate_run(self.service, self.journal_path, items, self.task, **how)
        return found.model_copy(update={"name": f"{self.role}: {name}"})


@dataclass(frozen=True)
class OpenOpinion(Generic[VerdictT]):
    """The same with its journal open."""

    by: Opinion[VerdictT]
    run: Run

    def ask(
        self,
        items: Iterable[Exchange],
        *,
        n_total: int | None = None,
        beside: Sequence[Run] = (),
        spent: float = 0.0,
        on_progress: OnProgress | None = None,
    ) -> None:
        """Asks about what its journal has no verdict of.

        Args:
            beside: the other runs that spend of the same budget.
            spent: money beside theirs.

        Raises:
            EndpointError, IncompleteRunError: as `Run.ask`, with the role in the message.
        """
        shown: dict[str, Any] = {"n_total": n_total, "on_progress": on_progress}
        try:
            self.run.ask(items, self.by.task, beside=beside, spent=spent, **shown)
        except (EndpointError, IncompleteRunError) as error:
            of, n = self.by, self.run.journal.totals().n_replies
            kept = "1 reply of it is kept" if n == 1 else f"{n:,} replies of it are kept"
            hint = error.hint or "give the same command again to continue"
            without = f"{hint}; or go on without --{of.role}-endpoint"
            message = f"the {of.role} ({of.service.model} at {of.service.host}): {error}; {kept}"
            kind = EndpointError if isinstance(error, EndpointError) else IncompleteRunError
            raise kind(message, hint=without) from None

    def outcome(self, item: Exchange) -> Outcome | None:
        """What the journal holds of an item; None where it was not asked about."""
        return self.run.journal.outcome(self.by.task.key(item))

    def verdict(self, item: Exchange) -> VerdictT | Fault:
        """The verdict on one item, or why there is none."""
        return self.by.task.read_outcome(item, self.outcome(item))

    def read(self, items: Iterable[Exchange]) -> Iterator[tuple[Exchange, VerdictT | Fault]]:
        """Each item with its verdict, or why there is none."""
        task = self.by.task
        for block in blocks_of(items, 512):
            keys = [task.key(item) for item in block]
            for item, (_, outcome) in zip(block, self.run.journal.outcomes(keys), strict=True):
                yield item, task.read_outcome(item, outcome)


@dataclass(frozen=True)
class OpenOpinions:
    """Both further models with their journals open; None where none is named."""

    screen: OpenOpinion[Screening] | None = None
    guard: OpenOpinion[Any] | None = None

    @property
    def each(self) -> tuple[OpenOpinion[Any], ...]:
        return tuple(one for one in (self.screen, self.guard) if one)

    @property
    def runs(self) -> tuple[Run, ...]:
        return tuple(one.run for one in self.each)


NO_OPINIONS = OpenOpinions()


@dataclass(frozen=True)
class Opinions:
    """The further models that a verb's settings name."""

    screen: Opinion[Screening] | None = None
    guard: Opinion[Any] | None = None

    @property
    def each(self) -> tuple[Opinion[Any], ...]:
        return tuple(one for one in (self.screen, self.guard) if one)

    @property
    def services(self) -> tuple[Service, ...]:
        return tuple(one.service for one in self.each)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the models."""
        return tuple(dict.fromkeys(one.model for one in self.services))

    @property
    def prompts(self) -> dict[str, str]:
        """Hash of each prompt by its name, as a manifest keeps them."""
        found = [one.task.fingerprint() for one in self.each]
        return {one["prompt"]: one["prompt_sha256"] for one in found}

    def fingerprint(self) -> dict[str, str]:
        """What shapes the questions of a run, beside the run's own settings; the guard does not."""
        if self.screen is None:
            return {}
        return {"screen": json.dumps(self.screen.task.fingerprint(), sort_keys=True)}

    @contextmanager
    def open(self, what: str, *, is_invented: bool = False) -> Iterator[OpenOpinions]:
        """Passes the disclosure gates and opens the journals; raises as `open_run`."""
        with ExitStack() as stack:
            opened: dict[str, Any] = {}
            for one in self.each:
                given: dict[str, Any] = {"what": what, "is_invented": is_invented}
                # the gates of both, before either journal is begun
                given["further"] = self.services
                found = open_run(one.journal_path, one.task.fingerprint(), one.service, **given)
                opened[one.role] = OpenOpinion(one, stack.enter_context(found))
            yield OpenOpinions(**opened)


def opinions_of(
    settings: Settings,
    folder: Path,
    stem: str = "",
    guard: Callable[[str, Mapping[str, Any] | None], OpinionTask[Any]] = GuardTask,
) -> Opinions:
    """The further models that settings name, with their journals in a folder.

    Args:
        stem: begins the names of the journals, of a verb that writes one file among others.
        guard: what the guard is asked; by default about a question and its answer.

    Raises:
        UsageError, ConfigError: as `opinion_service`.
    """
    found: dict[str, Any] = {}
    kinds: dict[Role, Callable[[str, Mapping[str, Any] | None], OpinionTask[Any]]]
    kinds = {"screen": ScreenTask, "guard": guard}
    extra = None if hasattr(settings, "endpoint") else getattr(settings, "extra", None)
    for role, kind in kinds.items():
        if (service := opinion_service(settings, role)) is not None:
            path = folder / f"{stem}{role}.journal.sqlite"
            found[role] = Opinion(role, service, kind(service.model, extra), path)
    return Opinions(**found)


class OpinionCounts:
    """How often an opinion was read, and what it changed; what a manifest keeps of it."""

    def __init__(self, by: Opinion[Any]) -> None:
        self._by = by
        self.n_read = self.n_changed = 0
        self.found: Counter[str] = Counter()
        self.unread: Counter[str] = Counter()

    def add(self, verdict: object, changed: Iterable[str] = ()) -> None:
        """Counts one verdict; `changed` names what it found beyond the built-in checks."""
        names = tuple(dict.fromkeys(changed))
        if isinstance(verdict, Fault):
            self.unread[verdict.reason.value] += 1
            self.found.update(names)  # by the other parts of what was read in several
            return
        self.n_read += 1
        self.n_changed += bool(names)
        self.found.update(names)

    def described(self, run: Run) -> dict[str, Any]:
        """Model, numbers and cost; `n_unread` are items that the built-in checks alone decide."""
        return {
            "model": self._by.service.model,
            "endpoint_host": self._by.service.host,
            "prompt": self._by.task.fingerprint()["prompt"],
            "n_read": self.n_read,
            "n_changed": self.n_changed,
            "found": dict(self.found.most_common()),
            "n_unread": self.unread.total(),
            "unread": dict(self.unread.most_common()),
            "usage": run.usage.model_dump(),
            "cost": run.cost,
        }
