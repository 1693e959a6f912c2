"""What every judge's run has in common, whatever is judged: an answer, or a whole session.

    task = AnswerJudge(rubric, ...)                      # defines what is shown and what is a quote
    verdicts = rate(run, asks, task)                     # through the engine, resumed, checked

One call rates one thing on all criteria of a `ratings.rubric.Rubric`, the form that people rate
on, without a word on who made it. Repeats differ in seed and in the criterion they begin with. A
rating counts only when it is a whole number of the scale and the words it rests on are found. A
criterion without such a rating is asked about again by itself, with the fault named; what then
still lacks one is unscored with a reason, never a 0.
"""

from __future__ import annotations

import json
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from pydantic import Field

from cbtqa.llm.batch import OnProgress
from cbtqa.llm.chat import ChatRequest, Fault, Reply, Sampling
from cbtqa.llm.cost import Estimate, sum_estimates
from cbtqa.llm.journal import Journal, Outcome
from cbtqa.llm.runs import EndpointSettings, Run, Service, estimate_run
from cbtqa.llm.structured import find_echo, parse_object, strings_of_form
from cbtqa.prompts import load_prompt
from cbtqa.ratings.rubric import Criterion, Rubric
from cbtqa.records import Reason

AskT = TypeVar("AskT")
SEED_STEP = 1_000
"""Between the seeds of two repeats, so that re-asks of one never take the seed of the next."""
AGAIN = "again:"
"""Begins the keys of requests about single criteria in a journal."""
AGAIN_SEED_STEP = 100
"""Between the seeds of two rounds of them."""
SHORTEST_EVIDENCE = 4
"""Characters, punctuation not counted; less is in nearly every answer."""
CANNOT_JUDGE = "cannot_judge"
"""The judge itself could not rate."""
_OF_ONE_CRITERION = (Reason.EVIDENCE_NOT_FOUND, Reason.BAD_RATING, Reason.ECHO)
_NAMED = (Reason.BAD_RATING, Reason.NOT_JSON)
"""Faults of a whole reply that are named when it is asked again: they tell what to do better."""
NOTHING_TO_RATE = "not_applicable"
"""Why there is no value where the criterion itself says that there may be nothing to rate."""
NOT_APPLICABLE = {"n/a", "na", "n.a.", "not applicable", "none", "null", "unable to rate"}


class JudgingSettings(EndpointSettings):
    """Settings of every judge beside what it judges."""

    panel: ClassVar[str] = "Judge"

    repeats: int = Field(default=3, ge=1, le=20)
    """Ratings of each answer or session."""
    temperature: float = Field(default=0.7, ge=0, le=2)
    """Assumed: repeats at 0 would only echo each other."""
    seed: int = Field(default=0, ge=0)
    """Seed of the first repeat."""

    def drawn(self, max_tokens: int) -> Sampling:
        """How a judge draws its words."""
        return self.sampling(temperature=self.temperature, max_tokens=max_tokens, seed=self.seed)


@dataclass(frozen=True)
class Verdict:
    """What a reply gives on one criterion."""

    value: int | None
    fault: Fault | None = None
    evidence: str | None = None
    note: str = ""
    is_not_applicable: bool = False
    """The criterion says when there is nothing to rate, and no value was given."""
    n_again: int = 0
    """Times that this criterion was asked about by itself."""

    def reason(self, *, in_full: bool) -> str | None:
        """Why there is no value, with the fault's detail where wanted in full; None with one."""
        if self.value is not None:
            return None
        if self.fault is None:
            return NOTHING_TO_RATE if self.is_not_applicable else CANNOT_JUDGE
        detail = f": {self.fault.detail}" if in_full else ""
        return f"{self.fault.reason.value}{detail}"


class JudgeTask(ABC, Generic[AskT]):
    """The engine's task: asks, checks, asks again, reads back."""

    task: ClassVar[str]
    """Name in the journal's fingerprint."""
    form: ClassVar[str]
    """What the rubric is called there: `rubric` or `instrument`."""
    entry: ClassVar[str]
    """What the prompt shows for one criterion."""
    fault_words: ClassVar[str]
    """What is said of a reply that was no good, with a hole for the fault."""
    again_words: ClassVar[str]
    """The same of criteria that are asked about by themselves."""

    def __init__(
        self, rubric: Rubric, form_id: str, sampling: Sampling, model: str, host: str, prompt: str
    ) -> None:
        self.rubric, self.form_id, self.model, self.host = rubric, form_id, model, host
        self.criteria = rubric.scales
        self.prompt, self._sampling = load_prompt(prompt), sampling

    def fingerprint(self) -> dict[str, str]:
        """Everything that can change a reply; what is judged, and how often, may grow."""
        return {
            "task": self.task,
            "model": self.model,
            "endpoint_host": self.host,
            "prompt": self.prompt.name,
            "prompt_sha256": self.prompt.sha256,
            self.form: self.form_id,
            f"{self.form}_sha256": self.rubric.sha256,
            "sampling": json.dumps(self._sampling.described(), sort_keys=True),
        }

    @abstractmethod
    def key(self, ask: AskT) -> str:
        """What is judged, and the repeat."""

    @abstractmethod
    def turn(self, ask: AskT) -> tuple[int, int]:
        """Repeats before this one, and the place of the criterion that this one begins with."""

    @abstractmethod
    def holes(self, ask: AskT, criteria: Sequence[Criterion]) -> dict[str, str]:
        """What the prompt may take: those of its variables that it declares."""

    @abstractmethod
    def rests_on(self, ask: AskT, criterion: Criterion, value: int, evidence: str) -> bool:
        """True when the evidence is enough for the rating."""

    def schema(self, criteria: Sequence[Criterion]) -> dict[str, Any]:
        return ratings_schema(criteria)

    def fault_of_form(self, found: Mapping[str, Any]) -> Fault | None:
        """What shows that the whole reply is about something else."""
        return None

    def request(self, ask: AskT) -> ChatRequest:
        _, place = self.turn(ask)
        first = place % len(self.criteria)
        return self._request(ask, self.criteria[first:] + self.criteria[:first])

    def request_again(self, ask: AskT, faults: Mapping[str, Fault], number: int) -> ChatRequest:
        """The question about some criteria alone, with what was wrong with each.

        Args:
            number: of the round, from 1.
        """
        criteria = [one for one in self.criteria if one.id in faults]
        found = "\n".join(f"- {faults[one.id].detail}" for one in criteria)
        note = self.again_words.format(faults=found)
        return self._request(ask, criteria, note, AGAIN_SEED_STEP * number)

    def _request(
        self, ask: AskT, criteria: Sequence[Criterion], note: str = "", further: int = 0
    ) -> ChatRequest:
        messages = self.prompt.fill(self.holes(ask, criteria))
        if note:
            messages[-1] = {**messages[-1], "content": f"{messages[-1]['content']}\n\n{note}"}
        n_before, seed = self.turn(ask)[0], self._sampling.seed
        changes = {} if seed is None else {"seed": seed + SEED_STEP * n_before + further}
        return ChatRequest(
            messages,
            self.schema(criteria),
            schema_name="ratings",
            sampling=self._sampling.model_copy(update=changes),
        )

    def check(self, ask: AskT, reply: Reply) -> Fault | None:
        """What is wrong with a reply as a whole; single criteria are asked about by `rate`."""
        found = self.read(ask, reply)
        return found if isinstance(found, Fault) else None

    def ask_again(self, ask: AskT, reply: Reply, fault: Fault) -> ChatRequest | None:
        """The same question afresh, with another seed and the fault named; not after a refusal."""
        return self.named(self.request(ask), fault)

    def named(self, request: ChatRequest, fault: Fault) -> ChatRequest | None:
        """A request after a reply that was no good; None after a refusal.

        The faulty reply is not shown again: it would anchor the new ratings to the old ones.
        """
        if fault.reason in (Reason.REFUSAL, Reason.CONTENT_FILTER):
            return None
        if fault.reason not in _NAMED:
            return request
        *others, last = request.messages
        note = self.fault_words.format(fault=fault.detail)
        return replace(
            request, messages=[*others, {**last, "content": f"{last['content']}\n\n{note}"}]
        )

    def read(self, ask: AskT, reply: Reply) -> dict[str, Verdict] | Fault:
        """A verdict on every criterion, or what is wrong with the reply as a whole."""
        ids = [criterion.id for criterion in self.criteria]
        found = parse_object(reply.text, fits=lambda value: any(name in value for name in ids))
        if isinstance(found, Fault):
            return found
        if fault := self.fault_of_form(found):
            return fault
        return {one.id: self._verdict(ask, one, found.get(one.id)) for one in self.criteria}

    def _verdict(self, ask: AskT, criterion: Criterion, entry: object) -> Verdict:
        name = criterion.id
        if not isinstance(entry, Mapping) or "rating" not in entry:
            return Verdict(None, Fault(Reason.BAD_RATING, f"'{name}' has no rating"))
        if echo := find_echo(entry, strings_of_form(self.entry)):
            return Verdict(None, Fault(echo.reason, f"'{name}': {echo.detail}"))
        value, note = entry["rating"], str(entry.get("reason") or "").strip()
        if value is None or (isinstance(value, str) and value.strip().lower() in NOT_APPLICABLE):
            is_named = criterion.not_applicable is not None
            return Verdict(None, note=note, is_not_applicable=is_named)
        is_whole = isinstance(value, int) and not isinstance(value, bool)
        if not is_whole or value not in criterion.points:
            given = json.dumps(value, ensure_ascii=False)[:40]
            scale = f"a whole number from {criterion.low} to {criterion.high}"
            return Verdict(None, Fault(Reason.BAD_RATING, f"'{name}': {given}, not {scale}"))
        evidence = str(entry.get("evidence") or "").strip()
        if not self.rests_on(ask, criterion, value, evidence):
            shown = f"'{evidence[:80]}' is not in what was judged" if evidence else "no evidence"
            detail = f"'{name}': {shown}"
            return Verdict(None, Fault(Reason.EVIDENCE_NOT_FOUND, detail))
        return Verdict(value, evidence=evidence or None, note=note)

    def verdicts(self, ask: AskT, outcome: Outcome | None) -> dict[str, Verdict]:
        """A verdict on every criterion from what the journal holds.

        Of a reply with a fault in one criterion, the good ratings on the others are kept.
        """
        fault = outcome.fault if outcome else Fault(Reason.ENDPOINT, "no reply yet")
        gone = Verdict(None, fault or Fault(Reason.EMPTY, "the reply holds nothing"))
        whole = {criterion.id: gone for criterion in self.criteria}
        return whole if outcome is None else self.by_criterion(ask, outcome) or whole

    def by_criterion(self, ask: AskT, outcome: Outcome) -> dict[str, Verdict] | None:
        """What a reply says on each criterion; None where it is no good as a whole."""
        if outcome.reply is None:
            return None
        if outcome.fault and outcome.fault.reason not in _OF_ONE_CRITERION:
            return None
        read = self.read(ask, outcome.reply)
        return None if isinstance(read, Fault) else read


@dataclass(frozen=True)
class _Again(Generic[AskT]):
    """Criteria of one thing that are asked about by themselves."""

    ask: AskT
    number: int
    """Of the round, from 1."""
    faults: Mapping[str, Fault]


@dataclass(frozen=True)
class _CriteriaTask(Generic[AskT]):
    """The engine's task for them: one request for all faulty criteria of one reply."""

    judge: JudgeTask[AskT]

    def key(self, item: _Again[AskT]) -> str:
        return f"{AGAIN}{item.number}:{self.judge.key(item.ask)}"

    def request(self, item: _Again[AskT]) -> ChatRequest:
        return self.judge.request_again(item.ask, item.faults, item.number)

    def check(self, item: _Again[AskT], reply: Reply) -> Fault | None:
        return self.judge.check(item.ask, reply)

    def ask_again(self, item: _Again[AskT], reply: Reply, fault: Fault) -> ChatRequest | None:
        return self.judge.named(self.request(item), fault)

    def verdicts(self, item: _Again[AskT], outcome: Outcome | None) -> dict[str, Verdict]:
        found = self.judge.verdicts(item.ask, outcome)
        return {name: replace(found[name], n_again=item.number) for name in item.faults}


def rate(
    run: Run, asks: Sequence[AskT], task: JudgeTask[AskT], on_progress: OnProgress | None = None
) -> Iterator[tuple[AskT, str, Verdict]]:
    """Has everything rated that the journal lacks; yields every ask, criterion by criterion.

    A criterion with a fault is asked about again by itself, in as many rounds as a whole reply has
    attempts (`--max-attempts`, the first included).
    """
    run.ask(asks, task, n_total=len(asks), on_progress=on_progress)
    mended = _ask_criteria_again(run, asks, task, on_progress)
    for ask in asks:
        key = task.key(ask)
        verdicts = task.verdicts(ask, run.journal.outcome(key)) | mended.get(key, {})
        for name, verdict in verdicts.items():
            yield ask, name, verdict


def estimate_rating(
    service: Service | None,
    path: Path,
    asks: Sequence[AskT],
    task: JudgeTask[AskT] | None,
    *,
    name: str,
    reply_tokens: int,
) -> Estimate:
    """What `rate` would still send: whole replies, and the criteria that the journal knows to be
    faulty. Faults of replies that are still to come are known to nobody: `length_from` says so.

    Args:
        path: of the journal, which need not exist.
        reply_tokens: of one criterion, assumed while the journal holds no reply.
    """
    if service is None or task is None:
        return estimate_run(service, path, asks, task, name=name)
    n_rounds = service.limits.max_attempts - 1
    whole: dict[str, Any] = {"name": name, "reply_tokens": reply_tokens * len(task.criteria)}
    parts = [estimate_run(service, path, asks, task, **whole)]
    if path.exists():
        with Journal(path, read_only=True) as journal:
            items = _open_criteria(journal, asks, task, n_rounds)
        few = whole | {"is_measured": False, "reply_tokens": reply_tokens}
        parts.append(estimate_run(service, path, items, _CriteriaTask(task), **few))
    first = parts[0]
    length_from = (
        f"{first.length_from}; criteria with a fault are asked about again, in up to {n_rounds} "
        "rounds, on top"
    )
    same = {"name": first.name, "parts": (), "length_from": length_from}
    return sum_estimates(name, first.n_items, first.n_left_out, parts).model_copy(update=same)


def _open_criteria(
    journal: Journal, asks: Sequence[AskT], task: JudgeTask[AskT], n_rounds: int
) -> list[_Again[AskT]]:
    """Criteria that a journal knows to be faulty and holds no later word on."""
    again = _CriteriaTask(task)
    found: list[_Again[AskT]] = []
    for ask in asks:
        outcome = journal.outcome(task.key(ask))
        faults = _faults((task.by_criterion(ask, outcome) if outcome else None) or {})
        for number in range(1, n_rounds + 1):
            if not faults:
                break
            item = _Again(ask, number, faults)
            outcome = journal.outcome(again.key(item))
            if outcome is None:
                found.append(item)
                break
            faults = _faults(again.verdicts(item, outcome))
    return found


def _ask_criteria_again(
    run: Run, asks: Sequence[AskT], task: JudgeTask[AskT], on_progress: OnProgress | None
) -> dict[str, dict[str, Verdict]]:
    """By key, the verdicts on criteria whose first ones had a fault.

    Which those are follows from the journal alone, so that a run which was stopped goes on.
    """
    assert run.service is not None, "a judge is asked"
    mended: dict[str, dict[str, Verdict]] = {}
    waiting: dict[str, _Again[AskT]] = {}
    for ask in asks:
        outcome = run.journal.outcome(task.key(ask))
        first = task.by_criterion(ask, outcome) if outcome else None
        if faults := _faults(first or {}):
            waiting[task.key(ask)] = _Again(ask, 1, faults)
    again = _CriteriaTask(task)
    for number in range(1, run.service.limits.max_attempts):
        if not waiting:
            break
        items = list(waiting.values())
        run.ask(items, again, n_total=len(items), on_progress=on_progress)
        for key, item in list(waiting.items()):
            found = again.verdicts(item, run.journal.outcome(again.key(item)))
            mended[key] = mended.get(key, {}) | found
            waiting.pop(key)
            if faults := _faults(found):
                waiting[key] = _Again(item.ask, number + 1, faults)
    return mended


def _faults(verdicts: Mapping[str, Verdict]) -> dict[str, Fault]:
    """The faults of single criteria that a further question may mend."""
    found = {name: one.fault for name, one in verdicts.items()}
    return {name: one for name, one in found.items() if one and one.reason in _OF_ONE_CRITERION}


def is_quote_of(evidence: str, text: str) -> bool:
    """True when the words are quoted from the text: four characters, or all of a shorter text.

    Widths, blanks, punctuation and quotation marks do not count: models change them in JSON.
    """
    quoted, whole = _bare(evidence), _bare(text)
    return len(quoted) >= min(SHORTEST_EVIDENCE, max(len(whole), 1)) and quoted in whole


def _bare(text: str) -> str:
    folded = unicodedata.normalize("NFKC", text).lower()
    return "".join(c for c in folded if unicodedata.category(c)[0] not in "PZC")


def ratings_schema(criteria: Iterable[Criterion]) -> dict[str, Any]:
    """JSON schema of a reply: evidence and reason come before the rating."""
    entries = {
        criterion.id: _closed(
            {
                "evidence": {"type": "string"},
                "reason": {"type": "string"},
                "rating": {"type": ["integer", "null"], "enum": [*criterion.points, None]},
            }
        )
        for criterion in criteria
    }
    return _closed(entries)


def _closed(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
