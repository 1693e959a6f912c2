"""What every judge's run has in common, whatever is judged: an answer, or a whole session.

    task = AnswerJudge(rubric, ...)                      # defines what is shown and what is a quote
    verdicts = rate(run, asks, task)                     # through the engine, resumed, checked

One call rates one thing on all criteria of a `ratings.rubric.Rubric`, the form that people rate
on, without a word on who made it. Repeats differ in seed and in the criterion they begin with. A
rating counts only when it is a whole number of the scale and the words it rests on are found;
whatever else comes back is unscored with a reason, never a 0.
"""

from __future__ import annotations

import json
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

from pydantic import Field

from cbtqa.llm.batch import OnProgress
from cbtqa.llm.chat import ChatRequest, Fault, Reply, Sampling
from cbtqa.llm.journal import Outcome
from cbtqa.llm.runs import EndpointSettings, Run
from cbtqa.llm.structured import find_echo, parse_object, strings_of_form
from cbtqa.prompts import load_prompt
from cbtqa.ratings.rubric import Criterion, Rubric
from cbtqa.records import Reason

AskT = TypeVar("AskT")
SEED_STEP = 1_000
"""Between the seeds of two repeats, so that re-asks of one never take the seed of the next."""
SHORTEST_EVIDENCE = 4
"""Characters, punctuation not counted; less is in nearly every answer."""
CANNOT_JUDGE = "cannot_judge"
"""The judge itself could not rate."""
_OF_ONE_CRITERION = (Reason.EVIDENCE_NOT_FOUND, Reason.BAD_RATING, Reason.ECHO)
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

    def reason(self, *, in_full: bool) -> str | None:
        """Why there is no value, with the fault's detail where wanted in full; None with one."""
        if self.value is not None:
            return None
        if self.fault is None:
            return CANNOT_JUDGE
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
        """The prompt's variables."""

    @abstractmethod
    def rests_on(self, ask: AskT, criterion: Criterion, value: int, evidence: str) -> bool:
        """True when the evidence is enough for the rating."""

    def schema(self, criteria: Sequence[Criterion]) -> dict[str, Any]:
        return ratings_schema(criteria)

    def fault_of_form(self, found: Mapping[str, Any]) -> Fault | None:
        """What shows that the whole reply is about something else."""
        return None

    def request(self, ask: AskT) -> ChatRequest:
        n_before, place = self.turn(ask)
        first = place % len(self.criteria)
        criteria = self.criteria[first:] + self.criteria[:first]
        seed = self._sampling.seed
        changes = {} if seed is None else {"seed": seed + SEED_STEP * n_before}
        return ChatRequest(
            self.prompt.render(**self.holes(ask, criteria)),
            self.schema(criteria),
            schema_name="ratings",
            sampling=self._sampling.model_copy(update=changes),
        )

    def check(self, ask: AskT, reply: Reply) -> Fault | None:
        """The first thing wrong with a reply, or None."""
        verdicts = self.read(ask, reply)
        if isinstance(verdicts, Fault):
            return verdicts
        return next((one.fault for one in verdicts.values() if one.fault), None)

    def ask_again(self, ask: AskT, reply: Reply, fault: Fault) -> ChatRequest | None:
        """The same question afresh, with another seed; not after a refusal.

        The faulty reply is not shown again: it would anchor the new ratings to the old ones.
        """
        if fault.reason in (Reason.REFUSAL, Reason.CONTENT_FILTER):
            return None
        return self.request(ask)

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
            return Verdict(None, note=note)
        is_whole = isinstance(value, int) and not isinstance(value, bool)
        if not is_whole or value not in criterion.points:
            given = json.dumps(value, ensure_ascii=False)[:40]
            scale = f"a whole number from {criterion.low} to {criterion.high}"
            return Verdict(None, Fault(Reason.BAD_RATING, f"'{name}': {given}, not {scale}"))
        evidence = str(entry.get("evidence") or "").strip()
        if not self.rests_on(ask, criterion, value, evidence):
            detail = f"'{name}': '{evidence[:80]}' is not in what was judged"
            return Verdict(None, Fault(Reason.EVIDENCE_NOT_FOUND, detail))
        return Verdict(value, evidence=evidence or None, note=note)

    def verdicts(self, ask: AskT, outcome: Outcome | None) -> dict[str, Verdict]:
        """A verdict on every criterion from what the journal holds.

        Of a reply that was rejected for one criterion, the good ratings on the others are kept.
        """
        fault = outcome.fault if outcome else Fault(Reason.ENDPOINT, "no reply yet")
        gone = Verdict(None, fault or Fault(Reason.EMPTY, "the reply holds nothing"))
        whole = {criterion.id: gone for criterion in self.criteria}
        if outcome is None or outcome.reply is None:
            return whole
        if fault and fault.reason not in _OF_ONE_CRITERION:
            return whole
        read = self.read(ask, outcome.reply)
        return whole if isinstance(read, Fault) else read


def rate(
    run: Run, asks: Sequence[AskT], task: JudgeTask[AskT], on_progress: OnProgress | None = None
) -> Iterator[tuple[AskT, str, Verdict]]:
    """Has everything rated that the journal lacks; yields every ask, criterion by criterion."""
    run.ask(asks, task, n_total=len(asks), on_progress=on_progress)
    for ask in asks:
        outcome = run.journal.outcome(task.key(ask))
        for name, verdict in task.verdicts(ask, outcome).items():
            yield ask, name, verdict


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
